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
from stereo_kd_ros.node.diagnostics import DROP_CAUSES
from stereo_kd_ros.node.live import (
    DEPTH_TOPIC,
    DISPARITY_TOPIC,
    accounted_for,
    own_domain,
    play_through_node,
)
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
def test_the_camera_and_the_tolerance_are_those_that_were_asked_for(
    tmp_path: Path, block_matcher: str
) -> None:
    """Two cameras in one bag; the eyes of the one that is meant are stamped 3 ms apart."""
    rear, front = (StereoTopics.in_namespace(name) for name in ('rear', 'front'))
    with StereoBagWriter(tmp_path / 'bag', topics=rear) as bag:
        for index in range(PAIRS):
            stamp_ns = 10**9 + index * 200_000_000
            pair = shifted_pair(DISPARITY_PX, HEIGHT, WIDTH, index)
            bag.write_pair(stamp_ns, *pair, CAMERA)
            bag.topics = front
            for topic, image, later_ns in (
                (front.left_image, pair[0], 0),
                (front.right_image, pair[1], 3_000_000),
            ):
                bag.write_camera_infos(stamp_ns + later_ns, CAMERA)
                bag.write(topic, stamp_ns, bag._image(stamp_ns + later_ns, image))
            bag.topics = rear
    (tmp_path / 'out').mkdir()
    run = play_through_node(
        tmp_path / 'bag',
        tmp_path / 'out',
        Path(block_matcher),
        'cpu',
        namespace='/front',
        tolerance_ns=4_000_000,
    )
    assert len(run.recorded_stamps) == PAIRS
    assert 1 <= run.pairs_recorded <= PAIRS
    assert int(run.to_json()['dropped']['unmatched_left']) == 0


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


@pytest.mark.parametrize(
    ('counts', 'recorded', 'expected'),
    [
        ({'pairs_published': '5'}, 5, True),
        ({'pairs_published': '5'}, 4, False),
        ({'pairs_published': '4'}, 4, False),
        ({'pairs_published': '3', 'dropped_superseded': '1', 'dropped_inference': '1'}, 3, True),
        # Images without a partner have never been a pair.
        ({'pairs_published': '4', 'dropped_unmatched_left': '1'}, 4, False),
    ],
)
def test_every_pair_has_an_end(counts: dict[str, str], recorded: int, expected: bool) -> None:
    told = {f'dropped_{cause}': '0' for cause in DROP_CAUSES}
    assert accounted_for({**told, 'pairs_received': '5', **counts}, recorded) is expected
