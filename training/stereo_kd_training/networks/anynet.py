# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""AnyNet, the baseline of Compact StereoNet: Wang et al., Anytime Stereo Image Depth
Estimation on Mobile Devices, ICRA 2019.

43,269 parameters, of which 8,640 in the spatial propagation (SPN).

    left, right  (B, 3, H, W)            H, W multiples of 16
    features     8 channels at 1/16, 4 at 1/8, 2 at 1/4 (a U-Net)
    stage 1      L1 volume (B, 12, H/16, W/16), 3D convolutions, softmax(-cost)
    stage 2, 3   L1 volumes of +-2 feature pixels around the stage before, at 1/8 and 1/4
    stage 4      SPN: an image-guided recurrence from left to right at 1/4
    disparity    (B, H, W); each stage is an early exit

State-dict keys are those of the public checkpoints, which load strictly.

A trait of the public network that its weights depend on: the volumes of stages 2 and 3 run
from offset +2 down to -2, yet the regression that follows reads them as -2 up to +2. The
3D convolutions learn to mirror the axis. So these stages have no distribution that could be
compared with a teacher's; `StereoOutput.logits` holds stage 1 only.
"""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo_kd_training.networks.base import (
    NetworkError,
    StereoNetwork,
    StereoOutput,
    opaque,
)
from stereo_kd_training.networks.blocks import (
    check_multiple,
    check_pair,
    distribution_confidence,
    full_precision,
    hypotheses_like,
    initialize,
    soft_argmax,
    upsample_map,
)
from stereo_kd_training.networks.cost_volume import l1_volume, residual_l1_volume

OFFSETS = (-2, -1, 0, 1, 2)
STAGES = 4


def preactivated_2d(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Batch norm, ReLU, 3x3 convolution."""
    return nn.Sequential(
        nn.BatchNorm2d(in_channels),
        nn.ReLU(),
        nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False),
    )


def preactivated_3d(in_channels: int, out_channels: int) -> nn.Sequential:
    """Batch norm, ReLU, 3x3x3 convolution."""
    return nn.Sequential(
        nn.BatchNorm3d(in_channels),
        nn.ReLU(),
        nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False),
    )


def aggregation_3d(channels: int, layers: int) -> nn.Sequential:
    """(B, 1, D, h, w) -> (B, 1, D, h, w) costs, `layers` convolutions between the outer two."""
    return nn.Sequential(
        preactivated_3d(1, channels),
        *(preactivated_3d(channels, channels) for _ in range(layers)),
        preactivated_3d(channels, 1),
    )


class UNetUp(nn.Module):
    """Double a coarse map and merge it with the finer one."""

    def __init__(self, coarse_channels: int, out_channels: int):
        super().__init__()
        merged = coarse_channels + out_channels
        self.conv = nn.Sequential(
            preactivated_2d(merged, out_channels), preactivated_2d(out_channels, out_channels)
        )

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        doubled = F.interpolate(coarse, scale_factor=2.0, mode='bilinear', align_corners=True)
        return self.conv(torch.cat((fine, doubled), 1))


