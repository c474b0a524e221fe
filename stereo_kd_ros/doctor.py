# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Says what is wrong with a stereo camera, what it means and what to do about it.

`examine_camera_infos` judges the calibration as it was published, also one from which no depth can
be computed; `Doctor` judges sampled pairs; `OnlineDoctor` does so beside a running node, for a few
milliseconds every two seconds. Every answer is a `Finding`; `doctor_checks` lists what is looked
at.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from stereo_kd_ros.camera import (
    FOCAL_TOLERANCE,
    MIN_BASELINE_M,
    ROW_TOLERANCE_PX,
    CalibrationError,
    StereoCamera,
)
from stereo_kd_ros.doctor_checks import CHECKS, SWAPPED_SHARE, USUAL_BASELINE_M
from stereo_kd_ros.pair_measures import (
    FEWEST_FRAMES_BLOCKED,
    FEWEST_MATCHES,
    Estimate,
    PairMeasure,
    blocked_regions,
    finished,
    fit_levels,
    fit_rows,
    measure_pair,
    measuring,
    scene_changes,
    sharpness_ratio,
    to_grey,
)

Severity = Literal['ok', 'unknown', 'warn', 'error']
SEVERITIES: tuple[Severity, ...] = ('ok', 'unknown', 'warn', 'error')

_BEHIND_INFINITY_PX = 1.0
_MEASURED_WIDTH_PX = 960
# By how much tilt and stretch at the rim go wrong with what a scene happens to show, in pixels of
# a reduced picture with few matches: more than the matches' scatter tells, less with every pair.
_SCENE_ERROR_PX = 0.15


class DoctorError(ValueError):
    """Pictures that cannot be examined, and why."""


@dataclass(frozen=True)
class Finding:
    """The answer of one check.

    Attributes:
        check: a key of `CHECKS`.
        severity: `unknown` when there was not enough to go by.
        value: in `unit`; None where there is no single number.
        limit: what the value is held against.
        measured: the observation in words.
        meaning, remedy: what it does, and what most likely mends it.
    """

    check: str
    severity: Severity
    value: float | None
    unit: str
    limit: float | None
    measured: str
    meaning: str
    remedy: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class DisparityRange:
    """What the matches span, corrected for the cx offset, and the parameters that follow.

    `near_m` and `far_m` are None without a usable camera_info.
    """

    low_px: float
    high_px: float
    min_disparity: float
    max_disparity: float
    near_m: float | None
    far_m: float | None


def worst(findings: Sequence[Finding]) -> Severity:
    """The gravest severity there is."""
    return max((f.severity for f in findings), key=SEVERITIES.index, default='ok')


def examine_camera_infos(
    left: Any, right: Any, image_size: tuple[int, int] | None = None
) -> list[Finding]:
    """Judge a CameraInfo pair as published.

    Args:
        left: duck-typed sensor_msgs/CameraInfo (ROS 1 or 2).
        right: the same.
        image_size: width and height of the images that came with it.
    """
    infos = {'left': left, 'right': right}
    findings = [_examine_calibrated(infos)]
    if findings[0].severity == 'ok':
        p_left, p_right = (_matrix(info, 'p').reshape(3, 4) for info in (left, right))
        findings += [
            _examine_baseline(p_left, p_right),
            _examine_projection(infos, p_left, p_right),
            _examine_cx(infos, p_left, p_right),
        ]
    findings.append(_examine_frames(left, right))
    if image_size is not None:
        findings.append(_examine_size(left, image_size))
    if worst(findings) != 'error':
        try:
            StereoCamera.from_camera_info(left, right)
        except CalibrationError as error:
            findings.append(_finding('camera_info', 'error', str(error)))
    return findings


def examine_topic(name: str, looks_rectified: bool) -> Finding:
    """Judge by its name whether an image topic carries rectified pictures."""
    return _finding('rectified', 'ok' if looks_rectified else 'warn', name)


def usable_camera(left: Any, right: Any) -> StereoCamera | None:
    """The camera of two CameraInfos; None when they describe none."""
    try:
        return StereoCamera.from_camera_info(left, right)
    except CalibrationError:
        return None


