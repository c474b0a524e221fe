# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Launch files and rigs: the rig files always, the launch files where launch is installed."""

from __future__ import annotations

import importlib.util
import inspect
import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from stereo_kd_ros.bag import StereoBagWriter
from stereo_kd_ros.launch_graph import (
    LAYOUT,
    RECTIFICATIONS,
    VIEWED_TOPICS,
    input_topics,
    rectifiers,
    viewer,
)
from stereo_kd_ros.node.diagnostics import KEYS
from stereo_kd_ros.node.inputs import TOPICS
from stereo_kd_ros.node.outputs import TOPICS as OUTPUTS
from stereo_kd_ros.node.parameters import SPECS, Settings

FRAME = 'left_camera_optical_frame'
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


def node_facts(node: Any) -> tuple[str, str, dict[str, str]]:
    return node.node_package, node.node_executable, remappings(node)


@pytest.mark.parametrize('mode', RECTIFICATIONS)
def test_image_proc_starts_as_planned(repository: Path, mode: str) -> None:
    *rectifying, stereo_node = started(repository, launch_image_proc=mode)
    planned = rectifiers(mode, NAMESPACES, input_topics(NAMESPACES))
    assert stereo_node.node_executable == 'stereo_node'
    assert [node_facts(node) for node in rectifying] == [
        (plan.package, plan.executable, dict(plan.remappings)) for plan in planned
    ]


def test_rviz_opens_where_it_is_and_says_so_where_it_is_not(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    stereo_node, message = started(repository, rviz='true')
    assert stereo_node.node_executable == 'stereo_node'
    (text,) = message.msg
    assert 'ros-jazzy-rviz2' in text.text and 'stereo.rviz' in text.text

    index = tmp_path / 'share/ament_index/resource_index/packages'
    index.mkdir(parents=True)
    (index / 'rviz2').touch()
    _, rviz = started(repository, rviz='true', rviz_frame='cam')
    assert rviz.node_package == rviz.node_executable == 'rviz2'
    assert remappings(rviz) == {topic: topic[1:] for topic in VIEWED_TOPICS}


NAMESPACES = {'left': 'left', 'right': 'right'}


def test_image_proc_takes_the_raw_image_and_the_camera_info_beside_it() -> None:
    """The names are those of image_proc's rectify_node: image, camera_info, image_rect."""
    namespaces = {'left': 'cam0', 'right': '/rig/cam1'}
    left, right = rectifiers('true', namespaces, input_topics(namespaces))
    assert (left.package, left.executable) == ('image_proc', 'rectify_node')
    assert left.name != right.name
    assert left.remappings == {
        'image': 'cam0/image_raw',
        'camera_info': 'cam0/camera_info',
        'image_rect': 'cam0/image_rect',
    }
    assert right.remappings['image'] == '/rig/cam1/image_raw'
    assert right.remappings['image_rect'] == '/rig/cam1/image_rect'
    assert rectifiers('false', namespaces, input_topics(namespaces)) == []


def test_what_image_proc_writes_is_what_the_node_reads() -> None:
    rig = {'left/image_rect': '/a/rect', 'left/camera_info': '/b/info'}
    topics = input_topics(NAMESPACES, rig)
    left, right = rectifiers('true', NAMESPACES, topics)
    assert topics['left/image_rect'] == left.remappings['image_rect'] == '/a/rect'
    assert topics['right/image_rect'] == right.remappings['image_rect'] == 'right/image_rect'
    # Whether image_proc asks for its own name or for the sibling of the image.
    assert left.remappings['camera_info'] == left.remappings['left/camera_info'] == '/b/info'
    assert 'right/camera_info' not in right.remappings


def test_colour_filter_images_are_debayered_before_they_are_rectified() -> None:
    planned = rectifiers('bayer', NAMESPACES, input_topics(NAMESPACES))
    assert [plan.executable for plan in planned] == ['debayer_node', 'rectify_node'] * 2
    debayer, rectify = planned[:2]
    assert debayer.remappings['image_raw'] == 'left/image_raw'
    assert debayer.remappings['image_color'] == rectify.remappings['image'] == 'left/image_color'
    assert len({plan.name for plan in planned}) == 4


PUBLISHED = {f'/{output.topic}' for output in OUTPUTS.values()}


def test_the_rviz_layout_shows_what_the_node_publishes(repository: Path) -> None:
    layout = yaml.safe_load((repository / LAYOUT).read_text())
    manager = layout['Visualization Manager']
    shown = {d['Name']: d for d in manager['Displays'] if 'Topic' in d}
    topics = [display['Topic']['Value'] for display in shown.values()]
    assert sorted(topics) == sorted(VIEWED_TOPICS)
    assert set(topics) <= PUBLISHED
    published_kinds = {f'/{o.topic}': o.message_type.__name__ for o in OUTPUTS.values()}
    for display in shown.values():
        package, kind = display['Class'].split('/')
        assert package == 'rviz_default_plugins'
        assert published_kinds[display['Topic']['Value']] == kind
        # RViz would get nothing with more than we offer: reliable and volatile.
        assert display['Topic']['Durability Policy'] == 'Volatile'
        assert display['Enabled'] == display['Value']
    assert manager['Global Options']['Fixed Frame'] == FRAME
    current = manager['Views']['Current']
    assert abs(current['Pitch']) < math.pi / 2


def test_the_foxglove_layout_shows_what_the_node_publishes(repository: Path) -> None:
    layout = json.loads((repository / 'config/foxglove/stereo.json').read_text())
    panels = layout['configById']

    def placed(part: Any) -> list[str]:
        if isinstance(part, str):
            return [part]
        assert part['direction'] in ('row', 'column')
        return placed(part['first']) + placed(part['second'])

    assert sorted(placed(layout['layout'])) == sorted(panels)
    topics: list[str] = []
    for panel in panels.values():
        mode = panel.get('imageMode', {})
        topics += [mode[key] for key in ('imageTopic', 'calibrationTopic') if key in mode]
        topics += panel.get('topics', {})
        topics += [panel['topicToRender']] if 'topicToRender' in panel else []
    assert set(topics) <= PUBLISHED | {'/diagnostics'}
    assert set(VIEWED_TOPICS) <= set(topics)
    (cloud,) = [panel for name, panel in panels.items() if name.startswith('3D!')]
    assert cloud['followTf'] == FRAME
    (status,) = [p for name, p in panels.items() if name.startswith('DiagnosticStatusPanel!')]
    assert status['selectedName'].split(': ')[1] in KEYS


def test_layouts_are_in_the_frame_that_our_bags_carry() -> None:
    assert inspect.signature(StereoBagWriter).parameters['frame_id'].default == FRAME


def test_viewer_runs_in_the_frame_it_is_told() -> None:
    assert viewer('a.rviz').arguments == ('-d', 'a.rviz')
    assert viewer('a.rviz', 'cam').arguments == ('-d', 'a.rviz', '-f', 'cam')
