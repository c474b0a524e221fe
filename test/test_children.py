# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Child processes end with their `with` block, however stubborn they or however abrupt its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stereo_kd_ros import children
from stereo_kd_ros.children import Child, ChildError, stop_requests

SLEEP = 'import time; print("up", flush=True); time.sleep(600)'
PATIENCE_S = 100.0
STUBBORN = 'import signal; [signal.signal(n, signal.SIG_IGN) for n in (2, 15)]; ' + SLEEP


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        stat = Path(f'/proc/{pid}/stat').read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
    return 'Z' not in stat.rsplit(')', 1)[1].split()[0]


def _wait_for_log(log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not (log.exists() and 'up' in log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize('program', [SLEEP, STUBBORN])
def test_it_ends_with_the_block_also_after_an_error(
    tmp_path: Path, program: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    brisk = tuple((number, 0.3) for number, _ in children._PATIENCE_S)
    monkeypatch.setattr(children, '_PATIENCE_S', brisk)
    log = tmp_path / 'log'
    with (
        pytest.raises(KeyboardInterrupt),
        Child('sleeper', [sys.executable, '-c', program], log=log) as child,
    ):
        _wait_for_log(log)
        raise KeyboardInterrupt

    assert not _alive(child.pid)


def test_a_dead_child_is_reported_with_its_last_words(tmp_path: Path) -> None:
    program = 'import sys; print("no camera"); sys.exit(3)'
    with Child('node', [sys.executable, '-c', program], log=tmp_path / 'log') as child:
        while child.exit_code is None:
            time.sleep(0.02)
        with pytest.raises(ChildError, match=r'(?s)node ended with exit code 3.*no camera'):
            child.require_alive()


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(ChildError, match='The node cannot be started'),
        Child('node', [str(tmp_path / 'absent')], log=tmp_path / 'log'),
    ):
        pass


@pytest.mark.skipif(sys.platform != 'linux', reason='needs prctl')
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    log = tmp_path / 'log'
    parent_program = (
        'import sys, time; from pathlib import Path; from stereo_kd_ros.children import Child\n'
        f'with Child("c", [sys.executable, "-c", {SLEEP!r}], log=Path({str(log)!r})) as child:\n'
        '    print(child.pid, flush=True); time.sleep(600)'
    )
    parent = subprocess.Popen(
        [sys.executable, '-c', parent_program], stdout=subprocess.PIPE, text=True
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        _wait_for_log(log)
    finally:
        parent.kill()
        parent.wait()

    deadline = time.monotonic() + PATIENCE_S
    while _alive(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ('number', 'leaving'), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)]
)
def test_a_signal_is_a_request_until_it_is_looked_at(
    number: int, leaving: type[BaseException]
) -> None:
    before = signal.getsignal(number)
    with stop_requests() as stop:
        stop.check()
        signal.raise_signal(number)
        with pytest.raises(leaving):
            stop.check()

    assert signal.getsignal(number) is before
