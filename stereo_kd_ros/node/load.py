# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Does the node keep up with its cameras, and which of two models should run?

A pure object that is told when each pair arrived and how long each took. The node is over budget
while the median pair takes longer than the median time between pairs. With a smaller model at hand
the governor steps down to it then, and back up when the large one would have fitted; when stepping
up proves wrong it waits twice as long before it tries again.
"""

from __future__ import annotations

import itertools
import threading
from collections import deque
from statistics import median

# The large model must have fitted with this much to spare before it is tried again.
FITS_WITHIN = 0.8
OVER_BUDGET = 1.05
PAUSE_S = 2.0
LONGEST_HOLD_S = 300.0


class LoadGovernor:
    """Watches the load and chooses the model; thread-safe.

    Args:
        has_smaller: Whether there is a smaller model to step to.
        window: Pairs that a judgement looks back on.
        hold_s: How long a choice stands before it is looked at again.
    """

    def __init__(self, has_smaller: bool = True, window: int = 20, hold_s: float = 10.0) -> None:
        self._lock = threading.RLock()
        self._has_smaller = has_smaller
        self._first_hold_s = hold_s
        self._arrivals_s: deque[float] = deque(maxlen=window + 1)
        self._busy_ms: deque[float] = deque(maxlen=window)
        self._window = window
        self._hold_s = hold_s
        self._held_until_s = 0.0
        self._stepped_up_s: float | None = None
        self._large_ms = 0.0
        self.use_smaller = False

    @property
    def interval_ms(self) -> float:
        """Median time between pairs; 0 before there is one."""
        with self._lock:
            arrivals = list(self._arrivals_s)
        gaps = [after - before for before, after in itertools.pairwise(arrivals)]
        return median(gaps) * 1e3 if gaps else 0.0

    @property
    def busy_ms(self) -> float:
        """Median time that a pair takes; 0 before there is one."""
        with self._lock:
            return median(self._busy_ms) if self._busy_ms else 0.0

    @property
    def over_budget(self) -> bool:
        """Whether pairs come faster than they are worked off; False until a window is full."""
        if len(self._busy_ms) < self._window or len(self._arrivals_s) <= self._window:
            return False
        return self.busy_ms > OVER_BUDGET * self.interval_ms

    def arrived(self, now_s: float) -> None:
        """Notes a complete pair; a pause of the cameras begins a new window."""
        with self._lock:
            if self._arrivals_s and now_s - self._arrivals_s[-1] > PAUSE_S:
                self._arrivals_s.clear()
            self._arrivals_s.append(now_s)

    def worked(self, now_s: float, busy_ms: float) -> None:
        """Notes how long a pair took, and reconsiders a choice that has stood long enough."""
        with self._lock:
            self._busy_ms.append(busy_ms)
            if self._has_smaller:
                self._reconsider(now_s)

    def _reconsider(self, now_s: float) -> None:
        full = len(self._busy_ms) == self._window and len(self._arrivals_s) > self._window
        if not full or now_s < self._held_until_s:
            return
        if not self.use_smaller and self.over_budget:
            self._step_down(now_s)
        elif self.use_smaller and self._large_ms < FITS_WITHIN * self.interval_ms:
            self._step_up(now_s)
        elif self.use_smaller and now_s >= self._held_until_s + self._hold_s:
            # The large model was slow by what else the machine did then: look again some time.
            self._step_up(now_s)

    def _step_down(self, now_s: float) -> None:
        tried_again = self._stepped_up_s is not None and now_s - self._stepped_up_s < 60.0
        self._hold_s = min(self._hold_s * 2, LONGEST_HOLD_S) if tried_again else self._first_hold_s
        self._large_ms = self.busy_ms
        self._switch(now_s, use_smaller=True)

    def _step_up(self, now_s: float) -> None:
        self._stepped_up_s = now_s
        self._switch(now_s, use_smaller=False)

    def _switch(self, now_s: float, use_smaller: bool) -> None:
        self.use_smaller = use_smaller
        self._busy_ms.clear()
        self._held_until_s = now_s + (self._hold_s if use_smaller else 0.0)
