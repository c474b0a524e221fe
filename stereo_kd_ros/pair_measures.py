# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Measures what can be wrong with a stereo pair, from the pictures alone.

`measure_pair` finds corners in both eyes, pairs them within a band of rows, refines them to a
fraction of a pixel and keeps those that are found again on the way back. From these sparse matches
come the rows of the two eyes (`fit_rows`), their brightness (`fit_levels`) and their sharpness
(`sharpness_ratio`); from a coarse grid over several frames, what never shows anything
(`blocked_regions`). Pictures are (H, W) uint8 grey, positions (N, 2) float32 in x, y [px].
"""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

Grey = NDArray[np.uint8]
Floats = NDArray[np.float32]
T = TypeVar('T')

FEWEST_MATCHES = 40
"""Of all frames together; fewer carry no statement."""

_FEATURES = 700
_HAMMING_LIMIT = 64
_RATIO = 0.85
# Of the height: how far apart the rows of the two eyes may be and still be measured.
_ROW_BAND = 0.08
_LEAST_BAND_PX = 24
_SAME_CORNER_PX = 6.0
_ROUND_TRIP_PX = 0.3
# A corner of a coarse octave lies within some pixels of where it belongs; more is another corner.
_REFINEMENT_PX = 4.0
_PATCH_PX = 9

GRID = (15, 20)
"""Rows and columns of the cells in which a lens is watched."""
# Of the spread of grey levels in a cell: sensor noise is below, any texture above.
_DEAD_SPREAD = 2.5
_ALIVE_TO_DEAD = 4.0
_DARKER_BY = 25.0
_BLACK = 20.0
_SATURATED_CELL = 245.0
# Cells to either side in which the other eye may see the same thing.
_REACH_CELLS = 5
_FEWEST_BLOCKED_CELLS = 4
FEWEST_FRAMES_BLOCKED = 4
_LEAST_CHANGE = 1.0


@dataclass(frozen=True)
class PairMeasure:
    """What one pair shows.

    Attributes:
        left, right: (N, 2) float32, positions of the same points in the two eyes [px].
        level_left, level_right: (N,) float32, mean grey level around each.
        detail_left, detail_right: (N,) float32, mean absolute Laplacian around each.
        mean_left, mean_right: `GRID` float32, mean grey level of the cells.
        spread_left, spread_right: `GRID` float32, standard deviation inside of the cells.
        saturated_left, saturated_right: share of pixels at the ends of the range.
        identical: the two eyes show the very same picture, and it is not flat.
        width, height: of the picture [px].
    """

    left: Floats
    right: Floats
    level_left: Floats
    level_right: Floats
    detail_left: Floats
    detail_right: Floats
    mean_left: Floats
    mean_right: Floats
    spread_left: Floats
    spread_right: Floats
    saturated_left: float
    saturated_right: float
    identical: bool
    width: int
    height: int

    @property
    def disparity_px(self) -> Floats:
        """x_left - x_right of the matches, (N,) [px]."""
        return self.left[:, 0] - self.right[:, 0]

    @property
    def row_error_px(self) -> Floats:
        """y_left - y_right of the matches, (N,) [px]."""
        return self.left[:, 1] - self.right[:, 1]


@dataclass(frozen=True)
class Estimate:
    """A number and its standard error, in the same unit."""

    value: float
    error: float

    def times(self, factor: float) -> Estimate:
        """The same in another unit."""
        return Estimate(self.value * factor, self.error * abs(factor))

    def certainly_beyond(self, limit: float) -> bool:
        """Whether its size is above the limit, two standard errors allowed for."""
        return abs(self.value) - 2 * self.error > limit


@dataclass(frozen=True)
class RowFit:
    """How the rows of the right eye lie against those of the left one.

    Attributes:
        offset_px: median of y_left - y_right.
        scatter_px: robust standard deviation about the fit.
        tilt: growth of the row error along x [px per px]: by how much the right eye rolled [rad].
        stretch: growth of the row error along y [px per px].
        matches: how many carried the fit.
    """

    offset_px: Estimate
    scatter_px: float
    tilt: Estimate
    stretch: Estimate
    matches: int


@dataclass(frozen=True)
class LevelFit:
    """right = gain * left + offset, in grey levels; `difference` is right - left in the middle."""

    gain: float
    offset: float
    difference: Estimate
    middle: float


@dataclass(frozen=True)
class BlockedRegion:
    """A part of one eye that never showed anything while the other eye did.

    Attributes:
        eye: `left` or `right`.
        x, y, width, height: bounding box as shares of the picture.
        share: of the picture's area.
        level: mean grey level.
    """

    eye: str
    x: float
    y: float
    width: float
    height: float
    share: float
    level: float


def to_grey(image: NDArray[np.uint8]) -> Grey:
    """(H, W, 3) RGB or (H, W) to (H, W) uint8."""
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) if image.ndim == 3 else image


def measure_pair(left: Grey, right: Grey, features: int = _FEATURES) -> PairMeasure:
    """Measure one pair; both pictures have the same size.

    Args:
        left: (H, W) uint8.
        right: (H, W) uint8.
        features: corners looked for in each eye.
    """
    return finished(measuring(left, right, features))


def finished(steps: Generator[None, None, T]) -> T:
    """What steps come to, taken one right after the other."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def measuring(
    left: Grey, right: Grey, features: int = _FEATURES
) -> Generator[None, None, PairMeasure]:
    """`measure_pair` in steps, for who must not keep a processor longer than one of them takes."""
    height, width = left.shape
    first, second = yield from _match_corners(left, right, features)
    yield
    smooth_left, smooth_right = (cv2.blur(eye, (_PATCH_PX, _PATCH_PX)) for eye in (left, right))
    even = _with_levels_of(
        right, _sample(smooth_left, first), _sample(smooth_right, second), smooth_left
    )
    first, second = _refine(left, even, first, second)
    yield
    detail_left, detail_right = (
        cv2.blur(cv2.absdiff(eye, cv2.blur(eye, (3, 3))).astype(np.float32), (11, 11))
        for eye in (left, right)
    )
    mean_left, spread_left = _cells(left)
    mean_right, spread_right = _cells(right)
    return PairMeasure(
        left=first,
        right=second,
        level_left=_sample(smooth_left, first),
        level_right=_sample(smooth_right, second),
        detail_left=_sample(detail_left, first),
        detail_right=_sample(detail_right, second),
        mean_left=mean_left,
        mean_right=mean_right,
        spread_left=spread_left,
        spread_right=spread_right,
        saturated_left=_saturated(left),
        saturated_right=_saturated(right),
        identical=bool(np.array_equal(left, right) and np.ptp(left) > 0),
        width=width,
        height=height,
    )


