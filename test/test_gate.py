# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Gate conditions: what holds, what is refused, and that nothing but comparisons is evaluated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_kd_ros.gate import Gate, GateError

FIGURES = {'bad3': 4.0, 'p95_ms': 40.0, 'epe_px': None, 'valid_fraction': 1.0}


@pytest.mark.parametrize(
    ('condition', 'holds'),
    [
        ('bad3<5', True),
        ('bad3 < 4', False),
        ('bad3 <= 4', True),
        ('bad3<5 and p95_ms<33', False),
        ('bad3<5 or p95_ms<33', True),
        ('not bad3 > 5', True),
        ('3 < bad3 < 5', True),
        ('bad3 > -1 and (p95_ms < 33 or valid_fraction == 1)', True),
        ('bad3 < p95_ms', True),
        ('epe_px < 100', False),
        ('not epe_px < 100', False),
        ('bad3 < 5 or epe_px < 1', False),
    ],
)
def test_conditions(condition: str, holds: bool) -> None:
    assert Gate(condition).holds(FIGURES) is holds


@pytest.mark.parametrize(
    'condition',
    [
        '',
        'bad3',
        'bad3 <',
        'bad3 + 1 < 5',
        '__import__("os").system("true") < 1',
        'bad3 is 5',
        'bad3 != 5',
        'bad3 < "5"',
        'bad3 < True',
        '[bad3 < 5]',
        'bad3.real < 5',
        'x := 5',
    ],
)
def test_anything_else_is_refused(condition: str) -> None:
    with pytest.raises(GateError):
        Gate(condition)


def test_an_unknown_figure_lists_the_known_ones() -> None:
    with pytest.raises(GateError, match=r'asks for bad7; the figures are bad3.*p95_ms'):
        Gate('bad7<5').require_known(FIGURES)


def test_absent_figures_are_named() -> None:
    assert Gate('epe_px<1 and bad3<5').absent(FIGURES) == ['epe_px']


@given(figure=st.floats(-1e6, 1e6), limit=st.floats(-1e6, 1e6))
def test_a_comparison_is_pythons_own(figure: float, limit: float) -> None:
    assert Gate(f'bad3 < {limit!r}').holds({'bad3': figure}) is (figure < limit)
