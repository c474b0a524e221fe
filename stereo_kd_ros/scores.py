# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How good a disparity map looks when nobody knows the truth.

None of these is an accuracy; together they tell a model that works on a camera from one that does
not. All take disparities as x_left - x_right, float32 (H, W) in pixels, NaN where there is none.

    left-right       share of pixels whose right-view disparity disagrees by more than 1 px  [%]
    photometric      grey levels between the left image and the right one warped onto it
    planarity        how far the two largest planes are from flat                           [px]
    flicker          change since the last frame, carried along by optical flow             [px]
"""

from __future__ import annotations

import math

import cv2
import numpy as np

_LEFT_RIGHT_LIMIT_PX = 1.0

# RANSAC over a coarse grid; seeded, so that a report is the same every time.
_PLANE_GRID_PX = 8
_PLANE_TRIALS = 150
_PLANE_LIMIT_PX = 1.5
_PLANE_MIN_SHARE = 0.1

# Flow is trusted where both frames look alike after it.
_FLOW_LIMIT_GREY = 8.0


def left_right_percent(disparity: np.ndarray, disparity_right: np.ndarray) -> float:
    """Share of pixels that both views see but place differently, in percent; NaN without any.

    Args:
        disparity: Of the left view.
        disparity_right: Of the right view, x_left - x_right too.
    """
    seen_from_right = _sample_at_match(disparity_right, disparity)
    both = np.isfinite(seen_from_right) & np.isfinite(disparity)
    if not both.any():
        return math.nan
    apart = np.abs(disparity - seen_from_right)[both] > _LEFT_RIGHT_LIMIT_PX
    return float(100.0 * apart.mean())


def photometric_error(left: np.ndarray, right: np.ndarray, disparity: np.ndarray) -> float:
    """Mean absolute difference in grey levels, a difference of exposure taken out; NaN if blind.

    Args:
        left: RGB uint8 (H, W, 3).
        right: Like left.
        disparity: Of the left view.
    """
    grey_left, grey_right = (_grey(image) for image in (left, right))
    warped = _sample_at_match(grey_right, disparity)
    difference = (grey_left - warped)[np.isfinite(warped)]
    if not difference.size:
        return math.nan
    return float(np.abs(difference - np.median(difference)).mean())


def planarity(disparity: np.ndarray) -> tuple[float, float]:
    """How flat the two largest planes are: (RMS distance in px, their share of the pixels).

    A plane in space is a plane in (x, y, disparity), so ground and walls of a good map are flat.
    (NaN, 0.0) when no plane holds a tenth of the pixels.
    """
    rows, columns = np.mgrid[
        : disparity.shape[0] : _PLANE_GRID_PX, : disparity.shape[1] : _PLANE_GRID_PX
    ]
    values = disparity[rows, columns].astype(np.float64)
    known = np.isfinite(values)
    points = np.stack([columns[known], rows[known], np.ones(known.sum())], axis=1).astype(float)
    values = values[known]
    total, squares, counted = values.size, 0.0, 0
    rng = np.random.default_rng(0)
    for _ in range(2):
        if values.size < 3 or total == 0:
            break
        inside = _largest_plane(points, values, rng)
        if inside.sum() < _PLANE_MIN_SHARE * total:
            break
        plane, *_ = np.linalg.lstsq(points[inside], values[inside], rcond=None)
        squares += float(np.square(points[inside] @ plane - values[inside]).sum())
        counted += int(inside.sum())
        points, values = points[~inside], values[~inside]
    if not counted:
        return math.nan, 0.0
    return math.sqrt(squares / counted), counted / total


def flicker_px(
    disparity: np.ndarray, previous: np.ndarray, left: np.ndarray, previous_left: np.ndarray
) -> float:
    """Mean change of disparity along optical flow, in px; NaN when nothing can be followed.

    The camera's own motion changes disparities too, so compare models on one bag, not bags.
    """
    grey, previous_grey = (
        cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (left, previous_left)
    )
    finder = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    flow = finder.calc(grey, previous_grey, None)
    height, width = grey.shape
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    map_x, map_y = columns + flow[..., 0], rows + flow[..., 1]
    before = _remap(previous, map_x, map_y)
    looked = _remap(previous_grey.astype(np.float32), map_x, map_y)
    with np.errstate(invalid='ignore'):
        followed = np.abs(looked - grey) < _FLOW_LIMIT_GREY
    change = np.abs(disparity - before)[followed]
    change = change[np.isfinite(change)]
    return float(change.mean()) if change.size else math.nan


def _largest_plane(points: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    picks = rng.integers(0, len(values), (_PLANE_TRIALS, 3))
    triangles = points[picks]
    solvable = np.abs(np.linalg.det(triangles)) > 1e-6
    if not solvable.any():
        return np.zeros(len(values), bool)
    planes = np.linalg.solve(triangles[solvable], values[picks][solvable][..., np.newaxis])[..., 0]
    squares = np.square(points @ planes.T - values[:, np.newaxis])
    # Counting alone likes a plane that cuts a corner between two real ones; distances tell (MSAC).
    cost = np.minimum(squares, _PLANE_LIMIT_PX**2).sum(axis=0)
    return squares[:, int(cost.argmin())] < _PLANE_LIMIT_PX**2


def _sample_at_match(right_map: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """Values of a right-view map where each left pixel finds its match; NaN outside."""
    height, width = disparity.shape
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    return _remap(right_map, columns - disparity, rows)


def _remap(values: np.ndarray, map_x: np.ndarray, map_y: np.ndarray) -> np.ndarray:
    height, width = values.shape
    # NaN coordinates are undefined for OpenCV: send them outside of the image instead.
    inside = (map_x >= 0) & (map_x <= width - 1) & (map_y >= 0) & (map_y <= height - 1)
    sampled = cv2.remap(
        values.astype(np.float32),
        np.where(inside, map_x, 0).astype(np.float32),
        np.where(inside, map_y, 0).astype(np.float32),
        cv2.INTER_LINEAR,
    )
    sampled[~inside] = np.nan
    return sampled


def _grey(image: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
