# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a soak run concludes from what it saw; and a short one, from end to end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import soak
from contract_models import difference_model
from soak import Observed, judge, memory_trend

SENT_NS = [number * 33_000_000 for number in range(1, 101)]


def observed(came_back: list[int], superseded: int = 0, mb_per_h: float = 0.0) -> Observed:
    return Observed(
        latency_ms=dict.fromkeys(came_back, 10.0),
        memory=[(float(s), 200.0 + mb_per_h * s / 3600) for s in range(7200)],
        pipeline={'dropped_superseded': str(superseded), 'total_dropped_frames': str(superseded)},
    )


def test_every_pair_back_and_flat_memory_hold() -> None:
    verdict = judge(observed(SENT_NS), SENT_NS, 3600, 2.0, 4.0)
    assert verdict.holds
    assert verdict.line() == 'soak: 3600 s, 100 pairs, 0 lost, +0.0 MB/h'


@pytest.mark.parametrize(('superseded', 'lost'), [(0, 10), (10, 0), (7, 3)])
def test_superseded_pairs_are_not_lost_and_all_others_are(superseded: int, lost: int) -> None:
    verdict = judge(observed(SENT_NS[:90], superseded), SENT_NS, 60, 2.0, 4.0)
    assert (verdict.lost, verdict.superseded) == (lost, superseded)
    assert verdict.holds == (lost == 0)


def test_pairs_sent_before_the_first_came_back_do_not_count() -> None:
    verdict = judge(observed(SENT_NS[5:]), SENT_NS, 60, 2.0, 4.0)
    assert (verdict.sent, verdict.lost) == (95, 0)


def test_a_run_without_pairs_does_not_hold() -> None:
    assert not judge(observed([]), [], 60, 2.0, 4.0).holds


@pytest.mark.parametrize(('mb_per_h', 'holds'), [(1.0, True), (10.0, False), (-10.0, True)])
def test_a_leak_does_not_hold(mb_per_h: float, holds: bool) -> None:
    verdict = judge(observed(SENT_NS, mb_per_h=mb_per_h), SENT_NS, 3600, 2.0, 4.0)
    assert verdict.slope_mb_per_h == pytest.approx(mb_per_h, rel=1e-3)
    assert verdict.holds == holds


def test_the_trend_ignores_the_start_and_a_few_spikes() -> None:
    memory = [(float(s), 100.0 + min(s, 20) + (30.0 if s % 10 == 0 else 0.0)) for s in range(90)]
    slope, growth = memory_trend(memory)
    assert slope == pytest.approx(0.0)
    assert growth == pytest.approx(0.0)


@pytest.mark.slow
def test_a_short_run_through_real_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, plot = difference_model(tmp_path / 'model.onnx'), tmp_path / 'out' / 'soak.png'
    arguments = ['--seconds', '3', '--rate', '10', '--size', '96x64', '--slack', '50']
    arguments += ['--model', str(model), '--plot', str(plot)]
    monkeypatch.setattr(sys, 'argv', ['soak.py', *arguments])
    # The run takes a ROS domain of its own for this process and its children.
    monkeypatch.setenv('ROS_DOMAIN_ID', '0')
    code = soak.main()
    said = capsys.readouterr().out
    assert code == 0, said
    assert ' 0 lost, ' in said.splitlines()[-1]
    assert plot.read_bytes().startswith(b'\x89PNG')
