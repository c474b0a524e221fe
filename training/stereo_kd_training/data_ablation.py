# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What of the generated scenes matters: train without one ingredient at a time, judge alike.

    everything                    rooms and streets in 3-D, layered scenes, pictures, cameras
    without 3-D scenes            layered scenes alone
    without layered scenes        rooms, corridors and streets alone
    without pictures              synthetic textures alone (only where there is a bank)
    without faults of cameras     no noise, blur, exposure, JPEG, vignetting, rectification error
    without streets               rooms, corridors and layers instead
    without mirrors               nothing shines or mirrors what stands around it
    without weak texture          no bare walls, nothing of little contrast
    without thin things           no rods, wires, fences, nets and leaves

All pools have as many pairs, all students as many steps of the same crops and learning rates; each
is judged on one pool of everything with another seed, and on real labelled sets where there are
some. At a small budget this ranks what is large; the spread over the seeds says what is not.

    FOLDER/pools/NAME/            rendered once
    FOLDER/runs/NAME-SEED/        one recipe each, resumable
    FOLDER/data.json, .md, .svg
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from stereo_kd_ros.commands.console import image_size
from stereo_kd_training import networks
from stereo_kd_training.ablation import (
    PANELS,
    Budget,
    deviation,
    draw_report,
    labelled_progress,
    slug,
    table_row,
    training_section,
    write_text,
)
from stereo_kd_training.bars import console, stage_bars
from stereo_kd_training.datasets.labelled import labelled_sets
from stereo_kd_training.datasets.procedural import generate_pool
from stereo_kd_training.recipe import check_recipe
from stereo_kd_training.stages import Progress, RecipeRun
from stereo_kd_training.threads import Threads, use_threads

JUDGE_SEED = 1_000_003
"""Of the pool that judges; no pool to learn from has it."""

EVERYTHING = 'everything'
VARIANTS: dict[str, dict[str, Any]] = {
    EVERYTHING: {},
    'without 3-D scenes': {'scenes': 'layered'},
    'without layered scenes': {'scenes': 'rooms'},
    'without pictures': {'textures': None},
    'without faults of cameras': {'cameras': False},
    'without streets': {'without': ('streets',)},
    'without mirrors': {'without': ('mirrors',)},
    'without weak texture': {'without': ('weak',)},
    'without thin things': {'without': ('thin',)},
}
"""Variant to what it changes in `generate_pool`."""


@dataclass(frozen=True)
class DataBudget:
    """How small the comparison is.

    Attributes:
        pairs: in each pool to learn from.
        judged: pairs that judge.
        height, width: of a pair, px.
        seed: of the pools.
        student: steps, crops and seeds; its teacher's and tuning's lengths do not count.
        limit: at most so many pairs of each labelled set.
    """

    pairs: int = 600
    judged: int = 48
    height: int = 192
    width: int = 384
    seed: int = 0
    student: Budget = field(default_factory=lambda: Budget(student='kestrel'))
    limit: int | None = None


