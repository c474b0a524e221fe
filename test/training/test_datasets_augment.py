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
    Window,
    blotched,
    hide_patches,
    jitter_colour,
    mirror,
    right_view_disparity,
    scale_disparity,
    sensor_noise,
    shift_rows,
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


def augmented(pair: StereoSample, chain: Augmentation, size, seed: int) -> StereoSample:
    """A crop of `size` (height, width)."""
    rng = np.random.default_rng(seed)
    cut = chain(pair.left, pair.right, pair.disparity, *size, rng)
    return StereoSample(cut.left, cut.right, cut.disparity, pair.name)


def windowed(pair: StereoSample, window: Window) -> StereoSample:
    return StereoSample(
        window.image(pair.left),
        window.image(pair.right, right=True),
        window.disparity(pair.disparity),
        pair.name,
    )


def scaled_to(pair: StereoSample, factor_x: float, factor_y: float) -> StereoSample:
    """The whole pair, resized."""
    size = round(HEIGHT * factor_y), round(WIDTH * factor_x)
    return windowed(pair, Window(0, 0, HEIGHT, WIDTH, *size))


PLAIN = {'scale_probability': 0.0, 'colour_probability': 0.0}


def off_by_one(sample: StereoSample) -> StereoSample:
    return StereoSample(sample.left, sample.right, sample.disparity + 1.5, sample.name)


@settings(**FIGURES)
@given(planes)
def test_the_measure_can_fail(plane) -> None:
    pair = plane_pair(*plane)
    assert mismatch(pair) < 1.5
    assert mismatch(off_by_one(pair)) > 4


@settings(**FIGURES)
@given(near_planes, seeds, st.integers(0, 6))
def test_crop(plane, seed: int, max_right_shift: int) -> None:
    chain = Augmentation(**PLAIN, right_shift_px=max_right_shift)
    cut = augmented(plane_pair(*plane), chain, (40, 90), seed)
    assert cut.left.shape == cut.right.shape == (40, 90, 3)
    assert mismatch(cut) < 1.5
    assert not (cut.disparity <= 0).any()


def test_shifted_right_window_adds_the_shift() -> None:
    pair = plane_pair(10.0, 0.0, 0.0)
    for shift, disparity in ((5, 15.0), (-5, 5.0)):
        window = Window(3, 8, 20, 50, 20, 50, shift)
        np.testing.assert_allclose(windowed(pair, window).disparity, disparity)
        assert window.hypotheses(np.float32([0, 10])).tolist() == [shift, disparity]
    magnified = Window(3, 8, 20, 50, 20, 100, 5)
    np.testing.assert_allclose(windowed(pair, magnified).disparity, 30.0)
    assert magnified.hypotheses(np.float32([10])).tolist() == [30.0]
    beyond = windowed(plane_pair(3.0, 0.0, 0.0), Window(3, 8, 20, 50, 20, 50, -5))
    assert np.isnan(beyond.disparity).all()


@settings(**FIGURES)
@given(seeds, st.sampled_from([1, 4, 8]))
def test_windows_stay_inside_and_on_their_cells(seed: int, cell: int) -> None:
    chain = Augmentation(scale_probability=0.5, right_shift_px=30, stretch=0.2)
    window = chain.window((HEIGHT, WIDTH), 40, 80, np.random.default_rng(seed), cell)
    assert window.y % cell == window.x % cell == 0
    assert 0 <= window.y <= HEIGHT - window.source_height
    for x in (window.x, window.x + window.right_shift):
        assert 0 <= x <= WIDTH - window.source_width


def test_a_pair_smaller_than_the_crop_is_named() -> None:
    with pytest.raises(DatasetError, match='120x60 is smaller than the crop 90x64'):
        augmented(plane_pair(5, 0, 0), Augmentation(), (64, 90), 0)


@settings(**FIGURES)
@given(planes, factors, factors)
def test_scale(plane, factor_x: float, factor_y: float) -> None:
    pair = plane_pair(*plane)
    scaled = scaled_to(pair, factor_x, factor_y)
    assert scaled.disparity.shape == (round(HEIGHT * factor_y), round(WIDTH * factor_x))
    assert mismatch(scaled) < 3
    assert mismatch(scaled) < mismatch(off_by_one(scaled))


@settings(**FIGURES)
@given(planes, factors, factors)
def test_scaled_plane_is_the_scaled_plane(plane, factor_x: float, factor_y: float) -> None:
    a, b, c = plane
    scaled = scaled_to(plane_pair(*plane), factor_x, factor_y).disparity
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
        scaled = scaled_to(pair, factor, 1.0).disparity
        ratio = scaled.shape[1] / WIDTH
        values = np.unique(np.round(scaled / ratio, 3))
        np.testing.assert_array_equal(values, [5.0, 30.0])


