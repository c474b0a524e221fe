# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Ground truth from files, depth topics and LiDAR, checked by geometry done by hand."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from rosbags.typesys import Stores, get_typestore

from stereo_kd_ros.bag import StereoBag, StereoBagWriter
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.disparity_io import write_kitti_png, write_pfm
from stereo_kd_ros.truth import (
    TruthError,
    TruthFiles,
    TruthTopic,
    depth_m,
    open_truth,
    project_depth,
    read_extrinsics,
)

TYPES = get_typestore(Stores.LATEST).types
# fx * B = 20 px m, and the right eye's centre lies 2 px to the left: raw = 20 / Z + 2.
CAMERA = StereoCamera(32, 24, 100.0, 100.0, 16.0, 14.0, 12.0, 0.2)
SMALL = dataclasses.replace(CAMERA, width=5, height=4)
STAMPS = (10**9, 2 * 10**9, 3 * 10**9)
FRAME = 'left_optical'


def _header(stamp_ns: int, frame: str = FRAME) -> object:
    stamp = TYPES['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9))
    return TYPES['std_msgs/msg/Header'](stamp, frame)


def _depth_image(stamp_ns: int, depth: np.ndarray, encoding: str) -> object:
    kind = {'32FC1': '<f4', '16UC1': '<u2', '64FC1': '<f8'}[encoding]
    samples = depth.astype(kind)
    data = np.frombuffer(samples.tobytes(), np.uint8)
    return TYPES['sensor_msgs/msg/Image'](
        _header(stamp_ns),
        *depth.shape,
        encoding,
        0,
        depth.shape[1] * samples.itemsize,
        data,
    )


def _cloud(stamp_ns: int, points: np.ndarray, frame: str) -> object:
    fields = [
        TYPES['sensor_msgs/msg/PointField'](name, 4 * place, 7, 1)
        for place, name in enumerate(('x', 'y', 'z', 'intensity'))
    ]
    padded = np.hstack([points, np.ones((len(points), 1))]).astype('<f4')
    return TYPES['sensor_msgs/msg/PointCloud2'](
        _header(stamp_ns, frame),
        1,
        len(points),
        fields,
        False,
        16,
        16 * len(points),
        np.frombuffer(padded.tobytes(), np.uint8),
        True,
    )


def _static(parent: str, child: str, rotation: tuple, translation: tuple) -> object:
    transform = TYPES['geometry_msgs/msg/Transform'](
        TYPES['geometry_msgs/msg/Vector3'](*translation),
        TYPES['geometry_msgs/msg/Quaternion'](*rotation),
    )
    link = TYPES['geometry_msgs/msg/TransformStamped'](_header(0, parent), child, transform)
    return TYPES['tf2_msgs/msg/TFMessage']([link])


def _bag(path: Path, *extra: tuple[str, int, object]) -> Path:
    picture = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
    with StereoBagWriter(path, frame_id=FRAME) as bag:
        for stamp_ns in STAMPS:
            bag.write_pair(stamp_ns, picture, picture, CAMERA)
        for topic, stamp_ns, message in extra:
            bag.write(topic, stamp_ns, message)
    return path


def test_files_are_found_by_stamp_and_by_number(tmp_path: Path) -> None:
    truth = np.full((4, 5), 7.25, np.float32)
    truth[0, 0] = np.inf
    write_pfm(tmp_path / f'{STAMPS[0]}.pfm', truth)
    write_kitti_png(tmp_path / '000007.png', np.full((4, 5), 3.5, np.float32))
    files = TruthFiles(tmp_path, SMALL)

    found = files.disparity(STAMPS[0], 0)
    assert found is not None and np.isnan(found[0, 0]) and found[1, 1] == 7.25
    numbered = files.disparity(STAMPS[1], 7)
    assert numbered is not None and (numbered == 3.5).all()
    assert files.disparity(STAMPS[1], 1) is None


def test_a_folder_without_truth_is_refused(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / 'absent'):
        with pytest.raises(TruthError, match='holds no truth'):
            TruthFiles(folder, CAMERA)


@pytest.mark.parametrize(('encoding', 'scale'), [('32FC1', 1), ('16UC1', 1000)])
def test_a_depth_topic_becomes_raw_disparity(tmp_path: Path, encoding: str, scale: int) -> None:
    depth = np.full((CAMERA.height, CAMERA.width), 4.0)
    depth[0, 0] = 0
    message = _depth_image(STAMPS[1], depth * scale, encoding)
    path = _bag(tmp_path / 'bag', ('/depth', STAMPS[1] + 5, message))

    with StereoBag(path) as bag, TruthTopic(bag, '/depth') as truth:
        assert truth.disparity(STAMPS[0], 0) is None
        found = truth.disparity(STAMPS[1], 1)
        assert truth.disparity(STAMPS[2], 2) is None

    assert found is not None
    assert found[5, 5] == pytest.approx(20 / 4 + 2)
    assert np.isnan(found[0, 0])


def _disparity_image(stamp_ns: int, disparity: np.ndarray) -> object:
    return TYPES['stereo_msgs/msg/DisparityImage'](
        _header(stamp_ns),
        _depth_image(stamp_ns, disparity, '32FC1'),
        100.0,
        0.2,
        TYPES['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False),
        1.0,
        16.0,
        0.125,
    )


def test_a_disparity_topic_is_that_of_another_matcher(tmp_path: Path) -> None:
    """A DisparityImage is corrected for the cx offset; below min_disparity nothing was found."""
    disparity = np.full((CAMERA.height, CAMERA.width), 5.0)
    disparity[0, 0] = 0
    message = _disparity_image(STAMPS[1], disparity)
    path = _bag(tmp_path / 'bag', ('/disparity', STAMPS[1], message))
    with StereoBag(path) as bag, open_truth(bag, '/disparity') as truth:
        assert truth is not None and truth.disparity(STAMPS[0], 0) is None
        found = truth.disparity(STAMPS[1], 1)
    assert found is not None and found[5, 5] == 7.0 and np.isnan(found[0, 0])


def _compressed(stamp_ns: int, layout: str, header: bytes, stored: np.ndarray) -> object:
    picture = cv2.imencode('.png', stored)[1].tobytes()
    data = np.frombuffer(header + picture, np.uint8)
    return TYPES['sensor_msgs/msg/CompressedImage'](_header(stamp_ns), layout, data)


def test_compressed_depth_is_what_image_transport_writes(tmp_path: Path) -> None:
    """Millimetres as they are; metres as q = A / Z + B, with A and B in the header."""
    millimetres = np.full((CAMERA.height, CAMERA.width), 4000, np.uint16)
    inverse = np.full((CAMERA.height, CAMERA.width), round(1000 / 4 + 10), np.uint16)
    millimetres[0, 0] = inverse[0, 0] = 0
    header = struct.pack('<iff', 0, 1000.0, 10.0)
    path = _bag(
        tmp_path / 'bag',
        (
            '/mm',
            STAMPS[0],
            _compressed(STAMPS[0], '16UC1; compressedDepth', bytes(12), millimetres),
        ),
        ('/m', STAMPS[0], _compressed(STAMPS[0], '32FC1; compressedDepth png', header, inverse)),
        ('/jpeg', STAMPS[0], _compressed(STAMPS[0], 'bgr8; jpeg compressed', b'', millimetres)),
        ('/rvl', STAMPS[0], _compressed(STAMPS[0], '16UC1; compressedDepth rvl', b'', inverse)),
    )
    with StereoBag(path) as bag:
        for topic in ('/mm', '/m'):
            with TruthTopic(bag, topic) as truth:
                found = truth.disparity(STAMPS[0], 0)
            assert found is not None and np.isnan(found[0, 0])
            assert found[5, 5] == pytest.approx(20 / 4 + 2)
        for topic, said in (('/jpeg', 'is no depth'), ('/rvl', 'no 16-bit PNG')):
            with TruthTopic(bag, topic) as truth, pytest.raises(TruthError, match=said):
                truth.disparity(STAMPS[0], 0)


def test_lidar_comes_through_the_static_tree(tmp_path: Path) -> None:
    # Robot axes (x forward, y left, z up), the camera half a metre ahead of the LiDAR.
    # The optical frame's z is robot x, its x is robot -y, its y is robot -z.
    optical = (-0.5, 0.5, -0.5, 0.5)
    point = np.array([[5.5, -0.25, 0.1]])  # 5 m ahead of the camera, 0.25 m right, 0.1 m up
    path = _bag(
        tmp_path / 'bag',
        ('/tf_static', 1, _static('base', 'lidar', (0, 0, 0, 1), (0, 0, 0))),
        ('/tf_static', 2, _static('base', FRAME, optical, (0.5, 0, 0))),
        ('/points', STAMPS[0] + 1, _cloud(STAMPS[0] + 20_000_000, point, 'lidar')),
    )

    with StereoBag(path) as bag, TruthTopic(bag, '/points') as truth:
        found = truth.disparity(STAMPS[0], 0)
        assert truth.disparity(STAMPS[1], 1) is None

    assert found is not None
    # u = 100 * 0.25 / 5 + 16 = 21, v = 100 * -0.1 / 5 + 12 = 10, raw = 20 / 5 + 2.
    assert np.argwhere(np.isfinite(found)).tolist() == [[10, 21]]
    assert found[10, 21] == pytest.approx(6.0, rel=1e-5)


def test_a_lidar_that_turns_is_followed_by_tf(tmp_path: Path) -> None:
    """A pan unit on /tf: at the second scan it has moved the LiDAR half a metre back."""
    optical = (-0.5, 0.5, -0.5, 0.5)
    point = np.array([[5.0, 0.0, 0.0]])
    path = _bag(
        tmp_path / 'bag',
        ('/tf_static', 1, _static('base', FRAME, optical, (0, 0, 0))),
        ('/tf', STAMPS[0] + 1, _static('base', 'lidar', (0, 0, 0, 1), (0, 0, 0))),
        ('/points', STAMPS[0] + 2, _cloud(STAMPS[0], point, 'lidar')),
        ('/tf', STAMPS[1] + 1, _static('base', 'lidar', (0, 0, 0, 1), (-1, 0, 0))),
        ('/points', STAMPS[1] + 2, _cloud(STAMPS[1], point, 'lidar')),
    )
    with StereoBag(path) as bag, TruthTopic(bag, '/points') as truth:
        seen = [truth.disparity(stamp_ns, index) for index, stamp_ns in enumerate(STAMPS[:2])]
    for found, depth in zip(seen, (5.0, 4.0)):
        assert found is not None
        assert found[12, 16] == pytest.approx(20 / depth + 2, rel=1e-5)


def test_a_file_of_extrinsics_takes_the_place_of_tf(tmp_path: Path) -> None:
    # LiDAR x is the camera's z, its y the camera's -x, its z the camera's -y; 0.5 m behind it.
    rows = '0 -1 0 0 0 0 -1 0 1 0 0 -0.5'
    (tmp_path / 'calib.txt').write_text(f'P0: {"1 " * 12}\nTr: {rows}\n')
    (tmp_path / 'matrix.txt').write_text(rows.replace(' 0 0 0 -1', '\n0, 0, 0, -1') + ' 0 0 0 1\n')
    path = _bag(
        tmp_path / 'bag',
        ('/points', STAMPS[0], _cloud(STAMPS[0], np.array([[5.5, -0.25, 0.1]]), 'lidar')),
    )
    for name in ('calib.txt', 'matrix.txt'):
        with (
            StereoBag(path) as bag,
            open_truth(bag, '/points', tmp_path / name) as truth,
        ):
            assert truth is not None
            found = truth.disparity(STAMPS[0], 0)
        assert found is not None
        assert np.argwhere(np.isfinite(found)).tolist() == [[10, 21]]
        assert found[10, 21] == pytest.approx(6.0, rel=1e-5)


@pytest.mark.parametrize(
    ('content', 'said'),
    [
        ('1 2 3', 'holds 3 numbers'),
        ('one', 'holds no extrinsics'),
        ('1 0 0 0 0 1 0 0 0 0 -1 0', 'no rotation'),
        (None, 'holds no extrinsics'),
    ],
)
def test_extrinsics_that_are_none_say_what_is_expected(
    tmp_path: Path, content: str | None, said: str
) -> None:
    if content is not None:
        (tmp_path / 'x.txt').write_text(content)
    with pytest.raises(TruthError, match=f'{said}.*12'):
        read_extrinsics(tmp_path / 'x.txt')


def test_the_nearest_point_hides_those_behind_it() -> None:
    points = np.array([[0, 0, 8.0], [0, 0, 4.0], [0, 0, -4.0], [9, 9, 1.0]])
    depth = project_depth(points, CAMERA)
    assert depth[12, 16] == 4.0
    assert np.isfinite(depth).sum() == 1


def test_truth_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    small = _depth_image(STAMPS[0], np.ones((4, 5)), '32FC1')
    odd = _depth_image(STAMPS[0], np.ones((CAMERA.height, CAMERA.width)), '64FC1')
    path = _bag(
        tmp_path / 'bag',
        ('/small', STAMPS[0], small),
        ('/odd', STAMPS[0], odd),
        ('/half', STAMPS[0], _disparity_image(STAMPS[0], np.ones((12, 16)))),
        ('/points', STAMPS[0], _cloud(STAMPS[0], np.ones((1, 3)), 'lidar')),
    )
    with StereoBag(path) as bag:
        with pytest.raises(TruthError, match='not in the bag'):
            TruthTopic(bag, '/absent')
        with pytest.raises(TruthError, match=r'Neither .* connects lidar.*file of extrinsics'):
            TruthTopic(bag, '/points')
        with TruthTopic(bag, '/small') as truth, pytest.raises(TruthError, match='5x4'):
            truth.disparity(STAMPS[0], 0)
        with TruthTopic(bag, '/half') as truth, pytest.raises(TruthError, match=r'16x12.*32x24'):
            truth.disparity(STAMPS[0], 0)
        write_pfm(tmp_path / f'{STAMPS[0]}.pfm', np.ones((12, 16), np.float32))
        with (
            open_truth(bag, str(tmp_path)) as files,
            pytest.raises(TruthError, match=r'16x12.*32x24'),
        ):
            assert files is not None
            files.disparity(STAMPS[0], 0)
    with pytest.raises(TruthError, match='64FC1'):
        depth_m(odd)
