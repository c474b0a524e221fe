# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd evaluate` from the command line: reports, gates, and a kill -9 in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ros_free_pairs import shifted_pair
from tiny_models import write_block_matcher
from typer.testing import CliRunner

from stereo_kd_ros.bag import StereoBagWriter, StereoTopics
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.commands.main import app
from stereo_kd_ros.disparity_io import write_pfm

WIDTH, HEIGHT, DISPARITY_PX, PAIRS = 96, 64, 5, 12
CAMERA = StereoCamera.from_intrinsics(fx=60.0, baseline_m=0.5, width=WIDTH, height=HEIGHT)

# The command, killed without warning when its tenth line is on the disk.
DIES_HALF_WAY = """
import os, signal
fsync, lines = os.fsync, []

def fsync_and_die(descriptor):
    fsync(descriptor)
    lines.append(descriptor)
    if len(lines) == 10:
        os.kill(os.getpid(), signal.SIGKILL)

os.fsync = fsync_and_die
from stereo_kd_ros.commands.main import main
main()
"""


@pytest.fixture(scope='module')
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('evaluate')
    (root / 'truth').mkdir()
    with StereoBagWriter(root / 'bag', 'mcap', topics=StereoTopics.in_namespace('cam')) as bag:
        for index in range(PAIRS):
            stamp_ns = 10**9 + index * 100_000_000
            bag.write_pair(stamp_ns, *shifted_pair(DISPARITY_PX, HEIGHT, WIDTH, index), CAMERA)
            truth = np.full((HEIGHT, WIDTH), DISPARITY_PX, np.float32)
            write_pfm(root / f'truth/{stamp_ns}.pfm', truth)
    write_block_matcher(root / 'near.onnx', 16)
    write_block_matcher(root / 'blind.onnx', 2)
    return root


def _arguments(root: Path, output: Path, *more: str) -> list[str]:
    return ['evaluate', str(root / 'bag'), '-o', str(output), '--provider', 'cpu', *more]


def _run(root: Path, output: Path, *more: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, _arguments(root, output, *more))
    return result.exit_code, result.output


def test_models_side_by_side_with_truth(root: Path, tmp_path: Path) -> None:
    models = ['--model', str(root / 'near.onnx'), '--model', str(root / 'blind.onnx')]
    code, output = _run(root, tmp_path, *models, '--truth', str(root / 'truth'))

    assert code == 0, output
    report = json.loads((tmp_path / 'report.json').read_text())
    near, blind, sgbm = report['models']
    assert [near['name'], blind['name'], sgbm['name']] == ['near', 'blind', 'sgbm-3way']
    assert near['pairs'] == PAIRS and near['epe_px'] < 0.5 and near['bad3'] < 10
    # It cannot say more than 2 px, so it is wrong by 3 px at least.
    assert blind['epe_px'] >= 3
    assert 'EPE px' in output and 'blind' in output
    page = (tmp_path / 'report.html').read_text()
    assert page.count('<img') == 4 and page.count('<svg') >= 5


@pytest.mark.parametrize(
    ('gate', 'code', 'said'),
    [
        ('bad3<20 and p95_ms<60000', 0, 'passed'),
        ('bad3<0.000001', 1, 'not passed'),
        ('bad3', 2, 'compares nothing'),
        ('bad77<1', 2, 'the figures are'),
        ('live_p95_ms<40', 2, 'the figures are'),
    ],
)
def test_the_gate_decides_the_exit_code(
    root: Path, tmp_path: Path, gate: str, code: int, said: str
) -> None:
    arguments = ['--model', str(root / 'near.onnx'), '--truth', str(root / 'truth')]
    arguments += ['--no-left-right', '--gate', gate]
    found, output = _run(root, tmp_path, *arguments)

    assert found == code, output
    assert said in ' '.join(output.replace('│', ' ').split())
    if code != 2:
        report = json.loads((tmp_path / 'report.json').read_text())
        assert report['gate']['passed'] is (code == 0)


def test_a_gate_on_what_was_not_measured_fails(root: Path, tmp_path: Path) -> None:
    code, output = _run(
        root, tmp_path, '--model', str(root / 'near.onnx'), '--no-left-right', '--gate', 'bad3<5'
    )
    assert code == 1
    assert 'not measured: bad3' in output


def test_our_own_model_teaches_under_any_name(root: Path, tmp_path: Path) -> None:
    """And two files of one model can stand side by side under two names."""
    near = root / 'near.onnx'
    arguments = ['--model', str(near), '--model', f'again={near}', '--teacher', f'ours={near}']
    code, output = _run(root, tmp_path, *arguments, '--no-left-right', '--no-sgbm')
    assert code == 0, output
    report = json.loads((tmp_path / 'report.json').read_text())
    assert report['teacher']['name'] == 'ours' and len(report['teacher']['sha256']) == 64
    assert [model['name'] for model in report['models']] == ['near', 'again']
    for model in report['models']:
        assert (model['teacher_difference_px'], model['teacher_bad3']) == (0, 0)


def test_truth_that_belongs_to_no_pair_is_pointed_out(root: Path, tmp_path: Path) -> None:
    (tmp_path / 'truth').mkdir()
    write_pfm(tmp_path / 'truth/77.pfm', np.ones((HEIGHT, WIDTH), np.float32))
    arguments = ['--model', str(root / 'near.onnx'), '--truth', str(tmp_path / 'truth')]
    code, output = _run(
        root, tmp_path / 'out', *arguments, '--no-left-right', '--no-sgbm', '--max-pairs', '2'
    )
    assert code == 0, output
    assert 'Not one pair has truth in' in output


def test_bad_input_says_what_is_wrong(root: Path, tmp_path: Path) -> None:
    for arguments, said in (
        (['--model', str(root / 'absent.onnx')], 'absent.onnx'),
        (['--model', str(root / 'near.onnx'), '--truth', '/no/such/topic'], 'holds no truth'),
        (['--model', str(root / 'near.onnx'), '--truth', '/cam/left/camera_info'], 'depth'),
        (['--model', str(root / 'near.onnx'), '--namespace', 'rear'], '/rear/'),
    ):
        code, output = _run(root, tmp_path / 'out', *arguments)
        assert code == 1, output
        assert said in output.replace('\n', ' ')


def test_killed_and_run_again_it_ends_the_same(root: Path, tmp_path: Path) -> None:
    arguments = ['--model', str(root / 'near.onnx'), '--truth', str(root / 'truth')]
    assert _run(root, tmp_path / 'whole', *arguments)[0] == 0
    lines = tmp_path / 'killed/near.jsonl'
    command = _arguments(root, tmp_path / 'killed', *arguments)
    victim = subprocess.run(
        [sys.executable, '-c', DIES_HALF_WAY, *command], capture_output=True, text=True
    )
    assert victim.returncode == -signal.SIGKILL, victim.stdout + victim.stderr
    assert 1 < lines.read_text().count('\n') < PAIRS
    assert not (tmp_path / 'killed/report.json').exists()

    assert _run(root, tmp_path / 'killed', *arguments)[0] == 0

    reports = [
        json.loads((tmp_path / name / 'report.json').read_text()) for name in ('whole', 'killed')
    ]
    for report in reports:
        for model in report['models']:
            for name in ('p50_ms', 'p95_ms', 'p99_ms', 'max_ms'):
                del model[name]
    assert reports[0] == reports[1]