def run_data_ablation(
    folder: Path | str,
    budget: DataBudget,
    textures: Path | str | None = None,
    benchmark: Path | str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Render the pools, train every variant with every seed; what is finished is not repeated.

    Args:
        folder: of the comparison.
        budget: how long and how large.
        textures: a texture bank; without one nobody can do without its pictures.
        benchmark: a folder of labelled sets, see `stereo_kd_training.datasets.labelled`.
        progress: called with (variant and stage, step, steps, text).

    Returns:
        The report, which is also written to data.json, data.md and data.svg.

    Raises:
        PoolError: the folder holds pools of another budget.
        RecipeError: it holds runs of another budget.
        NetworkError, DatasetError: no such student, or nothing labelled in `benchmark`.
    """
    folder = Path(folder)
    # Before minutes of rendering, not after.
    networks.create(budget.student.student, max_disparity_px=budget.student.max_disparity_px)
    if benchmark is not None:
        labelled_sets(benchmark)
    variants = {
        title: changes
        for title, changes in VARIANTS.items()
        if textures is not None or 'textures' not in changes
    }
    _render(folder / 'pools' / 'judge', budget.judged, JUDGE_SEED, budget, textures, {}, progress)
    rows = []
    for title, changes in variants.items():
        pool = folder / 'pools' / slug(title)
        _render(pool, budget.pairs, budget.seed, budget, textures, changes, progress)
        results = [
            _run(title, folder, pool, budget, benchmark, seed, progress)
            for seed in range(budget.student.seeds)
        ]
        row = table_row(title, results)
        if benchmark is not None:
            summaries = [result['benchmark']['summary'] for result in results]
            row['real_epe_px'] = [s['geometric_mean_epe_px'] for s in summaries]
            row['real_bad3'] = [s['mean_bad3'] for s in summaries]
        rows.append(row)
    report = {
        'ablation': 'data',
        'budget': asdict(budget),
        'pictures': textures is not None,
        'rows': rows,
    }
    write_text(folder / 'data.json', json.dumps(report, indent=2) + '\n')
    write_text(folder / 'data.md', as_markdown(report))
    real = (('real_epe_px', 'real EPE [px]'), ('real_bad3', 'real bad-3 [%]'))
    draw_report(report, folder / 'data.svg', PANELS + real if benchmark is not None else PANELS)
    return report


def _render(
    pool: Path,
    pairs: int,
    seed: int,
    budget: DataBudget,
    textures: Path | str | None,
    changes: dict[str, Any],
    progress: Progress | None,
) -> None:
    heard = labelled_progress(progress, f'{pool.name}')
    if heard:
        heard('pool', 0, pairs, '')
    settings = {'textures': textures, 'scenes': 'mixed', **changes}
    generate_pool(
        pool,
        pairs,
        budget.height,
        budget.width,
        seed,
        max_disparity_px=budget.student.max_disparity_px,
        progress=False,
        **settings,
    )
    if heard:
        heard('pool', pairs, pairs, '')


def _run(
    title: str,
    folder: Path,
    pool: Path,
    budget: DataBudget,
    benchmark: Path | str | None,
    seed: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """One variant with one seed: the metrics of its network."""
    name = f'{slug(title)}-{seed}'
    student = budget.student
    training = training_section(student.student, {}, student, student.steps)
    content: dict[str, Any] = {
        'name': name,
        'seed': seed,
        'data': {
            'train': [{'pool': str(pool)}],
            'validation': [{'pool': str(folder / 'pools' / 'judge')}],
        },
        'distill': {'training': training},
    }
    if benchmark is not None:
        content['evaluate'] = {'root': str(benchmark), 'limit': budget.limit}
    heard = labelled_progress(progress, name)
    summary = RecipeRun(check_recipe(content), folder / 'runs' / name, heard).run()
    metrics = summary['evaluate']['metrics']
    return {
        **metrics['distill'],
        'network': student.student,
        'benchmark': metrics.get('benchmark'),
    }


def as_markdown(report: dict[str, Any]) -> str:
    """The report as a table, differences to everything seed by seed."""
    budget, rows = report['budget'], report['rows']
    student = budget['student']
    real = 'real_epe_px' in rows[0]
    head = ['training scenes', 'EPE px', 'to everything', 'bad-3 %']
    if real:
        head += ['real EPE px', 'to everything', 'real bad-3 %']
    lines = [
        '### data',
        '',
        f'A small-scale comparison: pools of {budget["pairs"]} pairs, {student["steps"]} steps of '
        f'{student["batch_size"]} crops of {student["crop_width"]}x{student["crop_height"]}, '
        f'{student["seeds"]} seeds, `{student["student"]}` for {student["max_disparity_px"]} px. '
        f'Judged on {budget["judged"]} generated pairs of everything'
        + (' and on real labelled sets. ' if real else '. ')
        + 'Mean ± standard deviation over the seeds; differences are taken seed by seed.',
        '',
        f'| {" | ".join(head)} |',
        f'|---|{"---:|" * (len(head) - 1)}',
    ]
    for row in rows:
        cells = [row['variant'], *_compared(row, rows[0], 'epe_px'), _spread(row['bad3'], 1)]
        if real:
            cells += [*_compared(row, rows[0], 'real_epe_px'), _spread(row['real_bad3'], 1)]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines) + '\n'


def _compared(row: dict[str, Any], everything: dict[str, Any], key: str) -> tuple[str, str]:
    """The figure and its relative difference to that of everything, in percent."""
    if row is everything:
        return _spread(row[key], 2), ''
    pairs = zip(row[key], everything[key])
    return _spread(row[key], 2), _spread([100 * (a / b - 1) for a, b in pairs], 0, '+') + ' %'


def _spread(values: list[float], digits: int, sign: str = '') -> str:
    return f'{statistics.mean(values):{sign}.{digits}f} ± {deviation(values):.{digits}f}'


def ablate_data_command(
    out: Annotated[Path, typer.Option('--out', '-o', help='Folder; continued when begun.')],
    textures: Annotated[
        Path | None, typer.Option(help='Texture bank; synthetic textures alone without it.')
    ] = None,
    benchmark: Annotated[
        Path | None, typer.Option(help='Folder of real labelled sets to judge on, too.')
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help='At most so many pairs of each labelled set.')
    ] = None,
    pairs: Annotated[int, typer.Option(min=2, help='In each pool to learn from.')] = 600,
    judged: Annotated[int, typer.Option(min=1, help='Generated pairs that judge.')] = 48,
    size: Annotated[str, typer.Option(help='WIDTHxHEIGHT of a pair.')] = '384x192',
    steps: Annotated[int, typer.Option(min=1, help='Of every student.')] = 400,
    seeds: Annotated[int, typer.Option(min=1, help='Runs per variant.')] = 3,
    batch_size: Annotated[int, typer.Option(min=1, help='Crops per step.')] = 4,
    crop: Annotated[str, typer.Option(help='WIDTHxHEIGHT of a crop.')] = '256x128',
    max_disparity: Annotated[int, typer.Option(min=16, help='Of pools and networks, px.')] = 128,
    student: Annotated[str, typer.Option(help='The network that learns.')] = 'kestrel',
    threads: Threads = 2,
) -> None:
    """Leave one ingredient of the generated scenes out at a time; resumable."""
    use_threads(threads)
    (width, height), (crop_width, crop_height) = image_size(size), image_size(crop)
    budget = DataBudget(
        pairs=pairs,
        judged=judged,
        height=height,
        width=width,
        limit=limit,
        student=Budget(
            steps=steps,
            batch_size=batch_size,
            crop_height=crop_height,
            crop_width=crop_width,
            max_disparity_px=max_disparity,
            seeds=seeds,
            student=student,
        ),
    )
    with stage_bars() as progress:
        report = run_data_ablation(out, budget, textures, benchmark, progress)
    console.print(as_markdown(report), markup=False, highlight=False, soft_wrap=True)
