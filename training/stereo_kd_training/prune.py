# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Structured pruning of stereo networks with Torch-Pruning's DepGraph, made stereo-aware.

    importance of a kernel   I(w) = ||w||_2^2
    importance of a channel  I(g) = sum of I(w) over all layers coupled to it     (DTP Eq. 5)

Layers that must lose the same channels form a group; `prune_to_ratio` removes the least
important channels of every group, `prune_iteratively` does so in steps with training between
(Distill-then-prune), `find_ratio` looks for the ratio that meets a number of parameters,
multiply-accumulates or milliseconds.

What a stereo network adds to DepGraph (Fang et al., CVPR 2023):

* the extractor is shared by both views, so its channels leave both at once;
* channels cannot be followed through a cost volume, a warp or a soft argmax: the network marks
  them (`networks.base.opaque`) and extractor and aggregation become two graphs;
* a channel that is a disparity hypothesis, or that reaches any output, is never removed;
* a group whose removal breaks the network all the same is left alone and named in the report.

A pruned network is its configuration, with the widths that changed, and its weights.
"""

from __future__ import annotations

import copy
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from stereo_kd_ros.sessions import quiet_session
from stereo_kd_training.complexity import complexity
from stereo_kd_training.networks import StereoNetwork, StereoOutput, build, create
from stereo_kd_training.networks.base import ChannelTrace, channel_trace
from stereo_kd_training.networks.channels import changed_widths, channel_widths

TARGETS = ('parameters', 'macs', 'latency_ms')


class PruneError(RuntimeError):
    """A network that cannot be traced for pruning, or a target out of reach."""


@dataclass(frozen=True)
class PruneReport:
    """What one call of `prune_to_ratio` did.

    Attributes:
        parameters_before, parameters_after: trainable values.
        groups: root layer to (channels before, channels after), for every prunable group.
        frozen: root layer to the reason why its group was left alone.
    """

    parameters_before: int
    parameters_after: int
    groups: dict[str, tuple[int, int]]
    frozen: dict[str, str]


@dataclass
class StereoGraph:
    """The prunable channel groups of a network.

    Attributes:
        groups: by the name of their root layer.
        frozen: root layers of groups that stay, with the reason.
    """

    network: StereoNetwork
    groups: dict[str, tp.dependency.Group] = field(default_factory=dict)
    frozen: dict[str, str] = field(default_factory=dict)


class _Traced(nn.Module):
    """The network and the nodes of known width that its opaque functions end in."""

    def __init__(self, network: StereoNetwork, entered: list[tuple[int, int]]) -> None:
        super().__init__()
        self.network = network
        norms = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
        self.sources = nn.ModuleList(norms[dims](width) for width, dims in entered)


def trace_size(network: StereoNetwork) -> tuple[int, int]:
    """Height and width of the smallest pair that every network runs on."""
    stride = network.stride
    height = max(64, 2 * stride)
    width = max(height, round(network.max_disparity_px))
    return _next_multiple(height, stride), _next_multiple(width, stride)


def build_graph(network: StereoNetwork, keep: tuple[str, ...] = ()) -> StereoGraph:
    """Trace `network` and group its channels.

    The network is left in eval mode. Heads that only training uses are traced too.

    Args:
        network: to be pruned, with weights.
        keep: names in `StereoOutput.features` that must keep their channels, such as the maps
            that a distillation loss compares with a teacher's.

    Raises:
        PruneError: DepGraph cannot follow the network.
    """
    device = next(network.parameters()).device
    pair = [torch.rand(1, 3, *trace_size(network), device=device) for _ in range(2)]
    with network.traced_once(), channel_trace() as dry, torch.enable_grad():
        _run_all_heads(network, pair)
    model = _Traced(network, dry.entered).to(device)
    fixed_nodes: set[Any] = set()

    def forward(traced: _Traced, images: list[Tensor]) -> list[Tensor]:
        with channel_trace(list(traced.sources)) as trace:
            output = _run_all_heads(traced.network, images)
        fixed, free = _outputs(output, trace, keep)
        # A node of its own for each output, so that it is no layer's.
        fixed = [value * 1.0 for value in fixed]
        fixed_nodes.update(value.grad_fn for value in fixed)
        return fixed + [value * 1.0 for value in free]

    needs_gradient = {p: p.requires_grad for p in network.parameters()}
    for parameter in needs_gradient:
        parameter.requires_grad_(True)
    try:
        with network.traced_once(), torch.enable_grad(), warnings.catch_warnings():
            warnings.simplefilter('ignore')
            graph = tp.DependencyGraph().build_dependency(
                model, example_inputs=pair, forward_fn=forward, verbose=False
            )
            groups = list(graph.get_all_groups())
    except (AssertionError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise PruneError(
            f'DepGraph cannot follow {type(network).__name__} ({type(error).__name__}: {error}); '
            'mark the function in which channels are lost with networks.base.opaque'
        ) from error
    finally:
        for parameter, needed in needs_gradient.items():
            parameter.requires_grad_(needed)

    fixed_modules = {
        node.module for node in graph.module2node.values() if node.grad_fn in fixed_nodes
    } | set(model.sources)
    result = StereoGraph(network)
    for group in groups:
        root = graph._module2name[group[0].dep.target.module].removeprefix('network.')
        reason = _why_fixed(group, fixed_modules)
        if reason:
            result.frozen[root] = reason
        else:
            result.groups[root] = group
    return result


def _run_all_heads(network: StereoNetwork, pair: list[Tensor]) -> StereoOutput:
    """Run with training's heads, but with statistics and dropout as they are."""
    network.eval()
    composite = [m for m in network.modules() if next(m.children(), None) is not None]
    try:
        for module in composite:
            module.training = True
        return network(*pair)
    finally:
        network.eval()


