# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Procedural pairs for this camera, so that a student learns its own robot and forgets nothing.

    camera/       as near as this camera sees: disparities up to what f * B and the scene give
    general/      the whole range of the student
    validation/   the same, never learnt from: what must not get worse
    watched/      neither, and not the gate's: how far the student may go, see `blend`

All are of the kinds of scenes that the student was made with, as its manifest says.

`CameraPairs` then lets half of the pairs look as this camera's do: grey where it is, with its
noise, its difference of exposure and its error of rectification.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stereo_kd_ros.procedural import StereoSample
from stereo_kd_training.adapt.look import PictureStatistics
from stereo_kd_training.adapt.settings import AdaptSettings, RunFolder
from stereo_kd_training.adapt.student import Student, find_student
from stereo_kd_training.datasets.procedural import PairPool, PoolManifest, generate_pool

POOLS = ('camera', 'general', 'validation', 'watched')
# Of the procedural pairs; with more a student unlearns what is nearer than this camera sees.
CAMERA_SHARE = 0.25
# Pairs that are lost when a rendering is killed.
PAIRS_PER_SHARD = 12
# Far from the seeds that published students were trained with, so that none of them knows these.
FIRST_SEED = 770_000_000
# Rendered scenes have noise of their own; more is added to reach the camera's.
MOST_NOISE = 12.0


def render(run: RunFolder) -> dict[str, Any]:
    """Render all pools, or go on with them."""
    settings, facts = run.settings, run.facts('look')
    sizes = _sizes(settings)
    total, done = sum(sizes.values()), 0
    folder = run.stage('render')
    whole = facts['student']['max_disparity_px']
    scenes = kinds_of_scenes(find_student(settings.student))
    for number, name in enumerate(POOLS):
        reach = facts['disparity']['max_px'] if name == 'camera' else whole
        pairs = 0
        while pairs < sizes[name]:
            pairs = min(pairs + PAIRS_PER_SHARD, sizes[name])
            generate_pool(
                folder / name,
                pairs,
                height=settings.procedural_height,
                width=settings.procedural_width,
                seed=FIRST_SEED + 10 * settings.seed + number,
                max_disparity_px=reach,
                progress=False,
                pairs_per_shard=PAIRS_PER_SHARD,
                scenes=scenes,
            )
            run.progress('render', done + pairs, total, name)
        done += sizes[name]
    run.say('render', f'{total} procedural pairs, {sizes["camera"]} of them of this camera')
    return {'pairs': sizes}


def _sizes(settings: AdaptSettings) -> dict[str, int]:
    camera = round(CAMERA_SHARE * settings.procedural_pairs)
    return {
        'camera': camera,
        'general': settings.procedural_pairs - camera,
        'validation': settings.procedural_validation,
        'watched': settings.procedural_watched,
    }


def kinds_of_scenes(student: Student) -> str:
    """What the student's scenes were, as `generate_pool` calls them; layered where it is not said.

    What it is not reminded of it forgets, and what is not measured is forgotten unseen.
    """
    made = {kind for source in student.training_data for kind in source.get('scenes') or ()}
    return 'mixed' if {'layered', 'rooms'} <= made else 'rooms' if 'rooms' in made else 'layered'


def manifests(folder: Path) -> list[PoolManifest]:
    """Of the pools that are learnt from."""
    return [PoolManifest.read(folder / name) for name in ('camera', 'general')]


class CameraPairs(Sequence[StereoSample]):
    """A pool of which every second pair looks as if this camera had taken it.

    What a pair looks like is a function of the seed and its index alone.
    """

    def __init__(
        self, pool: PairPool, statistics: PictureStatistics, width: int, height: int, seed: int = 0
    ) -> None:
        self.pool, self.statistics, self.seed = pool, statistics, seed
        # Tilt and stretch count from the middle of the camera's picture, which is larger.
        self._reach = (width / 2, height / 2)

    def __len__(self) -> int:
        return len(self.pool)

    def __getitem__(self, index: int) -> StereoSample:  # type: ignore[override]
        sample = self.pool[index]
        if index % 2:
            return sample
        rng = np.random.default_rng((self.seed, index))
        look = self.statistics
        left, right = sample.left, self._misaligned(sample.right, rng)
        if look.monochrome:
            left, right = (cv2.cvtColor(eye, cv2.COLOR_RGB2GRAY) for eye in (left, right))
        share = np.float32(rng.uniform(0, 1.5))
        gain = 1 + share * np.float32(look.gain - 1)
        right = _rounded(right.astype(np.float32) * gain + share * np.float32(look.offset))
        sigma = min(look.noise, MOST_NOISE) * float(rng.uniform(0, 1.5))
        left, right = (_noisy(eye, sigma, rng) for eye in (left, right))
        if look.monochrome:
            left, right = (cv2.cvtColor(eye, cv2.COLOR_GRAY2RGB) for eye in (left, right))
        return replace(sample, left=left, right=right)

    def _misaligned(self, right: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The right picture with a window of the camera's own row error."""
        look = self.statistics
        x, y = (rng.uniform(-reach, reach) for reach in self._reach)
        offset = look.row_offset + look.row_tilt * x + look.row_stretch * y
        offset += float(rng.normal(0, look.row_scatter))
        height, width = right.shape[:2]
        # A row error is y_left - y_right, so the right picture moves up by it.
        matrix = np.float32([[1, 0, 0], [-look.row_tilt, 1 - look.row_stretch, -offset]])
        matrix[1, 2] += look.row_tilt * width / 2 + look.row_stretch * height / 2
        return cv2.warpAffine(
            right, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )


def _noisy(image: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(sigma)
    return _rounded(image + noise)


def _rounded(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)
