# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every stereo network of this package takes and gives.

A network maps two normalised RGB images (B, 3, H, W), H and W multiples of
`network.stride`, to a `StereoOutput`. Normalisation constants belong to the network
(`mean`, `std`, over RGB in [0, 1]), so training and export use the same ones.

`split_views` and `opaque` are how a network tells pruning where channels cannot be followed,
such as in a cost volume. Outside of `channel_trace` they do nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class NetworkError(ValueError):
    """A network that cannot be built or cannot take the input it was given."""


@dataclass
class ChannelTrace:
    """What pruning learns from one run of a network besides the autograd graph.

    Attributes:
        fixed: maps that an opaque function read and whose channels must all stay.
        free: maps that an opaque function read and that may lose channels.
        entered: (channels, dimensions) of every map that an opaque function gave, in order.
        sources: modules that such maps pass through, in that order: they give the
            dependency graph a node of known width. Empty on the run that learns `entered`.
    """

    fixed: list[Tensor] = field(default_factory=list)
    free: list[Tensor] = field(default_factory=list)
    entered: list[tuple[int, int]] = field(default_factory=list)
    sources: Sequence[nn.Module] = ()


_trace: ChannelTrace | None = None


@contextmanager
def channel_trace(sources: Sequence[nn.Module] = ()) -> Iterator[ChannelTrace]:
    """Record where the channel graph of the network run inside is interrupted."""
    global _trace
    outer, _trace = _trace, ChannelTrace(sources=sources)
    try:
        yield _trace
    finally:
        _trace = outer


def split_views(both: Tensor) -> tuple[Tensor, Tensor]:
    """(2B, ...) holding left then right images to two (B, ...).

    A dependency graph takes a split of the batch for a split of channels, so within
    `channel_trace` both answers are the whole.
    """
    if _trace is not None:
        return both, both
    left, right = both.chunk(2, 0)
    return left, right


Function = TypeVar('Function', bound=Callable[..., Any])


def opaque(prunable: bool = False) -> Callable[[Function], Function]:
    """Decorate a function on maps through which a dependency graph cannot follow channels.

    For what compares, sums up, warps or regresses: cost volumes, soft argmax, upsampling by
    weights. The channel graph ends at its tensor arguments and a new one starts at its results.

    Args:
        prunable: whether the arguments may lose channels: True for a correlation that sums
            over all of them, False where their number or order counts (groups, concatenated
            volumes, disparity hypotheses). Channels of results always stay.
    """

    def decorate(function: Function) -> Function:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            if _trace is None:
                return function(*args, **kwargs)
            args = tuple(_leave_graph(value, prunable) for value in args)
            kwargs = {key: _leave_graph(value, prunable) for key, value in kwargs.items()}
            results = function(*args, **kwargs)
            if isinstance(results, tuple):
                return tuple(_enter_graph(value) for value in results)
            return _enter_graph(results)

        return call

    return decorate


def _leave_graph(value: Any, prunable: bool) -> Any:
    if not isinstance(value, Tensor) or not value.requires_grad or value.dim() < 2:
        return value
    (_trace.free if prunable else _trace.fixed).append(value)
    return value.detach()


def _enter_graph(value: Any) -> Any:
    if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() < 2:
        return value
    value = value.detach().requires_grad_()
    _trace.entered.append((value.shape[1], value.dim()))
    if not _trace.sources:
        return value
    return _trace.sources[len(_trace.entered) - 1](value)


@dataclass
class StereoOutput:
    """What a stereo network returns.

    Attributes:
        disparity: (B, H, W) px at input resolution; pixel x of the left image matches
            x - disparity in the right one.
        confidence: (B, H, W) in [0, 1], or None when the network has no such head.
        stages: full-resolution disparities (B, H, W), coarse to fine, for multi-stage
            losses; the last one is `disparity`.
        logits: one (B, D, h, w) matching score per disparity hypothesis and stage that has
            one, higher is better (networks that produce costs negate them), in the order
            of `stages`; None for a stage without a distribution.
        hypotheses: the disparity in input pixels of each of the D logits, (D,), one per
            entry of `logits`.
        features: named intermediate maps that distillation losses may compare.
    """

    disparity: Tensor
    confidence: Tensor | None = None
    stages: tuple[Tensor, ...] = ()
    logits: tuple[Tensor | None, ...] = ()
    hypotheses: tuple[Tensor | None, ...] = ()
    features: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.stages:
            self.stages = (self.disparity,)


