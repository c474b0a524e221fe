# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Diagnostics: figures from first principles, documented keys, and levels that mean something."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from hypothesis import given, strategies
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_rig import Rig, camera_infos, textured_pair, wait_until
from sensor_msgs.msg import Image

from stereo_kd_ros.node.diagnostics import (
    DROP_CAUSES,
    KEYS,
    STAGES,
    RateMeter,
    StageTimes,
    memory_mb,
    nearest_rank,
)
from stereo_kd_ros.node.silence import CAUSES
from stereo_kd_ros.node.stereo_node import flicker

DOCUMENTED = {
    **KEYS,
    'pipeline': {
        *KEYS['pipeline'],
        *(f'dropped_{cause}' for cause in DROP_CAUSES),
        *(f'{stage}_ms_{part}' for stage in STAGES for part in ('p50', 'p95', 'p99', 'max')),
    },
}


@given(
    samples=strategies.lists(strategies.floats(0, 1e6), min_size=1, max_size=60),
    percent=strategies.sampled_from([50, 95, 99]),
)
def test_a_percentile_is_the_smallest_sample_that_covers_its_share(
    samples: list[float], percent: float
) -> None:
    ordered = sorted(samples)
    value = nearest_rank(ordered, percent)
    needed = percent / 100 * len(ordered)
    assert sum(sample <= value for sample in ordered) >= needed
    assert sum(sample < value for sample in ordered) < needed


def test_stage_times_keep_the_last_window() -> None:
    times = StageTimes(window=100)
    for value in [1e9, *range(1, 101)]:
        times.add(inference=float(value))
    figures = times.percentiles()
    assert figures == {
        'inference_ms_p50': 50.0,
        'inference_ms_p95': 95.0,
        'inference_ms_p99': 99.0,
        'inference_ms_max': 100.0,
    }


def test_a_rate_forgets_what_is_older_than_its_window() -> None:
    meter = RateMeter(window_s=1.0)
    assert meter.rate_hz(0) == 0.0
    for frame in range(11):
        meter.add(frame * 100_000_000)
    assert meter.rate_hz(1_000_000_000) == pytest.approx(10.0)
    assert meter.rate_hz(5_000_000_000) == 0.0


def test_flicker_counts_what_moved_by_more_than_a_pixel_and_five_percent() -> None:
    before_px = np.array([[10.0, 10.0, 100.0, 100.0, np.nan]], np.float32)
    after_px = np.array([[11.0, 13.0, 105.0, 107.0, 50.0]], np.float32)
    assert flicker(before_px, after_px) == 0.5
    assert flicker(None, after_px) == 0.0
    assert flicker(np.zeros((2, 2), np.float32), after_px) == 0.0


def test_memory_is_that_of_this_process() -> None:
    assert 10 < memory_mb() < 10_000


def test_published_keys_are_the_documented_ones(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(5)
        rig.camera.send(left, right, 1, camera_infos())
        depth.next()
        wait_until(lambda: rig.node.counts()['pairs_published'] == 1)
        for part, keys in DOCUMENTED.items():
            values = rig.values(part)
            assert set(values) == set(keys), part
        values = rig.values('pipeline')
        assert values['state'] == 'active'
        assert values['pairs_received'] == values['pairs_published'] == '1'
        assert values['silence_cause'] in {'none', *CAUSES}
        assert values['total_dropped_frames'] == '0'
        assert float(rig.values('calibration')['baseline_m']) == pytest.approx(0.2)
        assert rig.status('model').message == 'runs on cpu'


def test_the_stages_add_up_to_the_whole(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(5)
        stamps = iter(range(1, 1000))

        def add_up() -> bool:
            rig.camera.send(left, right, next(stamps), camera_infos())
            depth.next()
            values = rig.values('pipeline')
            parts = sum(
                float(values[f'{stage}_ms_p50'])
                for stage in ('wait', 'decode', 'inference', 'depth', 'publish')
            )
            return parts == pytest.approx(float(values['total_ms_p50']), abs=1.0, rel=0.2)

        # A thread that waits for its turn between two stages makes the whole longer, now and then.
        wait_until(add_up)


def test_levels_follow_the_state(block_matcher: str) -> None:
    with Rig(start=False, model='no such model') as rig:
        rig.node.start()
        assert rig.status('model').level == DiagnosticStatus.ERROR
        assert 'no such model' in rig.status('model').message
    # A machine that stands still for a while must not make the node tell of silence instead.
    patient = {'silence_timeout': 600.0}
    with Rig(model=block_matcher, expected_frequency=1000.0, **patient) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(5)
        rig.camera.send(left, right, 1, camera_infos())
        depth.next()
        status = rig.status('pipeline')
        assert status.level == DiagnosticStatus.WARN
        assert 'expected 1000.0 Hz' in status.message
        infos = camera_infos()
        infos[1].p = [0.0] * 12
        rig.camera.send(left, right, 2, infos)
        wait_until(lambda: rig.node.counts()['dropped_calibration'] == 1)
        status = rig.status('calibration')
        assert status.level == DiagnosticStatus.ERROR
        assert 'right' in status.message


def test_every_received_pair_is_accounted_for(block_matcher: str) -> None:
    # Deep enough on both sides that no depth image can be lost on its way.
    deep = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
    overrides = {'qos_overrides./depth/image.publisher.depth': 100}
    with Rig(model=block_matcher, **overrides) as rig:
        depth = rig.listen('depth/image', Image, deep)
        rig.ready(depth)
        left, right = textured_pair(5)
        for stamp_ns in range(1, 41):
            rig.camera.send(left, right, stamp_ns, camera_infos())
        # The newest pair always comes back, and when it has, every other has met its end.
        wait_until(lambda: [m.header.stamp.nanosec for m in depth.messages][-1:] == [40])

        def accounted_for() -> bool:
            counts = rig.node.counts()
            done = counts['pairs_published'] + counts['dropped_superseded']
            return counts['pairs_received'] == done

        wait_until(accounted_for)
        assert len(depth.messages) == rig.node.counts()['pairs_published'] >= 1


def test_page_is_what_the_code_says(repository: Path) -> None:
    tool = repository / 'tools/node_docs.py'
    result = subprocess.run(
        [sys.executable, str(tool), '--check'],
        cwd=repository,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            'PYTHONPATH': os.pathsep.join([str(repository), os.environ.get('PYTHONPATH', '')]),
        },
        check=False,
    )
    assert result.returncode == 0, result.stderr
