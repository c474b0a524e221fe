# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The choice among CPU providers: on a clock of our own, remembered as long as it holds."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest

from stereo_kd_ros.cache import CacheError
from stereo_kd_ros.choice import (
    MOST_RUNS,
    Candidate,
    ChoiceKey,
    measure,
    quickest,
    recall,
    remember,
)

BF16 = Candidate('openvino', 'bf16', True)
FP32 = Candidate('openvino', 'fp32', True)
SPIN = Candidate('cpu', 'fp32', True)
SLEEP = Candidate('cpu', 'fp32', False)
ALL = (BF16, FP32, SPIN, SLEEP)
KEY = ChoiceKey('abc', 'a processor', 2, 480, 640, '1.31.1', tuple(str(one) for one in ALL))


class Clock:
    """Time that passes only while a candidate runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def runs(self, seconds: dict[Candidate, float], first: float = 0.0) -> dict:
        def run(candidate: Candidate) -> None:
            extra = 0.0 if str(candidate) in self.order else first
            self.order.append(str(candidate))
            self.now += seconds[candidate] + extra

        return {one: lambda one=one: run(one) for one in seconds}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv('STEREO_KD_CACHE', str(tmp_path))


def test_candidates_run_in_turn_within_the_budget():
    clock = Clock()
    taken = measure(clock.runs({BF16: 0.1, SPIN: 0.2}, first=5.0), 1.0, clock)
    assert taken == {BF16: pytest.approx(100), SPIN: pytest.approx(200)}
    assert clock.order[:4] == [str(BF16), str(SPIN)] * 2
    # Ten seconds of first runs, one of budget, and at most one run more.
    assert clock.now <= 10.3 + 1.0 + 0.2 + 1e-9


def test_quick_candidates_run_no_more_than_needed():
    clock = Clock()
    measure(clock.runs({BF16: 1e-6, SPIN: 1e-6}), 1.0, clock)
    assert len(clock.order) == 2 * (MOST_RUNS + 1)


def test_who_had_no_turn_is_left_out():
    clock = Clock()
    assert measure(clock.runs({BF16: 3.0, SPIN: 3.0}), 1.0, clock) == {BF16: pytest.approx(3000)}


def test_only_a_clear_gain_changes_the_provider():
    assert quickest({BF16: 10.0, SPIN: 9.5}, BF16) == BF16
    assert quickest({BF16: 10.0, SPIN: 8.0, SLEEP: 7.0}, BF16) == SLEEP
    assert quickest({}, BF16) == BF16


def test_a_choice_is_remembered():
    assert recall(KEY, ALL) is None
    remember(KEY, SLEEP, {BF16: 12.0, SLEEP: 7.25})
    assert recall(KEY, ALL) == (SLEEP, 7.25)


@pytest.mark.parametrize('field', [field.name for field in fields(ChoiceKey)])
def test_every_part_of_the_key_makes_the_choice_anew(field):
    remember(KEY, SLEEP, {SLEEP: 7.0})
    old = getattr(KEY, field)
    new = old + 1 if isinstance(old, int) else old + old
    assert recall(replace(KEY, **{field: new}), ALL) is None


def test_a_choice_that_is_not_to_be_had_any_more_is_ignored():
    remember(KEY, BF16, {BF16: 7.0})
    assert recall(KEY, (SPIN, SLEEP)) is None


@pytest.mark.parametrize(
    'text',
    [
        '',
        '[]',
        '{"choice": 3}',
        '{"choice": "openvino in bf16"}',
        '{"choice": "openvino in bf16", "median_ms": [1]}',
        '{"choice": "openvino in bf16", "median_ms": {"openvino in bf16": "x"}}',
        '{"choice": "openvino in bf16", "median_',
    ],
)
def test_a_corrupt_note_is_ignored(text):
    remember(KEY, BF16, {BF16: 7.0})
    KEY.path().write_text(text)
    assert recall(KEY, ALL) is None


def test_a_cache_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / 'cpu_choice').write_text('in the way')
    assert recall(KEY, ALL) is None
    with pytest.raises(CacheError, match='cannot be written'):
        remember(KEY, BF16, {BF16: 7.0})


def test_without_a_home_nothing_is_remembered(monkeypatch):
    for name in ('STEREO_KD_CACHE', 'XDG_CACHE_HOME', 'HOME'):
        monkeypatch.delenv(name, raising=False)
    assert recall(KEY, ALL) is None
    with pytest.raises(CacheError, match='neither'):
        remember(KEY, BF16, {BF16: 7.0})
