# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The bag player and the recorder over real DDS: what was written arrives, stamped as asked."""

from __future__ import annotations

import json
import platform
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import rclpy
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from ros_rig import PATIENCE_S, wait_until
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image

from stereo_kd_ros.bag import Bag, BagError, BagMessage, StereoBag, StereoBagWriter, StereoTopics
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.children import Child
from stereo_kd_ros.image import decode_image
from stereo_kd_ros.node.player import PlayerError, ReadAhead, message_type, open_player
from stereo_kd_ros.node.recorder import Discarding, open_recorder

CAMERA = StereoCamera.from_intrinsics(fx=90.0, baseline_m=0.1, width=48, height=32)
TOPICS = StereoTopics.in_namespace('player_test')
START_NS, PERIOD_NS, PAIRS = 1_650_000_000_123_456_789, 40_000_000, 5
RELIABLE = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)


def _picture(index: int, eye: int) -> np.ndarray:
    shape = (CAMERA.height, CAMERA.width, 3)
    return np.random.default_rng((index, eye)).integers(0, 256, shape, np.uint8)


@pytest.fixture(scope='module')
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('bags') / 'bag'
    with StereoBagWriter(path, topics=TOPICS) as writer:
        for index in range(PAIRS):
            stamp_ns = START_NS + index * PERIOD_NS
            writer.write_pair(stamp_ns, _picture(index, 0), _picture(index, 1), CAMERA)
    return path


