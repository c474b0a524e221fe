# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is done to the right picture by hand comes out as a number.

The scenes are generated and level to begin with; every expected value follows from the warp or
the factor that was applied.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.pair_measures import (
    Estimate,
    blocked_regions,
    fit_levels,
    fit_rows,
    measure_pair,
    scene_changes,
    sharpness_ratio,
    to_grey,
)
from stereo_kd_ros.procedural import render_sequence

CAMERA = StereoCamera.from_intrinsics(260.0, 0.12, 320, 240)
CENTRE = ((CAMERA.width - 1) / 2, (CAMERA.height - 1) / 2)


@pytest.fixture(scope='module')
def drive() -> list[tuple[np.ndarray, np.ndarray]]:
    """Five grey pairs of a walk."""
    return [(to_grey(s.left), to_grey(s.right)) for s in render_sequence(3, 5, CAMERA)]


def _warped(picture: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    size = (picture.shape[1], picture.shape[0])
    return cv2.warpAffine(
        picture, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )


@pytest.mark.parametrize('rows', [0.0, 1.0, -2.5, 7.0])
def test_rows_shifted_by_hand(drive, rows: float) -> None:
    shift = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, rows]])
    fit = fit_rows([measure_pair(left, _warped(right, shift)) for left, right in drive])

    assert fit is not None
    assert fit.offset_px.value == pytest.approx(-rows, abs=0.2)
    assert fit.tilt.value == pytest.approx(0.0, abs=1e-3)
    assert fit.stretch.value == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize('degrees', [-1.0, 0.6])
def test_a_turn_is_a_slope_along_x(drive, degrees: float) -> None:
    turn = cv2.getRotationMatrix2D(CENTRE, degrees, 1.0)
    fit = fit_rows([measure_pair(left, _warped(right, turn)) for left, right in drive])

    assert fit is not None
    # Counter-clockwise as seen: what is right of the middle rises by x * sin(angle).
    assert fit.tilt.value == pytest.approx(math.sin(math.radians(degrees)), abs=1e-3)
    assert fit.stretch.value == pytest.approx(0.0, abs=1e-3)


def test_a_longer_lens_is_a_slope_along_y(drive) -> None:
    zoom = cv2.getRotationMatrix2D(CENTRE, 0.0, 1.02)
    fit = fit_rows([measure_pair(left, _warped(right, zoom)) for left, right in drive])

    assert fit is not None
    # y_left - y_right = y_right / 1.02 - y_right.
    assert fit.stretch.value == pytest.approx(1 / 1.02 - 1, abs=1e-3)
    assert fit.tilt.value == pytest.approx(0.0, abs=1e-3)


def test_the_scale_of_a_reduced_picture_is_undone(drive) -> None:
    shift = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
    fit = fit_rows([measure_pair(left, _warped(right, shift)) for left, right in drive], scale=3.0)

    assert fit is not None
    assert fit.offset_px.value == pytest.approx(-6.0, abs=0.3)


def test_gain_and_offset_of_one_eye(drive) -> None:
    before = fit_levels([measure_pair(left, right) for left, right in drive])
    changed = [
        measure_pair(left, np.clip(right * 0.7 + 20, 0, 255).astype(np.uint8))
        for left, right in drive
    ]
    after = fit_levels(changed)

    assert before is not None
    assert after is not None
    # The scene's own eyes differ by a little; what was done to them comes on top.
    assert after.gain == pytest.approx(0.7 * before.gain, rel=0.03)
    assert after.offset == pytest.approx(0.7 * before.offset + 20, abs=4)
    assert fit_rows(changed).offset_px.value == pytest.approx(0.0, abs=0.2)


def test_brightness_alone_is_no_blur(drive) -> None:
    dimmed = [measure_pair(left, (right * 0.6).astype(np.uint8)) for left, right in drive]
    levels = fit_levels(dimmed)

    assert levels is not None
    assert sharpness_ratio(dimmed, levels.gain).value == pytest.approx(1.0, abs=0.1)


