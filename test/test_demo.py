# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The demo's arithmetic without ROS: a recording whose errors are known beforehand."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.typesys import Stores, get_typestore

from stereo_kd_ros.bag import StereoBag, StereoBagWriter
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.demo import (
    DEMO_TOPICS,
    Score,
    compare,
    pictured,
    pooled,
    raw_disparity,
    strip_row,
    write_sequence,
    write_strip,
)
from stereo_kd_ros.disparity_io import read_pfm, write_pfm

TYPES = get_typestore(Stores.LATEST).types
DISPARITY_TOPIC = '/depth/disparity'
TRUTH_PX, OFF_BY_PX, CX_OFFSET_PX = 8.0, 4.0, 3.0
CAMERA = StereoCamera(256, 48, 100.0, 100.0, 128.0, 128.0 - CX_OFFSET_PX, 24.0, 0.1)


def _disparity_message(
    stamp_ns: int, disparity: np.ndarray, minimum: float = 0.0, padding: int = 0, order: str = '<'
) -> object:
    stamp = TYPES['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9))
    header = TYPES['std_msgs/msg/Header'](stamp, 'left')
    height, width = disparity.shape
    rows = np.full((height, width + padding), np.float32(99))
    rows[:, :width] = disparity
    image = TYPES['sensor_msgs/msg/Image'](
        header,
        height,
        width,
        '32FC1',
        int(order == '>'),
        4 * (width + padding),
        np.frombuffer(rows.astype(f'{order}f4').tobytes(), np.uint8),
    )
    window = TYPES['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    return TYPES['stereo_msgs/msg/DisparityImage'](
        header, image, 100.0, 0.1, window, minimum, 64.0, 0.0625
    )


@pytest.mark.parametrize('order', ['<', '>'])
def test_invalid_pixels_of_a_disparity_message_are_nan(order: str) -> None:
    disparity = np.array([[1.0, 2.0], [-1.0, 0.0]], np.float32)
    message = _disparity_message(1, disparity, minimum=0.0, padding=3, order=order)

    np.testing.assert_array_equal(raw_disparity(message), [[1, 2], [np.nan, 0]])


def test_frames_that_came_back_are_compared_with_their_truth(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = np.full((CAMERA.height, CAMERA.width), TRUTH_PX, np.float32)
    (tmp_path / 'truth').mkdir()
    with StereoBagWriter(tmp_path / 'bag', topics=DEMO_TOPICS) as bag:
        for stamp_ns in (1000, 2000, 3000):
            scene = rng.integers(
                0, 256, (CAMERA.height, CAMERA.width + int(TRUTH_PX), 3), np.uint8
            )
            bag.write_pair(stamp_ns, scene[:, : CAMERA.width], scene[:, int(TRUTH_PX) :], CAMERA)
            write_pfm(tmp_path / f'truth/{stamp_ns}.pfm', truth)
    # What the node publishes is free of the offset between the eyes.
    published = truth - np.float32(CX_OFFSET_PX)
    with StereoBagWriter(tmp_path / 'recording') as recording:
        for index, stamp_ns in enumerate((91, 93)):
            message = _disparity_message(stamp_ns, published + index * np.float32(OFF_BY_PX))
            recording.write(DISPARITY_TOPIC, stamp_ns, message)

    frames = list(
        compare(
            tmp_path / 'bag',
            tmp_path / 'recording',
            DISPARITY_TOPIC,
            {91: 1000, 92: 2000, 93: 3000},
            tmp_path / 'truth',
        )
    )
    assert [frame.index for frame in frames] == [0, 2]
    score = Score()
    for frame in frames:
        score.add(frame)

    # One frame is right and one wrong by 4 px everywhere.
    assert pooled(score.ours) == {'epe_px': 2.0, 'bad3': 50.0, 'd1': 50.0}
    sgbm = pooled(score.sgbm)
    assert sgbm is not None and sgbm['epe_px'] < 0.5
    write_strip(tmp_path / 'strip.png', [strip_row(frame, 'ours') for frame in frames])
    strip = cv2.imread(str(tmp_path / 'strip.png'))
    assert strip.shape[1] > 4 * CAMERA.width and strip.shape[0] > 2 * CAMERA.height


def test_without_truth_there_is_no_score() -> None:
    assert pooled([]) is None


@pytest.mark.parametrize(('count', 'places'), [(1, [0]), (2, [0, 1]), (9, [0, 4, 8])])
def test_first_middle_and_last_frame_are_pictured(count: int, places: list[int]) -> None:
    assert pictured(count) == places


def test_the_generated_drive_is_a_bag_with_its_truth_beside(tmp_path: Path) -> None:
    camera = StereoCamera.from_intrinsics(fx=110.0, baseline_m=0.12, width=160, height=96)
    stamps = list(write_sequence(tmp_path / 'drive', 3, 20.0, camera=camera))

    assert np.diff(stamps).tolist() == [50_000_000] * 2
    with StereoBag(tmp_path / 'drive/bag') as bag:
        assert bag.camera == camera
        frames = list(bag.pairs())
    assert [frame.stamp_ns for frame in frames] == stamps
    for frame in frames:
        truth = read_pfm(tmp_path / f'drive/truth/{frame.stamp_ns}.pfm')
        columns = np.arange(camera.width)[np.newaxis] - truth
        seen = (columns >= 0) & (truth > 0)
        rows = np.broadcast_to(np.arange(camera.height)[:, np.newaxis], truth.shape)
        warped = cv2.remap(
            frame.right,
            columns.astype(np.float32),
            np.ascontiguousarray(rows, np.float32),
            cv2.INTER_LINEAR,
        )
        # Exact truth carries the right picture onto the left one, but for occlusions and noise.
        difference = np.abs(warped.astype(float) - frame.left).mean(axis=2)
        assert np.median(difference[seen]) < 8.0
    assert not np.array_equal(frames[0].left, frames[-1].left)
