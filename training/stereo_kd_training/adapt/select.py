# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Choose the frames that teach, and split them by time.

A bag is gone through twice: once for a thumbnail and the sharpness of its frames, once to write
the chosen ones. What is blurred, or looks like a frame that is kept already, goes; what is left
is split by time with a gap at each border, so that neighbours do not leak from what is learnt to
what is judged. Of more training frames than were asked for, those stay in which student and
teacher differ most.

    pairs/left/NAME.png pairs/right/NAME.png [pairs/truth/NAME.png]    NAME = bag number-stamp
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from stereo_kd_ros.bag import StereoFrame
from stereo_kd_ros.disparity_io import write_kitti_png
from stereo_kd_ros.evaluation import ModelMatcher
from stereo_kd_ros.pair_measures import to_grey
from stereo_kd_ros.truth import open_truth
from stereo_kd_training.adapt.settings import AdaptError, AdaptSettings, RunFolder, write_json
from stereo_kd_training.adapt.student import find_student
from stereo_kd_training.adapt.teachers import open_teacher
from stereo_kd_training.datasets.base import read_rgb
from stereo_kd_training.datasets.robot_bag import write_once
from stereo_kd_training.teacher_cache import TeacherCache

PARTS = ('train', 'validation', 'held_out')
THUMBNAIL = (32, 24)
# Of the spread of its grey levels: noise moves a thumbnail by a hundredth, a robot that drives
# by a tenth from frame to frame.
DUPLICATE = 0.025
# Of the median sharpness of the frames around it: below it the robot turned. A white wall is not
# sharp either, but neither are the frames before and after it.
BLURRED, AROUND = 0.4, 5
# At most this much lies between what is learnt and what is judged, and this share of a bag.
GAP_S, GAP_SHARE = 2.0, 0.04
FEWEST_TRAIN = 4
# Frames looked at for each one that is trained on.
CANDIDATES = 2
# A difference beyond this says that one of both is lost, and no more.
MOST_DIFFERENCE_PX = 5.0


@dataclass(frozen=True)
class Scan:
    """What a first look at a bag's frames left: stamps (N,), thumbnails (N, 24, 32), sharpness."""

    stamps_ns: np.ndarray
    thumbnails: np.ndarray
    sharpness: np.ndarray