def fit_rows(measures: Sequence[PairMeasure], scale: float = 1.0) -> RowFit | None:
    """Fit offset, tilt and stretch of the rows to the matches of several frames.

    Args:
        measures: all of one picture size.
        scale: pixels of the original picture per pixel of the measured one.

    Returns:
        None with fewer than `FEWEST_MATCHES` matches.
    """
    if not measures or sum(len(m.left) for m in measures) < FEWEST_MATCHES:
        return None
    points = np.concatenate([m.right for m in measures]).astype(np.float64)
    error = np.concatenate([m.row_error_px for m in measures]).astype(np.float64)
    x = points[:, 0] - (measures[0].width - 1) / 2
    y = points[:, 1] - (measures[0].height - 1) / 2
    design = np.stack([np.ones_like(x), x, y], axis=1)
    weights = np.ones_like(error)
    for _ in range(12):
        weighted = design * weights[:, None]
        solution = np.linalg.lstsq(weighted.T @ design, weighted.T @ error, rcond=None)[0]
        residual = error - design @ solution
        sigma = max(_robust_sigma(residual), 1e-3)
        # Tukey's weights: what lies beyond 4.7 sigma has no say.
        weights = np.clip(1 - (residual / (4.685 * sigma)) ** 2, 0, None) ** 2
    covariance = np.linalg.pinv((design * weights[:, None]).T @ design) * sigma**2
    return RowFit(
        offset_px=_median_estimate(error).times(scale),
        scatter_px=sigma * scale,
        tilt=Estimate(float(solution[1]), float(np.sqrt(max(covariance[1, 1], 0)))),
        stretch=Estimate(float(solution[2]), float(np.sqrt(max(covariance[2, 2], 0)))),
        matches=len(error),
    )


def fit_levels(measures: Sequence[PairMeasure]) -> LevelFit | None:
    """Fit gain and offset of the right eye's brightness against the left one's.

    The quantiles of the two are compared, which treats both eyes alike. Patches at the ends of the
    range say nothing. Returns None when there are too few.
    """
    if not measures:
        return None
    left = np.concatenate([m.level_left for m in measures]).astype(np.float64)
    right = np.concatenate([m.level_right for m in measures]).astype(np.float64)
    inside = (np.minimum(left, right) > 4) & (np.maximum(left, right) < 245)
    if np.count_nonzero(inside) < FEWEST_MATCHES:
        return None
    left, right = left[inside], right[inside]
    steps = np.linspace(10, 90, 17)
    levels_left, levels_right = np.percentile(left, steps), np.percentile(right, steps)
    if np.ptp(levels_left) > 20:
        gain, offset = np.polyfit(levels_left, levels_right, 1)
    else:  # a narrow range cannot tell a gain from an offset
        gain, offset = np.median(right) / np.median(left), 0.0
    return LevelFit(
        gain=float(gain),
        offset=float(offset),
        difference=_median_estimate(right - left),
        middle=float(np.median(left)),
    )


