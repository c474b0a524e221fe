# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd-train adapt BAG...`: a better student for one robot, from its bags alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stereo_kd_training.bars import console, stage_bars
from stereo_kd_training.threads import Threads, use_threads


def adapt_command(
    bags: Annotated[list[Path], typer.Argument(help='Bags of one camera; no truth needed.')],
    teacher: Annotated[
        list[str],
        typer.Option(
            help='hitnet=FILE.onnx, NAME=FILE.onnx@ADAPTER.yaml, a model file or a checkpoint; '
            'the first one teaches, more are asked for a second opinion.'
        ),
    ],
    out: Annotated[Path, typer.Option('--out', '-o', help='Model folder to be made.')],
    latency_ms: Annotated[
        float | None,
        typer.Option(help='Of one pair of the size of the bag.', show_default='as the student'),
    ] = None,
    student: Annotated[str, typer.Option(help='Model to start from, or a checkpoint.')] = 'small',
    student_ms: Annotated[
        float | None,
        typer.Option(help='What the student takes on the robot, where that is another machine.'),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            min=1,
            help='Of the distillation.',
            show_default='240 crops of every pair, 3000 at most',
        ),
    ] = None,
    minutes: Annotated[
        float | None, typer.Option(min=0.0, help='As many steps as fit, instead of --steps.')
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help='Folder of <stamp>.pfm or .png, or a topic of the bag.')
    ] = None,
    work: Annotated[
        Path | None,
        typer.Option(help='Run folder; continued when begun.', show_default='OUT.adapt'),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help='Of the model.', show_default='that of OUT')
    ] = None,
    margin: Annotated[
        float, typer.Option(help='By which the error against the teacher must fall.')
    ] = 0.1,
    tolerance: Annotated[
        float, typer.Option(help='By which the error on procedural scenes may grow.')
    ] = 0.05,
    held_out: Annotated[float, typer.Option(help='Share of each bag, from its end.')] = 0.25,
    max_pairs: Annotated[int, typer.Option(min=4, help='To learn from.')] = 400,
    accept: Annotated[
        list[str] | None, typer.Option(help='A check of `stereo-kd doctor` to live with.')
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help='Which camera, in a bag with several.')
    ] = None,
    tolerance_s: Annotated[
        float, typer.Option(min=0.0, help='Largest stamp difference of a pair.')
    ] = 0.0,
    bag_licence: Annotated[
        str, typer.Option(help='Licence of the bags, for the manifest.')
    ] = "the bag owner's own",
    teacher_licence: Annotated[
        str | None,
        typer.Option(help='Licence of the labels.', show_default='as the teacher states'),
    ] = None,
    config: Annotated[
        Path | None, typer.Option('--config', '-c', help='YAML of further settings.')
    ] = None,
    seed: Annotated[int, typer.Option(help='The same seed gives the same student.')] = 0,
    threads: Threads = 2,
    dry_run: Annotated[
        bool, typer.Option('--dry-run', help='Look, and say what would be done and how long.')
    ] = False,
) -> None:
    """Adapt a shipped student to a robot's bags; unattended, resumable, gated.

    Looks at the bags, selects frames, labels them with the teacher, distils, prunes, and delivers
    a model folder if the student is better on the held-out part and no worse elsewhere. Otherwise
    only the report is written, to the run folder, and the exit code is 1. Killed at any point,
    the same command goes on.
    """
    from stereo_kd_training.adapt.run import adapt, plan
    from stereo_kd_training.adapt.settings import AdaptSettings
    from stereo_kd_training.recipe import check_settings, read_settings

    use_threads(threads)
    settings = check_settings(
        AdaptSettings,
        {
            'bags': [str(bag) for bag in bags],
            'teachers': teacher,
            'out': str(out),
            'name': name or out.name,
            'student': student,
            'latency_ms': latency_ms,
            'student_ms': student_ms,
            'truth': truth,
            'namespace': namespace,
            'tolerance_s': tolerance_s,
            'accept': accept or [],
            'max_pairs': max_pairs,
            'held_out': held_out,
            'steps': steps,
            'minutes': minutes,
            'margin': margin,
            'tolerance': tolerance,
            'bag_licence': bag_licence,
            'teacher_licence': teacher_licence,
            'seed': seed,
            **(read_settings(config) if config else {}),
        },
        str(config or 'options'),
    )
    folder = work or out.with_name(f'{out.name}.adapt')
    with stage_bars() as report:
        if dry_run:
            lines = plan(settings, report)
        else:
            delivered = adapt(settings, folder, report, _print)
    if dry_run:
        console.print('\n'.join(lines), markup=False, highlight=False, soft_wrap=True)
        return
    place = out if delivered else folder
    console.print(f'{place}/report.html, {place}/report.json', soft_wrap=True)
    if not delivered:
        raise typer.Exit(1)


def _print(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
