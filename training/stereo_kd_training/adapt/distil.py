# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Train the student on the bag's labels and on procedural truth.

The labels carry the teacher's knowledge and nothing else, or ground truth where there is some;
they are learnt with the loss that the shipped students learnt with, so that every output of the
network goes on being trained, its confidence too. Where the teacher is not to be believed, as in a
sky, the student is reminded of what it said itself: what nobody asks for drifts (learning without
forgetting, Li and Hoiem 2016); in a part of the crops only, for its errors are learnt as well.

    plan.json      how many steps: asked for, or what fits into the minutes; decided once
    start.pt       the student as it was
    remembered/    what it said, where it was sure; in the format of the labels
    a training run, see `train`
    between/       how far to go from the one to the other, see `blend`
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.disparity_io import write_kitti_png
from stereo_kd_ros.evaluation import ModelMatcher
from stereo_kd_training import prune as pruning
from stereo_kd_training.adapt.blend import blend
from stereo_kd_training.adapt.label import MOST_PX, read_label
from stereo_kd_training.adapt.look import PictureStatistics, crop_size
from stereo_kd_training.adapt.render import CAMERA_SHARE, CameraPairs
from stereo_kd_training.adapt.settings import AdaptSettings, RunFolder, write_json
from stereo_kd_training.adapt.student import find_student
from stereo_kd_training.datasets.augment import Augmentation
from stereo_kd_training.datasets.base import read_rgb
from stereo_kd_training.datasets.procedural import PairPool
from stereo_kd_training.networks import StereoNetwork
from stereo_kd_training.stages import Interrupted
from stereo_kd_training.train import Trainer, TrainingConfig, load_network

# How often a pair of the bags is shown, in another crop each time, where no steps are asked for.
CROPS_PER_PAIR = 240
MOST_STEPS = 3000
# What the student was less sure of than this it need not remember.
REMEMBERED_CONFIDENCE = 0.5
# Decoding a picture takes as long as training on a part of it.
_REMEMBERED_BYTES = 1_000_000_000


@dataclass(frozen=True)
class LabelledPair:
    """left, right (H, W, 3) uint8 RGB; disparity (H, W) float32 px, NaN where unknown."""

    name: str
    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray


