# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Errors of disparity and depth: the one place where they are defined.

Dense protocol: every pixel whose true disparity lies in 0 < d < `max_disparity_px` counts. A
prediction that is not finite counts as the disparity 0, wrong by all of the truth, so that a
method cannot gain by answering only where it is easy. Peers with holes are filled first
(`fill_holes_row_background`), as the KITTI benchmark does.

    EPE     mean |predicted - truth|                                       [px]
    bad-N   share with an error above N px                                 [percent]
    D1      share with an error above 3 px and above 5 % of the truth      [percent]
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

D1_ABSOLUTE_PX = 3.0
D1_RELATIVE = 0.05
DEPTH_ERROR = 0.1
"""Relative error of depth up to which a range is called useful."""


class MetricsError(ValueError):
    """Maps that cannot be compared."""


@dataclass(frozen=True)
class DisparityMetrics:
    """Errors over `pixels` pixels; all NaN when there were none."""

    pixels: int
    epe_px: float
    bad1: float
    bad2: float
    bad3: float
    d1: float

    @classmethod
    def pooled(cls, parts: Iterable[DisparityMetrics]) -> DisparityMetrics:
        """The metrics of all pixels of all parts together, as if they were one image."""
        parts = [part for part in parts if part.pixels]
        return cls._averaged(parts, [part.pixels for part in parts])

    @classmethod
    def per_image_mean(cls, parts: Iterable[DisparityMetrics]) -> DisparityMetrics:
        """The mean over images, each with the same weight; images without truth are left out."""
        parts = [part for part in parts if part.pixels]
        return cls._averaged(parts, [1] * len(parts))

    @classmethod
    def _averaged(
        cls, parts: Sequence[DisparityMetrics], weights: Sequence[int]
    ) -> DisparityMetrics:
        if not parts:
            return cls(0, *[math.nan] * (len(fields(cls)) - 1))
        total = sum(weights)
        means = [
            math.fsum(getattr(part, item.name) * w for part, w in zip(parts, weights)) / total
            for item in fields(cls)[1:]
        ]
        return cls(sum(part.pixels for part in parts), *means)


def disparity_metrics(
    predicted: NDArray[np.floating],
    truth: NDArray[np.floating],
    max_disparity_px: float = 192.0,
    mask: NDArray[np.bool_] | None = None,
) -> DisparityMetrics:
    """Compare a disparity map (H, W) [px] with the truth (H, W) [px].

    Args:
        predicted: Anything not finite counts as wrong by the whole truth.
        truth: Pixels outside 0 < d < `max_disparity_px` do not count.
        max_disparity_px: Upper end of the counted range.
        mask: Where False, pixels do not count either, e.g. to leave out occlusions.

    Raises:
        MetricsError: The shapes differ.
    """
    error, counted_truth = _errors(predicted, truth, max_disparity_px, mask)
    if not error.size:
        return DisparityMetrics(0, *[math.nan] * 5)
    d1 = (error > D1_ABSOLUTE_PX) & (error > D1_RELATIVE * counted_truth)
    return DisparityMetrics(
        int(error.size),
        float(error.mean()),
        *(float(100.0 * np.mean(error > threshold)) for threshold in (1.0, 2.0, 3.0)),
        float(100.0 * d1.mean()),
    )


def counted_pixels(
    truth: NDArray[np.floating], max_disparity_px: float = 192.0
) -> NDArray[np.bool_]:
    """Where the truth is finite and in 0 < d < `max_disparity_px`, (H, W)."""
    return (truth > 0) & (truth < max_disparity_px) & np.isfinite(truth)


