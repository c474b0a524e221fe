# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The teacher's answers, and which of their pixels to believe.

A pixel becomes a label when all of these hold; ground truth, where it is known, takes its place:

    left-right     the answer to the mirrored pair finds its way back to within 1 px or 5 %
    edge           no jump of the disparity next to it, where even good teachers smear
    photometric    the right picture shows there what the left one does
    ambiguous      and would not do so as well at infinity: a teacher gives an empty sky any depth
    confidence     the teacher gives it at least a third
    other teachers agree to within 1 px or 5 %

    answers/       of the teachers, as `TeacherCache` keeps them
    labels/NAME.png    16 bit, 1/256 px, 0 unknown
    pictures/      left, teacher, label, of the best and worst covered pairs
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stereo_kd_ros.disparity_io import read_kitti_png, write_kitti_png
from stereo_kd_ros.metrics import disparity_edges
from stereo_kd_ros.pair_measures import to_grey
from stereo_kd_ros.visualize import colorize_disparity, picture_strip
from stereo_kd_training.adapt.select import PARTS
from stereo_kd_training.adapt.settings import AdaptError, RunFolder
from stereo_kd_training.adapt.teachers import open_teacher
from stereo_kd_training.datasets.base import read_rgb
from stereo_kd_training.datasets.robot_bag import write_once
from stereo_kd_training.teacher_cache import TeacherCache
from stereo_kd_training.teachers import Prediction, consistency

LIMIT_PX, LIMIT_SHARE = 1.0, 0.05
EDGE_STEP_PX, EDGE_RADIUS_PX = 2.0, 1
PHOTOMETRIC_LEVELS = 20.0
# Side of the window in which two disparities are compared, how much better the nearer one must
# fit, and from where on the two differ at all.
AMBIGUOUS_WINDOW_PX, AMBIGUOUS_LEVELS, AMBIGUOUS_FROM_PX = 11, 0.5, 3.0
CONFIDENCE = 1 / 3
# The 16-bit files reach no farther.
MOST_PX = 255.0
FILTERS = ('left_right', 'edge', 'photometric', 'ambiguous', 'confidence', 'disagreement')
LEAST_COVERAGE = 0.1
PICTURES = 3


@dataclass(frozen=True)
class Label:
    """What is learnt from one pair.

    Attributes:
        disparity: (H, W) float32 px, NaN where nothing is to be believed.
        rejected: share of the answered pixels that each filter would refuse by itself.
    """

    disparity: np.ndarray
    rejected: dict[str, float]


def label(run: RunFolder) -> dict[str, Any]:
    """Ask the teachers about every chosen pair and keep what is to be believed.

    Raises:
        AdaptError: next to nothing of their answers is.
    """
    settings, folder = run.settings, run.stage('label')
    pairs = run.stage('select') / 'pairs'
    chosen = run.facts('select')
    names = [name for part in PARTS for name in chosen[part]]
    threads = settings.latency_threads or None
    caches = [
        TeacherCache(
            folder / 'answers', open_teacher(text, settings.teacher_licence, threads).teacher
        )
        for text in settings.teachers
    ]
    (folder / 'labels').mkdir(parents=True, exist_ok=True)
    coverage: dict[str, float] = {}
    rejected: dict[str, list[float]] = {key: [] for key in FILTERS}
    with_truth = 0
    for done, name in enumerate(names):
        run.progress('label', done, len(names), name)
        left, right = (read_rgb(pairs / eye / f'{name}.png') for eye in ('left', 'right'))
        answers = [cache.predict(left, right, name) for cache in caches]
        mirrored = caches[0].predict(
            np.ascontiguousarray(right[:, ::-1]),
            np.ascontiguousarray(left[:, ::-1]),
            f'{name}.mirrored',
        )
        made = trusted(left, right, answers, mirrored.disparity[:, ::-1])
        disparity = made.disparity
        truth = pairs / 'truth' / f'{name}.png'
        if truth.is_file():
            known = read_kitti_png(truth)
            known = np.where(known > 0, known, np.nan)
            disparity = np.where(np.isfinite(known), known, disparity)
            with_truth += 1
        write_kitti_png(folder / 'labels' / f'{name}.png', disparity)
        coverage[name] = round(float(np.isfinite(disparity).mean()), 4)
        for key, share in made.rejected.items():
            rejected[key].append(share)
    run.progress('label', len(names), len(names), '')
    mean = float(np.mean(list(coverage.values())))
    shares = {key: round(float(np.mean(values)), 4) for key, values in rejected.items()}
    described = ', '.join(f'{key.replace("_", "-")} {share:.0%}' for key, share in shares.items())
    run.say('label', f'{mean:.0%} of the pixels have a label; refused by: {described}')
    if mean < LEAST_COVERAGE:
        raise AdaptError(
            f'only {mean:.1%} of the pixels of the teacher can be believed (refused by: '
            f'{described}): it does not work on these pictures; try another --teacher'
        )
    drawn = _pictures(run, caches[0], coverage)
    return {
        'pairs': len(names),
        'pairs_with_truth': with_truth,
        'coverage': round(mean, 4),
        'coverage_by_pair': coverage,
        'rejected': shares,
        'pictures': drawn,
    }


