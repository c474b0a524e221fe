# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One question of the gate and its answer, and what must not get worse on procedural scenes."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stereo_kd_ros.metrics import DisparityMetrics

# Below this, a difference of two errors is no difference.
EQUAL_PX = 0.01
# Percentage points by which mirrored and shifted pairs may be worse than the shipped student's.
WORSE_BY = 2.0


@dataclass(frozen=True)
class Check:
    """One question of the gate.

    Attributes:
        name: of the check, as in the module.
        measured, limit: in `unit`; it passes when measured is not above the limit.
        before: of the shipped student, where that says something.
    """

    name: str
    measured: float
    limit: float
    unit: str
    before: float | None = None

    @property
    def passed(self) -> bool:
        """Whether it is within its limit; what is not finite never is."""
        return math.isfinite(self.measured) and self.measured <= self.limit

    def to_dict(self) -> dict[str, Any]:
        """For the report."""
        values = {
            # JSON has no NaN.
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in asdict(self).items()
        }
        return {**values, 'passed': self.passed}

    def __str__(self) -> str:
        before = '' if self.before is None else f', before {self.before:.3g}'
        return (
            f'{self.name}: {self.measured:.3g} {self.unit}, limit {self.limit:.3g}{before}: '
            f'{"passed" if self.passed else "NOT passed"}'
        )


def procedural_checks(records: list[dict[str, Any]], tolerance: float) -> list[Check]:
    """What may not get worse by more than `tolerance`, a share.

    Args:
        records: of each scene, the figures of `before` and of `after` against the truth.
    """
    values = {}
    for name in ('before', 'after'):
        errors = [record[name]['truth']['epe_px'] for record in records]
        typical = float(np.exp(np.mean(np.log(np.maximum(errors, EQUAL_PX)))))
        values[name] = typical, pooled(records, name, 'truth').bad3
    return [
        Check(check, after, (1 + tolerance) * before + EQUAL_PX, unit, before)
        for check, unit, before, after in zip(
            ('procedural', 'procedural_bad3'), ('px', '%'), values['before'], values['after']
        )
    ]


def pooled(records: list[dict[str, Any]], model: str, known: str) -> DisparityMetrics:
    """All pixels of all records together, of one model against what is `known`."""
    return DisparityMetrics.pooled(
        [DisparityMetrics(**r[model][known]) for r in records if r[model].get(known)]
    )


def figures_of(metrics: DisparityMetrics) -> dict[str, float] | None:
    """For JSON; None where nothing was known."""
    return asdict(metrics) if metrics.pixels else None
