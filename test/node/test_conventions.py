# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Conventions of ROS 2 that no other test holds, and the table of which test holds which."""

from __future__ import annotations

import ast
import importlib.util
import re
from pathlib import Path
from typing import Any

from rclpy.parameter import Parameter
from ros_rig import Rig, Spinner, camera_infos, matched, textured_pair, wait_until
from sensor_msgs.msg import Image

from stereo_kd_ros.node.diagnostics import KEYS
from stereo_kd_ros.node.inputs import TOPICS
from stereo_kd_ros.node.parameters import SPECS
from stereo_kd_ros.node.stereo_node import StereoNode


def test_camera_info_moves_apart_from_its_image(block_matcher: str) -> None:
    remaps = ('--ros-args', '-r', 'left/camera_info:=calibration/left')
    with Rig(model=block_matcher, cli_args=remaps) as rig:
        topics = rig.node.inputs.topics
        assert topics['left_camera_info'] == '/calibration/left'
        assert topics['left_image'] == '/left/image_rect'


def test_two_cameras_live_side_by_side(block_matcher: str) -> None:
    """As when the launch file is included twice under two namespaces."""
    parameters = {'model': block_matcher, 'provider': 'cpu', 'threads': 1}
    reliable = {
        f'qos_overrides./front/{topic}.subscription.reliability': 'reliable'
        for topic in TOPICS.values()
    }
    with Rig(model=block_matcher, namespace='/front', **reliable) as rig:
        rear = StereoNode(
            context=rig.node.context,
            namespace='/rear',
            parameter_overrides=[Parameter(name, value=v) for name, v in parameters.items()],
        )
        spinner = Spinner(rear)
        try:
            assert rear.start()
            depth = {name: rig.listen(f'/{name}/depth/image', Image) for name in ('front', 'rear')}
            rig.ready(depth['front'])
            wait_until(lambda: matched(rear, '/rear/depth/image'), 60.0)
            rig.camera.send(*textured_pair(5), 7, camera_infos())
            assert depth['front'].next(60.0).header.stamp.nanosec == 7
            assert rear.counts()['pairs_received'] == 0 and not depth['rear'].messages
            wait_until(lambda: len(reporters(rig)) == 2, 60.0)
            assert reporters(rig) == {'front/stereo_node', 'rear/stereo_node'}
        finally:
            spinner.close()
            rear.destroy_node()


def reporters(rig: Rig) -> set[str]:
    """The nodes whose diagnostics have come."""
    messages = list(rig.diagnostics.messages)
    return {status.name.split(': ')[0] for array in messages for status in array.status}


def test_diagnostics_come_once_a_second_under_node_and_part(
    block_matcher: str, repository: Path
) -> None:
    # From the source: the rig asks for a quicker one.
    tree = ast.parse((repository / 'stereo_kd_ros/node/stereo_node.py').read_text())
    constants = {
        node.targets[0].id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    }
    assert ast.literal_eval(constants['HEALTH_PERIOD_S']) == 1.0
    with Rig(model=block_matcher, namespace='/robot') as rig:
        wait_until(lambda: rig.diagnostics.messages, 60.0)
        array = rig.diagnostics.messages[-1]
        names = [status.name for status in array.status]
        assert names == [f'robot/stereo_node: {part}' for part in KEYS]
        assert {status.hardware_id for status in array.status} == {'stereo_kd_ros'}
        assert array.header.stamp.sec > 0


def test_monitors_find_the_keys_they_know() -> None:
    assert {
        'frame_rate_node',
        'current_delay_from_realtime_ms',
        'total_dropped_frames',
        'expected_frequency',
    } <= set(KEYS['pipeline'])


def test_parameters_bear_their_usual_names(block_matcher: str) -> None:
    usual = {
        'approximate_sync',
        'approximate_sync_tolerance_seconds',
        'queue_size',
        'image_transport',
        'min_disparity',
        'max_disparity',
    }
    assert usual <= set(SPECS)
    with Rig(start=False, model=block_matcher) as rig:
        assert all(rig.node.has_parameter(name) for name in {*usual, 'use_sim_time'})


def test_launch_arguments_bear_their_usual_names_and_say_what_they_are(repository: Path) -> None:
    """Read from the source, as launch is not installed everywhere."""
    rows = {row[0].strip('`'): row[1:] for row in node_docs(repository).argument_rows()}
    assert {
        'namespace',
        'left_namespace',
        'right_namespace',
        'params_file',
        'model',
        'launch_image_proc',
        'use_sim_time',
        'log_level',
        'rviz',
    } <= set(rows)
    assert all(description for _, _, description in rows.values())
    for flag in ('launch_image_proc', 'use_sim_time', 'rviz', 'loop'):
        assert '`true`' in rows[flag][1] and '`false`' in rows[flag][1], flag
    assert '`debug`' in rows['log_level'][1] and '`openvino`' in rows['provider'][1]


def node_docs(repository: Path) -> Any:
    spec = importlib.util.spec_from_file_location('node_docs', repository / 'tools/node_docs.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_names_tests_that_exist(repository: Path) -> None:
    lines = (repository / 'docs/conventions.md').read_text().splitlines()
    rows = [line for line in lines if line.startswith('| ')][2:]
    assert len(rows) >= 20
    for row in rows:
        named = re.findall(r'`(test/[\w/]+\.py)::(test_\w+)`', row)
        assert named, f'no test holds: {row}'
        for file, name in named:
            tree = ast.parse((repository / file).read_text(encoding='utf-8'))
            functions = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)}
            assert name in functions, f'{file} has no {name}'