def _errors(
    predicted: NDArray[np.floating],
    truth: NDArray[np.floating],
    max_disparity_px: float,
    mask: NDArray[np.bool_] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Absolute error and truth of the counted pixels, both flat float64."""
    if predicted.shape != truth.shape:
        raise MetricsError(
            f'the prediction has the shape {predicted.shape}, the truth {truth.shape}: '
            'compare at the size of the truth'
        )
    counted = counted_pixels(truth, max_disparity_px)
    if mask is not None:
        if mask.shape != truth.shape:
            raise MetricsError(f'the mask has the shape {mask.shape}, the truth {truth.shape}')
        counted &= mask.astype(bool)
    wanted = truth[counted].astype(np.float64)
    given = predicted[counted].astype(np.float64)
    given[~np.isfinite(given)] = 0.0
    return np.abs(given - wanted), wanted


def fill_holes_row_background(disparity: NDArray[np.floating]) -> NDArray[np.float32]:
    """Fill what is not finite with the smaller of its row's two nearest valid values.

    The smaller disparity is the background, which is what an occlusion hides. At a row's ends
    the only neighbour is taken; a row without any valid value becomes 0.

    Args:
        disparity: (H, W) [px].

    Returns:
        float32 (H, W) without NaN.
    """
    valid = np.isfinite(disparity)
    columns = np.arange(disparity.shape[1])
    last = np.maximum.accumulate(np.where(valid, columns, -1), axis=1)
    following = np.where(valid, columns, disparity.shape[1])[:, ::-1]
    following = np.minimum.accumulate(following, axis=1)[:, ::-1]
    # One column of +Inf at either end stands for "no neighbour on this side".
    padded = np.pad(
        np.where(valid, disparity, np.inf).astype(np.float32),
        ((0, 0), (1, 1)),
        constant_values=np.inf,
    )
    filled = np.minimum(
        np.take_along_axis(padded, last + 1, axis=1),
        np.take_along_axis(padded, following + 1, axis=1),
    )
    filled[np.isinf(filled)] = 0.0
    return filled


def disparity_edges(
    truth: NDArray[np.floating], step_px: float = 2.0, radius_px: int = 5
) -> NDArray[np.bool_]:
    """Pixels within `radius_px` (a square) of a jump of the true disparity above `step_px`."""
    truth = np.where(np.isfinite(truth) & (truth > 0), truth, np.nan).astype(np.float32)
    edges = np.zeros(truth.shape, dtype=bool)
    with np.errstate(invalid='ignore'):
        across = np.abs(np.diff(truth, axis=1)) > step_px
        down = np.abs(np.diff(truth, axis=0)) > step_px
    edges[:, :-1] |= across
    edges[:, 1:] |= across
    edges[:-1] |= down
    edges[1:] |= down
    if not edges.any() or radius_px < 1:
        return edges
    reach = 2 * radius_px + 1
    counts = np.pad(edges, radius_px).astype(np.int32).cumsum(axis=0).cumsum(axis=1)
    counts = np.pad(counts, ((1, 0), (1, 0)))
    within = counts[reach:, reach:] - counts[:-reach, reach:]
    within -= counts[reach:, :-reach] - counts[:-reach, :-reach]
    return within > 0


def edge_epe(
    predicted: NDArray[np.floating],
    truth: NDArray[np.floating],
    radius_px: int = 5,
    step_px: float = 2.0,
    max_disparity_px: float = 192.0,
) -> float:
    """Mean error [px] near the edges of objects; NaN when the truth has no edges."""
    edges = disparity_edges(truth, step_px, radius_px)
    return disparity_metrics(predicted, truth, max_disparity_px, edges).epe_px


@dataclass(frozen=True)
class DepthMetrics:
    """Errors of depth over `pixels` pixels that have both truth and prediction.

    Attributes:
        pixels: How many have a finite positive truth and a finite positive prediction.
        coverage: Their share of all pixels with truth [percent].
        mae_m: Mean absolute error [m].
        rmse_m: Root of the mean squared error [m].
        abs_rel: Mean of |error| / truth.
        delta1: Share within a factor of 1.25 of the truth [percent].
    """

    pixels: int
    coverage: float
    mae_m: float
    rmse_m: float
    abs_rel: float
    delta1: float


def depth_metrics(
    predicted: NDArray[np.floating],
    truth: NDArray[np.floating],
    max_depth_m: float = math.inf,
) -> DepthMetrics:
    """Compare depth maps (H, W) [m]; a depth has gaps by design, so they are reported apart.

    Raises:
        MetricsError: The shapes differ.
    """
    if predicted.shape != truth.shape:
        raise MetricsError(f'the prediction has the shape {predicted.shape}, truth {truth.shape}')
    wanted = np.isfinite(truth) & (truth > 0) & (truth <= max_depth_m)
    both = wanted & np.isfinite(predicted) & (predicted > 0)
    pixels = int(both.sum())
    if not pixels:
        coverage = 0.0 if wanted.any() else math.nan
        return DepthMetrics(0, coverage, math.nan, math.nan, math.nan, math.nan)
    given, true = predicted[both].astype(np.float64), truth[both].astype(np.float64)
    error = np.abs(given - true)
    return DepthMetrics(
        pixels=pixels,
        coverage=100.0 * pixels / int(wanted.sum()),
        mae_m=float(error.mean()),
        rmse_m=float(np.sqrt(np.mean(error**2))),
        abs_rel=float(np.mean(error / true)),
        delta1=float(100.0 * np.mean(np.maximum(given / true, true / given) < 1.25)),
    )


@dataclass(frozen=True)
class Sparsification:
    """How well a confidence sorts the errors; areas under the curve of remaining mean error.

    Attributes:
        auc: With the given confidence.
        oracle: With the errors themselves as the confidence: the best possible.
        random: With a confidence that says nothing: the mean error.
        curve: Mean error that remains without the least confident 0, 1/steps, ... of the pixels.
        oracle_curve: The same without those whose error is largest.
    """

    auc: float
    oracle: float
    random: float
    curve: tuple[float, ...]
    oracle_curve: tuple[float, ...]

    @property
    def ause(self) -> float:
        """Area between the confidence's curve and the oracle's; 0 is perfect."""
        return self.auc - self.oracle


def sparsification_auc(
    error: NDArray[np.floating], confidence: NDArray[np.floating], steps: int = 20
) -> Sparsification:
    """Remove the least confident 0, 1/steps, ... of all pixels and average the remaining error.

    Args:
        error: Absolute errors, any shape.
        confidence: Of the same shape; NaN counts as least confident.
        steps: Number of points on the curve.

    Raises:
        MetricsError: The shapes differ, or there is nothing to sort.
    """
    if error.shape != confidence.shape or not error.size:
        raise MetricsError(
            f'error and confidence must have one shape and not be empty, '
            f'got {error.shape} and {confidence.shape}'
        )
    flat = error.reshape(-1).astype(np.float64)
    kept = flat.size - (np.arange(steps) * flat.size) // steps
    trusted = np.nan_to_num(confidence.reshape(-1).astype(np.float64), nan=-np.inf)

    def remaining(order: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.cumsum(flat[order])[kept - 1] / kept

    curve = remaining(np.argsort(-trusted, kind='stable'))
    oracle = remaining(np.argsort(flat, kind='stable'))
    return Sparsification(
        auc=float(curve.mean()),
        oracle=float(oracle.mean()),
        random=float(flat.mean()),
        curve=tuple(curve.tolist()),
        oracle_curve=tuple(oracle.tolist()),
    )


def geometric_mean(values: Iterable[float]) -> float:
    """The geometric mean of positive values; ratios of it do not depend on the unit.

    Raises:
        MetricsError: There is none, or one is not above 0.
    """
    values = [float(value) for value in values]
    if not values or not all(value > 0 for value in values):
        raise MetricsError(f'a geometric mean needs positive values, got {values}')
    return math.exp(math.fsum(math.log(value) for value in values) / len(values))


def useful_depth_m(
    focal_baseline: float, max_disparity_px: float, epe_px: float | None
) -> tuple[float, float]:
    """Nearest and farthest useful depth [m] of a rig.

    Z = f B / d: nothing nearer than the largest disparity is seen, and an error of e px makes
    a relative error of depth of about e Z / (f B), which `DEPTH_ERROR` limits.

    Args:
        focal_baseline: f B [px m].
        max_disparity_px: largest answer of the model.
        epe_px: its mean error; without one the farthest depth is NaN.
    """
    far = math.nan if epe_px is None else DEPTH_ERROR * focal_baseline / epe_px
    return focal_baseline / max_disparity_px, far
