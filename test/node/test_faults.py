# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every named fault is answered and survived; the table is in test/support/faults.py."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from faults import FAULTS, Fault, Ward, run_all


@pytest.fixture(scope='module')
def ward() -> Iterator[Ward]:
    with Ward() as ward:
        yield ward


@pytest.mark.parametrize('fault', FAULTS, ids=lambda fault: fault.name)
def test_the_fault_is_survived(ward: Ward, fault: Fault) -> None:
    ward.treat(fault)


def test_names_are_distinct() -> None:
    names = [fault.name for fault in FAULTS]
    assert len(names) == len(set(names)) >= 25


def test_an_unanswered_fault_is_a_failure() -> None:
    ((_, _, reason),) = run_all([Fault('raises', lambda patient: 1 / 0)])
    assert 'ZeroDivisionError' in reason
