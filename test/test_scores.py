# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scores without truth, on maps whose faults are known."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from stereo_kd_ros.scores import flicker_px, left_right_percent, photometric_error, planarity

HEIGHT, WIDTH, DISPARITY_PX = 64, 128, 8


def _scene(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(
        0, 256, (HEIGHT, WIDTH + DISPARITY_PX, 3), np.uint8
    )


def _plane(a: float = 0.0, b: float = 0.0, c: float = float(DISPARITY_PX)) -> np.ndarray:
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    return (a * columns + b * rows + c).astype(np.float32)


def test_views_that_agree_have_no_left_right_error() -> None:
    # d(x) = 0.1 x + 4 in the left view puts x at x_r = 0.9 x - 4, so d_r = (0.1 x_r + 4) / 0.9.
    _, columns = np.mgrid[:HEIGHT, :WIDTH]
    right = ((0.1 * columns + 4) / 0.9).astype(np.float32)
    assert left_right_percent(_plane(a=0.1, c=4), right) == 0.0


def test_a_quarter_that_disagrees_is_a_quarter() -> None:
    left, right = _plane(), _plane()
    right[: HEIGHT // 4] += 3
    assert left_right_percent(left, right) == pytest.approx(25.0)
    # Pixels without an answer in either view do not count.
    left[: HEIGHT // 2] = np.nan
    assert left_right_percent(left, right) == 0.0
    assert math.isnan(left_right_percent(np.full_like(left, np.nan), right))


def test_the_right_disparity_explains_the_picture() -> None:
    scene = _scene()
    left, right = scene[:, :WIDTH], scene[:, DISPARITY_PX:]

    assert photometric_error(left, right, _plane()) == pytest.approx(0, abs=1e-3)
    assert photometric_error(left, right, _plane(c=DISPARITY_PX + 3)) > 20
    assert math.isnan(photometric_error(left, right, np.full((HEIGHT, WIDTH), np.nan, np.float32)))


def test_a_difference_of_exposure_is_no_error() -> None:
    scene = np.clip(_scene(), 0, 200)
    left, right = scene[:, :WIDTH], scene[:, DISPARITY_PX:] + np.uint8(30)
    assert photometric_error(left, right, _plane()) < 1.0


def test_planes_are_flat_and_noise_is_not() -> None:
    floor_and_wall = np.maximum(_plane(c=6.0), _plane(b=0.5, c=-12.0))
    rms_px, share = planarity(floor_and_wall)
    # Where the planes meet, points of one lie within reach of the other.
    assert rms_px < 0.3
    assert share > 0.95

    rng = np.random.default_rng(0)
    noisy = floor_and_wall + rng.normal(0, 0.5, floor_and_wall.shape).astype(np.float32)
    assert planarity(noisy)[0] == pytest.approx(0.5, abs=0.1)
    assert planarity(noisy) == planarity(noisy)
    rms_px, share = planarity(rng.uniform(0, 150, (HEIGHT, WIDTH)).astype(np.float32))
    assert share < 0.5
    assert math.isnan(planarity(np.full((HEIGHT, WIDTH), np.nan, np.float32))[0])


def test_a_map_that_moves_with_the_picture_does_not_flicker() -> None:
    soft = cv2.GaussianBlur(_scene(), (0, 0), 3)
    before, after = soft[:, :WIDTH], soft[:, 4 : WIDTH + 4]  # the picture moves 4 px to the left
    slope = _plane(a=0.25, c=2.0)
    moved = _plane(a=0.25, c=2.0 + 4 * 0.25)

    assert flicker_px(moved, slope, after, before) < 0.25
    assert flicker_px(moved + 2, slope, after, before) == pytest.approx(2.0, abs=0.3)
    assert math.isnan(flicker_px(np.full_like(moved, np.nan), slope, after, before))
