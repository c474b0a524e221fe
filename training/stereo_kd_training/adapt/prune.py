# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Prune the adapted student until it is as fast as it must be, with training in between.

ratio.json          share of channels that must go, measured once; 0 when it is fast enough
step_K/start.pt     pruned, before it is trained
step_K/             a training run, see `train`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stereo_kd_training import prune as pruning
from stereo_kd_training.adapt.distil import train_stage
from stereo_kd_training.adapt.look import MOST_PRUNED
from stereo_kd_training.adapt.settings import RunFolder, write_json
from stereo_kd_training.train import load_network

# The tuning takes this share of the distillation's steps, all prunings together, at so many times
# its rate: what is left of a pruned network has to learn anew.
TUNING_SHARE, RATE_SHARE = 0.5, 1.5
# A measurement that is met by a hair is missed the next time.
HEADROOM = 0.95


def prune(run: RunFolder) -> dict[str, Any]:
    """Prune and tune to the latency that was asked for; nothing where it is met already.

    Raises:
        PruneError: it is out of reach.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint.
    """
    settings, folder = run.settings, run.stage('prune')
    source = run.folder / run.facts('distil')['checkpoint']
    ratio = _ratio(run, folder / 'ratio.json', source)
    if ratio == 0.0:
        run.say('prune', 'nothing to prune: the student is fast enough')
        return {'ratio': 0.0, 'steps': [], 'checkpoint': run.facts('distil')['checkpoint']}
    run.say('prune', f'{ratio:.0%} of the channels go, in {settings.prune_steps} steps')
    each = max(1, round(TUNING_SHARE * run.facts('distil')['steps'] / settings.prune_steps))
    steps = []
    for step in range(settings.prune_steps):
        here = folder / f'step_{step}'
        start = here / 'start.pt'
        share = ratio * (step + 1) / settings.prune_steps
        if run.is_main and not start.is_file():
            network = load_network(source)
            pruning.prune_to_ratio(network, share, round_to=settings.round_to)
            pruning.save_network(network, start)
        run.wait_for(start)
        network = load_network(start)
        facts = train_stage(
            run,
            'prune',
            here,
            network,
            each,
            rate_share=RATE_SHARE,
            offset=step * each,
            total=each * settings.prune_steps,
        )
        source = here / 'checkpoint.pt'
        steps.append({'ratio': share, 'parameters': network.parameter_count(), **facts})
    return {'ratio': ratio, 'steps': steps, 'checkpoint': str(source.relative_to(run.folder))}


def _ratio(run: RunFolder, path: Path, source: Path) -> float:
    """The share of channels that must go, measured on this machine, once per run."""
    if run.is_main and not path.is_file():
        settings, look = run.settings, run.facts('look')
        ratio = 0.0
        if settings.latency_ms is not None and look['student_ms'] > settings.latency_ms:
            camera = look['camera']
            run.progress('prune', 0, 1, f'looking for {settings.latency_ms:g} ms')
            ratio = pruning.find_ratio(
                load_network(source),
                'latency_ms',
                HEADROOM * settings.latency_ms / look['latency_scale'],
                round_to=settings.round_to,
                largest=MOST_PRUNED,
                tolerance=0.03,
                measure=lambda candidate: pruning.measure_latency_ms(
                    candidate, camera['height'], camera['width'], settings.latency_threads
                ),
            )
        write_json(path, {'ratio': ratio, 'latency_ms': settings.latency_ms})
    run.wait_for(path)
    return float(json.loads(path.read_text())['ratio'])
