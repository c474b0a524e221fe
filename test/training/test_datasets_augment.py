# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""After any change of a pair, the right view warped by the disparity still shows the left.

The pairs are computed, not rendered: a smooth texture on a plane whose disparity is
d = a + b x + c y in the left view, so that both views are exact samples of one function.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_kd_training.datasets.augment import (
    Augmentation,
    AugmentedDataset,
    colour,
    crop,
    flip_vertical,
    mirror,
    occlusion_patches,
    pad_to,
    random_crop,
    right_view_disparity,
    scale,
    sensor_noise,
    y_jitter,
)
from stereo_kd_training.datasets.base import DatasetError, StereoSample

HEIGHT, WIDTH = 60, 120
FIGURES = {'deadline': None, 'max_examples': 30}

planes = st.tuples(st.floats(3.0, 20.0), st.floats(-0.12, 0.12), st.floats(-0.15, 0.15))
# Positive everywhere, even after the right window moved.
near_planes = st.tuples(st.floats(18.0, 24.0), st.floats(-0.08, 0.12), st.floats(-0.1, 0.1))
factors = st.floats(0.6, 1.7)
seeds = st.integers(0, 2**32 - 1)


def texture(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth enough for bilinear warping, without a repetition that a wrong d would hit."""
    waves = [
        127 + 60 * np.sin(x / 4.1 + phase) * np.cos(y / 7.3) + 55 * np.sin(x / 17.7 + y / 11.3)
        for phase in (0.0, 0.7, 1.9)
    ]
    return np.stack(waves, axis=-1)


def plane_pair(a: float, b: float, c: float) -> StereoSample:
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    disparity = a + b * x + c * (y - HEIGHT / 2)
    # x_right = x - d(x, y), solved for the left x that a right pixel shows.
    x_seen = (x + a + c * (y - HEIGHT / 2)) / (1 - b)
    images = [np.rint(texture(column, y)).astype(np.uint8) for column in (x, x_seen)]
    disparity = np.where(disparity > 0, disparity, np.nan).astype(np.float32)
    return StereoSample(images[0], images[1], disparity, 'plane')


def mismatch(sample: StereoSample) -> float:
    """Median grey-level difference of the left view and the right one warped onto it."""
    height, width = sample.disparity.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    target = x - sample.disparity
    seen = np.isfinite(target) & (target >= 0) & (target <= width - 1)
    assert seen.mean() > 0.1, 'nothing left to compare'
    warped = cv2.remap(
        sample.right, np.where(seen, target, 0).astype(np.float32), y, cv2.INTER_LINEAR
    )
    difference = np.abs(warped.astype(np.float32) - sample.left).mean(axis=-1)
    return float(np.median(difference[seen]))


def off_by_one(sample: StereoSample) -> StereoSample:
    return StereoSample(sample.left, sample.right, sample.disparity + 1.5, sample.name)


@settings(**FIGURES)
@given(planes)
def test_the_measure_can_fail(plane) -> None:
    pair = plane_pair(*plane)
    assert mismatch(pair) < 1.5
    assert mismatch(off_by_one(pair)) > 4


@settings(**FIGURES)
@given(planes, seeds, st.integers(0, 6))
def test_crop(plane, seed: int, max_right_shift: int) -> None:
    pair = plane_pair(*plane)
    cut = random_crop(pair, np.random.default_rng(seed), 40, 90, max_right_shift)
    assert cut.left.shape == cut.right.shape == (40, 90, 3)
    assert mismatch(cut) < 1.5
    assert not (cut.disparity <= 0).any()


def test_shifted_right_window_adds_the_shift() -> None:
    pair = plane_pair(10.0, 0.0, 0.0)
    np.testing.assert_allclose(crop(pair, 3, 8, 20, 50, right_shift=5).disparity, 15.0)
    np.testing.assert_allclose(crop(pair, 3, 8, 20, 50, right_shift=-5).disparity, 5.0)
    beyond = crop(plane_pair(3.0, 0.0, 0.0), 3, 8, 20, 50, right_shift=-5)
    assert np.isnan(beyond.disparity).all()


@pytest.mark.parametrize('window', [(-1, 0, 20, 20, 0), (50, 0, 20, 20, 0), (0, 100, 20, 20, 5)])
def test_crop_refuses_a_window_outside(window) -> None:
    with pytest.raises(DatasetError, match=r'plane.*leaves the 120x60 picture'):
        crop(plane_pair(10, 0, 0), *window)


def test_padding_is_unknown() -> None:
    padded = pad_to(plane_pair(10, 0, 0), 70, 100)
    assert padded.left.shape == (70, WIDTH, 3)
    assert np.isnan(padded.disparity[HEIGHT:]).all()
    assert np.isfinite(padded.disparity[:HEIGHT]).all()


@settings(**FIGURES)
@given(planes, factors, factors)
def test_scale(plane, factor_x: float, factor_y: float) -> None:
    pair = plane_pair(*plane)
    scaled = scale(pair, factor_x, factor_y)
    assert scaled.disparity.shape == (round(HEIGHT * factor_y), round(WIDTH * factor_x))
    assert mismatch(scaled) < 3
    assert mismatch(scaled) < mismatch(off_by_one(scaled))


@settings(**FIGURES)
@given(planes, factors, factors)
def test_scaled_plane_is_the_scaled_plane(plane, factor_x: float, factor_y: float) -> None:
    a, b, c = plane
    scaled = scale(plane_pair(*plane), factor_x, factor_y).disparity
    height, width = scaled.shape
    # Pixel centres keep their place: x + 0.5 = (x' + 0.5) / ratio.
    y, x = np.mgrid[:height, :width] + 0.5
    x, y = x * WIDTH / width - 0.5, y * HEIGHT / height - 0.5
    expected = (a + b * x + c * (y - HEIGHT / 2)) * width / WIDTH
    inner = np.isfinite(scaled[2:-2, 2:-2])
    error = np.abs(scaled - expected)[2:-2, 2:-2][inner]
    # Where the plane leaves the positive range, the nearest known pixel stands in.
    assert np.quantile(error, 0.9) < 0.02
    assert error.max() < 0.5


def test_scaling_does_not_blend_two_surfaces() -> None:
    pair = plane_pair(5.0, 0.0, 0.0)
    pair.disparity[:, 61:] = 30.0
    for factor in (0.7, 1.6):
        scaled = scale(pair, factor, 1.0).disparity
        ratio = scaled.shape[1] / WIDTH
        values = np.unique(np.round(scaled / ratio, 3))
        np.testing.assert_array_equal(values, [5.0, 30.0])


def test_scaling_does_not_let_the_unknown_leak() -> None:
    pair = plane_pair(8.0, 0.0, 0.0)
    pair.disparity[20:30, 40:60] = np.nan
    scaled = scale(pair, 1.5, 1.5).disparity
    np.testing.assert_allclose(scaled[np.isfinite(scaled)], 12.0, rtol=1e-6)
    assert np.isnan(scaled).sum() == pytest.approx(200 * 1.5**2, rel=0.1)


@settings(**FIGURES)
@given(planes, factors, seeds)
def test_sparse_truth_stays_at_its_place(plane, factor: float, seed: int) -> None:
    pair = plane_pair(*plane)
    lonely = np.random.default_rng(seed).random((HEIGHT, WIDTH)) > 0.05
    pair.disparity[lonely] = np.nan
    before = int(pair.valid.sum())
    scaled = scale(pair, factor, factor)
    assert 0.5 * min(1, factor) * before < scaled.valid.sum() <= before
    a, b, c = plane
    row, column = np.nonzero(scaled.valid)
    ratio_x, ratio_y = (scaled.disparity.shape[i] / (WIDTH, HEIGHT)[1 - i] for i in (1, 0))
    x, y = (column + 0.5) / ratio_x - 0.5, (row + 0.5) / ratio_y - 0.5
    expected = (a + b * x + c * (y - HEIGHT / 2)) * ratio_x
    # A point moves by at most half a new pixel in each direction.
    tolerance = ratio_x * (abs(b) / ratio_x + abs(c) / ratio_y) * 0.5 + 0.02
    assert np.abs(scaled.disparity[row, column] - expected).max() < tolerance


def test_collision_keeps_the_nearer_point() -> None:
    pair = plane_pair(5.0, 0.0, 0.0)
    pair.disparity[:] = np.nan
    pair.disparity[0, :2] = (7.0, 4.0)
    scaled = scale(pair, 0.5, 1.0).disparity
    assert scaled[0, 0] == 3.5
    assert np.isfinite(scaled).sum() == 1


def test_scale_refuses_nothing_left() -> None:
    with pytest.raises(DatasetError, match='empty'):
        scale(plane_pair(5, 0, 0), 0.001, 1)


@settings(**FIGURES)
@given(planes)
def test_mirror_swaps_the_eyes(plane) -> None:
    pair = plane_pair(*plane)
    mirrored = mirror(pair)
    assert mismatch(mirrored) < 1.5
    np.testing.assert_array_equal(mirrored.left, pair.right[:, ::-1])
    twice = mirror(mirrored)
    np.testing.assert_array_equal(twice.left, pair.left)
    np.testing.assert_array_equal(twice.disparity, pair.disparity)


def test_mirror_takes_the_sets_own_right_truth() -> None:
    pair = plane_pair(5.0, 0.0, 0.0)
    own = np.full((HEIGHT, WIDTH), 5.5, np.float32)
    mirrored = mirror(StereoSample(pair.left, pair.right, pair.disparity, 'own', own))
    np.testing.assert_array_equal(mirrored.disparity, own)


@settings(**FIGURES)
@given(planes)
def test_right_view_of_a_plane(plane) -> None:
    a, b, c = plane
    right = right_view_disparity(plane_pair(*plane).disparity)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    x_seen = (x + a + c * (y - HEIGHT / 2)) / (1 - b)
    known = np.isfinite(right)
    assert known.mean() > 0.3
    np.testing.assert_allclose(right[known], (x_seen - x)[known], atol=1e-3)


def test_right_view_hides_the_background_behind_the_foreground() -> None:
    disparity = np.full((1, 40), 2.0, np.float32)
    disparity[0, 20:30] = 9.0
    right = right_view_disparity(disparity)[0]
    # The foreground 20..29 lands on 11..20, over the background that lies there.
    np.testing.assert_array_equal(right[11:21], 9.0)
    # The background left of it (0..19) lands on -2..17, right of it (30..39) on 28..37.
    np.testing.assert_array_equal(right[:11], 2.0)
    assert np.isnan(right[21:28]).all()
    np.testing.assert_array_equal(right[28:38], 2.0)
    assert np.isnan(right[38:]).all()


def test_right_view_of_isolated_points() -> None:
    disparity = np.full((2, 30), np.nan, np.float32)
    disparity[1, 20] = 5.25
    right = right_view_disparity(disparity)
    assert right[1, 15] == 5.25
    assert np.isfinite(right).sum() == 1


@settings(**FIGURES)
@given(planes)
def test_flip_vertical(plane) -> None:
    assert mismatch(flip_vertical(plane_pair(*plane))) < 1.5


@pytest.mark.parametrize('change', [colour, sensor_noise, y_jitter, occlusion_patches])
def test_what_changes_the_look_leaves_the_truth(change) -> None:
    pair = plane_pair(9.0, 0.05, 0.02)
    before = [pair.left.copy(), pair.right.copy(), pair.disparity.copy()]
    changed = change(pair, np.random.default_rng(0))
    np.testing.assert_array_equal(changed.disparity, pair.disparity)
    assert (changed.right != pair.right).any()
    assert changed.left.dtype == changed.right.dtype == np.uint8
    for image, original in zip((pair.left, pair.right, pair.disparity), before):
        np.testing.assert_array_equal(image, original)


def test_symmetric_colour_keeps_the_views_alike() -> None:
    pair = plane_pair(9.0, 0.0, 0.0)
    same = colour(pair, np.random.default_rng(2), asymmetric_probability=0.0)
    other = colour(pair, np.random.default_rng(2), asymmetric_probability=1.0)
    assert mismatch(same) < 2
    assert mismatch(other) > mismatch(same)


def test_occlusion_patches_touch_the_right_view_only() -> None:
    pair = plane_pair(9.0, 0.0, 0.0)
    changed = occlusion_patches(pair, np.random.default_rng(0), sizes_px=(5, 10))
    assert changed.left is pair.left
    touched = (changed.right != pair.right).any(axis=-1)
    assert 0 < touched.sum() <= 3 * 100
    assert len(np.unique(changed.right[touched], axis=0)) == 1


@settings(**FIGURES)
@given(near_planes, seeds)
def test_whole_chain_of_geometry(plane, seed: int) -> None:
    chain = Augmentation(
        48,
        96,
        min_log2_scale=-0.4,
        max_right_shift=4,
        mirror_probability=0.5,
        flip_probability=0.5,
        colour_probability=0.0,
        noise_probability=0.0,
        y_jitter_probability=0.0,
        occlusion_probability=0.0,
    )
    sample = chain(plane_pair(*plane), np.random.default_rng(seed))
    assert sample.left.shape == sample.right.shape == (48, 96, 3)
    assert sample.disparity.shape == (48, 96)
    assert mismatch(sample) < 3


class Planes:
    """Three pairs, as a data set."""

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> StereoSample:
        return plane_pair(5.0 + index, 0.02, 0.0)


def test_augmented_items_depend_on_seed_epoch_and_index_alone() -> None:
    def items(seed: int, epoch: int, order: list[int]) -> dict[int, StereoSample]:
        dataset = AugmentedDataset(Planes(), Augmentation(40, 80), seed)
        dataset.set_epoch(epoch)
        return {index: dataset[index] for index in order}

    first, again = items(1, 0, [0, 1, 2]), items(1, 0, [2, 0, 1])
    for index in range(3):
        np.testing.assert_array_equal(first[index].left, again[index].left)
        np.testing.assert_array_equal(first[index].disparity, again[index].disparity)
    assert (items(1, 1, [0])[0].left != first[0].left).any()
    assert (items(2, 0, [0])[0].left != first[0].left).any()
    dataset = AugmentedDataset(Planes(), Augmentation(40, 80))
    assert len(list(dataset)) == len(dataset) == 3
