# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node's four subscriptions: images are paired by stamp, camera_info is remembered.

A callback only files a message; decoding and inference happen elsewhere, so that no input ever
waits. Images and camera_info are taken as bytes and read in place (`wire`).
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rclpy.node import Node
from rclpy.qos import (
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from stereo_kd_ros.node.diagnostics import RateMeter
from stereo_kd_ros.node.messages import stamp_ns
from stereo_kd_ros.node.parameters import Settings
from stereo_kd_ros.node.sync import make_matcher
from stereo_kd_ros.node.wire import CameraInfoReader, read_image
from stereo_kd_ros.pairing import Pair

TOPICS = {
    'left_image': 'left/image_rect',
    'right_image': 'right/image_rect',
    'left_camera_info': 'left/camera_info',
    'right_camera_info': 'right/camera_info',
}
DESCRIPTIONS = {
    'left_image': 'Rectified left image',
    'right_image': 'Rectified right image',
    'left_camera_info': 'K, P, ROI and binning of the left image',
    'right_camera_info': 'The same of the right image; P[3] = -fx * baseline',
}
RECENT_STAMPS = 20


def sensor_qos() -> QoSProfile:
    """Best effort, five deep, for any camera. A new object each time: overrides change it."""
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.BEST_EFFORT
    )


@dataclass(frozen=True)
class ReceivedPair:
    """A matched pair, its calibration, and when it was complete, by `time.monotonic_ns`.

    The stamp of a camera_info may be that of an earlier one which said the same.
    """

    pair: Pair
    left_info: CameraInfo
    right_info: CameraInfo
    received_ns: int


class CameraInfoMemory:
    """The last camera_info messages of one eye."""

    def __init__(self, size: int = 16) -> None:
        self._size = size
        self._by_stamp: OrderedDict[int, CameraInfo] = OrderedDict()
        self._latest: CameraInfo | None = None
        self._comes_with_images = False
        self._asked_ns: int | None = None

    def add(self, info: CameraInfo, stamp: int | None = None) -> None:
        """Remembers one message, by its own stamp [ns] or another."""
        stamp = stamp_ns(info.header) if stamp is None else stamp
        self._latest = info
        self._by_stamp[stamp] = info
        # It came after its image, which was given an older one: the next image waits again.
        if stamp == self._asked_ns:
            self._comes_with_images = True
        while len(self._by_stamp) > self._size:
            self._by_stamp.popitem(last=False)

    def of_image(self, image_stamp_ns: int) -> CameraInfo | None:
        """Returns the camera_info of an image; None while it should still come.

        That is the one of the image's stamp. A driver that has not sent one per image (some send
        a single one) is not waited for: the latest counts.
        """
        self._asked_ns = image_stamp_ns
        exact = self._by_stamp.get(image_stamp_ns)
        if exact is not None:
            self._comes_with_images = True
            return exact
        return None if self._comes_with_images else self._latest

    def give_up_waiting(self) -> CameraInfo | None:
        """Returns the latest camera_info: the one of the image's stamp has been lost."""
        self._comes_with_images = False
        return self._latest