def test_blur_of_either_eye(drive) -> None:
    def blurred(picture: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(picture, (0, 0), 1.2)

    right_worse = sharpness_ratio([measure_pair(left, blurred(right)) for left, right in drive])
    left_worse = sharpness_ratio([measure_pair(blurred(left), right) for left, right in drive])

    assert right_worse.value < 0.6
    assert left_worse.value > 1 / 0.6


def test_a_covered_corner_is_found_where_it_is(drive) -> None:
    def covered(picture: np.ndarray) -> np.ndarray:
        picture = picture.copy()
        picture[:80, 240:] = 5  # the upper right quarter of x, a third of y
        return picture

    for eye in ('left', 'right'):
        measures = [
            measure_pair(covered(left), right)
            if eye == 'left'
            else measure_pair(left, covered(right))
            for left, right in drive
        ]
        assert scene_changes(measures)
        regions = blocked_regions(measures)
        assert {region.eye for region in regions} == {eye}
        assert regions[0].x == pytest.approx(0.75, abs=0.06)
        assert regions[0].y == 0.0
        assert sum(region.share for region in regions) == pytest.approx(1 / 12, abs=0.03)
        assert regions[0].level == pytest.approx(5, abs=1)


@pytest.mark.parametrize('seed', [16, 19])
def test_a_plain_wall_at_the_outer_rim_is_no_dirt(seed: int) -> None:
    # These walks have a wall in one eye that the other eye never sees.
    camera = StereoCamera.from_intrinsics(200.0, 0.12, 240, 180)
    samples = render_sequence(seed, 8, camera)
    measures = [measure_pair(to_grey(s.left), to_grey(s.right)) for s in samples]

    assert scene_changes(measures)
    assert blocked_regions(measures) == []


def test_a_smear_in_the_middle_is_found(drive) -> None:
    def smeared(picture: np.ndarray) -> np.ndarray:
        picture = picture.copy()
        picture[64:160, 112:208] = cv2.GaussianBlur(picture, (0, 0), 40)[64:160, 112:208]
        return picture

    regions = blocked_regions([measure_pair(left, smeared(right)) for left, right in drive])

    assert regions
    assert {region.eye for region in regions} == {'right'}
    assert 0.3 < regions[0].x < 0.65
    assert regions[0].level > 40


def test_a_standing_scene_cannot_show_a_blocked_lens(drive) -> None:
    assert not scene_changes([measure_pair(*drive[0])] * 6)


def test_matches_agree_with_the_truth() -> None:
    sample = next(iter(render_sequence(5, 1, CAMERA)))
    measure = measure_pair(to_grey(sample.left), to_grey(sample.right))
    x, y = np.rint(measure.left).astype(int).T
    # A corner on a rim belongs to the near or the far side: either disparity is right.
    window = np.ones((13, 13), np.uint8)  # as large as what is compared
    nearest = cv2.dilate(sample.disparity, window)[y, x]
    farthest = cv2.erode(sample.disparity, window)[y, x]
    error = np.maximum(farthest - measure.disparity_px, measure.disparity_px - nearest)

    assert len(error) > 100
    assert np.median(np.abs(measure.disparity_px - sample.disparity[y, x])) < 0.3
    assert np.mean(error > 0.5) < 0.03


@pytest.mark.parametrize('level', [0, 128, 255])
def test_a_picture_without_texture_matches_nothing(level: int) -> None:
    flat = np.full((60, 80), level, np.uint8)
    measure = measure_pair(flat, flat)

    assert len(measure.left) == 0
    assert not measure.identical
    assert fit_rows([measure]) is None
    assert fit_levels([measure]) is None
    assert sharpness_ratio([measure]) is None


def test_an_estimate_is_certain_only_beyond_its_error() -> None:
    assert Estimate(-2.0, 0.4).certainly_beyond(1.0)
    assert not Estimate(-2.0, 0.6).certainly_beyond(1.0)
