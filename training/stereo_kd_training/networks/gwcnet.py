# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""GwcNet, the teacher of Compact StereoNet: Guo et al., Group-wise Correlation, CVPR 2019.

GwcNet-g 6,518,560 parameters; GwcNet-gc, with a concatenation volume beside, 6,909,728.

    left, right     (B, 3, H, W)             H, W multiples of 16
    features        (B, 320, H/4, W/4)       residual trunk, last three layers concatenated
    volume          (B, 40, D/4, H/4, W/4)   group-wise correlation (gc: 24 more channels)
    scores          (B, 1, D/4, H/4, W/4)    four heads; softmax(+score)
    disparity       (B, H, W)                soft argmax over D bins at full resolution

State-dict keys are those of the public checkpoints. They were trained with corners not
aligned in the final upsampling.
"""

from __future__ import annotations

import torch
from torch import Tensor

from stereo_kd_training.networks.base import StereoNetwork, StereoOutput
from stereo_kd_training.networks.blocks import (
    Hourglass3d,
    StackedResidualExtractor,
    check_multiple,
    check_pair,
    initialize,
    narrowed_features,
    score_head_3d,
    volume_entry,
    volume_output,
)
from stereo_kd_training.networks.cost_volume import concat_volume, group_correlation_volume

GROUPS = 40


class GwcExtractor(StackedResidualExtractor):
    """The trunk, plus a narrow map for the concatenation volume when `concat_channels`."""

    def __init__(self, concat_channels: int):
        super().__init__()
        self.concat_channels = concat_channels
        if concat_channels:
            self.lastconv = narrowed_features(concat_channels)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 320, H/4, W/4) and, for gc, (B, concat_channels, H/4, W/4)."""
        correlated = super().forward(image)
        return correlated, self.lastconv(correlated) if self.concat_channels else None


class GwcNet(StereoNetwork):
    """See the file header.

    Args:
        max_disparity_px: D, a multiple of 16.
        concat_volume: True builds GwcNet-gc, False GwcNet-g.
    """

    stride = 16
    source = 'Guo et al., Group-wise Correlation Stereo Network, CVPR 2019'

    def __init__(self, max_disparity_px: int = 192, concat_volume: bool = False):
        super().__init__()
        check_multiple('GwcNet', 'max_disparity_px', max_disparity_px, 16)
        self.max_disparity_px = max_disparity_px
        concat_channels = 12 if concat_volume else 0
        self.feature_extraction = GwcExtractor(concat_channels)
        self.dres0, self.dres1 = volume_entry(GROUPS + 2 * concat_channels)
        self.dres2 = Hourglass3d(32)
        self.dres3 = Hourglass3d(32)
        self.dres4 = Hourglass3d(32)
        self.classif0 = score_head_3d(32)
        self.classif1 = score_head_3d(32)
        self.classif2 = score_head_3d(32)
        self.classif3 = score_head_3d(32)
        initialize(self)

    def extract(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, 3, H, W) -> features to correlate, features to concatenate (gc) or None."""
        return self.feature_extraction(image)

    def match(
        self, left: tuple[Tensor, Tensor | None], right: tuple[Tensor, Tensor | None]
    ) -> StereoOutput:
        """What `extract` gave for both views to disparities at four times the resolution."""
        size = (4 * left[0].shape[-2], 4 * left[0].shape[-1])
        disparities = self.max_disparity_px // 4
        correlation = group_correlation_volume(left[0], right[0], disparities, GROUPS)
        volume = correlation
        if left[1] is not None:
            volume = torch.cat((volume, concat_volume(left[1], right[1], disparities)), 1)
        cost0 = self.dres0(volume)
        cost0 = self.dres1(cost0) + cost0
        out1 = self.dres2(cost0)
        out2 = self.dres3(out1)
        out3 = self.dres4(out2)
        scores = self.classif3(out3)
        heads = (scores,)
        if self.training:
            early = (self.classif0(cost0), self.classif1(out1), self.classif2(out2))
            heads = (*early, scores)
        features = {
            'left': left[0],
            'right': right[0],
            'volume': correlation,
            'scores': scores.squeeze(1),
        }
        return volume_output(heads, self.max_disparity_px, size, False, features)

    def forward(self, left: Tensor, right: Tensor) -> StereoOutput:
        check_pair(self, left, right)
        return self.match(self.extract(left), self.extract(right))
