# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Is the adapted student to be let onto the robot? Everything is measured on the exported file.

    teacher      its error against the labels of the held-out part is lower by the margin
    truth        its error against ground truth there is no higher, where there is some
    procedural   its error on scenes with truth is no higher, within the tolerance: the geometric
                 mean over the scenes, of which one that is lost either way would else decide alone
    procedural_bad3   nor is the share of pixels there that are off by more than 3 px
    parity       the file answers what the network answers
    swap         with the eyes exchanged nothing matches: confident pixels must be few then
    mirror       the mirrored pair is a stereo pair too: both answers must agree
    shift        a right picture that is shifted by k px has k px more disparity
    latency      what was asked for, or no more than before

Mirror and shift depend on the scene (a sky has no disparity to find again), so they are held
against the shipped student on the same pictures.

    NAME.onnx            the candidate, without the verdict in its manifest
    measured_KIND.json   figures of the pairs, kept as they come
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stereo_kd_ros.evaluation import ModelMatcher
from stereo_kd_ros.metrics import disparity_metrics
from stereo_kd_ros.scores import left_right_percent
from stereo_kd_training.adapt.checks import (
    EQUAL_PX,
    WORSE_BY,
    Check,
    figures_of,
    pooled,
    procedural_checks,
)
from stereo_kd_training.adapt.distil import BagPairs
from stereo_kd_training.adapt.label import read_label
from stereo_kd_training.adapt.settings import RunFolder, write_json
from stereo_kd_training.adapt.student import find_student
from stereo_kd_training.datasets.procedural import PairPool
from stereo_kd_training.export import PARITY_TOLERANCE_PX, export_network
from stereo_kd_training.networks import StereoNetwork
from stereo_kd_training.prune import measure_latency_ms
from stereo_kd_training.train import load_network

CONFIDENT = 0.5
# Of the pixels that are confident with the eyes in order, this share may stay so without.
SWAP_LIMIT = 0.4
SHIFTS_PX = (4, 16)
SHIFT_MEDIAN_PX = 0.5
SHIFT_OFF_PX = 1.0
# Two measurements of the same file differ by so much.
LATENCY_NOISE = 1.05
# Pairs on which swap and shift are tried.
TRIED_PAIRS = 8


def gate(run: RunFolder) -> dict[str, Any]:
    """Measure the candidate beside the shipped student, and judge it."""
    settings, folder = run.settings, run.stage('gate')
    folder.mkdir(parents=True, exist_ok=True)
    network = load_network(run.folder / run.facts('prune')['checkpoint'])
    candidate = folder / f'{settings.name}.onnx'
    parity = _exported(run, network, candidate)
    student = find_student(settings.student)
    candidate = student.completed(candidate)
    shipped = ModelMatcher(student.whole(run.stage('look')), 'cpu', 'before')
    adapted = ModelMatcher(candidate, 'cpu', 'after')
    held_out = _measured(run, 'held_out', shipped, adapted)
    procedural = _measured(run, 'procedural', shipped, adapted)
    before, after = (_summary(held_out, matcher.name) for matcher in (shipped, adapted))
    general = {
        matcher.name: pooled(procedural, matcher.name, 'truth') for matcher in (shipped, adapted)
    }
    latency = _latency(run, network)
    checks = [
        Check(
            'teacher',
            after['teacher'].epe_px,
            (1 - settings.margin) * before['teacher'].epe_px,
            'px',
            before['teacher'].epe_px,
        ),
        *procedural_checks(procedural, settings.tolerance),
        Check('parity', parity, PARITY_TOLERANCE_PX, 'px'),
        Check('swap', after['swap'], SWAP_LIMIT, 'of the confident pixels', before['swap']),
        Check('mirror', after['mirror'], before['mirror'] + WORSE_BY, '%', before['mirror']),
        Check('shift', after['shift_px'], SHIFT_MEDIAN_PX, 'px', before['shift_px']),
        Check('shift_off', after['off'], before['off'] + WORSE_BY, '%', before['off']),
        Check('latency', latency['after'], latency['limit'], 'ms', latency['before']),
    ]
    if after['truth'].pixels:
        limit = before['truth'].epe_px + EQUAL_PX
        checks.insert(
            1, Check('truth', after['truth'].epe_px, limit, 'px', before['truth'].epe_px)
        )
    for check in checks:
        run.say('gate', str(check))
    passed = all(check.passed for check in checks)
    run.say('gate', 'passed' if passed else 'NOT passed: nothing is delivered but the report')
    return {
        'passed': passed,
        'fell_short': [check.name for check in checks if not check.passed],
        'checks': [check.to_dict() for check in checks],
        'held_out': {
            name: {part: figures_of(summary[part]) for part in ('teacher', 'truth')}
            for name, summary in (('before', before), ('after', after))
        },
        'procedural': {name: figures_of(value) for name, value in general.items()},
        'latency_ms': latency,
        'parameters': network.parameter_count(),
        'model': str(candidate.relative_to(run.folder)),
    }


def _exported(run: RunFolder, network: StereoNetwork, path: Path) -> float:
    """Write the candidate once; returns the largest difference to the network [px]."""
    kept = path.with_suffix('.parity.json')
    if not (kept.is_file() and path.is_file()):
        run.progress('gate', 0, 1, 'export')
        # Its own limit is the gate's to judge, so that what falls short is reported.
        report = export_network(network, path, tolerance_px=math.inf)
        write_json(kept, {'parity_px': max(parity.max_difference_px for parity in report)})
    return float(json.loads(kept.read_text())['parity_px'])


