# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""PairMatcher's promises over streams of every kind, and Mailbox across threads."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterable

import pytest
from at_once import at_once
from hypothesis import given
from hypothesis import strategies as st

from stereo_kd_ros.pairing import DROP_CAUSES, Mailbox, Pair, PairingError, PairMatcher

Event = tuple[str, int]


def feed(matcher: PairMatcher, events: Iterable[Event]) -> list[Pair]:
    """Add `('L' or 'R', stamp)` events; items are numbered so that reuse shows."""
    pairs = []
    for number, (eye, stamp_ns) in enumerate(events):
        add = matcher.add_left if eye == 'L' else matcher.add_right
        pair = add(stamp_ns, (eye, stamp_ns, number))
        if pair is not None:
            pairs.append(pair)
    return pairs


def both(stamps: Iterable[int]) -> list[Event]:
    return [(eye, stamp) for stamp in stamps for eye in 'LR']


def stamps_of(pairs: Iterable[Pair]) -> list[tuple[int, int]]:
    return [(pair.left_stamp_ns, pair.right_stamp_ns) for pair in pairs]


def pending(matcher: PairMatcher) -> int:
    return matcher.pending_left + matcher.pending_right


anything = st.lists(
    st.tuples(st.sampled_from('LR'), st.integers(0, 40) | st.integers(0, 10**18)), max_size=150
)


@given(anything, st.integers(1, 12), st.integers(0, 8))
def test_promises_hold_for_any_stream(events, queue_size, tolerance_ns):
    matcher = PairMatcher(queue_size, tolerance_ns)
    used: set[int] = set()
    newest: tuple[int, int] | None = None
    jumps = 0
    for number, (eye, stamp_ns) in enumerate(events):
        add = matcher.add_left if eye == 'L' else matcher.add_right
        pair = add(stamp_ns, (eye, stamp_ns, number))
        if matcher.counts['clock_jump'] > jumps:
            jumps, newest = matcher.counts['clock_jump'], None
        accounted = 2 * matcher.counts['pairs'] + pending(matcher) + matcher.dropped
        assert matcher.added == number + 1 == accounted
        assert max(matcher.pending_left, matcher.pending_right) <= queue_size
        if pair is None:
            continue
        assert abs(pair.skew_ns) <= tolerance_ns
        assert pair.left[:2] == ('L', pair.left_stamp_ns)
        assert pair.right[:2] == ('R', pair.right_stamp_ns)
        assert number in (pair.left[2], pair.right[2]), 'a pair comes out when it is complete'
        assert not used & {pair.left[2], pair.right[2]}
        used |= {pair.left[2], pair.right[2]}
        if newest is not None:
            assert pair.left_stamp_ns > newest[0]
            assert pair.right_stamp_ns > newest[1]
        newest = (pair.left_stamp_ns, pair.right_stamp_ns)
    assert len(used) == 2 * matcher.counts['pairs']
    assert set(matcher.counts) <= {'pairs', 'clock_jump', *DROP_CAUSES}


@given(st.integers(1, 60), st.integers(1, 10), st.data())
def test_every_pair_comes_out_while_one_eye_lags_less_than_the_queue(frames, queue_size, data):
    lag = data.draw(st.integers(0, queue_size - 1))
    events = [('L', stamp) for stamp in range(lag)]
    for stamp in range(frames):
        events += [('L', stamp + lag), ('R', stamp)]
    pairs = feed(PairMatcher(queue_size), events)
    assert stamps_of(pairs) == [(stamp, stamp) for stamp in range(frames)]


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=100))
def test_losing_images_of_either_eye_loses_only_their_pairs(delivered):
    events, expected = [], []
    for stamp, (left, right) in enumerate(delivered):
        events += [('L', stamp)] * left + [('R', stamp)] * right
        expected += [(stamp, stamp)] * (left and right)
    matcher = PairMatcher()
    assert stamps_of(feed(matcher, events)) == expected
    assert matcher.counts['clock_jump'] == matcher.counts['duplicate'] == 0


@given(
    st.integers(2, 40),
    st.integers(0, 15),
    st.sampled_from('LR'),
    st.integers(1, 12),
    st.integers(3, 6),
)
def test_a_looping_bag_keeps_matching(frames, missing, short_eye, queue_size, passes):
    """One eye's recording stops earlier: each pass must still give (nearly) all of its pairs."""
    complete = max(frames - missing, 1)
    matcher = PairMatcher(queue_size)
    for _ in range(passes):
        one_pass = [
            (eye, stamp)
            for eye, stamp in both(range(frames))
            if eye != short_eye or stamp < complete
        ]
        found = len(feed(matcher, one_pass))
        assert found >= complete - 2


def test_a_long_bag_loses_nothing_when_it_loops():
    matcher = PairMatcher(queue_size=10)
    found = [len(feed(matcher, both(range(100)))) for _ in range(4)]
    assert found == [100] * 4
    assert matcher.counts['clock_jump'] == 3


