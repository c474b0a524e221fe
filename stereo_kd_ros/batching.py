# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Several rigs through one session: what waits while a run lasts goes into the next run together.

Nobody waits for company: a pair that finds the engine idle runs at once and alone, so one camera
is as quick as without. With several, a GPU takes the pairs of all in hardly more time than one.
Not measured on a GPU. On a CPU a batch of four takes a third longer per pair than one after the
other, since its maps outgrow the caches: there, give `most=1`, which shares one session's memory.
"""

from __future__ import annotations

import threading
from collections import deque

import numpy as np
from numpy.typing import NDArray

from .engine import EngineError, StereoEngine, StereoResult

MOST_PAIRS = 8

Image = NDArray[np.uint8]


class _Waiting:
    """One pair, and what becomes of it."""

    def __init__(self, left: Image, right: Image) -> None:
        self.left, self.right = left, right
        self.result: StereoResult | None = None
        self.error: Exception | None = None
        self.is_done = False


class BatchingEngine:
    """An engine that several threads share, one per rig; thread-safe.

    Args:
        engine: does the work. A model or provider that takes no batches gets the pairs one by one.
        most: pairs of one run.

    Raises:
        ValueError: `most` is below 1.
    """

    def __init__(self, engine: StereoEngine, most: int = MOST_PAIRS) -> None:
        if most < 1:
            raise ValueError(f'most is {most}, expected 1 or more')
        self.engine = engine
        self._most = most
        self._changed = threading.Condition()
        self._queue: deque[_Waiting] = deque()
        self._is_running = False
        self.runs = 0
        self.pairs = 0

    def infer(self, left: Image, right: Image) -> StereoResult:
        """As `StereoEngine.infer`, with the pairs that other threads bring meanwhile.

        Raises:
            EngineError: as the engine does; a pair at fault fails alone.
        """
        mine = _Waiting(left, right)
        with self._changed:
            self._queue.append(mine)
        while True:
            with self._changed:
                while not mine.is_done and self._is_running:
                    self._changed.wait()
                if mine.is_done:
                    break
                # Whoever finds nobody running runs for all of one size, the oldest first.
                self._is_running = True
                batch = self._next_batch()
            try:
                self._run(batch)
            finally:
                with self._changed:
                    self._is_running = False
                    for one in batch:
                        one.is_done = True
                    self._changed.notify_all()
        if mine.error is not None:
            raise mine.error
        assert mine.result is not None
        return mine.result

    def _next_batch(self) -> list[_Waiting]:
        """The oldest pair and others of its size, out of the queue; with the lock held."""
        shape = np.shape(self._queue[0].left)
        most = self._most if self.engine.takes_batches else 1
        batch = [one for one in self._queue if np.shape(one.left) == shape][:most]
        self._queue = deque(one for one in self._queue if one not in batch)
        return batch

    def _run(self, batch: list[_Waiting]) -> None:
        """Fill in result or error of every pair of a batch."""
        self.runs += 1
        self.pairs += len(batch)
        if len(batch) > 1:
            try:
                results = self.engine.infer_batch([(one.left, one.right) for one in batch])
            except EngineError:
                # One of them may be at fault: each is told apart below.
                pass
            else:
                for one, result in zip(batch, results):
                    one.result = result
                return
        for one in batch:
            try:
                one.result = self.engine.infer(one.left, one.right)
            except Exception as error:
                one.error = error
