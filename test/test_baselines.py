# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The OpenCV matchers against a texture shifted by a known amount."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from stereo_kd_ros.baselines import BaselineError, BlockMatcher, Sgbm

SHIFT_PX = 24


def shifted_pair(shift_px: int = SHIFT_PX, height: int = 96, width: int = 320):
    """A random texture seen by two cameras: x_right = x_left - shift."""
    noise = np.random.default_rng(3).integers(0, 255, (height, width + shift_px, 3), np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 1.2)
    left = texture[:, :width]
    right = texture[:, shift_px:]
    return np.ascontiguousarray(left), np.ascontiguousarray(right)


MATCHERS = [
    Sgbm(max_disparity_px=64, mode='3way'),
    Sgbm(max_disparity_px=64, mode='hh'),
    Sgbm(max_disparity_px=64, mode='hh4'),
    Sgbm(max_disparity_px=64, mode='sgbm'),
    BlockMatcher(max_disparity_px=64),
]


@pytest.mark.parametrize('matcher', MATCHERS, ids=lambda m: m.name)
def test_shifted_texture(matcher) -> None:
    left, right = shifted_pair()
    disparity = matcher.compute(left, right)
    assert disparity.shape == left.shape[:2]
    assert disparity.dtype == np.float32
    inner = disparity[10:-10, SHIFT_PX + 10 : -10]
    assert np.isfinite(inner).mean() > 0.98
    assert np.nanmedian(np.abs(inner - SHIFT_PX)) <= 1 / 16


@pytest.mark.parametrize('matcher', MATCHERS, ids=lambda m: m.name)
def test_dense_has_no_holes(matcher) -> None:
    dense = matcher.dense(*shifted_pair())
    assert np.isfinite(dense).all()
    answered = matcher.compute(*shifted_pair())
    known = np.isfinite(answered)
    np.testing.assert_array_equal(dense[known], answered[known])


@pytest.mark.parametrize('make', [Sgbm, BlockMatcher])
def test_padding_matches_the_columns_that_opencv_skips(make) -> None:
    left, right = shifted_pair()
    unpadded = make(max_disparity_px=64, padded=False).compute(left, right)
    padded = make(max_disparity_px=64).compute(left, right)
    columns = slice(SHIFT_PX + 10, 60)
    assert np.isnan(unpadded[:, columns]).all()
    assert np.nanmedian(np.abs(padded[10:-10, columns] - SHIFT_PX)) <= 1 / 16


def test_grey_images_are_taken() -> None:
    left, right = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in shifted_pair())
    for matcher in (Sgbm(max_disparity_px=64), BlockMatcher(max_disparity_px=64)):
        assert np.nanmedian(matcher.compute(left, right)) == pytest.approx(SHIFT_PX, abs=0.1)


def test_names_are_those_of_the_tables() -> None:
    assert [m.name for m in MATCHERS] == ['sgbm-3way', 'sgbm-hh', 'sgbm-hh4', 'sgbm', 'bm']


@pytest.mark.parametrize(
    'make, words',
    [
        (lambda: Sgbm(max_disparity_px=100), 'multiple of 16, got 100'),
        (lambda: Sgbm(max_disparity_px=0), 'multiple of 16'),
        (lambda: Sgbm(block_size=4), 'odd'),
        (lambda: Sgbm(mode='fast'), "'fast'.*3way"),
        (lambda: BlockMatcher(block_size=3), 'at least 5'),
    ],
)
def test_bad_set_up(make, words: str) -> None:
    with pytest.raises(BaselineError, match=words):
        make()


@pytest.mark.parametrize(
    'left, right, words',
    [
        (np.zeros((8, 8), np.uint8), np.zeros((8, 9), np.uint8), 'one size'),
        (np.zeros((8, 8), np.float32), np.zeros((8, 8), np.uint8), 'left.*uint8.*float32'),
        (np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), r'right.*\(8, 8, 4\)'),
    ],
)
def test_bad_images(left: np.ndarray, right: np.ndarray, words: str) -> None:
    for matcher in (Sgbm(max_disparity_px=16), BlockMatcher(max_disparity_px=16)):
        with pytest.raises(BaselineError, match=words):
            matcher.compute(left, right)
