# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node as a process of its own: how it starts, fails to start, and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from ros_rig import Camera, Listener, Spinner, camera_infos, textured_pair, wait_until
from sensor_msgs.msg import Image
from tiny_models import write_contract_breaker

COMMAND = [sys.executable, '-m', 'stereo_kd_ros.node.main', '--ros-args', '-p', 'provider:=cpu']
START_S, END_S = 200.0, 100.0


@contextmanager
def node_process(log: Path, *ros_arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """Starts the node, logging to a file, and ends it whatever the test does."""
    with log.open('wb') as output:
        process = subprocess.Popen(
            [*COMMAND, *ros_arguments], stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def wait_for_log(log: Path, text: str) -> None:
    wait_until(lambda: text in log.read_text(), START_S)


@pytest.mark.parametrize('signals', [[signal.SIGTERM], [signal.SIGINT, signal.SIGINT]])
def test_signals_end_it_cleanly(
    block_matcher: str, tmp_path: Path, signals: list[signal.Signals]
) -> None:
    log = tmp_path / 'log'
    with node_process(log, '-p', f'model:={block_matcher}') as process:
        wait_for_log(log, 'runs on cpu')
        for number in signals:
            process.send_signal(number)
            time.sleep(0.05)
        assert process.wait(END_S) == 0
    assert 'Traceback' not in log.read_text()


def require_end_under_fire(log: Path, model: str, signals: int, pause_s: float) -> None:
    """Interrupts the node, `signals` at a time, until it has ended, which it must with 0."""
    with node_process(log, '-p', f'model:={model}') as process:
        wait_for_log(log, 'runs on cpu')
        deadline_s = time.monotonic() + END_S
        while process.poll() is None:
            assert time.monotonic() < deadline_s, log.read_text()
            for _ in range(signals):
                process.send_signal(signal.SIGINT)
            time.sleep(pause_s)
        assert process.returncode == 0, log.read_text()


def test_signals_until_the_very_end_change_nothing(block_matcher: str, tmp_path: Path) -> None:
    log = tmp_path / 'log'
    require_end_under_fire(log, block_matcher, signals=1, pause_s=0.002)
    assert 'Traceback' not in log.read_text()


def test_a_storm_of_signals_neither_hangs_nor_kills_it(block_matcher: str, tmp_path: Path) -> None:
    """So dense that handlers interrupt handlers: what they wait for, they must not hold."""
    log = tmp_path / 'log'
    require_end_under_fire(log, block_matcher, signals=100, pause_s=0.0002)
    assert 'RecursionError' not in log.read_text()


def test_depth_crosses_the_process_boundary(block_matcher: str, tmp_path: Path) -> None:
    log = tmp_path / 'log'
    context = Context()
    rclpy.init(args=[], context=context)
    peer = Node('peer', context=context)
    spinner = Spinner(peer)
    try:
        camera, depth = Camera(peer), Listener(peer, 'depth/image', Image, 5)
        with node_process(log, '-p', f'model:={block_matcher}'):
            wait_for_log(log, 'runs on cpu')
            wait_until(lambda: all(p.get_subscription_count() for p in camera.publishers()))
            wait_until(lambda: peer.count_publishers('/depth/image'))
            left, right = textured_pair()
            stamps = iter(range(1, 10_000))
            # Matching of endpoints takes up to three seconds: the camera runs until depth comes.
            wait_until(
                lambda: (
                    camera.send(left, right, next(stamps), camera_infos())
                    or time.sleep(0.05)
                    or depth.messages
                )
            )
    finally:
        spinner.close()
        peer.destroy_node()
        rclpy.shutdown(context=context)


def broken_model(tmp_path: Path, kind: str) -> Path:
    path = tmp_path / 'model.onnx'
    if kind == 'corrupt':
        path.write_bytes(os.urandom(1000))
    elif kind == 'contract':
        write_contract_breaker(path)
    return path


@pytest.mark.parametrize(
    ('kind', 'said'),
    [('missing', 'does not exist'), ('corrupt', 'model.onnx'), ('contract', "'confidence'")],
)
def test_a_bad_model_is_a_clear_error_and_exit_1(tmp_path: Path, kind: str, said: str) -> None:
    log = tmp_path / 'log'
    with node_process(log, '-p', f'model:={broken_model(tmp_path, kind)}') as process:
        assert process.wait(START_S) == 1
    assert said in log.read_text()
    assert 'Traceback' not in log.read_text()


def test_a_bad_parameter_is_a_clear_error_and_exit_1(tmp_path: Path) -> None:
    log = tmp_path / 'log'
    with node_process(log, '-p', 'queue_size:=0') as process:
        assert process.wait(START_S) == 1
    assert 'queue_size' in log.read_text()
    assert 'Traceback' not in log.read_text()
