# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures: what is near, far, wrong or missing must look so."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stereo_kd_ros.visualize import (
    ERROR_COLOURS,
    GAP_PX,
    LABEL_HEIGHT_PX,
    PictureError,
    colorize_depth,
    colorize_disparity,
    colorize_error,
    picture_strip,
)

NAN, INF = math.nan, math.inf
BLACK = [0, 0, 0]


def row(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def is_red(pixel: np.ndarray) -> bool:
    red, green, blue = (int(value) for value in pixel)
    return red > 2 * max(green, blue)


def is_blue(pixel: np.ndarray) -> bool:
    red, _, blue = (int(value) for value in pixel)
    return blue > red


def test_near_is_red_and_far_is_blue():
    far, near = colorize_disparity(row(8, 100), max_px=100)[0]
    assert is_red(near)
    assert is_blue(far)
    near, far = colorize_depth(row(0.5, 15))[0]
    assert is_red(near)
    assert is_blue(far)


def test_a_map_that_is_invalid_is_black():
    assert colorize_disparity(row(NAN, INF, -INF, 0, -1)).tolist() == [[BLACK] * 5]
    assert colorize_depth(row(NAN, INF, -INF, 0, -1)).tolist() == [[BLACK] * 5]


def test_no_valid_pixel_is_black():
    assert (
        (colorize_disparity(np.linspace(0.01, 300, 400, dtype=np.float32)[None]) > 0)
        .any(axis=-1)
        .all()
    )


def test_beyond_the_scale_keeps_the_last_colour():
    at_end, beyond = colorize_disparity(row(64, 6400), max_px=64)[0]
    np.testing.assert_array_equal(at_end, beyond)


def test_one_scale_gives_the_same_colour_in_every_picture():
    alone = colorize_disparity(row(20), max_px=64)[0, 0]
    among = colorize_disparity(row(1, 20, 500), max_px=64)[0, 1]
    np.testing.assert_array_equal(alone, among)


def test_errors_have_the_colour_of_their_step():
    truth = row(50, 50, 50, 50, NAN, 0)
    predicted = row(50.2, 51.5, 99, NAN, 50, 50)
    best, third, worst, missing, *unknown = colorize_error(predicted, truth)[0].tolist()
    assert best == list(ERROR_COLOURS[0])
    assert third == list(ERROR_COLOURS[2])
    assert worst == missing == list(ERROR_COLOURS[-1])
    assert unknown == [BLACK, BLACK]


def test_errors_need_one_shape():
    with pytest.raises(PictureError, match='shape'):
        colorize_error(row(1), row(1, 2))


def test_a_strip_keeps_the_pictures_and_writes_their_labels():
    first = np.full((20, 100, 3), (10, 20, 30), np.uint8)
    second = np.full((20, 100), 200, np.uint8)
    strip = picture_strip([first, second], ['left', 'right'])
    assert strip.shape == (20 + LABEL_HEIGHT_PX, 200 + GAP_PX, 3)
    np.testing.assert_array_equal(strip[LABEL_HEIGHT_PX:, :100], first)
    assert (strip[LABEL_HEIGHT_PX:, 100 + GAP_PX :] == 200).all()
    for start in (0, 100 + GAP_PX):
        label = strip[:LABEL_HEIGHT_PX, start : start + 100]
        assert (label < 128).any()


def test_a_label_stays_over_its_picture():
    pictures = [np.zeros((20, 60, 3), np.uint8)] * 2
    strip = picture_strip(pictures, ['a label much wider than its picture', ''])
    assert (strip[:LABEL_HEIGHT_PX, 60:] == 255).all()


def test_pictures_are_brought_to_the_size_of_the_first():
    strip = picture_strip([np.zeros((10, 20, 3), np.uint8), np.zeros((5, 10, 3), np.uint8)])
    assert strip.shape == (10, 40 + GAP_PX, 3)


def test_columns_break_the_strip_into_rows():
    strip = picture_strip([np.zeros((10, 20, 3), np.uint8)] * 3, columns=2)
    assert strip.shape == (2 * 10 + GAP_PX, 2 * 20 + GAP_PX, 3)
    assert (strip[10 + GAP_PX :, 20 + GAP_PX :] == 255).all()


def test_what_cannot_be_a_strip_is_refused():
    with pytest.raises(PictureError, match='at least one'):
        picture_strip([])
    with pytest.raises(PictureError, match='1 pictures but 2 labels'):
        picture_strip([np.zeros((4, 4, 3), np.uint8)], ['a', 'b'])
