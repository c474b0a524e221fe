# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Each fault put into a healthy camera gives its finding, and a healthy camera gives none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.doctor import (
    Doctor,
    DoctorError,
    Finding,
    OnlineDoctor,
    examine_camera_infos,
    examine_topic,
    worst,
)
from stereo_kd_ros.procedural import render_sequence
from stereo_kd_ros.sequence import read_picture

CAMERA = StereoCamera.from_intrinsics(260.0, 0.12, 320, 240)
Pair = tuple[np.ndarray, np.ndarray]


def info(camera: StereoCamera, eye: str, **changes: object) -> SimpleNamespace:
    """A CameraInfo as rclpy gives it."""
    p = camera.projection_left if eye == 'left' else camera.projection_right
    fields = {
        'header': SimpleNamespace(frame_id='camera_optical'),
        'width': camera.width,
        'height': camera.height,
        'k': p[:, :3].reshape(-1),
        'p': p.reshape(-1).copy(),
        'binning_x': 0,
        'binning_y': 0,
        'roi': SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0),
    }
    return SimpleNamespace(**{**fields, **changes})


def p_with(eye: str, **entries: float) -> np.ndarray:
    """P of an eye with some of its entries replaced."""
    p = info(CAMERA, eye).p
    for name, value in entries.items():
        p[{'fx': 0, 'cx': 2, 'tx': 3, 'fy': 5, 'cy': 6}[name]] = value
    return p


def by_check(findings: list[Finding] | tuple[Finding, ...]) -> dict[str, Finding]:
    return {finding.check: finding for finding in findings}


def above_ok(findings: list[Finding] | tuple[Finding, ...]) -> dict[str, str]:
    return {f.check: f.severity for f in findings if f.severity in ('warn', 'error')}


@pytest.fixture(scope='module')
def drive() -> list[Pair]:
    """Six pairs of a walk."""
    return [(s.left, s.right) for s in render_sequence(2, 6, CAMERA)]


def examined(pairs: list[Pair], change: Callable[[np.ndarray, np.ndarray], Pair]) -> list[Finding]:
    """What the doctor says of changed pairs of the healthy camera."""
    doctor = Doctor(info(CAMERA, 'left'), info(CAMERA, 'right'))
    for left, right in pairs:
        doctor.add(*change(left, right))
    return doctor.findings()


@pytest.mark.parametrize('seed', range(4))
def test_healthy_pairs_have_nothing(seed: int) -> None:
    pairs = [(s.left, s.right) for s in render_sequence(seed, 5, CAMERA)]
    findings = examined(pairs, lambda left, right: (left, right))

    assert above_ok(findings) == {}
    assert set(by_check(findings)) >= {
        'calibrated', 'baseline', 'disparity_sign', 'row_offset', 'exposure', 'blocked_lens',
    }  # fmt: skip


def test_the_other_eye_lower_by_three_rows(drive) -> None:
    findings = by_check(examined(drive, lambda left, right: (left, np.roll(right, 3, axis=0))))

    assert findings['row_offset'].severity == 'error'
    assert findings['row_offset'].value == pytest.approx(-3.0, abs=0.2)
    assert 'lower' in findings['row_offset'].measured
    assert findings['row_tilt'].severity == 'ok'


def test_a_rolled_eye(drive) -> None:
    turn = cv2.getRotationMatrix2D((159.5, 119.5), 1.0, 1.0)

    def turned(left: np.ndarray, right: np.ndarray) -> Pair:
        return left, cv2.warpAffine(right, turn, (320, 240), borderMode=cv2.BORDER_REFLECT)

    findings = by_check(examined(drive, turned))

    assert findings['row_tilt'].severity == 'error'
    assert findings['row_tilt'].value == pytest.approx(160 * np.sin(np.pi / 180), abs=0.2)
    assert findings['row_stretch'].severity == 'ok'


def test_swapped_pictures(drive) -> None:
    findings = by_check(examined(drive, lambda left, right: (right, left)))

    assert findings['disparity_sign'].severity == 'error'
    assert 'swapped' in findings['disparity_sign'].measured
    assert 'image topics' in findings['disparity_sign'].remedy
    assert 'disparity_range' not in findings


