# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Child processes that never outlive their work: logged to a file, ended by their pid.

with Child('node', argv, log=folder / 'node.log') as node:
    ...
    node.require_alive()
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

# How long each signal has before the next, harder one. A starved process needs its seconds.
_PATIENCE_S = ((signal.SIGINT, 20.0), (signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))


class ChildError(RuntimeError):
    """A child process died, or could not be started."""


class Child:
    """A process that runs for as long as a `with` block.

    It gets a session of its own, so that Ctrl-C reaches only the parent, which then ends its
    children in order.

    Args:
        name: What to call it in messages.
        argv: Command line.
        log: File that takes its stdout and stderr.
        environ: Its environment; this process's when left out.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.argv = list(argv)
        self.log = log
        self._environ = environ
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Child:
        """Start it.

        Raises:
            ChildError: There is no such program.
        """
        with self.log.open('wb') as log:
            try:
                self._process = subprocess.Popen(
                    self.argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=None if self._environ is None else dict(self._environ),
                    start_new_session=True,
                    preexec_fn=_die_with_parent if sys.platform == 'linux' else None,
                )
            except OSError as error:
                raise ChildError(f'The {self.name} cannot be started: {error}') from error
        return self

    def __exit__(self, *exc: object) -> None:
        """End it."""
        self.stop()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """Its exit code, or None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def require_alive(self) -> None:
        """Check that it still runs.

        Raises:
            ChildError: It has ended; the message carries the end of its log.
        """
        if self.exit_code is not None:
            raise ChildError(
                f'The {self.name} ended with exit code {self.exit_code}. Its last words '
                f'({self.log}):\n{self.tail()}'
            )

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        text = self.log.read_text(errors='replace') if self.log.exists() else ''
        return '\n'.join(text.splitlines()[-lines:]) or '(it said nothing)'

    def stop(self) -> int:
        """Ask it to end, more firmly each time, and return its exit code."""
        assert self._process is not None
        for number, patience_s in _PATIENCE_S:
            if self._process.poll() is not None:
                break
            try:
                os.kill(self._process.pid, number)
                self._process.wait(patience_s)
            except (subprocess.TimeoutExpired, ProcessLookupError):
                continue
        return self._process.wait()


@dataclass
class StopRequest:
    """Whether SIGINT or SIGTERM has come."""

    signal_number: int | None = None

    def check(self) -> None:
        """Leave if a signal has come.

        Raises:
            KeyboardInterrupt: SIGINT has come.
            SystemExit: SIGTERM has come.
        """
        if self.signal_number == signal.SIGINT:
            raise KeyboardInterrupt
        if self.signal_number is not None:
            raise SystemExit(128 + self.signal_number)


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn SIGINT and SIGTERM into a request that the caller looks at where it is safe.

    An exception thrown by a signal handler may hit in the middle of starting a child, or inside
    a lock of somebody else's, and leave a process or a hanging program behind.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        request.signal_number = number

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _die_with_parent() -> None:
    """Ask Linux to end this process when its parent is killed without a chance to clean up."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
