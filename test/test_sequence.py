# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Folders of frames and calibration files: each layout, and each way in which one can be wrong."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from stereo_kd_ros.camera import CalibrationError
from stereo_kd_ros.sequence import ImageSequence, SequenceError, read_camera, read_picture

ROW_LEFT = '700 0 600 0 0 700 180 0 0 0 1 0'
ROW_RIGHT = '700 0 600 -378 0 700 180 0 0 0 1 0'


def _folders(root: Path, names: list[str], right_names: list[str] | None = None) -> list[Path]:
    for eye, wanted in (('left', names), ('right', right_names or names)):
        (root / eye).mkdir(parents=True)
        for name in wanted:
            cv2.imwrite(str(root / eye / name), np.zeros((4, 6), np.uint8))
    return [root / 'left', root / 'right']


def _calibration(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ('text', 'cameras'),
    [
        (f'{ROW_LEFT}\n{ROW_RIGHT}', (0, 1)),
        (f'P0: {ROW_LEFT}\nP1: {ROW_RIGHT}\nTr: {ROW_LEFT}', (0, 1)),
        (f'P0: 1 0 0 0 0 1 0 0 0 0 1 0\nP2: {ROW_LEFT}\nP3: {ROW_RIGHT}', (2, 3)),
        (f'calib_time: 09-Jan-2012\nP_rect_00: {ROW_LEFT}\nP_rect_01: {ROW_RIGHT}', (0, 1)),
    ],
)
def test_reads_kittis_rows(tmp_path: Path, text: str, cameras: tuple[int, int]) -> None:
    file = _calibration(tmp_path / 'calib.txt', text)
    camera = read_camera(file, 1226, 370, kitti_cameras=cameras)

    assert (camera.fx, camera.cx_left, camera.cy) == (700, 600, 180)
    assert camera.baseline_m == pytest.approx(0.54)
    assert (camera.width, camera.height) == (1226, 370)


def test_reads_middleburys_millimetres_and_offset(tmp_path: Path) -> None:
    file = _calibration(
        tmp_path / 'calib.txt',
        'cam0=[1000 0 300; 0 1000 250; 0 0 1]\ncam1=[1000 0 330; 0 1000 250; 0 0 1]\n'
        'doffs=30\nbaseline=200\nwidth=740\nheight=500\n',
    )
    camera = read_camera(file, 740, 500)

    # Middlebury: Z = baseline * f / (d + doffs), so 20 px are 0.2 m * 1000 px / 50 px = 4 m.
    corrected = camera.disparity_from_pixels(np.full((1, 1), 20, np.float32))
    assert camera.disparity_to_depth(corrected)[0, 0] == pytest.approx(4.0)


@pytest.mark.parametrize(
    'values',
    [
        {'fx': 450, 'baseline_meters': 0.075, 'cx0': 299, 'cx1': 299, 'cy': 255},
        {'fx': 450, 'baseline_m': 0.075, 'cx': 299, 'cy': 255, 'width': 640, 'height': 480},
        {
            'P_left': [[450, 0, 299, 0], [0, 450, 255, 0], [0, 0, 1, 0]],
            'P_right': [[450, 0, 299, -33.75], [0, 450, 255, 0], [0, 0, 1, 0]],
        },
    ],
)
def test_reads_json(tmp_path: Path, values: dict[str, object]) -> None:
    file = _calibration(tmp_path / 'calib.json', json.dumps(values))
    camera = read_camera(file, 640, 480)

    assert (camera.fx, camera.cx_left, camera.cx_right, camera.cy) == (450, 299, 299, 255)
    assert camera.baseline_m == pytest.approx(0.075)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        ('hello', 'no calibration in it'),
        (f'P0: {ROW_LEFT}', 'no calibration in it'),
        ('{"fx": 1}', 'baseline_m'),
        ('{"fx": ', 'not valid JSON'),
        ('{"fx": 1, "baseline_m": 1, "width": 8, "height": 9}', '8x9'),
        ('cam0=[1 0 1; 0 1 1; 0 0 1]', 'without cam1, baseline'),
    ],
)
def test_a_bad_calibration_says_what_is_wrong(tmp_path: Path, text: str, message: str) -> None:
    file = _calibration(tmp_path / 'calib.txt', text)
    with pytest.raises(SequenceError, match=message):
        read_camera(file, 640, 480)