def test_everything_swapped_has_one_remedy(drive) -> None:
    # A driver that calls its right camera left: pictures and Tx both the other way round.
    doctor = Doctor(info(CAMERA, 'left'), info(CAMERA, 'right', p=p_with('right', tx=31.2)))
    for left, right in drive:
        doctor.add(right, left)
    findings = by_check(doctor.findings())

    assert findings['baseline'].severity == findings['disparity_sign'].severity == 'error'
    assert findings['baseline'].remedy == findings['disparity_sign'].remedy
    assert 'images and camera_infos' in findings['baseline'].remedy


def test_a_dim_eye(drive) -> None:
    findings = by_check(
        examined(drive, lambda left, right: (left, (right * 0.6).astype(np.uint8)))
    )

    assert findings['exposure'].severity == 'warn'
    assert 'right = 0.5' in findings['exposure'].measured
    assert findings['row_offset'].severity == 'ok'


def test_a_blurred_eye(drive) -> None:
    findings = by_check(
        examined(drive, lambda left, right: (cv2.GaussianBlur(left, (0, 0), 1.3), right))
    )

    assert findings['sharpness'].severity == 'warn'
    assert 'left eye' in findings['sharpness'].measured


def test_a_covered_corner(drive) -> None:
    def covered(left: np.ndarray, right: np.ndarray) -> Pair:
        right = right.copy()
        right[160:, :80] = 0
        return left, right

    findings = by_check(examined(drive, covered))

    assert findings['blocked_lens'].severity == 'warn'
    assert findings['blocked_lens'].value == pytest.approx(100 / 12, abs=2)
    assert 'right eye' in findings['blocked_lens'].measured


def test_one_camera_on_both_topics(drive) -> None:
    findings = by_check(examined(drive, lambda left, right: (left, left)))
    assert findings['identical_eyes'].severity == 'error'


def test_a_frozen_driver(drive) -> None:
    doctor = Doctor()
    left, right = drive[0]
    doctor.add(left, right)
    for _, other in drive[1:]:
        doctor.add(left, other, follows=True)
    finding = by_check(doctor.findings())['frozen']

    assert finding.severity == 'error'
    assert finding.measured.startswith('100 % left, 0 % right')


def test_a_camera_in_the_sun(drive) -> None:
    findings = by_check(
        examined(
            drive, lambda *eyes: tuple(np.where(e > 90, 255, e).astype(np.uint8) for e in eyes)
        )
    )
    assert findings['saturation'].severity in ('warn', 'error')


@pytest.mark.parametrize(('skew_ms', 'severity'), [(0, 'ok'), (4, 'warn'), (-33, 'error')])
def test_stamps_apart(drive, skew_ms: int, severity: str) -> None:
    doctor = Doctor()
    doctor.add(*drive[0], skew_ns=skew_ms * 10**6)
    finding = by_check(doctor.findings())['stamps']

    assert finding.severity == severity
    assert finding.value == skew_ms


@pytest.mark.parametrize('noise', [0.0, 3.0])
def test_walls_without_texture_raise_no_alarm(noise: float) -> None:
    rng = np.random.default_rng(0)
    doctor = Doctor()
    online = OnlineDoctor()
    for frame in range(6):
        eyes = [
            np.clip(rng.normal(100 + 10 * frame, noise, (240, 320)), 0, 255).astype(np.uint8)
            for _ in range(2)
        ]
        doctor.add(*eyes)
        online.feed(*eyes, now_s=10.0 * frame)

    for findings in (doctor.findings(), online.findings):
        assert above_ok(findings) == {}
        assert by_check(findings)['matches'].severity == 'unknown'
        assert 'too few matches' in by_check(findings)['matches'].measured
        assert 'row_offset' not in by_check(findings)


def test_a_healthy_camera_info_passes() -> None:
    findings = examine_camera_infos(info(CAMERA, 'left'), info(CAMERA, 'right'), (320, 240))

    assert worst(findings) == 'ok'
    assert by_check(findings)['baseline'].value == pytest.approx(0.12)