class UNetExtractor(nn.Module):
    """(B, 3, H, W) -> maps at 1/16 (8 channels), 1/8 (4) and 1/4 (2), coarse first."""

    def __init__(self):
        super().__init__()
        stem = nn.Sequential(nn.Conv2d(3, 1, 3, padding=1), preactivated_2d(1, 1, stride=2))
        self.block0 = nn.Sequential(stem, self._halving(1, 2))
        self.blocks = nn.ModuleList([self._halving(2, 4), self._halving(4, 8)])
        self.upblocks = nn.ModuleList([UNetUp(8, 4), UNetUp(4, 2)])

    @staticmethod
    def _halving(in_channels: int, channels: int) -> nn.Sequential:
        return nn.Sequential(
            nn.MaxPool2d(2),
            preactivated_2d(in_channels, channels),
            preactivated_2d(channels, channels),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        quarter = self.block0(image)
        eighth = self.blocks[0](quarter)
        sixteenth = self.blocks[1](eighth)
        eighth = self.upblocks[0](eighth, sixteenth)
        return sixteenth, eighth, self.upblocks[1](quarter, eighth)


@opaque()
def propagate(values: Tensor, upper: Tensor, level: Tensor, lower: Tensor) -> Tensor:
    """Linear recurrence from left to right (Liu et al., Spatial Propagation Networks, 2017).

    out[y, x] = (1 - sum of gates) values[y, x] + upper[y, x] out[y - 1, x - 1]
                + level[y, x] out[y, x - 1] + lower[y, x] out[y + 1, x - 1]

    Neighbours outside the map do not exist: their gate counts as zero.

    Args:
        values, upper, level, lower: (B, C, H, W).

    Returns:
        (B, C, H, W).
    """
    upper = F.pad(upper[:, :, 1:, 1:], (1, 0, 1, 0))
    level = F.pad(level[:, :, :, 1:], (1, 0))
    lower = F.pad(lower[:, :, :-1, 1:], (1, 0, 0, 1))
    fresh = (1.0 - upper - level - lower) * values
    return recur_columns(fresh, upper, level, lower)


def _recur_columns(fresh: Tensor, upper: Tensor, level: Tensor, lower: Tensor) -> Tensor:
    column = fresh[:, :, :, 0]
    columns = [column]
    for x in range(1, fresh.size(3)):
        above = F.pad(column, [1, 0])[:, :, :-1]
        below = F.pad(column, [0, 1])[:, :, 1:]
        column = (
            fresh[:, :, :, x]
            + upper[:, :, :, x] * above
            + level[:, :, :, x] * column
            + lower[:, :, :, x] * below
        )
        columns.append(column)
    return torch.stack(columns, 3)


with warnings.catch_warnings():
    # Scripted so that an exported graph loops over however many columns it is given;
    # tracing would unroll the columns of the example. PyTorch discourages new scripts.
    warnings.simplefilter('ignore', DeprecationWarning)
    recur_columns = torch.jit.script(_recur_columns)


def spatial_propagation(channels: int = 8) -> nn.ModuleList:
    """The three parts of stage 4: gates from the image, disparity in, disparity out."""
    wide = 2 * channels
    gates = nn.Sequential(
        nn.Conv2d(3, wide, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(wide, wide, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(wide, wide, 3, padding=1, bias=False),
        nn.ReLU(),
        nn.Conv2d(wide, 3 * channels, 3, padding=1, bias=False),
    )
    entry = nn.Conv2d(1, channels, 3, padding=1, bias=False)
    exit_ = nn.Conv2d(channels, 1, 3, padding=1, bias=False)
    return nn.ModuleList([gates, entry, exit_])


def refine(spn: nn.ModuleList, left_image: Tensor, disparity: Tensor) -> Tensor:
    """Stage 4: (B, 3, H, W) and (B, H, W) px -> (B, H, W) px, working at 1/4, in float32."""
    to_gates, entry, exit_ = spn
    size = disparity.shape[-2:]
    quarter = [size[0] // 4, size[1] // 4]
    image = F.interpolate(left_image, quarter, mode='bilinear', align_corners=False)
    coarse = F.interpolate(disparity.unsqueeze(1), quarter, mode='bilinear', align_corners=False)
    upper, level, lower = to_gates(image).chunk(3, 1)
    total = upper.abs() + level.abs() + lower.abs() + 1e-8
    spread = propagate(entry(coarse), upper / total, level / total, lower / total)
    return upsample_map(exit_(spread).squeeze(1), size)


class AnytimeNetwork(StereoNetwork):
    """AnyNet's four stages, each an early exit, which Compact StereoNet shares.

    Both keep their parts under names of their own, those of their checkpoints: `extract` and
    `aggregations_and_spn` say which they are.

    Attributes:
        sampled_offsets: where the residual volumes look, in feature pixels, in the order
            that the regression reads as -2 .. 2.
    """

    stride = 16
    sampled_offsets = OFFSETS

    def extract(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) -> maps at 1/16, 1/8 and 1/4."""
        raise NotImplementedError

    def aggregations_and_spn(self) -> tuple[nn.ModuleList, nn.ModuleList | None]:
        """One 3D network of costs per stage; the parts of stage 4, None without it."""
        raise NotImplementedError

    @property
    def exit_stage(self) -> int:
        """The last stage to run.

        Raises:
            NetworkError: when set to one that the network does not have.
        """
        return self._exit_stage

    @exit_stage.setter
    def exit_stage(self, stage: int) -> None:
        stages = STAGES if self.aggregations_and_spn()[1] is not None else STAGES - 1
        if stage not in range(1, stages + 1):
            raise NetworkError(
                f'{type(self).__name__}: exit_stage is 1 to {stages}, got {stage!r}'
            )
        self._exit_stage = stage

    def match(
        self,
        left: tuple[Tensor, Tensor, Tensor],
        right: tuple[Tensor, Tensor, Tensor],
        left_image: Tensor,
    ) -> StereoOutput:
        """Features of both views, and the left image for SPN, to disparities."""
        aggregations, spn = self.aggregations_and_spn()
        size = (left_image.shape[-2], left_image.shape[-1])
        bins = self.max_disparity_px // 16
        volume = l1_volume(left[0], right[0], bins)
        logits = -aggregations[0](volume.unsqueeze(1)).squeeze(1).float()
        hypotheses = hypotheses_like(logits, bins, 16.0)
        coarse = soft_argmax(logits, hypotheses)
        stages = [upsample_map(coarse, size)]
        confidence = upsample_map(distribution_confidence(logits, hypotheses, coarse), size)
        features = {'left': left[-1], 'right': right[-1], 'volume': volume, 'scores': logits}
        for index, scale in ((1, 8), (2, 4)):
            if self.exit_stage <= index:
                break
            extent = (left[index].shape[-2], left[index].shape[-1])
            known = upsample_map(stages[-1], extent) / scale
            residual = residual_l1_volume(left[index], right[index], known, self.sampled_offsets)
            scores = -aggregations[index](residual.unsqueeze(1)).squeeze(1).float()
            steps = torch.tensor(OFFSETS, dtype=scores.dtype, device=scores.device)
            correction = soft_argmax(scores, steps * float(scale))
            stages.append(stages[-1] + upsample_map(correction, size))
            features[f'residual_scores_{index}'] = scores
        if self.exit_stage == STAGES and spn is not None:
            with full_precision(left_image):
                stages.append(refine(spn, left_image, stages[-1]))
        later = (None,) * (len(stages) - 1)
        return StereoOutput(
            disparity=stages[-1],
            confidence=confidence,
            stages=tuple(stages),
            logits=(logits, *later),
            hypotheses=(hypotheses, *later),
            features=features,
        )

    def forward(self, left: Tensor, right: Tensor) -> StereoOutput:
        check_pair(self, left, right)
        return self.match(self.extract(left), self.extract(right), left)


class AnyNet(AnytimeNetwork):
    """See the file header.

    Args:
        max_disparity_px: a multiple of 16; stage 1 has max_disparity_px / 16 hypotheses.
        spn: build stage 4. Public checkpoints have it.
        exit_stage: the last stage to run, 1 to 4 (3 without `spn`); may be changed on a
            built network. The official schedule trains three stages before the fourth.
    """

    sampled_offsets = OFFSETS[::-1]
    source = 'Wang et al., Anytime Stereo Image Depth Estimation on Mobile Devices, ICRA 2019'

    def __init__(
        self, max_disparity_px: int = 192, spn: bool = True, exit_stage: int | None = None
    ):
        super().__init__()
        check_multiple('AnyNet', 'max_disparity_px', max_disparity_px, 16)
        self.max_disparity_px = max_disparity_px
        self.refine_spn = spatial_propagation() if spn else None
        self.feature_extraction = UNetExtractor()
        self.volume_postprocess = nn.ModuleList(
            aggregation_3d(channels, 4) for channels in (16, 4, 4)
        )
        self.exit_stage = exit_stage or (4 if spn else 3)
        initialize(self)

    def extract(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.feature_extraction(image)

    def aggregations_and_spn(self) -> tuple[nn.ModuleList, nn.ModuleList | None]:
        return self.volume_postprocess, self.refine_spn
