# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Left and right images into pairs by stamp, and one slot that holds the newest pair.

`PairMatcher` is a pure object: it knows stamps [ns], not clocks or topics. It promises that

* a pair is never further apart than the tolerance, and no item is used twice;
* pairs come out in stamp order (a counted clock jump excepted), each as soon as it is complete,
  and whatever is older than a pair that came out is dropped: the newest pair wins;
* every item is accounted for: added = 2 * pairs + pending + sum of the counted drops;
* a bag that loops, a clock that jumps, a stray stamp from the future or an eye that dies
  costs at most a few pairs, never all that follow.

The last is why a queue here forgets in order of arrival: one that forgets its smallest stamp
keeps the leftovers of a bag's first pass for ever and throws away all of the second.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

Item = TypeVar('Item')

# What may happen to an item that did not become half of a pair.
DROP_CAUSES = ('unmatched_left', 'unmatched_right', 'duplicate', 'backward')
# One late item is a straggler of the transport; two in a row are a stream that started again.
STRAGGLERS_BEFORE_RESET = 2


class PairingError(ValueError):
    """A queue or tolerance that cannot be."""


@dataclass(frozen=True)
class Pair:
    """A left and a right item that belong together."""

    left_stamp_ns: int
    right_stamp_ns: int
    left: Any
    right: Any

    @property
    def skew_ns(self) -> int:
        """Right stamp minus left stamp [ns]."""
        return self.right_stamp_ns - self.left_stamp_ns


@dataclass
class _Waiting:
    item: Any
    added: int


@dataclass
class _Eye:
    """What one side has waiting, in order of arrival, and what it has seen lately."""

    name: str
    recent_ns: deque[int]
    waiting: dict[int, _Waiting] = field(default_factory=dict)
    paired_ns: int | None = None
    stragglers: int = 0
    repeats: int = 0


