# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pruning by what it does: each removal is tried, and the one that costs least is made.

    importance of a channel  I(c) = sqrt(mean over batches of (sum over readers w_c . dL/dw_c)^2)
    cost of a block          (E(without it) - E) / (share of the operations that go with it)
    E                        mean over pairs of log(mean min(e, 8 px)) + log(mean min(e, 1 px))

The sizes of weights, which `prune.prune_to_ratio` goes by, compare channels of one group and take
the same share of every group. Here the first-order Taylor expansion of the loss (Molchanov et al.,
CVPR 2019) orders the channels of a group, and trials tell which group gives up a block of its
least ones next: some have half of their channels for nothing, others none. Logarithms of both
errors, so that a small error that grows counts as much as a large one: a loss in pixels is
ruled by the worst pairs, and lets go of what answers within a pixel are made of.

Costs mostly rise as channels go, so that the trials of before are bounds, and only the cheapest
candidates are tried anew (lazy greedy evaluation: Minoux, 1978).
"""

from __future__ import annotations

import copy
import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from stereo_kd_training.networks import StereoNetwork
from stereo_kd_training.networks.channels import changed_widths
from stereo_kd_training.prune import (
    PruneError,
    build_graph,
    count_macs,
    find_unprunable,
    unpruned,
)
from stereo_kd_training.train import (
    Batch,
    LossWeights,
    PairSource,
    TrainingConfig,
    keep_statistics,
    make_batch,
    supervised_loss,
)

LARGE_ERROR_PX = 8.0
SMALL_ERROR_PX = 1.0
# What saves less of the operations than this is not worth a trial.
LEAST_SHARE = 0.001

_CROPS_PER_BATCH = 2
# Cameras are not what is measured, so that most crops are without their faults.
_AUGMENTATION = {'blotch_probability': 0.2, 'blotch_sigma': 1.5}

Judge = Callable[[StereoNetwork], float]


@dataclass(frozen=True)
class Removal:
    """One block that went, and the network without it.

    Attributes:
        network: without it.
        group: root layer of the channels, as `prune.StereoGraph.groups` names it.
        channels: left in the group.
        macs: multiply-accumulates left for one pair.
        share: of the multiply-accumulates that there were at first.
        error: what the judge says of the network now, less what it said at first.
    """

    network: StereoNetwork
    group: str
    channels: int
    macs: int
    share: float
    error: float


_LIMITS_PX = (LARGE_ERROR_PX, SMALL_ERROR_PX)


def relative_error(batches: Sequence[Batch]) -> Judge:
    """A judge whose difference between two networks is a ratio of their errors.

    0.02 more is, say, 1 % more error below 8 px and 1 % more below 1 px, on the average pair.
    Pairs without any known disparity, as a crop of a sky, have no say.

    Raises:
        PruneError: no pair has a known disparity.
    """
    if not any(torch.isfinite(batch.disparity).any() for batch in batches):
        raise PruneError('no pair to judge by has a known disparity')

    @torch.no_grad()
    def judge(network: StereoNetwork) -> float:
        network.eval()
        logs = []
        for batch in batches:
            disparity = network(*_normalized(network, batch)).disparity
            for answer, truth in zip(disparity, batch.disparity, strict=True):
                known = torch.isfinite(truth)
                if not known.any():
                    continue
                error = (answer[known] - truth[known]).abs()
                logs += [error.clamp(max=px).mean().clamp(min=1e-6).log() for px in _LIMITS_PX]
        return float(torch.stack(logs).sum()) / (len(logs) / len(_LIMITS_PX))

    return judge


def channel_importance(
    network: StereoNetwork,
    batches: Sequence[Batch],
    weights: LossWeights | None = None,
    only: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """How much the loss changes, to first order, when a channel is gone.

    A channel is what its readers make of it: the convolutions that take it in. Where it goes
    through a cost volume these cannot be told, and those that make it stand for them.

    Args:
        network: trained; left in eval mode, without gradients.
        batches: to learn from.
        weights: of the loss; without, the defaults and what a refinement learns by.
        only: beginnings of the names of the groups that are asked about; all without.
        keep: see `prune.build_graph`.

    Returns:
        by root layer, (channels,) each.

    Raises:
        PruneError: the network cannot be traced, or no such group.
    """
    members = {
        root: _members(network, group) for root, group in _groups(network, only, keep).items()
    }
    needed = {p: p.requires_grad for p in network.parameters()}
    squares: dict[str, Tensor] = {}
    try:
        for parameter in needed:
            parameter.requires_grad_(True)
        for batch in batches:
            network.train()
            keep_statistics(network)
            network.zero_grad(set_to_none=True)
            output = network(*_normalized(network, batch))
            loss, _ = supervised_loss(output, batch.disparity, weights or LossWeights(refined=1.0))
            loss.backward()
            for root, parts in members.items():
                change = sum(part() for part in parts)
                squares[root] = squares.get(root, torch.zeros(())) + change**2
    finally:
        network.zero_grad(set_to_none=True)
        for parameter, need in needed.items():
            parameter.requires_grad_(need)
        network.eval()
    return {root: (total / len(batches)).sqrt() for root, total in squares.items()}


def _normalized(network: StereoNetwork, batch: Batch) -> tuple[Tensor, Tensor]:
    return network.normalize(batch.left.float()), network.normalize(batch.right.float())


def _groups(
    network: StereoNetwork, only: tuple[str, ...], keep: tuple[str, ...]
) -> dict[str, tp.dependency.Group]:
    groups = build_graph(network, keep).groups
    chosen = {root: group for root, group in groups.items() if not only or root.startswith(only)}
    if not chosen:
        raise PruneError(
            f'no group of channels begins with {" or ".join(only) or "anything"}; there are '
            f'{", ".join(sorted(groups)) or "none"}'
        )
    return chosen


def _members(network: StereoNetwork, group: tp.dependency.Group) -> list[Callable[[], Tensor]]:
    """For each layer that speaks for a group: what its gradient says of every channel."""
    known = set(network.modules())
    channels = len(group[0].idxs)
    readers, makers, hidden = [], [], False
    for item in group:
        layer = item.dep.target.module
        hidden |= layer not in known
        if not isinstance(layer, nn.modules.conv._ConvNd | nn.Linear):
            continue
        reads = 'in_channels' in item.dep.handler.__name__
        # The channels of a depthwise convolution are what goes in and what comes out.
        if not reads and getattr(layer, 'groups', 1) == 1:
            makers.append(_told_by(layer, item, channels, 0))
        elif reads and getattr(layer, 'groups', 1) == 1:
            readers.append(_told_by(layer, item, channels, 1))
    return makers if hidden or not readers else readers


def _told_by(layer: nn.Module, item: Any, channels: int, axis: int) -> Callable[[], Tensor]:
    if isinstance(layer, nn.modules.conv._ConvTransposeNd):
        axis = 1 - axis
    mine, theirs = torch.tensor(item.idxs), torch.tensor(item.root_idxs)

    def told() -> Tensor:
        total = torch.zeros(channels)
        if layer.weight.grad is None:
            return total
        product = (layer.weight * layer.weight.grad).detach().cpu()
        others = [dim for dim in range(product.ndim) if dim != axis]
        return total.index_add_(0, theirs, product.sum(others)[mine])

    return told


def prune_measured(
    network: StereoNetwork,
    judge: Judge,
    importance: dict[str, Tensor],
    *,
    block: int = 8,
    only: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
    size: tuple[int, int] = (480, 640),
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Removal]:
    """Remove one block of channels after another, each time the one that costs least.

    Goes on until no group has two blocks left, so take as many as are wanted: every one is a
    network of its own. `network` itself stays as it is.

    Args:
        network: trained; ends in eval mode.
        judge: what it costs, such as `relative_error`; lower is better.
        importance: of the channels, as `channel_importance` tells it.
        block: channels that go at once; 8 suits vector units. A width that is no multiple of
            it first becomes one.
        only: beginnings of the names of the groups that may lose channels; all without.
        keep: see `prune.build_graph`.
        size: (height, width) at which operations are counted.
        progress: called with (groups tried, groups) while all are tried for the first time.

    Raises:
        PruneError: the network cannot be traced, importance of another network, or no such group.
    """
    if block < 1:
        raise PruneError(f'block is {block}, expected 1 or more')
    left = {root: list(range(len(values))) for root, values in importance.items()}
    frozen = find_unprunable(network, keep)
    groups = {
        root: len(group[0].idxs)
        for root, group in _groups(network, only, keep).items()
        if root not in frozen
    }
    unlike = [root for root, width in groups.items() if len(left.get(root, [])) != width]
    if unlike:
        raise PruneError(
            f'importance is of another network: {unlike[0]} has {groups[unlike[0]]} channels '
            f'and {len(left.get(unlike[0], []))} importances'
        )
    first_macs = macs = count_macs(network, *size)
    first_error = error = judge(network)

    def tried(root: str) -> _Trial | None:
        """The network without the least block of a group; None if that saves little."""
        width = len(left[root])
        count = width % block or block
        if width - count < block:
            return None
        order = sorted(left[root], key=lambda channel: float(importance[root][channel]))
        gone = set(order[:count])
        smaller = copy.deepcopy(network)
        places = [place for place, channel in enumerate(left[root]) if channel in gone]
        build_graph(smaller, keep).groups[root].prune(places)
        saved = macs - count_macs(smaller, *size)
        if saved < LEAST_SHARE * first_macs:
            return None
        found = judge(smaller)
        cost = (found - error) / (saved / first_macs)
        kept = [channel for channel in left[root] if channel not in gone]
        return _Trial(cost, root, smaller, kept, macs - saved, found)

    bounds: list[tuple[float, str]] = []
    for number, root in enumerate(groups, 1):
        trial = tried(root)
        if trial is not None:
            bounds.append((trial.cost, root))
        if progress:
            progress(number, len(groups))
    heapq.heapify(bounds)
    while bounds:
        best: _Trial | None = None
        while bounds and (best is None or bounds[0][0] < best.cost):
            trial = tried(heapq.heappop(bounds)[1])
            if trial is None:
                continue
            if best is not None:
                worse = max(best, trial, key=lambda one: one.cost)
                heapq.heappush(bounds, (worse.cost, worse.root))
                best = min(best, trial, key=lambda one: one.cost)
            else:
                best = trial
        if best is None:
            return
        network, error, macs = best.network, best.error, best.macs
        left[best.root] = best.kept
        heapq.heappush(bounds, (best.cost, best.root))
        network.configuration['widths'] = changed_widths(network, unpruned(network))
        yield Removal(
            copy.deepcopy(network),
            best.root,
            len(best.kept),
            macs,
            macs / first_macs,
            error - first_error,
        )


def prune_on_pairs(
    network: StereoNetwork,
    pairs: PairSource,
    *,
    crops: int = 24,
    crop: tuple[int, int] = (288, 576),
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Iterator[Removal]:
    """`prune_measured`, with importance and judge from crops of pairs with a known disparity.

    Args:
        network: trained.
        pairs: to take crops of.
        crops: to judge by, and as many to learn importance from; rounded up to whole batches.
        crop: (height, width) of each, cut to multiples of the network's strides.
        seed: of the crops.
        progress: see `prune_measured`, as are the `options`.
    """
    down, across = network.strides
    config = TrainingConfig(
        network=network.configuration['name'],
        batch_size=_CROPS_PER_BATCH,
        crop_height=crop[0] - crop[0] % down,
        crop_width=crop[1] - crop[1] % across,
        augmentation=_AUGMENTATION,
        seed=seed,
    )
    count = math.ceil(crops / _CROPS_PER_BATCH)
    batches = [make_batch(pairs, config, step) for step in range(2 * count)]
    of = {name: options[name] for name in ('only', 'keep') if name in options}
    importance = channel_importance(network, batches[:count], **of)
    judge = relative_error(batches[count:])
    yield from prune_measured(network, judge, importance, progress=progress, **options)


def prune_until(
    network: StereoNetwork, removals: Iterator[Removal], enough: Callable[[StereoNetwork], bool]
) -> StereoNetwork:
    """The first network that is enough: `network` itself or one with channels removed.

    Raises:
        PruneError: none is.
    """
    while not enough(network):
        removal = next(removals, None)
        if removal is None:
            raise PruneError(
                f'{count_macs(network) / 1e9:.3f} GMAC are left at 640x480 and no group has two '
                'blocks of channels that are worth it; prune less, or in smaller blocks (round_to)'
            )
        network = removal.network
    return network


@dataclass(frozen=True)
class _Trial:
    cost: float
    root: str
    network: StereoNetwork
    kept: list[int]
    macs: int
    error: float