def _outputs(
    output: StereoOutput, trace: ChannelTrace, keep: tuple[str, ...]
) -> tuple[list[Tensor], list[Tensor]]:
    unknown = [name for name in keep if name not in output.features]
    if unknown:
        raise PruneError(
            f'features {", ".join(unknown)} are to be kept but the network gives '
            f'{", ".join(sorted(output.features)) or "none"}'
        )
    fixed = [output.disparity, output.confidence, *output.stages, *output.logits, *trace.fixed]
    free = list(trace.free)
    for name, value in output.features.items():
        (fixed if name in keep else free).append(value)

    def traced(values: list[Any]) -> list[Tensor]:
        return [v for v in values if isinstance(v, Tensor) and v.grad_fn is not None]

    return traced(fixed), traced(free)


def _why_fixed(group: tp.dependency.Group, fixed_modules: set[Any]) -> str:
    """Why the channels of `group` must stay, or an empty string."""
    root = group[0].dep.target.module
    if _outputs_of(root) < 2:
        return 'a single channel'
    for dependency, _ in group:
        module = dependency.target.module
        if module in fixed_modules:
            return 'its channels reach an output or a cost volume that counts them'
        grouped = isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
        if grouped and not module.groups == module.in_channels == module.out_channels:
            return 'it meets a grouped convolution'
        if isinstance(module, nn.GroupNorm):
            return 'it meets a group norm'
    return ''


def _outputs_of(layer: nn.Module) -> int:
    return layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels


def target_width(original: int, ratio: float, round_to: int) -> int:
    """Channels left of `original` when `ratio` of them go, as a multiple of `round_to`.

    Rounded to the nearest multiple, at least one of them, and never more than there were.
    """
    wanted = original * (1.0 - ratio)
    rounded = max(1, round(wanted / round_to)) * round_to
    return max(min(original, rounded), min(original, 2))


def prune_to_ratio(
    network: StereoNetwork,
    ratio: float,
    *,
    round_to: int = 8,
    keep: tuple[str, ...] = (),
    frozen: dict[str, str] | None = None,
) -> PruneReport:
    """Remove channels in place until `ratio` of each group's *original* ones are gone.

    The original widths are those of the unpruned configuration, so pruning to 0.1, then 0.2
    ends at 0.2, and an interrupted series goes on where it stopped.

    Args:
        network: built by `networks.create` or `networks.build`; ends in eval mode. Optimisers
            that hold its parameters must be made anew.
        ratio: share of channels to remove, in [0, 1).
        round_to: widths become multiples of it; 8 suits vector units and tensor cores.
        keep: see `build_graph`.
        frozen: root layers to leave alone, as `PruneReport.frozen` of an earlier call;
            found out by trial when absent.
    """
    if not 0.0 <= ratio < 1.0:
        raise PruneError(f'pruning ratio {ratio} is outside [0, 1)')
    if round_to < 1:
        raise PruneError(f'round_to is {round_to}, expected 1 or more')
    original = unpruned(network)
    widths = channel_widths(original)
    if frozen is None:
        frozen = find_unprunable(network, keep)
    before = network.parameter_count()
    needs_gradient = {name: p.requires_grad for name, p in network.named_parameters()}
    pruned = _prune_groups(network, ratio, round_to, widths, keep, frozen)
    # Pruning makes parameters anew, all of them trainable.
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(needs_gradient[name])
    network.configuration['widths'] = changed_widths(network, original)
    return PruneReport(before, network.parameter_count(), pruned, dict(frozen))


