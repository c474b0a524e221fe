# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A faster way to run the model, built in the background while another one serves.

TensorRT takes minutes to build an engine, and its fastest engines are for one image size. So
nothing is built until one size has kept coming; then that size's engine is built in a thread
of its own, and pairs of that size go to it once it is there and was found right.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Runner = TypeVar('Runner')
Size = tuple[int, int]

# One second of a camera: a tool that looks at a few pictures never starts a build.
PAIRS_BEFORE = 30
PROGRESS_EVERY_S = 10.0

_log = logging.getLogger(__name__)


class Upgrade(Generic[Runner]):
    """Builds a runner for the image size in use, at most one at a time; thread-safe.

    Args:
        what: Named in the log.
        build: Returns a runner for (height, width) that was found right, or raises.
        on_end: Told the runner, or None and the reason.
        pairs_before: Pairs of one size, in a row, before its runner is built.
    """

    def __init__(
        self,
        what: str,
        build: Callable[[int, int], Runner],
        on_end: Callable[[Runner | None, str], None],
        pairs_before: int = PAIRS_BEFORE,
    ) -> None:
        self._what, self._build, self._on_end = what, build, on_end
        self._pairs_before = pairs_before
        self._lock = threading.Lock()
        self._built: tuple[Size, Runner] | None = None
        self._last_size: Size | None = None
        self._in_a_row = 0
        self._thread: threading.Thread | None = None
        self._over = False

    def runner_for(self, height: int, width: int) -> Runner | None:
        """The runner for a pair of this size; None while there is none."""
        size = (height, width)
        with self._lock:
            if self._built is not None and self._built[0] == size:
                return self._built[1]
            self._in_a_row = self._in_a_row + 1 if size == self._last_size else 1
            self._last_size = size
            idle = self._thread is None or not self._thread.is_alive()
            if idle and not self._over and self._in_a_row >= self._pairs_before:
                self._thread = threading.Thread(
                    target=self._work, args=(size,), name='engine_build', daemon=True
                )
                self._thread.start()
        return None

    def close(self) -> None:
        """Free the runner and start no other; one that is being built is dropped when done."""
        with self._lock:
            self._over, self._built = True, None

    def _work(self, size: Size) -> None:
        what = f'{self._what} for {size[1]}x{size[0]}'
        try:
            with progress_lines(what):
                runner = self._build(*size)
        except Exception as error:  # whatever it is, what serves now goes on serving
            reason = ' '.join(str(error).split()) or type(error).__name__
            with self._lock:
                closed, self._over = self._over, True
            if not closed:
                _log.warning('%s failed: %s', what, reason)
                self._on_end(None, reason)
            return
        with self._lock:
            if self._over:
                return
            self._built = (size, runner)
        self._on_end(runner, '')


@contextlib.contextmanager
def progress_lines(what: str, every_s: float = PROGRESS_EVERY_S) -> Iterator[None]:
    """Log that something long begins, goes on and has ended."""
    done = threading.Event()
    started = time.monotonic()

    def tell() -> None:
        while not done.wait(every_s):
            _log.info('%s: %.0f s so far', what, time.monotonic() - started)

    _log.info('%s begins; it can take minutes', what)
    teller = threading.Thread(target=tell, name='engine_build_progress', daemon=True)
    teller.start()
    try:
        yield
    finally:
        done.set()
        teller.join()
        _log.info('%s ended after %.0f s', what, time.monotonic() - started)
