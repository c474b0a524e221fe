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
from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from stereo_kd_ros.launch_graph import LAYOUT, SIDES, PlannedNode, input_topics, rectifiers, viewer
from stereo_kd_ros.transport import apply_fastdds_profile, share_file

PARAMETERS_FILE = share_file('config/stereo.yaml')
RIGS = sorted(path.stem for path in (PARAMETERS_FILE.parent / 'rigs').glob('*.yaml'))
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
        choices=['false', 'true', 'bayer'],
        description='Rectify <side>_namespace/image_raw with image_proc first; bayer: colour '
        'filter images, debayered before',
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
    DeclareLaunchArgument(
        'rviz',
        default_value='false',
        choices=FLAG,
        description='Open RViz with the cloud and the pictures, where rviz2 is installed',
    ),
    DeclareLaunchArgument(
        'rviz_frame',
        default_value='',
        description='Fixed frame of RViz: frame_id of the left image; empty: from the layout',
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
    namespaces = {side: argument(f'{side}_namespace') for side in SIDES}
    rig = _rig(argument('rig')) if argument('rig') else {'topics': {}, 'parameters': {}}
    topics = input_topics(namespaces, rig['topics'])
    parameters = dict(rig['parameters'])
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
    planned = rectifiers(argument('launch_image_proc'), namespaces, topics)
    started = [_node(plan, argument('namespace'), use_sim_time) for plan in planned]
    started.append(stereo_node)
    if argument('rviz') == 'true':
        plan = viewer(str(share_file(LAYOUT)), argument('rviz_frame'))
        started.append(
            _node(plan, argument('namespace'), use_sim_time)
            if _is_installed(plan.package)
            else LogInfo(
                msg='rviz:=true, but rviz2 is not installed, so only the node starts: '
                f'sudo apt install ros-{os.environ.get("ROS_DISTRO", "<distribution>")}-rviz2, or '
                f'open {plan.arguments[1]} on another machine'
            )
        )
    return started


def _node(plan: PlannedNode, namespace: str, use_sim_time: bool) -> Node:
    return Node(
        package=plan.package,
        executable=plan.executable,
        name=plan.name,
        namespace=namespace,
        parameters=[{'use_sim_time': use_sim_time}],
        remappings=list(plan.remappings.items()),
        arguments=list(plan.arguments),
        output='screen',
    )


def _is_installed(package: str) -> bool:
    try:
        get_package_prefix(package)
    except PackageNotFoundError:
        return False
    return True


def _rig(name: str) -> dict[str, dict[str, object]]:
    path = Path(share_file(f'config/rigs/{name}.yaml'))
    return yaml.safe_load(path.read_text(encoding='utf-8'))
