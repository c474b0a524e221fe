# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ACVNet, the teacher of DSNet: Xu et al., Attention Concatenation Volume, CVPR 2022.

Two sizes are public, and both are called ACVNet; they differ in the branch that attends:

    name           its channels   parameters   its state-dict names
    acvnet         16             6,230,944    dres1_att, ...    (the file `acv_small`)
    acvnet_large   32             7,173,488    dres1_att_, ...   (the file `acv`)

DSNet's copy of the smaller one counts 6,603,936: it carries the projection to 32 channels
twice and uses one.

    left, right     (B, 3, H, W)             H, W multiples of 16
    features        (B, 320, H/4, W/4)       residual trunk, last three layers concatenated
    attention       (B, 1, D/4, H/4, W/4)    from a 40-group correlation volume
    volume          (B, 64, D/4, H/4, W/4)   concatenated features times softmax(attention)
    scores          (B, 1, D/4, H/4, W/4)    three heads and the attention; softmax(+score)
    disparity       (B, H, W)                soft argmax over D bins at full resolution

State-dict keys are those of the public checkpoints. Where an extent is no multiple of the
attention's 4x4x4 blocks, the padding is masked out of the attention. (The published code
means to do the same, but its mask covers everything when only one side is padded.)
"""

from __future__ import annotations

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
    Hourglass3d,
    StackedResidualExtractor,
    attention_weights,
    check_multiple,
    check_pair,
    concatenated,
    conv_pair_3d,
    distillation_points,
    initialize,
    match_patches,
    narrowed_features,
    patch_filter,
    patch_pyramid,
    score_head_3d,
    volume_entry,
    volume_output,
)
from stereo_kd_training.networks.cost_volume import concat_volume, group_correlation_volume

GROUPS = 40
_MASKED = -1000.0
_ATTENTION_SUFFIX = {16: '_att', 32: '_att_'}


class BlockAttention(nn.Module):
    """Self-attention inside blocks of 4x4x4 cells of a volume (B, C, D, H, W)."""

    block = 4

    def __init__(self, channels: int, heads: int = 16):
        super().__init__()
        self.heads = heads
        self.scale = (channels // heads) ** -0.5
        self.qkv_3d = nn.Linear(channels, 3 * channels)
        self.final1x1 = nn.Conv3d(channels, channels, 1)

    @opaque()
    def forward(self, volume: Tensor) -> Tensor:
        depth, height, width = volume.shape[2:]
        block = self.block
        pad = [value for side in (width, height, depth) for value in (0, -side % block)]
        padded = F.pad(volume, pad)
        extents = padded.shape[2:]
        cells = self._to_blocks(padded)
        batch, blocks, size, channels = cells.shape
        shape = (batch, blocks, size, 3, self.heads, channels // self.heads)
        query, key, value = self.qkv_3d(cells).view(shape).permute(3, 0, 1, 4, 2, 5)
        affinity = query @ key.transpose(-2, -1) * self.scale
        if any(pad):
            outside = 1.0 - F.pad(torch.ones_like(volume[:1, :1]), pad)
            outside = self._to_blocks(outside).view(1, blocks, 1, 1, size)
            affinity = affinity + _MASKED * outside
        attended = torch.softmax(affinity, -1) @ value
        attended = attended.transpose(2, 3).reshape(batch, blocks, size, channels)
        merged = self._from_blocks(attended, extents)
        return self.final1x1(merged[:, :, :depth, :height, :width])

    def _to_blocks(self, volume: Tensor) -> Tensor:
        """(B, C, D, H, W) -> (B, blocks, 64, C)."""
        batch, channels, *extents = volume.shape
        d, h, w = (extent // self.block for extent in extents)
        split = volume.view(batch, channels, d, self.block, h, self.block, w, self.block)
        return split.permute(0, 2, 4, 6, 3, 5, 7, 1).reshape(
            batch, d * h * w, self.block**3, channels
        )

    def _from_blocks(self, cells: Tensor, extents: torch.Size) -> Tensor:
        """The inverse of `_to_blocks`."""
        batch, _, _, channels = cells.shape
        d, h, w = (extent // self.block for extent in extents)
        split = cells.view(batch, d, h, w, self.block, self.block, self.block, channels)
        return split.permute(0, 7, 1, 4, 2, 5, 3, 6).reshape(batch, channels, *extents)


class ACVNet(StereoNetwork):
    """See the file header.

    Args:
        max_disparity_px: D, a multiple of 16.
        attention_channels: 16 or 32, the two public sizes.
    """

    stride = 16
    source = 'Xu et al., Attention Concatenation Volume for Stereo Matching, CVPR 2022'

    def __init__(self, max_disparity_px: int = 192, attention_channels: int = 16):
        super().__init__()
        check_multiple('ACVNet', 'max_disparity_px', max_disparity_px, 16)
        if attention_channels not in _ATTENTION_SUFFIX:
            raise NetworkError(
                f'ACVNet: attention_channels is 16 or 32, got {attention_channels!r}'
            )
        self.max_disparity_px = max_disparity_px
        self.feature_extraction = StackedResidualExtractor()
        self.concatconv = narrowed_features(32)
        self.patch = patch_filter(GROUPS, 1)
        self.patch_l1, self.patch_l2, self.patch_l3 = patch_pyramid()
        width = attention_channels
        self.attention_layers = tuple(
            f'{layer}{_ATTENTION_SUFFIX[width]}' for layer in ('dres1', 'dres2', 'classif')
        )
        attending = (
            conv_pair_3d(GROUPS, width),
            Hourglass3d(width, BlockAttention(4 * width)),
            score_head_3d(width),
        )
        for name, layer in zip(self.attention_layers, attending):
            self.add_module(name, layer)
        self.dres0, self.dres1 = volume_entry(64)
        self.dres2 = Hourglass3d(32, BlockAttention(128))
        self.dres3 = Hourglass3d(32, BlockAttention(128))
        self.classif0 = score_head_3d(32)
        self.classif1 = score_head_3d(32)
        self.classif2 = score_head_3d(32)
        initialize(self)

    def extract(self, image: Tensor) -> dict[str, Tensor]:
        """Maps by name: those DSNet distils, `correlated` (320 ch) and `concatenated` (32)."""
        layers = self.feature_extraction.layers(image)
        correlated = concatenated(layers)
        return {
            'early1': layers['firstconv'],
            'early2': layers['layer1'],
            'correlated': correlated,
            'concatenated': self.concatconv(correlated),
        }

    def match(self, left: dict[str, Tensor], right: dict[str, Tensor]) -> StereoOutput:
        """What `extract` gave for both views to disparities at four times the resolution."""
        size = tuple(4 * side for side in left['correlated'].shape[-2:])
        disparities = self.max_disparity_px // 4
        correlation = group_correlation_volume(
            left['correlated'], right['correlated'], disparities, GROUPS
        )
        patches = match_patches(
            self.patch(correlation), (self.patch_l1, self.patch_l2, self.patch_l3)
        )
        attention = patches
        for name in self.attention_layers:
            attention = getattr(self, name)(attention)
        volume = concat_volume(left['concatenated'], right['concatenated'], disparities)
        cost0 = self.dres0(attention_weights(attention) * volume)
        cost0 = self.dres1(cost0) + cost0
        out1 = self.dres2(cost0)
        out2 = self.dres3(out1)
        scores = self.classif2(out2)
        heads = (scores,)
        if self.training:
            heads = (attention, self.classif0(cost0), self.classif1(out1), scores)
        features = distillation_points(left, right)
        features |= {'volume': correlation, 'scores': scores.squeeze(1)}
        return volume_output(heads, self.max_disparity_px, size, False, features)

    def forward(self, left: Tensor, right: Tensor) -> StereoOutput:
        check_pair(self, left, right)
        return self.match(self.extract(left), self.extract(right))