def test_scaling_does_not_let_the_unknown_leak() -> None:
    pair = plane_pair(8.0, 0.0, 0.0)
    pair.disparity[20:30, 40:60] = np.nan
    scaled = scaled_to(pair, 1.5, 1.5).disparity
    np.testing.assert_allclose(scaled[np.isfinite(scaled)], 12.0, rtol=1e-6)
    assert np.isnan(scaled).sum() == pytest.approx(200 * 1.5**2, rel=0.1)


@settings(**FIGURES)
@given(planes, factors, seeds)
def test_sparse_truth_stays_at_its_place(plane, factor: float, seed: int) -> None:
    pair = plane_pair(*plane)
    lonely = np.random.default_rng(seed).random((HEIGHT, WIDTH)) > 0.05
    pair.disparity[lonely] = np.nan
    before = int(pair.valid.sum())
    scaled = scaled_to(pair, factor, factor)
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
    scaled = scaled_to(pair, 0.5, 1.0).disparity
    assert scaled[0, 0] == 3.5
    assert np.isfinite(scaled).sum() == 1


def test_a_magnified_view_stays_where_its_truth_is_for_points_and_surfaces() -> None:
    """Said to be points, a dense truth is carried as such; both readings agree."""
    disparity = plane_pair(9.0, 0.05, 0.02).disparity
    size = (2 * WIDTH, 2 * HEIGHT)
    points = scale_disparity(disparity, size, sparse=True)
    known = np.isfinite(points)
    assert known.sum() == HEIGHT * WIDTH
    error = np.abs(scale_disparity(disparity, size) - points)[known]
    assert error.max() < 0.1


@settings(**FIGURES)
@given(planes)
def test_mirror_swaps_the_eyes(plane) -> None:
    pair = plane_pair(*plane)
    mirrored = StereoSample(*mirror(pair.left, pair.right, pair.disparity), 'mirrored')
    assert mismatch(mirrored) < 1.5
    np.testing.assert_array_equal(mirrored.left, pair.right[:, ::-1])
    np.testing.assert_array_equal(mirrored.right, pair.left[:, ::-1])


@settings(**FIGURES)
@given(planes)
def test_right_view_of_a_plane(plane) -> None:
    a, b, c = plane
    disparity = plane_pair(*plane).disparity
    right = right_view_disparity(disparity)
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    x_seen = (x + a + c * (y - HEIGHT / 2)) / (1 - b)
    known = np.isfinite(right)
    # Seen from the right is what has a neighbour on either side in the left picture; of those
    # within a hundredth of its rim or of disparity 0 either may be said.
    wider = np.stack([np.floor(x_seen - 0.01), np.ceil(x_seen + 0.01)])
    closer = np.stack([np.floor(x_seen + 0.01), np.ceil(x_seen - 0.01)])
    surely, perhaps = (
        ((column >= 0) & (column < WIDTH) & (a + b * column + c * (y - HEIGHT / 2) > margin)).all(
            axis=0
        )
        for column, margin in ((wider, 0.01), (closer, -0.01))
    )
    assert known[surely].all() and surely.any()
    # A point alone in its row goes to the nearest column.
    alone = np.isfinite(disparity).sum(axis=1, keepdims=True) == 1
    known &= ~alone
    assert not known[~perhaps].any()
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


LOOKS = {
    'reflection': {'reflection_probability': 1.0},
    'colour': {'colour_probability': 1.0},
    'asymmetric': {'asymmetric_probability': 1.0},
    'noise': {'noise_probability': 1.0},
    'blotch': {'blotch_probability': 1.0, 'blotch_sigma': 8.0},
    'y_jitter': {'y_jitter_probability': 1.0},
    'occlusion': {'occlusion_probability': 1.0, 'occlusion_px': (5, 10)},
}


@pytest.mark.parametrize('name', LOOKS)
def test_what_changes_the_look_leaves_the_truth(name) -> None:
    pair = plane_pair(9.0, 0.05, 0.02)
    before = [pair.left.copy(), pair.right.copy(), pair.disparity.copy()]
    chain = Augmentation(**{**PLAIN, **LOOKS[name]})
    changed = augmented(pair, chain, (HEIGHT, WIDTH), 0)
    np.testing.assert_array_equal(changed.disparity, pair.disparity)
    assert (changed.right != pair.right).any()
    both = name in ('reflection', 'colour', 'noise', 'blotch')
    assert (changed.left != pair.left).any() == both
    assert changed.left.dtype == changed.right.dtype == np.uint8
    for image, original in zip((pair.left, pair.right, pair.disparity), before):
        np.testing.assert_array_equal(image, original)


