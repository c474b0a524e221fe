# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A pair that no camera sent, taken the whole way so that the first real one finds it trodden.

A warm engine is not a warm node: the first pair also loads code of NumPy, OpenCV and the messages'
type support, and is the first to touch the memory of every map and message, a page at a time, in
the arena of the worker's thread. So that thread takes a made pair through all of it, short of
sending, before the node subscribes.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.node.messages import image_message
from stereo_kd_ros.node.outputs import make_message
from stereo_kd_ros.node.parameters import Settings
from stereo_kd_ros.node.pipeline import process_pair

# Any camera would do.
_FRAME = 'rehearsal'
_BASELINE_M = 0.1
_SHIFT_PX = 8


def rehearse(
    engine: StereoEngine, settings: Settings, height: int, width: int, outputs: Iterable[str]
) -> None:
    """Takes a made pair through decoding, inference, depth and messages, and sends nothing.

    Args:
        outputs: Which messages to make, by the names of `TOPICS`.

    Raises:
        PairDropped: as a pair of a camera of this size would be.
    """
    header = Header(frame_id=_FRAME)
    left = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    right = np.roll(left, -_SHIFT_PX, axis=1)
    left_info, right_info = _camera_info(header, height, width)
    frame = process_pair(
        image_message(left, 'rgb8', header),
        image_message(right, 'rgb8', header),
        left_info,
        right_info,
        engine,
        settings,
    )
    for name in outputs:
        serialize_message(make_message(name, frame, header, left_info, settings))


def _camera_info(header: Header, height: int, width: int) -> tuple[CameraInfo, CameraInfo]:
    focal_px, cx, cy = float(width), width / 2, height / 2
    infos = []
    for x_offset in (0.0, -focal_px * _BASELINE_M):
        infos.append(
            CameraInfo(
                header=header,
                height=height,
                width=width,
                k=[focal_px, 0.0, cx, 0.0, focal_px, cy, 0.0, 0.0, 1.0],
                p=[focal_px, 0.0, cx, x_offset, 0.0, focal_px, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
            )
        )
    return infos[0], infos[1]
