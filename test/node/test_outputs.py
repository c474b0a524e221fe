# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The topics over real DDS: names, remaps, QoS, laziness, headers, encodings."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_rig import (
    BASELINE_M,
    FX_PX,
    HEIGHT,
    WIDTH,
    Rig,
    Said,
    as_message,
    camera_infos,
    stamped,
    textured_pair,
    wait_until,
)
from sensor_msgs.msg import CompressedImage, Image

from stereo_kd_ros.node.outputs import TOPICS

DISPARITY_PX = 5
DEPTH_M = FX_PX * BASELINE_M / DISPARITY_PX
INNER = (slice(4, -4), slice(DISPARITY_PX + 4, -4))


def pixels(image: Image, dtype: type = np.float32) -> np.ndarray:
    return np.frombuffer(image.data, dtype).reshape(image.height, image.width, -1)


def test_every_output_carries_the_left_header(block_matcher: str) -> None:
    with Rig(model=block_matcher, disparity_sigma=0.5) as rig:
        listeners = {n: rig.listen(o.topic, o.message_type) for n, o in TOPICS.items()}
        rig.ready(*listeners.values())
        left, right = textured_pair(DISPARITY_PX)
        rig.camera.send(left, right, 5_000_000_042, camera_infos())
        messages = {name: listener.next() for name, listener in listeners.items()}
        for name, message in messages.items():
            assert message.header.frame_id == 'left_optical', name
            assert (message.header.stamp.sec, message.header.stamp.nanosec) == (5, 42), name
        assert np.all(pixels(messages['confidence'])[INNER] == 1.0)
        sigma_m = DEPTH_M**2 / (FX_PX * BASELINE_M) * 0.5
        np.testing.assert_allclose(pixels(messages['sigma'])[INNER], sigma_m, rtol=1e-5)
        assert messages['color'].encoding == 'rgb8'
        assert pixels(messages['color'], np.uint8)[INNER].any(axis=-1).all()
        assert (messages['points'].width, messages['points'].height) == (WIDTH, HEIGHT)


def test_topics_can_be_moved_and_the_node_pushed_into_a_namespace(block_matcher: str) -> None:
    remaps = ('--ros-args', '-r', 'left/image_rect:=infra1/rect', '-r', 'depth/image:=range')
    with Rig(model=block_matcher, namespace='/robot', cli_args=remaps) as rig:
        assert rig.node.inputs.topics == {
            'left_image': '/robot/infra1/rect',
            'right_image': '/robot/right/image_rect',
            'left_camera_info': '/robot/left/camera_info',
            'right_camera_info': '/robot/right/camera_info',
        }
        published = {publisher.topic_name for publisher in rig.node.publishers}
        assert {'/robot/range', '/robot/depth/camera_info', '/diagnostics'} <= published
        assert '/robot/depth/image' not in published