class Doctor:
    """Collects pairs and judges them together.

    Args:
        left_info, right_info: CameraInfos, usable or not; None when there are none.
    """

    def __init__(self, left_info: Any = None, right_info: Any = None) -> None:
        self._infos = None if left_info is None or right_info is None else (left_info, right_info)
        self.camera = None if self._infos is None else usable_camera(*self._infos)
        self._measures: list[PairMeasure] = []
        self._skews_ms: list[float] = []
        self._repeated: list[tuple[bool, bool]] = []
        self._previous: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None
        self._image_size: tuple[int, int] | None = None
        self._scale = 1.0

    @property
    def pairs(self) -> int:
        """How many were added."""
        return len(self._measures)

    @property
    def image_size(self) -> tuple[int, int] | None:
        """Width and height of the pairs; None before the first."""
        return self._image_size

    def add(
        self,
        left: NDArray[np.uint8],
        right: NDArray[np.uint8],
        skew_ns: int | None = None,
        follows: bool = False,
    ) -> None:
        """Measure a pair.

        Args:
            left: (H, W, 3) RGB or (H, W) grey.
            right: the same size.
            skew_ns: right stamp minus left stamp; None when not known.
            follows: this pair came right after the one added before.

        Raises:
            DoctorError: the sizes differ from each other or from pairs before.
        """
        size = (left.shape[1], left.shape[0])
        _require_same_size(left, right, self._image_size)
        self._image_size = size
        if skew_ns is not None:
            self._skews_ms.append(skew_ns / 1e6)
        if follows and self._previous is not None:
            before_left, before_right = self._previous
            self._repeated.append(
                (bool(np.array_equal(left, before_left)), np.array_equal(right, before_right))
            )
        self._previous = (left, right)
        first, self._scale = _reduced(to_grey(left), _MEASURED_WIDTH_PX)
        second, _ = _reduced(to_grey(right), _MEASURED_WIDTH_PX)
        self._measures.append(measure_pair(first, second))

    def findings(self) -> list[Finding]:
        """Judge everything that was added, the calibration first."""
        calibration = []
        if self._infos is not None:
            calibration = examine_camera_infos(*self._infos, self._image_size)
        pictures = _judge_pictures(self._measures, self._scale, self._cx_offset_px)
        timing = [*_judge_stamps(self._skews_ms), *_judge_repeats(self._repeated)]
        found = _with_common_remedy([*calibration, *timing, *pictures])
        span = self.disparity_range()
        if span is not None:
            depth = '' if span.near_m is None else f', {span.near_m:.2f} to {span.far_m:.1f} m'
            found.append(
                _finding(
                    'disparity_range',
                    'ok',
                    f'98 % lie between {span.low_px:.1f} and {span.high_px:.1f} px{depth}',
                    span.high_px,
                )
            )
        return found

    def disparity_range(self) -> DisparityRange | None:
        """What the matches span; None when there are too few, or most are negative."""
        disparity = _disparities(self._measures, self._scale, self._cx_offset_px)
        if len(disparity) < FEWEST_MATCHES or np.median(disparity) <= 0:
            return None
        low, high = (max(float(p), 0.0) for p in np.percentile(disparity, (1, 99)))
        # The nearest thing of a short drive is not the nearest there will be.
        largest = float(16 * math.ceil(max(1.5 * high, 1.0) / 16))
        near = far = None
        if self.camera is not None:
            factor = self.camera.fx * self.camera.baseline_m
            near, far = factor / max(high, 1e-3), factor / max(low, 0.25)
        return DisparityRange(low, high, 0.0, largest, near, far)

    @property
    def _cx_offset_px(self) -> float:
        return 0.0 if self.camera is None else self.camera.cx_offset_px