def sharpness_ratio(measures: Sequence[PairMeasure], gain: float = 1.0) -> Estimate | None:
    """Fine detail of the right eye over that of the left one, around the matches.

    Args:
        measures: of one camera.
        gain: contrast of the right eye over that of the left one, which is no blur.
    """
    if not measures:
        return None
    left = np.concatenate([m.detail_left for m in measures]).astype(np.float64)
    right = np.concatenate([m.detail_right for m in measures]).astype(np.float64)
    enough = np.minimum(left, right) > 0.3
    if np.count_nonzero(enough) < FEWEST_MATCHES:
        return None
    logarithm = _median_estimate(np.log(right[enough] / left[enough] / max(gain, 1e-3)))
    ratio = math.exp(logarithm.value)
    return Estimate(ratio, ratio * logarithm.error)


def scene_changes(measures: Sequence[PairMeasure]) -> bool:
    """Whether enough frames show different things for a blocked lens to stand out."""
    if len(measures) < FEWEST_FRAMES_BLOCKED:
        return False
    change = [
        np.median(np.stack([getattr(m, name) for m in measures]).std(axis=0))
        for name in ('mean_left', 'mean_right')
    ]
    return bool(max(change) > _LEAST_CHANGE)


def blocked_regions(measures: Sequence[PairMeasure]) -> list[BlockedRegion]:
    """Parts of one eye that stayed empty in all frames while the other eye saw something there.

    The caller makes sure that the scene changes. A wall without texture is empty in both eyes and
    no finding; a sky that is white through and through neither.
    """
    # The fullest each cell has ever been, and what it is as a rule, in grey levels.
    spreads_left = np.stack([m.spread_left for m in measures])
    spreads_right = np.stack([m.spread_right for m in measures])
    left, usual_left = spreads_left.max(axis=0), np.median(spreads_left, axis=0)
    right, usual_right = spreads_right.max(axis=0), np.median(spreads_right, axis=0)
    level_left = np.stack([m.mean_left for m in measures]).mean(axis=0)
    level_right = np.stack([m.mean_right for m in measures]).mean(axis=0)
    regions = []
    # A point of the left eye lies to its left in the right eye, and the other way round.
    for eye, own, other, level, level_other, before, after in (
        ('left', left, usual_right, level_left, level_right, _REACH_CELLS, 1),
        ('right', right, usual_left, level_right, level_left, 1, _REACH_CELLS),
    ):
        # An eye with less exposure is dimmer and flatter everywhere, which is no dirt.
        dimmer = min(1.0, float(np.median(level)) / max(float(np.median(level_other)), 1.0))
        seen_by_other = dimmer * _smallest_along_rows(other, before, after)
        darkest_of_other = dimmer * _smallest_along_rows(level_other, before, after)
        # What stands at the outer rim of one eye may lie outside of the other's picture, so that
        # only black says something there: no wall stays that dark.
        column = np.arange(GRID[1])
        shared = (column >= _REACH_CELLS) if eye == 'left' else (column < GRID[1] - _REACH_CELLS)
        contradicted = shared & (seen_by_other > _ALIVE_TO_DEAD * np.maximum(own, 0.5))
        contradicted |= (shared | (level < _BLACK)) & (darkest_of_other > level + _DARKER_BY)
        dead = (own < _DEAD_SPREAD) & contradicted & (level < _SATURATED_CELL)
        count, labels, stats, _ = cv2.connectedComponentsWithStats(
            dead.astype(np.uint8), connectivity=4
        )
        for label in range(1, count):
            x, y, width, height, area = (int(value) for value in stats[label])
            if area >= _FEWEST_BLOCKED_CELLS:
                rows, columns = GRID
                regions.append(
                    BlockedRegion(
                        eye,
                        x / columns,
                        y / rows,
                        width / columns,
                        height / rows,
                        area / (rows * columns),
                        float(level[labels == label].mean()),
                    )
                )
    return sorted(regions, key=lambda region: -region.share)


