# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A bounded number of pairs, from all over the bag, each with the right image nearest in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stereo_kd_ros.bag import BagError, StereoBag, StereoBagWriter
from stereo_kd_ros.bag_sample import first_infos, sample_pairs
from stereo_kd_ros.camera import StereoCamera

CAMERA = StereoCamera.from_intrinsics(30.0, 0.1, 32, 24)
PERIOD_NS = 100_000_000


def _record(path: Path, frames: int, storage: str = 'sqlite3') -> Path:
    """Frame i is grey of level i in both eyes."""
    with StereoBagWriter(path, storage) as writer:
        for index in range(frames):
            picture = np.full((24, 32, 3), index, np.uint8)
            writer.write_pair(index * PERIOD_NS, picture, picture, CAMERA)
    return path


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
def test_pairs_come_in_twos_from_all_over(tmp_path: Path, storage: str) -> None:
    with StereoBag(_record(tmp_path / 'bag', 40, storage)) as bag:
        pairs = list(sample_pairs(bag, 8))

    levels = [int(pair.left[0, 0, 0]) for pair in pairs]
    assert [int(pair.right[0, 0, 0]) for pair in pairs] == levels
    assert np.diff(levels).tolist()[::2] == [1, 1, 1, 1]
    assert [pair.follows for pair in pairs] == [False, True] * 4
    assert levels[0] == 0
    assert np.diff(levels[::2]).tolist() == pytest.approx([10, 10, 10], abs=1)
    assert {pair.skew_ns for pair in pairs} == {0}


def test_a_short_bag_gives_each_pair_once(tmp_path: Path) -> None:
    with StereoBag(_record(tmp_path / 'bag', 3)) as bag:
        levels = [int(pair.left[0, 0, 0]) for pair in sample_pairs(bag, 50)]

    assert levels == [0, 1, 2]


def test_the_nearest_right_image_is_taken_with_its_distance(tmp_path: Path) -> None:
    path = tmp_path / 'bag'
    with StereoBagWriter(path) as writer:
        for index in range(8):
            stamp_ns = index * PERIOD_NS
            picture = np.full((24, 32, 3), index, np.uint8)
            writer.write_camera_infos(stamp_ns, CAMERA)
            for topic, late_ns in (
                (writer.topics.left_image, 0),
                (writer.topics.right_image, 7_000_000),
            ):
                stamp = stamp_ns + late_ns
                writer.write(topic, stamp, writer._image(stamp, picture))
    with StereoBag(path) as bag:
        pairs = list(sample_pairs(bag, 4))

    assert {pair.skew_ns for pair in pairs} == {7_000_000}
    assert all(pair.left[0, 0, 0] == pair.right[0, 0, 0] for pair in pairs)


def test_a_bag_with_one_eye_says_so(tmp_path: Path) -> None:
    path = tmp_path / 'bag'
    with StereoBagWriter(path) as writer:
        writer.write_camera_infos(0, CAMERA)
        picture = np.zeros((24, 32, 3), np.uint8)
        writer.write(writer.topics.left_image, 0, writer._image(0, picture))
        topics = writer.topics
        # A topic that is announced and never carries anything.
        writer._writer.add_connection(
            topics.right_image, 'sensor_msgs/msg/Image', typestore=writer._store
        )
    with StereoBag(path) as bag, pytest.raises(BagError, match='right/image_rect carries no'):
        list(sample_pairs(bag, 4))


def test_infos_come_as_recorded(tmp_path: Path) -> None:
    with StereoBag(_record(tmp_path / 'bag', 2)) as bag:
        left, right = first_infos(bag)

    assert left.p[3] == 0
    assert right.p[3] == pytest.approx(-3.0)