def test_swapped_eyes_are_a_calibration_error(tmp_path: Path) -> None:
    file = _calibration(tmp_path / 'calib.txt', f'{ROW_RIGHT}\n{ROW_LEFT}')
    with pytest.raises(CalibrationError, match='swapped'):
        read_camera(file, 1226, 370)


def test_frame_numbers_go_at_the_given_rate(tmp_path: Path) -> None:
    folders = _folders(tmp_path, ['000010.png', '000002.png'])
    frames = ImageSequence.from_folders(*folders, rate_hz=4.0).frames

    assert [frame.left.name for frame in frames] == ['000002.png', '000010.png']
    assert frames[1].stamp_ns - frames[0].stamp_ns == 250_000_000
    assert frames[0].stamp_ns > 0


def test_kittis_times_are_used(tmp_path: Path) -> None:
    folders = _folders(tmp_path, ['000000.png', '000001.png'])
    (tmp_path / 'times.txt').write_text('0.000000e+00\n1.036224e-01\n')
    sequence = ImageSequence.from_folders(*folders)

    assert sequence.times_from == 'times.txt'
    assert sequence.frames[1].stamp_ns - sequence.frames[0].stamp_ns == 103_622_400


def test_eurocs_file_names_are_stamps(tmp_path: Path) -> None:
    names = ['1403715273262142976.png', '1403715273312143104.png']
    frames = ImageSequence.from_folders(*_folders(tmp_path, names)).frames

    assert [frame.stamp_ns for frame in frames] == [1403715273262142976, 1403715273312143104]


def test_a_frame_of_one_eye_only_is_named(tmp_path: Path) -> None:
    folders = _folders(tmp_path, ['000000.png', '000001.png'], ['000000.png'])
    with pytest.raises(SequenceError, match='000001, missing on the right'):
        ImageSequence.from_folders(*folders)


def test_missing_and_empty_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / 'empty').mkdir()
    with pytest.raises(SequenceError, match='no such folder'):
        ImageSequence.from_folders(tmp_path / 'absent', tmp_path / 'empty')
    with pytest.raises(SequenceError, match='no picture in it'):
        ImageSequence.from_folders(tmp_path / 'empty', tmp_path / 'empty')


def test_pictures_are_rgb_or_grey_and_8_bit(tmp_path: Path) -> None:
    red = np.zeros((4, 5, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / 'red.png'), red)
    cv2.imwrite(str(tmp_path / 'grey16.png'), np.full((4, 5), 0x8000, np.uint16))

    assert read_picture(tmp_path / 'red.png')[0, 0].tolist() == [255, 0, 0]
    grey = read_picture(tmp_path / 'grey16.png')
    assert grey.shape == (4, 5)
    assert grey.dtype == np.uint8
    assert grey[0, 0] == 0x80
    assert read_picture(tmp_path / 'grey16.png', colour=True).shape == (4, 5, 3)


def test_what_is_no_picture_is_named(tmp_path: Path) -> None:
    (tmp_path / 'text.png').write_text('no picture')
    with pytest.raises(SequenceError, match=r'text\.png: not a picture'):
        read_picture(tmp_path / 'text.png')
    with pytest.raises(SequenceError, match=r'absent\.png: no such file'):
        read_picture(tmp_path / 'absent.png')


def test_the_sequences_of_public_sets_read_as_they_are(data_dir: Path) -> None:
    kitti = data_dir / 'sequence_kitti_odometry_1'
    camera = read_camera(kitti / 'calib.txt', 1226, 370)
    assert camera.baseline_m == pytest.approx(379.8145 / 707.0912)
    assert len(ImageSequence.from_folders(kitti / 'left', kitti / 'right')) == 20

    euroc = data_dir / 'sequence_euroc_micro_rectified'
    camera = read_camera(euroc / 'calib.json', 752, 480)
    assert camera.baseline_m == pytest.approx(0.110078, abs=1e-6)
    stamps = [
        f.stamp_ns for f in ImageSequence.from_folders(euroc / 'left', euroc / 'right').frames
    ]
    assert stamps[1] - stamps[0] == pytest.approx(50_000_000, abs=200)
