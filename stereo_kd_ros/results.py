# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every result file carries: percentiles by nearest rank, the machine, and a whole write."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

import stereo_kd_ros
from stereo_kd_ros.processor import processor_name, vector_unit


def percentiles(values_ms: Sequence[float]) -> dict[str, float | None]:
    """p50, p95 and p99 by nearest rank; None without values."""
    if not len(values_ms):
        return {'p50': None, 'p95': None, 'p99': None}
    ranks = np.percentile(values_ms, (50, 95, 99), method='inverted_cdf')
    return {name: round(float(rank), 3) for name, rank in zip(('p50', 'p95', 'p99'), ranks)}


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        'cpu': processor_name() or platform.processor(),
        'vectors': vector_unit(),
        'cores': os.cpu_count(),
        'system': platform.platform(),
        'python': platform.python_version(),
        'opencv': cv2.__version__,
        'stereo_kd_ros': stereo_kd_ros.__version__,
    }


def rounded(value: float | None, digits: int = 4) -> float | None:
    """A figure for a result file: JSON has no NaN, so what is not known is None."""
    return None if value is None or not math.isfinite(value) else round(float(value), digits)


def path_sha256(path: Path) -> str:
    """SHA-256 of a file, or of all files of a folder with their names, in order."""
    digest = hashlib.sha256()
    files = sorted(item for item in path.rglob('*') if item.is_file()) if path.is_dir() else [path]
    for file in files:
        if path.is_dir():
            digest.update(str(file.relative_to(path)).encode())
        with file.open('rb') as content:
            while block := content.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def write_json(path: Path, result: Mapping[str, Any]) -> None:
    """Write a result file, as a whole or not at all."""
    temporary = path.with_suffix('.tmp')
    temporary.write_text(json.dumps(result, indent=2, allow_nan=False) + '\n')
    temporary.replace(path)
