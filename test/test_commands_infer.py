# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd infer` on a texture shifted by a known disparity, and on everything that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_models import write_block_matcher, write_contract_breaker
from typer.testing import CliRunner

from stereo_kd_ros.commands.main import app
from stereo_kd_ros.disparity_io import read_depth_png, read_pfm

DISPARITY_PX = 6
WIDTH, HEIGHT = 96, 64
FX_PX, BASELINE_M = 120.0, 0.25


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_block_matcher(tmp_path_factory.mktemp('model') / 'matcher.onnx')


@pytest.fixture
def pair(tmp_path: Path) -> list[str]:
    scene = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH + DISPARITY_PX, 3), np.uint8)
    cv2.imwrite(str(tmp_path / 'left.png'), scene[:, :WIDTH])
    cv2.imwrite(str(tmp_path / 'right.png'), scene[:, DISPARITY_PX:])
    return [str(tmp_path / 'left.png'), str(tmp_path / 'right.png')]


def _infer(pair: list[str], output: Path, model: Path, *more: str) -> tuple[int, str]:
    result = CliRunner().invoke(
        app,
        ['infer', *pair, '-o', str(output), '--model', str(model), '--provider', 'cpu', *more],
    )
    return result.exit_code, result.output


def test_writes_disparity_and_depth_of_a_plane(
    tmp_path: Path, pair: list[str], model: Path
) -> None:
    calibration = tmp_path / 'calib.json'
    calibration.write_text(json.dumps({'fx': FX_PX, 'baseline_m': BASELINE_M}))

    code, output = _infer(pair, tmp_path / 'out', model, '--calib', str(calibration))

    assert code == 0, output
    inner = (slice(8, -8), slice(24, -8))
    np.testing.assert_array_equal(read_pfm(tmp_path / 'out/disparity.pfm')[inner], DISPARITY_PX)
    # 120 px * 0.25 m / 6 px = 5 m.
    np.testing.assert_allclose(read_depth_png(tmp_path / 'out/depth.png')[inner], 5.0)
    for name in ('disparity.png', 'confidence.png'):
        assert cv2.imread(str(tmp_path / 'out' / name)).shape[:2] == (HEIGHT, WIDTH)


def test_depth_heeds_the_offset_between_the_eyes(
    tmp_path: Path, pair: list[str], model: Path
) -> None:
    calibration = tmp_path / 'calib.json'
    # cx differs by 2 px, so 6 px on the images are 6 - (50 - 48) = 4 px of parallax: 7.5 m.
    values = {'fx': FX_PX, 'baseline_m': BASELINE_M, 'cx0': 50, 'cx1': 48, 'cy': 32}
    calibration.write_text(json.dumps(values))

    code, output = _infer(pair, tmp_path / 'out', model, '--calib', str(calibration))

    assert code == 0, output
    depth = read_depth_png(tmp_path / 'out/depth.png')
    np.testing.assert_allclose(depth[8:-8, 24:-8], 7.5)


def test_without_calibration_there_is_no_depth(
    tmp_path: Path, pair: list[str], model: Path
) -> None:
    assert _infer(pair, tmp_path / 'out', model)[0] == 0
    assert not (tmp_path / 'out/depth.png').exists()


def test_bad_input_says_what_is_wrong(tmp_path: Path, pair: list[str], model: Path) -> None:
    narrow = tmp_path / 'narrow.png'
    cv2.imwrite(str(narrow), np.zeros((HEIGHT, WIDTH - 2, 3), np.uint8))
    text = tmp_path / 'text.png'
    text.write_text('no picture')
    broken = tmp_path / 'broken.onnx'
    broken.write_bytes(b'no model')
    breaker = write_contract_breaker(tmp_path / 'breaker.onnx')
    calibration = tmp_path / 'calib.txt'
    calibration.write_text('nothing')

    for arguments, said in [
        (([pair[0], str(narrow)], model), '96x64'),
        (([pair[0], str(narrow)], model), 'both pictures of one pair'),
        (([pair[0], str(tmp_path / 'absent.png')], model), 'no such file; check the path'),
        (([pair[0], str(tmp_path)], model), 'a folder, expected a picture'),
        (([pair[0], str(text)], model), 'expected PNG'),
        ((pair, tmp_path / 'absent.onnx'), 'absent.onnx'),
        ((pair, broken), 'broken.onnx'),
        ((pair, breaker), 'confidence'),
        ((pair, model, '--calib', str(calibration)), 'no calibration in it'),
        ((pair, model, '--provider', 'cuda'), 'cuda'),
        ((pair, model, '--output', str(text)), 'a file is in the way of the folder'),
    ]:
        code, output = _infer(arguments[0], tmp_path / 'out', *arguments[1:])
        assert code == 1, output
        assert said in output.replace('\n', ' ')
        assert 'Traceback' not in output
