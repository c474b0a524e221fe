# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel: this project's own student, a correlation volume read by a light 2-D U-Net.

    left, right (B, 3, H, W)           normalised RGB, H and W multiples of 4
      encoder   -> stem   (B, 16, H/2, W/2), matching features (B, 32, H/4, W/4)
      volume    -> cosine correlation (B, D, H/4, W/4), D = max_disparity_px / 4
      aggregate -> logits (B, D, H/4, W/4) = U-Net(volume, left context) + s * volume
      regress   -> soft-argmax in a window of +-2 bins round the best hypothesis
      refine    -> if asked for: within a bin, by comparing stems at the answer
      upsample  -> convex combination of the 3x3 coarse neighbours (RAFT, Teed and Deng 2020)
    disparity, confidence (B, H, W)

With other cells than 4x4 px the images are first resized by 4 / `cell_px` in width and by
4 / `cell_height_px` in height: the same network with finer or coarser cells, for 16 / area of a
cell times the operations (resolution as a dimension of scale: EfficientNet, Tan and Le 2019).
Disparity lies along the rows, so that a cell is better narrow than square: 3 px wide and 6 px
tall it costs less than 4x4 px and is more exact.

The volume is one matrix product per image row whose band of D diagonals is cut out by a
pad-and-reshape ("skew"), so neither training nor an ONNX runtime sees D slices. It comes
out in descending order of disparity: hypothesis k stands for cell_px * (D - 1 - k).

Blocks are inverted residuals (MobileNetV2, Sandler et al. 2018; for stereo aggregation
LightStereo, Guo et al. 2025). Window regression follows the unimodal reading of the
distribution that sub-pixel stereo needs at depth edges.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo_kd_training.networks import deployed
from stereo_kd_training.networks.base import (
    IMAGENET_MEAN,
    NetworkError,
    StereoNetwork,
    StereoOutput,
    opaque,
    split_views,
)
from stereo_kd_training.networks.channels import channel_widths
from stereo_kd_training.networks.confidence import ConfidenceCalibration

CELL_WIDTHS_PX = (6, 5, 4, 3, 2)
CELL_HEIGHTS_PX = (8, *CELL_WIDTHS_PX)
REFINED_STEPS = 2
# The bytes that are zero to it: ImageNet's mean in whole numbers, see `deployed.whole_levels`.
ZERO_LEVELS = (124, 116, 104)
# Sides of a cell whose resize the stem of an exported graph does: three or four pixels to two.
_RESIZED_BY_STEM = (6, 8)
FARTHEST_NEIGHBOUR = 4.0
# What a refinement knows of the answer itself: what is left of it, its mass, eight neighbours.
_OF_THE_ANSWER = 10
# The logit of taking the answer of a neighbour, beside 0 of keeping one's own, before training.
_UNMOVED = -8.0
# Where answers spread from: eight cells so many cells away, each time.
SPREAD_REACHES = (1, 2, 4)
# Mean difference of three colours by which a cell counts 1 / e of its sureness, in grey levels.
SPREAD_LEVELS = 10.0


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int = 3,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    """Convolution, batch norm and, if asked for, ReLU; same size (or size / stride) out."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    ]
    if activation:
        layers.append(nn.ReLU(inplace=True))
    return _ConvolutionNorm(*layers)


class _ConvolutionNorm(nn.Sequential):
    """A convolution without bias, its batch norm and what follows.

    In a training that keeps the norm's statistics (`keep_statistics`) both are one convolution:
    the same answers and gradients but for rounding, and fewer passes over the maps. Not where
    somebody listens to either, as DepGraph does.
    """

    def forward(self, x: Tensor) -> Tensor:
        convolution, norm, *rest = self
        heard = convolution._forward_hooks or norm._forward_hooks
        if norm.training or not self.training or heard:
            return super().forward(x)
        weight, bias = _folded(convolution, norm)
        y = F.conv2d(
            x,
            weight,
            bias,
            convolution.stride,
            convolution.padding,
            convolution.dilation,
            convolution.groups,
        )
        for layer in rest:
            y = layer(y)
        return y


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection, with a skip where the shapes allow it."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, expansion: int = 2
    ) -> None:
        super().__init__()
        hidden = in_channels * expansion
        self.skip = stride == 1 and in_channels == out_channels
        self.expand = conv_bn(in_channels, hidden, 1)
        self.depthwise = conv_bn(hidden, hidden, 3, stride, groups=hidden)
        self.project = conv_bn(hidden, out_channels, 1, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.skip else y


class _Convolution(nn.Module):
    """A convolution whose weights are made for it; a module, so that what is traced has a name."""

    def forward(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
    ) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)


@torch.no_grad()
def folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution and its batch norm in one, which do not learn."""
    return _folded(convolution, norm)