class OnlineDoctor:
    """Watches pairs beside a running node.

    Feed it the pairs that pass; it looks at one of them every `period_s`, on grey pictures of at
    most `width_px` columns, and keeps the last `memory` of these. It has no clock and no lock:
    call it from one thread.

        findings = doctor.feed(left, right, now_s)   # None when it was not yet time
    """

    CHECKS = (
        'matches',
        'disparity_sign',
        'row_offset',
        'row_tilt',
        'row_stretch',
        'exposure',
        'blocked_lens',
    )

    def __init__(
        self,
        camera: StereoCamera | None = None,
        period_s: float = 2.0,
        width_px: int = 480,
        memory: int = 10,
    ) -> None:
        self._period_s = period_s
        self._width_px = width_px
        self._measures: deque[PairMeasure] = deque(maxlen=memory)
        self._last_s: float | None = None
        self._size: tuple[int, int] | None = None
        self._camera = camera
        self.findings: tuple[Finding, ...] = ()

    @property
    def camera(self) -> StereoCamera | None:
        """Whose cx offset is allowed for; setting another one forgets the pairs so far."""
        return self._camera

    @camera.setter
    def camera(self, camera: StereoCamera | None) -> None:
        if camera != self._camera:
            self._camera = camera
            self.forget()

    def forget(self) -> None:
        """Begin afresh: another camera, another calibration."""
        self._measures.clear()
        self._last_s = None
        self.findings = ()

    def due(self, now_s: float) -> bool:
        """Whether `feed` would look at a pair now; a clock that went back begins anew."""
        return self._last_s is None or not 0 <= now_s - self._last_s < self._period_s

    def feed(
        self, left: NDArray[np.uint8], right: NDArray[np.uint8], now_s: float
    ) -> tuple[Finding, ...] | None:
        """Look at a pair when it is time.

        Args:
            left: (H, W, 3) RGB or (H, W) grey.
            right: the same size; another size than before begins afresh.
            now_s: any clock in seconds.

        Returns:
            The findings over the last pairs, or None when nothing was looked at.

        Raises:
            DoctorError: the sizes differ.
        """
        return finished(self.feeding(left, right, now_s))

    def feeding(
        self, left: NDArray[np.uint8], right: NDArray[np.uint8], now_s: float
    ) -> Generator[None, None, tuple[Finding, ...] | None]:
        """`feed` in steps of a few milliseconds; to be gone through before the next pair."""
        if not self.due(now_s):
            return None
        _require_same_size(left, right, None)
        size = (left.shape[1], left.shape[0])
        if size != self._size:
            self.forget()
            self._size = size
        self._last_s = now_s
        # Grey before it is reduced: the mean over fractions of pixels costs most.
        first, scale = _reduced(to_grey(left), self._width_px)
        second, _ = _reduced(to_grey(right), self._width_px)
        yield
        self._measures.append((yield from measuring(first, second, features=250)))
        yield
        offset = 0.0 if self._camera is None else self._camera.cx_offset_px
        judged = _judge_pictures(list(self._measures), scale, offset, _SCENE_ERROR_PX)
        self.findings = tuple(f for f in judged if f.check in self.CHECKS)
        return self.findings


def _finding(
    check: str,
    severity: Severity,
    measured: str,
    value: float | None = None,
    remedy: str | None = None,
) -> Finding:
    about = CHECKS[check]
    limit = about.error if severity == 'error' else about.warn
    if limit is None:
        limit = about.error if about.warn is None else about.warn
    if value is not None and not math.isfinite(value):
        value = None
    return Finding(
        check, severity, value, about.unit, limit, measured, about.meaning, remedy or about.remedy
    )


def _graded(check: str, size: Estimate, measured: str, value: float | None = None) -> Finding:
    """Held against the check's limits, with its uncertainty allowed for."""
    about = CHECKS[check]
    severity: Severity = 'ok'
    if about.error is not None and size.certainly_beyond(about.error):
        severity = 'error'
    elif about.warn is not None and size.certainly_beyond(about.warn):
        severity = 'warn'
    elif about.warn is not None and 2 * size.error > about.warn:
        severity = 'unknown'
        measured += ', too uncertain to judge'
    return _finding(check, severity, measured, size.value if value is None else value)


def _matrix(info: Any, name: str) -> NDArray[np.float64]:
    """A CameraInfo matrix, flat; ROS 1 spells its name with a capital."""
    value = getattr(info, name) if hasattr(info, name) else getattr(info, name.upper())
    return np.asarray(value, dtype=np.float64).reshape(-1)


