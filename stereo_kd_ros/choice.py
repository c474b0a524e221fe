# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Which way of running a model on this CPU is the quickest: measured once, then remembered.

OpenVINO in BF16 or FP32, or ONNX Runtime's own kernels with threads that spin or sleep: which of
them wins depends on the processor, the model and the image size, and no rule was found that
always tells. So each gets its turn for about a second in all, at the camera's size, and the
answer is kept in the cache under all that it depends on. Delete `cpu_choice` in the cache's
folder to have it measured again, as after a first start on a busy machine.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .cache import CacheError, cache_root, read_json, write_json

BUDGET_S = 1.0
MOST_RUNS = 15
# A run or two on a busy machine tells no smaller difference.
WORTH_CHANGING = 0.9


@dataclass(frozen=True)
class Candidate:
    """One way of running a model on the CPU."""

    provider: str
    precision: str
    spinning: bool

    def __str__(self) -> str:
        if self.provider == 'openvino':
            return f'openvino in {self.precision}'
        return f'{self.provider} with threads that {"spin" if self.spinning else "sleep"}'


@dataclass(frozen=True)
class ChoiceKey:
    """All that the quickest candidate depends on."""

    model_sha256: str
    processor: str
    threads: int
    height: int
    width: int
    onnxruntime: str
    candidates: tuple[str, ...]

    def path(self) -> Path:
        """Where the choice is remembered.

        Raises:
            CacheError: There is no cache.
        """
        digest = hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()
        return cache_root() / 'cpu_choice' / f'{digest[:24]}.json'


def recall(key: ChoiceKey, candidates: Sequence[Candidate]) -> tuple[Candidate, float] | None:
    """The choice of an earlier start and its milliseconds; None when there is no sound one."""
    try:
        noted = read_json(key.path())
    except CacheError:
        return None
    if noted is None:
        return None
    named = {str(candidate): candidate for candidate in candidates}
    choice, taken_ms = noted.get('choice'), noted.get('median_ms')
    if not isinstance(choice, str) or choice not in named or not isinstance(taken_ms, dict):
        return None
    milliseconds = taken_ms.get(choice)
    if not isinstance(milliseconds, (int, float)):
        return None
    return named[choice], float(milliseconds)


def remember(key: ChoiceKey, choice: Candidate, median_ms: Mapping[Candidate, float]) -> None:
    """Keep a choice for the next start.

    Raises:
        CacheError: It cannot be kept.
    """
    note = {
        'key': asdict(key),
        'choice': str(choice),
        'median_ms': {str(candidate): round(value, 3) for candidate, value in median_ms.items()},
    }
    path = key.path()
    try:
        write_json(path, note)
    except OSError as error:
        raise CacheError(f'{path} cannot be written: {error.strerror}') from error


def measure(
    runs: Mapping[Candidate, Callable[[], object]],
    budget_s: float = BUDGET_S,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Candidate, float]:
    """Median milliseconds of each candidate, run in turn until the budget is spent.

    A first run of each is neither counted nor part of the budget: it allocates and compiles.
    Candidates that had no turn are left out.
    """
    for run in runs.values():
        run()
    started = clock()
    taken_ms: dict[Candidate, list[float]] = {candidate: [] for candidate in runs}
    for _ in range(MOST_RUNS):
        for candidate, run in runs.items():
            begun = clock()
            if begun - started > budget_s:
                return _medians(taken_ms)
            run()
            taken_ms[candidate].append(1e3 * (clock() - begun))
    return _medians(taken_ms)


def _medians(taken_ms: Mapping[Candidate, Sequence[float]]) -> dict[Candidate, float]:
    return {
        candidate: statistics.median(values) for candidate, values in taken_ms.items() if values
    }


def quickest(median_ms: Mapping[Candidate, float], current: Candidate) -> Candidate:
    """The candidate to run: the current one unless another is clearly quicker."""
    if current not in median_ms:
        return current
    best = min(median_ms, key=lambda candidate: median_ms[candidate])
    return best if median_ms[best] < WORTH_CHANGING * median_ms[current] else current
