# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A bag written, unpacked and read again gives the same pixels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stereo_kd_ros.bag import BagError, StereoBagWriter
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_training.datasets.base import DatasetError
from stereo_kd_training.datasets.named import open_dataset
from stereo_kd_training.datasets.robot_bag import unpack_bag

STAMPS_NS = [10**18 + index * 100_000_000 for index in range(5)]


@pytest.fixture
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (5, 2, 24, 32, 3), np.uint8)


@pytest.fixture
def bag(tmp_path: Path, images: np.ndarray) -> Path:
    camera = StereoCamera.from_intrinsics(200.0, 0.12, 32, 24)
    with StereoBagWriter(tmp_path / 'drive') as writer:
        for stamp_ns, (left, right) in zip(STAMPS_NS, images):
            writer.write_pair(stamp_ns, left, right, camera)
    return tmp_path / 'drive'


def test_pairs_come_back_as_they_were(tmp_path: Path, bag: Path, images: np.ndarray) -> None:
    dataset = unpack_bag(bag, tmp_path / 'out')
    assert [item.name for item in dataset.pairs] == [str(stamp) for stamp in STAMPS_NS]
    for sample, (left, right) in zip(dataset, images):
        np.testing.assert_array_equal(sample.left, left)
        np.testing.assert_array_equal(sample.right, right)
        assert not sample.valid.any()
    calibration = json.loads((tmp_path / 'out/camera.json').read_text())
    assert (calibration['fx'], calibration['baseline_m']) == pytest.approx((200.0, 0.12))


def test_thinning(tmp_path: Path, bag: Path) -> None:
    dataset = unpack_bag(bag, tmp_path / 'slow', min_interval_s=0.2)
    assert [item.name for item in dataset.pairs] == [str(STAMPS_NS[i]) for i in (0, 2, 4)]
    assert len(unpack_bag(bag, tmp_path / 'few', max_pairs=2)) == 2


def test_unpacking_goes_on_where_it_ended(tmp_path: Path, bag: Path, images) -> None:
    unpack_bag(bag, tmp_path / 'out', max_pairs=2)
    (tmp_path / f'out/right/{STAMPS_NS[1]}.png').unlink()
    kept = (tmp_path / f'out/left/{STAMPS_NS[0]}.png').stat().st_mtime_ns
    dataset = unpack_bag(bag, tmp_path / 'out')
    assert len(dataset) == 5
    np.testing.assert_array_equal(dataset[1].right, images[1][1])
    assert (tmp_path / f'out/left/{STAMPS_NS[0]}.png').stat().st_mtime_ns == kept


def test_no_bag(tmp_path: Path) -> None:
    with pytest.raises(BagError, match='absent'):
        unpack_bag(tmp_path / 'absent', tmp_path / 'out')


def test_a_bag_is_a_set_that_is_unpacked_once(tmp_path: Path, bag: Path, images) -> None:
    dataset = open_dataset('bag', bag, min_interval_s=0.2)
    assert [item.name for item in dataset.pairs] == [str(STAMPS_NS[i]) for i in (0, 2, 4)]
    np.testing.assert_array_equal(dataset[1].left, images[2][0])
    assert (tmp_path / 'drive_pairs/left').is_dir()
    # From then on the bag itself is not read any more.
    bag.rename(tmp_path / 'elsewhere')
    assert len(open_dataset('bag', bag, min_interval_s=0.2)) == 3
    with pytest.raises(DatasetError, match='unpacked otherwise'):
        open_dataset('bag', bag, min_interval_s=0.1)


def test_what_is_no_bag_says_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / 'notes.txt').write_text('no bag')
    with pytest.raises(DatasetError, match=r'(?s)a bag of stereo.*metadata.yaml.*notes.txt'):
        open_dataset('bag', tmp_path, out=tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
