# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The doctor beside the node: what he finds, how he says it, and that depth never waits."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rcl_interfaces.msg import Log
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from ros_rig import Rig, camera_infos, wait_until
from sensor_msgs.msg import Image
from tiny_models import write_block_matcher

from stereo_kd_ros.camera import StereoCamera, calibration_record
from stereo_kd_ros.doctor import OnlineDoctor
from stereo_kd_ros.doctor_checks import CHECKS as DOCTOR_CHECKS
from stereo_kd_ros.model import read_manifest, write_manifest
from stereo_kd_ros.node import calibration_watch
from stereo_kd_ros.node.calibration_watch import (
    CHECKS,
    CalibrationWatch,
    Offer,
    adapted_elsewhere,
)
from stereo_kd_ros.procedural import render_sequence

CAMERA = StereoCamera.from_intrinsics(260.0, 0.12, 320, 240)
INFOS = camera_infos(240, 320, 260.0, 0.12)
TIMEOUT_S = 90.0
Pair = tuple[np.ndarray, np.ndarray]
Change = Callable[[np.ndarray, np.ndarray], Pair]


@pytest.fixture(scope='module')
def drive() -> list[Pair]:
    """Six pairs of a walk."""
    return [(s.left, s.right) for s in render_sequence(2, 6, CAMERA)]


@pytest.fixture(autouse=True)
def _looks_at_every_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_watch, 'PERIOD_S', 0.0)
    monkeypatch.setattr(calibration_watch, 'REST_PER_LOOK', 0.0)
    monkeypatch.setattr(calibration_watch, 'STEP_WAIT_S', 0.0)


@contextmanager
def watching() -> Iterator[CalibrationWatch]:
    """A watch without a node."""
    watch = CalibrationWatch(lambda sentence, is_bad: None)
    watch.start()
    try:
        yield watch
    finally:
        watch.stop()