class BagPairs(Sequence[LabelledPair]):
    """Pairs of one part of the bags with their labels.

    Args:
        folder: of the adaptation.
        names: of the pairs.
        remembered: folder of answers that take the place of labels where there are none.
    """

    def __init__(self, folder: Path, names: Sequence[str], remembered: Path | None = None) -> None:
        self.folder, self.names, self.remembered = folder, list(names), remembered
        self._read: Any = self._from_disk
        if self.names:
            pair = self._from_disk(self.names[0])
            size = pair.left.nbytes + pair.right.nbytes + pair.disparity.nbytes
            self._read = functools.lru_cache(max(1, _REMEMBERED_BYTES // size))(self._from_disk)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> LabelledPair:  # type: ignore[override]
        return self._read(self.names[index])

    def _from_disk(self, name: str) -> LabelledPair:
        pairs = self.folder / 'select' / 'pairs'
        left, right = (read_rgb(pairs / eye / f'{name}.png') for eye in ('left', 'right'))
        label = read_label(self.folder / 'label' / 'labels' / f'{name}.png')
        if self.remembered is not None:
            said = read_label(self.remembered / f'{name}.png')
            label = np.where(np.isfinite(label), label, said)
        return LabelledPair(name, left, right, label)


class MixedPairs(Sequence[Any]):
    """Sources that come up in given shares, however long each of them is.

    An index stands for a source first and for one of its pairs then, so that a trainer that
    draws indices evenly draws sources by their shares.
    """

    def __init__(self, sources: Sequence[Sequence[Any]], shares: Sequence[float]) -> None:
        self._sources = [(source, share) for source, share in zip(sources, shares) if share > 0]
        longest = max(len(source) / share for source, share in self._sources)
        self._ends: list[int] = []
        for _, share in self._sources:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + max(1, round(longest * share)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = next(number for number, end in enumerate(self._ends) if index < end)
        first = self._ends[place - 1] if place else 0
        source = self._sources[place][0]
        return source[(index - first) % len(source)]


def distil(run: RunFolder) -> dict[str, Any]:
    """Train, or go on training.

    Raises:
        Interrupted: after SIGINT or SIGTERM, with a checkpoint.
        TrainingError: the loss diverged.
    """
    folder = run.stage('distil')
    start, plan = folder / 'start.pt', folder / 'plan.json'
    if run.is_main and not start.is_file():
        pruning.save_network(find_student(run.settings.student).network(), start)
    if run.is_main and not plan.is_file():
        write_json(plan, {'steps': _planned(run)})
    if run.is_main:
        remember(run)
    for path in (start, plan, _remembered(run) / 'done.json'):
        run.wait_for(path)
    steps = json.loads(plan.read_text())['steps']
    run.say('distil', f'{steps} steps of {run.settings.batch_size} crops')
    facts = train_stage(run, 'distil', folder, load_network(start), steps)
    if run.is_main:
        facts |= blend(run, start, run.folder / facts['checkpoint'])
    return facts


def _remembered(run: RunFolder) -> Path:
    return run.stage('distil') / 'remembered'


def remember(run: RunFolder) -> None:
    """Write what the shipped student says of the pairs that it will learn from, once."""
    folder = _remembered(run)
    if (folder / 'done.json').is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    student = ModelMatcher(find_student(run.settings.student).onnx(run.stage('look')), 'cpu')
    names = run.facts('select')['train']
    shares = []
    for done, name in enumerate(names):
        run.progress('distil', done, len(names), f'what {student.name} says so far')
        pairs = run.stage('select') / 'pairs'
        left, right = (read_rgb(pairs / eye / f'{name}.png') for eye in ('left', 'right'))
        answer = student.match(left, right)
        sure = (answer.dense >= 0) & (answer.dense < MOST_PX)
        if answer.confidence is not None:
            sure &= answer.confidence >= REMEMBERED_CONFIDENCE
        # Zero is the mark of the unknown in the files.
        said = np.where(sure, np.maximum(answer.dense, 1 / 256), np.nan)
        write_kitti_png(folder / f'{name}.png', said)
        known = np.isfinite(read_label(run.stage('label') / 'labels' / f'{name}.png'))
        shares.append(float((sure & ~known).mean()))
    share = round(float(np.mean(shares)), 4)
    run.say(
        'distil',
        f'{share:.0%} of the pixels, without a label, are learnt as the student sees them',
    )
    write_json(folder / 'done.json', {'share': share})


def _planned(run: RunFolder) -> int:
    learnt = len(run.facts('select')['train'])
    return planned_steps(run.settings, run.facts('look'), learnt)


def planned_steps(settings: AdaptSettings, facts: dict[str, Any], pairs: int) -> int:
    """Steps that were asked for, that fit into the minutes that were, or that the pairs are worth.

    Args:
        settings: of the adaptation.
        facts: of its look at the bags.
        pairs: of the bags, to learn from.
    """
    if settings.minutes is not None:
        return max(1, round(60 * settings.minutes / facts['step_seconds']))
    if settings.steps is not None:
        return settings.steps
    crops = CROPS_PER_PAIR * pairs / settings.bag_share
    return min(MOST_STEPS, math.ceil(crops / settings.batch_size))


def train_stage(
    run: RunFolder,
    stage: str,
    folder: Path,
    network: StereoNetwork,
    steps: int,
    *,
    rate_share: float = 1.0,
    offset: int = 0,
    total: int | None = None,
) -> dict[str, Any]:
    """One training run of a stage; `offset` of `total` steps are behind it.

    Raises:
        Interrupted: after SIGINT or SIGTERM, with a checkpoint.
    """
    config = training_config(run, network, steps, rate_share)
    # A pruned network's statistics are those of channels that are gone.
    config.frozen_statistics = stage == 'distil'
    trainer = Trainer(
        config,
        folder,
        training_pairs(run),
        BagPairs(run.folder, run.facts('select')['validation']),
        network=network,
        progress=lambda step, text: run.progress(stage, offset + step, total or steps, text),
    )
    metrics = trainer.run()
    if trainer.step < steps:
        raise Interrupted(
            f'{stage} stopped at step {trainer.step} of {steps}; run the same command to go on'
        )
    return {
        'checkpoint': str((folder / 'checkpoint.pt').relative_to(run.folder)),
        'steps': steps,
        'training_seconds': round(trainer.seconds, 1),
        'validation': metrics,
    }


def training_config(
    run: RunFolder, network: StereoNetwork, steps: int, rate_share: float
) -> TrainingConfig:
    """How a student of this adaptation trains."""
    settings = run.settings
    camera = StereoCamera(**run.facts('look')['camera'])
    height, width = crop_size(camera, settings, network.strides)
    tenth = max(1, steps // 10)
    return TrainingConfig(
        network=network.configuration['name'],
        options={},
        steps=steps,
        batch_size=settings.batch_size,
        crop_height=height,
        crop_width=width,
        peak_learning_rate=settings.learning_rate * rate_share,
        precision=settings.precision,
        # What is mirrored is a stereo pair too, of another drive.
        augmentation=Augmentation(mirror_probability=0.5),
        # A short run: the average reaches over a tenth of it.
        ema_decay=1 - 1 / max(tenth, 10),
        seed=settings.seed,
        log_every=max(1, min(20, tenth)),
        validate_every=tenth,
        validation_pairs=12,
        checkpoint_every=min(50, tenth),
    )


def training_pairs(run: RunFolder) -> MixedPairs:
    """Bag pairs with labels, and procedural ones of this camera and of any."""
    look = run.facts('look')
    statistics = PictureStatistics(**look['statistics'])
    share = run.settings.bag_share
    camera_share = CAMERA_SHARE * (1 - share)
    camera = look['camera']
    pools = [
        CameraPairs(
            PairPool(run.stage('render') / name),
            statistics,
            camera['width'],
            camera['height'],
            run.settings.seed,
        )
        for name in ('camera', 'general')
    ]
    return MixedPairs([learnt_pairs(run), *pools], [share, camera_share, 1 - share - camera_share])


def learnt_pairs(run: RunFolder) -> MixedPairs:
    """Pairs of the bags; in `reminders` of them the student fills in what has no label."""
    names, reminders = run.facts('select')['train'], run.settings.reminders
    return MixedPairs(
        [BagPairs(run.folder, names, _remembered(run)), BagPairs(run.folder, names)],
        [reminders, 1 - reminders],
    )
