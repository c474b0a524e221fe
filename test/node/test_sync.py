# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One contract for every pairing backend: built in, and message_filters where installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable

import pytest
from ros_rig import stamped
from sensor_msgs.msg import Image

from stereo_kd_ros.node.parameters import ParameterError
from stereo_kd_ros.node.sync import Matcher, make_matcher
from stereo_kd_ros.pairing import DROP_CAUSES

HAS_MESSAGE_FILTERS = importlib.util.find_spec('message_filters') is not None
BACKENDS = [
    'builtin',
    pytest.param(
        'message_filters',
        marks=pytest.mark.skipif(not HAS_MESSAGE_FILTERS, reason='message_filters not installed'),
    ),
]
PERIOD_NS = 33_000_000
START_NS = 1_700_000_000_000_000_000

pytestmark = pytest.mark.parametrize('backend', BACKENDS)


def add(matcher: Matcher, eye: str, stamp_ns: int) -> tuple[int, int] | None:
    """Adds one image; returns the stamps of the pair it completes."""
    message = stamped(Image(), stamp_ns)
    pair = (matcher.add_left if eye == 'L' else matcher.add_right)(stamp_ns, message)
    if pair is None:
        return None
    for found, expected_ns in ((pair.left, pair.left_stamp_ns), (pair.right, pair.right_stamp_ns)):
        assert found.header.stamp.sec * 10**9 + found.header.stamp.nanosec == expected_ns
    return pair.left_stamp_ns, pair.right_stamp_ns


def feed(matcher: Matcher, events: Iterable[tuple[str, int]]) -> list[tuple[int, int]]:
    found = (add(matcher, eye, stamp_ns) for eye, stamp_ns in events)
    return [pair for pair in found if pair is not None]


def frames(numbers: Iterable[int], right_frames: int = 10**9) -> list[tuple[str, int]]:
    """Both images of each frame; the right one only of the first `right_frames`."""
    events = []
    for number in numbers:
        events.append(('L', START_NS + number * PERIOD_NS))
        if number < right_frames:
            events.append(('R', START_NS + number * PERIOD_NS))
    return events


def test_equal_stamps_pair_whichever_eye_is_first(backend: str) -> None:
    matcher = make_matcher(backend, 10, 0)
    assert feed(matcher, [('L', 5), ('R', 5), ('R', 6), ('L', 6)]) == [(5, 5), (6, 6)]
    assert matcher.counts['pairs'] == 2


def test_exact_pairing_takes_no_near_miss(backend: str) -> None:
    assert feed(make_matcher(backend, 10, 0), [('L', 5), ('R', 6), ('L', 7)]) == []


@pytest.mark.parametrize(('apart_ns', 'pairs'), [(1_000_000, 1), (1_000_001, 0)])
def test_the_tolerance_is_inclusive(backend: str, apart_ns: int, pairs: int) -> None:
    matcher = make_matcher(backend, 10, 1_000_000)
    assert len(feed(matcher, [('L', START_NS), ('R', START_NS + apart_ns)])) == pairs


def test_every_fifth_right_image_lost_costs_every_fifth_pair(backend: str) -> None:
    matcher = make_matcher(backend, 10, 0)
    events = [
        event for event in frames(range(100)) if event[0] == 'L' or event[1] // PERIOD_NS % 5
    ]
    found = feed(matcher, events)
    assert len(found) == sum(eye == 'R' for eye, _ in events)
    assert matcher.counts['unmatched_left'] >= 100 - len(found) - 10


@pytest.mark.parametrize('queue_size', [3, 10])
def test_a_looping_bag_whose_right_eye_stops_early_matches_in_every_pass(
    backend: str, queue_size: int
) -> None:
    matcher = make_matcher(backend, queue_size, 0)
    found = [len(feed(matcher, frames(range(100), right_frames=90))) for _ in range(4)]
    assert found[0] == 90
    assert min(found) >= 88
    assert matcher.counts['clock_jump'] >= 3


@pytest.mark.parametrize('jump', [-1_000_000, -50, 50, 1_000_000])
def test_a_clock_jump_costs_at_most_two_pairs(backend: str, jump: int) -> None:
    matcher = make_matcher(backend, 10, 0)
    feed(matcher, frames(range(100)))
    assert len(feed(matcher, frames(range(100 + jump, 120 + jump)))) >= 18


def test_duplicates_give_no_second_pair_and_are_counted(backend: str) -> None:
    matcher = make_matcher(backend, 10, 0)
    assert feed(matcher, [('L', 5), ('L', 5), ('R', 5), ('L', 5), ('R', 5)]) == [(5, 5)]
    assert matcher.counts['duplicate'] == 3


def test_an_older_pair_never_follows_a_newer_one(backend: str) -> None:
    matcher = make_matcher(backend, 10, 0)
    feed(matcher, [(eye, stamp) for stamp in range(1, 5) for eye in 'LR'])
    events = [('L', 5), ('L', 6), ('R', 6), ('R', 5), ('L', 7), ('R', 7)]
    assert feed(matcher, events) == [(6, 6), (7, 7)]
    assert matcher.counts['backward'] == 1
    assert matcher.counts['unmatched_left'] == 1


def test_an_eye_that_dies_and_comes_back(backend: str) -> None:
    matcher = make_matcher(backend, 10, 0)
    events = [
        e
        for e in frames(range(100))
        if e[0] == 'L' or not 30 * PERIOD_NS <= e[1] - START_NS < 60 * PERIOD_NS
    ]
    assert len(feed(matcher, events)) == 70
    assert matcher.counts['unmatched_left'] == 30


def test_every_image_is_accounted_for(backend: str) -> None:
    matcher = make_matcher(backend, 4, 0)
    events = [*frames(range(50), right_frames=40), *frames(range(20)), ('L', 3), ('R', 9)]
    feed(matcher, events)
    lost = sum(matcher.counts[cause] for cause in DROP_CAUSES)
    waiting = len(events) - 2 * matcher.counts['pairs'] - lost
    assert 0 <= waiting <= 8


@pytest.mark.skipif(HAS_MESSAGE_FILTERS, reason='message_filters is installed')
def test_a_backend_that_is_not_installed_says_so(backend: str) -> None:
    with pytest.raises(ParameterError, match='sync_backend builtin'):
        make_matcher('message_filters', 10, 0)