class Session:
    """A rig, its log, and a walk that goes on until what is expected is seen."""

    def __init__(self, rig: Rig, drive: list[Pair]) -> None:
        self.rig, self._drive = rig, drive
        self._stamp_ns = 0
        # What is logged once must not be missed because endpoints had not found each other.
        keep = QoSProfile(depth=200, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._log = rig.listen('/rosout', Log, keep)
        self.depth = rig.listen('depth/image', Image)
        rig.ready(self.depth)

    def send(self, change: Change | None = None, infos: tuple = INFOS) -> None:
        """Publishes the next pair and waits until the node is done with it."""
        done = sum(self.rig.node.counts().values())
        left, right = self._drive[self._stamp_ns % len(self._drive)]
        self._stamp_ns += 1
        left, right = change(left, right) if change else (left, right)
        self.rig.camera.send(left, right, self._stamp_ns, infos)
        # One count for the pair's arrival, one for what became of it.
        wait_until(lambda: sum(self.rig.node.counts().values()) >= done + 2, TIMEOUT_S)

    def looked(self, pairs: int, change: Change | None = None) -> None:
        """Sends until the watch has looked at so many pairs since it last began afresh."""

        def enough() -> bool:
            if self.rig.node.watch.report().pairs >= pairs:
                return True
            self.send(change)
            threading.Event().wait(0.02)
            return False

        wait_until(enough, TIMEOUT_S)

    def lines(self, part: str) -> list[str]:
        """What the log says about a part of the calibration check."""
        return [m.msg for m in self._log.messages if f'calibration check: {part}' in m.msg]


@pytest.fixture
def session(block_matcher: str, drive: list[Pair]) -> Iterator[Session]:
    with Rig(model=block_matcher) as rig:
        yield Session(rig, drive)


def swapped(left: np.ndarray, right: np.ndarray) -> Pair:
    return right, left


def rows_apart(left: np.ndarray, right: np.ndarray) -> Pair:
    return left, np.roll(right, -4, axis=0)


def darker(left: np.ndarray, right: np.ndarray) -> Pair:
    return left, (right * 0.45).astype(np.uint8)


def covered(left: np.ndarray, right: np.ndarray) -> Pair:
    right = right.copy()
    right[:100, 200:] = 0
    return left, right


def test_a_good_pair_is_ok(session: Session) -> None:
    session.looked(6)
    status = session.rig.status('calibration')
    values = {pair.key: pair.value for pair in status.values}
    assert status.level == DiagnosticStatus.OK
    assert status.message == 'rectified stereo pair'
    assert values['check_state'] == 'watching'
    assert values['check_findings'] == 'none'
    assert int(values['check_pairs']) >= 6
    assert float(values['check_ms']) > 0
    assert all(values[f'check_{name}'].startswith('ok: ') for name in CHECKS), values
    assert session.lines('') == []


@pytest.mark.parametrize(
    ('change', 'check', 'word'),
    [
        (swapped, 'disparity_sign', 'the eyes are swapped'),
        (rows_apart, 'row_offset', 'px higher'),
        (darker, 'exposure', 'grey levels'),
        (covered, 'blocked_lens', 'of the right eye is always dark'),
    ],
)
def test_a_fault_is_named_with_its_remedy_and_depth_goes_on(
    session: Session, change: Change, check: str, word: str
) -> None:
    def found() -> bool:
        session.send(change)
        return bool(session.lines(check))

    wait_until(found, TIMEOUT_S)
    status = session.rig.status('calibration')
    values = {pair.key: pair.value for pair in status.values}
    (finding,) = [f for f in session.rig.node.watch.report().standing if f.check == check]
    assert word in finding.measured
    assert status.level == DiagnosticStatus.WARN
    assert check in values['check_findings'].split(', ')
    assert values[f'check_{check}'].startswith(('warn: ', 'error: '))
    assert word in values[f'check_{check}']
    if session.rig.node.watch.report().faults[0].check == check:
        assert finding.remedy in status.message
    assert word in session.lines(check)[0]
    assert finding.remedy in session.lines(check)[0]
    published = session.rig.node.counts()['pairs_published']
    session.send(change)
    assert session.rig.node.counts()['pairs_published'] == published + 1


def test_a_change_is_logged_once_and_so_is_the_way_back(session: Session) -> None:
    wait_until(lambda: session.send(swapped) or session.lines('disparity_sign'), TIMEOUT_S)
    for _ in range(10):
        session.send(swapped)
    assert len(session.lines('disparity_sign')) == 1
    wait_until(lambda: session.send() or session.lines('disparity_sign is right again'), TIMEOUT_S)
    assert session.rig.status('calibration').level == DiagnosticStatus.OK
    bad = [line for line in session.lines('disparity_sign') if 'right again' not in line]
    # On the way back the share of swapped pairs in memory may pass the lesser grade.
    assert len(bad) <= 2


def test_an_unusable_camera_info_comes_with_its_remedy(session: Session) -> None:
    infos = camera_infos(240, 320, 260.0, 0.12)
    infos[1].p[3] = 0.0
    wait_until(lambda: session.send(infos=infos) or session.lines('baseline'), TIMEOUT_S)
    status = session.rig.status('calibration')
    assert status.level == DiagnosticStatus.ERROR
    assert DOCTOR_CHECKS['baseline'].remedy in status.message
    assert session.rig.values('calibration')['check_baseline'].startswith('error: Tx is zero')


def test_a_cx_offset_is_told_and_is_no_fault_here(session: Session) -> None:
    infos = camera_infos(240, 320, 260.0, 0.12, cx_offset_px=3.0)
    wait_until(lambda: session.send(infos=infos) or session.lines('cx_offset'), TIMEOUT_S)
    assert session.rig.values('calibration')['check_findings'] == 'cx_offset'
    assert session.rig.status('calibration').level == DiagnosticStatus.OK


def test_it_can_be_switched_off_and_on_while_running(session: Session) -> None:
    rig = session.rig
    session.looked(2)
    rig.node.set_parameters([Parameter('calibration_check', value=False)])
    values = rig.values('calibration')
    assert values['check_state'] == 'off'
    wait_until(lambda: rig.node.watch.report().pairs == 0, TIMEOUT_S)
    for _ in range(4):
        session.send(swapped)
    assert rig.node.watch.report().pairs <= 1  # one may have been on its way
    assert session.lines('disparity_sign') == []
    rig.node.set_parameters([Parameter('calibration_check', value=True)])
    session.looked(3)
    assert rig.values('calibration')['check_state'] == 'watching'


def test_it_forgets_with_deactivation_and_with_another_camera(session: Session) -> None:
    wait_until(lambda: session.send(swapped) or session.lines('disparity_sign'), TIMEOUT_S)
    node = session.rig.node
    wider = camera_infos(240, 320, 300.0, 0.2)
    wait_until(lambda: session.send(infos=wider) or not node.watch.report().standing, TIMEOUT_S)
    wait_until(lambda: session.send(swapped) or node.watch.report().standing, TIMEOUT_S)
    node.trigger_deactivate()
    report = node.watch.report()
    assert (report.pairs, report.answers, report.standing) == (0, {}, ())
    assert not [t for t in threading.enumerate() if t.name == 'calibration_watch' and t.is_alive()]
    node.trigger_activate()
    session.rig.ready(session.depth)
    session.looked(3)
    assert session.rig.values('calibration')['check_findings'] == 'none'


def test_a_doctor_who_fails_never_touches_depth(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> Iterator[None]:
        yield
        raise RuntimeError('no stethoscope')

    monkeypatch.setattr(OnlineDoctor, 'feeding', broken)
    for _ in range(5):
        session.send()
    wait_until(lambda: session.send() or session.rig.node.watch.report().failure, TIMEOUT_S)
    counts = session.rig.node.counts()
    assert counts['pairs_published'] == counts['pairs_received'] > 5
    status = session.rig.status('calibration')
    assert status.level == DiagnosticStatus.OK
    values = {pair.key: pair.value for pair in status.values}
    assert values['check_state'] == 'failed: RuntimeError: no stethoscope'

    def told() -> list[str]:
        return [m.msg for m in session._log.messages if 'stethoscope' in m.msg]

    wait_until(told, TIMEOUT_S)
    assert len(told()) == 1 and 'depth goes on' in told()[0]
    monkeypatch.undo()
    session.looked(1)
    assert session.rig.values('calibration')['check_state'] == 'watching'


def test_the_worker_never_waits_for_a_slow_doctor(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, may_end = threading.Event(), threading.Event()

    def slow(*_: object) -> Iterator[None]:
        begun.set()
        may_end.wait(TIMEOUT_S)
        yield

    monkeypatch.setattr(OnlineDoctor, 'feeding', slow)
    try:
        wait_until(lambda: session.send() or begun.is_set(), TIMEOUT_S)
        published = session.rig.node.counts()['pairs_published']
        for _ in range(5):
            session.send()
        assert session.rig.node.counts()['pairs_published'] == published + 5
    finally:
        may_end.set()


def test_a_look_goes_on_by_a_step_when_a_pair_has_been_published(
    drive: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []

    def in_steps(*_: object) -> Iterator[None]:
        for step in range(3):
            taken.append(step)
            yield

    monkeypatch.setattr(OnlineDoctor, 'feeding', in_steps)
    monkeypatch.setattr(calibration_watch, 'PERIOD_S', 3600.0)
    monkeypatch.setattr(calibration_watch, 'STEP_WAIT_S', TIMEOUT_S)
    with watching() as watch:
        for steps in (1, 2, 3):
            watch.offer(Offer(*INFOS, *drive[0]))
            wait_until(lambda steps=steps: len(taken) == steps, TIMEOUT_S)
            threading.Event().wait(0.1)
            assert len(taken) == steps
            assert watch.report().pairs == 0
        watch.offer(Offer(*INFOS, *drive[0]))
        wait_until(lambda: watch.report().pairs == 1, TIMEOUT_S)


def test_a_look_does_not_wait_for_pairs_that_do_not_come(
    drive: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_watch, 'STEP_WAIT_S', 0.1)
    with watching() as watch:
        watch.offer(Offer(*INFOS, *drive[0]))
        wait_until(lambda: watch.report().pairs == 1, TIMEOUT_S)
    # Nor does the end wait for the look.
    monkeypatch.setattr(calibration_watch, 'STEP_WAIT_S', TIMEOUT_S)
    with watching() as watch:
        watch.offer(Offer(*INFOS, *drive[0]))
        threading.Event().wait(0.2)
    left = [t for t in threading.enumerate() if t.name == 'calibration_watch' and t.is_alive()]
    assert not left


def test_looks_are_rare_and_a_long_one_is_followed_by_a_long_rest(
    drive: list[Pair], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration_watch, 'PERIOD_S', 3600.0)
    with watching() as watch:
        watch.offer(Offer(*INFOS, *drive[0]))
        wait_until(lambda: watch.report().pairs == 1, TIMEOUT_S)
        for _ in range(20):
            watch.offer(Offer(*INFOS, *drive[1]))
        threading.Event().wait(0.2)
        assert watch.report().pairs == 1
    monkeypatch.setattr(calibration_watch, 'PERIOD_S', 0.0)
    monkeypatch.setattr(calibration_watch, 'REST_PER_LOOK', 1e9)
    with watching() as watch:
        watch.offer(Offer(*INFOS, *drive[0]))
        wait_until(lambda: watch.report().pairs == 1 and watch.report().look_ms, TIMEOUT_S)
        watch.offer(Offer(*INFOS, *drive[1]))
        threading.Event().wait(0.2)
        assert watch.report().pairs == 1


def test_a_model_of_another_camera_is_pointed_out(
    tmp_path: Path, drive: list[Pair], block_matcher: str
) -> None:
    here = calibration_record(CAMERA)
    there = calibration_record(StereoCamera.from_intrinsics(130.0, 0.06, 320, 240))
    assert adapted_elsewhere(None, CAMERA) == adapted_elsewhere(here, CAMERA) == ''
    assert adapted_elsewhere(there, None) == ''
    assert 'baseline 0.0600 m' in adapted_elsewhere(there, CAMERA)
    assert '?' in adapted_elsewhere({'hash': 'other'}, CAMERA)

    # The same camera, as its camera_info tells it.
    for record, level in (
        (calibration_record(StereoCamera.from_camera_info(*INFOS)), DiagnosticStatus.OK),
        (there, DiagnosticStatus.WARN),
    ):
        model = write_block_matcher(tmp_path / f'adapted_{record["hash"]}.onnx')
        manifest = read_manifest(model)
        write_manifest(model, type(manifest)(**{**vars(manifest), 'calibration': record}))
        with Rig(model=str(model)) as rig:
            session = Session(rig, drive)
            session.send()
            wait_until(lambda rig=rig: rig.node.counts()['pairs_published'], TIMEOUT_S)
            status = rig.status('calibration')
            assert status.level == level
            values = {pair.key: pair.value for pair in status.values}
            wanted = 'this camera' if level == DiagnosticStatus.OK else 'another camera'
            assert values['model_calibration'] == wanted
            said = [m.msg for m in session._log.messages if 'was adapted to a camera' in m.msg]
            if level == DiagnosticStatus.WARN:
                assert 'fx 130.0 px' in status.message and 'fx 260.0 px' in status.message
                wait_until(
                    lambda session=session: [
                        m for m in session._log.messages if 'was adapted to a camera' in m.msg
                    ],
                    TIMEOUT_S,
                )
                rig.status('calibration')
                said = [m.msg for m in session._log.messages if 'was adapted to a camera' in m.msg]
                assert len(said) == 1
            else:
                assert said == []