class PairMatcher:
    """Match left and right items by stamp.

    Args:
        queue_size: How many items of a side may wait for their partner.
        tolerance_ns: How far apart the stamps of a pair may lie; 0 means equal stamps.

    Attributes:
        counts: `pairs`, one entry per cause in `DROP_CAUSES`, and `clock_jump`, the times a
            side went back in time and was started afresh.

    Raises:
        PairingError: `queue_size` below 1 or a negative tolerance.
    """

    def __init__(self, queue_size: int = 10, tolerance_ns: int = 0) -> None:
        if queue_size < 1:
            raise PairingError(f'queue_size is {queue_size}, expected at least 1')
        if tolerance_ns < 0:
            raise PairingError(f'tolerance_ns is {tolerance_ns}, expected 0 or more')
        self.queue_size = queue_size
        self.tolerance_ns = tolerance_ns
        self.counts: Counter[str] = Counter()
        self.closest_miss_ns: int | None = None
        self._lock = threading.Lock()
        self._left = _Eye('left', deque(maxlen=queue_size))
        self._right = _Eye('right', deque(maxlen=queue_size))
        self._added = 0

    def add_left(self, stamp_ns: int, item: Any) -> Pair | None:
        """Take a left item; return the pair it completes, if any."""
        with self._lock:
            partner_ns, partner = self._add(self._left, self._right, stamp_ns, item)
        return None if partner_ns is None else Pair(stamp_ns, partner_ns, item, partner)

    def add_right(self, stamp_ns: int, item: Any) -> Pair | None:
        """Take a right item; return the pair it completes, if any."""
        with self._lock:
            partner_ns, partner = self._add(self._right, self._left, stamp_ns, item)
        return None if partner_ns is None else Pair(partner_ns, stamp_ns, partner, item)

    @property
    def pending_left(self) -> int:
        """Left items that wait for their partner."""
        return len(self._left.waiting)

    @property
    def pending_right(self) -> int:
        """Right items that wait for their partner."""
        return len(self._right.waiting)

    @property
    def added(self) -> int:
        """Items taken so far, both sides together."""
        return self._added

    @property
    def dropped(self) -> int:
        """Items that will never be half of a pair."""
        return sum(self.counts[cause] for cause in DROP_CAUSES)

    def clear(self) -> None:
        """Start afresh; what waits is counted as unmatched."""
        with self._lock:
            for eye in (self._left, self._right):
                self._forget(eye)

    def _add(self, own: _Eye, other: _Eye, stamp_ns: int, item: Any) -> tuple[int | None, Any]:
        self._added += 1
        if not self._accept(own, other, stamp_ns):
            return None, None
        own.recent_ns.append(stamp_ns)
        if own.waiting.pop(stamp_ns, None) is not None:
            self.counts['duplicate'] += 1
        partner_ns = self._partner(own, other, stamp_ns)
        if partner_ns is None:
            own.waiting[stamp_ns] = _Waiting(item, self._added)
            self._expire(own)
            self._expire(other)
            return None, None
        partner = other.waiting.pop(partner_ns).item
        self._drop_older(own, stamp_ns)
        self._drop_older(other, partner_ns)
        own.paired_ns, other.paired_ns = stamp_ns, partner_ns
        self.closest_miss_ns = None
        self.counts['pairs'] += 1
        return partner_ns, partner

    def _accept(self, own: _Eye, other: _Eye, stamp_ns: int) -> bool:
        """Whether an item may still become a pair; a stream that restarted is started afresh."""
        if own.paired_ns is None or stamp_ns > own.paired_ns:
            own.stragglers = own.repeats = 0
            return True
        repeated = stamp_ns == own.paired_ns
        if repeated:
            own.repeats += 1
        if not repeated or own.stragglers:
            own.stragglers += 1
        restarted = (
            own.stragglers >= STRAGGLERS_BEFORE_RESET
            or own.repeats > self.queue_size
            or stamp_ns < min(own.recent_ns)
        )
        cause = 'duplicate' if repeated else 'backward'
        if not restarted:
            self.counts[cause] += 1
            return False
        self.counts['clock_jump'] += 1
        # Forgetting both lets the other eye follow at its own pace, from the old time or the new.
        self._forget(own)
        self._forget(other)
        return True

    def _partner(self, own: _Eye, other: _Eye, stamp_ns: int) -> int | None:
        if not other.waiting:
            return None
        if stamp_ns in other.waiting:
            return stamp_ns
        nearest_ns = min(other.waiting, key=lambda ns: (abs(ns - stamp_ns), -ns))
        distance_ns = abs(nearest_ns - stamp_ns)
        if self.closest_miss_ns is None or distance_ns < self.closest_miss_ns:
            self.closest_miss_ns = distance_ns
        if distance_ns > self.tolerance_ns:
            return None
        # When one of the two lies nearer to what the last pair used, its own partner was lost;
        # pairing it with the next one would keep every later pair one frame apart.
        for used_ns, ns in ((other.paired_ns, stamp_ns), (own.paired_ns, nearest_ns)):
            if used_ns is not None and abs(ns - used_ns) < distance_ns:
                return None
        return nearest_ns

    def _expire(self, eye: _Eye) -> None:
        """Drop the first arrived beyond the queue's size, or left behind by a dead partner."""
        oldest = self._added - 2 * self.queue_size
        while eye.waiting:
            first_ns = next(iter(eye.waiting))
            if len(eye.waiting) <= self.queue_size and eye.waiting[first_ns].added > oldest:
                return
            del eye.waiting[first_ns]
            self.counts[f'unmatched_{eye.name}'] += 1

    def _drop_older(self, eye: _Eye, stamp_ns: int) -> None:
        for ns in [ns for ns in eye.waiting if ns <= stamp_ns]:
            del eye.waiting[ns]
            self.counts[f'unmatched_{eye.name}'] += 1

    def _forget(self, eye: _Eye) -> None:
        self.counts[f'unmatched_{eye.name}'] += len(eye.waiting)
        eye.waiting.clear()
        eye.recent_ns.clear()
        eye.paired_ns = None
        eye.stragglers = eye.repeats = 0


class Mailbox(Generic[Item]):
    """A thread-safe slot for one item, where the newest wins.

    The subscription side puts, the worker takes; neither waits for the other's work.

    Attributes:
        superseded: How many items were replaced before anybody took them.
    """

    def __init__(self) -> None:
        self.superseded = 0
        self._slot: list[Item] = []
        self._closed = False
        self._changed = threading.Condition()

    def put(self, item: Item) -> Item | None:
        """Store `item`; return the one it displaced, if any."""
        with self._changed:
            displaced = self._slot.pop() if self._slot else None
            if displaced is not None:
                self.superseded += 1
            self._slot.append(item)
            self._changed.notify()
            return displaced

    def take(self, timeout: float | None = None) -> Item | None:
        """Wait up to `timeout` seconds for an item; None when there was none or it was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._slot or self._closed, timeout)
            return self._slot.pop() if self._slot else None

    def close(self) -> None:
        """Wake every waiting taker; what is in the slot can still be taken."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed
