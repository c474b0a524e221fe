# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""When a better runner is built, when it takes over, and what its failure does: nothing."""

from __future__ import annotations

import logging
import re
import threading

import pytest

from stereo_kd_ros.upgrade import Upgrade, progress_lines

PATIENCE_S = 120.0


class Bench:
    """An upgrade whose build ends when the test says so."""

    def __init__(self, failure: Exception | None = None, pairs_before: int = 3) -> None:
        self.may_end, self.ended = threading.Event(), threading.Event()
        self.built: list[tuple[int, int]] = []
        self.told: list[tuple[str | None, str]] = []
        self.failure = failure
        self.upgrade = Upgrade('the test', self._build, self._on_end, pairs_before)

    def _build(self, height: int, width: int) -> str:
        self.built.append((height, width))
        assert self.may_end.wait(PATIENCE_S)
        if self.failure:
            raise self.failure
        return f'runner of {height}x{width}'

    def _on_end(self, runner: str | None, reason: str) -> None:
        self.told.append((runner, reason))
        self.ended.set()

    def serve(self, count: int, height: int = 4, width: int = 6) -> list[str | None]:
        return [self.upgrade.runner_for(height, width) for _ in range(count)]

    def finish(self) -> None:
        self.may_end.set()
        assert self.ended.wait(PATIENCE_S)


def test_it_takes_over_when_it_is_built():
    bench = Bench()
    assert bench.serve(10) == [None] * 10
    bench.finish()
    assert bench.built == [(4, 6)]
    assert bench.serve(2) == ['runner of 4x6'] * 2
    assert bench.serve(1, height=5) == [None]
    assert bench.told == [('runner of 4x6', '')]


def test_nothing_is_built_for_a_few_pairs_or_for_sizes_that_alternate():
    bench = Bench()
    for height in (4, 5) * 10:
        bench.serve(2, height)
    assert bench.built == []


def test_another_size_is_built_when_it_stays():
    bench = Bench()
    bench.serve(3)
    bench.finish()
    bench.ended.clear()
    bench.serve(3, height=5)
    assert bench.ended.wait(PATIENCE_S)
    assert bench.built == [(4, 6), (5, 6)]
    assert bench.serve(1, height=5) == ['runner of 5x6']


def test_a_failure_is_told_and_not_repeated(caplog):
    bench = Bench(RuntimeError('no\nmemory'))
    bench.serve(3)
    bench.finish()
    assert bench.serve(20) == [None] * 20
    assert bench.built == [(4, 6)]
    assert bench.told == [(None, 'no memory')]
    assert 'the test for 6x4 failed: no memory' in caplog.text


@pytest.mark.parametrize('failure', [None, RuntimeError('late')])
def test_what_is_built_after_closing_is_dropped(failure):
    bench = Bench(failure)
    bench.serve(3)
    bench.upgrade.close()
    bench.may_end.set()
    bench.upgrade._thread.join(PATIENCE_S)
    assert bench.told == []
    assert bench.serve(10) == [None] * 10


def test_a_long_build_tells_that_it_goes_on(caplog):
    caplog.set_level(logging.INFO)
    with progress_lines('building', every_s=0.01):
        while not re.search(r'building: \d+ s so far', caplog.text):
            threading.Event().wait(0.005)
    assert 'building begins' in caplog.text
    assert 'building ended after' in caplog.text
