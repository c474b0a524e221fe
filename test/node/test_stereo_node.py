# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node over real DDS with a real model: what it publishes, and what it does with bad input."""

from __future__ import annotations

import numpy as np
import pytest
from ros_rig import (
    BASELINE_M,
    FX_PX,
    HEIGHT,
    WIDTH,
    Rig,
    Said,
    as_message,
    camera_infos,
    textured_pair,
    wait_until,
)
from sensor_msgs.msg import CameraInfo, Image
from stereo_msgs.msg import DisparityImage

from stereo_kd_ros.node import stereo_node

DISPARITY_PX = 5
INNER = (slice(4, -4), slice(DISPARITY_PX + 4, -4))


def floats(image: Image) -> np.ndarray:
    assert image.encoding == '32FC1'
    assert image.step == 4 * image.width
    return np.frombuffer(image.data, np.float32).reshape(image.height, image.width)


def test_plane_comes_out_at_its_depth(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:
        disparity = rig.listen('disparity', DisparityImage)
        depth = rig.listen('depth/image', Image)
        depth_info = rig.listen('depth/camera_info', CameraInfo)
        rig.ready(disparity, depth, depth_info)
        left, right = textured_pair(DISPARITY_PX)
        rig.camera.send(left, right, 1_700_000_000_123_456_789, camera_infos())

        message = depth.next()
        np.testing.assert_allclose(
            floats(message)[INNER], FX_PX * BASELINE_M / DISPARITY_PX, rtol=1e-6
        )
        assert message.header.frame_id == 'left_optical'
        assert message.header.stamp.sec == 1_700_000_000
        assert message.header.stamp.nanosec == 123_456_789

        info = depth_info.next()
        assert info.header == message.header
        assert list(info.p) == list(camera_infos()[0].p)

        message = disparity.next()
        assert (message.f, message.t) == (np.float32(FX_PX), np.float32(BASELINE_M))
        assert message.header == message.image.header == info.header
        assert (message.image.width, message.image.height) == (WIDTH, HEIGHT)
        window = message.valid_window
        assert (window.x_offset, window.y_offset, window.width, window.height) == (
            0,
            0,
            WIDTH,
            HEIGHT,
        )
        assert message.delta_d > 0
        assert message.max_disparity == 16.0
        assert np.all(floats(message.image)[INNER] == DISPARITY_PX)


def test_zero_disparity_is_invalid_not_zero_depth(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:
        disparity = rig.listen('disparity', DisparityImage)
        depth = rig.listen('depth/image', Image)
        rig.ready(disparity, depth)
        left, right = textured_pair(0)
        rig.camera.send(left, right, 1, camera_infos())
        assert np.all(np.isnan(floats(depth.next())))
        message = disparity.next()
        assert np.all(floats(message.image) < message.min_disparity)


def test_cx_offset_is_taken_out(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:
        disparity = rig.listen('disparity', DisparityImage)
        depth = rig.listen('depth/image', Image)
        rig.ready(disparity, depth)
        left, right = textured_pair(DISPARITY_PX)
        rig.camera.send(left, right, 1, camera_infos(cx_offset_px=3.0))
        np.testing.assert_allclose(
            floats(depth.next())[INNER], FX_PX * BASELINE_M / (DISPARITY_PX - 3), rtol=1e-6
        )
        message = disparity.next()
        assert np.all(floats(message.image)[INNER] == DISPARITY_PX - 3)
        assert message.max_disparity == 16.0 - 3.0


def test_images_that_come_before_camera_info_are_used(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(DISPARITY_PX)
        rig.camera.send(left, right, 7)
        wait_until(lambda: rig.node.inputs.received.total() == 2)
        for info, publisher in zip(camera_infos(), (rig.camera.left_info, rig.camera.right_info)):
            publisher.publish(info)
        assert depth.next().header.stamp.nanosec == 7


def broken(**changes: object) -> Image:
    message = as_message(textured_pair()[1])
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def infos_with(side: int, **changes: object) -> tuple[CameraInfo, CameraInfo]:
    infos = camera_infos()
    for name, value in changes.items():
        setattr(infos[side], name, value)
    return infos


def projection(fx: float, tx: float) -> list[float]:
    return [fx, 0.0, WIDTH / 2, tx, 0.0, fx, HEIGHT / 2, 0.0, 0.0, 0.0, 1.0, 0.0]


BAD_INPUTS = [
    ('size_mismatch', as_message(textured_pair(width=WIDTH - 8)[1]), camera_infos(), 'same size'),
    ('size_mismatch', broken(), camera_infos(width=2 * WIDTH), 'camera_info describes 128x48'),
    ('image', broken(encoding='rgb9'), camera_infos(), "'rgb9'"),
    ('image', broken(data=b'\0' * 100), camera_infos(), '100 bytes'),
    ('image', broken(step=10), camera_infos(), 'step is 10'),
    ('image', broken(height=0), camera_infos(), '64x0'),
    ('calibration', broken(), infos_with(0, k=[0.0] * 9), 'left camera_info is uncalibrated'),
    ('calibration', broken(), infos_with(1, p=[0.0] * 12), 'right'),
    ('calibration', broken(), infos_with(1, p=projection(FX_PX, 0.0)), 'Tx'),
    ('calibration', broken(), infos_with(1, p=projection(FX_PX, 20.0)), 'swapped'),
    ('calibration', broken(), infos_with(1, p=projection(float('nan'), -20.0)), 'nan'),
]


def test_bad_input_is_named_counted_and_survived(
    block_matcher: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stereo_node, 'LOG_PERIOD_S', 0.0)
    with Rig(model=block_matcher) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(DISPARITY_PX)
        stamp_ns = 1_000_000_000
        for cause, bad_right, bad_infos, said in BAD_INPUTS:
            before = rig.node.counts()[f'dropped_{cause}']
            log = Said(capfd)
            stamp_ns += 10_000_000
            rig.camera.send(left, bad_right, stamp_ns, bad_infos)
            wait_until(
                lambda key=f'dropped_{cause}', before=before: rig.node.counts()[key] == before + 1
            )
            log.wait_for(said)
            stamp_ns += 10_000_000
            rig.camera.send(left, right, stamp_ns, camera_infos())
            received = depth.next()
            assert received.header.stamp.nanosec == stamp_ns % 1_000_000_000
            assert np.all(np.isfinite(floats(received)[INNER]))
