# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""PSMNet, the teacher of DTPnet: Chang and Chen, Pyramid Stereo Matching Network, CVPR 2018.

5,224,768 parameters (stacked hourglass).

    left, right     (B, 3, H, W)          H, W multiples of 16
    features        (B, 32, H/4, W/4)     residual trunk, then spatial pyramid pooling
    volume          (B, 64, D/4, H/4, W/4) both views' features concatenated
    scores          (B, 1, D/4, H/4, W/4) three, one per hourglass; the paper calls them
                                          costs but takes softmax(+score)
    disparity       (B, H, W)             soft argmax over D bins at full resolution

State-dict keys are those of the public checkpoints, which were trained with a PyTorch that
aligned corners whenever it interpolated (before 0.4): with `align_corners=False` their
error on KITTI triples.

The paper assumes images of at least 256x256, the cell of its coarsest pooling. Smaller ones
are pooled over what there is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo_kd_training.networks.base import StereoNetwork, StereoOutput
from stereo_kd_training.networks.blocks import (
    ClampedAvgPool,
    StackedResidualExtractor,
    check_multiple,
    check_pair,
    conv_bn_2d,
    conv_bn_3d,
    deconv_bn_3d,
    initialize,
    narrowed_features,
    score_head_3d,
    volume_entry,
    volume_output,
)
from stereo_kd_training.networks.cost_volume import concat_volume


class PyramidExtractor(StackedResidualExtractor):
    """(B, 3, H, W) -> (B, 32, H/4, W/4): the trunk and four pooled contexts."""

    pool_cells = (64, 32, 16, 8)

    def __init__(self, align_corners: bool):
        super().__init__()
        self.align_corners = align_corners
        for index, cell in enumerate(self.pool_cells, start=1):
            branch = nn.Sequential(
                ClampedAvgPool(cell), conv_bn_2d(128, 32, 1), nn.ReLU(inplace=True)
            )
            self.add_module(f'branch{index}', branch)
        self.lastconv = narrowed_features(32)

    def forward(self, image: Tensor) -> Tensor:
        layers = self.layers(image)
        deep = layers['layer4']
        # finest context first: the order in which the public weights expect the channels
        pooled = [
            F.interpolate(
                branch(deep), deep.shape[-2:], mode='bilinear', align_corners=self.align_corners
            )
            for branch in (self.branch4, self.branch3, self.branch2, self.branch1)
        ]
        return self.lastconv(torch.cat((layers['layer2'], deep, *pooled), 1))


class StackedHourglass(nn.Module):
    """One of PSMNet's hourglasses, which hands its inner maps to the next."""

    def __init__(self, channels: int):
        super().__init__()
        wide = 2 * channels
        self.conv1 = nn.Sequential(conv_bn_3d(channels, wide, 3, stride=2), nn.ReLU(inplace=True))
        self.conv2 = conv_bn_3d(wide, wide, 3)
        self.conv3 = nn.Sequential(conv_bn_3d(wide, wide, 3, stride=2), nn.ReLU(inplace=True))
        self.conv4 = nn.Sequential(conv_bn_3d(wide, wide, 3), nn.ReLU(inplace=True))
        self.conv5 = deconv_bn_3d(wide, wide)
        self.conv6 = deconv_bn_3d(wide, channels)

    def forward(
        self, volume: Tensor, first_pre: Tensor | None, previous_post: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Output, and the maps before (`pre`) and after (`post`) the coarsest level.

        Args:
            volume: (B, C, D, H, W).
            first_pre: `pre` of the first hourglass, None in the first itself.
            previous_post: `post` of the hourglass before, None in the first.
        """
        pre = self.conv2(self.conv1(volume))
        pre = F.relu(pre if previous_post is None else pre + previous_post)
        coarse = self.conv4(self.conv3(pre))
        post = F.relu(self.conv5(coarse) + (pre if first_pre is None else first_pre))
        return self.conv6(post), pre, post


class PSMNet(StereoNetwork):
    """See the file header.

    Args:
        max_disparity_px: D, a multiple of 16.
        align_corners: keep True for the public checkpoints.
    """

    stride = 16
    source = 'Chang and Chen, Pyramid Stereo Matching Network, CVPR 2018'

    def __init__(self, max_disparity_px: int = 192, align_corners: bool = True):
        super().__init__()
        check_multiple('PSMNet', 'max_disparity_px', max_disparity_px, 16)
        self.max_disparity_px = max_disparity_px
        self.align_corners = align_corners
        self.feature_extraction = PyramidExtractor(align_corners)
        self.dres0, self.dres1 = volume_entry(64)
        self.dres2 = StackedHourglass(32)
        self.dres3 = StackedHourglass(32)
        self.dres4 = StackedHourglass(32)
        self.classif1 = score_head_3d(32)
        self.classif2 = score_head_3d(32)
        self.classif3 = score_head_3d(32)
        initialize(self)

    def extract(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 32, H/4, W/4)."""
        return self.feature_extraction(image)

    def match(self, left: Tensor, right: Tensor) -> StereoOutput:
        """Features of both views to disparities at four times their resolution."""
        size = (4 * left.shape[-2], 4 * left.shape[-1])
        volume = concat_volume(left, right, self.max_disparity_px // 4)
        cost0 = self.dres0(volume)
        cost0 = self.dres1(cost0) + cost0
        out1, pre1, post1 = self.dres2(cost0, None, None)
        out1 = out1 + cost0
        out2, _, post2 = self.dres3(out1, pre1, post1)
        out2 = out2 + cost0
        out3, _, _ = self.dres4(out2, pre1, post2)
        out3 = out3 + cost0

        scores1 = self.classif1(out1)
        scores2 = self.classif2(out2) + scores1
        scores3 = self.classif3(out3) + scores2
        heads = (scores1, scores2, scores3) if self.training else (scores3,)
        features = {'left': left, 'right': right, 'volume': volume, 'scores': scores3.squeeze(1)}
        return volume_output(heads, self.max_disparity_px, size, self.align_corners, features)

    def forward(self, left: Tensor, right: Tensor) -> StereoOutput:
        check_pair(self, left, right)
        return self.match(self.extract(left), self.extract(right))
