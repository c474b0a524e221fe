# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Why is nothing published? One observation of the node in, the first cause that explains it out.

The causes are tried in the order in which a frame travels: a missing left image explains a missing
pair, so it is named rather than its consequences. No ROS in here; the node fills an `Observation`
once a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CAUSES = {
    'inactive': 'The node is not active: `ros2 lifecycle set`, or `autostart`',
    'no_images': 'Neither image arrives: wrong topic, camera not started, or lost in transport',
    'no_left_image': 'Only the right image arrives',
    'no_right_image': 'Only the left image arrives',
    'qos_mismatch': 'A publisher offers less than we request, or a subscriber requests more '
    'than we offer; both are named',
    'stamps_apart': 'Both images arrive and no stamps match; the least difference is named',
    'no_camera_info': 'A camera_info does not arrive',
    'calibration': 'The camera_info is unusable: P zero, Tx zero or of the wrong sign, and so on',
    'image': 'The images cannot be decoded',
    'size_mismatch': 'The images differ in size from each other or from camera_info',
    'no_subscriber': 'Nobody listens, so nothing is computed; no fault',
    'inference': 'The model fails on every pair',
    'publish': 'The results cannot be sent',
    'stale': 'Every pair is older than `max_age`',
    'too_slow': 'One inference takes very long',
    'unknown': 'None of these; please report it',
}
# The node was told so, or has nobody to work for.
NO_FAULT = frozenset({'inactive', 'no_subscriber'})
# Causes of dropped pairs that explain silence by themselves, with what to say around the last
# reason.
FAILURES = ('calibration', 'image', 'size_mismatch', 'inference', 'publish')


@dataclass(frozen=True)
class Observation:
    """What happened since the last output, or in the last `window_s` seconds."""

    state: str
    window_s: float
    topics: Mapping[str, str]
    publishers: Mapping[str, int]
    received: Mapping[str, int]
    qos_conflicts: tuple[str, ...] = ()
    output_qos_conflicts: tuple[str, ...] = ()
    pairs: int = 0
    nearest_skew_ms: float | None = None
    tolerance_ms: float = 0.0
    drops: Mapping[str, int] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    inference_running_s: float = 0.0
    max_age_s: float = 0.0


@dataclass(frozen=True)
class Silence:
    """The cause, a stable word, and a sentence that says what to do."""

    cause: str
    message: str


def explain(seen: Observation) -> Silence:
    """Returns why nothing is published."""
    if seen.state != 'active':
        return Silence(
            'inactive', f'the node is {seen.state}; activate it, or start it with autostart:=true'
        )
    return (
        _missing_images(seen)
        or _unpaired(seen)
        or _no_camera_info(seen)
        or _no_subscriber(seen)
        or _failing(seen)
        or _too_slow(seen)
        or Silence('unknown', 'pairs arrive and none is published; please report this')
    )


def _missing_images(seen: Observation) -> Silence | None:
    missing = [side for side in ('left', 'right') if not seen.received.get(f'{side}_image')]
    if not missing:
        return None
    conflict = _conflict_on(seen, *(f'{side}_image' for side in missing))
    if conflict is not None:
        return conflict
    cause = 'no_images' if len(missing) == 2 else f'no_{missing[0]}_image'
    details = ' and '.join(_absence(seen, f'{side}_image') for side in missing)
    return Silence(cause, f'no {" and no ".join(missing)} image: {details}')


def _absence(seen: Observation, name: str) -> str:
    topic, publishers = seen.topics[name], seen.publishers.get(name, 0)
    if publishers == 0:
        return f'nobody publishes {topic}; start the camera or remap the topic'
    return (
        f'{publishers} publisher(s) on {topic} but nothing arrived for {seen.window_s:.0f} s; '
        'is the camera running, and does its process use config/fastdds.xml (without it '
        'most large best-effort images are lost)?'
    )


def _conflict_on(seen: Observation, *names: str) -> Silence | None:
    topics = [seen.topics[name] for name in names]
    conflicts = [text for text in seen.qos_conflicts if text.split(':')[0] in topics]
    if not conflicts:
        return None
    return Silence(
        'qos_mismatch', f'{"; ".join(conflicts)}; change qos_overrides.<topic>.subscription.*'
    )


def _unpaired(seen: Observation) -> Silence | None:
    if seen.pairs:
        return None
    skew = 'unknown' if seen.nearest_skew_ms is None else f'{seen.nearest_skew_ms:.3f} ms'
    return Silence(
        'stamps_apart',
        f'left and right images arrive but their stamps are {skew} apart at best (allowed '
        f'{seen.tolerance_ms:.3f} ms); synchronise the cameras, or set approximate_sync and '
        'approximate_sync_tolerance_seconds',
    )


def _no_camera_info(seen: Observation) -> Silence | None:
    if not seen.drops.get('no_camera_info'):
        return None
    missing = [side for side in ('left', 'right') if not seen.received.get(f'{side}_camera_info')]
    names = [f'{side}_camera_info' for side in missing]
    conflict = _conflict_on(seen, *names)
    if conflict is not None:
        return conflict
    details = ' and '.join(_absence(seen, name) for name in names) or 'it came too late'
    return Silence('no_camera_info', f'no camera_info: {details}')


def _no_subscriber(seen: Observation) -> Silence | None:
    if not seen.drops.get('no_subscriber'):
        return None
    if seen.output_qos_conflicts:
        return Silence('qos_mismatch', '; '.join(seen.output_qos_conflicts))
    return Silence(
        'no_subscriber', 'nobody subscribes to an output, so nothing is computed (lazy is true)'
    )


def _failing(seen: Observation) -> Silence | None:
    failures = {cause: seen.drops.get(cause, 0) for cause in FAILURES}
    cause = max(failures, key=lambda name: failures[name])
    if not failures[cause]:
        return None
    return Silence(cause, seen.reasons.get(cause, f'{failures[cause]} pairs dropped: {cause}'))


def _too_slow(seen: Observation) -> Silence | None:
    if seen.drops.get('stale'):
        return Silence(
            'stale',
            f'every pair is older than max_age ({seen.max_age_s} s) before inference begins; '
            'raise max_age, use a smaller model, or check that the stamps are of this clock',
        )
    if seen.inference_running_s > seen.window_s / 2:
        return Silence(
            'too_slow',
            f'the inference in progress has taken {seen.inference_running_s:.1f} s; use a smaller '
            'model or another provider',
        )
    return None
