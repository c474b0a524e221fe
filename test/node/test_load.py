# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The load governor on simulated cameras and models, and over DDS with two real models."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ros_rig import Rig, Said, camera_infos, textured_pair, wait_until
from sensor_msgs.msg import Image
from tiny_models import write_block_matcher

from stereo_kd_ros.node import load
from stereo_kd_ros.node.load import LoadGovernor


def simulate(
    governor: LoadGovernor,
    seconds: float,
    interval_ms: float,
    large_ms: Callable[[float], float],
    small_ms: float,
    begin_s: float = 0.0,
) -> list[tuple[float, bool]]:
    """Runs newest-pair-wins against the governor; returns time and choice at each worked pair."""
    choices = []
    now_s, free_s, newest_s = begin_s, begin_s, None
    while now_s < begin_s + seconds:
        governor.arrived(now_s)
        newest_s = now_s
        if free_s <= now_s and newest_s is not None:
            busy_ms = small_ms if governor.use_smaller else large_ms(now_s)
            free_s = now_s + busy_ms / 1e3
            governor.worked(free_s, busy_ms)
            choices.append((now_s, governor.use_smaller))
        now_s += interval_ms / 1e3
    return choices


@given(interval_ms=st.floats(10, 500), share=st.floats(0.01, 1.0))
def test_a_model_that_keeps_up_is_never_left(interval_ms: float, share: float) -> None:
    governor = LoadGovernor()
    choices = simulate(governor, 40, interval_ms, lambda now_s: interval_ms * share, 1.0)
    assert not any(smaller for _, smaller in choices)
    assert not governor.over_budget


def test_a_slow_model_is_left_within_a_window_and_rarely_tried_again() -> None:
    governor = LoadGovernor(window=20, hold_s=10.0)
    choices = simulate(governor, 600, 33.0, lambda now_s: 100.0, 10.0)
    first_s = next(now_s for now_s, smaller in choices if smaller)
    assert first_s < 3.0
    share = sum(smaller for _, smaller in choices) / len(choices)
    assert share > 0.95


def test_the_large_model_comes_back_when_the_cameras_slow_down() -> None:
    governor = LoadGovernor(window=20, hold_s=5.0)
    simulate(governor, 20, 33.0, lambda now_s: 100.0, 10.0)
    assert governor.use_smaller
    choices = simulate(governor, 30, 200.0, lambda now_s: 100.0, 10.0, begin_s=20.0)
    assert not choices[-1][1]


def test_the_large_model_comes_back_when_the_machine_is_free_again() -> None:
    governor = LoadGovernor(window=20, hold_s=5.0)
    choices = simulate(governor, 120, 33.0, lambda now_s: 100.0 if now_s < 20 else 15.0, 10.0)
    assert any(smaller for now_s, smaller in choices if now_s < 20)
    assert not choices[-1][1]


def test_over_budget_is_said_with_or_without_a_smaller_model() -> None:
    governor = LoadGovernor(window=10, hold_s=1e9)
    for pair in range(40):
        governor.arrived(pair * 0.01)
        governor.worked(pair * 0.01, 5.0)
    assert not governor.over_budget
    for pair in range(40, 80):
        governor.arrived(pair * 0.01)
        governor.worked(pair * 0.01, 15.0)
    assert governor.over_budget
    assert governor.busy_ms == 15.0
    assert governor.interval_ms == pytest.approx(10.0)


def test_a_pause_is_no_interval() -> None:
    governor = LoadGovernor(window=4)
    for now_s in (0.0, 0.1, 0.2, 60.0, 60.1, 60.2):
        governor.arrived(now_s)
    assert governor.interval_ms == pytest.approx(100.0)


def test_the_node_steps_to_the_smaller_model_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # A machine that stands still for seconds, again and again, must not look like a pause.
    monkeypatch.setattr(load, 'PAUSE_S', 600.0)
    large = write_block_matcher(tmp_path / 'large.onnx', max_disparity_px=200, name='large')
    small = write_block_matcher(tmp_path / 'small.onnx', max_disparity_px=8, name='small')
    with Rig(model=str(large), auto_model=str(small), threads=1) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        left, right = textured_pair(5, 96, 256)
        said, stamp_ns = Said(capfd), 0

        def stepped_down() -> bool:
            nonlocal stamp_ns
            stamp_ns += 1_000_000
            rig.camera.send(left, right, stamp_ns, camera_infos(96, 256))
            time.sleep(0.005)
            return 'stepping to' in said.read()

        wait_until(stepped_down, 400.0)
        wait_until(lambda: rig.values('model')['model_name'] == 'small')
        assert rig.node.get_parameter('model').value == str(large)
