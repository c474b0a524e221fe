# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Options of the smallest Kestrel that still has every part: trains in milliseconds a step."""

from __future__ import annotations

TINY = {
    'stem': 8,
    'encoder': (8, 8, 8),
    'matching': 8,
    'context': 8,
    'aggregation': (16, 16, 16, 16),
    'blocks': (1, 1, 1, 1),
    'max_disparity_px': 64,
}
