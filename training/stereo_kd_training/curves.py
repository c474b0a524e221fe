# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Learning curves of runs, out of the `log.jsonl` that every run keeps."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stereo_kd_ros.benchmark import check_plot

LOG_NAME = 'log.jsonl'
# Scalars whose names begin so share a panel; those of one panel are drawn in one colour per run.
PANELS = (
    ('validation/epe_px', 'validation EPE px'),
    ('validation/bad3', 'validation bad-3 %'),
    ('train/loss', 'training loss'),
    ('train/learning_rate', 'learning rate'),
)
SMOOTHING = 0.9
"""Share of the past in the running mean that training scalars are drawn as."""


class CurvesError(ValueError):
    """A run without a log, or with a damaged one; the message names it."""


def read_log(run: str | Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars of a run folder (or of its log) by name, as (step, value), by step.

    A run that was resumed from an earlier checkpoint logs some steps twice; the later counts.

    Raises:
        CurvesError: no log, an empty one, or a line that is no JSON object with a step.
    """
    path = Path(run)
    path = path / LOG_NAME if path.is_dir() else path
    if not path.is_file():
        raise CurvesError(f'{path} does not exist; give a run folder of `stereo-kd-train train`')
    found: dict[str, dict[int, float]] = defaultdict(dict)
    lines = path.read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, 1):
        try:
            scalars = json.loads(line)
            step = int(scalars.pop('step'))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # A run that was killed may have left half a line at the end.
            if number == len(lines):
                break
            raise CurvesError(f'{path}:{number} is no line of a log: {error}') from error
        for name, value in scalars.items():
            if isinstance(value, int | float) and math.isfinite(value):
                found[name][step] = float(value)
    if not found:
        raise CurvesError(f'{path} holds no scalars yet')
    return {name: sorted(points.items()) for name, points in found.items()}


def running_mean(values: Sequence[float], share: float = SMOOTHING) -> list[float]:
    """Exponential mean without the pull of its start: the first value is itself."""
    out, mean, weight = [], 0.0, 0.0
    for value in values:
        mean = share * mean + (1 - share) * value
        weight = share * weight + (1 - share)
        out.append(mean / weight)
    return out


def plot_curves(runs: Sequence[str | Path], path: str | Path) -> dict[str, int]:
    """Draw the curves of runs into one file; returns how many steps each run's log reaches.

    Raises:
        CurvesError: a log is missing or damaged, or none has anything of `PANELS`.
    """
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import lines, pyplot

    logs = {}
    for run in runs:
        name = Path(run).name or str(run)
        while name in logs:
            name += "'"
        logs[name] = read_log(run)
    panels = [(key, title) for key, title in PANELS if any(key in log for log in logs.values())]
    if not panels:
        wanted = ', '.join(key for key, _ in PANELS)
        raise CurvesError(f'none of the logs has one of {wanted}')
    figure, axes = pyplot.subplots(
        len(panels), 1, figsize=(9, 2.4 * len(panels)), sharex=True, layout='constrained'
    )
    for axis, (key, title) in zip([axes] if len(panels) == 1 else axes, panels, strict=True):
        for index, log in enumerate(logs.values()):
            if key not in log:
                continue
            steps, values = zip(*log[key], strict=True)
            drawn = running_mean(values) if key == 'train/loss' else values
            # One value alone, as of a run that is validated at its end, is no line.
            axis.plot(steps, drawn, color=f'C{index}', marker='o' if len(steps) == 1 else None)
        axis.set_ylabel(title)
        axis.grid(alpha=0.3)
        if key != 'train/learning_rate':
            axis.set_yscale('log')
            axis.yaxis.set_major_formatter('{x:g}')
            axis.yaxis.set_minor_formatter('{x:g}')
            axis.tick_params(axis='y', which='minor', labelsize=7)
    names = [lines.Line2D([], [], color=f'C{index}') for index in range(len(logs))]
    figure.legend(names, list(logs), loc='outside upper center', ncols=min(len(logs), 4))
    figure.axes[-1].set_xlabel('step')
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return {name: max(points[-1][0] for points in log.values()) for name, log in logs.items()}


def curves_command(
    run: Annotated[list[Path], typer.Argument(help='Run folders, or their log.jsonl.')],
    out: Annotated[Path, typer.Option('--out', '-o', help='The PNG, SVG or PDF to write.')],
) -> None:
    """Draw the learning curves of runs: validation error, loss and learning rate by step."""
    check_plot(out)
    reached = plot_curves(run, out)
    typer.echo(', '.join(f'{name}: {steps} steps' for name, steps in reached.items()))
    typer.echo(f'wrote {out}')
