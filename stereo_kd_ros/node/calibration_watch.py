# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Looks at a pair every two seconds for what is wrong with the cameras, beside the depth.

The worker offers each pair after it has been published; the look happens in a thread of its own,
on the newest pair offered, and costs 10 to 20 ms of one core. Nothing waits for it and nothing
depends on it. It is taken in steps of a few milliseconds, one after each published pair: all at
once it held a processor for longer than there is between two pairs, and where inference wants all
of them, two or three pairs came late or were dropped. After a look the thread rests for fifty
times as long as it took, so that it never uses more than 2 % of a core. What is found stands until
the same check finds it right; each change is logged once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stereo_kd_ros.camera import StereoCamera, calibration_hash
from stereo_kd_ros.doctor import (
    SEVERITIES,
    Finding,
    OnlineDoctor,
    examine_camera_infos,
    usable_camera,
)
from stereo_kd_ros.pairing import Mailbox

PERIOD_S = 2.0
REST_PER_LOOK = 50.0
# A step waits no longer for the next pair: where pairs are this rare there is time between them.
STEP_WAIT_S = 0.1
STOP_TIMEOUT_S = 30.0
_ENDED = object()
INFO_CHECKS = ('calibrated', 'baseline', 'same_projection', 'cx_offset')
CHECKS = (*INFO_CHECKS, *OnlineDoctor.CHECKS)
# Worth a line in the log, and no fault of the depth published here.
ALLOWED_FOR = frozenset({'cx_offset'})


@dataclass(frozen=True)
class Offer:
    """A pair as the worker had it; without pictures when its camera_info was unusable."""

    left_info: Any
    right_info: Any
    left_rgb: np.ndarray | None = None  # (H, W, 3) uint8
    right_rgb: np.ndarray | None = None


@dataclass(frozen=True)
class WatchReport:
    """What the watch knows at one moment.

    Attributes:
        pairs: looked at since it began or forgot.
        look_ms: how long the steps of the last look took together.
        failure: why the last look failed; empty when it did not.
        answers: the last answer of each check that has given one.
        standing: what is wrong, gravest first.
    """

    pairs: int
    look_ms: float
    failure: str
    answers: dict[str, Finding]
    standing: tuple[Finding, ...]

    @property
    def faults(self) -> tuple[Finding, ...]:
        """What is wrong and harms the depth."""
        return tuple(f for f in self.standing if f.check not in ALLOWED_FOR)