def _measured(
    run: RunFolder, kind: str, shipped: ModelMatcher, adapted: ModelMatcher
) -> list[dict[str, Any]]:
    """Figures of both models on every pair, from disk where they are known."""
    path = run.stage('gate') / f'measured_{kind}.json'
    records: list[dict[str, Any]] = json.loads(path.read_text()) if path.is_file() else []
    total, pairs = _pairs(run, kind)
    for index, (left, right, known) in enumerate(pairs):
        run.progress('gate', index, total, kind.replace('_', '-'))
        if index < len(records):
            continue
        record: dict[str, Any] = {}
        for matcher in (shipped, adapted):
            answer = matcher.match(left, right)
            figures: dict[str, Any] = {
                name: figures_of(disparity_metrics(answer.dense, disparity, 256.0))
                for name, disparity in known.items()
            }
            if kind == 'held_out':
                figures |= robustness(matcher, left, right, with_trials=index < TRIED_PAIRS)
            record[matcher.name] = figures
        records.append(record)
        write_json(path, records)
    run.progress('gate', total, total, '')
    return records


def _pairs(
    run: RunFolder, kind: str
) -> tuple[int, Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]]:
    """How many, and left, right and what is known of each."""
    if kind == 'procedural':
        pool = PairPool(run.stage('render') / 'validation')
        return len(pool), ((p.left, p.right, {'truth': p.disparity}) for p in pool)
    return _held_out(run)


def _held_out(
    run: RunFolder,
) -> tuple[int, Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]]:
    names = run.facts('select')['held_out']
    truths = run.stage('select') / 'pairs' / 'truth'

    def each() -> Iterator[tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]]:
        for pair in BagPairs(run.folder, names):
            known = {'teacher': pair.disparity}
            truth = truths / f'{pair.name}.png'
            if truth.is_file():
                known['truth'] = read_label(truth)
            yield pair.left, pair.right, known

    return len(names), each()


def robustness(
    matcher: ModelMatcher, left: np.ndarray, right: np.ndarray, with_trials: bool = True
) -> dict[str, float | None]:
    """How a model behaves on pairs whose answer is known from another pair's.

    Returns:
        mirror: % of pixels whose answer in the mirrored pair disagrees by more than 1 px;
        swap: confident pixels with the eyes exchanged, as a share of those without;
        shift_px: median error of a shifted pair's disparity; off: % of pixels beyond 1 px.
    """
    answer = matcher.match(left, right)
    mirrored = matcher.match(_flipped(right), _flipped(left))
    apart = left_right_percent(answer.disparity, mirrored.disparity[:, ::-1])
    figures: dict[str, float | None] = {
        'mirror': apart if math.isfinite(apart) else None,
        'swap': None,
        'shift_px': None,
        'off': None,
    }
    if not with_trials or answer.confidence is None:
        return figures
    confident = answer.confidence > CONFIDENT
    swapped = matcher.match(right, left).confidence
    assert swapped is not None
    figures['swap'] = float((swapped > CONFIDENT).sum() / max(int(confident.sum()), 1))
    columns = np.arange(left.shape[1])[None]
    errors = []
    for shift in SHIFTS_PX:
        moved = np.concatenate([right[:, shift:], right[:, :1].repeat(shift, 1)], axis=1)
        told = matcher.match(left, moved).dense - shift
        # Only where the match is still inside of the picture.
        counted = confident & (columns - answer.dense - shift >= 0)
        counted[:, -shift:] = False
        errors.append(np.abs(told - answer.dense)[counted])
    error = np.concatenate(errors)
    if error.size:
        figures['shift_px'] = float(np.median(error))
        figures['off'] = float(100 * (error > SHIFT_OFF_PX).mean())
    return figures


def _flipped(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])


def _summary(records: list[dict[str, Any]], model: str) -> dict[str, Any]:
    """All figures of one model on the held-out pairs."""
    return {
        'teacher': pooled(records, model, 'teacher'),
        'truth': pooled(records, model, 'truth'),
        **{
            name: _mean(record[model][name] for record in records)
            for name in ('mirror', 'swap', 'shift_px', 'off')
        },
    }


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else math.nan


def _latency(run: RunFolder, network: StereoNetwork) -> dict[str, float]:
    """Milliseconds of one pair before and after, measured in one go, once per run."""
    path = run.stage('gate') / 'latency.json'
    if not path.is_file():
        settings, look = run.settings, run.facts('look')
        camera = look['camera']
        run.progress('gate', 1, 1, 'latency')
        before, after = (
            look.get('second_ms', 0.0)
            + look['latency_scale']
            * measure_latency_ms(
                model, camera['height'], camera['width'], settings.latency_threads, runs=11
            )
            for model in (find_student(settings.student).network(), network)
        )
        limit = LATENCY_NOISE * (settings.latency_ms or before)
        if run.facts('prune')['ratio'] == 0.0:
            # The very same graph: what differs is the machine.
            limit = max(limit, after) if settings.latency_ms is None else limit
        write_json(path, {'before': before, 'after': after, 'limit': limit})
    return json.loads(path.read_text())
