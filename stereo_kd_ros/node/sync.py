# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Chooses what pairs the two eyes: the built-in matcher, or message_filters.

Both are used through `PairMatcher`'s interface (`add_left`, `add_right`, `counts`) and pass one
contract suite. The built-in one is the default: message_filters alone stops matching when a bag
loops, keeps old pairs for later and has no counts, which the adapter here makes up for.
"""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any, Protocol

from rclpy.duration import Duration

from stereo_kd_ros.node import messages
from stereo_kd_ros.node.parameters import ParameterError
from stereo_kd_ros.pairing import STRAGGLERS_BEFORE_RESET, Pair, PairMatcher


class Matcher(Protocol):
    """What the inputs need of a pair matcher."""

    counts: Counter[str]

    def add_left(self, stamp_ns: int, item: Any) -> Pair | None:
        """Takes a left message; returns the pair it completes."""

    def add_right(self, stamp_ns: int, item: Any) -> Pair | None:
        """Takes a right message; returns the pair it completes."""


def make_matcher(backend: str, queue_size: int, tolerance_ns: int) -> Matcher:
    """Returns the matcher for the `sync_backend` parameter.

    Raises:
        ParameterError: message_filters is asked for and not installed.
    """
    if backend == 'builtin':
        return PairMatcher(queue_size=queue_size, tolerance_ns=tolerance_ns)
    try:
        import message_filters
    except ImportError as error:
        raise ParameterError(
            'sync_backend is message_filters, which is not installed; install '
            'ros-<distribution>-message-filters, or use sync_backend builtin'
        ) from error
    return MessageFiltersMatcher(message_filters, queue_size, tolerance_ns)


class MessageFiltersMatcher:
    """message_filters' synchronizer behind `PairMatcher`'s interface; items are messages."""

    def __init__(self, message_filters: ModuleType, queue_size: int, tolerance_ns: int) -> None:
        self._filters = message_filters
        self._queue_size, self._tolerance_ns = queue_size, tolerance_ns
        self._counts: Counter[str] = Counter()
        self._found: Pair | None = None
        self._start_afresh()

    @property
    def counts(self) -> Counter[str]:
        """`pairs`, `clock_jump` and the images left out, by `PairMatcher`'s causes."""
        counts = Counter(self._counts)
        for index, side in enumerate(('left', 'right')):
            waiting = len(self._synchronizer.queues[index])
            counts[f'unmatched_{side}'] += self._taken[index] - self._paired - waiting
        return counts

    def add_left(self, stamp_ns: int, item: Any) -> Pair | None:
        """Takes a left message; returns the pair it completes."""
        return self._add(0, stamp_ns, item)

    def add_right(self, stamp_ns: int, item: Any) -> Pair | None:
        """Takes a right message; returns the pair it completes."""
        return self._add(1, stamp_ns, item)

    def _add(self, side: int, stamp_ns: int, item: Any) -> Pair | None:
        if not self._accept(side, stamp_ns):
            return None
        if stamp_ns in self._synchronizer.queues[side]:
            self._counts['duplicate'] += 1
            self._taken[side] -= 1
        self._taken[side] += 1
        self._found = None
        self._inputs[side].signalMessage(item)
        pair = self._found
        if pair is not None:
            self._paired += 1
            self._counts['pairs'] += 1
            self._last_ns = [pair.left_stamp_ns, pair.right_stamp_ns]
            self._drop_older()
        return pair

    def _accept(self, side: int, stamp_ns: int) -> bool:
        """Whether the message may become a pair; a stream that began again is started afresh."""
        last_ns = self._last_ns[side]
        if last_ns is None or stamp_ns > last_ns:
            self._late[side] = 0
            return True
        self._late[side] += 1
        repeated = stamp_ns == last_ns
        patience = self._queue_size if repeated else STRAGGLERS_BEFORE_RESET - 1
        if self._late[side] <= patience:
            self._counts['duplicate' if repeated else 'backward'] += 1
            return False
        self._counts.update(
            {name: n for name, n in self.counts.items() if name.startswith('unmatched')}
        )
        self._counts['clock_jump'] += 1
        self._start_afresh()
        return True

    def _drop_older(self) -> None:
        """Forgets what is older than the last pair: message_filters would pair it later."""
        for queue, last_ns in zip(self._synchronizer.queues, self._last_ns):
            for stamp_ns in [stamp_ns for stamp_ns in queue if stamp_ns <= last_ns]:
                del queue[stamp_ns]

    def _start_afresh(self) -> None:
        self._inputs = [self._filters.SimpleFilter(), self._filters.SimpleFilter()]
        if self._tolerance_ns:
            self._synchronizer = self._filters.ApproximateTimeSynchronizer(
                self._inputs, self._queue_size, slop=0.0
            )
            # In nanoseconds, as seconds in a float round; one more, as its comparison is strict.
            self._synchronizer.slop = Duration(nanoseconds=self._tolerance_ns + 1)
        else:
            self._synchronizer = self._filters.TimeSynchronizer(self._inputs, self._queue_size)
        self._synchronizer.registerCallback(self._take)
        self._taken = [0, 0]
        self._paired = 0
        self._last_ns: list[int | None] = [None, None]
        self._late = [0, 0]

    def _take(self, left: Any, right: Any) -> None:
        self._found = Pair(
            messages.stamp_ns(left.header), messages.stamp_ns(right.header), left, right
        )
