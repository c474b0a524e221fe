# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every named fault is answered and survived; the table is in test/support/faults.py."""

from __future__ import annotations

from faults import FAULTS, Fault, run_all


def test_all_faults_are_survived() -> None:
    failed = {fault.name: reason for fault, _, reason in run_all(FAULTS) if reason}
    assert not failed


def test_names_are_distinct() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names)) >= 25


def test_an_unanswered_fault_is_a_failure() -> None:
    ((_, _, reason),) = run_all([Fault('raises', lambda patient: 1 / 0)])
    assert 'ZeroDivisionError' in reason