def test_what_nobody_wants_is_not_sent_and_not_computed(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:
        rig.ready()
        left, right = textured_pair(DISPARITY_PX)
        rig.camera.send(left, right, 1, camera_infos())
        wait_until(lambda: rig.node.counts()['dropped_no_subscriber'] == 1)
        assert 'inference_ms_p50' not in rig.values('pipeline')
        confidence = rig.listen('confidence', Image)
        rig.ready(confidence)
        rig.camera.send(left, right, 2, camera_infos())
        assert confidence.next().header.stamp.nanosec == 2
        rig.peer.destroy_subscription(confidence.subscription)
        wait_until(lambda: not rig.node.outputs.wanted(lazy=True))
        rig.camera.send(left, right, 3, camera_infos())
        wait_until(lambda: rig.node.counts()['dropped_no_subscriber'] == 2)
        assert rig.node.counts()['pairs_published'] == 1


def test_not_lazy_publishes_without_a_listener(block_matcher: str) -> None:
    with Rig(model=block_matcher, lazy=False) as rig:
        rig.ready()
        left, right = textured_pair(DISPARITY_PX)
        rig.camera.send(left, right, 1, camera_infos())
        wait_until(lambda: rig.node.counts()['pairs_published'] == 1)


def test_depth_encoding_changes_between_two_frames(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(DISPARITY_PX)
        rig.camera.send(left, right, 1, camera_infos())
        assert depth.next().encoding == '32FC1'
        (result,) = rig.node.set_parameters([Parameter('depth_encoding', value='16UC1')])
        assert result.successful
        rig.camera.send(left, right, 2, camera_infos())
        message = depth.next()
        assert message.encoding == '16UC1'
        assert np.all(pixels(message, np.uint16)[INNER] == round(DEPTH_M * 1000))


def test_inputs_are_best_effort_outputs_reliable_and_both_can_be_overridden(
    block_matcher: str,
) -> None:
    overrides = {
        'qos_overrides./left/image_rect.subscription.reliability': 'reliable',
        'qos_overrides./left/image_rect.subscription.depth': 11,
        'qos_overrides./depth/image.publisher.reliability': 'best_effort',
    }
    with Rig(model=block_matcher, best_effort=True, **overrides) as rig:

        def subscribed(topic: str) -> QoSProfile:
            (endpoint,) = wait_until(lambda: rig.peer.get_subscriptions_info_by_topic(topic))
            return endpoint.qos_profile

        def published(topic: str) -> QoSProfile:
            (endpoint,) = wait_until(lambda: rig.peer.get_publishers_info_by_topic(topic))
            return endpoint.qos_profile

        rig.ready()
        assert subscribed('/left/image_rect').reliability == ReliabilityPolicy.RELIABLE
        assert subscribed('/right/image_rect').reliability == ReliabilityPolicy.BEST_EFFORT
        assert published('/depth/image').reliability == ReliabilityPolicy.BEST_EFFORT
        assert published('/disparity').reliability == ReliabilityPolicy.RELIABLE
        assert published('/disparity').durability == DurabilityPolicy.VOLATILE
        assert (
            rig.node.get_parameter('qos_overrides./left/image_rect.subscription.depth').value == 11
        )


def test_differing_frame_ids_are_tolerated_and_said_once(
    block_matcher: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Rig(model=block_matcher) as rig:
        depth, said = rig.listen('depth/image', Image), Said(capfd)
        rig.ready(depth)
        left, right = textured_pair(DISPARITY_PX)
        for stamp_ns in (1, 2):
            other = stamped(as_message(right), stamp_ns, 'right_optical')
            rig.camera.send(left, other, stamp_ns, camera_infos())
            assert depth.next().header.frame_id == 'left_optical'
        assert said.read().count("right images in 'right_optical'") == 1


def test_stamps_within_the_tolerance_are_paired_under_the_left_stamp(block_matcher: str) -> None:
    with Rig(
        model=block_matcher, approximate_sync=True, approximate_sync_tolerance_seconds=0.004
    ) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(DISPARITY_PX)
        rig.camera.send(left, right, 100_000_000, camera_infos(), right_stamp_ns=103_000_000)
        assert depth.next().header.stamp.nanosec == 100_000_000
        wait_until(lambda: rig.node.counts()['pairs_published'] == 1)
        assert float(rig.values('pipeline')['skew_ms_last']) == 3.0


def test_stale_pairs_are_skipped(block_matcher: str) -> None:
    with Rig(model=block_matcher, max_age=5.0) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(DISPARITY_PX)
        stale_ns = rig.node.get_clock().now().nanoseconds - 60_000_000_000
        rig.camera.send(left, right, stale_ns, camera_infos())
        wait_until(lambda: rig.node.counts()['dropped_stale'] == 1)
        fresh_ns = []

        def came_back() -> bool:
            # On a machine that stands still for seconds even a fresh pair grows stale.
            fresh_ns.append(rig.node.get_clock().now().nanoseconds)
            rig.camera.send(left, right, fresh_ns[-1], camera_infos())
            time.sleep(0.1)
            return bool(depth.messages)

        wait_until(came_back)
        stamp = depth.next().header.stamp
        assert stamp.sec * 1_000_000_000 + stamp.nanosec in fresh_ns


def test_compressed_images(block_matcher: str) -> None:
    def compressed(image: np.ndarray, stamp_ns: int) -> CompressedImage:
        data = cv2.imencode('.png', image[..., ::-1])[1].tobytes()
        return stamped(CompressedImage(format='rgb8; png compressed bgr8', data=data), stamp_ns)

    with Rig(model=block_matcher, image_transport='compressed') as rig:
        depth = rig.listen('depth/image', Image)
        senders = [
            rig.peer.create_publisher(CompressedImage, f'{side}/image_rect/compressed', 5)
            for side in ('left', 'right')
        ]
        infos = (rig.camera.left_info, rig.camera.right_info)
        wait_until(lambda: all(p.get_subscription_count() for p in (*senders, *infos)))
        rig.heard(depth)
        for info, publisher in zip(camera_infos(), infos):
            publisher.publish(info)
        for image, sender in zip(textured_pair(DISPARITY_PX), senders):
            sender.publish(compressed(image, 9))
        np.testing.assert_allclose(pixels(depth.next())[INNER], DEPTH_M, rtol=1e-6)