class CalibrationWatch:
    """Feeds an `OnlineDoctor` from its own thread.

    Args:
        on_change: Called from that thread with a sentence, and whether it is bad news.
    """

    def __init__(self, on_change: Callable[[str, bool], None]) -> None:
        self._on_change = on_change
        self._lock = threading.Lock()
        self._published = threading.Event()
        self._offers: Mailbox[Offer] | None = None
        self._thread: threading.Thread | None = None
        self._next_s = 0.0
        self._begin_afresh()

    def start(self) -> None:
        """Starts the thread, knowing nothing."""
        self.forget()
        self._offers = Mailbox()
        self._thread = threading.Thread(
            target=self._watch, args=(self._offers,), name='calibration_watch', daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread, after the step it is at."""
        offers, self._offers = self._offers, None
        thread, self._thread = self._thread, None
        if offers is not None and thread is not None:
            offers.close()
            self._published.set()
            thread.join(STOP_TIMEOUT_S)
        self.forget()

    def forget(self) -> None:
        """Begins afresh; the answer of a look in progress is thrown away."""
        with self._lock:
            self._begin_afresh()
            self._next_s = 0.0

    def offer(self, offer: Offer) -> None:
        """Leaves a pair for the next look when that is due; returns at once.

        Every call says that a pair has just been published, which is when a step is taken.
        """
        offers = self._offers
        self._published.set()
        if offers is not None and time.monotonic() >= self._next_s:
            offers.put(offer)

    def report(self) -> WatchReport:
        """Returns what is known."""
        with self._lock:
            standing = sorted(
                self._standing.values(), key=lambda f: SEVERITIES.index(f.severity), reverse=True
            )
            return WatchReport(
                self._pairs, self._look_ms, self._failure, dict(self._answers), tuple(standing)
            )

    def _begin_afresh(self) -> None:
        self._doctor = OnlineDoctor(period_s=0.0)
        self._camera: StereoCamera | None = None
        self._pairs = 0
        self._look_ms = 0.0
        self._failure = ''
        self._answers: dict[str, Finding] = {}
        self._standing: dict[str, Finding] = {}

    def _watch(self, offers: Mailbox[Offer]) -> None:
        while not offers.closed:
            offer = offers.take(timeout=1.0)
            began_s = time.monotonic()
            if offer is None or began_s < self._next_s:
                continue
            self._next_s = began_s + PERIOD_S
            look_s = self._take_steps(self._look(offer), offers)
            # Two pictures, which nobody needs while the thread rests.
            del offer
            with self._lock:
                self._look_ms = look_s * 1e3
            self._next_s = began_s + max(PERIOD_S, REST_PER_LOOK * look_s)

    def _take_steps(self, look: Iterator[None], offers: Mailbox[Offer]) -> float:
        """Goes through a look, a step after each pair; returns the seconds that these took."""
        took_s = 0.0
        more = True
        while more and not offers.closed:
            self._published.clear()
            began_s = time.monotonic()
            try:
                more = next(look, _ENDED) is not _ENDED
            except Exception as error:  # depth must not end because its doctor is ill
                self._note_failure(f'{type(error).__name__}: {error}')
                more = False
            took_s += time.monotonic() - began_s
            if more:
                self._published.wait(STEP_WAIT_S)
        return took_s

    def _look(self, offer: Offer) -> Iterator[None]:
        camera = usable_camera(offer.left_info, offer.right_info)
        with self._lock:
            if camera != self._camera:
                self._begin_afresh()
                self._camera = camera
            doctor = self._doctor
        doctor.camera = camera
        found = [
            finding
            for finding in examine_camera_infos(offer.left_info, offer.right_info)
            if finding.check in INFO_CHECKS
        ]
        with_pictures = offer.left_rgb is not None and offer.right_rgb is not None
        if with_pictures:
            looked = yield from doctor.feeding(offer.left_rgb, offer.right_rgb, time.monotonic())
            found += looked or ()
        with self._lock:
            if doctor is not self._doctor:
                return
            self._failure = ''
            self._pairs += with_pictures
            changes = [change for finding in found if (change := self._settle(finding))]
        for sentence, is_bad in changes:
            self._on_change(sentence, is_bad)

    def _settle(self, finding: Finding) -> tuple[str, bool] | None:
        """Files an answer; returns what to say when it changes what stands."""
        before = self._answers.get(finding.check)
        if finding.severity == 'unknown':
            self._answers.setdefault(finding.check, finding)
            return None
        self._answers[finding.check] = finding
        standing = self._standing.get(finding.check)
        was = 'ok' if standing is None else standing.severity
        if finding.severity == was:
            if standing is not None:
                self._standing[finding.check] = finding
            return None
        # One picture may mislead, so what is seen counts when it is seen twice running.
        seen_twice = before is not None and before.severity == finding.severity
        if finding.check not in INFO_CHECKS and not seen_twice:
            return None
        if finding.severity == 'ok':
            del self._standing[finding.check]
            return f'calibration check: {finding.check} is right again: {finding.measured}', False
        self._standing[finding.check] = finding
        return f'calibration check: {describe(finding)}', finding.check not in ALLOWED_FOR

    def _note_failure(self, reason: str) -> None:
        with self._lock:
            is_news, self._failure = reason != self._failure, reason
        if is_news:
            self._on_change(f'the calibration check failed, depth goes on: {reason}', True)


def adapted_elsewhere(adapted_to: Mapping[str, Any] | None, camera: StereoCamera | None) -> str:
    """Returns how a camera differs from the one a model was adapted to; empty when it does not.

    Args:
        adapted_to: `Manifest.calibration`, of `camera.calibration_record`; None fits every camera.
        camera: None before the first pair.
    """
    if not adapted_to or camera is None or adapted_to.get('hash') == calibration_hash(camera):
        return ''

    def value(name: str, digits: int) -> str:
        number = adapted_to.get(name)
        return f'{number:.{digits}f}' if isinstance(number, int | float) else '?'

    return (
        f'the model was adapted to a camera with fx {value("fx", 1)} px, baseline '
        f'{value("baseline_m", 4)} m, {value("width", 0)}x{value("height", 0)}; this one has fx '
        f'{camera.fx:.1f} px, baseline {camera.baseline_m:.4f} m, {camera.width}x{camera.height}'
    )


def describe(finding: Finding) -> str:
    """Returns what is wrong, what it does and what mends it, in a line."""
    return f'{finding.check}: {finding.measured}. {finding.meaning} {finding.remedy}'
