# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Look at the bags before anything is spent on them, and refuse what cannot work.

Asks the doctor about the calibration and the pictures, compares the teacher with the pictures'
own corners, measures what the camera's pictures look like (for the procedural pairs), and times
student, teacher and training (for the plan).
"""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from stereo_kd_ros.bag_sample import first_infos, sample_pairs
from stereo_kd_ros.camera import StereoCamera, calibration_hash, calibration_record
from stereo_kd_ros.doctor import Doctor, Finding
from stereo_kd_ros.doctor_checks import CHECKS
from stereo_kd_ros.pair_measures import fit_levels, fit_rows, measure_pair, to_grey
from stereo_kd_training import prune
from stereo_kd_training.adapt.settings import AdaptError, AdaptSettings, RunFolder
from stereo_kd_training.adapt.student import Student, find_student
from stereo_kd_training.adapt.teachers import NamedTeacher, open_teacher
from stereo_kd_training.losses import smooth_l1_disparity
from stereo_kd_training.networks import StereoNetwork
from stereo_kd_training.precision import resolved

SAMPLED_PAIRS = 24
# Corners are matched to a tenth of a pixel and some of them wrongly: a teacher that differs by
# this much from half of them answers another question.
TEACHER_LIMIT_PX = 3.0
FEWEST_CORNERS, PROBED_PAIRS = 40, 3
# Channels beyond this share cannot go without losing what was learnt.
MOST_PRUNED = 0.75


@dataclass(frozen=True)
class PictureStatistics:
    """What a camera's pictures look like, in grey levels and pixels.

    Attributes:
        monochrome: all three channels are the same.
        noise: standard deviation of the sensor's noise, after Immerkaer (1996).
        mean, contrast: mean and standard deviation of the grey levels.
        gain, offset: right = gain * left + offset.
        row_offset, row_tilt, row_stretch: the right picture's rows against the left one's: px,
            px per column and px per row, from the middle of the picture.
        row_scatter: what remains about that [px].
    """

    monochrome: bool
    noise: float
    mean: float
    contrast: float
    gain: float
    offset: float
    row_offset: float
    row_tilt: float
    row_stretch: float
    row_scatter: float


def look(run: RunFolder) -> dict[str, Any]:
    """Examine bags, student and teachers.

    Raises:
        AdaptError: something of it cannot work; all that is wrong is listed.
    """
    settings = run.settings
    student = find_student(settings.student)
    network = student.network()
    teachers = [
        open_teacher(text, settings.teacher_licence, settings.latency_threads or None)
        for text in settings.teachers
    ]
    unknown = sorted(set(settings.accept) - set(CHECKS))
    if unknown:
        raise AdaptError(
            f'--accept {", ".join(unknown)}: no such check; known: {", ".join(sorted(CHECKS))}'
        )
    bags, pairs = [], []
    camera: StereoCamera | None = None
    for number, path in enumerate(settings.bags):
        run.progress('look', number, len(settings.bags) + 2, Path(path).name)
        found, seen, facts = _examine(Path(path), settings)
        if camera is not None and calibration_hash(found) != calibration_hash(camera):
            raise AdaptError(
                f'{path} is of another camera ({_described(found)}) than {settings.bags[0]} '
                f'({_described(camera)}): a student is adapted to one camera at a time'
            )
        camera = camera or found
        bags.append(facts)
        pairs += seen
        for finding in facts['findings']:
            if finding['severity'] in ('warn', 'error'):
                run.say('look', f'{Path(path).name}: {finding["check"]}: {finding["measured"]}')
    assert camera is not None
    _require_size(camera, settings, network)
    span = _disparity_range(bags, camera, network)
    run.progress('look', len(settings.bags), len(settings.bags) + 2, 'teachers')
    probes = [_probe(teacher, pairs) for teacher in teachers]
    for probe in probes:
        seconds = f'{probe["seconds"]:.1f} s a pair'
        against = (
            'too few corners to compare with'
            if probe['corner_difference_px'] is None
            else f'{probe["corner_difference_px"]:.2f} px from the corners of the pictures'
        )
        run.say('look', f'teacher {probe["name"]}: {against}, {seconds}')
    run.progress('look', len(settings.bags) + 1, len(settings.bags) + 2, 'times')
    if student.is_joined:
        run.say('look', f'{student.name} is two models in one: the second stays as it is')
    times = _times(settings, student, network, camera)
    run.say(
        'look',
        f'{camera.width}x{camera.height}, f {camera.fx:.1f} px, baseline {camera.baseline_m:.4f} '
        f'm, disparities up to {span["high_px"]:.0f} px; {student.name} takes '
        f'{times["student_ms"]:.1f} ms',
    )
    run.progress('look', len(settings.bags) + 2, len(settings.bags) + 2, '')
    return {
        'camera': asdict(camera),
        'calibration': calibration_record(camera),
        'bags': bags,
        'disparity': span,
        'statistics': asdict(picture_statistics(pairs)),
        'student': {
            'name': student.name,
            'sha256': student.sha256,
            'licence': student.licence,
            'max_disparity_px': float(network.max_disparity_px),
        },
        'teachers': probes,
        **times,
    }


def require_unchanged(run: RunFolder) -> None:
    """Refuse to go on with a bag or a student that is another one by now.

    Raises:
        AdaptError: it names what changed.
    """
    facts, student = run.facts('look'), find_student(run.settings.student)
    changed = [] if student.sha256 == facts['student']['sha256'] else [str(student.source)]
    changed += [
        path
        for path, bag in zip(run.settings.bags, facts['bags'], strict=True)
        if _size_of(Path(path)) != bag['bytes']
    ]
    if changed:
        raise AdaptError(
            f'{", ".join(changed)} changed since the adaptation in {run.folder} began: begin '
            'anew in another --work folder'
        )


def _examine(
    path: Path, settings: AdaptSettings
) -> tuple[StereoCamera, list[tuple[np.ndarray, np.ndarray]], dict[str, Any]]:
    """The camera, sampled pairs and findings of one bag."""
    with settings.open_bag(path) as bag:
        doctor = Doctor(*first_infos(bag))
        pairs = []
        for sample in sample_pairs(bag, SAMPLED_PAIRS):
            doctor.add(sample.left, sample.right, sample.skew_ns, sample.follows)
            pairs.append((sample.left, sample.right))
        pair_count, duration_s = bag.pair_count, bag.duration_s
    if not pairs:
        raise AdaptError(f'{path} holds no pair of pictures; look at it with: stereo-kd doctor')
    findings = doctor.findings()
    wrong = [f for f in findings if f.severity == 'error' and f.check not in settings.accept]
    if wrong or doctor.camera is None:
        raise AdaptError('\n'.join(_refusal(path, wrong)))
    span = doctor.disparity_range()
    return (
        doctor.camera,
        pairs,
        {
            'name': path.name,
            'bytes': _size_of(path),
            'pairs': pair_count,
            'duration_s': round(duration_s, 3),
            'findings': [f.to_dict() for f in findings],
            'disparity': None if span is None else asdict(span),
        },
    )


def _refusal(path: Path, wrong: list[Finding]) -> list[str]:
    lines = [f'{path} cannot be used to adapt a student:']
    for finding in wrong:
        lines.append(f'  {finding.check}: {finding.measured}. {finding.remedy}')
    lines.append(
        'Mend it and record again; --accept CHECK goes on in spite of one that is known and '
        'lived with.'
    )
    return lines


def _require_size(camera: StereoCamera, settings: AdaptSettings, network: StereoNetwork) -> None:
    height, width = crop_size(camera, settings, network.strides)
    if not height or not width:
        down, across = network.strides
        raise AdaptError(
            f'the pictures are {camera.width}x{camera.height}, smaller than the strides '
            f'{across}x{down} of the student'
        )


def crop_size(
    camera: StereoCamera, settings: AdaptSettings, strides: tuple[int, int]
) -> tuple[int, int]:
    """Height and width of a crop: what was asked for, cut to the pictures, on the strides."""
    down, across = strides
    height = min(settings.crop_height, camera.height, settings.procedural_height)
    width = min(settings.crop_width, camera.width, settings.procedural_width)
    return height // down * down, width // across * across


def _disparity_range(
    bags: list[dict[str, Any]], camera: StereoCamera, network: StereoNetwork
) -> dict[str, float | None]:
    """What the scenes span, over all bags.

    Raises:
        AdaptError: beyond what the student can answer.
    """
    known = [bag['disparity'] for bag in bags if bag['disparity']]
    most = float(network.max_disparity_px)
    if not known:
        return {'high_px': most, 'max_px': most, 'near_m': None}
    high = max(span['high_px'] for span in known) + camera.cx_offset_px
    if high > most:
        raise AdaptError(
            f'the scene comes as near as {high:.0f} px, but the student answers up to '
            f'{most:.0f} px: record with binning or at half the size, which halves disparities'
        )
    wanted = max(span['max_disparity'] for span in known) + camera.cx_offset_px
    return {
        'high_px': round(high, 2),
        'max_px': float(min(max(wanted, 16.0), most)),
        'near_m': round(camera.fx * camera.baseline_m / max(high, 1e-3), 3),
    }


def _probe(named: NamedTeacher, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Ask a teacher about a pair or a few, and hold it against the corners found in both eyes.

    Raises:
        AdaptError: it answers something else than x_left - x_right in pixels.
    """
    told: list[np.ndarray] = []
    seen: list[np.ndarray] = []
    seconds: list[float] = []
    corners = [measure_pair(to_grey(left), to_grey(right)) for left, right in pairs]
    richest = np.argsort([-len(found.left) for found in corners], kind='stable')
    for place in richest[:PROBED_PAIRS]:
        started = time.monotonic()
        answer = named.teacher.predict(*pairs[place], 'probe')
        seconds.append(time.monotonic() - started)
        column, row = np.rint(corners[place].left).astype(int).reshape(-1, 2).T
        told.append(answer.disparity[row, column])
        seen.append(corners[place].disparity_px)
        if sum(map(len, seen)) >= FEWEST_CORNERS:
            break
    apart = np.abs(np.concatenate(told) - np.concatenate(seen))
    apart = apart[np.isfinite(apart)]
    difference = float(np.median(apart)) if len(apart) >= FEWEST_CORNERS else None
    if difference is not None and difference > TEACHER_LIMIT_PX:
        raise AdaptError(
            f'the teacher {named.name} differs by {difference:.1f} px from half of the corners '
            'that both eyes see: its adapter is wrong (order of the eyes, sign or scale of its '
            'output), or it does not work on such pictures'
        )
    return {
        'name': named.name,
        'licence': named.licence,
        'fingerprint': named.teacher.fingerprint,
        'seconds': round(min(seconds), 3),
        'corner_difference_px': None if difference is None else round(difference, 3),
    }


