# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What becomes of an evaluation: tables, JSON, a chart, pictures, a manifest's entry.

`report` is everywhere what `stereo_kd_training.evaluate.run_evaluation` returns.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from stereo_kd_ros.visualize import colorize_disparity, colorize_error, picture_strip
from stereo_kd_training.datasets.base import StereoSample

_WRITER = '`stereo-kd-train evaluate --json`'


class ReportError(ValueError):
    """A file is no report of an evaluation, or lacks the method that is asked for."""


def read_report(path: str | Path) -> dict[str, Any]:
    """A report that `write_json` wrote.

    Raises:
        ReportError: the file is something else.
    """
    try:
        report = json.loads(Path(path).read_text(encoding='utf-8'))
    except ValueError as error:
        raise ReportError(f'{path} is not JSON: {error}; give a file of {_WRITER}') from error
    if not isinstance(report, dict) or not {'methods', 'protocol'} <= set(report):
        raise ReportError(f'{path} holds no methods and protocol; give a file of {_WRITER}')
    return report


def print_report(report: Mapping[str, Any], console: Console) -> None:
    """Two tables: every set, and what it comes to."""
    methods, reference = report['methods'], report['reference']
    table = Table(title='mean over the pictures of a set; every pixel with truth counts')
    for column in ('set', 'method', 'EPE px', 'bad-1 %', 'bad-3 %', 'D1 %', 'edge EPE px'):
        left = column in ('set', 'method')
        table.add_column(column, justify='left' if left else 'right', no_wrap=True)
    for set_name, figures in next(iter(methods.values()))['sets'].items():
        label = f'{set_name} ({figures["pairs"]})'
        for name, of in methods.items():
            own = of['sets'][set_name]
            table.add_row(
                label,
                name,
                _text(own['epe_px'], 2),
                _text(own['bad1'], 1),
                _text(own['bad3'], 1),
                _text(own['d1'], 1),
                _text(own['edge_epe_px'], 2),
            )
            label = ''
        table.add_section()
    console.print(table)

    summary = Table(title=f'over all sets; x = ratio to {reference}; EPE: geometric mean')
    summary.add_column('method', no_wrap=True)
    for column in ('EPE px', 'x', 'bad-3 %', 'x', 'D1 %', 'edge EPE', 'x', 'worst set x'):
        summary.add_column(column, justify='right', no_wrap=True)
    sure = any(not math.isnan(of['summary']['mean_confidence_ause']) for of in methods.values())
    if sure:
        summary.add_column('AUSE', justify='right')
        summary.add_column('too sure', justify='right')
    timed = any('latency_ms' in of for of in methods.values())
    if timed:
        summary.add_column('ms min/median', justify='right')
        summary.add_column('faster x', justify='right')
    for name, of in methods.items():
        total, ratio = of['summary'], report['ratios'][name]
        cells = [
            name,
            _text(total['geometric_mean_epe_px'], 3),
            _text(ratio['geometric_mean_epe_px'], 2),
            _text(total['mean_bad3'], 2),
            _text(ratio['mean_bad3'], 2),
            _text(total['mean_d1'], 2),
            _text(total['geometric_mean_edge_epe_px'], 2),
            _text(ratio['geometric_mean_edge_epe_px'], 2),
            f'{ratio["worst_set"]} {_text(ratio["worst_set_epe_px"], 2)}',
        ]
        if sure:
            cells.append(_text(total['mean_confidence_ause'], 3))
            cells.append(_text(total['mean_confidence_gap'], 3))
        if timed:
            timing = of['latency_ms']
            cells += [
                f'{timing["min"]:.0f}/{timing["median"]:.0f}',
                _text(ratio['speed_up'], 2),
            ]
        summary.add_row(*cells)
    console.print(summary)


def manifest_metrics(report: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a model's manifest should say of method `name`: the figures without the pictures.

    Raises:
        ReportError: the report has no such method.
    """
    if name not in report['methods']:
        known = ', '.join(report['methods'])
        raise ReportError(f'the report is not of {name!r} but of {known}; name one (--metrics-of)')
    of = report['methods'][name]
    figures = ('pairs', 'epe_px', 'bad1', 'bad3', 'd1', 'edge_epe_px')
    sets = {
        set_name: {key: own[key] if key == 'pairs' else _rounded(own[key]) for key in figures}
        for set_name, own in of['sets'].items()
    }
    summary = {
        key: value if isinstance(value, int) else _rounded(value)
        for key, value in of['summary'].items()
    }
    return {'protocol': report['protocol']['within_a_set'], 'sets': sets, 'summary': summary}


def write_json(path: Path, report: Mapping[str, Any]) -> None:
    """Write the report atomically; NaN becomes null, which is what JSON knows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.partial')
    partial.write_text(json.dumps(_json_value(report), indent=1) + '\n', encoding='utf-8')
    partial.replace(path)


def plot_report(report: Mapping[str, Any], path: Path) -> None:
    """A chart of EPE and bad-3 by set and method."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    methods = report['methods']
    set_names = list(next(iter(methods.values()))['sets'])
    labels = [*set_names, 'all']
    figure, axes = pyplot.subplots(2, 1, figsize=(10, 7), sharex=True, layout='constrained')
    width = 0.8 / len(methods)
    for axis, key, overall, title in (
        (axes[0], 'epe_px', 'geometric_mean_epe_px', 'EPE px (all: geometric mean)'),
        (axes[1], 'bad3', 'mean_bad3', 'bad-3 % (all: mean)'),
    ):
        for index, (name, of) in enumerate(methods.items()):
            values = [of['sets'][set_name][key] for set_name in set_names]
            positions = np.arange(len(labels)) + (index - (len(methods) - 1) / 2) * width
            axis.bar(positions, [*values, of['summary'][overall]], width, label=name)
        axis.set_ylabel(title)
        axis.grid(axis='y', alpha=0.3)
    axes[1].set_xticks(np.arange(len(labels)), labels, rotation=20, ha='right')
    axes[0].legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def write_strip(path: Path, sample: StereoSample, answers: Mapping[str, np.ndarray]) -> None:
    """A PNG of the left picture, the truth, and each answer with its error, two in a row."""
    top_px = float(np.nanpercentile(sample.disparity, 99)) if sample.valid.any() else None
    pictures = [sample.left, colorize_disparity(sample.disparity, top_px)]
    labels = ['left', 'truth']
    for name, disparity in answers.items():
        pictures += [
            colorize_disparity(disparity, top_px),
            colorize_error(disparity, sample.disparity),
        ]
        labels += [name, f'{name} error']
    path.parent.mkdir(parents=True, exist_ok=True)
    strip = picture_strip(pictures, labels, columns=2)
    cv2.imwrite(str(path), cv2.cvtColor(strip, cv2.COLOR_RGB2BGR))


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(value, 4)


def _text(value: float, digits: int) -> str:
    return '-' if math.isnan(value) else f'{value:.{digits}f}'


def _json_value(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