def unpruned(network: StereoNetwork) -> StereoNetwork:
    """An untrained network of the same configuration, with all of its channels.

    Raises:
        PruneError: it was not built from a configuration.
    """
    configuration = network.configuration
    if 'name' not in configuration:
        raise PruneError(
            f'{type(network).__name__} has no configuration; build it with networks.create, '
            'so that the pruned network can be rebuilt'
        )
    return create(configuration['name'], **configuration['options'])


def pruned_since(network: StereoNetwork, configuration: dict[str, Any]) -> bool:
    """Whether a layer lacks more channels than the same layer of a configuration."""
    now, then = _lacking(network), _lacking(build(configuration))
    return any(now[name] > count for name, count in then.items() if name in now)


def _lacking(network: StereoNetwork) -> dict[str, int]:
    """Of each layer, how many of the channels that it was made to take in are gone."""
    whole = channel_widths(unpruned(network))
    return {name: whole[name][0] - width[0] for name, width in channel_widths(network).items()}


def _prune_groups(
    network: StereoNetwork,
    ratio: float,
    round_to: int,
    widths: dict[str, list[int]],
    keep: tuple[str, ...],
    frozen: dict[str, str],
) -> dict[str, tuple[int, int]]:
    graph = build_graph(network, keep)
    importance = tp.importance.GroupMagnitudeImportance(
        p=2, group_reduction='sum', normalizer=None
    )
    pruned = {}
    for root, group in graph.groups.items():
        if root in frozen:
            continue
        now = _outputs_of(group[0].dep.target.module)
        left = target_width(widths[root][1], ratio, round_to)
        if left < now:
            # Groups pruned before have moved the channels behind a concatenation.
            handle = group[0].dep
            group = group._DG.get_pruning_group(
                handle.target.module, handle.handler, list(range(now))
            )
            score = importance(group)
            # A stable order makes the choice among equals the same on every machine.
            least = torch.argsort(score, stable=True)[: now - left]
            group.prune(sorted(least.tolist()))
        pruned[root] = (now, min(now, left))
    return pruned


def find_unprunable(network: StereoNetwork, keep: tuple[str, ...] = ()) -> dict[str, str]:
    """Root layers whose groups must be left alone, with reasons, found by trying on copies."""
    frozen = dict(build_graph(network, keep).frozen)
    widths = channel_widths(network)
    if not _breaks(network, widths, keep, frozen):
        return frozen
    for root in build_graph(network, keep).groups:
        others = {name: '' for name in widths if name != root}
        reason = _breaks(network, widths, keep, others)
        if reason:
            frozen[root] = f'removing channels breaks the network: {reason}'
    reason = _breaks(network, widths, keep, frozen)
    if reason:
        raise PruneError(
            f'{type(network).__name__} does not run after pruning: {reason}; mark the function '
            'in which channels are lost with networks.base.opaque'
        )
    return frozen


def _breaks(
    network: StereoNetwork,
    widths: dict[str, list[int]],
    keep: tuple[str, ...],
    frozen: dict[str, str],
) -> str:
    """What goes wrong when a copy loses half of its channels; empty when nothing does."""
    trial = copy.deepcopy(network)
    pair = [torch.rand(1, 3, *trace_size(network)) for _ in range(2)]
    pair = [image.to(next(network.parameters()).device) for image in pair]
    try:
        _prune_groups(trial, 0.5, 1, widths, keep, frozen)
        with torch.no_grad():
            _run_all_heads(trial, pair)
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        return f'{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ""}'
    return ''


FineTune = Callable[[StereoNetwork, int], None]


