# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node's publishers. Each is lazy: what nobody subscribes to is neither computed nor sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.node import Node
from rclpy.qos import (
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image, PointCloud2
from std_msgs.msg import Header
from stereo_msgs.msg import DisparityImage

from stereo_kd_ros.node.inputs import describe_qos
from stereo_kd_ros.node.messages import (
    depth_camera_info,
    depth_message,
    disparity_message,
    image_message,
    points_message,
)
from stereo_kd_ros.node.parameters import Settings
from stereo_kd_ros.node.pipeline import DepthFrame
from stereo_kd_ros.visualize import colorize_disparity


@dataclass(frozen=True)
class Output:
    """One topic the node publishes."""

    topic: str
    message_type: type
    description: str


TOPICS = {
    'disparity': Output(
        'disparity',
        DisparityImage,
        'Disparity without the cx offset; invalid pixels lie below `min_disparity`',
    ),
    'depth': Output(
        'depth/image',
        Image,
        '32FC1 metres (NaN invalid, -Inf too close, +Inf beyond range) or 16UC1 millimetres '
        '(0 invalid)',
    ),
    'depth_info': Output(
        'depth/camera_info', CameraInfo, "The left camera_info under the depth image's header"
    ),
    'sigma': Output(
        'depth/sigma',
        Image,
        '32FC1 metres: Z^2 / (f B) times `disparity_sigma`, NaN without depth',
    ),
    'confidence': Output('confidence', Image, '32FC1, 0..1, pixel by pixel with the depth'),
    'points': Output(
        'points', PointCloud2, 'Organised cloud, x y z rgb, in the left optical frame'
    ),
    'color': Output(
        'disparity/color', Image, 'rgb8 picture of the disparity, for looking; invalid is black'
    ),
}
NEED_DEPTH = frozenset({'depth', 'points', 'sigma'})
EVERYTHING = frozenset(TOPICS)
# What nearly everybody subscribes to.
USUAL = frozenset({'disparity', 'depth', 'depth_info'})


def reliable_qos() -> QoSProfile:
    """Reliable, volatile, five deep. A new object each time, as overrides change it."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.RELIABLE
    )


class StereoOutputs:
    """Publishes the parts of a depth frame that somebody wants."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publishers = {
            name: node.create_publisher(
                output.message_type,
                output.topic,
                reliable_qos(),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
            )
            for name, output in TOPICS.items()
        }

    def destroy(self) -> None:
        """Ends the publishers."""
        for publisher in self._publishers.values():
            self._node.destroy_publisher(publisher)
        self._publishers.clear()

    def wanted(self, lazy: bool) -> frozenset[str]:
        """Returns the outputs that have a subscriber; all of them when not lazy."""
        if not lazy:
            return EVERYTHING
        return frozenset(
            name
            for name, publisher in self._publishers.items()
            if publisher.get_subscription_count()
        )

    def qos_conflicts(self) -> list[str]:
        """Returns one sentence per subscriber whose QoS keeps our messages from it."""
        conflicts = []
        for publisher in self._publishers.values():
            topic = publisher.topic_name
            for endpoint in self._node.get_subscriptions_info_by_topic(topic):
                verdict, reason = qos_check_compatible(publisher.qos_profile, endpoint.qos_profile)
                if verdict == QoSCompatibility.ERROR:
                    conflicts.append(
                        f'{topic}: {endpoint.node_name} requests '
                        f'{describe_qos(endpoint.qos_profile)}, we offer '
                        f'{describe_qos(publisher.qos_profile)} ({reason.strip()})'
                    )
        return conflicts

    def publish(
        self,
        frame: DepthFrame,
        header: Header,
        left_info: CameraInfo,
        settings: Settings,
        wanted: frozenset[str],
    ) -> None:
        """Publishes the wanted outputs under the left image's header."""
        for name in TOPICS:
            if name in wanted:
                message = make_message(name, frame, header, left_info, settings)
                self._publishers[name].publish(message)


def make_message(
    name: str,
    frame: DepthFrame,
    header: Header,
    left_info: CameraInfo,
    settings: Settings,
) -> Any:
    """Returns the message of an output of `TOPICS` under the left image's header."""
    if name == 'disparity':
        return disparity_message(
            frame.disparity_px,
            frame.camera,
            header,
            settings.min_disparity,
            frame.max_disparity_px,
        )
    if name == 'depth_info':
        return depth_camera_info(left_info, header)
    if name == 'confidence':
        return image_message(frame.confidence, '32FC1', header)
    if name == 'color':
        coloured = colorize_disparity(frame.disparity_px, settings.max_disparity or None)
        return image_message(coloured, 'rgb8', header)
    depth_m: np.ndarray = frame.depth_m
    if name == 'depth':
        return depth_message(depth_m, settings.depth_encoding, header)
    if name == 'points':
        return points_message(depth_m, frame.left_rgb, frame.camera, header)
    sigma_m = frame.camera.depth_sigma(depth_m, settings.disparity_sigma)
    return image_message(sigma_m, '32FC1', header)
