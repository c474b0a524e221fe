# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd run`: the node in a terminal, with settings as options and as ROS arguments."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import rclpy
from rclpy.context import Context
from rclpy.node import Node
from ros_rig import wait_until

from stereo_kd_ros.children import Child
from stereo_kd_ros.commands.run import node_arguments

RUN = [sys.executable, '-m', 'stereo_kd_ros.commands.main', 'run']


def test_options_become_ros_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_arguments() == []
    assert node_arguments(model='small', namespace='/front/') == [
        *('--ros-args', '-r', '__ns:=/front', '-p', 'model:=small', '--')
    ]
    # A file is found wherever the node runs.
    (tmp_path / 'own.onnx').touch()
    monkeypatch.chdir(tmp_path)
    assert f'model:={tmp_path / "own.onnx"}' in node_arguments(model='own.onnx')


def test_it_runs_where_it_was_told_until_it_is_stopped(tmp_path: Path, block_matcher: str) -> None:
    command = [*RUN, '--model', block_matcher, '--provider', 'cpu', '--namespace', 'run_test']
    command += ['--ros-args', '-r', 'left/image_rect:=/eyes/left']
    context = Context()
    rclpy.init(args=[], context=context)
    observer = Node('observer', context=context)
    try:
        with Child('run', command, log=tmp_path / 'log') as node:
            wait_until(
                lambda: observer.count_subscribers('/eyes/left') or node.exit_code is not None, 200
            )
            node.require_alive()
            # Names travel apart from topics and may come a little later.
            named = ('stereo_node', '/run_test')
            wait_until(lambda: named in observer.get_node_names_and_namespaces())
            assert node.stop() == 0, node.tail()
    finally:
        observer.destroy_node()
        context.try_shutdown()


def test_a_model_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with Child('run', [*RUN, '--model', 'absent.onnx'], log=tmp_path / 'log') as node:
        wait_until(lambda: node.exit_code is not None, 200)
    assert node.exit_code == 1
    assert 'absent.onnx' in node.tail()
