# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Some of the faults that need a process boundary; `make faults` runs them all."""

from __future__ import annotations

import pytest
import run_faults
from faults import FAULTS, Fault, run_all
from process_faults import MORE_FAULTS, PROCESS_FAULTS, run_processes

IN_SHORT = {
    'node frozen and resumed',
    'model file overwritten while running',
    'out of memory in inference',
    'SIGINT twice in full flow',
    'disk full',
}


@pytest.mark.slow
@pytest.mark.timeout(900, func_only=True)
def test_faults_across_processes_are_survived() -> None:
    faults = [fault for fault in PROCESS_FAULTS if fault.name in IN_SHORT]
    assert len(faults) == len(IN_SHORT)
    assert not {fault.name: reason for fault, _, reason in run_processes(faults) if reason}


def test_faults_beyond_the_table_are_survived() -> None:
    assert not {fault.name: reason for fault, _, reason in run_all(MORE_FAULTS) if reason}


def test_names_are_distinct_over_both_tables() -> None:
    names = [fault.name for fault in (*FAULTS, *MORE_FAULTS, *PROCESS_FAULTS)]
    assert len(names) == len(set(names)) >= 50


def test_the_verdict_counts_what_survived(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = Fault('good', lambda patient: None), Fault('bad', lambda patient: None)
    monkeypatch.setattr(run_faults, 'run_all', lambda faults: [(good, 0.1, ''), (bad, 0.2, 'no')])
    monkeypatch.setattr('sys.argv', ['run_faults.py', '--only', 'zero'])
    assert run_faults.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == 'faults: 1 of 2 survived'
