# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Replays a bag into the stereo node, on the bag's own clock, and ends with it.

    ros2 launch stereo_kd_ros replay.launch.py bag:=BAG model:=small rig:=kitti

Takes the arguments of stereo.launch.py too.
"""

from __future__ import annotations

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    Shutdown,
)
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.substitutions import ExecutableInPackage

from stereo_kd_ros.transport import share_file

ARGUMENTS = [
    DeclareLaunchArgument('bag', description='The bag (rosbag2 folder, .mcap, ROS 1 .bag)'),
    DeclareLaunchArgument('rate', default_value='1.0', description='2.0 plays twice as fast'),
    DeclareLaunchArgument(
        'loop',
        default_value='false',
        choices=['true', 'false'],
        description='Begin again at the end',
    ),
]


def generate_launch_description() -> LaunchDescription:
    """Starts the node with use_sim_time, and the player once the node listens."""
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(share_file('launch/stereo.launch.py'))),
        launch_arguments={'use_sim_time': 'true'}.items(),
    )
    return LaunchDescription([*ARGUMENTS, node, OpaqueFunction(function=_player)])


def _player(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    def argument(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    command = [ExecutableInPackage('stereo-kd', 'stereo_kd_ros'), 'play', argument('bag')]
    # The node loads its model first; nothing of the bag may go by before it listens.
    command += ['--clock', '--wait', '60', '--rate', argument('rate')]
    if argument('loop') == 'true':
        command.append('--loop')
    return [
        ExecuteProcess(cmd=command, output='screen', on_exit=Shutdown(reason='the bag has ended'))
    ]