class StereoNetwork(nn.Module):
    """Base of all students and teachers.

    Attributes:
        stride: H and W of the input may be multiples of it, see `strides`.
        max_disparity_px: the largest disparity the network can answer.
        configuration: name and options that rebuild it (set by `networks.create`).
        crops: whether `forward` takes, as a third argument, the (H, W) of images that were filled
            up to `strides`, and answers in that size, disparities no less than 0 and confidences,
            which it has, within [0, 1].
    """

    stride: int = 16
    max_disparity_px: float = 192.0
    source: str = ''
    crops: bool = False

    def __init__(self, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> None:
        super().__init__()
        self.configuration: dict[str, Any] = {}
        self.register_buffer('mean', torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    @property
    def strides(self) -> tuple[int, int]:
        """H and W of the input must be multiples of these."""
        return self.stride, self.stride

    @property
    def resizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """(pixels, in their place) of H and of W that the network begins with.

        Of an exported graph this is part of the input, see `deployed.normalised`.
        """
        return (1, 1), (1, 1)

    @property
    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Factor and summand of each channel, (3,) twice, that take [0, 255] to `normalize`'s."""
        return (1.0 / (255.0 * self.std)).flatten(), -(self.mean / self.std).flatten()

    @property
    def input_normalisation(self) -> tuple[Tensor, Tensor]:
        """The same of the graph that is being traced, which may read another scale."""
        return self.normalisation

    def normalize(self, image: Tensor) -> Tensor:
        """RGB (B, 3, H, W) in [0, 255] to the network's own scale."""
        # One pass less than (image / 255 - mean) / std, and no division.
        scale, offset = self.normalisation
        return image * scale.view(1, 3, 1, 1) + offset.view(1, 3, 1, 1)

    def forward(self, left: Tensor, right: Tensor) -> StereoOutput:
        raise NotImplementedError

    @contextmanager
    def traced_once(self) -> Iterator[None]:
        """What `forward` repeats with the same layers is done once within.

        Channels are the same each time, and to follow them through all repetitions takes for ever.
        """
        yield

    def temper(self, temperature: float) -> None:
        """Divide every logit by `temperature`: above 1 the distribution of disparities is softer.

        Raises:
            NetworkError: this network has no logits that could be.
        """
        raise NetworkError(
            f'{self.configuration.get("name", type(self).__name__)} has no temperature; '
            'kestrel has one'
        )

    def recovered(
        self, convolutions: dict[str, tuple[Tensor, Tensor | None]]
    ) -> dict[str, Tensor]:
        """Parameters that an exported file holds as weights of convolutions made of them.

        Args:
            convolutions: weight and bias by the name of the module that each was written for.
        """
        return {}

    @contextmanager
    def as_written(self, convolutions: dict[str, tuple[Tensor, Tensor | None]]) -> Iterator[None]:
        """Within, the network with the weights of an exported file is what that file is.

        A file of before may expect what networks of today do otherwise, to which its weights are
        brought at the end.

        Args:
            convolutions: as of `recovered`.
        """
        yield

    def followed(self, widths: dict[str, list[int]]) -> dict[str, list[int]]:
        """Widths of a pruned network of other options, as this one would have them.

        Args:
            widths: as `channels.changed_widths` gives them, of a network that is like this one but
                for some options.

        Returns:
            those that differ from this network's, which was not pruned.
        """
        return widths

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict to start from, made of one that need not be of exactly this network."""
        return state

    @torch.no_grad()
    def parameter_count(self) -> int:
        """Trainable values."""
        return sum(p.numel() for p in self.parameters())