class _Listener:
    """Collects messages in a context of its own, so that they cross DDS."""

    def __init__(self) -> None:
        self.context = Context()
        rclpy.init(args=[], context=self.context)
        self.node = Node('listener', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.received: dict[str, list] = {}

    def listen(self, topic: str, message_class: type) -> list:
        messages = self.received.setdefault(topic, [])
        self.node.create_subscription(message_class, topic, messages.append, RELIABLE)
        return messages

    def spin_until(self, condition, timeout_s: float = PATIENCE_S) -> None:
        def satisfied() -> bool:
            self.executor.spin_once(timeout_sec=0.02)
            return condition()

        wait_until(satisfied, timeout_s)

    def close(self) -> None:
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()


@pytest.fixture
def listener() -> Iterator[_Listener]:
    listener = _Listener()
    try:
        yield listener
    finally:
        listener.close()


def _stamp_ns(message) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def test_every_message_arrives_as_it_was_recorded(bag: Path, listener: _Listener) -> None:
    lefts = listener.listen(TOPICS.left_image, Image)
    infos = listener.listen(TOPICS.right_info, CameraInfo)
    rights = listener.listen(TOPICS.right_image, Image)
    with Bag(bag) as source, open_player(source) as player:
        assert player.wait_for_subscribers(list(listener.received), PATIENCE_S) == []
        played = list(player.play(rate=4))
        listener.spin_until(lambda: min(map(len, (lefts, rights, infos))) == PAIRS)

    assert len(played) == 4 * PAIRS
    for index in range(PAIRS):
        assert _stamp_ns(lefts[index]) == START_NS + index * PERIOD_NS
        np.testing.assert_array_equal(decode_image(lefts[index]), _picture(index, 0))
        np.testing.assert_array_equal(decode_image(rights[index]), _picture(index, 1))
        np.testing.assert_allclose(infos[index].p.reshape(3, 4), CAMERA.projection_right)
        np.testing.assert_allclose(infos[index].k, CAMERA.projection_right[:, :3].reshape(-1))


def test_rclpy_decodes_the_bags_bytes_as_rosbags_does(bag: Path) -> None:
    with Bag(bag) as source:
        decoded = dict.fromkeys(TOPICS.names)
        for topic, _, message in source.decoded(TOPICS.names):
            decoded[topic] = message
        raw = {message.topic: message for message in source.messages()}

    for topic in TOPICS.names:
        ours, theirs = decoded[topic], raw[topic]
        ros = deserialize_message(theirs.cdr, message_type(theirs.msgtype))
        assert ros.header.frame_id == ours.header.frame_id
        assert _stamp_ns(ros) == _stamp_ns(ours)
        for field in ('height', 'width', 'encoding', 'step', 'distortion_model'):
            assert getattr(ros, field, None) == getattr(ours, field, None)
        for field in ('data', 'd', 'k', 'r', 'p'):
            if hasattr(ours, field):
                np.testing.assert_array_equal(getattr(ros, field), getattr(ours, field))


def test_restamp_keeps_pairs_together_and_says_what_it_did(bag: Path, listener: _Listener) -> None:
    lefts = listener.listen(TOPICS.left_image, Image)
    rights = listener.listen(TOPICS.right_image, Image)
    before_ns = time.time_ns()
    with Bag(bag) as source, open_player(source) as player:
        assert player.wait_for_subscribers(list(listener.received), PATIENCE_S) == []
        played = list(player.play(restamp_now=True))
        listener.spin_until(lambda: min(len(lefts), len(rights)) == PAIRS)

    stamps = [_stamp_ns(message) for message in lefts]
    assert stamps == [_stamp_ns(message) for message in rights]
    assert before_ns < stamps[0] and stamps[-1] < time.time_ns()
    # Never early; a busy machine makes a pair late and the next one catches up.
    assert np.all(np.diff(stamps) > 0)
    assert all(stamp - before_ns > 0.99 * index * PERIOD_NS for index, stamp in enumerate(stamps))
    mapping = {message.published_stamp_ns: message.stamp_ns for message in played}
    assert [mapping[stamp] for stamp in stamps] == [
        START_NS + index * PERIOD_NS for index in range(PAIRS)
    ]


def test_clock_runs_through_the_bags_time(bag: Path, listener: _Listener) -> None:
    ticks = listener.listen('/clock', Clock)
    with Bag(bag) as source, open_player(source) as player:
        # The /clock publisher is made with the first tick, so play on until it was heard.
        while not ticks:
            for _ in player.play(clock=True, rate=0.5):
                listener.executor.spin_once(timeout_sec=0)
        listener.spin_until(lambda: bool(ticks))

    times = [tick.clock.sec * 10**9 + tick.clock.nanosec for tick in ticks]
    assert all(START_NS <= t <= START_NS + PAIRS * PERIOD_NS for t in times)


def test_a_rate_and_topics_that_cannot_be_are_refused(bag: Path) -> None:
    with Bag(bag) as source:
        with open_player(source) as player, pytest.raises(PlayerError, match='positive'):
            list(player.play(rate=0))
        with (
            pytest.raises(PlayerError, match='no topic of it can be published'),
            open_player(source, topics=['/absent']),
        ):
            pass


def test_unknown_message_types_are_named() -> None:
    with pytest.raises(PlayerError, match='no_such_msgs/msg/Thing is not installed'):
        message_type('no_such_msgs/msg/Thing')


def test_the_recorder_writes_what_the_player_sends(bag: Path, tmp_path: Path) -> None:
    command = [sys.executable, '-m', 'stereo_kd_ros.commands.main', 'play', str(bag)]
    command += ['--restamp', '--wait', '120', '--log', str(tmp_path / 'log.jsonl')]
    topics = dict.fromkeys(TOPICS.names[:2], 'sensor_msgs/msg/Image')
    with (
        StereoBagWriter(tmp_path / 'copy', topics=TOPICS) as writer,
        open_recorder(topics, writer, 'nobody') as recorder,
        Child('player', command, log=tmp_path / 'player.log') as player,
    ):
        wait_until(lambda: recorder.spin(0.05) or player.exit_code is not None, 200)
        assert player.exit_code == 0, player.tail()
        wait_until(lambda: recorder.spin(0.05) or len(_arrived(recorder)) == 2 * PAIRS)
        writer.write_camera_infos(START_NS, CAMERA)

    for arrival in _arrived(recorder):
        assert arrival.stamp_ns <= arrival.source_ns <= arrival.received_ns
    with StereoBag(tmp_path / 'copy') as copy:
        frames = list(copy.pairs())
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    mapping = {line['published_stamp_ns']: line['stamp_ns'] for line in lines}
    assert len(lines) == 4 * PAIRS
    for index, frame in enumerate(frames):
        assert mapping[frame.stamp_ns] == START_NS + index * PERIOD_NS
        np.testing.assert_array_equal(frame.right, _picture(index, 1))


def test_a_player_that_is_held_begins_when_the_file_is_there(
    bag: Path, listener: _Listener, tmp_path: Path
) -> None:
    lefts = listener.listen(TOPICS.left_image, Image)
    start, log = tmp_path / 'start', tmp_path / 'log.jsonl'
    command = [sys.executable, '-m', 'stereo_kd_ros.commands.main', 'play', str(bag)]
    command += ['--topic', TOPICS.left_image, '--wait', '120', '--hold-until', str(start)]
    command += ['--log', str(log)]
    with Child('player', command, log=tmp_path / 'player.log') as player:
        topic = TOPICS.left_image
        wait_until(lambda: listener.node.count_publishers(topic) or player.exit_code is not None)
        # Longer than an idle machine needs to begin; a slow one proves less, and never fails.
        time.sleep(1.5)
        player.require_alive()
        assert not log.exists() and not lefts
        start.touch()
        listener.spin_until(lambda: len(lefts) == PAIRS or player.exit_code not in (None, 0), 200)

    assert len(lefts) == PAIRS, player.tail()


def test_loop_plays_until_it_is_told_to_stop(
    bag: Path, listener: _Listener, tmp_path: Path
) -> None:
    lefts = listener.listen(TOPICS.left_image, Image)
    command = [sys.executable, '-m', 'stereo_kd_ros.commands.main', 'play', str(bag)]
    command += ['--loop', '--rate', '5', '--wait', '0']
    with Child('player', command, log=tmp_path / 'player.log') as player:
        listener.spin_until(lambda: len(lefts) > 2 * PAIRS or player.exit_code is not None, 200)
        player.require_alive()
        player.stop()

    assert player.exit_code == 0, player.tail()
    assert 'messages published' in player.tail()
    assert {_stamp_ns(message) for message in lefts} <= {
        START_NS + index * PERIOD_NS for index in range(PAIRS)
    }


def _arrived(recorder) -> list:
    return [arrival for arrivals in recorder.arrivals.values() for arrival in arrivals]


def _numbered(count: int, size: int = 10, fault: Exception | None = None) -> Iterator[BagMessage]:
    for number in range(count):
        yield BagMessage('/topic', 'std_msgs/msg/String', number, bytes(size))
    if fault is not None:
        raise fault


def test_what_is_read_ahead_comes_in_order_and_a_fault_in_its_turn() -> None:
    messages = ReadAhead(_numbered(5, fault=BagError('damaged')))
    assert next(messages).time_ns == 0
    while messages.fill():
        pass
    assert [next(messages).time_ns for _ in range(4)] == [1, 2, 3, 4]
    for _ in range(2):
        with pytest.raises(BagError, match='damaged'):
            next(messages)


@pytest.mark.parametrize('size, most', [(10, 64), (16 << 20, 4)])
def test_no_more_is_read_ahead_than_memory_should_hold(size: int, most: int) -> None:
    taken = []
    source = (taken.append(message) or message for message in _numbered(200, size))
    messages = ReadAhead(source)
    while messages.fill():
        pass
    assert len(taken) == most
    assert [message.time_ns for message in messages] == list(range(200))


def test_the_other_image_of_a_pair_is_read_before_the_first_goes_out(bag: Path) -> None:
    """Else the time from stamp to result has the reading of a file in it."""
    read = []
    with Bag(bag) as source, open_player(source) as player:
        messages = source.messages

        def watched(topics):
            for message in messages(topics):
                read.append(message.topic)
                yield message

        source.messages = watched
        # At a quarter of the rate there are pauses of 160 ms between pairs.
        ahead = [len(read) - number for number, _ in enumerate(player.play(rate=0.25), 1)]
    assert len(ahead) == len(read) == 4 * PAIRS
    assert all(ahead[number] >= 3 for number in range(4, 4 * PAIRS, 4)[:-1])
    assert ahead[-1] == 0


def _page_faults_of_playing(bag: Path, pairs: int, log: Path) -> int:
    """Of the player, with somebody who takes the images."""
    topics = dict.fromkeys(TOPICS.names[:2], 'sensor_msgs/msg/Image')
    command = [sys.executable, '-m', 'stereo_kd_ros.commands.main', 'play', str(bag)]
    command += ['--wait', '120', '--rate', '2', '--restamp']
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt
    with (
        open_recorder(topics, Discarding(), 'nobody') as recorder,
        Child('player', command, log=log) as player,
    ):
        wait_until(lambda: recorder.spin(0.05) or player.exit_code is not None, 200)
        assert player.exit_code == 0, player.tail()
        wait_until(lambda: recorder.spin(0.05) or len(_arrived(recorder)) == 2 * pairs)
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')
def test_the_memory_of_one_pair_serves_the_next(tmp_path: Path) -> None:
    height, width, few, many = 720, 1280, 30, 60
    camera = StereoCamera.from_intrinsics(fx=500.0, baseline_m=0.1, width=width, height=height)
    image = np.full((height, width, 3), 77, np.uint8)
    faults = {}
    for pairs in (few, many):
        path = tmp_path / str(pairs)
        with StereoBagWriter(path, topics=TOPICS) as writer:
            for index in range(pairs):
                writer.write_pair(START_NS + index * PERIOD_NS, image, image, camera)
        faults[pairs] = _page_faults_of_playing(path, pairs, tmp_path / 'log')
    pages = 2 * image.nbytes / resource.getpagesize()
    assert faults[many] - faults[few] < (many - few) * pages / 4
