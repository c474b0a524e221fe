# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Starts the stereo node.

    ros2 launch stereo_kd_ros stereo.launch.py model:=small rig:=realsense
    ros2 launch stereo_kd_ros stereo.launch.py left_namespace:=/cam/l right_namespace:=/cam/r

Include it twice under two namespaces for two cameras. Arguments that are left empty leave the
parameter to the rig, and the rig leaves what it does not name to `params_file`.
"""

from __future__ import annotations

import os
from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from stereo_kd_ros.transport import apply_fastdds_profile, share_file

PARAMETERS_FILE = share_file('config/stereo.yaml')
RIGS = sorted(path.stem for path in (PARAMETERS_FILE.parent / 'rigs').glob('*.yaml'))
SIDES = ('left', 'right')
FLAG = ['true', 'false']

ARGUMENTS = [
    DeclareLaunchArgument(
        'namespace', default_value='', description='Namespace of the node and its topics'
    ),
    DeclareLaunchArgument(
        'left_namespace',
        default_value='left',
        description='Where the left image_rect and camera_info are; relative to namespace',
    ),
    DeclareLaunchArgument(
        'right_namespace',
        default_value='right',
        description='Where the right image_rect and camera_info are; relative to namespace',
    ),
    DeclareLaunchArgument(
        'rig',
        default_value='',
        choices=['', *RIGS],
        description='A known camera: its topics, instead of the two namespaces, and parameters',
    ),
    DeclareLaunchArgument(
        'model',
        default_value='',
        description='Model file, or name or size of a shipped model; empty: from params_file',
    ),
    DeclareLaunchArgument(
        'provider',
        default_value='',
        choices=['', 'auto', 'tensorrt', 'cuda', 'openvino', 'cpu'],
        description='ONNX Runtime execution provider; empty: from params_file',
    ),
    DeclareLaunchArgument(
        'params_file',
        default_value=str(PARAMETERS_FILE),
        description='Parameters of the node (YAML)',
    ),
    DeclareLaunchArgument(
        'launch_image_proc',
        default_value='false',
        choices=FLAG,
        description='Rectify <side>_namespace/image_raw with image_proc first',
    ),
    DeclareLaunchArgument(
        'use_sim_time',
        default_value='false',
        choices=FLAG,
        description='Take the time from /clock, as when a bag is replayed with --clock',
    ),
    DeclareLaunchArgument(
        'log_level',
        default_value='info',
        choices=['debug', 'info', 'warn', 'error', 'fatal'],
        description='Least severity that is logged',
    ),
]


def generate_launch_description() -> LaunchDescription:
    """Declares the arguments, applies the Fast DDS profile and starts the nodes."""
    profile = [
        SetEnvironmentVariable(variable, path)
        for variable, path in apply_fastdds_profile(dict(os.environ)).items()
    ]
    return LaunchDescription([*ARGUMENTS, *profile, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    use_sim_time = argument('use_sim_time') == 'true'
    topics = {
        f'{side}/{topic}': f'{argument(f"{side}_namespace")}/{topic}'
        for side in SIDES
        for topic in ('image_rect', 'camera_info')
    }
    parameters: dict[str, object] = {}
    if argument('rig'):
        rig = _rig(argument('rig'))
        topics.update(rig['topics'])
        parameters.update(rig['parameters'])
    parameters.update({name: argument(name) for name in ('model', 'provider') if argument(name)})
    stereo_node = Node(
        package='stereo_kd_ros',
        executable='stereo_node',
        name='stereo_node',
        namespace=argument('namespace'),
        parameters=[argument('params_file'), {**parameters, 'use_sim_time': use_sim_time}],
        remappings=list(topics.items()),
        ros_arguments=['--log-level', argument('log_level')],
        output='screen',
    )
    if argument('launch_image_proc') == 'false':
        return [stereo_node]
    rectifiers = [
        Node(
            package='image_proc',
            executable='rectify_node',
            name=f'rectify_{side}',
            namespace=argument('namespace'),
            parameters=[{'use_sim_time': use_sim_time}],
            remappings=[
                ('image', f'{argument(f"{side}_namespace")}/image_raw'),
                ('camera_info', topics[f'{side}/camera_info']),
                ('image_rect', topics[f'{side}/image_rect']),
            ],
            output='screen',
        )
        for side in SIDES
    ]
    return [*rectifiers, stereo_node]


def _rig(name: str) -> dict[str, dict[str, object]]:
    path = Path(share_file(f'config/rigs/{name}.yaml'))
    return yaml.safe_load(path.read_text(encoding='utf-8'))
