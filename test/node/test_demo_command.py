# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd demo` as a user runs it: three processes, and every way in which it can go wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from ros_rig import textured_pair
from tiny_models import write_contract_breaker, write_failing_model

from stereo_kd_ros.bag import StereoBagWriter, StereoTopics
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.pairing import DROP_CAUSES

CAMERA = StereoCamera.from_intrinsics(fx=100.0, baseline_m=0.2, width=96, height=64)
PAIRS = 8
DISPARITY_PX = 5
# More than all the waits of a demo together, which end with an error of their own.
TIMEOUT_S, END_S = 500, 200


@pytest.fixture(scope='module')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('bags') / 'bag'
    with StereoBagWriter(path, topics=StereoTopics.in_namespace('robot/front')) as writer:
        for index in range(PAIRS):
            pair = textured_pair(DISPARITY_PX, CAMERA.height, CAMERA.width, seed=index)
            writer.write_pair(10**9 + index * 100_000_000, *pair, CAMERA)
    return path


def _command(*arguments: object) -> list[str]:
    return [sys.executable, '-m', 'stereo_kd_ros.commands.main', 'demo', *map(str, arguments)]


def _demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments, '--provider', 'cpu'),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env={**os.environ, 'COLUMNS': '120'},
    )


def test_a_bag_goes_through_the_live_node(bag: Path, tmp_path: Path, block_matcher: str) -> None:
    output = tmp_path / 'out'
    done = _demo(bag, '-o', output, '--model', block_matcher)

    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((output / 'demo.json').read_text())
    assert result['pairs_sent'] == PAIRS
    assert 1 <= result['pairs_recorded'] <= result['pairs_published'] <= PAIRS
    assert result['provider'] == 'cpu'
    latency = result['stamp_to_publish_ms']
    assert 0 < latency['p50'] <= latency['p95'] <= latency['p99']
    assert result['ours'] is None
    # A plane that both matchers see alike, but for the border.
    assert result['difference_from_sgbm']['epe_px'] < 0.5
    assert re.search(r'sent by the player\W+8', done.stdout)
    assert '–' in done.stdout
    assert cv2.imread(str(output / 'demo.png')).shape[1] > 3 * CAMERA.width


def test_a_generated_drive_is_scored_against_its_truth(tmp_path: Path, block_matcher: str) -> None:
    output = tmp_path / 'out'
    done = _demo('-o', output, '--frames', '4', '--rate', '1', '--model', block_matcher)

    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((output / 'demo.json').read_text())
    assert result['pairs_sent'] == 4
    for name in ('ours', 'sgbm'):
        assert np.isfinite(result[name]['epe_px']) and 0 <= result[name]['bad3'] <= 100
    assert 'EPE px' in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ('name', 'calibration', 'pairs'),
    [
        ('sequence_kitti_odometry_1', 'calib.txt', 20),
        ('sequence_euroc_micro_rectified', 'calib.json', 16),
    ],
)
def test_real_sequences_go_through_bag_player_and_node(
    data_dir: Path, tmp_path: Path, block_matcher: str, name: str, calibration: str, pairs: int
) -> None:
    root = data_dir / name
    folders = ['--left', root / 'left', '--right', root / 'right', '--calib', root / calibration]
    command = [sys.executable, '-m', 'stereo_kd_ros.commands.main', 'make-bag']
    subprocess.run(
        [*command, *map(str, folders), '-o', str(tmp_path / 'bag')], check=True, timeout=TIMEOUT_S
    )
    done = _demo(tmp_path / 'bag', '-o', tmp_path / 'out', '--rate', '4', '--model', block_matcher)

    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads((tmp_path / 'out/demo.json').read_text())
    assert result['pairs_sent'] == pairs
    # A slow machine supersedes pairs, but each is accounted for. (An image that got lost on its
    # way leaves its partner unmatched, which was never a pair.)
    images = {*DROP_CAUSES, 'no_camera_info'}
    dropped = sum(number for cause, number in result['dropped'].items() if cause not in images)
    assert result['pairs_received'] == result['pairs_published'] + dropped


def test_a_node_that_cannot_start_is_reported_with_its_words(bag: Path, tmp_path: Path) -> None:
    model = write_contract_breaker(tmp_path / 'breaker.onnx')
    done = _demo(bag, '-o', tmp_path / 'out', '--model', model)

    assert done.returncode == 1
    assert 'The node ended with exit code 1' in done.stderr
    assert 'confidence' in done.stderr
    assert not (tmp_path / 'out/demo.json').exists()


def test_nothing_published_is_a_failure(bag: Path, tmp_path: Path) -> None:
    model = write_failing_model(tmp_path / 'failing.onnx', max_width_px=640)
    done = _demo(bag, '-o', tmp_path / 'out', '--model', model)

    assert done.returncode == 1, done.stdout + done.stderr
    assert 'Traceback' not in done.stderr
    assert not (tmp_path / 'out/demo.json').exists()


def test_an_unknown_model_and_an_absent_bag_fail_at_once(
    tmp_path: Path, block_matcher: str
) -> None:
    done = _demo(tmp_path / 'absent', '-o', tmp_path / 'out', '--model', block_matcher)
    assert done.returncode == 1 and 'does not exist' in done.stderr
    assert not done.stdout, 'no progress of nothing'
    done = _demo('-o', tmp_path / 'out', '--model', tmp_path / 'absent.onnx')
    assert done.returncode == 1 and 'absent.onnx' in done.stderr


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_no_process_survives_an_interrupt(
    bag: Path, tmp_path: Path, block_matcher: str, number: int
) -> None:
    command = _command(
        bag, '-o', tmp_path / 'out', '--model', block_matcher, '--provider', 'cpu', '--rate', '0.1'
    )
    demo = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + END_S
        while len(children := _children(demo.pid)) < 2:
            assert demo.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        demo.send_signal(number)
        assert demo.wait(END_S) != 0
    finally:
        if demo.poll() is None:
            demo.kill()
            demo.wait()

    assert not [pid for pid in children if Path(f'/proc/{pid}').exists()]


def _children(pid: int) -> list[int]:
    listing = Path(f'/proc/{pid}/task/{pid}/children')
    return [int(child) for child in listing.read_text().split()] if listing.exists() else []