def test_the_eyes_need_not_loop_at_the_same_moment():
    matcher = PairMatcher(queue_size=10)
    feed(matcher, both(range(100)))
    turn = [('L', 0), ('R', 100), ('L', 1), ('R', 101), ('L', 2), ('R', 0), ('R', 1), ('R', 2)]
    assert stamps_of(feed(matcher, turn)) == [(0, 0), (1, 1), (2, 2)]


def test_a_bag_of_two_frames_loops_too():
    matcher = PairMatcher()
    assert len(feed(matcher, both([0, 1]) * 20)) >= 30


def test_a_single_frame_in_a_loop_is_not_shut_out_for_ever():
    matcher = PairMatcher(queue_size=3)
    assert len(feed(matcher, both([7] * 40))) >= 5


@given(st.integers(-(10**15), 10**15), st.integers(1, 12))
def test_a_clock_jump_costs_at_most_two_pairs(jump_ns, queue_size):
    matcher = PairMatcher(queue_size)
    start = 10**15
    period = 33_000_000
    feed(matcher, both(range(start, start + 20 * period, period)))
    after = feed(matcher, both(range(start + jump_ns, start + jump_ns + 20 * period, period)))
    resumed = {left for left, _ in stamps_of(after)}
    assert len(resumed) >= 18 or abs(jump_ns) < 20 * period


@pytest.mark.parametrize('eyes', ['L', 'R', 'LR'])
def test_a_stamp_from_the_future_does_not_shut_out_the_present(eyes):
    matcher = PairMatcher(queue_size=5)
    feed(matcher, both(range(10)))
    feed(matcher, [(eye, 10**12) for eye in eyes])
    assert len(feed(matcher, both(range(10, 40)))) >= 28


def test_a_late_image_is_counted_and_does_no_harm():
    matcher = PairMatcher()
    feed(matcher, both(range(5)))
    assert feed(matcher, [('L', 2)]) == []
    assert matcher.counts['backward'] == 1
    assert len(feed(matcher, both(range(5, 10)))) == 5
    assert matcher.counts['clock_jump'] == 0


def test_late_images_now_and_then_are_no_clock_jump():
    matcher = PairMatcher()
    for start in range(0, 100, 5):
        feed(matcher, [*both(range(start, start + 5)), ('L', start + 2), ('R', start + 2)])
    assert (matcher.counts['pairs'], matcher.counts['backward']) == (100, 40)
    assert matcher.counts['clock_jump'] == 0


def test_an_image_sent_twice_is_counted_and_used_once():
    matcher = PairMatcher()
    events = [(eye, stamp) for stamp in range(6) for eye in 'LLRR']
    pairs = feed(matcher, events)
    assert stamps_of(pairs) == [(stamp, stamp) for stamp in range(6)]
    assert matcher.counts['duplicate'] == 12
    assert pairs[0].left[2] == 1, 'of two images with one stamp the newer counts'


def test_a_dead_eye_leaves_nothing_behind_that_could_match_later():
    """The left eye's clock restarts long after the right one died: old rights must be gone."""
    matcher = PairMatcher(queue_size=4)
    feed(matcher, [*both(range(20)), ('R', 20), ('R', 21)])
    assert feed(matcher, [('L', stamp) for stamp in range(22, 40)]) == []
    assert matcher.pending_right == 0
    assert feed(matcher, [('L', stamp) for stamp in range(0, 30)]) == []


def test_a_dead_eye_that_returns_is_matched_again_at_once():
    matcher = PairMatcher(queue_size=4)
    feed(matcher, both(range(10)))
    feed(matcher, [('L', stamp) for stamp in range(10, 100)])
    assert len(feed(matcher, both(range(100, 110)))) == 10
    assert matcher.counts['unmatched_left'] == 90


def test_the_nearest_partner_within_the_tolerance_is_taken():
    matcher = PairMatcher(tolerance_ns=10)
    pairs = feed(matcher, [('R', 92), ('R', 97), ('R', 108), ('L', 100)])
    assert stamps_of(pairs) == [(100, 97)]
    assert pairs[0].skew_ns == -3
    assert matcher.counts['unmatched_right'] == 1
    assert matcher.pending_right == 1


@pytest.mark.parametrize('order', ['LR', 'RL'])
@pytest.mark.parametrize('lost', [('L', 330), ('R', 330)])
def test_a_lost_image_does_not_shift_all_later_pairs(order, lost):
    """With a tolerance of a whole period, one lost image must not pair n with n + 1 for ever."""
    matcher = PairMatcher(tolerance_ns=40)
    in_order = [(eye, stamp) for stamp in range(0, 3300, 33) for eye in order]
    events = [event for event in in_order if event != lost]
    skews = [pair.skew_ns for pair in feed(matcher, events)]
    assert len(skews) >= 97
    assert sum(skew != 0 for skew in skews) <= 1


