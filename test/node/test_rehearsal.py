# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Before the first pair comes one that nobody sent, and nobody hears of it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ros_rig import HEIGHT, WIDTH, Rig, Said, camera_infos, textured_pair
from sensor_msgs.msg import Image
from stereo_msgs.msg import DisparityImage

from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.node import rehearsal, stereo_node
from stereo_kd_ros.node.outputs import TOPICS
from stereo_kd_ros.node.parameters import SPECS, Settings
from stereo_kd_ros.node.pipeline import PairDropped

DEFAULTS = Settings(**{name: spec.default for name, spec in SPECS.items()})


def test_every_message_is_made_at_the_size_of_the_camera(
    block_matcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = StereoEngine(Path(block_matcher), provider='cpu', threads=1)
    seen: list[tuple[int, ...]] = []
    made: list[str] = []
    infer, make_message = engine.infer, rehearsal.make_message

    def seen_infer(left: np.ndarray, right: np.ndarray) -> Any:
        seen.extend((left.shape, right.shape))
        return infer(left, right)

    def seen_message(name: str, *of: Any) -> Any:
        message = make_message(name, *of)
        made.append(name)
        return message

    monkeypatch.setattr(engine, 'infer', seen_infer)
    monkeypatch.setattr(rehearsal, 'make_message', seen_message)
    rehearsal.rehearse(engine, DEFAULTS, 40, 56, TOPICS)
    assert seen == [(40, 56, 3)] * 2
    assert made == list(TOPICS)


def test_what_no_pair_of_that_size_could_do_is_said(
    block_matcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = StereoEngine(Path(block_matcher), provider='cpu', threads=1)
    monkeypatch.setattr(rehearsal, '_BASELINE_M', 0.0)
    with pytest.raises(PairDropped):
        rehearsal.rehearse(engine, DEFAULTS, 40, 56, TOPICS)


def test_the_worker_rehearses_before_the_node_subscribes(
    block_matcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, bool, int, int]] = []

    def seen_rehearse(engine: Any, settings: Any, height: int, width: int, outputs: Any) -> None:
        node = rig.node
        seen.append((threading.current_thread().name, node.inputs is None, height, width))
        rehearsal.rehearse(engine, settings, height, width, outputs)

    monkeypatch.setattr(stereo_node, 'rehearse', seen_rehearse)
    rig = Rig(model=block_matcher)
    with rig:
        assert seen == [('stereo_worker', True, HEIGHT, WIDTH)]


def test_nobody_hears_of_it(block_matcher: str) -> None:
    with Rig(model=block_matcher, lazy=False) as rig:
        disparity, depth = (
            rig.listen('disparity', DisparityImage),
            rig.listen('depth/image', Image),
        )
        rig.ready(disparity, depth)
        assert not any(rig.node.counts().values())
        left, right = textured_pair(5)
        rig.camera.send(left, right, 7, camera_infos())
        assert disparity.next().header.frame_id == 'left_optical'
        assert depth.next().header.stamp.nanosec == 7
        assert rig.node.counts()['pairs_published'] == 1


def test_a_rehearsal_that_fails_keeps_no_pair_away(
    block_matcher: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    said = Said(capfd)

    def fail(*_: Any) -> None:
        raise RuntimeError('the stage is on fire')

    monkeypatch.setattr(stereo_node, 'rehearse', fail)
    with Rig(model=block_matcher) as rig:
        disparity = rig.listen('disparity', DisparityImage)
        rig.ready(disparity)
        left, right = textured_pair(5)
        rig.camera.send(left, right, 7, camera_infos())
        disparity.next()
        said.wait_for('the rehearsal failed: RuntimeError: the stage is on fire')
