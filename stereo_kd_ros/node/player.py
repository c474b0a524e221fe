# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Publishes a bag through rclpy, in its own time, where `ros2 bag play` is not installed.

Messages go out as the bytes that were recorded; at most the eight bytes of the header stamp are
changed. With `restamp`, all messages that shared a stamp share a new one: the wall clock at the
moment when the first of them goes out. Those within a tolerance of it keep their distance to it,
so that a pair whose eyes are stamped apart stays one. Stamp-to-publish latency measured downstream
then begins when the player begins to hand a pair to DDS, and includes the transfer of both images.

What is due next is read while there is nothing to do, so that the time between the two images of a
pair is that of handing them over and not that of reading a file.
"""

from __future__ import annotations

import importlib
import time
from collections import OrderedDict, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

from stereo_kd_ros.bag import Bag, BagMessage, read_stamp, restamp

# Topics that are published once and must reach those who come later.
_LATCHED = frozenset({'/tf_static', '/robot_description', '/map'})

# Longest uninterrupted sleep: how fast a player reacts to Ctrl-C, and how often /clock ticks.
_TICK_S = 0.02

# A subscriber is counted here a little before it has found us, and best effort waits for nobody.
_MATCH_SETTLE_S = 0.5

# A best-effort subscriber acknowledges nothing, and reads images out of our shared memory.
_LINGER_S = 1.0

# What is read before it is due: up to so many messages or bytes, while so much time is left.
_AHEAD_MESSAGES = 64
_AHEAD_BYTES = 64 << 20
_AHEAD_S = 0.01

# A stamp that comes back after this many others counts as a new one (a bag that loops).
_REMEMBERED_STAMPS = 256


class PlayerError(RuntimeError):
    """A bag cannot be published."""


@dataclass(frozen=True)
class PlayedMessage:
    """One message that went out.

    `stamp_ns` is its recorded header stamp and `published_stamp_ns` the one it went out with
    (None for messages without a header); `late_ms` is how far behind its due time it was.
    """

    topic: str
    stamp_ns: int | None
    published_stamp_ns: int | None
    late_ms: float


class ReadAhead:
    """An iterator of messages that may be read before they are asked for.

    A fault met on the way is raised when its turn has come: what lies before it is given first.

    Args:
        messages: of a bag, in order.
    """

    def __init__(self, messages: Iterator[BagMessage]) -> None:
        self._messages = messages
        self._waiting: deque[BagMessage] = deque()
        self._bytes = 0
        self._fault: Exception | None = None
        self._ended = False

    def __iter__(self) -> ReadAhead:
        return self

    def __next__(self) -> BagMessage:
        if not self._waiting:
            self._read()
        if not self._waiting:
            if self._fault is not None:
                raise self._fault
            raise StopIteration
        message = self._waiting.popleft()
        self._bytes -= len(message.cdr)
        return message

    def fill(self) -> bool:
        """Read one more message; False when enough wait or there are no more."""
        if self._ended or len(self._waiting) >= _AHEAD_MESSAGES or self._bytes >= _AHEAD_BYTES:
            return False
        self._read()
        return not self._ended

    def _read(self) -> None:
        if self._ended:
            return
        try:
            message = next(self._messages)
        except StopIteration:
            self._ended = True
        except Exception as fault:  # whatever the bag has to say, in its place
            self._ended, self._fault = True, fault
        else:
            self._waiting.append(message)
            self._bytes += len(message.cdr)


class BagPlayer:
    """Publishers for the topics of an open bag.

    Args:
        node: The node that publishes.
        bag: An open bag.
        topics: Only these; None for every topic whose message type is installed.
        reliable: RELIABLE publishers (which serve every subscriber) or BEST_EFFORT ones.
        depth: History depth of the publishers.

    `skipped` maps the topics that cannot be published to the reason.

    Raises:
        PlayerError: Not one topic can be published.
    """

    def __init__(
        self,
        node: Node,
        bag: Bag,
        *,
        topics: Collection[str] | None = None,
        reliable: bool = True,
        depth: int = 10,
    ) -> None:
        self._node = node
        self._bag = bag
        self._clock: Publisher | None = None
        self.publishers: dict[str, Publisher] = {}
        self.skipped: dict[str, str] = {}
        self._stamped: set[str] = set()
        for topic, msgtype in bag.topics.items():
            if topics is not None and topic not in topics:
                continue
            try:
                message_class = message_type(msgtype)
            except PlayerError as error:
                self.skipped[topic] = str(error)
                continue
            latched = topic in _LATCHED
            profile = QoSProfile(
                history=HistoryPolicy.KEEP_LAST,
                depth=depth,
                reliability=(
                    ReliabilityPolicy.RELIABLE
                    if reliable or latched
                    else ReliabilityPolicy.BEST_EFFORT
                ),
                durability=(
                    DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
                ),
            )
            self.publishers[topic] = node.create_publisher(message_class, topic, profile)
            if bag.has_header(msgtype):
                self._stamped.add(topic)
        if not self.publishers:
            reasons = '; '.join(f'{topic}: {why}' for topic, why in self.skipped.items())
            raise PlayerError(f'{bag.path}: no topic of it can be published. {reasons}')

    @property
    def running(self) -> bool:
        """False once the context was shut down, as Ctrl-C does."""
        return self._node.context.ok()

    def wait_for_subscribers(self, topics: Collection[str], timeout_s: float) -> list[str]:
        """Wait until somebody listens to each of these topics.

        Returns:
            The topics to which nobody listened in time; empty when all is well.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            unheard = [
                topic for topic in topics if not self.publishers[topic].get_subscription_count()
            ]
            if not unheard:
                time.sleep(_MATCH_SETTLE_S)
                return []
            if time.monotonic() >= deadline or not self.running:
                return unheard
            time.sleep(_TICK_S)

    def wait_for_file(self, path: Path) -> None:
        """Wait until a file exists: somebody else knows better when all are there."""
        while self.running and not path.exists():
            time.sleep(_TICK_S)

    def play(
        self,
        *,
        rate: float = 1.0,
        restamp_now: bool = False,
        clock: bool = False,
        tolerance_ns: int = 0,
    ) -> Iterator[PlayedMessage]:
        """Publish the bag once, paced by the times at which it was recorded.

        Args:
            rate: 2.0 plays twice as fast.
            restamp_now: Replace header stamps as the module says.
            clock: Publish the bag's time on /clock.
            tolerance_ns: How far apart stamps may lie that keep their distance when replaced.

        Yields:
            What has just been published; ends early when the context shuts down.

        Raises:
            PlayerError: A rate that is not positive.
            BagError: The bag is damaged.
        """
        if not rate > 0:
            raise PlayerError(f'A rate of {rate}: expected a positive number.')
        new_stamps: OrderedDict[int, int] = OrderedDict()
        first_ns: int | None = None
        started = time.monotonic()
        messages = ReadAhead(self._bag.messages(self.publishers.keys()))
        for message in messages:
            if first_ns is None:
                first_ns, started = message.time_ns, time.monotonic()
            due = started + (message.time_ns - first_ns) / 1e9 / rate
            if not self._sleep_until(due, message.time_ns, rate, clock, messages):
                return
            yield self._publish(message, due, restamp_now, new_stamps, tolerance_ns)

    def flush(self, timeout_s: float = 20.0) -> None:
        """Wait until subscribers have everything: what is on its way dies with us.

        A live one has it at once; a starved one may need seconds.
        """
        deadline = time.monotonic() + timeout_s
        for publisher in self.publishers.values():
            # In short pieces, so that Ctrl-C is heard.
            while self.running and time.monotonic() < deadline:
                if publisher.wait_for_all_acked(Duration(seconds=0.2)):
                    break
        if self.running:
            time.sleep(_LINGER_S)

    def _publish(
        self,
        message: BagMessage,
        due: float,
        restamp_now: bool,
        new_stamps: OrderedDict[int, int],
        tolerance_ns: int,
    ) -> PlayedMessage:
        stamp_ns = published_ns = None
        cdr = message.cdr
        if message.topic in self._stamped:
            stamp_ns = published_ns = read_stamp(cdr)
            if restamp_now:
                near = (known for known in new_stamps if abs(known - stamp_ns) <= tolerance_ns)
                first_ns = stamp_ns if stamp_ns in new_stamps else next(near, stamp_ns)
                published_ns = new_stamps.setdefault(first_ns, time.time_ns())
                published_ns += stamp_ns - first_ns
                if len(new_stamps) > _REMEMBERED_STAMPS:
                    new_stamps.popitem(last=False)
                cdr = restamp(cdr, published_ns)
        late_ms = max(0.0, (time.monotonic() - due) * 1e3)
        self.publishers[message.topic].publish(cdr)
        return PlayedMessage(message.topic, stamp_ns, published_ns, late_ms)

    def _sleep_until(
        self, due: float, bag_time_ns: int, rate: float, clock: bool, messages: ReadAhead
    ) -> bool:
        """Read ahead, sleep in short pieces; False when the context was shut down meanwhile."""
        while self.running:
            remaining_s = due - time.monotonic()
            if clock:
                self._tick(bag_time_ns - max(0, round(remaining_s * rate * 1e9)))
            if remaining_s <= 0:
                return True
            until = min(due, time.monotonic() + _TICK_S)
            while until - time.monotonic() > _AHEAD_S and messages.fill():
                pass
            time.sleep(max(0.0, until - time.monotonic()))
        return False

    def _tick(self, time_ns: int) -> None:
        message_class = message_type('rosgraph_msgs/msg/Clock')
        if self._clock is None:
            self._clock = self._node.create_publisher(message_class, '/clock', 10)
        tick = message_class()
        tick.clock.sec, tick.clock.nanosec = divmod(time_ns, 10**9)
        self._clock.publish(tick)


@contextmanager
def open_player(
    bag: Bag, *, topics: Collection[str] | None = None, reliable: bool = True, depth: int = 10
) -> Iterator[BagPlayer]:
    """A player with a ROS node of its own, for as long as a `with` block; arguments as of its.

    Raises:
        PlayerError: Not one topic can be published.
    """
    rclpy.init(args=[])
    try:
        node = rclpy.create_node('stereo_kd_player')
        try:
            yield BagPlayer(node, bag, topics=topics, reliable=reliable, depth=depth)
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()


def message_type(name: str) -> Any:
    """The class of a message type such as `sensor_msgs/msg/Image`.

    Raises:
        PlayerError: Its package is not installed.
    """
    package, _, short_name = name.partition('/')
    try:
        module = importlib.import_module(f'{package}.msg')
        return getattr(module, short_name.rsplit('/', 1)[-1])
    except (ImportError, AttributeError) as error:
        raise PlayerError(f'{name} is not installed') from error