def test_every_setting_off_changes_nothing() -> None:
    pair = plane_pair(9.0, 0.05, 0.02)
    same = augmented(pair, Augmentation(**PLAIN), (HEIGHT, WIDTH), 0)
    for name in ('left', 'right', 'disparity'):
        np.testing.assert_array_equal(getattr(same, name), getattr(pair, name))


def test_symmetric_colour_keeps_the_views_alike() -> None:
    pair = plane_pair(9.0, 0.0, 0.0)
    alike = Augmentation(scale_probability=0.0, colour_probability=1.0)
    apart = alike.model_copy(update={'asymmetric_probability': 1.0})
    seeded = range(8)
    symmetric = [mismatch(augmented(pair, alike, (HEIGHT, WIDTH), s)) for s in seeded]
    asymmetric = [mismatch(augmented(pair, apart, (HEIGHT, WIDTH), s)) for s in seeded]
    assert np.median(symmetric) < 8
    assert np.median(asymmetric) > 2 * np.median(symmetric)


def test_a_view_that_is_a_pixel_too_low_has_its_rows_a_pixel_later() -> None:
    image = plane_pair(9.0, 0.0, 0.0).right
    np.testing.assert_array_equal(shift_rows(image, 1.0)[1:], image[:-1])
    half = shift_rows(image, 0.5)[1:].astype(np.float32)
    between = (image[1:].astype(np.float32) + image[:-1]) / 2
    assert np.abs(half - between).max() <= 1


def test_noise_has_at_most_its_sigma_and_no_bias() -> None:
    image = np.full((100, 100, 3), 128, np.uint8)
    sigmas = []
    for seed in range(20):
        noise = sensor_noise(image, np.random.default_rng(seed), 5.0).astype(np.float32) - 128
        assert abs(noise.mean()) < 0.2
        sigmas.append(noise.std())
    assert max(sigmas) < 5.2 and max(sigmas) > 3 > min(sigmas)


def test_blotches_are_each_view_s_own_and_as_wide_as_asked() -> None:
    grey = np.full((200, 300, 3), 128, np.uint8)
    left, right = blotched(grey, grey, np.random.default_rng(3), 40.0, (3.0, 3.0))
    assert np.ptp(left, axis=2).max() == 0, 'grey noise'
    a, b = (view[..., 0] - 128.0 for view in (left, right))
    assert a.std() == pytest.approx(b.std(), rel=0.02) and 1 < a.std() <= 40.5
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.15
    # White noise smoothed by a Gaussian of 3 px correlates as exp(-lag^2 / (4 * 3^2)).
    for lag in (1, 3, 6):
        alike = (a[:, lag:] * a[:, :-lag]).mean() / a.var()
        assert alike == pytest.approx(np.exp(-(lag**2) / 36), abs=0.1)


def test_patches_hide_rectangles_behind_one_colour() -> None:
    image = plane_pair(9.0, 0.0, 0.0).right
    changed = hide_patches(image, np.random.default_rng(0), sizes_px=(5, 10))
    touched = (changed != image).any(axis=-1)
    assert 0 < touched.sum() <= 3 * 100
    assert len(np.unique(changed[touched], axis=0)) == 1


def test_colours_are_the_same_for_the_same_draw() -> None:
    pair = plane_pair(9.0, 0.0, 0.0)
    first, again, other = (
        jitter_colour(pair.left, pair.right, np.random.default_rng(seed)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first[0], again[0])
    assert (first[0] != other[0]).any()


@settings(**FIGURES)
@given(near_planes, seeds)
def test_whole_chain_of_geometry(plane, seed: int) -> None:
    chain = Augmentation(
        scale_probability=1.0,
        min_scale=0.75,
        max_scale=1.4,
        stretch=0.1,
        right_shift_px=4,
        mirror_probability=0.5,
        colour_probability=0.0,
    )
    sample = augmented(plane_pair(*plane), chain, (48, 96), seed)
    assert sample.left.shape == sample.right.shape == (48, 96, 3)
    assert sample.disparity.shape == (48, 96)
    assert mismatch(sample) < 3


@pytest.mark.parametrize(
    'wrong',
    [
        {'occlusion_px': (9, 5)},
        {'reflection_px': (9, 5)},
        {'blotch_px': (0, 5)},
        {'max_scale': 0.5},
        {'stretch': 1},
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Augmentation(**wrong)
