# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`make kill`: kill -9 at random moments, and whether the same command ends as if it had not been.

    python test/hostile/kill.py [--kills 10] [--seed 0] [--of adapt evaluate] [--work DIR]

Runs `stereo-kd-train adapt` and `stereo-kd evaluate` at the size of a test as processes of their
own: once undisturbed, which also tells how long they take, and then killed without warning at
moments that are drawn evenly over that time and started again each time, in as many runs as it
takes until all kills have hit a living process. Compared is what stands in the reports without
what depends on the clock, and the weights of the adapted networks. The exit code is 1 unless every
run ends as the undisturbed one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from tiny_adaptation import settings, write_assets

from stereo_kd_training.train import load_network

console = Console()
# What depends on the clock of the machine, at any depth of a report.
TIMES = {
    'seconds',
    'training_seconds',
    'student_ms',
    'latency_scale',
    'step_seconds',
    'latency_ms',
    'p50_ms',
    'p95_ms',
    'p99_ms',
    'max_ms',
}
# Options of the command that are not in its file of further settings.
_OPTIONS = ('bags', 'teachers', 'out', 'name', 'student', 'steps', 'margin', 'seed')


def main() -> int:
    """Disturb both commands, and say whether they ended the same."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument('--kills', type=int, default=10)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument(
        '--of', nargs='+', choices=('adapt', 'evaluate'), default=['adapt', 'evaluate']
    )
    parser.add_argument('--work', type=Path, default=None)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work = asked.work or Path(scratch)
        assets = work / 'assets'
        if not assets.exists():
            assets.mkdir(parents=True)
            write_assets(assets)
        same = [_disturb(name, assets, work, asked.kills, asked.seed) for name in asked.of]
    return 0 if all(same) else 1


def _disturb(name: str, assets: Path, work: Path, kills: int, seed: int) -> bool:
    """Kill as often as asked, in as many runs as it takes, and compare how each of them ends."""
    make = _adapt if name == 'adapt' else _evaluate
    whole = work / name / 'whole'
    started = time.monotonic()
    code = _run(make(assets, whole)).wait()
    took = time.monotonic() - started
    console.print(f'{name}: undisturbed {took:.0f} s, exit code {code}')
    moments = random.Random(seed)
    hits, same = 0, True
    for number in itertools.count(1):
        killed = work / name / f'killed-{number}'
        while True:
            victim = _run(make(assets, killed))
            if hits == kills:
                again = victim.wait()
                break
            after = moments.uniform(0, took)
            try:
                again = victim.wait(after)
                break
            except subprocess.TimeoutExpired:
                victim.kill()
                victim.wait()
                hits += 1
                console.print(
                    f'{name}: kill {hits} of {kills} in run {number} after {after:.1f} s, '
                    f'in {_place(killed)}'
                )
        alike = code == again and _left(name, whole) == _left(name, killed)
        same = same and alike
        console.print(f'{name}: run {number} ended {"the same" if alike else "ANOTHER WAY"}')
        if hits == kills:
            break
    console.print(f'{name}: {hits} kills in {number} runs, {"all the same" if same else "BROKEN"}')
    return same


def _run(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _adapt(assets: Path, folder: Path) -> Sequence[str]:
    """The command, with everything that has no option in a file beside the run."""
    asked = settings(assets, folder, margin=-0.9)
    folder.mkdir(parents=True, exist_ok=True)
    further = asked.model_dump(mode='json', exclude=set(_OPTIONS))
    (folder / 'further.yaml').write_text(yaml.safe_dump(further))
    return [
        *(sys.executable, '-m', 'stereo_kd_training.main', 'adapt', *asked.bags),
        *('--teacher', asked.teachers[0], '-o', asked.out, '--student', asked.student),
        *('--steps', str(asked.steps), '--margin', str(asked.margin), '--threads', '1'),
        *('-c', str(folder / 'further.yaml')),
    ]


def _evaluate(assets: Path, folder: Path) -> Sequence[str]:
    return [
        *(sys.executable, '-m', 'stereo_kd_ros.commands.main', 'evaluate', str(assets / 'drive')),
        *('-o', str(folder), '--model', str(assets / 'blocks.onnx'), '--provider', 'cpu'),
    ]


def _place(folder: Path) -> str:
    """How far a killed run had come."""
    run = folder / 'robot.adapt'
    if run.is_dir():
        return (
            'look'
            if not (done := sorted(run.glob('*/done.json'), key=os.path.getmtime))
            else (f'the stage after {done[-1].parent.name}')
        )
    lines = list(folder.glob('*.jsonl'))
    return (
        f'pair {sum(len(path.read_text().splitlines()) for path in lines)}'
        if lines
        else 'its start'
    )


def _left(name: str, folder: Path) -> Any:
    """All that a run leaves and that must not depend on how often it was killed."""
    if name == 'evaluate':
        return _timeless(json.loads((folder / 'report.json').read_text()))
    run = folder / 'robot.adapt'
    weights = {
        key: value.tolist()
        for key, value in load_network(run / 'distil' / 'checkpoint.pt').state_dict().items()
    }
    return _timeless(json.loads((run / 'report.json').read_text())), weights


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        if value.get('name') == 'latency':
            return 'latency'
        return {key: _timeless(inner) for key, inner in value.items() if key not in TIMES}
    if isinstance(value, list):
        # What fell short may be the time that a busy machine took.
        return [_timeless(inner) for inner in value if inner != 'latency']
    return value


if __name__ == '__main__':
    sys.exit(main())