@pytest.mark.parametrize(
    ('left', 'right', 'check', 'words'),
    [
        ({}, {'k': np.zeros(9)}, 'calibrated', 'K of the right camera_info is zero'),
        ({'p': np.zeros(12)}, {}, 'calibrated', 'P of the left camera_info is zero'),
        ({}, {'p': p_with('right', fx=np.nan)}, 'calibrated', 'NaN'),
        ({}, {'p': p_with('right', tx=0)}, 'baseline', 'Tx is zero in both'),
        ({}, {'p': p_with('right', tx=31.2)}, 'baseline', 'wrong sign'),
        (
            {'p': p_with('left', tx=-31.2)},
            {'p': p_with('right', tx=0)},
            'baseline',
            'stands in the left',
        ),
        ({}, {'p': p_with('right', fx=300, tx=-36)}, 'same_projection', 'fx is 260'),
        ({}, {'p': p_with('right', cy=130)}, 'same_projection', 'cy is 119.50'),
        ({}, {'width': 640}, 'same_projection', '640x240 right'),
        ({'binning_x': 2}, {'binning_x': 2}, 'image_size', 'camera_info 160x240'),
        ({'width': 0}, {'width': 0}, 'image_size', 'camera_info 0x240'),
    ],
)
def test_a_wrong_camera_info_is_named(left, right, check: str, words: str) -> None:
    findings = by_check(
        examine_camera_infos(
            info(CAMERA, 'left', **left), info(CAMERA, 'right', **right), (320, 240)
        )
    )
    assert findings[check].severity == 'error'
    assert words in findings[check].measured
    assert findings[check].remedy


@pytest.mark.parametrize(
    ('right', 'check'),
    [
        ({'p': p_with('right', tx=-260 * 120.0)}, 'baseline'),  # millimetres
        ({'p': p_with('right', cx=150.0)}, 'cx_offset'),
        ({'header': SimpleNamespace(frame_id='right_optical')}, 'frame_ids'),
    ],
)
def test_what_still_works_is_a_warning(right, check: str) -> None:
    findings = examine_camera_infos(info(CAMERA, 'left'), info(CAMERA, 'right', **right))
    assert above_ok(findings) == {check: 'warn'}


def test_what_the_camera_refuses_is_never_fine() -> None:
    # A vertical pair: nothing of the single checks, but no depth along the rows.
    p = info(CAMERA, 'right').p
    p[7] = -31.2
    findings = examine_camera_infos(info(CAMERA, 'left'), info(CAMERA, 'right', p=p))

    assert above_ok(findings) == {'camera_info': 'error'}
    assert 'vertical pair' in by_check(findings)['camera_info'].measured


def test_an_offset_of_cx_is_allowed_for() -> None:
    camera = StereoCamera(320, 240, 260.0, 260.0, 140.0, 180.0, 119.5, 0.12)
    doctor = Doctor(info(camera, 'left'), info(camera, 'right'))
    for sample in render_sequence(1, 3, camera):
        assert np.median(sample.disparity) < 0  # raw disparities would look swapped
        doctor.add(sample.left, sample.right)

    assert above_ok(doctor.findings()) == {'cx_offset': 'warn'}


def test_the_disparity_range_holds_the_truth() -> None:
    doctor = Doctor(info(CAMERA, 'left'), info(CAMERA, 'right'))
    samples = list(render_sequence(2, 4, CAMERA))
    for sample in samples:
        doctor.add(sample.left, sample.right)
    span = doctor.disparity_range()
    truth = np.concatenate([sample.disparity.ravel() for sample in samples])

    assert span is not None
    assert span.max_disparity % 16 == 0
    assert span.max_disparity > np.percentile(truth, 99)
    assert span.near_m == pytest.approx(260 * 0.12 / span.high_px)


def test_pictures_of_two_sizes_are_refused(drive) -> None:
    left, right = drive[0]
    doctor = Doctor()
    with pytest.raises(DoctorError, match='320x240 and the right one 320x200'):
        doctor.add(left, right[:200])
    doctor.add(left, right)
    with pytest.raises(DoctorError, match='change from 320x240 to 320x200'):
        doctor.add(left[:200], right[:200])


