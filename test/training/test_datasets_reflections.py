# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a surface mirrors is on the surface in both views, and lies behind it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stereo_kd_training.datasets.augment import right_view_disparity
from stereo_kd_training.datasets.reflections import mirrored_surroundings

HEIGHT, WIDTH = 120, 200
GREY = 110
seeds = st.integers(0, 2**32 - 1)


def checkered(width: int = WIDTH) -> np.ndarray:
    """Patches of all greys, 5 px wide: no piece of it is like another."""
    blocks = np.random.default_rng(5).integers(0, 256, (HEIGHT // 5, width // 5), np.uint8)
    return np.repeat(np.kron(blocks, np.ones((5, 5), np.uint8))[..., None], 3, axis=2)


def changed(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return (before != after).any(axis=-1)


def mirror(left, right, disparity, seed: int, **options):
    originals = [array.copy() for array in (left, right, disparity)]
    result = mirrored_surroundings(
        left,
        right,
        disparity,
        right_view_disparity(disparity),
        np.random.default_rng(seed),
        **options,
    )
    for array, original in zip((left, right, disparity), originals):
        np.testing.assert_array_equal(array, original)
    assert all(view.dtype == np.uint8 and view.shape == left.shape for view in result)
    return result


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 60), seeds)
def test_both_views_change_where_they_show_the_same_part(d: int, seed: int) -> None:
    picture = checkered(WIDTH + 60)
    left, right = picture[:, :WIDTH], picture[:, d : d + WIDTH]
    one, other = mirror(left, right, np.full((HEIGHT, WIDTH), d, np.float32), seed)
    in_left, in_right = changed(left, one), changed(right, other)
    # A light pixel may happen to be what it was, so neighbours count as well.
    near = np.lib.stride_tricks.sliding_window_view(np.pad(in_left, 3), (7, 7)).any(axis=(2, 3))
    row, column = np.nonzero(in_right[:, : WIDTH - d])
    assert near[row, column + d].all()
    assert not in_right[:, WIDTH - d :].any(), 'what the left view does not see has no truth'


def test_what_a_surface_mirrors_has_a_smaller_disparity_than_the_surface() -> None:
    """A grey wall shows no disparity of its own, so what is found is that of the mirrored."""
    d, found = 40, []
    left = checkered()
    left[20:] = GREY
    truth = np.full((HEIGHT, WIDTH), d, np.float32)
    # Above, another surface, which begins a depth edge.
    truth[:20] = 10
    for seed in range(60):
        one, other = mirror(left, left, truth, seed, patches=1, sizes_px=(80, 200))
        added = one[22:, :, 0].astype(float) - GREY
        seen = other[22:, :, 0].astype(float) - GREY
        inside = np.abs(added) > 0
        if inside.sum() < 2000 or added[inside].std() < 10:
            continue
        alike = []
        # Within the part: its own outline would be found at the surface's disparity.
        inner, inner_seen = (
            cv2.erode(np.uint8(np.abs(light) > 0), np.ones((9, 9))) > 0 for light in (added, seen)
        )
        for shift in range(-10, 61):
            both = inner & np.roll(inner_seen, shift, axis=1)
            moved = np.roll(seen, shift, axis=1)
            enough = both.sum() > 800 and added[both].std() > 3 and moved[both].std() > 3
            alike.append(np.corrcoef(moved[both], added[both])[0, 1] if enough else -1)
        if max(alike) > 0.7:
            found.append(int(np.argmax(alike)) - 10)
    found = np.array(found)
    assert len(found) > 8 and (found < d).mean() > 0.9 and (found >= -2).all()
    assert np.ptp(found) > 10, 'not all alike'


@settings(deadline=None, max_examples=40)
@given(seeds)
def test_a_mirror_ends_where_its_surface_does(seed: int) -> None:
    """A near half and a far one: one part changes one of them, but for a soft rim."""
    truth = np.full((HEIGHT, WIDTH), 6, np.float32)
    truth[:, 100:] = 20
    one, _ = mirror(checkered(), checkered(), truth, seed, patches=1, sizes_px=(60, 200))
    touched = changed(checkered(), one)
    assert not (touched[:, :97].any() and touched[:, 103:].any())


@pytest.mark.parametrize(
    'truth',
    [
        np.full((HEIGHT, WIDTH), np.nan, np.float32),
        np.full((HEIGHT, WIDTH), 0.5, np.float32),
        np.where(np.arange(WIDTH) % 7, np.nan, 12).astype(np.float32) * np.ones((HEIGHT, 1), 'f'),
    ],
    ids=['unknown', 'at infinity', 'lines of a LiDAR'],
)
def test_without_a_surface_nothing_changes(truth: np.ndarray) -> None:
    # A line of 120 points is no more than a stroke; give it no chance of being a surface.
    truth[::5] = np.nan
    for seed in range(20):
        one, other = mirror(checkered(), checkered(), truth, seed)
        assert not changed(checkered(), one).any() and not changed(checkered(), other).any()


def test_the_same_draw_is_the_same() -> None:
    truth = np.full((HEIGHT, WIDTH), 20, np.float32)
    first, again, other = (mirror(checkered(), checkered(), truth, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert (first[0] != other[0]).any()
