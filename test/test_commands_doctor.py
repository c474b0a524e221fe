# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd doctor` reads the sickest bag, says what is wrong and leaves the right exit code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import write_block_matcher
from typer.testing import CliRunner

from stereo_kd_ros.bag import StereoBagWriter
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.commands.main import app
from stereo_kd_ros.doctor_checks import CHECKS
from stereo_kd_ros.procedural import render_sequence

CAMERA = StereoCamera.from_intrinsics(260.0, 0.12, 320, 240)
WIDE = {'COLUMNS': '200'}


@pytest.fixture(scope='module')
def drive() -> list[tuple[np.ndarray, np.ndarray]]:
    return [(s.left, s.right) for s in render_sequence(4, 6, CAMERA)]


def _record(path: Path, drive: list[tuple[np.ndarray, np.ndarray]], tx: float | None) -> Path:
    """A bag of a drive whose right camera_info carries this Tx."""
    with StereoBagWriter(path) as writer:
        topics = writer.topics
        for index, (left, right) in enumerate(drive):
            stamp_ns = index * 100_000_000
            for topic, projection in (
                (topics.left_info, CAMERA.projection_left),
                (topics.right_info, CAMERA.projection_right),
            ):
                if tx is not None and topic == topics.right_info:
                    projection[0, 3] = tx
                writer.write(topic, stamp_ns, writer._camera_info(stamp_ns, CAMERA, projection))
            writer.write(topics.left_image, stamp_ns, writer._image(stamp_ns, left))
            writer.write(topics.right_image, stamp_ns, writer._image(stamp_ns, right))
    return path


def _findings(report: Path) -> dict[str, dict[str, object]]:
    return {f['check']: f for f in json.loads(report.read_text())['findings']}


def test_a_healthy_bag_passes(tmp_path: Path, drive) -> None:
    bag, report = _record(tmp_path / 'bag', drive, None), tmp_path / 'report.json'
    result = CliRunner().invoke(app, ['doctor', str(bag), '--json', str(report)], env=WIDE)

    assert result.exit_code == 0, result.output
    assert {f['severity'] for f in _findings(report).values()} == {'ok'}
    whole = json.loads(report.read_text())
    assert whole['worst'] == 'ok'
    assert whole['pairs'] == 6
    assert whole['parameters']['warm_up_width'] == 320
    assert 'max_disparity: ' in result.output


@pytest.mark.parametrize(
    ('tx', 'words'), [(0.0, 'Tx is zero'), (31.2, 'wrong sign'), (np.nan, 'NaN')]
)
def test_a_camera_info_without_depth_is_examined_all_the_same(
    tmp_path: Path, drive, tx: float, words: str
) -> None:
    bag, report = _record(tmp_path / 'bag', drive, tx), tmp_path / 'report.json'
    result = CliRunner().invoke(app, ['doctor', str(bag), '--json', str(report)], env=WIDE)

    assert result.exit_code == 1
    assert words in result.output
    findings = _findings(report)
    assert findings['row_offset']['severity'] == 'ok'  # the pictures are judged too
    assert json.loads(report.read_text())['disparity_range']['near_m'] is None


def test_a_low_eye_is_told_with_its_remedy(tmp_path: Path, drive) -> None:
    low = [(left, np.roll(right, 2, axis=0)) for left, right in drive]
    bag, report = _record(tmp_path / 'bag', low, None), tmp_path / 'report.json'
    result = CliRunner().invoke(app, ['doctor', str(bag), '--json', str(report)], env=WIDE)

    assert result.exit_code == 1
    assert _findings(report)['row_offset']['value'] == pytest.approx(-2.0, abs=0.2)
    assert CHECKS['row_offset'].remedy in result.output


def test_a_bag_that_is_none_is_an_error(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ['doctor', str(tmp_path / 'absent')])
    assert result.exit_code == 1
    assert 'absent' in result.output


def test_misuse_is_told_apart(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ['doctor', str(tmp_path), '--pairs', '0'])
    assert result.exit_code == 2


def test_the_machine_is_examined_without_a_bag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_block_matcher(tmp_path / 'matcher_nano.onnx', max_disparity_px=16)
    monkeypatch.setenv('STEREO_KD_MODELS', str(tmp_path))
    monkeypatch.setattr(
        'stereo_kd_ros.model.list_models', lambda: [tmp_path / 'matcher_nano.onnx']
    )
    report = tmp_path / 'new_folder' / 'report.json'
    result = CliRunner().invoke(app, ['doctor', '--json', str(report)], env=WIDE)

    assert result.exit_code == 0, result.output
    whole = json.loads(report.read_text())
    assert [rate['model'] for rate in whole['rates']] == ['matcher_nano']
    assert whole['parameters']['model'] == 'matcher_nano'
    assert {'ros', 'rmw', 'cpu'} <= {fact['name'] for fact in whole['facts']}
    assert 'ros__parameters:' in result.output


def test_the_page_tells_of_every_check_and_its_limits(repository: Path) -> None:
    page = (repository / 'docs/commands.md').read_text()
    section = page[page.index('## `doctor`') :]
    rows = {
        cells[1].strip(' `'): cells
        for line in section.splitlines()
        if line.startswith('| `') and len(cells := line.split('|')) == 6
    }
    assert set(CHECKS) == set(rows)
    for name, check in CHECKS.items():
        for limit, cell in ((check.warn, rows[name][3]), (check.error, rows[name][4])):
            if limit and name != 'matches':  # which has a lower limit
                assert cell.split()[0] == f'{limit:g}', name
