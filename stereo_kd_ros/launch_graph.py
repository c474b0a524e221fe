# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the launch files start, as plain values: which node of which package under which remaps.

The launch files turn these into actions; nothing here needs ROS.

image_proc's rectify_node takes `image` and the camera_info beside it. Up to Humble that is
`camera_info` in its own namespace, later the sibling of the image after remapping, so both names
are mapped where they are not the same. It does not know colour filters: pixels of a Bayer image
would be mixed, hence debayer_node before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SIDES = ('left', 'right')
RECTIFICATIONS = ('false', 'true', 'bayer')
LAYOUT = 'config/rviz/stereo.rviz'
# What the layouts for RViz and Foxglove show: names as the node publishes them at the root.
VIEWED_TOPICS = ('/points', '/disparity/color', '/depth/image', '/confidence')


@dataclass(frozen=True)
class PlannedNode:
    """One process to start."""

    package: str
    executable: str
    name: str
    remappings: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def input_topics(
    namespaces: Mapping[str, str], rig_topics: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Returns where each input of the node comes from.

    Args:
        namespaces: of `left` and `right`.
        rig_topics: of a known camera; those it names win.
    """
    topics = {
        f'{side}/{topic}': f'{namespaces[side]}/{topic}'
        for side in SIDES
        for topic in ('image_rect', 'camera_info')
    }
    return {**topics, **(rig_topics or {})}


def rectifiers(
    mode: str, namespaces: Mapping[str, str], topics: Mapping[str, str]
) -> list[PlannedNode]:
    """Returns image_proc's nodes that make `topics` out of `<namespace>/image_raw`.

    Args:
        mode: one of `RECTIFICATIONS`.
        namespaces: of `left` and `right`.
        topics: `input_topics` of the node.
    """
    planned = []
    for side in SIDES if mode != 'false' else ():
        beside = f'{namespaces[side]}/camera_info'
        image = f'{namespaces[side]}/image_raw'
        if mode == 'bayer':
            raw, image = image, f'{namespaces[side]}/image_color'
            remappings = {
                'image_raw': raw,
                'image_color': image,
                'image_mono': f'{namespaces[side]}/image_mono',
            }
            planned.append(
                PlannedNode('image_proc', 'debayer_node', f'debayer_{side}', remappings)
            )
        remappings = {
            'image': image,
            'camera_info': topics[f'{side}/camera_info'],
            'image_rect': topics[f'{side}/image_rect'],
        }
        if beside != topics[f'{side}/camera_info']:
            remappings[beside] = topics[f'{side}/camera_info']
        planned.append(PlannedNode('image_proc', 'rectify_node', f'rectify_{side}', remappings))
    return planned


def viewer(layout: str, fixed_frame: str = '') -> PlannedNode:
    """Returns RViz with our layout, its topics looked up in the namespace it runs in.

    Args:
        layout: path of the .rviz file.
        fixed_frame: that of the cloud; empty leaves it to the layout.
    """
    arguments = ('-d', layout) + (('-f', fixed_frame) if fixed_frame else ())
    # A relative target follows the namespace, whoever pushed it.
    remappings = {topic: topic.lstrip('/') for topic in VIEWED_TOPICS}
    return PlannedNode('rviz2', 'rviz2', 'rviz2', remappings, arguments)
