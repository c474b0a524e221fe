# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Records topics into a rosbag2, with the latency of each message and the last `/diagnostics`.

Messages are taken as bytes and written as they are, so that recording costs the machine as little
as it can while something else is being measured.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from rclpy.subscription import Subscription

from stereo_kd_ros.bag import StereoBagWriter, read_stamp
from stereo_kd_ros.memory import keep_freed_memory
from stereo_kd_ros.node.player import message_type


@dataclass(frozen=True)
class Arrival:
    """When a message came.

    `source_ns` is when its publisher handed it to DDS and equals `received_ns` where rclpy does
    not tell (Humble); all three are wall clock.
    """

    stamp_ns: int
    source_ns: int
    received_ns: int


class Discarding:
    """In place of a bag, where only the times of what comes are wanted.

    A pair's maps are 2.4 MB at 640x480 and 7.4 MB at 1280x720: to write thirty of these a second
    takes two thirds of a core from those who are measured.
    """

    def write_cdr(self, topic: str, msgtype: str, time_ns: int, cdr: bytes) -> None:
        """Write nothing."""


@dataclass
class Recorder:
    """Subscribes to topics with header and writes what comes to a bag.

    Args:
        node: The node that subscribes.
        topics: Topic name to message type.
        writer: An open bag, or `Discarding`.
        diagnostics_of: Full name of the node whose `/diagnostics` are kept.

    `diagnostics_stamp_ns` is the moment at which the last of them began: they hold all before it.
    """

    node: Node
    topics: Mapping[str, str]
    writer: StereoBagWriter | Discarding
    diagnostics_of: str = ''
    arrivals: dict[str, list[Arrival]] = field(default_factory=dict)
    diagnostics: dict[str, dict[str, str]] = field(default_factory=dict)
    diagnostics_stamp_ns: int = 0

    def __post_init__(self) -> None:
        """Make the subscriptions."""
        profile = QoSProfile(
            history=HistoryPolicy.KEEP_LAST, depth=20, reliability=ReliabilityPolicy.RELIABLE
        )
        self.knows_source_time = hasattr(Subscription, 'CallbackType')
        for topic, msgtype in self.topics.items():
            self.arrivals[topic] = []
            self.node.create_subscription(
                message_type(msgtype), topic, self._callback(topic, msgtype), profile, raw=True
            )
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._keep, 10)

    def spin(self, timeout_s: float) -> None:
        """Wait for one message, at most this long, and take it."""
        rclpy.spin_once(self.node, timeout_sec=timeout_s)

    def _callback(self, topic: str, msgtype: str) -> Any:
        def record(cdr: bytes, source_ns: int) -> None:
            received_ns = time.time_ns()
            stamp_ns = read_stamp(cdr)
            self.arrivals[topic].append(Arrival(stamp_ns, source_ns or received_ns, received_ns))
            self.writer.write_cdr(topic, msgtype, received_ns, cdr)

        def with_info(cdr: bytes, info: Any) -> None:
            record(cdr, info['source_timestamp'])

        def without_info(cdr: bytes) -> None:
            record(cdr, 0)

        return with_info if self.knows_source_time else without_info

    def _keep(self, message: DiagnosticArray) -> None:
        for status in message.status:
            owner, _, part = status.name.partition(': ')
            if owner.strip('/') != self.diagnostics_of.strip('/'):
                continue
            self.diagnostics[part] = {value.key: value.value for value in status.values}
            self.diagnostics[part]['message'] = status.message
            stamp = message.header.stamp
            self.diagnostics_stamp_ns = stamp.sec * 10**9 + stamp.nanosec


@contextmanager
def open_recorder(
    topics: Mapping[str, str], writer: StereoBagWriter | Discarding, diagnostics_of: str
) -> Iterator[Recorder]:
    """A recorder with a ROS node of its own, for as long as a `with` block.

    Signals stay Python's, so that Ctrl-C is a KeyboardInterrupt that unwinds the caller.
    """
    keep_freed_memory()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = rclpy.create_node('stereo_kd_recorder')
        try:
            yield Recorder(node, topics, writer, diagnostics_of)
        finally:
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