def _match_corners(
    left: Grey, right: Grey, features: int
) -> Generator[None, None, tuple[Floats, Floats]]:
    """Corners that are each other's best match within the band of rows, (N, 2) each; in steps."""
    nothing = np.empty((0, 2), np.float32)
    detector = cv2.ORB_create(nfeatures=features, fastThreshold=10)
    found = []
    for eye in (left, right):
        corners, descriptors = detector.detectAndCompute(eye, None)
        if descriptors is None or len(corners) < 2:
            return nothing, nothing
        found.append((np.array([corner.pt for corner in corners], np.float32), descriptors))
        yield
    (first, described), (second, described_right) = found
    distance = _differing_bits(described, described_right)
    band = max(_LEAST_BAND_PX, _ROW_BAND * left.shape[0])
    distance[np.abs(first[:, None, 1] - second[None, :, 1]) > band] = 1000
    best = distance.argmin(axis=1)
    rows = np.arange(len(first))
    mutual = distance.argmin(axis=0)[best] == rows
    rows = rows[mutual & (distance[rows, best] < _HAMMING_LIMIT)]
    best = best[rows]
    # The runner-up must be another place, not the same corner in another octave.
    chosen = second[best]
    away = np.abs(second[:, 0] - chosen[:, :1]) > _SAME_CORNER_PX
    away |= np.abs(second[:, 1] - chosen[:, 1:]) > _SAME_CORNER_PX
    runner_up = np.where(away, distance[rows], 1000).min(axis=1)
    good = distance[rows, best] < _RATIO * runner_up
    return first[rows[good]], second[best[good]]


def _differing_bits(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> Floats:
    """Hamming distances of binary descriptors (N, B) and (M, B), (N, M), as one product."""
    signs = [2 * np.unpackbits(bits, axis=1).astype(np.float32) - 1 for bits in (first, second)]
    return (signs[0].shape[1] - signs[0] @ signs[1].T) / 2


def _with_levels_of(
    right: Grey, levels_left: Floats, levels_right: Floats, smooth_left: Grey
) -> Grey:
    """The right picture in the brightness of the left one, as the optical flow assumes."""
    if len(levels_left) >= FEWEST_MATCHES // 4 and levels_right.std() > 2:
        gain = float(levels_left.std() / levels_right.std())
        offset = float(np.median(levels_left) - gain * np.median(levels_right))
    else:
        gain, offset = 1.0, float(smooth_left.mean()) - float(right.mean())
    if abs(gain - 1) < 0.02 and abs(offset) < 2:
        return right
    ramp = np.arange(256, dtype=np.float32) * gain + offset
    return cv2.LUT(right, np.clip(ramp, 0, 255).astype(np.uint8))


def _refine(left: Grey, right: Grey, first: Floats, second: Floats) -> tuple[Floats, Floats]:
    """Move the matches of the right eye to a fraction of a pixel; drop what does not come back."""
    if not len(first):
        return first, second
    window = {'winSize': (13, 13), 'maxLevel': 1, 'flags': cv2.OPTFLOW_USE_INITIAL_FLOW}
    there, found, _ = cv2.calcOpticalFlowPyrLK(left, right, first, second.copy(), **window)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(right, left, there, first.copy(), **window)
    good = (found.ravel() == 1) & (found_back.ravel() == 1)
    good &= np.linalg.norm(back - first, axis=1) < _ROUND_TRIP_PX
    good &= np.linalg.norm(there - second, axis=1) < _REFINEMENT_PX
    return first[good], there[good]


def _sample(picture: NDArray[np.generic], points: Floats) -> Floats:
    """Values of a picture at points, the nearest pixel each."""
    height, width = picture.shape
    x = np.clip(np.rint(points[:, 0]).astype(int), 0, width - 1)
    y = np.clip(np.rint(points[:, 1]).astype(int), 0, height - 1)
    return picture[y, x].astype(np.float32)


def _cells(picture: Grey) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the grid's cells, noise averaged away first."""
    rows, columns = GRID
    fine = cv2.resize(picture, (columns * 8, rows * 8), interpolation=cv2.INTER_AREA)
    blocks = fine.reshape(rows, 8, columns, 8).astype(np.float32)
    return blocks.mean(axis=(1, 3)), blocks.std(axis=(1, 3))


def _smallest_along_rows(cells: Floats, before: int, after: int) -> Floats:
    """Per cell the smallest value from `before` cells to the left to `after` to the right."""
    padded = np.pad(cells, ((0, 0), (before, after)), mode='edge')
    return np.stack(
        [padded[:, start : start + cells.shape[1]] for start in range(before + after + 1)]
    ).min(axis=0)


def _saturated(picture: Grey) -> float:
    counts = np.bincount(picture.reshape(-1), minlength=256)
    return float(counts[:2].sum() + counts[254:].sum()) / max(picture.size, 1)


def _median_estimate(values: NDArray[np.float64]) -> Estimate:
    """The median; its error is that of normally distributed values."""
    median = float(np.median(values))
    return Estimate(median, 1.253 * _robust_sigma(values - median) / math.sqrt(len(values)))


def _robust_sigma(residual: NDArray[np.float64]) -> float:
    """Standard deviation by the median of absolute values."""
    return 1.4826 * float(np.median(np.abs(residual))) if len(residual) else 0.0
