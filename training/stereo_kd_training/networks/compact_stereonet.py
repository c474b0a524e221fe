# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Compact StereoNet: Gao et al., Stereo Disparity Estimation via Knowledge Distillation and
Compact Feature Extractor, IEEE Access 2020.

41,890 parameters: MCliqueNet 8,428, 3D aggregation 24,822 (Table 1), SPN 8,640.

    left, right  (B, 3, H, W)            H, W multiples of 16
    features     16 channels at 1/16, 8 at 1/8, 4 at 1/4 (MCliqueNet)
    stage 1      L1 volume (B, 12, H/16, W/16), five 3D convolutions, softmax(-cost)
    stage 2, 3   L1 volumes of +-2 feature pixels round the stage before, at 1/8 and 1/4
    stage 4      spatial propagation (SPN) at 1/4, as in AnyNet
    disparity    (B, H, W); each stage is an early exit

MCliqueNet, channels as printed in Fig. 4 (every convolution after the stem is batch norm,
ReLU, convolution):

    1/4    stem 7x7 s2, max pool          4
           clique 0 on the stem           stage II: 4
           branches 1, 2, 3 on the stem   8 at 1/4, 8 at 1/8, 8 at 1/16
           join 0 = branch 1 + clique 0   12    -> head 12 -> 4
    1/8    ACAT 0 of join 0, clique 1     stage II: 4
           branches 1, 2 on ACAT 0        4 at 1/8, 4 at 1/16
           join 1 = row-2 branch 2 + clique 1    12
           join 1 + branch 1              16    -> head 16 -> 8
    1/16   ACAT 1 of join 1, clique 2     stage II: 8
           + branches 3 and 2             20    -> head 20 -> 16

Where the paper is silent or contradicts itself:
- A clique of two layers has four 1x1 convolutions, one per directed pair of its nodes, and
  two 3x3, one per layer; both are reused in stage II (CliqueNet, Yang et al. 2018).
- Which maps the "concatenation layers" join is drawn, not stated. The joins above are the
  ones in which every printed channel count (12, 12; 12, 16, 20) comes out.
- Branch 2 of Fig. 4's row 4 is printed with a stride and a pooling, which would land at
  1/32 instead of 1/16; one stride is used.
- The residual hypotheses are read in the order in which they are sampled (the public code
  of AnyNet mirrors them).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo_kd_training.networks.anynet import (
    STAGES,
    AnytimeNetwork,
    aggregation_3d,
    preactivated_2d,
    spatial_propagation,
)
from stereo_kd_training.networks.blocks import check_multiple, initialize


class CliqueBlock(nn.Module):
    """Two layers that refine each other once: (B, C, h, w) -> (B, 2 k, h, w), stage II.

        stage I    x1 = f1(w01 x0)          x2 = f2(w02 x0 + w12 x1)
        stage II   x1' = f1(w21 x2)         x2' = f2(w12 x1')

    Each w is batch norm, ReLU, 1x1 convolution; each f batch norm, ReLU, 3x3 convolution.
    """

    def __init__(self, in_channels: int, k: int):
        super().__init__()
        self.w01 = _preactivated_1x1(in_channels, k)
        self.w02 = _preactivated_1x1(in_channels, k)
        self.w12 = _preactivated_1x1(k, k)
        self.w21 = _preactivated_1x1(k, k)
        self.f1 = preactivated_2d(k, k)
        self.f2 = preactivated_2d(k, k)

    def forward(self, x0: Tensor) -> Tensor:
        x1 = self.f1(self.w01(x0))
        x2 = self.f2(self.w02(x0) + self.w12(x1))
        x1 = self.f1(self.w21(x2))
        x2 = self.f2(self.w12(x1))
        return torch.cat((x1, x2), 1)


class AttentionTransition(nn.Module):
    """ACAT: weigh the channels of (B, 12, h, w) by their means, then halve: (B, 12, h/2, w/2)."""

    def __init__(self, channels: int = 12):
        super().__init__()
        self.mix = _preactivated_1x1(channels, channels)
        self.squeeze = nn.Linear(channels, channels // 2)
        self.excite = nn.Linear(channels // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(x)
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return F.avg_pool2d(x * gate[:, :, None, None], 2)


class MCliqueNet(nn.Module):
    """(B, 3, H, W) -> maps at 1/16 (16 channels), 1/8 (8) and 1/4 (4), coarse first."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 4, 7, stride=2, padding=3), nn.MaxPool2d(3, stride=2, padding=1)
        )
        self.clique0 = CliqueBlock(4, 2)
        self.branch0_quarter = preactivated_2d(4, 8)
        self.branch0_eighth = preactivated_2d(4, 8, stride=2)
        self.branch0_sixteenth = nn.Sequential(
            preactivated_2d(4, 8, stride=2), nn.AvgPool2d(3, stride=2, padding=1)
        )
        self.transition0 = AttentionTransition()
        self.clique1 = CliqueBlock(12, 2)
        self.branch1_eighth = preactivated_2d(12, 4)
        self.branch1_sixteenth = preactivated_2d(12, 4, stride=2)
        self.transition1 = AttentionTransition()
        self.clique2 = CliqueBlock(12, 4)
        self.head_quarter = preactivated_2d(12, 4)
        self.head_eighth = preactivated_2d(16, 8)
        self.head_sixteenth = preactivated_2d(20, 16)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        stem = self.stem(image)
        join0 = torch.cat((self.branch0_quarter(stem), self.clique0(stem)), 1)

        eighth = self.transition0(join0)
        join1 = torch.cat((self.branch0_eighth(stem), self.clique1(eighth)), 1)

        sixteenth = self.transition1(join1)
        contexts = (self.branch0_sixteenth(stem), self.branch1_sixteenth(eighth))
        return (
            self.head_sixteenth(torch.cat((*contexts, self.clique2(sixteenth)), 1)),
            self.head_eighth(torch.cat((join1, self.branch1_eighth(eighth)), 1)),
            self.head_quarter(join0),
        )


class CompactStereoNet(AnytimeNetwork):
    """See the file header.

    Args:
        max_disparity_px: a multiple of 16; stage 1 has max_disparity_px / 16 hypotheses.
        exit_stage: the last stage to run, 1 to 4; may be changed on a built network. The
            paper trains without the fourth before epoch 120 of KITTI.
    """

    source = (
        'Gao et al., Compact StereoNet: Stereo Disparity Estimation via Knowledge Distillation '
        'and Compact Feature Extractor, IEEE Access 2020'
    )

    def __init__(self, max_disparity_px: int = 192, exit_stage: int = STAGES):
        super().__init__()
        check_multiple('CompactStereoNet', 'max_disparity_px', max_disparity_px, 16)
        self.max_disparity_px = max_disparity_px
        self.extractor = MCliqueNet()
        self.aggregations = nn.ModuleList(aggregation_3d(channels, 3) for channels in (16, 4, 4))
        self.spn = spatial_propagation()
        self.exit_stage = exit_stage
        initialize(self)

    def extract(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.extractor(image)

    def aggregations_and_spn(self) -> tuple[nn.ModuleList, nn.ModuleList | None]:
        return self.aggregations, self.spn


def _preactivated_1x1(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(in_channels), nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False)
    )
