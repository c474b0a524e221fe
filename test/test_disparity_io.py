# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Disparity files: bytes written by hand, round trips, and what each format cannot hold."""

from __future__ import annotations

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from stereo_kd_ros.disparity_io import (
    DisparityFileError,
    read_depth_png,
    read_kitti_png,
    read_pfm,
    read_scaled_png,
    write_depth_png,
    write_kitti_png,
    write_pfm,
)

# Rows from top to bottom; a PFM stores the bottom one first.
ROWS = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.5]], dtype=np.float32)
BOTTOM_UP = (4.0, 5.0, 6.5, 1.0, 2.0, 3.0)


@pytest.mark.parametrize(
    'header, order',
    [
        (b'Pf\n3 2\n-1.0\n', '<'),
        (b'Pf\n3 2\n1\n', '>'),
        (b'Pf \n3 2 \n-1.000000\n', '<'),
        (b'Pf\r\n3 2\r\n-0.003922\r\n', '<'),
    ],
    ids=['little', 'big', 'spaces', 'middlebury scale'],
)
def test_pfm_bytes(tmp_path: Path, header: bytes, order: str) -> None:
    path = tmp_path / 'disp.pfm'
    path.write_bytes(header + struct.pack(f'{order}6f', *BOTTOM_UP))
    np.testing.assert_array_equal(read_pfm(path), ROWS)


def test_pfm_first_value_may_look_like_white_space(tmp_path: Path) -> None:
    # 0x0a0a0a0a is a float of its own: the reader must take one newline after the scale only.
    path = tmp_path / 'disp.pfm'
    path.write_bytes(b'Pf\n1 1\n-1.0\n' + b'\n\n\n\n')
    assert read_pfm(path)[0, 0] == struct.unpack('<f', b'\n\n\n\n')[0]


def test_pfm_colour(tmp_path: Path) -> None:
    path = tmp_path / 'colour.pfm'
    path.write_bytes(b'PF\n1 2\n-1\n' + struct.pack('<6f', *BOTTOM_UP))
    np.testing.assert_array_equal(read_pfm(path)[:, 0], ROWS)


@settings(max_examples=25, deadline=None)
@given(npst.arrays(np.float32, npst.array_shapes(min_dims=2, max_dims=2, max_side=9)))
def test_pfm_round_trip_keeps_every_value(tmp_path_factory, values: np.ndarray) -> None:
    path = tmp_path_factory.mktemp('pfm') / 'disp.pfm'
    write_pfm(path, values)
    np.testing.assert_array_equal(read_pfm(path), values)


@pytest.mark.parametrize(
    'content, words',
    [
        (b'P6\n3 2\n255\n', 'not a PFM'),
        (b'', 'not a PFM'),
        (b'Pf\n3 2\n-1.0\n' + bytes(20), 'truncated'),
        (b'Pf\n3 2\n--\n' + bytes(24), 'not a number'),
    ],
)
def test_pfm_errors_name_file_and_fault(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / 'broken.pfm'
    path.write_bytes(content)
    with pytest.raises(DisparityFileError, match=words) as caught:
        read_pfm(path)
    assert 'broken.pfm' in str(caught.value)


def test_missing_file_is_named(tmp_path: Path) -> None:
    for read in (read_pfm, read_kitti_png, read_depth_png):
        with pytest.raises(DisparityFileError, match='absent'):
            read(tmp_path / 'absent')


def test_pfm_refuses_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(DisparityFileError, match=r'\(2, 2, 2\)'):
        write_pfm(tmp_path / 'x.pfm', np.zeros((2, 2, 2), np.float32))


def test_kitti_png_is_256_per_pixel_and_zero_is_no_value(tmp_path: Path) -> None:
    path = tmp_path / 'disp.png'
    cv2.imwrite(str(path), np.array([[0, 1, 256], [384, 65535, 25600]], np.uint16))
    np.testing.assert_array_equal(
        read_kitti_png(path), np.array([[np.nan, 1 / 256, 1], [1.5, 65535 / 256, 100]], 'f4')
    )


def test_kitti_png_writes_invalid_as_zero_and_keeps_small_values_valid(tmp_path: Path) -> None:
    path = tmp_path / 'disp.png'
    write_kitti_png(path, np.array([[np.nan, -3.0, 0.0, np.inf, 1e-4, 2.0]], np.float32))
    np.testing.assert_array_equal(
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED), [[0, 0, 0, 0, 1, 512]]
    )


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.01, 255.9), min_size=1, max_size=12))
def test_kitti_png_round_trip_within_half_a_step(tmp_path_factory, row: list[float]) -> None:
    path = tmp_path_factory.mktemp('kitti') / 'disp.png'
    write_kitti_png(path, np.array([row], np.float32))
    np.testing.assert_allclose(read_kitti_png(path), [row], atol=0.5 / 256 + 1e-5)


def test_kitti_png_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(DisparityFileError, match=r'300\.00 px does not fit'):
        write_kitti_png(tmp_path / 'disp.png', np.full((2, 2), 300.0, np.float32))


def test_kitti_png_refuses_eight_bits(tmp_path: Path) -> None:
    path = tmp_path / 'disp.png'
    cv2.imwrite(str(path), np.ones((2, 2), np.uint8))
    with pytest.raises(DisparityFileError, match=r'16-bit.*uint8'):
        read_kitti_png(path)


def test_scaled_png(tmp_path: Path) -> None:
    path = tmp_path / 'disp.png'
    cv2.imwrite(str(path), np.array([[0, 8, 20]], np.uint8))
    np.testing.assert_array_equal(read_scaled_png(path, 8), [[np.nan, 1.0, 2.5]])


def test_scaled_png_accepts_grey_saved_as_colour_only(tmp_path: Path) -> None:
    path = tmp_path / 'disp.png'
    cv2.imwrite(str(path), np.full((2, 2, 3), 12, np.uint8))
    np.testing.assert_array_equal(read_scaled_png(path, 4), np.full((2, 2), 3.0))
    cv2.imwrite(str(path), np.full((2, 2, 3), (1, 2, 3), np.uint8))
    with pytest.raises(DisparityFileError, match='8-bit grey'):
        read_scaled_png(path, 4)


def test_not_an_image(tmp_path: Path) -> None:
    path = tmp_path / 'disp.png'
    for content in (b'', b'hello'):
        path.write_bytes(content)
        with pytest.raises(DisparityFileError, match='not an image'):
            read_kitti_png(path)


def test_depth_png_in_millimetres(tmp_path: Path) -> None:
    path = tmp_path / 'depth.png'
    depth_m = np.array([[1.5, np.nan, np.inf, -np.inf, 0.0, 70.0, 65.535, 0.0004]], np.float32)
    write_depth_png(path, depth_m)
    np.testing.assert_array_equal(
        cv2.imread(str(path), cv2.IMREAD_UNCHANGED), [[1500, 0, 0, 0, 0, 0, 65535, 0]]
    )
    np.testing.assert_allclose(read_depth_png(path)[0, [0, 6]], [1.5, 65.535], rtol=1e-6)
    assert np.isnan(read_depth_png(path)[0, 1:6]).all()


def test_real_pfm_file(data_dir: Path) -> None:
    disparity = read_pfm(data_dir / 'sceneflow' / 'TEST_A_0000_0006' / 'disp.pfm')
    assert disparity.shape == (540, 960)
    # The range stated beside the file.
    assert disparity.min() == pytest.approx(1.17, abs=0.01)
    assert disparity.max() == pytest.approx(99.39, abs=0.01)
