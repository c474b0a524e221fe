# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A bag through the live node, twice in one process, as an evaluation of two models does."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from ros_free_pairs import shifted_pair

from stereo_kd_ros.bag import Bag, StereoBagWriter, StereoTopics
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.node.live import DEPTH_TOPIC, DISPARITY_TOPIC, own_domain, play_through_node
from stereo_kd_ros.truth import depth_m, raw_disparity

WIDTH, HEIGHT, DISPARITY_PX, PAIRS = 96, 48, 6, 5
CAMERA = StereoCamera.from_intrinsics(fx=60.0, baseline_m=0.5, width=WIDTH, height=HEIGHT)
INNER = (slice(8, -8), slice(24, -8))


@pytest.fixture
def kept_environ() -> object:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.usefixtures('kept_environ')
def test_what_comes_back_is_the_models_depth(tmp_path: Path, block_matcher: str) -> None:
    with StereoBagWriter(tmp_path / 'bag', topics=StereoTopics.in_namespace('rig')) as bag:
        for index in range(PAIRS):
            pair = shifted_pair(DISPARITY_PX, HEIGHT, WIDTH, index)
            bag.write_pair(10**9 + index * 200_000_000, *pair, CAMERA)
    phases: list[str] = []
    for name in ('first', 'second'):
        folder = tmp_path / name
        folder.mkdir()
        run = play_through_node(
            tmp_path / 'bag',
            folder,
            Path(block_matcher),
            'cpu',
            on_progress=lambda phase, done, total: phases.append(phase),
        )

        result = run.to_json()
        assert result['rate_hz'] == pytest.approx(5.0)
        assert result['pairs_sent'] == PAIRS
        assert 1 <= result['pairs_recorded'] <= PAIRS
        assert set(run.recorded_stamps.values()) == {
            10**9 + index * 200_000_000 for index in range(PAIRS)
        }
        with Bag(folder / 'recording') as recording:
            for _, _, message in recording.decoded([DISPARITY_TOPIC]):
                assert (raw_disparity(message)[INNER] == DISPARITY_PX).all()
            for _, _, message in recording.decoded([DEPTH_TOPIC]):
                # 60 px * 0.5 m / 6 px
                assert depth_m(message)[INNER] == pytest.approx(5.0)
    assert phases[0] == 'starting the node' and phases[-1] == 'playing and recording'


@pytest.mark.usefixtures('kept_environ')
def test_the_domain_is_ours_alone_and_stays_on_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    environ = own_domain()
    assert 1 <= int(environ['ROS_DOMAIN_ID']) <= 100
    assert environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] == 'LOCALHOST'
    assert 'ROS_LOCALHOST_ONLY' not in environ
    monkeypatch.setenv('ROS_DISTRO', 'humble')
    assert own_domain()['ROS_LOCALHOST_ONLY'] == '1'
