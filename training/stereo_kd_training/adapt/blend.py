# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How far to go from the shipped student to the one that has learnt this camera.

Weights in between the two are a network too, as long as training stayed near and its batch norms
were kept. On the way back, what was forgotten elsewhere is regained sooner than what was gained
here is lost (Wortsman et al., Robust fine-tuning of zero-shot models, CVPR 2022). So the student
goes as far as procedural scenes allow, and no farther: scenes that neither training nor the gate
see. Nor farther than the mirrored pairs of the bag allow: where no label is, as in a sky, nothing
holds the answer, and the two eyes' answers drift apart.

    between/measured.json   figures of each share of the way, kept as they come
    between/mirror.json     how far the two eyes' answers are apart there
    between/checkpoint.pt   the student there; none where it is the trained one
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stereo_kd_ros.metrics import disparity_metrics, fill_holes_row_background
from stereo_kd_ros.scores import left_right_percent
from stereo_kd_training import prune as pruning
from stereo_kd_training.adapt.checks import WORSE_BY, Check, figures_of, procedural_checks
from stereo_kd_training.adapt.settings import RunFolder, write_json
from stereo_kd_training.datasets.base import read_rgb
from stereo_kd_training.datasets.procedural import PairPool
from stereo_kd_training.networks import StereoNetwork
from stereo_kd_training.train import between, load_network, predict

# From the trained student back; half way is near enough to the shipped one.
SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
# Of the gate's tolerance: these scenes are others than the gate's.
ROOM = 0.8
# The mirror is tried on pairs that were learnt, which drift less than those the gate sees.
MIRROR_ROOM = 0.5
MIRRORED_PAIRS = 6


def blend(run: RunFolder, start: Path, trained: Path) -> dict[str, Any]:
    """Go as far from `start` to `trained` as procedural scenes allow.

    Args:
        run: whose pool `watched` tells.
        start, trained: checkpoints of one network.

    Returns:
        `checkpoint` of the student, relative to the run; `share` of the way; and `watched`, the
        procedural checks and the mirror's there.
    """
    folder = run.stage('distil') / 'between'
    path = folder / 'measured.json'
    measured: dict[str, list[Any]] = json.loads(path.read_text()) if path.is_file() else {}
    networks = load_network(start), load_network(trained)
    tolerance = ROOM * run.settings.tolerance

    def figures(share: float) -> list[Any]:
        if str(share) not in measured:
            run.progress('distil', 1, 1, f'{share:.0%} of the way: procedural scenes')
            measured[str(share)] = _errors(between(*networks, share), run)
            write_json(path, measured)
        return measured[str(share)]

    apart_path = folder / 'mirror.json'
    apart: dict[str, float] = json.loads(apart_path.read_text()) if apart_path.is_file() else {}

    def mirror(share: float) -> float:
        if str(share) not in apart:
            run.progress('distil', 1, 1, f'{share:.0%} of the way: mirrored pairs')
            apart[str(share)] = _apart(between(*networks, share), run)
            write_json(apart_path, apart)
        return apart[str(share)]

    before = figures(0.0)
    for share in SHARES:
        after = figures(share)
        records = [
            {'before': {'truth': old}, 'after': {'truth': new}}
            for old, new in zip(before, after, strict=True)
        ]
        limit = mirror(0.0) + MIRROR_ROOM * WORSE_BY
        checks = [
            *procedural_checks(records, tolerance),
            Check('mirror', mirror(share), limit, '%', mirror(0.0)),
        ]
        if all(check.passed for check in checks):
            break
    chosen = trained
    if share < 1:
        chosen = folder / 'checkpoint.pt'
        pruning.save_network(between(*networks, share), chosen)
    run.say(
        'distil',
        f'{share:.0%} of the way from the shipped student: ' + '; '.join(map(str, checks)),
    )
    return {
        'checkpoint': str(chosen.relative_to(run.folder)),
        'share': share,
        'watched': [check.to_dict() for check in checks],
    }


def _apart(network: StereoNetwork, run: RunFolder) -> float:
    """% of pixels whose answer in the mirrored pair is another, over some pairs of the bag."""
    network = network.to('cuda' if torch.cuda.is_available() else 'cpu')
    chosen = run.facts('select')
    names = [*chosen['validation'], *chosen['train']]
    pairs = run.stage('select') / 'pairs'
    figures = []
    for name in names[:: -(-len(names) // MIRRORED_PAIRS)]:
        eyes = [read_rgb(pairs / eye / f'{name}.png') for eye in ('left', 'right')]
        left, right = (np.ascontiguousarray(eye[:, ::-1]) for eye in eyes)
        mirrored = predict(network, right, left)[:, ::-1]
        figures.append(left_right_percent(predict(network, *eyes), mirrored))
    known = [figure for figure in figures if math.isfinite(figure)]
    # Where no answer has a partner there is nothing that could drift apart.
    return float(np.mean(known)) if known else 0.0


def _errors(network: StereoNetwork, run: RunFolder) -> list[dict[str, float] | None]:
    """Figures on each scene that is watched."""
    network = network.to('cuda' if torch.cuda.is_available() else 'cpu')
    return [
        figures_of(
            disparity_metrics(
                fill_holes_row_background(predict(network, pair.left, pair.right)),
                pair.disparity,
                256.0,
            )
        )
        for pair in PairPool(run.stage('render') / 'watched')
    ]
