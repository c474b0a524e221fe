# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run every stage of an adaptation that is not finished, in one process or in many.

Killed at any point, the same command goes on: a finished stage is not repeated, the teacher is
not asked twice, training resumes from its checkpoint. Started by a launcher, the first process
does what is done once, all of them train.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from stereo_kd_training.adapt.deliver import deliver, require_free_place
from stereo_kd_training.adapt.distil import distil, planned_steps
from stereo_kd_training.adapt.gate import gate
from stereo_kd_training.adapt.label import label
from stereo_kd_training.adapt.look import look, require_unchanged
from stereo_kd_training.adapt.prune import TUNING_SHARE, prune
from stereo_kd_training.adapt.render import render
from stereo_kd_training.adapt.report import write_report
from stereo_kd_training.adapt.select import CANDIDATES, select
from stereo_kd_training.adapt.settings import STAGES, AdaptSettings, Progress, RunFolder

_STAGES: dict[str, Callable[[RunFolder], dict[str, Any]]] = {
    'look': look,
    'select': select,
    'label': label,
    'render': render,
    'distil': distil,
    'prune': prune,
    'gate': gate,
    'deliver': deliver,
}
# The others are done by the first process alone.
_TRAINING = ('distil', 'prune')
# Measured: a rendered pair, in seconds per pixel of one core.
_RENDER_SECONDS = 1.1e-6
# Bytes per pixel of a pair: two PNG pictures, a label, and twice a teacher's answer.
_PAIR_BYTES = 7.5
_POOL_BYTES = 7.8


def adapt(
    settings: AdaptSettings,
    folder: Path | str,
    progress: Progress | None = None,
    on_line: Callable[[str], None] | None = None,
) -> bool:
    """Adapt, or go on adapting.

    Returns:
        whether a model was delivered; otherwise the report in `folder` says what fell short.

    Raises:
        AdaptError: it cannot work; the message says why.
        Interrupted: after SIGINT or SIGTERM, with everything saved.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    run = RunFolder(settings, folder, progress, on_line, state.is_main_process)
    require_free_place(run)
    run.open()
    try:
        if run.is_main and run.is_done('look'):
            require_unchanged(run)
        for stage in STAGES:
            if not run.is_done(stage):
                _run_stage(run, stage)
            run.wait_for(run.stage(stage) / 'done.json')
            if stage == 'gate':
                if run.is_main and not run.is_done('deliver'):
                    write_report(run, run.folder)
                if not run.facts('gate')['passed']:
                    return False
        return True
    finally:
        run.close()


def _run_stage(run: RunFolder, stage: str) -> None:
    if not run.is_main and stage not in _TRAINING:
        return
    started = time.monotonic()
    facts = _STAGES[stage](run)
    if run.is_main:
        run.finish(stage, {**facts, 'seconds': round(time.monotonic() - started, 1)})


def plan(settings: AdaptSettings, progress: Progress | None = None) -> list[str]:
    """Look at everything and say what an adaptation would do, and how long it would take.

    Raises:
        AdaptError: it cannot work.
    """
    require_free_place(RunFolder(settings, settings.out))
    with tempfile.TemporaryDirectory() as scratch:
        lines: list[str] = []
        run = RunFolder(settings, Path(scratch) / 'none', progress, lines.append)
        facts = look(run)
    told = [line.split(maxsplit=2)[2] for line in lines]
    total = sum(bag['pairs'] for bag in facts['bags'])
    pixels = facts['camera']['width'] * facts['camera']['height']
    kept = 1 - settings.validation - settings.held_out
    learnt = min(settings.max_pairs, round(total * kept))
    looked = min(round(CANDIDATES * settings.max_pairs / kept), total)
    steps = planned_steps(settings, facts, learnt)
    slower = settings.latency_ms is not None and facts['student_ms'] > settings.latency_ms
    tuned = round(steps * TUNING_SHARE) if slower else 0
    rendered = (
        settings.procedural_pairs + settings.procedural_validation + settings.procedural_watched
    )
    scene = settings.procedural_height * settings.procedural_width
    asked = sum(teacher['seconds'] for teacher in facts['teachers'])
    seconds = {
        'label': looked * (asked + facts['teachers'][0]['seconds']),
        'render': rendered * scene * _RENDER_SECONDS,
        'distil': steps * facts['step_seconds'],
        'prune': tuned * facts['step_seconds'],
    }
    disk_mb = (looked * pixels * _PAIR_BYTES + rendered * scene * _POOL_BYTES) / 1e6
    pruning = 'nothing'
    if slower:
        pruning = f'minutes of trials, then {tuned} steps, about {duration(seconds["prune"])}'
    told += [
        f'select   {total} pairs in the bags: up to {learnt} to learn from, '
        f'{round(total * settings.held_out)} held out (fewer where they are blurred or alike)',
        f'label    {len(facts["teachers"])} teacher(s), about {duration(seconds["label"])}',
        f'render   {rendered} procedural pairs, about {duration(seconds["render"])}',
        f'distil   {steps} steps of {settings.batch_size} crops, about '
        f'{duration(seconds["distil"])}',
        f'prune    {pruning}',
        f'in all   about {duration(sum(seconds.values()))} on this machine, '
        f'{disk_mb:.0f} MB of disk',
    ]
    return told


def duration(seconds: float) -> str:
    """For people."""
    if seconds < 120:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.0f} min' if seconds < 7200 else f'{seconds / 3600:.1f} h'
