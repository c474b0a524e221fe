# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Why is nothing published? Each cause is named, from observations and over real DDS."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from ros_rig import Camera, Rig, Said, camera_infos, textured_pair, wait_until
from sensor_msgs.msg import Image

from stereo_kd_ros.node.silence import CAUSES, Observation, explain

NAMES = ('left_image', 'right_image', 'left_camera_info', 'right_camera_info')
HEALTHY = Observation(
    state='active',
    window_s=5.0,
    topics={name: f'/{name}' for name in NAMES},
    publishers=dict.fromkeys(NAMES, 1),
    received=dict.fromkeys(NAMES, 100),
    pairs=100,
)


def without(*names: str, publishers: int = 1) -> Observation:
    return replace(
        HEALTHY,
        received={**HEALTHY.received, **dict.fromkeys(names, 0)},
        publishers={**HEALTHY.publishers, **dict.fromkeys(names, publishers)},
        pairs=0,
    )


CASES: list[tuple[str, Observation, str]] = [
    ('inactive', replace(HEALTHY, state='inactive'), 'autostart'),
    ('no_images', without('left_image', 'right_image', publishers=0), 'nobody publishes'),
    ('no_right_image', without('right_image', publishers=0), 'nobody publishes /right_image'),
    ('no_left_image', without('left_image'), '1 publisher(s) on /left_image but nothing'),
    (
        'qos_mismatch',
        replace(
            without('left_image'),
            qos_conflicts=('/left_image: camera offers BEST_EFFORT, we request RELIABLE',),
        ),
        'offers BEST_EFFORT, we request RELIABLE',
    ),
    (
        'stamps_apart',
        replace(HEALTHY, pairs=0, nearest_skew_ms=12.5),
        '12.500 ms apart at best (allowed 0.000 ms)',
    ),
    (
        'no_camera_info',
        replace(
            without('right_camera_info', publishers=0), pairs=100, drops={'no_camera_info': 99}
        ),
        'nobody publishes /right_camera_info',
    ),
    ('no_subscriber', replace(HEALTHY, drops={'no_subscriber': 100}), 'nobody subscribes'),
    (
        'qos_mismatch',
        replace(
            HEALTHY,
            drops={'no_subscriber': 100},
            output_qos_conflicts=('/depth/image: rviz requests TRANSIENT_LOCAL',),
        ),
        'rviz requests TRANSIENT_LOCAL',
    ),
    (
        'calibration',
        replace(HEALTHY, drops={'calibration': 9, 'image': 1}, reasons={'calibration': 'P zero'}),
        'P zero',
    ),
    ('inference', replace(HEALTHY, drops={'inference': 9}), '9 pairs dropped'),
    ('stale', replace(HEALTHY, drops={'stale': 9}, max_age_s=0.1), 'max_age (0.1 s)'),
    ('too_slow', replace(HEALTHY, inference_running_s=4.0), 'has taken 4.0 s'),
    ('unknown', HEALTHY, 'report this'),
]


def test_every_cause_has_a_case_or_is_the_same_as_a_drop() -> None:
    shown = {cause for cause, _, _ in CASES}
    assert set(CAUSES) - shown == {'image', 'size_mismatch', 'publish'}
    assert shown <= set(CAUSES)


@pytest.mark.parametrize(('cause', 'seen', 'said'), CASES, ids=[case[0] for case in CASES])
def test_cause_is_named(cause: str, seen: Observation, said: str) -> None:
    silence = explain(seen)
    assert (silence.cause, said in silence.message) == (cause, True), silence


def both(rig: Rig, left_stamp_ns: int, right_stamp_ns: int, infos: Any = None) -> None:
    left, right = textured_pair()
    rig.camera.send(left, right, left_stamp_ns, infos, right_stamp_ns)


def left_only(rig: Rig, stamp_ns: int) -> None:
    rig.camera.send_left(textured_pair()[0], stamp_ns)


def uncalibrated(rig: Rig, stamp_ns: int) -> None:
    infos = camera_infos()
    infos[1].p = [0.0] * 12
    both(rig, stamp_ns, stamp_ns, infos)


