# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Distributions over disparity hypotheses: out of a disparity, and from one grid to another.

A teacher that only answers a disparity gets a distribution from `laplace_distribution`, so
that losses on distributions still apply. `rebin` carries a teacher's distribution to a
student's hypotheses. Both split mass linearly between the two hypotheses next to a
disparity, which keeps the total always, and the mean wherever the range allows.
"""

from __future__ import annotations

import torch
from torch import Tensor


class DistributionError(ValueError):
    """Hypotheses that no distribution can live on."""


def laplace_distribution(
    disparity: Tensor, hypotheses: Tensor, scale_px: float | Tensor = 1.0
) -> Tensor:
    """A Laplace density around `disparity`, its mass split linearly between hypotheses.

    The mean of the result is the mean of the density clipped to the range of the
    hypotheses, so inside the range it is `disparity` itself, however coarse the bins.

    Args:
        disparity: (B, H, W) px; NaN gives all zeros, to which no loss on distributions
            has a gradient.
        hypotheses: (D,) px, ascending or descending, D at least 2.
        scale_px: the mean absolute deviation, a number or (B, H, W); 0 is allowed.

    Returns:
        (B, D, H, W), summing to 1 over D wherever the disparity is known.
    """
    bins, order = _ascending(hypotheses, disparity.device)
    known = torch.isfinite(disparity)
    center = torch.where(known, disparity, torch.zeros_like(disparity)).unsqueeze(1).double()
    scale = torch.as_tensor(scale_px, dtype=torch.float64, device=disparity.device)
    if scale.dim() == 3:
        scale = scale.unsqueeze(1)
    scale = scale.clamp(min=1e-6)
    knots = bins.double().view(1, -1, 1, 1)
    # E[(X - k)+] of X ~ Laplace(center, scale); its divided differences are E[ramp(X)]
    excess = (center - knots).clamp(min=0) + scale / 2 * torch.exp(-(center - knots).abs() / scale)
    ramps = (excess[:, :-1] - excess[:, 1:]) / (knots[:, 1:] - knots[:, :-1])
    ones, zeros = torch.ones_like(ramps[:, :1]), torch.zeros_like(ramps[:, :1])
    above = torch.cat((ones, ramps, zeros), 1)
    mass = (above[:, :-1] - above[:, 1:]).clamp(min=0).to(disparity.dtype)
    mass = mass * known.unsqueeze(1)
    return mass[:, order]


def rebin(probabilities: Tensor, from_bins: Tensor, to_bins: Tensor) -> Tensor:
    """Carry a distribution to other hypotheses, keeping its mass, and its mean where possible.

    Each source bin's mass goes to the target bins around it by linear weights. Where the
    target is finer, a source bin is first widened by the difference of the spacings, evenly
    to both sides, so that no gaps open. Both steps keep the mean. Mass outside the target's
    range goes to its last bin, where the mean cannot be kept. Equal bins change nothing.

    Args:
        probabilities: (B, D, H, W).
        from_bins: (D,) px, ascending or descending, D at least 2.
        to_bins: (E,) px, likewise.

    Returns:
        (B, E, H, W).
    """
    if from_bins.shape == to_bins.shape and torch.equal(from_bins.cpu(), to_bins.cpu()):
        return probabilities
    weights = rebinning_matrix(from_bins, to_bins).to(probabilities.device, probabilities.dtype)
    return torch.einsum('bdhw,de->behw', probabilities, weights)


def rebinning_matrix(from_bins: Tensor, to_bins: Tensor, samples: int = 32) -> Tensor:
    """(D, E) float64: where `rebin` sends the mass of each source bin. Rows sum to 1."""
    source, source_order = _ascending(from_bins, torch.device('cpu'))
    target, target_order = _ascending(to_bins, torch.device('cpu'))
    source, target = source.double(), target.double()
    gaps = source.diff()
    spacing = torch.minimum(torch.cat((gaps[:1], gaps)), torch.cat((gaps, gaps[-1:])))
    index = torch.searchsorted(target, source).clamp(1, len(target) - 1)
    target_spacing = target[index] - target[index - 1]
    half_width = (spacing - target_spacing).clamp(min=0)
    # stay inside the target's range, evenly, or the mean would move
    room = torch.minimum(source - target[0], target[-1] - source).clamp(min=0)
    half_width = torch.minimum(half_width, room)
    # midpoints of a triangle's equal slices: symmetric, so their mean is its centre
    offsets = (torch.arange(samples, dtype=torch.float64) + 0.5) / samples * 2 - 1
    heights = 1 - offsets.abs()
    heights = heights / heights.sum()
    points = (source[:, None] + half_width[:, None] * offsets).clamp(target[0], target[-1])
    upper = torch.searchsorted(target, points).clamp(1, len(target) - 1)
    low, high = target[upper - 1], target[upper]
    fraction = (points - low) / (high - low)
    weights = torch.zeros(len(source), len(target), dtype=torch.float64)
    weights.scatter_add_(1, upper - 1, heights * (1 - fraction))
    weights.scatter_add_(1, upper, heights * fraction)
    return weights[source_order][:, target_order]


def _ascending(bins: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Sorted bins, and the index that brings results back to the given order."""
    if bins.dim() != 1 or bins.numel() < 2:
        raise DistributionError(f'expected at least two hypotheses (D,), got {tuple(bins.shape)}')
    values, order = bins.to(device).sort()
    return values, order.argsort()
