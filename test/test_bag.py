# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Bags: what is written is what is read, topics are found, and each bad bag says what is wrong."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.rosbag1 import Writer as Rosbag1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode
from rosbags.typesys import Stores, get_typestore

from stereo_kd_ros.bag import (
    CAMERA_INFO,
    COMPRESSED_IMAGE,
    IMAGE,
    Bag,
    BagError,
    StereoBag,
    StereoBagWriter,
    StereoTopics,
    find_stereo_topics,
    read_stamp,
    restamp,
)
from stereo_kd_ros.camera import StereoCamera

CAMERA = StereoCamera.from_intrinsics(fx=100.0, baseline_m=0.1, width=32, height=20)
PERIOD_NS = 50_000_000
START_NS = 1_700_000_000_000_000_000


def _pictures(index: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(index)
    left, right = rng.integers(0, 256, (2, CAMERA.height, CAMERA.width, 3), np.uint8)
    return left, right


def _write(path: Path, pairs: int = 5, **options: object) -> Path:
    with StereoBagWriter(path, **options) as bag:
        for index in range(pairs):
            bag.write_pair(START_NS + index * PERIOD_NS, *_pictures(index), CAMERA)
    return path


@pytest.mark.parametrize('storage', ['sqlite3', 'mcap'])
@pytest.mark.parametrize('compressed', [False, True])
def test_pairs_come_back_as_they_were_written(
    tmp_path: Path, storage: str, compressed: bool
) -> None:
    path = _write(tmp_path / 'bag', storage=storage, compressed=compressed)

    with StereoBag(path) as bag:
        frames = list(bag.pairs())
        assert bag.camera == CAMERA
        assert bag.pair_count == 5
        assert not bag.unpaired.total()

    assert [frame.stamp_ns for frame in frames] == [
        START_NS + index * PERIOD_NS for index in range(5)
    ]
    for index, frame in enumerate(frames):
        left, right = _pictures(index)
        np.testing.assert_array_equal(frame.left, left)
        np.testing.assert_array_equal(frame.right, right)


def test_bags_whose_messages_are_compressed_one_by_one_are_read(tmp_path: Path) -> None:
    """`ros2 bag record --compression-mode message`, which our own writer has no option for."""
    writer = StereoBagWriter(tmp_path / 'bag')
    writer._writer.set_compression(CompressionMode.MESSAGE, CompressionFormat.ZSTD)
    with writer:
        writer.write_pair(START_NS, *_pictures(0), CAMERA)
    assert 'compression_mode: message' in (tmp_path / 'bag/metadata.yaml').read_text().lower()
    with StereoBag(tmp_path / 'bag') as bag:
        (frame,) = bag.pairs()
    np.testing.assert_array_equal(frame.right, _pictures(0)[1])


def test_grey_pictures_are_stored_as_mono8(tmp_path: Path) -> None:
    grey = np.arange(CAMERA.height * CAMERA.width, dtype=np.uint8).reshape(CAMERA.height, -1)
    with StereoBagWriter(tmp_path / 'bag') as bag:
        bag.write_pair(START_NS, grey, grey, CAMERA)

    with StereoBag(tmp_path / 'bag') as bag:
        (frame,) = bag.pairs()
        (image,) = (m for _, _, m in bag.decoded(['/left/image_rect']))

    assert image.encoding == 'mono8'
    np.testing.assert_array_equal(frame.left, np.dstack([grey] * 3))


def test_a_single_storage_file_is_a_bag_too(tmp_path: Path) -> None:
    folder = _write(tmp_path / 'bag', storage='mcap')
    (file,) = folder.glob('*.mcap')
    (folder / 'metadata.yaml').unlink()

    for path in (file, folder):
        with StereoBag(path) as bag:
            assert len(list(bag.pairs())) == 5


def test_a_frame_without_partner_is_left_out_and_counted(tmp_path: Path) -> None:
    topics = StereoTopics.in_namespace('cam')
    with StereoBagWriter(tmp_path / 'bag', topics=topics) as bag:
        for index in range(4):
            stamp_ns = START_NS + index * PERIOD_NS
            left, right = _pictures(index)
            bag.write_pair(stamp_ns, left, right, CAMERA)
        bag.write(topics.left_image, START_NS + 4 * PERIOD_NS, _image(START_NS + 4 * PERIOD_NS))

    with StereoBag(tmp_path / 'bag') as bag:
        assert len(list(bag.pairs())) == 4
        assert bag.unpaired['unmatched_left'] == 1
        assert bag.unpaired.total() == 1


def test_approximate_stamps_pair_within_the_tolerance(tmp_path: Path) -> None:
    topics = StereoTopics.in_namespace()
    with StereoBagWriter(tmp_path / 'bag') as bag:
        bag.write_pair(START_NS, *_pictures(0), CAMERA)
        bag.write(topics.left_image, START_NS + PERIOD_NS, _image(START_NS + PERIOD_NS))
        bag.write(topics.right_image, START_NS + PERIOD_NS, _image(START_NS + PERIOD_NS + 2000))

    with StereoBag(tmp_path / 'bag', tolerance_ns=2000) as bag:
        assert [frame.skew_ns for frame in bag.pairs()] == [0, 2000]
    with StereoBag(tmp_path / 'bag', tolerance_ns=1999) as bag:
        assert len(list(bag.pairs())) == 1


def test_reads_compressed_images(tmp_path: Path) -> None:
    types = get_typestore(Stores.LATEST).types
    flat = np.full((CAMERA.height, CAMERA.width, 3), (10, 200, 60), np.uint8)  # RGB
    png = cv2.imencode('.png', cv2.cvtColor(flat, cv2.COLOR_RGB2BGR))[1].reshape(-1)
    topics = StereoTopics.in_namespace()
    with StereoBagWriter(tmp_path / 'bag') as bag:
        for topic in (topics.left_image, topics.right_image):
            message = types[COMPRESSED_IMAGE](_image(START_NS).header, 'png', png)
            bag.write(topic + '/compressed', START_NS, message)
        bag.write_camera_infos(START_NS, CAMERA)

    with StereoBag(tmp_path / 'bag') as bag:
        assert bag.stereo_topics.left_image == '/left/image_rect/compressed'
        (frame,) = bag.pairs()
    np.testing.assert_array_equal(frame.left, flat)


def test_reads_ros1_bags_and_hands_out_ros2_bytes(tmp_path: Path) -> None:
    store = get_typestore(Stores.ROS1_NOETIC)
    types = store.types
    left, right = _pictures(3)
    stamp = types['builtin_interfaces/msg/Time'](*divmod(START_NS, 10**9))
    header = types['std_msgs/msg/Header'](7, stamp, 'cam')
    with Rosbag1Writer(tmp_path / 'old.bag') as bag:
        for eye, picture, projection in (
            ('left', left, CAMERA.projection_left),
            ('right', right, CAMERA.projection_right),
        ):
            roi = types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
            messages = {
                f'/cam/{eye}/image_rect': types[IMAGE](
                    header, CAMERA.height, CAMERA.width, 'rgb8', 0, 96, picture.reshape(-1)
                ),
                f'/cam/{eye}/camera_info': types[CAMERA_INFO](
                    header,
                    CAMERA.height,
                    CAMERA.width,
                    'plumb_bob',
                    np.zeros(5),
                    projection[:, :3].reshape(-1),
                    np.eye(3).reshape(-1),
                    projection.reshape(-1),
                    0,
                    0,
                    roi,
                ),
            }
            for topic, message in messages.items():
                connection = bag.add_connection(topic, message.__msgtype__, typestore=store)
                bag.write(connection, START_NS, store.serialize_ros1(message, message.__msgtype__))

    with StereoBag(tmp_path / 'old.bag') as bag:
        assert bag.camera == CAMERA
        (frame,) = bag.pairs()
        raw = {message.topic: message for message in bag.messages()}

    np.testing.assert_array_equal(frame.left, left)
    np.testing.assert_array_equal(frame.right, right)
    ros2 = get_typestore(Stores.LATEST)
    info = ros2.deserialize_cdr(raw['/cam/right/camera_info'].cdr, CAMERA_INFO)
    np.testing.assert_array_equal(info.p.reshape(3, 4), CAMERA.projection_right)
    assert read_stamp(raw['/cam/left/image_rect'].cdr) == START_NS


@given(
    stamp=st.integers(0, (2**31 - 1) * 10**9 + 999_999_999),
    new_stamp=st.integers(0, (2**31 - 1) * 10**9 + 999_999_999),
    little_endian=st.booleans(),
)
def test_restamp_changes_the_stamp_and_nothing_else(
    stamp: int, new_stamp: int, little_endian: bool
) -> None:
    store = get_typestore(Stores.LATEST)
    original = _image(stamp)
    cdr = bytes(store.serialize_cdr(original, IMAGE, little_endian=little_endian))
    assert read_stamp(cdr) == stamp

    changed = store.deserialize_cdr(restamp(cdr, new_stamp), IMAGE)

    assert changed.header.stamp.sec * 10**9 + changed.header.stamp.nanosec == new_stamp
    assert changed.header.frame_id == original.header.frame_id
    np.testing.assert_array_equal(changed.data, original.data)


@pytest.mark.parametrize(
    ('left', 'right'),
    [
        ('/left/image_rect', '/right/image_rect'),
        ('/robot/front_left/image_rect_color', '/robot/front_right/image_rect_color'),
        ('/camera/infra1/image_rect_raw', '/camera/infra2/image_rect_raw'),
        ('/cam0/image_raw', '/cam1/image_raw'),
    ],
)
def test_finds_the_usual_names(left: str, right: str) -> None:
    infos = [topic.rsplit('/', 1)[0] + '/camera_info' for topic in (left, right)]
    topics = {left: IMAGE, right: IMAGE, infos[0]: CAMERA_INFO, infos[1]: CAMERA_INFO}
    topics |= {'/rgb/image_rect': IMAGE, '/tf': 'tf2_msgs/msg/TFMessage'}

    assert find_stereo_topics(topics) == StereoTopics(left, right, *infos)


def test_prefers_rectified_over_raw_and_plain_over_compressed() -> None:
    topics = {}
    for eye in ('left', 'right'):
        topics[f'/{eye}/image_raw'] = IMAGE
        topics[f'/{eye}/image_rect/compressed'] = COMPRESSED_IMAGE
        topics[f'/{eye}/image_rect'] = IMAGE
        topics[f'/{eye}/camera_info'] = CAMERA_INFO

    assert find_stereo_topics(topics).left_image == '/left/image_rect'
    del topics['/left/image_rect'], topics['/right/image_rect']
    assert find_stereo_topics(topics).left_image == '/left/image_rect/compressed'


def test_several_cameras_need_a_namespace() -> None:
    topics = {}
    for namespace in ('front', 'rear'):
        names = StereoTopics.in_namespace(namespace)
        topics |= {names.left_image: IMAGE, names.right_image: IMAGE}
        topics |= {names.left_info: CAMERA_INFO, names.right_info: CAMERA_INFO}

    with pytest.raises(BagError, match=r'Several stereo cameras.*front.*rear'):
        find_stereo_topics(topics)
    assert find_stereo_topics(topics, namespace='rear').left_info == '/rear/left/camera_info'
    with pytest.raises(BagError, match='/side/'):
        find_stereo_topics(topics, namespace='side')


def test_without_stereo_topics_says_what_there_is() -> None:
    with pytest.raises(BagError, match=r'/rgb/image \(Image\)'):
        find_stereo_topics({'/rgb/image': IMAGE})


def test_without_camera_info_says_where_it_was_expected() -> None:
    topics = {'/s/left/image_rect': IMAGE, '/s/right/image_rect': IMAGE}
    with pytest.raises(BagError, match='expected /s/left/camera_info'):
        find_stereo_topics(topics)


def test_bad_bags_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(BagError, match='does not exist'), Bag(tmp_path / 'absent'):
        pass
    (tmp_path / 'folder').mkdir()
    with pytest.raises(BagError, match=r'no metadata\.yaml'), Bag(tmp_path / 'folder'):
        pass
    (tmp_path / 'text.mcap').write_text('not a bag')
    with pytest.raises(BagError, match='cannot be read as a bag'), Bag(tmp_path / 'text.mcap'):
        pass
    _write(tmp_path / 'empty', pairs=0)
    with pytest.raises(BagError, match='is empty'), Bag(tmp_path / 'empty'):
        pass
    wanted = StereoTopics.in_namespace('elsewhere')
    _write(tmp_path / 'bag')
    with (
        pytest.raises(BagError, match='no topic /elsewhere/left/image_rect'),
        StereoBag(tmp_path / 'bag', wanted),
    ):
        pass


def test_a_truncated_file_is_an_error_of_the_bag(tmp_path: Path) -> None:
    folder = _write(tmp_path / 'bag', pairs=50, storage='mcap')
    (file,) = folder.glob('*.mcap')
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    with pytest.raises(BagError, match='bag'), StereoBag(folder) as bag:
        list(bag.pairs())


def test_the_writer_refuses_to_overwrite_and_mixed_sizes(tmp_path: Path) -> None:
    _write(tmp_path / 'bag')
    with pytest.raises(BagError, match='exists already'):
        StereoBagWriter(tmp_path / 'bag')
    with StereoBagWriter(tmp_path / 'other') as bag:
        left, right = _pictures(0)
        with pytest.raises(BagError, match=r'32x20 \(left\) and 30x20 \(right\)'):
            bag.write_pair(START_NS, left, right[:, :30], CAMERA)


def test_an_unknown_storage_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BagError, match='mcap'):
        StereoBagWriter(tmp_path / 'bag', 'rosbag3')


def _image(stamp_ns: int) -> object:
    types = get_typestore(Stores.LATEST).types
    header = types['std_msgs/msg/Header'](
        types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9)), 'cam'
    )
    pixels = np.arange(CAMERA.width * CAMERA.height, dtype=np.uint32).astype(np.uint8)
    return types[IMAGE](header, CAMERA.height, CAMERA.width, 'mono8', 0, CAMERA.width, pixels)