@given(st.integers(-45, 45), st.integers(50, 120), st.integers(0, 2**32))
def test_free_running_eyes_find_their_nearest_partners(offset, tolerance_ns, seed):
    """Same rate, any phase and interleaving: the pairs soon lie within half a period."""
    events = [('L', n * 100) for n in range(60)] + [('R', n * 100 + offset) for n in range(60)]
    delay = random.Random(seed)
    events.sort(key=lambda event: event[1] + delay.uniform(0, 90))
    pairs = feed(PairMatcher(tolerance_ns=tolerance_ns), events)
    assert len(pairs) >= 55
    assert all(abs(pair.skew_ns) <= 50 for pair in pairs[3:])


def test_stamps_as_far_apart_as_the_tolerance_are_a_pair():
    matcher = PairMatcher(tolerance_ns=10)
    assert stamps_of(feed(matcher, [('L', 0), ('R', 10)])) == [(0, 10)]
    assert feed(matcher, [('L', 100), ('R', 111)]) == []


@pytest.mark.parametrize(
    'events',
    [
        [('L', 0), ('L', 1), ('R', 2), ('L', 2)],
        [('L', 0), ('L', 1), ('L', 2), ('R', 2)],
        [('R', 0), ('R', 1), ('L', 2), ('R', 2)],
    ],
)
def test_a_pair_drops_what_is_older_at_once(events):
    matcher = PairMatcher()
    assert len(feed(matcher, events)) == 1
    assert pending(matcher) == 0
    assert matcher.dropped == 2


def test_leftovers_make_room_in_the_order_they_came():
    """A full queue of stamps from a later time must not push out those of the present."""
    matcher = PairMatcher(queue_size=5)
    feed(matcher, [('L', stamp) for stamp in range(1000, 1005)])
    assert len(feed(matcher, both(range(20)))) == 20


def test_the_closest_miss_tells_how_far_apart_the_stamps_are():
    matcher = PairMatcher(tolerance_ns=5)
    feed(matcher, [('L', 0), ('R', 12), ('L', 33), ('R', 45)])
    assert matcher.closest_miss_ns == 12
    feed(matcher, [('L', 100), ('R', 100)])
    assert matcher.closest_miss_ns is None


def test_clear_counts_what_was_waiting():
    matcher = PairMatcher()
    feed(matcher, [('L', 1), ('L', 2), ('R', 3)])
    matcher.clear()
    assert pending(matcher) == 0
    assert (matcher.counts['unmatched_left'], matcher.counts['unmatched_right']) == (2, 1)
    assert len(feed(matcher, both([1]))) == 1


def test_adding_from_two_threads_keeps_the_books():
    matcher = PairMatcher(queue_size=50)
    pairs: list[Pair] = []

    def add(method):
        pairs.extend(pair for stamp in range(2000) if (pair := method(stamp, stamp)))

    at_once(add, (matcher.add_left, matcher.add_right))
    assert matcher.counts['pairs'] == len(pairs)
    assert matcher.added == 4000 == 2 * len(pairs) + pending(matcher) + matcher.dropped


@pytest.mark.parametrize('wrong', [{'queue_size': 0}, {'tolerance_ns': -1}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(PairingError, match='expected'):
        PairMatcher(**wrong)


def test_the_newest_item_wins_the_mailbox():
    mailbox: Mailbox[str] = Mailbox()
    assert mailbox.put('old') is None
    assert mailbox.put('new') == 'old'
    assert mailbox.superseded == 1
    assert mailbox.take(timeout=0) == 'new'
    assert mailbox.take(timeout=0) is None


def test_taking_waits_for_an_item():
    mailbox: Mailbox[int] = Mailbox()
    threading.Timer(0.05, mailbox.put, args=(5,)).start()
    assert mailbox.take(timeout=100) == 5


def test_closing_wakes_a_taker_and_leaves_what_was_there():
    mailbox: Mailbox[int] = Mailbox()
    threading.Timer(0.05, mailbox.close).start()
    assert mailbox.take(timeout=100) is None
    assert mailbox.closed
    mailbox.put(1)
    assert mailbox.take() == 1
    assert mailbox.take() is None


def test_nothing_is_lost_or_seen_twice_between_threads():
    mailbox: Mailbox[int] = Mailbox()
    taken: list[int] = []

    def take():
        while (item := mailbox.take(timeout=100)) is not None:
            taken.append(item)

    taker = threading.Thread(target=take)
    taker.start()
    displaced = [mailbox.put(number) for number in range(1, 5000)]
    mailbox.close()
    taker.join()
    lost = [item for item in displaced if item is not None]
    assert sorted(taken + lost) == list(range(1, 5000))
    assert taken == sorted(taken)
    assert mailbox.superseded == len(lost)