def prune_iteratively(
    network: StereoNetwork,
    ratio: float,
    steps: int,
    fine_tune: FineTune,
    *,
    round_to: int = 8,
    keep: tuple[str, ...] = (),
    first_step: int = 0,
) -> list[PruneReport]:
    """DTP's loop: remove ratio / steps of the channels, train with distillation, repeat.

    Args:
        network: trained; changed in place.
        ratio: share of channels removed at the end (DTP: 0.5 = 5 times 10 %).
        steps: how many times to prune.
        fine_tune: called with (network, step) after each, to train it.
        round_to: see `prune_to_ratio`.
        keep: see `build_graph`.
        first_step: where to go on after an interruption; steps before it are taken as done.
    """
    if steps < 1:
        raise PruneError(f'pruning takes 1 step or more, got {steps}')
    reports = []
    for step in range(first_step, steps):
        share = ratio * (step + 1) / steps
        reports.append(prune_to_ratio(network, share, round_to=round_to, keep=keep))
        fine_tune(network, step)
    return reports


# Targets


def count_macs(network: StereoNetwork, height: int = 480, width: int = 640) -> int:
    """Multiply-accumulates of one pair, both views, matrix products included."""
    return complexity(network, height, width).macs


def measure_latency_ms(
    network: StereoNetwork, height: int = 480, width: int = 640, threads: int = 2, runs: int = 7
) -> float:
    """Median milliseconds of the exported network in ONNX Runtime on this machine's CPU."""
    from stereo_kd_training.export import export_network

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'candidate.onnx'
        export_network(network, path, sizes=())
        return measure_file_ms(path, height, width, threads, runs)


def measure_file_ms(
    path: Path | str, height: int = 480, width: int = 640, threads: int = 2, runs: int = 7
) -> float:
    """The same of a file."""
    from stereo_kd_training.export import example_pair

    session = quiet_session(path, threads)
    left, right = example_pair(height, width)
    times_ms = []
    for _ in range(runs + 2):
        start = time.perf_counter()
        session.run(None, {'left': left, 'right': right})
        times_ms.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times_ms[2:])


def find_ratio(
    network: StereoNetwork,
    target: str,
    value: float,
    *,
    height: int = 480,
    width: int = 640,
    round_to: int = 8,
    keep: tuple[str, ...] = (),
    largest: float = 0.9,
    tolerance: float = 0.01,
    measure: Callable[[StereoNetwork], float] | None = None,
) -> float:
    """The smallest ratio, to within `tolerance`, at which the pruned network meets a target.

    The network itself is not changed; every candidate is a copy.

    Args:
        target: 'parameters', 'macs' or 'latency_ms'.
        value: not to be exceeded. A value below 1 of the first two is a share of the network's.
        height, width: of the pair on which operations and time are measured.
        round_to: see `prune_to_ratio`.
        keep: see `build_graph`.
        largest: ratio beyond which nothing is tried.
        tolerance: of the ratio.
        measure: takes the place of this machine's CPU for 'latency_ms', to measure on the
            device that will run the network.

    Raises:
        PruneError: even `largest` does not meet it.
    """
    if target not in TARGETS:
        raise PruneError(f'unknown target {target!r}; one of {", ".join(TARGETS)}')
    measures: dict[str, Callable[[StereoNetwork], float]] = {
        'parameters': lambda candidate: candidate.parameter_count(),
        'macs': lambda candidate: count_macs(candidate, height, width),
        'latency_ms': measure or (lambda candidate: measure_latency_ms(candidate, height, width)),
    }
    if target != 'latency_ms' and value < 1:
        value *= measures[target](network)
    frozen = find_unprunable(network, keep)
    known: dict[str, float] = {}

    def meets(ratio: float) -> tuple[bool, float]:
        candidate = copy.deepcopy(network)
        prune_to_ratio(candidate, ratio, round_to=round_to, keep=keep, frozen=frozen)
        # Rounding gives many ratios the same network; it is measured once.
        key = str(candidate.configuration['widths'])
        if key not in known:
            known[key] = measures[target](candidate)
        return known[key] <= value, known[key]

    if meets(0.0)[0]:
        return 0.0
    reached, best = meets(largest)
    if not reached:
        raise PruneError(
            f'{target} of {value:.4g} is out of reach: {largest:.0%} fewer channels still give '
            f'{best:.4g}; start from a smaller network or raise the target'
        )
    low, high = 0.0, largest
    while high - low > tolerance:
        middle = 0.5 * (low + high)
        if meets(middle)[0]:
            high = middle
        else:
            low = middle
    return high


def save_network(network: StereoNetwork, path: Path | str) -> None:
    """Write configuration and weights as a checkpoint that `train.load_network` reads."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    state = network.state_dict()
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    torch.save({'configuration': network.configuration, 'network': state, 'ema': state}, partial)
    os.replace(partial, path)


def _next_multiple(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple
