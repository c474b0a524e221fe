# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Prune the adapted student until it is as fast as it must be, with training in between.

What goes is chosen on crops of what it learns from, each removal measured (`measured_pruning`).

ratio.json          share of the operations that must go, measured once; 0 when it is fast enough
step_K/start.pt     pruned, before it is trained; the first is found with the ratio
step_K/             a training run, see `train`
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stereo_kd_ros.camera import StereoCamera
from stereo_kd_training import prune as pruning
from stereo_kd_training.adapt.distil import train_stage, training_pairs
from stereo_kd_training.adapt.look import crop_size
from stereo_kd_training.adapt.settings import RunFolder, write_json
from stereo_kd_training.measured_pruning import Removal, prune_on_pairs, prune_until
from stereo_kd_training.networks import StereoNetwork
from stereo_kd_training.prune import PruneError
from stereo_kd_training.train import load_network

# The tuning takes this share of the distillation's steps, all prunings together, at so many times
# its rate: what is left of a pruned network has to learn anew.
TUNING_SHARE, RATE_SHARE = 0.5, 1.5
# A measurement that is met by a hair is missed the next time.
HEADROOM = 0.95
# Between two measurements of the time go this share of the operations, or more.
CLOCKED_SHARE = 0.02


def prune(run: RunFolder) -> dict[str, Any]:
    """Prune and tune to the latency that was asked for; nothing where it is met already.

    Raises:
        PruneError: it is out of reach.
        Interrupted: after SIGINT or SIGTERM, with a checkpoint.
    """
    settings, folder = run.settings, run.stage('prune')
    source = run.folder / run.facts('distil')['checkpoint']
    ratio = _ratio(run, folder, source)
    if ratio == 0.0:
        run.say('prune', 'nothing to prune: the student is fast enough')
        return {'ratio': 0.0, 'steps': [], 'checkpoint': run.facts('distil')['checkpoint']}
    run.say('prune', f'{ratio:.0%} of the operations go, in {settings.prune_steps} steps')
    each = max(1, round(TUNING_SHARE * run.facts('distil')['steps'] / settings.prune_steps))
    whole = _macs(run, load_network(source))
    steps = []
    for step in range(settings.prune_steps):
        here = folder / f'step_{step}'
        start = here / 'start.pt'
        share = ratio * (step + 1) / settings.prune_steps
        if run.is_main and not start.is_file():
            network = _pruned(run, load_network(source), round((1 - share) * whole))
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


def _ratio(run: RunFolder, folder: Path, source: Path) -> float:
    """The share of operations that must go, found by this machine's clock, once per run.

    What the first step starts from is among what is tried for it, and kept.
    """
    path = folder / 'ratio.json'
    if run.is_main and not path.is_file():
        settings, ratio = run.settings, 0.0
        if (
            settings.latency_ms is not None
            and run.facts('look')['student_ms'] > settings.latency_ms
        ):
            network = load_network(source)
            removals = _until_fast(run, network)
            if removals:
                whole = _macs(run, network)
                ratio = 1 - removals[-1].macs / whole
                most = round((1 - ratio / settings.prune_steps) * whole)
                first = next(removal for removal in removals if removal.macs <= most)
                pruning.save_network(first.network, folder / 'step_0' / 'start.pt')
        write_json(path, {'ratio': ratio, 'latency_ms': settings.latency_ms})
    run.wait_for(path)
    return float(json.loads(path.read_text())['ratio'])


def _until_fast(run: RunFolder, network: StereoNetwork) -> list[Removal]:
    """Removals up to the one after which the network is as fast as was asked for.

    Raises:
        PruneError: it is out of reach.
    """
    made: list[Removal] = []
    clock = _Clock(run)

    def kept() -> Iterator[Removal]:
        for removal in _removals(run, network):
            made.append(removal)
            yield removal

    try:
        prune_until(network, kept(), clock)
    except PruneError:
        # The last of them may lie between two measurements.
        if not made or not clock.is_met_by(made[-1].network, made[-1].macs):
            raise
    return made


def _pruned(run: RunFolder, network: StereoNetwork, macs: float) -> StereoNetwork:
    """With so many operations left, or fewer."""
    return prune_until(network, _removals(run, network), lambda found: _macs(run, found) <= macs)


def _removals(run: RunFolder, network: StereoNetwork) -> Iterator[Removal]:
    """Of ever more channels, those first that are missed least where the student learns."""
    settings, camera = run.settings, run.facts('look')['camera']
    for removal in prune_on_pairs(
        network,
        training_pairs(run),
        crops=settings.prune_crops,
        crop=crop_size(StereoCamera(**camera), settings, network.strides),
        seed=settings.seed,
        block=settings.round_to,
        size=(camera['height'], camera['width']),
        progress=lambda tried, groups: run.progress('trials', tried, groups, ''),
    ):
        run.progress('trials', 1, 1, f'{removal.share:.0%} of the operations are left')
        yield removal


def _macs(run: RunFolder, network: StereoNetwork) -> int:
    camera = run.facts('look')['camera']
    return pruning.count_macs(network, camera['height'], camera['width'])


class _Clock:
    """Whether a network is as fast as was asked for; of ever smaller ones it measures a few."""

    def __init__(self, run: RunFolder) -> None:
        self._run = run
        look = run.facts('look')
        wanted_ms = HEADROOM * run.settings.latency_ms - look.get('second_ms', 0.0)
        self._wanted_ms = wanted_ms / look['latency_scale']
        self._most_macs = math.inf

    def __call__(self, network: StereoNetwork) -> bool:
        macs = _macs(self._run, network)
        return macs <= self._most_macs and self.is_met_by(network, macs)

    def is_met_by(self, network: StereoNetwork, macs: int) -> bool:
        """Measured now."""
        run, wanted_ms = self._run, self._wanted_ms
        camera = run.facts('look')['camera']
        took_ms = pruning.measure_latency_ms(
            network, camera['height'], camera['width'], run.settings.latency_threads
        )
        run.progress('prune', 0, 1, f'{macs / 1e9:.3f} GMAC: {took_ms:.1f} of {wanted_ms:.1f} ms')
        self._most_macs = macs * min(1 - CLOCKED_SHARE, math.sqrt(wanted_ms / took_ms))
        return took_ms <= wanted_ms