def _folded(convolution: nn.Conv2d, norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    weight = convolution.weight * scale.view(-1, 1, 1, 1)
    return weight, norm.bias - norm.running_mean * scale


def unfolded(norm: nn.BatchNorm2d, bias: Tensor) -> dict[str, Tensor]:
    """What is left to a batch norm of mean 0 and variance 1 that `folded` has been through."""
    return {'weight': torch.full_like(bias, math.sqrt(1 + norm.eps)), 'bias': bias}


def _stage(
    in_channels: int, out_channels: int, stride: int, blocks: int, expansion: int
) -> nn.Sequential:
    """`blocks` inverted residuals, the first of which changes channels and stride."""
    layers = [InvertedResidual(in_channels, out_channels, stride, expansion)]
    layers += [
        InvertedResidual(out_channels, out_channels, 1, expansion) for _ in range(blocks - 1)
    ]
    return nn.Sequential(*layers)


# (2 B, ...) of both views, the left ones first, or (B, ...) of each
Views = Tensor | tuple[Tensor, Tensor]


def _of_each(layer: Callable[[Tensor], Tensor], views: Views) -> Views:
    """`layer` of both views at once, or of one after the other where they come apart."""
    if isinstance(views, tuple):
        left, right = views
        return layer(left), layer(right)
    return layer(views)


def _apart(views: Views) -> tuple[Tensor, Tensor]:
    return views if isinstance(views, tuple) else split_views(views)


class _Up(nn.Module):
    """Nearest x2 of a projected coarse map added to the finer skip connection."""

    def __init__(self, coarse: int, fine: int, blocks: int, expansion: int) -> None:
        super().__init__()
        self.lateral = conv_bn(coarse, fine, 1, activation=False)
        self.refine = _stage(fine, fine, 1, blocks, expansion)

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        # An odd side has one row or column less than twice the coarse one's.
        up = F.interpolate(self.lateral(coarse), size=fine.shape[-2:], mode='nearest')
        return self.refine(F.relu(fine + up))


class Encoder(nn.Module):
    """Image (B, 3, H, W) to stem (B, s, H/2, W/2) and features (B, c, H/4, W/4).

    Features carry context down to 1/16 before they come back to 1/4, so that a
    textureless pixel is described by what surrounds it.
    """

    def __init__(self, stem: int, widths: tuple[int, int, int], out_channels: int) -> None:
        super().__init__()
        c4, c8, c16 = widths
        self.stem = conv_bn(3, stem, 3, 2)
        self.quarter = nn.Sequential(conv_bn(stem, c4, 3, 2), _stage(c4, c4, 1, 2, 2))
        self.eighth = _stage(c4, c8, 2, 2, 2)
        self.sixteenth = _stage(c8, c16, 2, 2, 2)
        self.up8 = _Up(c16, c8, 1, 2)
        self.up4 = _Up(c8, c4, 1, 2)
        self.head = nn.Conv2d(c4, out_channels, 1)
        # By its name a file tells which of them it has.
        self.tall_stem, self.level_stem = _Convolution(), _Convolution()

    def forward(
        self,
        image: Views,
        read: tuple[int, int] = (2, 2),
        levels_of: Tensor | None = None,
    ) -> tuple[Views, Tensor]:
        """Two views that come apart stay so as far as the stem; features are of both at once.

        Args:
            image: normalised, or `deployed.whole_levels`.
            read: so many rows, and columns, of it are two of what the stem sees.
            levels_of: the factors of the normalisation in whose place there are levels, if so.
        """
        if read != (2, 2) or levels_of is not None:
            weight, bias = folded(self.stem[0], self.stem[1])
            if levels_of is not None:
                weight = deployed.of_levels(weight, levels_of)
            for axis, pixels in enumerate(read):
                weight = deployed.resizing_weights(weight, axis, pixels)
            padding = [1 if pixels == 2 else 2 for pixels in read]
            weight, bias = deployed.constant(weight), deployed.constant(bias)
            first = self.tall_stem if levels_of is None else self.level_stem
            stem = _of_each(lambda view: F.relu(first(view, weight, bias, read, padding)), image)
        else:
            stem = _of_each(self.stem, image)
        first, further = self.quarter
        quarter = _of_each(first, stem)
        quarter = further(torch.cat(quarter, 0) if isinstance(quarter, tuple) else quarter)
        eighth = self.eighth(quarter)
        return stem, self.head(self.up4(self.up8(self.sixteenth(eighth), eighth), quarter))


class Aggregation(nn.Module):
    """Volume (B, D, h, w) and left context (B, c, h, w) to logits, guide and confidence.

    A 2-D U-Net over 1/4, 1/8, 1/16 and 1/32 with disparity as channels.
    """

    def __init__(
        self,
        hypotheses: int,
        context: int,
        widths: tuple[int, int, int, int],
        blocks: tuple[int, int, int, int],
        expansion: int,
    ) -> None:
        super().__init__()
        w4, w8, w16, w32 = widths
        b4, b8, b16, b32 = blocks
        self.enter = conv_bn(hypotheses + context, w4, 1)
        self.down4 = _stage(w4, w4, 1, b4, expansion)
        self.down8 = _stage(w4, w8, 2, b8, expansion)
        self.down16 = _stage(w8, w16, 2, b16, expansion)
        self.down32 = _stage(w16, w32, 2, b32, expansion)
        self.up16 = _Up(w32, w16, 1, expansion)
        self.up8 = _Up(w16, w8, max(1, b8 - 1), expansion)
        self.up4 = _Up(w8, w4, b4, expansion)
        self.logits = nn.Conv2d(w4, hypotheses, 1)
        self.confidence = nn.Conv2d(w4, 1, 1)

    def forward(self, volume: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x4 = self.down4(self.enter(torch.cat((volume, context), 1)))
        x8 = self.down8(x4)
        x16 = self.down16(x8)
        x16 = self.up16(self.down32(x16), x16)
        x4 = self.up4(self.up8(x16, x8), x4)
        return self.logits(x4), self.confidence(x4), x4


@opaque(prunable=True)
def correlation_volume(left: Tensor, right: Tensor, hypotheses: int) -> Tensor:
    """Correlation (B, D, h, w) of features (B, C, h, w), descending disparity.

    Channel k holds <left(x), right(x - d)> with d = D - 1 - k; 0 where x - d < 0.
    """
    batch, _, height, width = left.shape
    rows_left = left.permute(0, 2, 3, 1)
    rows_right = F.pad(right, (hypotheses - 1, 0)).permute(0, 2, 1, 3)
    products = torch.matmul(rows_left, rows_right)
    # Row x of `products` has the wanted band at columns x .. x + D - 1. Reading the rows
    # one element longer than they are shifts each by one more: the band becomes a block.
    flat = F.pad(products.flatten(2), (0, width))
    skewed = flat.view(batch, height, width, width + hypotheses)
    return skewed[..., :hypotheses].permute(0, 3, 1, 2)


@opaque()
def window_regression(logits: Tensor, hypotheses: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Soft-argmax within +-radius bins of the best hypothesis.

    Written with `exp` and sums instead of a softmax over channels, which ONNX runtimes
    evaluate an order of magnitude slower than the same arithmetic spelt out.

    Args:
        logits: (B, D, h, w).
        hypotheses: (D,), the value of each channel.
        radius: in bins.

    Returns:
        expectation (B, 1, h, w) and the probability mass in the window (B, 1, h, w).
    """
    top, best = logits.max(1, keepdim=True)
    index = torch.arange(logits.shape[1], dtype=logits.dtype, device=logits.device)
    outside = (index.view(1, -1, 1, 1) - best.to(logits.dtype)).abs() > radius
    # The top cancels out of every ratio below, so it carries no gradient.
    likelihood = torch.exp(logits - top.detach())
    window = likelihood.masked_fill(outside, 0.0)
    within = window.sum(1, keepdim=True)
    expected = (window * hypotheses.view(1, -1, 1, 1)).sum(1, keepdim=True) / within
    return expected, within / likelihood.sum(1, keepdim=True)


class _ConvexWeights(nn.Conv2d):
    """Logits of the convex weights (B, 9 * area, h, w); traced, nine maps that make them up."""

    def forward(self, features: Tensor) -> Tensor | list[Tensor]:
        if deployed.deployed('upsampling'):
            return deployed.in_parts(features, self.weight, self.bias, 9)
        return super().forward(features)


class _Scale(nn.Module):
    """A scalar times a volume; a module, so that what is traced of it has a name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, volume: Tensor, scale: Tensor) -> Tensor:
        if deployed.deployed('scale'):
            return deployed.scaled(volume, scale, self.channels).float()
        return scale * volume.float()


class Refinement(nn.Module):
    """Disparity within a cell, from what half the resolution shows round the answer.

    A bin is four pixels wide, and what lies between two bins was told by features of cells. Here
    stems of both views, at 1/2, are compared at the answer and two pixels of theirs to both
    sides (the second stage of a cascade: Gu et al., CVPR 2020, with a step of half a bin). The
    right pixels of a cell lie at whole offsets from the left ones, so nothing is interpolated:
    they are rows of a table that Gather reads. The answers of the eight cells round it say how
    the surface lies (as do the slanted tiles of HITNet, Tankovich et al., CVPR 2021).

    Args:
        stem: channels of the stems.
        context: channels of what is known of the left cells.
        channels: compared ones.
        width: of the layers that read the comparisons.
        blocks: inverted residuals.
        features: channels between two 3x3 convolutions of the stems, whose sum with the stems is
            what is compared; the stems alone if 0.
        moves: whether a pass gives a cell the mean of its own answer and those of the eight round
            it, by shares that it tells, besides the offset (as neighbours propagate in PatchMatch
            Stereo, Bleyer et al., BMVC 2011): an answer on the wrong surface is farther off than
            an offset can tell.
    """

    def __init__(
        self,
        stem: int,
        context: int,
        channels: int,
        width: int,
        blocks: int,
        features: int = 0,
        moves: bool = False,
    ) -> None:
        super().__init__()
        self.project = nn.Conv2d(stem, channels, 1)
        self.features = self._features(stem, features, channels) if features else None
        self.of_stems, self.of_features = _Convolution(), _Convolution()
        self.of_costs, self.of_context = _Convolution(), _Convolution()
        self.of_answer, self.of_moves = _Convolution(), _Convolution()
        steps = 2 * REFINED_STEPS + 1
        self.enter = conv_bn(steps * channels + context + _OF_THE_ANSWER, width, 1)
        self.body = _stage(width, width, 1, blocks, 2)
        self.offset = nn.Conv2d(width, 1, 1)
        # As if it were not there, until it is trained.
        nn.init.zeros_(self.offset.weight)
        nn.init.zeros_(self.offset.bias)
        self.move = nn.Conv2d(width, 8, 1) if moves else None
        if self.move is not None:
            nn.init.zeros_(self.move.weight)
            nn.init.constant_(self.move.bias, _UNMOVED)

    @staticmethod
    def _features(stem: int, features: int, channels: int) -> nn.Sequential:
        """Nothing is added until they are trained."""
        last = nn.Conv2d(features, channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(conv_bn(stem, features, 3), last)

    def forward(
        self,
        stems: Views,
        context: Tensor,
        answer: Tensor,
        mass: Tensor,
        passes: int = 1,
        source: Tensor | None = None,
        spread: int = 0,
    ) -> Tensor:
        """A better answer.

        Args:
            stems: (2 B, s, 2 h, 2 w) of both views, or two (B, s, 2 h, 2 w).
            context: (B, c, h, w).
            answer: (B, 1, h, w) disparity in pixels of the stems.
            mass: (B, 1, h, w) its probability.
            passes: how often; each looks where the one before has arrived.
            source: of `surest_alike`, (B h w,): whose answer a cell goes on with ...
            spread: ... each time when so many passes are done and some are left; never if 0.

        Returns:
            (B, 1, h, w) in pixels of the stems, float32.
        """
        # Whole numbers and what is left of them stay apart: both are exact in BF16.
        whole = answer.detach().round()
        rest = answer - whole
        read = self._reader(stems, context, mass)
        near = deployed.neighbourhood if deployed.deployed('costs') else neighbourhood
        for done in range(passes):
            if done:
                step = rest.detach().round()
                whole, rest = whole + step, rest - step
            if done and spread and done % spread == 0:
                whole, rest = answers_of(source, whole), answers_of(source, rest)
            steps = near(whole, rest)
            seen = steps.clamp(-FARTHEST_NEIGHBOUR, FARTHEST_NEIGHBOUR)
            offset, moves = self._told(self.body(read(whole, rest, seen)))
            rest = rest + offset
            if moves is not None:
                shares = torch.exp(moves.clamp(-10.0, 10.0))
                moved = (shares * steps).sum(1, keepdim=True)
                rest = rest + moved / (1 + shares.sum(1, keepdim=True))
        return whole + rest

    def _told(self, features: Tensor) -> tuple[Tensor, Tensor | None]:
        """Offset (B, 1, h, w) and the logits of the neighbours' shares (B, 8, h, w), if any."""
        if self.move is None:
            return self.offset(features).float(), None
        if not deployed.deployed('costs'):
            return self.offset(features).float(), self.move(features).float()
        # In one: maps of few channels take a convolution as long as those of sixteen.
        both = [torch.cat(pair) for pair in zip(self.offset.parameters(), self.move.parameters())]
        told = self.of_moves(features, *(deployed.constant(values) for values in both)).float()
        offset, moves = told.split([1, told.shape[1] - 1], 1)
        return offset, moves

    def _reader(
        self, stems: Views, context: Tensor, mass: Tensor
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """What is read where an answer is: (B, 1 or 8, h, w) to (B, width, h, w)."""
        if deployed.deployed('costs'):
            return self._deployed_reader(stems, context, mass)

        def compared(views: Tensor) -> Tensor:
            projected = self.project(views)
            return projected if self.features is None else projected + self.features(views)

        left, right = _apart(_of_each(compared, stems))

        def read(whole: Tensor, rest: Tensor, near: Tensor) -> Tensor:
            costs = local_costs(left, right, whole)
            known = (costs, context, rest, mass, near)
            return self.enter(torch.cat(known, 1))

        return read

    def _deployed_reader(
        self, stems: Views, context: Tensor, mass: Tensor
    ) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        """The same with what is compared in the order in which it is read.

        The layer that reads comparisons, context and answer is in three: nothing is copied beside
        each other, a second pass finds the context's share ready, and that of the comparisons
        takes their sum over the rows of a cell as well.
        """
        weights = deployed.stacked_weights(self.project.weight, self.project.bias)
        rows = [deployed.in_rows(self.of_stems(view, *weights, (2, 1))) for view in _apart(stems)]
        if self.features is not None:
            first, last = self.features
            weights = deployed.stacked_weights(last.weight, last.bias)
            views = _apart(_of_each(first, stems))
            # Summed when it lies as it is read: OpenVINO copies what it sums within a convolution.
            told = [deployed.in_rows(self.of_features(v, *weights, (2, 1), 1)) for v in views]
            rows = [stem + feature for stem, feature in zip(rows, told)]
        own, seen = rows[0], deployed.beside_next(rows[1])
        weight, bias = folded(self.enter[0], self.enter[1])
        steps, channels = 2 * REFINED_STEPS + 1, self.project.out_channels
        sizes = (steps * channels, context.shape[1], _OF_THE_ANSWER)
        of_costs, of_context, of_answer = weight.split([int(size) for size in sizes], 1)
        of_costs = of_costs.view(len(weight), steps, 1, channels).expand(-1, -1, 2, -1)
        of_costs = deployed.constant(of_costs.reshape(len(weight), -1, 1, 1))
        of_answer = deployed.constant(of_answer)
        known = self.of_context(context, deployed.constant(of_context), deployed.constant(bias))

        def read(whole: Tensor, rest: Tensor, near: Tensor) -> Tensor:
            costs = deployed.local_costs(own, seen, whole, REFINED_STEPS)
            answer = self.of_answer(torch.cat((rest, mass, near), 1), of_answer)
            return F.relu(self.of_costs(costs, of_costs) + answer + known)

        return read

    def recovered(
        self, convolutions: dict[str, tuple[Tensor, Tensor | None]]
    ) -> dict[str, Tensor]:
        """See `StereoNetwork.recovered`, of what `_deployed_reader` made."""
        if 'of_stems' not in convolutions:
            return {}
        weight, bias = convolutions['of_stems']
        # Files of before have each answer four times: to the right, too.
        copies = 4 if weight.shape[2] == weight.shape[3] else 2
        channels = len(weight) // copies
        found = {'project.weight': weight[:channels, :, :1, :1], 'project.bias': bias[:channels]}
        if 'of_features' in convolutions:
            weight, bias = convolutions['of_features']
            found['features.1.weight'] = weight[:channels, :, :3, :3]
            found['features.1.bias'] = bias[:channels]
        if 'of_moves' in convolutions:
            for part, values in zip(('weight', 'bias'), convolutions['of_moves']):
                found[f'offset.{part}'], found[f'move.{part}'] = values[:1], values[1:]
        costs, _ = convolutions['of_costs']
        context, bias = convolutions['of_context']
        answer, _ = convolutions['of_answer']
        costs = costs.view(len(costs), -1, copies, channels)[:, :, 0].reshape(len(costs), -1, 1, 1)
        found['enter.0.weight'] = torch.cat((costs, context, answer), 1)
        found.update({f'enter.1.{k}': v for k, v in unfolded(self.enter[1], bias).items()})
        return found


@opaque()
def neighbourhood(whole: Tensor, rest: Tensor) -> Tensor:
    """How far the answers of eight cells are from that of the one between them.

    Whole numbers and what is left of them are subtracted apart: both are exact in BF16, in which
    their sum is known to half a pixel of a hundred only.

    Args:
        whole, rest: (B, 1, h, w), whose sum is the answer in pixels of the stems.

    Returns:
        (B, 8, h, w).
    """
    height, width = whole.shape[2:]
    padded = [F.pad(values, (1, 1, 1, 1), mode='replicate') for values in (whole, rest)]
    steps = []
    for y, x in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1), (2, 2)):
        window = (..., slice(y, y + height), slice(x, x + width))
        steps.append((padded[0][window] - whole) + (padded[1][window] - rest))
    return torch.cat(steps, 1)


@opaque()
def surest_alike(sure: Tensor, colours: Tensor) -> Tensor:
    """Whose answer each cell takes: that of the surest of those round it which look like it.

    An answer that is wrong has mostly right ones beside it on the same surface, and a cell knows
    how sure it is. Propagation as in PatchMatch Stereo (Bleyer et al., BMVC 2011), not by the
    best match, which misleads beside an edge, but by sureness times likeness of colour; the
    weights are those of adaptive support (Yoon and Kweon, PAMI 2006). What stands at two cells
    one after the other is followed at once.

    Args:
        sure: (B, 1, h, w) above 0.
        colours: (B, 3, h, w) in grey levels.

    Returns:
        (B h w,) places in the flattened maps of all answers.
    """
    batch, _, height, width = sure.shape
    device = sure.device
    around = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]
    theirs = torch.zeros(8, 1, 3, 3)
    for index, (y, x) in enumerate(around):
        theirs[index, 0, 1 + y, 1 + x] = 1.0
    less_own = theirs.clone()
    less_own[:, :, 1, 1] = -1.0
    # The kernels come out of a trace as numbers, not as how they were made.
    theirs, less_own, of_three = (
        deployed.constant(kernel).to(device)
        for kernel in (
            theirs,
            less_own.repeat(3, 1, 1, 1),
            torch.eye(8).repeat(1, 3).view(8, 24, 1, 1) / (3.0 * SPREAD_LEVELS),
        )
    )
    rows = torch.arange(height, device=device).view(-1, 1)
    columns = torch.arange(width, device=device).view(1, -1)
    best, source = sure, (rows * width + columns).expand(batch, 1, -1, -1)
    for reach in SPREAD_REACHES:
        wide = (reach,) * 4
        steps = F.pad(colours, wide, mode='replicate')
        steps = F.conv2d(steps, less_own, dilation=reach, groups=3).abs()
        alike = torch.exp(-F.conv2d(steps, of_three))
        surer = F.conv2d(F.pad(sure, wide, mode='replicate'), theirs, dilation=reach) * alike
        for (y, x), offered in zip(around, surer.split(1, 1)):
            line = (rows + reach * y).clamp(0, height - 1) * width
            place = line + (columns + reach * x).clamp(0, width - 1)
            source = torch.where(offered > best, place, source)
            best = torch.maximum(best, offered)
    pairs = torch.arange(batch, device=device).view(-1, 1, 1, 1) * (height * width)
    source = (source + pairs).flatten()
    return source[source]


@opaque()
def answers_of(source: Tensor, answers: Tensor) -> Tensor:
    """`answers` (B, 1, h, w) at the places of `source`, see `surest_alike`."""
    return answers.flatten()[source].view_as(answers)


@opaque()
def local_costs(left: Tensor, right: Tensor, whole: Tensor) -> Tensor:
    """|left(x) - right(x - whole - k)|, summed over cells of 2x2, k = -REFINED_STEPS .. .

    Args:
        left, right: (B, C, 2 h, 2 w).
        whole: (B, 1, h, w) whole numbers.

    Returns:
        (B, (2 REFINED_STEPS + 1) C, h, w). Beyond the sides the outermost pixel counts.
    """
    batch, channels, height, width = left.shape
    reach = REFINED_STEPS
    rows, columns = height // 2, width // 2
    device = left.device
    taps = torch.arange(-reach, reach + 2, device=device)
    first = 2 * torch.arange(columns, device=device)
    # (B, h, 1, w, taps): columns of the right view
    place = (first.view(1, 1, columns, 1) - whole[:, 0].to(first.dtype).unsqueeze(3)) + taps
    place = place.clamp(0, width - 1).unsqueeze(2)
    line = torch.arange(batch * height, device=device).view(batch, rows, 2, 1, 1) * width
    table = right.permute(0, 2, 3, 1).reshape(batch * height * width, channels)
    seen = table[(line + place).flatten()].view(batch, rows, 2, columns, len(taps), channels)
    own = left.permute(0, 2, 3, 1).reshape(batch, rows, 2, columns, 2, channels)
    costs = [
        (own - seen[:, :, :, :, reach - k : reach - k + 2]).abs().sum((2, 4))
        for k in range(-reach, reach + 1)
    ]
    return torch.cat(costs, 3).permute(0, 3, 1, 2)


@opaque()
def convex_upsample(
    coarse: Tensor,
    weights: Tensor | list[Tensor],
    factors: tuple[int, int],
    size: tuple[int, int] | None = None,
) -> Tensor:
    """(B, 1, h, w) to (B, 1, fy * h, fx * w) by convex weights (B, 9 * fy * fx, h, w).

    `weights` are logits, limited to +-10: beyond that one neighbour already has it all. They may
    come as nine maps (B, fy * fx, h, w), one for each neighbour. Of a `size` (H, W) that is given,
    (B, 1, H, W) of it, none below 0.
    """
    height, width = coarse.shape[2:]
    padded = F.pad(coarse, (1, 1, 1, 1), mode='replicate')
    if isinstance(weights, list):
        shares = [torch.exp(part.clamp(-10.0, 10.0)) for part in weights]
    else:
        # Split, not indexed: the gradient of nine slices would write nine full zero maps.
        shares = torch.exp(weights.clamp(-10.0, 10.0)).split(factors[0] * factors[1], 1)
    near = [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    in_turn = deployed.deployed('upsampling')
    fine = (deployed.weighted_mean if in_turn else weighted_mean)(shares, near)
    if size is not None:
        fine = fine.clamp(min=0.0)
    fine = (deployed.shuffled_rows if in_turn else deployed.shuffled)(fine, factors)
    return fine if size is None else fine[:, :, : size[0], : size[1]]


def weighted_mean(shares: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """Sum of shares times values over the sum of the shares, maps that broadcast."""
    weighted, total = shares[0] * values[0], shares[0]
    for share, value in zip(shares[1:], values[1:]):
        weighted, total = weighted + share * value, total + share
    return weighted / total


def enlarged(state: dict[str, Tensor], larger: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a network in those of a wider or deeper one that then computes the same.

    New channels have the weights of `larger`, but nothing of before reads them yet; new blocks
    have a last norm of zero, so that their skip connections pass everything on. (Net2Net, Chen et
    al., ICLR 2016, makes new channels of copies, whose readers share the weight.)

    Args:
        state: of the smaller network.
        larger: of the other, with its initial weights.

    Returns:
        `state`, with what does not fit into `larger` as it was.
    """
    result = dict(state)
    for key, fresh in larger.items():
        have = state.get(key)
        if have is None:
            if key.endswith('.project.1.weight'):
                result[key] = torch.zeros_like(fresh)
            elif _of_a_block(key):
                result[key] = fresh
            continue
        more = [new - old for new, old in zip(fresh.shape, have.shape, strict=False)]
        if fresh.ndim != have.ndim or have.ndim == 0 or min(more) < 0 or max(more) == 0:
            continue
        grown = fresh.clone()
        if grown.ndim > 1:
            grown[: len(have), have.shape[1] :] = 0
        grown[tuple(slice(size) for size in have.shape)] = have.to(grown.dtype)
        result[key] = grown
    return result


def _of_a_block(key: str) -> bool:
    """Whether a weight is one of an `InvertedResidual`."""
    return any(f'.{part}.' in key for part in ('expand', 'depthwise', 'project'))


def _mean_of_resized(size: int) -> Tensor:
    """Shares of so many pixels in the mean of the four that a resize makes of them, (size,)."""
    made = F.interpolate(torch.eye(size).unsqueeze(0), 4, mode='linear', align_corners=False)
    return made[0].mean(1)


def _resize_of(size: int) -> tuple[int, int]:
    """Pixels, and how many are made of them where a cell of `size` becomes one of four."""
    return size // math.gcd(size, 4), 4 // math.gcd(size, 4)


class Kestrel(StereoNetwork):
    """The student; `networks.create('kestrel')` is the small one, options make the others.

    Args:
        max_disparity_px: range of the volume, a multiple of `cell_px`.
        stem: channels at 1/2.
        encoder: channels of the extractor at 1/4, 1/8, 1/16.
        matching: channels that are correlated.
        context: channels of the left image handed to the aggregation.
        aggregation: channels of the U-Net at 1/4, 1/8, 1/16, 1/32.
        blocks: inverted residuals per level on the way down.
        expansion: of the inverted residuals in the aggregation.
        window: radius of the regression window in bins; 0 takes the whole range.
        cell_px: pixels of the images per cell in width and per bin of the volume: 2 to 6.
        cell_height_px: pixels of the images per cell in height, 2 to 6 or 8; as many as in width
            if not given.
        calibrated: the confidence is a probability, see `networks.confidence`.
        calibrated_range: weight in it of the range of answers round a cell.
        refined: (channels compared, width, blocks) of a `Refinement`, or a fourth number, its
            features; none if not given.
        refined_passes: how often it is asked, 1 or more.
        refined_moves: whether it may take the answer of a cell beside the one it refines.
        refined_spread: after so many passes, each time, the answers of sure cells spread to
            those round them that look alike (`surest_alike`); never if 0. No weights are of it.
    """

    source = 'this project'
    crops = True

    def __init__(
        self,
        max_disparity_px: int = 192,
        stem: int = 16,
        encoder: tuple[int, int, int] = (32, 48, 64),
        matching: int = 32,
        context: int = 16,
        aggregation: tuple[int, int, int, int] = (48, 64, 96, 128),
        blocks: tuple[int, int, int, int] = (2, 2, 3, 2),
        expansion: int = 2,
        window: int = 2,
        calibrated: bool = False,
        calibrated_range: float = 0.0,
        cell_px: int = 4,
        cell_height_px: int | None = None,
        refined: tuple[int, int, int] | tuple[int, int, int, int] | None = None,
        refined_passes: int = 1,
        refined_moves: bool = False,
        refined_spread: int = 0,
    ) -> None:
        super().__init__(mean=tuple(level / 255 for level in ZERO_LEVELS))
        # height and width
        self.cell = (cell_px if cell_height_px is None else cell_height_px, cell_px)
        for option, size, sizes in (
            ('cell_px', cell_px, CELL_WIDTHS_PX),
            ('cell_height_px', self.cell[0], CELL_HEIGHTS_PX),
        ):
            if size not in sizes:
                raise NetworkError(f'{option} is {size}, expected one of {sizes}')
        if max_disparity_px % cell_px or max_disparity_px <= 0:
            raise NetworkError(
                f'max_disparity_px is {max_disparity_px}, expected a positive multiple of '
                f'{cell_px}, the cell_px'
            )
        self.max_disparity_px = float(max_disparity_px)
        self.cell_px = cell_px
        # 1/32 of what the extractor sees; it takes less, see `strides`
        self.stride = 8 * math.lcm(*self.cell)
        self.hypotheses = max_disparity_px // cell_px
        self.window = window
        self.encoder = Encoder(stem, tuple(encoder), matching)
        self.context = conv_bn(matching, context, 1)
        self.aggregation = Aggregation(
            self.hypotheses, context, tuple(aggregation), tuple(blocks), expansion
        )
        self.correlation_scale = nn.Parameter(torch.tensor(10.0))
        self.scaling = _Scale(self.hypotheses)
        guide = 32
        self.guide = conv_bn(stem, guide, 3, 2)
        self.upsampling = nn.Sequential(
            conv_bn(guide + aggregation[0], 48, 1), _ConvexWeights(48, 9 * math.prod(self.cell), 1)
        )
        if refined_passes < 1:
            raise NetworkError(f'refined_passes is {refined_passes}, expected 1 or more')
        if refined and (len(refined) not in (3, 4) or min(refined[:2]) < 1 or min(refined) < 0):
            raise NetworkError(
                f'refined is {list(refined)}, expected [channels, width, blocks] or '
                '[channels, width, blocks, features], such as [8, 48, 3, 16]'
            )
        self.refined_passes = refined_passes
        if refined_moves and not refined:
            raise NetworkError(
                'refined_moves is of a refinement, and there is none; give refined too, such as '
                '[8, 48, 3, 16], or leave it out'
            )
        if refined_spread < 0 or (refined_spread and not refined):
            raise NetworkError(
                f'refined_spread is {refined_spread}, expected 0, or with `refined` the number of '
                'passes after which answers spread'
            )
        self.refined_spread = refined_spread
        self.refinement = None
        if refined:
            context_channels = guide + aggregation[0]
            self.refinement = Refinement(stem, context_channels, *refined, moves=refined_moves)
        self.calibration = ConfidenceCalibration(calibrated_range) if calibrated else None
        bins = torch.arange(self.hypotheses - 1, -1, -1, dtype=torch.float32)
        self.register_buffer('bins', bins, persistent=False)

    @property
    def strides(self) -> tuple[int, int]:
        """Whole cells, and in width so many as the resize of an exported graph takes at once.

        The levels down to an eighth of the cells take any number of them: filling up to multiples
        of eight would add 5 % to a picture 640 px wide with cells of 6 px, and 8 % to one of 400
        rows. See `StereoNetwork.strides`.
        """
        height, width = self.cell
        pixels, made = _resize_of(width)
        by_stem = width in _RESIZED_BY_STEM and not deployed.left_out('stem')
        if pixels == made or by_stem:
            return height, width
        return height, math.lcm(width, deployed.COLUMN_GROUPS * pixels)

    @property
    def resizes(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """See `StereoNetwork.resizes`: so that a cell has four pixels each way."""
        down, across = (
            (1, 1) if read > 2 else _resize_of(size)
            for read, size in zip(self._read_by_stem, self.cell)
        )
        return down, across

    @property
    def _read_by_stem(self) -> tuple[int, int]:
        """Rows, and columns, that the stem of the graph that is being traced reads as two."""
        able = deployed.deployed('stem') and deployed.deployed('input')
        rows, columns = (
            size // 2 if able and size in _RESIZED_BY_STEM else 2 for size in self.cell
        )
        return rows, columns

    @property
    def _in_levels(self) -> bool:
        """Whether the graph that is being traced reads whole levels."""
        return deployed.deployed('levels') and deployed.deployed('input')

    @property
    def input_normalisation(self) -> tuple[Tensor, Tensor]:
        """See `StereoNetwork.input_normalisation`."""
        usual = self.normalisation
        return deployed.whole_levels(*usual) if self._in_levels else usual

    def fitted(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Weights of a network with other cells, another range or less of it all, as a start.

        A narrower or shallower one goes on with the very function that it has, see `enlarged`.
        Hypotheses that the other lacks take the logits of its farthest and see nothing of the
        volume; convex weights are interpolated between the parts of a cell. A confidence that
        was calibrated for the other's answers is left behind where this one has none. What
        differs besides is left as it is, for `load_state_dict` to name.

        Args:
            state: state dict of another `Kestrel`.
        """
        state = dict(state)
        if self.calibration is None:
            state = {k: v for k, v in state.items() if not k.startswith('calibration.')}
        logits, enter = 'aggregation.logits.', 'aggregation.enter.0.weight'
        other = len(state.get(logits + 'bias', self.bins))
        more = self.hypotheses - other
        if more:
            # hypotheses are in descending order
            for name in (logits + 'weight', logits + 'bias'):
                first = state[name][:1].repeat_interleave(max(more, 0), 0)
                state[name] = torch.cat((first, state[name][max(-more, 0) :]))
            volume, context = state[enter].split((other, state[enter].shape[1] - other), 1)
            nothing = torch.zeros_like(volume[:, :1]).repeat_interleave(max(more, 0), 1)
            state[enter] = torch.cat((nothing, volume[:, max(-more, 0) :], context), 1)
        for name in ('upsampling.1.weight', 'upsampling.1.bias'):
            weight = state.get(name)
            cell = self.cell if weight is None else self._cell_of(len(weight) // 9, other)
            if cell != self.cell:
                parts = weight.reshape(9, *cell, -1).permute(0, 3, 1, 2)
                parts = F.interpolate(parts, self.cell, mode='bilinear', align_corners=False)
                state[name] = parts.permute(0, 2, 3, 1).reshape(-1, *weight.shape[1:])
        own = self.state_dict()
        # A refinement that is new changes nothing yet.
        new = {k: v for k, v in own.items() if k.startswith('refinement.') and k not in state}
        return enlarged({**state, **new}, own)

    def _cell_of(self, area: int, hypotheses: int) -> tuple[int, int]:
        """Height and width of the cells of a network of which only its weights are known.

        Square if `area` is, else of the width that is nearest to this network's range in so many
        hypotheses.
        """
        side = math.isqrt(area)
        if side * side == area:
            return side, side
        shapes = [
            (area // w, w)
            for w in CELL_WIDTHS_PX
            if area % w == 0 and area // w in CELL_HEIGHTS_PX
        ]
        width = self.max_disparity_px / hypotheses
        return min(shapes, key=lambda shape: abs(shape[1] - width), default=self.cell)

    def followed(self, widths: dict[str, list[int]]) -> dict[str, list[int]]:
        """See `StereoNetwork.followed`: cells, range and refinement are of this network."""
        own = channel_widths(self)
        result = {name: list(width) for name, width in widths.items() if name in own}

        def set_width(name: str, place: int, width: int) -> None:
            changed = list(result.get(name, own[name]))
            changed[place] = width
            result.pop(name, None)
            if changed != own[name]:
                result[name] = changed

        def outputs(name: str) -> int:
            return result.get(name, own[name])[1]

        set_width('upsampling.1', 1, own['upsampling.1'][1])
        set_width('aggregation.logits', 1, self.hypotheses)
        set_width('aggregation.enter.0', 0, self.hypotheses + outputs('context.0'))
        if self.refinement is not None:
            compared = outputs('refinement.project') * (2 * REFINED_STEPS + 1)
            context = result.get('upsampling.0.0', own['upsampling.0.0'])[0]
            set_width('refinement.enter.0', 0, compared + context + _OF_THE_ANSWER)
        return result

    @contextmanager
    def traced_once(self) -> Iterator[None]:
        passes, self.refined_passes = self.refined_passes, 1
        try:
            yield
        finally:
            self.refined_passes = passes

    @torch.no_grad()
    def temper(self, temperature: float) -> None:
        """See `StereoNetwork.temper`; both summands of the logits are divided in place.

        Raises:
            NetworkError: `temperature` is not above 0.
        """
        if not temperature > 0:
            raise NetworkError(f'temperature is {temperature}, expected more than 0')
        logits = self.aggregation.logits
        for parameter in (logits.weight, logits.bias, self.correlation_scale):
            parameter.div_(temperature)

    def recovered(
        self, convolutions: dict[str, tuple[Tensor, Tensor | None]]
    ) -> dict[str, Tensor]:
        """See `StereoNetwork.recovered`: a file scales the volume and refines by convolutions."""
        found = {}
        if 'scaling' in convolutions:
            found['correlation_scale'] = convolutions['scaling'][0].flatten()[0]
        made = {'encoder.level_stem', 'encoder.tall_stem'} & convolutions.keys()
        if made:
            weight, bias = convolutions[made.pop()]
            # Of the image's rows or columns, those that one of the resized has most of.
            for axis in (2, 3):
                if weight.shape[axis] == 5:
                    weight = weight.index_select(axis, torch.tensor([1, 2, 4])) / 0.75
                if weight.shape[axis] == 6:
                    weight = weight.index_select(axis, torch.tensor([0, 2, 4])) / 0.5
            if 'encoder.level_stem' in convolutions:
                scale, _ = self.normalisation
                weight = weight / deployed.of_levels(torch.ones_like(weight), scale)
            found['encoder.stem.0.weight'] = weight
            norm = unfolded(self.encoder.stem[1], bias)
            found.update({f'encoder.stem.1.{k}': v for k, v in norm.items()})
        if self.refinement is not None:
            scope = 'refinement.'
            own = {
                name.removeprefix(scope): value
                for name, value in convolutions.items()
                if name.startswith(scope)
            }
            found.update({scope + k: v for k, v in self.refinement.recovered(own).items()})
        return found

    @contextmanager
    def as_written(self, convolutions: dict[str, tuple[Tensor, Tensor | None]]) -> Iterator[None]:
        """See `StereoNetwork.as_written`: to files of before zero was ImageNet's mean.

        Their answers stay but where a stem looks beyond the image: by half a level of grey.
        """
        if 'encoder.level_stem' in convolutions:
            yield
            return
        mean = self.mean.clone()
        self.mean.copy_(torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        moved = (mean - self.mean) / self.std
        try:
            yield
        finally:
            self.mean.copy_(mean)
        convolution, norm = self.encoder.stem[0], self.encoder.stem[1]
        with torch.no_grad():
            norm.running_mean.sub_((convolution.weight * moved).sum((1, 2, 3)))

    def _colours(self, view: Tensor) -> Tensor:
        """Mean colours of the cells, (B, 3, h, w) in grey levels but for a summand.

        Args:
            view: (B, 3, H, W) as the stem reads it.
        """
        scale, _ = self.input_normalisation
        down, across = (_mean_of_resized(2 * pixels) for pixels in self._read_by_stem)
        mean = (down.view(-1, 1) * across).to(view.device) / scale.view(3, 1, 1, 1)
        if deployed.deployed('costs'):
            mean = deployed.constant(mean)
        return F.conv2d(view, mean, stride=(len(down), len(across)), groups=3)

    def forward(
        self, left: Tensor, right: Tensor, size: tuple[int, int] | None = None
    ) -> StereoOutput:
        """See `StereoNetwork.forward` and `crops`."""
        cell = self.cell_px
        views: Views = (left, right)
        if not deployed.deployed('views'):
            views = torch.cat(views, 0)
        if self.cell != (4, 4) and not deployed.deployed('input'):
            scales = tuple(4.0 / size for size in self.cell)
            views = _of_each(
                lambda view: F.interpolate(
                    view, scale_factor=scales, mode='bilinear', align_corners=False
                ),
                views,
            )
        levels_of = self.normalisation[0] if self._in_levels else None
        stems, features = self.encoder(views, self._read_by_stem, levels_of)
        stem_left, _ = _apart(stems)
        features_left, features_right = split_views(features)
        in_blocks = deployed.deployed('volume')
        correlate = deployed.correlation_volume if in_blocks else correlation_volume
        if deployed.deployed('norms'):
            unit = deployed.unit_vectors(features)
            volume = correlate(*split_views(unit), self.hypotheses)
        else:
            volume = correlate(
                F.normalize(features_left, dim=1),
                F.normalize(features_right, dim=1),
                self.hypotheses,
            )
        residual, confidence, x4 = self.aggregation(volume, self.context(features_left))
        context = torch.cat((self.guide(stem_left), x4), 1)
        weights = self.upsampling(context)
        # the meta device, on which complexity is counted, has no autocast of its own
        device_type = 'cpu' if left.is_meta else left.device.type
        with torch.autocast(device_type, enabled=False):
            logits = residual.float() + self.scaling(volume, self.correlation_scale)
            radius = self.window or self.hypotheses
            spelt_out = deployed.deployed('regression')
            regress = deployed.window_regression if spelt_out else window_regression
            coarse, mass = regress(logits, self.bins, radius)
        refined = {}
        if self.refinement is not None:
            refined['unrefined'] = cell * coarse
            # A cell has two pixels of the stems.
            source = None
            if self.refined_spread:
                with torch.no_grad(), torch.autocast(device_type, enabled=False):
                    sure = torch.sigmoid(confidence.float()) * mass.float()
                    source = surest_alike(sure, self._colours(_apart(views)[0].float()))
            coarse = self.refinement(
                stems,
                context,
                2 * coarse,
                mass,
                self.refined_passes,
                source,
                self.refined_spread,
            )
            coarse = coarse / 2
        with torch.autocast(device_type, enabled=False):
            # In nine parts they are traced, outside of autocast.
            convex = weights if isinstance(weights, list) else weights.float()
            disparity = convex_upsample(cell * coarse, convex, self.cell, size)[:, 0]
            if self.calibration is None:
                confidence = torch.sigmoid(confidence.float()) * mass
            else:
                confidence = self.calibration(
                    confidence.float(), mass, logits, cell * self.bins, cell * coarse
                )
            if size is not None:
                # What lies between two of them is no larger than the larger.
                confidence = confidence.clamp(0.0, 1.0)
            if deployed.deployed('confidence'):
                fine = deployed.bilinear(confidence, self.cell, size)
            else:
                factors = tuple(float(side) for side in self.cell)
                fine = F.interpolate(
                    confidence, scale_factor=factors, mode='bilinear', align_corners=False
                )
                if size is not None:
                    fine = fine[:, :, : size[0], : size[1]]
        return StereoOutput(
            disparity=disparity,
            confidence=fine[:, 0],
            stages=(disparity,),
            logits=(logits,),
            hypotheses=(cell * self.bins,),
            features={
                'left': features_left,
                'right': features_right,
                'volume': volume,
                'coarse': cell * coarse,
                'confidence': confidence,
                **refined,
            },
        )


def with_cells(network: StereoNetwork, cell_px: int, cell_height_px: int | None = None) -> Kestrel:
    """The same weights at another resolution: finer cells for accuracy, coarser ones for speed.

    A confidence that was calibrated is that of the old cells; calibrate the new ones again.

    Args:
        network: a `Kestrel`, pruned or not.
        cell_px: width of its cells, see `Kestrel`.
        cell_height_px: their height, the same if not given.

    Returns:
        a new network in eval mode.

    Raises:
        NetworkError: another network, or cells that do not divide its range.
    """
    if not isinstance(network, Kestrel):
        raise NetworkError(f'cells belong to a Kestrel, this is {type(network).__name__}')
    configuration = copy.deepcopy(network.configuration)
    options = {**configuration['options'], 'cell_px': cell_px, 'cell_height_px': cell_height_px}
    if cell_height_px is None:
        del options['cell_height_px']
    configuration['options'] = options
    other = _rebuilt(configuration)
    other.load_state_dict(other.fitted(network.state_dict()))
    return other.eval()


Value = TypeVar('Value')


def _inside(scope: str, named: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in named.items() if name.startswith(scope)}


def _outside(scope: str, named: Mapping[str, Value]) -> dict[str, Value]:
    return {name: value for name, value in named.items() if not name.startswith(scope)}


def _rebuilt(configuration: dict[str, Any]) -> Kestrel:
    """A network with the widths of a pruned one where these do not follow from its options."""
    # Not from the top: `networks` registers what this module defines.
    from stereo_kd_training.networks import build, create

    widths = configuration.get('widths')
    if widths:
        plain = create(configuration['name'], **configuration['options'])
        configuration = {**configuration, 'widths': plain.followed(widths)}
    return build(configuration)


def with_refinement(
    network: StereoNetwork,
    other: StereoNetwork,
    passes: int | None = None,
    spread: int | None = None,
) -> Kestrel:
    """The same weights and the refinement of another network, which reads stems like its own.

    Networks that share an ancestor have stems so alike that a refinement serves them all, and one
    that was made wider (`enlarged`) has its new channels last: the refinement does not read them.
    A confidence that was calibrated is that of the answers before; calibrate again.

    Args:
        network: a `Kestrel`, with a refinement that is replaced or without. What a pruned one
            knows of its cells is not read, until it is trained: `other` has other channels, unless
            as many are left in both.
        other: a `Kestrel` with one; may be `network` itself.
        passes: how often it is asked; as often as in `other` if not given.
        spread: the `refined_spread` of the new one; that of `network` if not given.

    Returns:
        a new network in eval mode.

    Raises:
        NetworkError: `other` has no refinement, its stem has other channels, or `spread` is no
            less than the passes.
    """
    if not isinstance(network, Kestrel) or not isinstance(other, Kestrel):
        raise NetworkError('only a Kestrel has a refinement, and only a Kestrel can take one')
    if other.refinement is None:
        raise NetworkError(
            'the network whose refinement is wanted has no refinement; give one trained with '
            '`options: {refined: [8, 48, 3]}`, such as kestrel_large'
        )
    has, wants = network.encoder.stem[0].out_channels, other.refinement.project.in_channels
    if has != wants:
        raise NetworkError(
            f'the refinement is of a network with another stem, of {wants} channels where this '
            f'one has {has}'
        )
    configuration = copy.deepcopy(network.configuration)
    options = configuration['options']
    options['refined'] = other.configuration['options']['refined']
    options['refined_passes'] = passes or other.refined_passes
    if spread is not None:
        if spread >= options['refined_passes']:
            raise NetworkError(
                f'answers cannot spread after {spread} of {options["refined_passes"]} passes, for '
                "the last word is the refinement's; give fewer, or more passes, or 0 for never"
            )
        options['refined_spread'] = spread
    options.pop('refined_moves', None)
    if other.refinement.move is not None:
        options['refined_moves'] = True
    scope, enter = 'refinement.', 'refinement.enter.0.weight'
    widths = {
        **_outside(scope, network.configuration.get('widths', {})),
        **_inside(scope, other.configuration.get('widths', {})),
    }
    if widths:
        configuration['widths'] = widths
    refined = _rebuilt(configuration)
    weights = refined.fitted(_outside(scope, network.state_dict()))
    weights.update(_inside(scope, other.state_dict()))
    read, reads = weights[enter], refined.state_dict()[enter].shape[1]
    if reads != read.shape[1]:
        compared = read.shape[1] - other.upsampling[0][0].in_channels - _OF_THE_ANSWER
        known = reads - compared - _OF_THE_ANSWER
        costs, context, own = read.split(
            (compared, read.shape[1] - compared - _OF_THE_ANSWER, _OF_THE_ANSWER), 1
        )
        nothing = torch.zeros_like(read[:, :1]).repeat_interleave(known, 1)
        # New channels of a wider one are the last; those of a pruned one may be any.
        pruned = any(one.configuration.get('widths') for one in (network, other))
        if known > context.shape[1] and not pruned:
            nothing[:, : context.shape[1]] = context
        weights[enter] = torch.cat((costs, nothing, own), 1)
    refined.load_state_dict(weights)
    return refined.eval()