def _examine_calibrated(infos: dict[str, Any]) -> Finding:
    faults = []
    bad_eyes = set()
    for eye, info in infos.items():
        for name, length in (('k', 9), ('p', 12)):
            matrix = _matrix(info, name)
            fault = ''
            if matrix.size != length:
                fault = f'has {matrix.size} numbers instead of {length}'
            elif not np.isfinite(matrix).all():
                fault = 'holds NaN or Inf'
            elif matrix[0] <= 0 or matrix[length // 3 + 1] <= 0:
                fault = 'is zero' if not matrix.any() else 'has no positive focal length'
            if fault:
                faults.append(f'{name.upper()} of the {eye} camera_info {fault}')
                bad_eyes.add(eye)
    if faults:
        return _finding('calibrated', 'error', '; '.join(faults), len(bad_eyes))
    return _finding('calibrated', 'ok', 'both eyes carry K and P', 0)


def _examine_baseline(p_left: NDArray[np.float64], p_right: NDArray[np.float64]) -> Finding:
    shift_left, shift_right = (-p[0, 3] / p[0, 0] for p in (p_left, p_right))
    baseline_m = float(shift_right - shift_left)
    measured = f'{baseline_m:.4f} m (Tx left {p_left[0, 3]:g}, right {p_right[0, 3]:g})'
    if abs(baseline_m) < MIN_BASELINE_M:
        measured = f'Tx is zero in both camera_infos: {measured}'
        return _finding('baseline', 'error', measured, baseline_m)
    if baseline_m < 0 and abs(shift_right) < MIN_BASELINE_M:
        return _finding(
            'baseline',
            'error',
            f'Tx stands in the left camera_info: {measured}',
            baseline_m,
            'Exchange the two camera_infos: the one with Tx belongs to the right eye.',
        )
    if baseline_m < 0:
        return _finding(
            'baseline',
            'error',
            f'Tx has the wrong sign: {measured}',
            baseline_m,
            'Publish a negative P[3] = -fx * baseline in the right camera_info.',
        )
    least, most = USUAL_BASELINE_M
    if not least <= baseline_m <= most:
        return _finding(
            'baseline',
            'warn',
            f'unusual: {measured}',
            baseline_m,
            'Check the unit: P[3] = -fx * baseline with the baseline in metres.',
        )
    return _finding('baseline', 'ok', measured, baseline_m)


def _examine_projection(
    infos: dict[str, Any], p_left: NDArray[np.float64], p_right: NDArray[np.float64]
) -> Finding:
    faults = []
    largest = 0.0
    for name, row, column in (('fx', 0, 0), ('fy', 1, 1), ('cy', 1, 2)):
        left, right = float(p_left[row, column]), float(p_right[row, column])
        tolerance = ROW_TOLERANCE_PX if name == 'cy' else FOCAL_TOLERANCE * max(left, right)
        if name == 'cy':
            left -= infos['left'].roi.y_offset
            right -= infos['right'].roi.y_offset
        largest = max(largest, abs(left - right))
        if abs(left - right) > tolerance:
            faults.append(f'{name} is {left:.2f} px left and {right:.2f} px right')
    sizes = [_delivered_size(info) for info in infos.values()]
    if sizes[0] != sizes[1]:
        faults.append('the size is {}x{} left and {}x{} right'.format(*sizes[0], *sizes[1]))
    severity: Severity = 'error' if faults else 'ok'
    return _finding(
        'same_projection', severity, '; '.join(faults) or 'fx, fy, cy and size agree', largest
    )


def _examine_cx(
    infos: dict[str, Any], p_left: NDArray[np.float64], p_right: NDArray[np.float64]
) -> Finding:
    positions = [
        (p[0, 2] - info.roi.x_offset) / max(int(info.binning_x), 1)
        for p, info in zip((p_left, p_right), infos.values(), strict=True)
    ]
    offset_px = float(positions[0] - positions[1])
    return _graded(
        'cx_offset', Estimate(offset_px, 0.0), f'cx_left - cx_right = {offset_px:.2f} px'
    )


def _examine_frames(left: Any, right: Any) -> Finding:
    first, second = left.header.frame_id, right.header.frame_id
    if first == second:
        return _finding('frame_ids', 'ok', f'both are {first!r}')
    return _finding('frame_ids', 'warn', f'{first!r} left and {second!r} right')


def _examine_size(info: Any, image_size: tuple[int, int]) -> Finding:
    expected = _delivered_size(info)
    described = 'images {}x{}, camera_info {}x{}'.format(*image_size, *expected)
    severity: Severity = 'ok' if expected == image_size else 'error'
    return _finding('image_size', severity, described)


def _delivered_size(info: Any) -> tuple[int, int]:
    """Width and height after ROI and binning."""
    roi = info.roi
    width = int(roi.width) or int(info.width) - int(roi.x_offset)
    height = int(roi.height) or int(info.height) - int(roi.y_offset)
    return width // max(int(info.binning_x), 1), height // max(int(info.binning_y), 1)


def _judge_stamps(skews_ms: Sequence[float]) -> list[Finding]:
    if not skews_ms:
        return []
    largest = max(skews_ms, key=abs)
    apart = 100 * float(np.mean(np.abs(skews_ms) > 0))
    measured = f'up to {abs(largest):.3f} ms apart, {apart:.0f} % of the pairs not equal'
    return [_graded('stamps', Estimate(largest, 0.0), measured)]


def _judge_repeats(repeated: Sequence[tuple[bool, bool]]) -> list[Finding]:
    if not repeated:
        return []
    left, right = (100 * float(share) for share in np.mean(repeated, axis=0))
    measured = f'{left:.0f} % left, {right:.0f} % right equal the picture before'
    return [_graded('frozen', Estimate(max(left, right), 0.0), measured)]


def _judge_pictures(
    measures: Sequence[PairMeasure],
    scale: float,
    cx_offset_px: float,
    scene_error_px: float = 0.0,
) -> list[Finding]:
    if not measures:
        return []
    identical = 100 * float(np.mean([m.identical for m in measures]))
    found = [
        _graded('identical_eyes', Estimate(identical, 0.0), f'{identical:.0f} % of the pairs'),
        _judge_matches(measures),
    ]
    if found[-1].severity == 'ok':
        found.append(_judge_sign(_disparities(measures, scale, cx_offset_px)))
        found += _judge_rows(measures, scale, scene_error_px)
        found += _judge_levels(measures)
    return [*found, _judge_lens(measures), _judge_saturation(measures)]


def _judge_matches(measures: Sequence[PairMeasure]) -> Finding:
    count = sum(len(m.left) for m in measures)
    if count < FEWEST_MATCHES:
        return _finding(
            'matches',
            'unknown',
            f'too few matches: {count} in {len(measures)} pairs; rows, signs, exposure and '
            'sharpness are not judged',
            count,
        )
    return _finding('matches', 'ok', f'{count} in {len(measures)} pairs', count)


def _judge_sign(disparity: NDArray[np.float32]) -> Finding:
    negative = float(np.mean(disparity < -_BEHIND_INFINITY_PX))
    median = float(np.median(disparity))
    measured = f'{100 * negative:.0f} % of the matches, median disparity {median:.1f} px'
    if negative > SWAPPED_SHARE:
        return _finding(
            'disparity_sign',
            'error',
            f'the eyes are swapped: {measured}',
            100 * negative,
            'Exchange the left and right image topics; their camera_infos already fit.',
        )
    # Some matches are wrong, on repeated patterns up to a tenth; what counts is beyond that.
    error = 100 * math.sqrt(max(negative * (1 - negative), 0.0) / len(disparity))
    severity: Severity = 'ok'
    if Estimate(100 * negative, error).certainly_beyond(CHECKS['disparity_sign'].warn or 0.0):
        severity = 'warn'
    return _finding('disparity_sign', severity, measured, 100 * negative)


def _judge_rows(
    measures: Sequence[PairMeasure], scale: float, scene_error_px: float
) -> list[Finding]:
    fit = fit_rows(measures, scale)
    if fit is None:
        return []
    scene_error = scene_error_px * scale / math.sqrt(len(measures))
    half_width, half_height = measures[0].width * scale / 2, measures[0].height * scale / 2
    at_side, at_top = (
        Estimate(estimate.value, math.hypot(estimate.error, scene_error))
        for estimate in (fit.tilt.times(half_width), fit.stretch.times(half_height))
    )
    higher = 'higher' if fit.offset_px.value > 0 else 'lower'
    degrees = math.degrees(math.atan(fit.tilt.value))
    return [
        _graded(
            'row_offset',
            fit.offset_px,
            f'the right picture lies {abs(fit.offset_px.value):.2f} px {higher}',
        ),
        _graded(
            'row_tilt',
            at_side,
            f'{at_side.value:.2f} px at the right rim, {degrees:.2f} degrees',
        ),
        _graded(
            'row_stretch',
            at_top,
            f'{at_top.value:.2f} px at the lower rim, {100 * fit.stretch.value:.2f} %',
        ),
        _graded(
            'row_scatter', Estimate(fit.scatter_px, 0.0), f'{fit.scatter_px:.2f} px about the fit'
        ),
    ]


def _judge_levels(measures: Sequence[PairMeasure]) -> list[Finding]:
    found = []
    levels = fit_levels(measures)
    if levels is not None:
        found.append(
            _graded(
                'exposure',
                levels.difference,
                f'right = {levels.gain:.2f} * left {levels.offset:+.0f}, '
                f'{levels.difference.value:+.0f} of {levels.middle:.0f} grey levels',
            )
        )
    ratio = sharpness_ratio(measures, 1.0 if levels is None else levels.gain)
    if ratio is not None:
        blurred, value = ('right', 1 / ratio.value) if ratio.value < 1 else ('left', ratio.value)
        size = Estimate(value, value * ratio.error / ratio.value)
        measured = f'fine detail differs by {value:.2f}, less of it in the {blurred} eye'
        found.append(_graded('sharpness', size, measured))
    return found


def _judge_lens(measures: Sequence[PairMeasure]) -> Finding:
    if not scene_changes(measures):
        return _finding(
            'blocked_lens',
            'unknown',
            f'needs {FEWEST_FRAMES_BLOCKED} pairs between which the scene changes',
        )
    regions = blocked_regions(measures)
    if not regions:
        return _finding('blocked_lens', 'ok', 'both eyes see in all of their picture', 0.0)
    largest = regions[0]
    share = 100 * sum(region.share for region in regions if region.eye == largest.eye)
    place = (
        f'x {100 * largest.x:.0f} to {100 * (largest.x + largest.width):.0f} %, '
        f'y {100 * largest.y:.0f} to {100 * (largest.y + largest.height):.0f} %'
    )
    kind = 'dark' if largest.level < 40 else 'without detail'
    measured = f'{share:.0f} % of the {largest.eye} eye is always {kind}: {place}'
    return _graded('blocked_lens', Estimate(share, 0.0), measured)


def _judge_saturation(measures: Sequence[PairMeasure]) -> Finding:
    left, right = (
        100 * float(np.mean([getattr(m, name) for m in measures]))
        for name in ('saturated_left', 'saturated_right')
    )
    measured = f'{left:.0f} % left, {right:.0f} % right'
    return _graded('saturation', Estimate(max(left, right), 0.0), measured)


def _with_common_remedy(findings: list[Finding]) -> list[Finding]:
    """A wrong sign in the calibration and in the pictures together has a cause of its own."""
    by_check = {f.check: f for f in findings}
    sign, baseline = by_check.get('disparity_sign'), by_check.get('baseline')
    swapped = sign is not None and sign.severity == 'error'
    negative = baseline is not None and (baseline.value or 0.0) <= -MIN_BASELINE_M
    if not (swapped and negative):
        return findings
    remedy = 'Left and right are exchanged altogether: exchange images and camera_infos.'
    return [
        Finding(**{**f.to_dict(), 'remedy': remedy}) if f in (sign, baseline) else f
        for f in findings
    ]


def _disparities(
    measures: Sequence[PairMeasure], scale: float, cx_offset_px: float
) -> NDArray[np.float32]:
    """Of all matches, in pixels of the original picture, corrected for the cx offset."""
    if not measures:
        return np.empty(0, np.float32)
    return np.concatenate([m.disparity_px for m in measures]) * np.float32(scale) - np.float32(
        cx_offset_px
    )


def _reduced(picture: NDArray[np.uint8], width_px: int) -> tuple[NDArray[np.uint8], float]:
    """The picture at no more than a width, and how many old pixels a new one spans."""
    height, width = picture.shape[:2]
    if width <= width_px:
        return picture, 1.0
    size = (width_px, max(1, round(height * width_px / width)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA), width / width_px


def _require_same_size(
    left: NDArray[np.uint8], right: NDArray[np.uint8], before: tuple[int, int] | None
) -> None:
    size_left, size_right = ((image.shape[1], image.shape[0]) for image in (left, right))
    if size_left != size_right:
        raise DoctorError(
            'the left image is {}x{} and the right one {}x{}: both eyes must deliver one '
            'size; check ROI, binning and resize of each'.format(*size_left, *size_right)
        )
    if before is not None and size_left != before:
        raise DoctorError(
            'the images change from {}x{} to {}x{} on the way: examine the parts one by '
            'one'.format(*before, *size_left)
        )
