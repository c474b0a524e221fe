# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every check can be acted on: it says what is at stake, what to do, and grades in order."""

from __future__ import annotations

import pytest

from stereo_kd_ros.doctor_checks import CHECKS, Check


@pytest.mark.parametrize('name', CHECKS)
def test_a_check_explains_itself(name: str) -> None:
    check = CHECKS[name]

    assert check.title
    assert check.meaning.endswith('.')
    assert check.remedy.endswith('.')
    assert check.remedy.count('. ') == 0, 'one sentence is what people read'


@pytest.mark.parametrize('name', [n for n, c in CHECKS.items() if c.warn and c.error])
def test_an_error_is_graver_than_a_warning(name: str) -> None:
    check: Check = CHECKS[name]
    assert check.error > check.warn