def select(run: RunFolder) -> dict[str, Any]:
    """Choose and write the frames.

    Raises:
        AdaptError: too few are left to learn from, or to judge by.
    """
    settings = run.settings
    folder = run.stage('select')
    wanted = CANDIDATES * settings.max_pairs
    total = sum(bag['pairs'] for bag in run.facts('look')['bags'])
    every = max(1, total // round(wanted / (1 - settings.validation - settings.held_out)))
    scans = [
        _scanned(run, folder, number, Path(path), every, total)
        for number, path in enumerate(settings.bags)
    ]
    kept, dropped = [], {'blurred': 0, 'duplicate': 0, 'gap': 0, 'little_to_learn': 0}
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for number, scan in enumerate(scans):
        chosen, causes = distinct_frames(scan)
        split, gaps = split_by_time(scan.stamps_ns[chosen], settings)
        dropped['gap'] += gaps
        for cause, count in causes.items():
            dropped[cause] += count
        for part, indices in split.items():
            parts[part] += [_name(number, scan.stamps_ns[chosen[index]]) for index in indices]
        kept.append(
            {int(scan.stamps_ns[chosen[index]]) for ids in split.values() for index in ids}
        )
    _require_enough(parts, dropped, total)
    write_chosen(run, kept)
    differences = _differences(run, folder, parts['train'])
    if len(parts['train']) > settings.max_pairs:
        ranked = sorted(parts['train'], key=lambda name: -differences[name])
        dropped['little_to_learn'] = len(ranked) - settings.max_pairs
        teaching = set(ranked[: settings.max_pairs])
        parts['train'] = [name for name in parts['train'] if name in teaching]
    counts = {part: len(names) for part, names in parts.items()}
    run.say(
        'select',
        f'{counts["train"]} pairs to learn from, {counts["validation"]} to watch, '
        f'{counts["held_out"]} held out; left out: '
        + ', '.join(f'{count} {cause.replace("_", " ")}' for cause, count in dropped.items()),
    )
    return {
        'pairs_in_bags': total,
        'every': every,
        'dropped': dropped,
        'difference_px': {name: round(value, 4) for name, value in differences.items()},
        **parts,
    }


def distinct_frames(scan: Scan) -> tuple[list[int], dict[str, int]]:
    """Indices of frames that are sharp and new, and how many are not."""
    causes = {'blurred': 0, 'duplicate': 0}
    chosen: list[int] = []
    for index, thumbnail in enumerate(scan.thumbnails):
        around = scan.sharpness[max(0, index - AROUND) : index + AROUND + 1]
        if scan.sharpness[index] < BLURRED * float(np.median(around)):
            causes['blurred'] += 1
        elif (
            chosen
            and np.abs(scan.thumbnails[chosen] - thumbnail).mean(axis=(1, 2)).min() < DUPLICATE
        ):
            causes['duplicate'] += 1
        else:
            chosen.append(index)
    return chosen, causes


def split_by_time(
    stamps_ns: np.ndarray, settings: AdaptSettings
) -> tuple[dict[str, list[int]], int]:
    """Indices of each part: the first frames teach, the last are held out.

    Frames nearer to a border than the gap go from the part that has more of them.

    Returns:
        the parts, and how many frames the gaps took.
    """
    count = len(stamps_ns)
    held_out = max(1, round(settings.held_out * count)) if count > 2 else 0
    validation = max(1, round(settings.validation * count)) if count > 2 else 0
    borders = (count - held_out - validation, count - held_out)
    parts = {
        'train': list(range(borders[0])),
        'validation': list(range(*borders)),
        'held_out': list(range(borders[1], count)),
    }
    if count <= 2:
        return parts, 0
    gap_ns = 1e9 * min(GAP_S, GAP_SHARE * 1e-9 * float(stamps_ns[-1] - stamps_ns[0]))
    first, last = stamps_ns[borders[0]], stamps_ns[borders[1] - 1]
    train = [index for index in parts['train'] if first - stamps_ns[index] > gap_ns]
    judged = [index for index in parts['held_out'] if stamps_ns[index] - last > gap_ns]
    removed = len(parts['train']) + len(parts['held_out']) - len(train) - len(judged)
    return {**parts, 'train': train, 'held_out': judged}, removed


def write_chosen(run: RunFolder, kept: list[set[int]]) -> tuple[int, int]:
    """Write the pairs whose stamps are kept of each bag, and what truth there is for them.

    Returns:
        how many were written, and how many of them have truth.

    Raises:
        AdaptError: truth was named, and none of it belongs to them.
    """
    settings, written, with_truth = run.settings, 0, 0
    for number, path in enumerate(settings.bags):
        count, known = _write_pairs(run, number, Path(path), kept[number], written)
        written, with_truth = written + count, with_truth + known
    if settings.truth is not None and not with_truth:
        raise AdaptError(
            f'not one of the {written} chosen pairs has truth in {settings.truth}: its stamps '
            'must be those of the left pictures (of a single bag, files may be numbered instead)'
        )
    return written, with_truth


def _require_enough(parts: dict[str, list[str]], dropped: dict[str, int], total: int) -> None:
    causes = ', '.join(f'{count} {cause}' for cause, count in dropped.items() if count)
    for part, least in (('train', FEWEST_TRAIN), ('validation', 1), ('held_out', 1)):
        if len(parts[part]) < least:
            raise AdaptError(
                f'{total} pairs leave {len(parts[part])} for the part {part!r}, expected at least '
                f'{least}{f" (left out: {causes})" if causes else ""}: record a longer drive '
                'through what the robot will see'
            )


def _scanned(
    run: RunFolder, folder: Path, number: int, path: Path, every: int, total: int
) -> Scan:
    """The scan of a bag, from disk where it was finished before."""
    kept = folder / f'scan_{number}.npz'
    if not kept.is_file():
        stamps, thumbnails, sharpness = [], [], []
        for index, frame in _frames(path, run.settings):
            run.progress('select', index + 1, total, f'looking at {path.name}')
            if index % every:
                continue
            stamps.append(frame.stamp_ns)
            thumbnail, sharp = _thumbnail(frame.left)
            thumbnails.append(thumbnail)
            sharpness.append(sharp)
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f'.scan_{number}.npz'
        with partial.open('wb') as file:
            np.savez(
                file,
                stamps_ns=np.array(stamps, np.int64),
                thumbnails=np.array(thumbnails, np.float32).reshape(-1, *THUMBNAIL[::-1]),
                sharpness=np.array(sharpness, np.float32),
            )
        partial.replace(kept)
    with np.load(kept, allow_pickle=False) as arrays:
        return Scan(arrays['stamps_ns'], arrays['thumbnails'], arrays['sharpness'])


def _frames(path: Path, settings: AdaptSettings) -> Iterator[tuple[int, StereoFrame]]:
    with settings.open_bag(path) as bag:
        yield from enumerate(bag.pairs())


def _thumbnail(image: np.ndarray) -> tuple[np.ndarray, float]:
    """A small picture of zero mean and unit spread, and how sharp the large one is."""
    grey = to_grey(image)
    small = cv2.resize(grey, THUMBNAIL, interpolation=cv2.INTER_AREA).astype(np.float32)
    spread = max(float(small.std()), 1.0)
    detail = cv2.Laplacian(cv2.GaussianBlur(grey, (3, 3), 0), cv2.CV_32F)
    return (small - small.mean()) / spread, float(detail.std()) / spread


def _name(number: int, stamp_ns: int) -> str:
    return f'{number:02d}-{int(stamp_ns):019d}'


def _write_pairs(
    run: RunFolder, number: int, path: Path, wanted: set[int], before: int
) -> tuple[int, int]:
    """Write the wanted frames of a bag, and what truth there is for them; returns how many."""
    pairs, count, with_truth = run.stage('select') / 'pairs', 0, 0
    # Of several bags a number would say two frames.
    numbered = len(run.settings.bags) == 1
    for part in ('left', 'right', 'truth'):
        (pairs / part).mkdir(parents=True, exist_ok=True)
    settings = run.settings
    with (
        settings.open_bag(path) as bag,
        open_truth(bag, settings.truth, settings.extrinsics) as truth,
    ):
        for index, frame in enumerate(bag.pairs()):
            if frame.stamp_ns not in wanted:
                continue
            name = _name(number, frame.stamp_ns)
            for side, image in (('left', frame.left), ('right', frame.right)):
                write_once(pairs / side / f'{name}.png', image)
            known = truth.disparity(frame.stamp_ns, index if numbered else -1) if truth else None
            if known is not None:
                with_truth += 1
                write_kitti_png(pairs / 'truth' / f'{name}.png', known)
            count += 1
            run.progress('select', before + count, before + len(wanted), f'writing {path.name}')
            if count == len(wanted):
                break
    return count, with_truth


def _differences(run: RunFolder, folder: Path, names: list[str]) -> dict[str, float]:
    """Mean difference of student and teacher on each pair, capped per pixel [px]."""
    settings = run.settings
    path = folder / 'differences.json'
    known: dict[str, float] = json.loads(path.read_text()) if path.is_file() else {}
    if all(name in known for name in names):
        return known
    threads = settings.latency_threads or None
    named = open_teacher(settings.teachers[0], settings.teacher_licence, threads)
    teacher = TeacherCache(run.stage('label') / 'answers', named.teacher)
    student = ModelMatcher(find_student(settings.student).onnx(run.stage('look')), 'cpu')
    for done, name in enumerate(names):
        run.progress('select', done + 1, len(names), f'{named.name} and {student.name}')
        if name in known:
            continue
        left, right = (
            read_rgb(folder / 'pairs' / eye / f'{name}.png') for eye in ('left', 'right')
        )
        told = teacher.predict(left, right, name).disparity
        difference = np.abs(student.match(left, right).dense - told)
        difference = np.minimum(difference[np.isfinite(difference)], MOST_DIFFERENCE_PX)
        known[name] = float(difference.mean()) if difference.size else 0.0
        write_json(path, known)
    return known