def _times(
    settings: AdaptSettings, student: Student, network: StereoNetwork, camera: StereoCamera
) -> dict[str, Any]:
    """Milliseconds of the student and of a second model in its file, and seconds of a step.

    Raises:
        AdaptError: the latency that was asked for is out of reach.
    """
    size = camera.height, camera.width, settings.latency_threads
    second_ms = student.second_ms(*size)
    here_ms = prune.measure_latency_ms(network, *size) + second_ms
    scale = settings.student_ms / here_ms if settings.student_ms else 1.0
    wanted = settings.latency_ms
    if wanted is not None and here_ms * scale > wanted:
        smallest = copy.deepcopy(network)
        prune.prune_to_ratio(smallest, MOST_PRUNED, round_to=settings.round_to)
        least = scale * (prune.measure_latency_ms(smallest, *size) + second_ms)
        if least > wanted:
            raise AdaptError(
                f'{wanted:g} ms at {camera.width}x{camera.height} is out of reach: the student '
                f'takes {here_ms * scale:.1f} ms, and {least:.1f} ms without {MOST_PRUNED:.0%} of '
                'its channels; start from a smaller --student, run on smaller pictures, or ask '
                'for more time'
            )
    return {
        'student_ms': round(here_ms * scale, 3),
        'second_ms': round(second_ms * scale, 3),
        'latency_scale': round(scale, 4),
        'step_seconds': round(_step_seconds(settings, network, camera), 3),
    }