def trusted(
    left: np.ndarray,
    right: np.ndarray,
    answers: list[Prediction],
    disparity_right: np.ndarray,
) -> Label:
    """Which pixels of the first answer to believe.

    Args:
        left, right: (H, W, 3) uint8 RGB.
        answers: of every teacher.
        disparity_right: (H, W) px of the right view, by the first teacher.
    """
    disparity = answers[0].disparity
    answered = np.isfinite(disparity) & (disparity < MOST_PX)
    limit = np.maximum(LIMIT_PX, LIMIT_SHARE * np.nan_to_num(disparity))
    here = _differences(left, right, disparity)
    refused = {
        # exp(-difference / tolerance) is 1/e where the difference is what is allowed.
        'left_right': consistency(disparity, disparity_right, 1.0) < np.exp(-limit),
        'edge': disparity_edges(disparity, EDGE_STEP_PX, EDGE_RADIUS_PX),
        'photometric': here > PHOTOMETRIC_LEVELS,
        'ambiguous': _fits_at_infinity(left, right, disparity, here),
        'confidence': answers[0].confidence < CONFIDENCE,
        'disagreement': np.zeros_like(answered),
    }
    for other in answers[1:]:
        with np.errstate(invalid='ignore'):
            refused['disagreement'] |= np.abs(other.disparity - disparity) > limit
    believed = answered & ~np.logical_or.reduce(list(refused.values()))
    # Zero is the mark of the unknown in the files, and the sky is at zero.
    kept = np.where(believed, np.maximum(disparity, 1 / 256), np.nan).astype(np.float32)
    total = max(int(answered.sum()), 1)
    shares = {key: float((mask & answered).sum() / total) for key, mask in refused.items()}
    return Label(kept, shares)


def _differences(left: np.ndarray, right: np.ndarray, disparity: np.ndarray) -> np.ndarray:
    """(H, W) grey levels between the left picture and the right one brought over."""
    height, width = disparity.shape
    columns, rows = np.meshgrid(
        np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    )
    ours, theirs = (cv2.blur(to_grey(image), (3, 3)).astype(np.float32) for image in (left, right))
    warped = cv2.remap(
        theirs,
        columns - np.nan_to_num(disparity).astype(np.float32),
        rows,
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    difference = ours - warped
    # Two eyes seldom have the same exposure.
    return np.abs(difference - np.median(difference))


def _fits_at_infinity(
    left: np.ndarray, right: np.ndarray, disparity: np.ndarray, here: np.ndarray
) -> np.ndarray:
    """(H, W) where no disparity at all explains the pictures as well as this one does."""
    window = (AMBIGUOUS_WINDOW_PX, AMBIGUOUS_WINDOW_PX)
    far = cv2.blur(_differences(left, right, np.zeros_like(disparity)), window)
    near = cv2.blur(here, window)
    with np.errstate(invalid='ignore'):
        return (far < near + AMBIGUOUS_LEVELS) & (disparity > AMBIGUOUS_FROM_PX)


def _pictures(run: RunFolder, teacher: TeacherCache, coverage: dict[str, float]) -> list[str]:
    """Draw the worst, the median and the best covered pair; returns their names."""
    ranked = sorted(coverage, key=lambda name: coverage[name])
    places = np.linspace(0, len(ranked) - 1, min(PICTURES, len(ranked))).round().astype(int)
    chosen = [ranked[place] for place in places]
    for name in chosen:
        left, right = (
            read_rgb(run.stage('select') / 'pairs' / eye / f'{name}.png')
            for eye in ('left', 'right')
        )
        told = teacher.predict(left, right, name).disparity
        kept = read_label(run.stage('label') / 'labels' / f'{name}.png')
        known = told[np.isfinite(told)]
        most = float(np.percentile(known, 99)) if known.size else 64.0
        strip = picture_strip(
            [left, colorize_disparity(told, most), colorize_disparity(kept, most)],
            ['left', f'{teacher.name}, 0 to {most:.0f} px', f'believed: {coverage[name]:.0%}'],
            columns=1 if left.shape[1] > 2 * left.shape[0] else 3,
        )
        path = run.stage('label') / 'pictures' / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        write_once(path, strip)
    return chosen


def read_label(path: Path) -> np.ndarray:
    """A label file as (H, W) float32 px, NaN unknown."""
    stored = read_kitti_png(path)
    return np.where(stored > 0, stored, np.nan).astype(np.float32)
