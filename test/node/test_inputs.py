# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which camera_info belongs to an image: the one of its stamp, else the latest."""

from __future__ import annotations

import numpy as np
from ros_rig import Rig, camera_infos, stamped, textured_pair, wait_until
from sensor_msgs.msg import CameraInfo, Image

from stereo_kd_ros.node.inputs import CameraInfoMemory


def info_at(stamp_ns: int) -> CameraInfo:
    return stamped(CameraInfo(), stamp_ns)


def test_the_stamp_decides_whatever_came_last() -> None:
    memory = CameraInfoMemory()
    for stamp_ns in (1, 2, 3):
        memory.add(info_at(stamp_ns))
    assert memory.of_image(2).header.stamp.nanosec == 2


def test_a_driver_that_sends_one_per_image_is_waited_for() -> None:
    memory = CameraInfoMemory()
    memory.add(info_at(1))
    assert memory.of_image(1) is not None
    assert memory.of_image(2) is None
    memory.add(info_at(2))
    assert memory.of_image(2).header.stamp.nanosec == 2


def test_a_driver_that_sends_a_single_one_is_not_waited_for() -> None:
    memory = CameraInfoMemory()
    assert memory.of_image(7) is None
    memory.add(info_at(0))
    assert memory.of_image(7).header.stamp.nanosec == 0


def test_a_lost_one_is_waited_for_only_once() -> None:
    memory = CameraInfoMemory()
    memory.add(info_at(1))
    assert memory.of_image(1) is not None
    assert memory.of_image(2) is None
    assert memory.give_up_waiting().header.stamp.nanosec == 1
    assert memory.of_image(3).header.stamp.nanosec == 1


def test_one_that_comes_after_its_image_is_waited_for_from_then_on() -> None:
    memory = CameraInfoMemory()
    memory.add(info_at(1))
    assert memory.of_image(1) is not None
    assert memory.of_image(2) is None
    memory.give_up_waiting()
    assert memory.of_image(3).header.stamp.nanosec == 1
    memory.add(info_at(3))
    assert memory.of_image(4) is None


def test_memory_is_bounded() -> None:
    memory = CameraInfoMemory(size=4)
    for stamp_ns in range(100):
        memory.add(info_at(stamp_ns))
    memory.of_image(99)
    assert memory.of_image(95) is None
    assert memory.of_image(96) is not None


def test_a_zooming_camera_is_never_triangulated_with_the_focal_length_before(
    block_matcher: str,
) -> None:
    with Rig(model=block_matcher) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(5)
        for frame in range(1, 9):
            fx = 100.0 * frame
            # The images overtake their camera_info.
            rig.camera.send(left, right, frame)
            wait_until(lambda frame=frame: rig.node.inputs.received['right_image'] == frame)
            for info, publisher in zip(
                camera_infos(fx=fx), (rig.camera.left_info, rig.camera.right_info)
            ):
                publisher.publish(stamped(info, frame))
            message = depth.next()
            assert message.header.stamp.nanosec == frame
            depth_m = np.frombuffer(message.data, np.float32).reshape(message.height, -1)
            np.testing.assert_allclose(depth_m[4:-4, 9:-4], fx * 0.2 / 5, rtol=1e-6)


def test_a_lost_camera_info_costs_at_most_its_own_pair(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(5)
        rig.camera.send(left, right, 1, camera_infos())
        depth.next()
        rig.camera.send(left, right, 2)
        rig.camera.send(left, right, 3, camera_infos())
        while depth.next().header.stamp.nanosec != 3:
            pass
