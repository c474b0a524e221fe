# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd make-bag`: what goes in as files comes out, with stamps and calibration."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from stereo_kd_ros.bag import StereoBag
from stereo_kd_ros.commands.main import app
from stereo_kd_ros.sequence import read_picture

ROWS = '100 0 20 0 0 100 10 0 0 0 1 0\n100 0 20 -12 0 100 10 0 0 0 1 0\n'


def _drive(root: Path, frames: int = 3, width: int = 40) -> Path:
    rng = np.random.default_rng(0)
    for eye in ('left', 'right'):
        (root / eye).mkdir(parents=True, exist_ok=True)
        for index in range(frames):
            picture = rng.integers(0, 256, (24, width, 3), np.uint8)
            cv2.imwrite(str(root / eye / f'{index:06d}.png'), picture)
    (root / 'calib.txt').write_text(ROWS)
    return root


def _make(root: Path, output: Path, *more: str) -> tuple[int, str]:
    arguments = ['--left', root / 'left', '--right', root / 'right', '--calib', root / 'calib.txt']
    result = CliRunner().invoke(app, ['make-bag', *map(str, arguments), '-o', str(output), *more])
    return result.exit_code, result.output


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
def test_frames_stamps_and_calibration_arrive(tmp_path: Path, storage: str) -> None:
    drive = _drive(tmp_path / 'drive')
    code, output = _make(
        drive, tmp_path / 'bag', '--storage', storage, '--rate', '20', '--namespace', 'front'
    )
    assert code == 0, output

    with StereoBag(tmp_path / 'bag') as bag:
        frames = list(bag.pairs())
        assert bag.stereo_topics.left_image == '/front/left/image_rect'
        assert bag.camera.baseline_m == pytest.approx(0.12)
        assert (bag.camera.width, bag.camera.height) == (40, 24)

    assert np.diff([frame.stamp_ns for frame in frames]).tolist() == [50_000_000] * 2
    for index, frame in enumerate(frames):
        left = read_picture(drive / f'left/{index:06d}.png')
        np.testing.assert_array_equal(frame.left, left)
        assert frame.left_info.header.frame_id == frame.right_info.header.frame_id
        np.testing.assert_array_equal(frame.right_info.r.reshape(3, 3), np.eye(3))
        np.testing.assert_array_equal(frame.left_info.k, [100, 0, 20, 0, 100, 10, 0, 0, 1])


def test_frames_of_another_size_are_refused(tmp_path: Path) -> None:
    drive = _drive(tmp_path / 'drive')
    cv2.imwrite(str(drive / 'right/000001.png'), np.zeros((24, 38, 3), np.uint8))

    code, output = _make(drive, tmp_path / 'bag')

    assert code == 1
    assert '38x24 (right)' in output.replace('\n', ' ')


def test_an_existing_bag_is_not_overwritten(tmp_path: Path) -> None:
    drive = _drive(tmp_path / 'drive')
    assert _make(drive, tmp_path / 'bag')[0] == 0

    code, output = _make(drive, tmp_path / 'bag')

    assert code == 1
    assert 'exists already' in output.replace('\n', ' ')


def test_public_sequences_become_bags(tmp_path: Path, data_dir: Path) -> None:
    for name, calibration, pairs in (
        ('sequence_kitti_odometry_1', 'calib.txt', 20),
        ('sequence_euroc_micro_rectified', 'calib.json', 16),
    ):
        root = data_dir / name
        arguments = ['--left', root / 'left', '--right', root / 'right']
        arguments += ['--calib', root / calibration, '-o', tmp_path / name]
        result = CliRunner().invoke(app, ['make-bag', *map(str, arguments)])
        assert result.exit_code == 0, result.output
        with StereoBag(tmp_path / name) as bag:
            assert bag.pair_count == pairs
            assert next(bag.pairs()).left.shape == (bag.camera.height, bag.camera.width, 3)
