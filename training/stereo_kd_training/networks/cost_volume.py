# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Cost volumes: how left features are compared with right ones at each disparity.

One convention throughout: entry d of a volume compares left pixel x with right pixel x - d
(feature pixels). Right pixels outside the image count as zero features.

Volumes are built by padding once, slicing and stacking, never by assignment into slices, so
they trace with dynamic sizes and the width may be smaller than the disparity range.

Features are (B, C, H, W). Volumes are (B, C', D, H, W), or (B, D, H, W) where one number
per hypothesis is left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from stereo_kd_training.networks.base import opaque


def shifted(right: Tensor, disparities: int) -> Iterator[Tensor]:
    """Yield `right` moved right by d = 0 .. disparities - 1: value at x is right[x - d], or 0."""
    width = right.shape[-1]
    padded = F.pad(right, (disparities - 1, 0))
    for d in range(disparities):
        start = disparities - 1 - d
        yield padded[..., start : start + width]


def in_view(features: Tensor, disparities: int) -> Tensor:
    """(D, 1, W) one where x - d lies inside the right image, else zero."""
    x = torch.arange(features.shape[-1], device=features.device)
    d = torch.arange(disparities, device=features.device)
    return (x.view(1, 1, -1) >= d.view(-1, 1, 1)).to(features.dtype)


@opaque()
def concat_volume(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """Both views' features side by side: (B, 2 C, D, H, W), zero where x < d (PSMNet)."""
    right_part = torch.stack(list(shifted(right, disparities)), 2)
    left_part = left.unsqueeze(2) * in_view(left, disparities)
    return torch.cat((left_part, right_part), 1)


@opaque()
def group_correlation_volume(left: Tensor, right: Tensor, disparities: int, groups: int) -> Tensor:
    """Mean product per channel group: (B, groups, D, H, W), zero where x < d (GwcNet)."""
    batch, channels, height, width = left.shape
    shape = (batch, groups, channels // groups, height, width)
    entries = [(left * moved).view(shape).mean(2) for moved in shifted(right, disparities)]
    return torch.stack(entries, 2)


@opaque(prunable=True)
def l1_volume(left: Tensor, right: Tensor, disparities: int) -> Tensor:
    """Sum over channels of |left - right|: (B, D, H, W), |left| where x < d (AnyNet)."""
    return torch.stack([(left - moved).abs().sum(1) for moved in shifted(right, disparities)], 1)


def warp_to_left(right: Tensor, disparity: Tensor) -> Tensor:
    """Sample right features at x - disparity, bilinear, zero outside.

    Args:
        right: (B, C, H, W).
        disparity: (B, H, W) in feature pixels.

    Returns:
        (B, C, H, W) aligned with the left view.
    """
    height, width = right.shape[-2:]
    # coordinates stay float32: half precision cannot tell columns apart beyond 256
    right, disparity = right.float(), disparity.float()
    x = torch.arange(width, device=right.device, dtype=right.dtype).view(1, 1, -1) - disparity
    y = torch.arange(height, device=right.device, dtype=right.dtype).view(1, -1, 1)
    grid_x = 2.0 * x / (width - 1) - 1.0
    grid_y = (2.0 * y / (height - 1) - 1.0).expand_as(grid_x)
    grid = torch.stack((grid_x, grid_y), 3)
    return F.grid_sample(right, grid, mode='bilinear', padding_mode='zeros', align_corners=True)


@opaque(prunable=True)
def residual_l1_volume(
    left: Tensor, right: Tensor, disparity: Tensor, offsets: Sequence[int]
) -> Tensor:
    """L1 comparison around a known disparity: entry i compares x with x - (disparity + offset_i).

    Args:
        left, right: (B, C, H, W).
        disparity: (B, H, W) in feature pixels.
        offsets: feature pixels.

    Returns:
        (B, len(offsets), H, W).
    """
    entries = [(left - warp_to_left(right, disparity + offset)).abs().sum(1) for offset in offsets]
    return torch.stack(entries, 1)


def interlaced(left: Tensor, moved_right: Tensor) -> Tensor:
    """Channels of both views alternating: (B, 2 C, H, W), left first (MobileStereoNet)."""
    return torch.stack((left, moved_right), 2).flatten(1, 2)