def test_online_looks_only_when_it_is_time(drive) -> None:
    doctor = OnlineDoctor(period_s=2.0)

    assert doctor.feed(*drive[0], now_s=100.0) is not None
    assert doctor.feed(*drive[1], now_s=101.9) is None
    assert doctor.feed(*drive[1], now_s=102.0) is not None
    assert doctor.feed(*drive[2], now_s=50.0) is not None  # a clock that was set back


def test_online_sees_what_the_long_examination_sees(drive) -> None:
    def large(picture: np.ndarray) -> np.ndarray:
        return cv2.resize(picture, None, fx=2, fy=2, interpolation=cv2.INTER_CUBIC)

    healthy, sick = OnlineDoctor(CAMERA), OnlineDoctor(CAMERA)
    for index, (left, right) in enumerate(drive):
        left, right = large(left), large(right)
        healthy.feed(left, right, 2.0 * index)
        right = (np.roll(right, -4, axis=0) * 0.6).astype(np.uint8)
        right[:160, 480:] = 0
        sick.feed(left, right, 2.0 * index)

    assert above_ok(healthy.findings) == {}
    found = by_check(sick.findings)
    assert found['row_offset'].value == pytest.approx(4.0, abs=0.3)  # in full-size rows
    assert above_ok(sick.findings) == {
        'row_offset': 'error', 'exposure': 'warn', 'blocked_lens': 'warn',
    }  # fmt: skip
    assert set(found) <= set(OnlineDoctor.CHECKS)


def test_online_notices_swapped_eyes_and_recovers(drive) -> None:
    doctor = OnlineDoctor(memory=3)
    for index, (left, right) in enumerate(drive[:3]):
        doctor.feed(right, left, 2.0 * index)
    assert by_check(doctor.findings)['disparity_sign'].severity == 'error'
    for index, (left, right) in enumerate(drive[:3]):
        doctor.feed(left, right, 10.0 + 2.0 * index)
    assert by_check(doctor.findings)['disparity_sign'].severity == 'ok'


def test_online_forgets_when_the_camera_changes(drive) -> None:
    doctor = OnlineDoctor(CAMERA)
    doctor.feed(*drive[0], now_s=0.0)
    doctor.camera = CAMERA
    assert doctor.findings
    doctor.camera = CAMERA.scaled(0.5, 0.5)
    assert doctor.findings == ()
    assert doctor.due(0.1)


def _photographed(scene: Path) -> Doctor:
    doctor = Doctor()
    doctor.add(read_picture(scene / 'left.png'), read_picture(scene / 'right.png'))
    return doctor


def test_well_calibrated_real_cameras_raise_no_alarm(data_dir: Path) -> None:
    scenes = sorted((data_dir / 'kitti2015').glob('*_10'))[:6]
    scenes += sorted((data_dir / 'middlebury2005').iterdir())[:4]
    for scene in scenes:
        findings = _photographed(scene).findings()
        assert above_ok(findings) == {}, scene.name
        assert by_check(findings)['matches'].severity == 'ok', scene.name


def test_online_trusts_real_cameras_too(data_dir: Path) -> None:
    scenes = sorted((data_dir / 'kitti2015').glob('*_10'))[:6]
    for scene in scenes + sorted((data_dir / 'middlebury2005').iterdir())[:4]:
        doctor = OnlineDoctor()
        for now_s in (0.0, 2.0, 4.0):
            doctor.feed(read_picture(scene / 'left.png'), read_picture(scene / 'right.png'), now_s)
        assert above_ok(doctor.findings) == {}, scene.name


def test_a_real_change_of_exposure_is_noticed(data_dir: Path) -> None:
    # The scene was photographed with another exposure in the right eye.
    scene = data_dir / 'unlabelled_middlebury2014q' / 'MotorcycleE'
    assert above_ok(_photographed(scene).findings()) == {'exposure': 'warn'}


def test_a_raw_topic_is_pointed_out() -> None:
    assert examine_topic('/left/image_rect', True).severity == 'ok'
    assert examine_topic('/left/image_raw', False).severity == 'warn'