FEEDS: list[tuple[str, Callable[[Rig, int], None]]] = [
    ('no_images', lambda rig, stamp_ns: None),
    ('no_right_image', left_only),
    ('stamps_apart', lambda rig, stamp_ns: both(rig, stamp_ns, stamp_ns + 3_000_000)),
    ('no_camera_info', lambda rig, stamp_ns: both(rig, stamp_ns, stamp_ns)),
    ('calibration', uncalibrated),
]


def feed_until_silence(
    rig: Rig, cause: str, feed: Callable[[Rig, int], None], first_stamp_ns: int, said: str = ''
) -> DiagnosticStatus:
    """Feeds the node at about 20 Hz until diagnostics name the cause; returns that status.

    Args:
        said: What the status must say, too.
    """
    stamp_ns = first_stamp_ns
    seen = len(rig.diagnostics.messages)

    def named() -> DiagnosticStatus | None:
        nonlocal stamp_ns, seen
        stamp_ns += 50_000_000
        feed(rig, stamp_ns)
        time.sleep(0.05)
        # All that came: fed slowly, as on a busy machine, the cause is named only now and then.
        arrays = rig.diagnostics.messages[seen:]
        seen += len(arrays)
        for status in (status for array in arrays for status in array.status):
            values = {pair.key: pair.value for pair in status.values}
            if values.get('silence_cause') == cause and said in status.message:
                return status
        return None

    return wait_until(named)


def test_causes_over_dds_are_named_and_left(
    block_matcher: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with Rig(model=block_matcher, silence_timeout=0.5) as rig:
        depth, log = rig.listen('depth/image', Image), Said(capfd)
        rig.ready(depth)
        first_stamp_ns = 1_000_000_000
        for cause, feed in FEEDS:
            status = feed_until_silence(rig, cause, feed, first_stamp_ns)
            assert status.level == DiagnosticStatus.ERROR
            assert status.message.startswith('nothing is published')
            first_stamp_ns += 1_000_000_000_000
        feed_until_silence(
            rig,
            'none',
            lambda rig, stamp_ns: both(rig, stamp_ns, stamp_ns, camera_infos()),
            first_stamp_ns,
        )
        log.wait_for('publishing again')
        told = re.findall(r'nothing is published \((\w+)\)|(publishing again)', log.read())
        causes = [cause or 'none' for cause, _ in told]
        assert {cause for cause, _ in FEEDS} <= set(causes)
        # Once per change: a busy machine may go back and forth, but says nothing twice in a row.
        assert all(cause != following for cause, following in pairwise(causes)), causes


def test_a_publisher_whose_qos_does_not_fit_is_named(block_matcher: str) -> None:
    overrides = {
        'qos_overrides./left/image_rect.subscription.reliability': 'reliable',
        'qos_overrides./right/image_rect.subscription.reliability': 'reliable',
    }
    with Rig(model=block_matcher, silence_timeout=0.5, **overrides) as rig:
        for publisher in rig.camera.publishers():
            rig.peer.destroy_publisher(publisher)
        rig.camera = Camera(
            rig.peer, QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
        )
        # The name of the peer travels apart from its topics and may come later.
        status = feed_until_silence(
            rig,
            'qos_mismatch',
            lambda rig, stamp_ns: both(rig, stamp_ns, stamp_ns),
            1,
            said='peer offers BEST_EFFORT',
        )
        assert 'we request RELIABLE' in status.message


def test_a_subscriber_whose_qos_does_not_fit_is_named(block_matcher: str) -> None:
    with Rig(model=block_matcher, silence_timeout=0.5) as rig:
        rig.ready()
        rig.listen(
            'depth/image', Image, QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        )
        feed_until_silence(
            rig,
            'qos_mismatch',
            lambda rig, stamp_ns: both(rig, stamp_ns, stamp_ns, camera_infos()),
            1,
            said='/depth/image: peer requests RELIABLE, TRANSIENT_LOCAL',
        )


def test_nobody_listens_is_no_error(block_matcher: str) -> None:
    with Rig(model=block_matcher, silence_timeout=0.5) as rig:
        rig.ready()
        status = feed_until_silence(
            rig,
            'no_subscriber',
            lambda rig, stamp_ns: both(rig, stamp_ns, stamp_ns, camera_infos()),
            1,
        )
        assert status.level == DiagnosticStatus.OK
        assert rig.node.counts()['pairs_published'] == 0