class StereoInputs:
    """Subscribes, pairs, and hands each complete pair to `on_pair` in the callback's thread."""

    def __init__(
        self,
        node: Node,
        settings: Settings,
        on_pair: Callable[[ReceivedPair], None],
        on_error: Callable[[str], None],
    ) -> None:
        self._node = node
        self._on_pair, self._on_error = on_pair, on_error
        self._matcher = make_matcher(
            settings.sync_backend, settings.queue_size, settings.tolerance_ns
        )
        self._infos = {'left': CameraInfoMemory(), 'right': CameraInfoMemory()}
        self._waiting: tuple[Pair, int] | None = None
        self._recent = {side: deque[int](maxlen=RECENT_STAMPS) for side in ('left', 'right')}
        self.rates = {name: RateMeter() for name in TOPICS}
        self.received: Counter[str] = Counter()
        self.lost_waiting = 0
        self.last_left: Any = None
        compressed = settings.image_transport == 'compressed'
        self.topics = {name: node.resolve_topic_name(topic) for name, topic in TOPICS.items()}
        if compressed:
            for name in ('left_image', 'right_image'):
                self.topics[name] += '/compressed'
        image_type = CompressedImage if compressed else Image
        self._subscriptions = {
            name: node.create_subscription(
                CameraInfo if name.endswith('info') else image_type,
                self.topics[name] if compressed else TOPICS[name],
                self._filing(name, compressed),
                sensor_qos(),
                qos_overriding_options=QoSOverridingOptions.with_default_policies(),
                raw=name.endswith('info') or not compressed,
            )
            for name in TOPICS
        }

    def destroy(self) -> None:
        """Ends the subscriptions."""
        for subscription in self._subscriptions.values():
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    @property
    def pairing_counts(self) -> Counter[str]:
        """What the matcher left out, by cause."""
        return Counter(self._matcher.counts)

    def publisher_counts(self) -> dict[str, int]:
        """Returns how many publishers each input has, compatible or not."""
        return {name: self._node.count_publishers(topic) for name, topic in self.topics.items()}

    def qos_conflicts(self) -> list[str]:
        """Returns one sentence per publisher whose QoS keeps its messages from us."""
        conflicts = []
        for name, subscription in self._subscriptions.items():
            for endpoint in self._node.get_publishers_info_by_topic(self.topics[name]):
                verdict, reason = qos_check_compatible(
                    endpoint.qos_profile, subscription.qos_profile
                )
                if verdict == QoSCompatibility.ERROR:
                    conflicts.append(
                        f'{self.topics[name]}: {endpoint.node_name} offers '
                        f'{describe_qos(endpoint.qos_profile)}, we request '
                        f'{describe_qos(subscription.qos_profile)} ({reason.strip()})'
                    )
        return conflicts

    def nearest_skew_ms(self) -> float | None:
        """Returns the least difference between recent left and right stamps; None without both."""
        left, right = list(self._recent['left']), list(self._recent['right'])
        if not left or not right:
            return None
        return min(abs(a - b) for a in left for b in right) / 1e6

    def _filing(self, name: str, compressed: bool) -> Callable[[Any], None]:
        side = name.split('_')[0]
        if name.endswith('info'):
            read_info = CameraInfoReader().read

            def file(wire: bytes) -> None:
                self._file_info(side, *read_info(wire))
        elif compressed:

            def file(message: CompressedImage) -> None:
                self._file_image(side, message)
        else:

            def file(wire: bytes) -> None:
                self._file_image(side, read_image(wire))

        def callback(message: Any) -> None:
            self.received[name] += 1
            self.rates[name].add(time.monotonic_ns())
            try:
                file(message)
            except Exception as error:  # a callback that raises would end the executor
                self._on_error(f'{self.topics[name]}: {type(error).__name__}: {error}')

        return callback

    def _file_image(self, side: str, message: Any) -> None:
        stamp = stamp_ns(message.header)
        self._recent[side].append(stamp)
        if side == 'left':
            self.last_left = message
            pair = self._matcher.add_left(stamp, message)
        else:
            pair = self._matcher.add_right(stamp, message)
        if pair is not None:
            self._end_waiting()
            self._waiting = pair, time.monotonic_ns()
            self._hand_on_if_calibrated()

    def _file_info(self, side: str, stamp: int, info: CameraInfo) -> None:
        self._infos[side].add(info, stamp)
        self._hand_on_if_calibrated()

    def _hand_on_if_calibrated(self) -> None:
        """Hands on the waiting pair once the camera_info of both its images is there."""
        if self._waiting is None:
            return
        pair, received_ns = self._waiting
        left_info = self._infos['left'].of_image(pair.left_stamp_ns)
        right_info = self._infos['right'].of_image(pair.right_stamp_ns)
        if left_info is not None and right_info is not None:
            self._waiting = None
            self._on_pair(ReceivedPair(pair, left_info, right_info, received_ns))

    def _end_waiting(self) -> None:
        """Hands on a pair that still waits when the next one is complete, or counts it as lost."""
        if self._waiting is None:
            return
        (pair, received_ns), self._waiting = self._waiting, None
        left_info = self._infos['left'].of_image(pair.left_stamp_ns)
        right_info = self._infos['right'].of_image(pair.right_stamp_ns)
        left_info = left_info or self._infos['left'].give_up_waiting()
        right_info = right_info or self._infos['right'].give_up_waiting()
        if left_info is None or right_info is None:
            self.lost_waiting += 1
        else:
            self._on_pair(ReceivedPair(pair, left_info, right_info, received_ns))


def describe_qos(qos: QoSProfile) -> str:
    """Returns the policies that decide compatibility, such as `BEST_EFFORT, VOLATILE`."""
    return f'{qos.reliability.name}, {qos.durability.name}'
