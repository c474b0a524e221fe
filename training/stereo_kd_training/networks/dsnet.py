# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""DSNet: Rahim, Woerz and Zell, Distilling Stereo Networks for Performant and Efficient
Leaner Networks, IJCNN 2023. A narrow GwcNet with ACVNet's attention on the volume.

    name            hourglass channels   attention   parameters
    dsnet           16                   yes         1,856,256   (slied16)
    dsnet_wo        16                   no          1,545,568   (slied16-wo)
    dsnet_slied8    8                    no          1,052,232   (slied8)

    left, right     (B, 3, H, W)             H, W multiples of 16
    features        (B, 320, H/4, W/4)       trunk of 2, 4, 1, 1 residual blocks
    volume          (B, 40, D/4, H/4, W/4)   group-wise correlation, times softmax(attention)
    scores          (B, 1, D/4, H/4, W/4)    three heads; softmax(+score)
    disparity       (B, H, W)                see `head`

Heads share their weights, so a network trained with one can be deployed with the other:
    'paper'    scores trilinearly to (B, D, H, W), softmax and soft argmax there.
    'quarter'  softmax and soft argmax over D/4 bins at 1/4, then the disparity bilinearly.

Distillation points, in `StereoOutput.features` here and in ACVNet: `early1_*` (first
convolutions) and `early2_*` (first residual layer) of both views, and `volume`, the raw
correlation.

Where the paper is silent its public code is followed. That code also carries a projection
of the features to the 32 channels which ACVNet concatenates, and counts its 42,544
parameters, but never applies it; here it yields the points `projected_*` while training.
Pass `projection=False` to leave it out.
"""

from __future__ import annotations

from torch import Tensor, nn

from stereo_kd_training.networks.base import StereoNetwork, StereoOutput
from stereo_kd_training.networks.blocks import (
    ChoiceOfHead,
    Hourglass3d,
    StackedResidualExtractor,
    attention_weights,
    check_multiple,
    check_pair,
    concatenated,
    conv_bn_2d,
    conv_pair_3d,
    distillation_points,
    initialize,
    match_patches,
    patch_filter,
    patch_pyramid,
    quarter_output,
    score_head_3d,
    volume_entry,
    volume_output,
)
from stereo_kd_training.networks.cost_volume import group_correlation_volume

GROUPS = 40


class DSNet(ChoiceOfHead, StereoNetwork):
    """See the file header.

    Args:
        max_disparity_px: D, a multiple of 16.
        channels: of the 3D hourglasses.
        attention: weigh the volume by an attention over disparities.
        projection: carry the 32-channel projection, a distillation point.
        head: 'paper' or 'quarter'; may be changed on a built network.

    Raises:
        NetworkError: D is no multiple of 16, or there is no such head.
    """

    stride = 16
    source = (
        'Rahim, Woerz and Zell, Distilling Stereo Networks for Performant and Efficient '
        'Leaner Networks, IJCNN 2023'
    )

    def __init__(
        self,
        max_disparity_px: int = 192,
        channels: int = 16,
        attention: bool = True,
        projection: bool = True,
        head: str = 'paper',
    ):
        super().__init__()
        check_multiple('DSNet', 'max_disparity_px', max_disparity_px, 16)
        self.max_disparity_px = max_disparity_px
        self.head = head
        self.feature_extraction = StackedResidualExtractor(blocks=(2, 4, 1, 1))
        self.projection = (
            nn.Sequential(
                conv_bn_2d(320, 120, 1), nn.LeakyReLU(inplace=True), conv_bn_2d(120, 32, 1)
            )
            if projection
            else None
        )
        self.attention = VolumeAttention() if attention else None
        self.dres0, self.dres1 = volume_entry(GROUPS, channels)
        self.dres2 = Hourglass3d(channels)
        self.dres3 = Hourglass3d(channels)
        self.classif0 = score_head_3d(channels)
        self.classif1 = score_head_3d(channels)
        self.classif2 = score_head_3d(channels)
        initialize(self)

    def extract(self, image: Tensor) -> dict[str, Tensor]:
        """Maps by name: `early1`, `early2` at 1/2, `correlated` (320 ch) at 1/4."""
        layers = self.feature_extraction.layers(image)
        return {
            'early1': layers['firstconv'],
            'early2': layers['layer1'],
            'correlated': concatenated(layers),
        }

    def match(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> StereoOutput:
        """What `extract` gave for both views to disparities at four times the resolution."""
        size = (4 * left['correlated'].shape[-2], 4 * left['correlated'].shape[-1])
        correlation = group_correlation_volume(
            left['correlated'], right['correlated'], self.max_disparity_px // 4, GROUPS
        )
        volume = correlation
        if self.attention is not None:
            volume = attention_weights(self.attention(correlation)) * correlation
        cost0 = self.dres0(volume)
        cost0 = self.dres1(cost0) + cost0
        out1 = self.dres2(cost0)
        out2 = self.dres3(out1)
        scores = self.classif2(out2)
        heads = (scores,)
        features = distillation_points(left, right)
        features |= {'volume': correlation, 'scores': scores.squeeze(1)}
        if self.training:
            heads = (self.classif0(cost0), self.classif1(out1), scores)
            if self.projection is not None:
                features['projected_left'] = self.projection(left['correlated'])
                features['projected_right'] = self.projection(right['correlated'])
        if self.head == 'quarter':
            return quarter_output(heads, self.max_disparity_px, size, features)
        return volume_output(heads, self.max_disparity_px, size, False, features)

    def forward(self, left: Tensor, right: Tensor) -> StereoOutput:
        check_pair(self, left, right)
        return self.match(self.extract(left), self.extract(right))


class VolumeAttention(nn.Module):
    """(B, 40, D, H, W) correlation -> (B, 1, D, H, W) scores to weigh it by."""

    def __init__(self):
        super().__init__()
        self.patch = patch_filter(GROUPS, 1)
        self.pyramid = nn.ModuleList(patch_pyramid())
        self.dres1 = conv_pair_3d(GROUPS, 16)
        self.dres2 = Hourglass3d(16)
        self.classif = score_head_3d(16)

    def forward(self, correlation: Tensor) -> Tensor:
        patches = match_patches(self.patch(correlation), tuple(self.pyramid))
        return self.classif(self.dres2(self.dres1(patches)))
