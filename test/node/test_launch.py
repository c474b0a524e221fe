# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Launch files and rigs: the rig files always, the launch files where launch is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import yaml

from stereo_kd_ros.node.inputs import TOPICS
from stereo_kd_ros.node.parameters import SPECS, Settings

RIGS = ('euroc', 'kitti', 'oak_d', 'realsense', 'zed')


@pytest.mark.parametrize('rig', RIGS)
def test_a_rig_names_known_topics_and_parameters_with_sound_values(
    rig: str, repository: Path
) -> None:
    values = yaml.safe_load((repository / f'config/rigs/{rig}.yaml').read_text())
    assert set(values) == {'topics', 'parameters'}
    assert set(values['topics']) in (set(), set(TOPICS.values()))
    defaults = {name: spec.default for name, spec in SPECS.items()}
    Settings(**{**defaults, **values['parameters']})
    for name, value in values['parameters'].items():
        assert type(value) is type(SPECS[name].default), name


def test_every_rig_is_listed(repository: Path) -> None:
    assert sorted(path.stem for path in (repository / 'config/rigs').iterdir()) == list(RIGS)


def launch_file(repository: Path, name: str) -> Any:
    pytest.importorskip('launch_ros', reason='launch_ros is not installed')
    spec = importlib.util.spec_from_file_location('launch_file', repository / 'launch' / name)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize('name', ['stereo.launch.py', 'replay.launch.py'])
def test_every_argument_says_what_it_is(repository: Path, name: str) -> None:
    description = launch_file(repository, name).generate_launch_description()
    arguments = description.get_launch_arguments()
    assert arguments
    assert all(argument.description for argument in arguments)


def started(repository: Path, **arguments: str) -> list[Any]:
    """The nodes that stereo.launch.py would start."""
    module = launch_file(repository, 'stereo.launch.py')
    from launch import LaunchContext

    context = LaunchContext()
    for declared in module.ARGUMENTS:
        declared.execute(context)
    context.launch_configurations.update(arguments)
    return module._nodes(context)


def remappings(node: Any) -> dict[str, str]:
    return {
        ''.join(part.text for part in old): ''.join(part.text for part in new)
        for old, new in node.expanded_remapping_rules or node._Node__remappings
    }


def test_namespaces_become_remaps(repository: Path) -> None:
    (node,) = started(repository, left_namespace='infra1', right_namespace='/cam/right')
    assert remappings(node) == {
        'left/image_rect': 'infra1/image_rect',
        'left/camera_info': 'infra1/camera_info',
        'right/image_rect': '/cam/right/image_rect',
        'right/camera_info': '/cam/right/camera_info',
    }


def test_a_rig_brings_its_topics(repository: Path) -> None:
    (node,) = started(repository, rig='realsense')
    assert remappings(node)['right/image_rect'] == '/camera/camera/infra2/image_rect_raw'


def test_image_proc_comes_on_demand(repository: Path) -> None:
    assert len(started(repository, launch_image_proc='true')) == 3