def _step_seconds(settings: AdaptSettings, network: StereoNetwork, camera: StereoCamera) -> float:
    """Seconds of one optimiser step without its pictures."""
    height, width = crop_size(camera, settings, network.strides)
    trial = copy.deepcopy(network).train()
    images = [torch.rand(settings.batch_size, 3, height, width) for _ in range(2)]
    seconds = []
    for _ in range(2):
        started = time.perf_counter()
        with torch.autocast('cpu', torch.bfloat16, enabled=resolved(settings.precision) == 'bf16'):
            output = trial(*images)
        truth = torch.ones(settings.batch_size, height, width)
        smooth_l1_disparity(output.disparity, truth).backward()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def picture_statistics(pairs: list[tuple[np.ndarray, np.ndarray]]) -> PictureStatistics:
    """Measure what a camera's pictures look like."""
    greys = [(to_grey(left), to_grey(right)) for left, right in pairs]
    measures = [measure_pair(left, right) for left, right in greys]
    rows, levels = fit_rows(measures, 1.0), fit_levels(measures)
    lefts = [left for left, _ in greys]
    return PictureStatistics(
        monochrome=all(bool(np.ptp(left, axis=2).max() == 0) for left, _ in pairs),
        noise=float(np.median([_noise(grey) for grey in lefts])),
        mean=float(np.mean([grey.mean() for grey in lefts])),
        contrast=float(np.mean([grey.std() for grey in lefts])),
        gain=1.0 if levels is None else float(levels.gain),
        offset=0.0 if levels is None else float(levels.offset),
        row_offset=0.0 if rows is None else float(rows.offset_px.value),
        row_tilt=0.0 if rows is None else float(rows.tilt.value),
        row_stretch=0.0 if rows is None else float(rows.stretch.value),
        row_scatter=0.0 if rows is None else float(rows.scatter_px),
    )


def _noise(grey: np.ndarray) -> float:
    """Standard deviation of white noise in a picture, by a mask that is blind to ramps.

    The quieter half of the picture counts, so that texture is not taken for noise.
    """
    mask = np.float32([[1, -2, 1], [-2, 4, -2], [1, -2, 1]])
    answer = np.abs(cv2.filter2D(grey.astype(np.float32), -1, mask))
    cells = cv2.resize(answer, (24, 16), interpolation=cv2.INTER_AREA)
    # E|N(0, s)| = s * sqrt(2 / pi); the mask's weights have the norm 6.
    return float(np.sqrt(np.pi / 2) / 6.0 * np.median(cells[cells <= np.median(cells)]))


def _size_of(path: Path) -> int:
    files = [path] if path.is_file() else [item for item in path.rglob('*') if item.is_file()]
    return sum(item.stat().st_size for item in files)


def _described(camera: StereoCamera) -> str:
    return (
        f'{camera.width}x{camera.height}, f {camera.fx:.1f} px, baseline {camera.baseline_m:.4f} m'
    )
