# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Answers on disk: exact within their precision, written whole, never stale."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from stereo_kd_training.teacher_cache import TeacherCache  # noqa: E402
from stereo_kd_training.teachers import Prediction, Teacher, TeacherError, TopK  # noqa: E402


@dataclass
class Sample:
    name: str
    left: np.ndarray
    right: np.ndarray


def sample(name: str, seed: int = 0, shape=(5, 7, 3)) -> Sample:
    generator = np.random.default_rng(seed)
    return Sample(name, *(generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(2)))


class Counting(Teacher):
    """Answers what it is given and counts how often it was asked."""

    name = 'counting'

    def __init__(self, answer: Prediction, fingerprint: str = 'ab' * 32) -> None:
        self.answer = answer
        self.fingerprint = fingerprint
        self.asked = 0

    def predict(self, left, right, name=''):
        self.asked += 1
        return self.answer


def an_answer(largest: float = 60.0) -> Prediction:
    generator = np.random.default_rng(1)
    disparity = generator.uniform(0, largest, (5, 7)).astype(np.float32)
    disparity[0, 0], disparity[0, 1], disparity[0, 2] = np.nan, 0.0, largest
    confidence = generator.uniform(0, 1, (5, 7)).astype(np.float32)
    top = TopK(
        generator.integers(0, 48, (2, 5, 7)).astype(np.uint8),
        generator.uniform(0, 0.5, (2, 5, 7)).astype(np.float16),
        np.arange(48, dtype=np.float32) * 4,
    )
    return Prediction(disparity, confidence, top)


@settings(max_examples=15)
@given(largest=st.sampled_from([1.0, 192.0, 255.9, 256.0, 700.0, 5000.0]))
def test_an_answer_comes_back_within_its_precision(tmp_path_factory, largest):
    answer = an_answer(largest)
    pair = sample('a')
    cache = TeacherCache(tmp_path_factory.mktemp('cache'), Counting(answer))
    kept = cache.predict(pair.left, pair.right, pair.name)
    step = 1 / 256
    while largest / step > 65534:
        step *= 2
    assert np.isnan(kept.disparity[0, 0])
    assert kept.disparity[0, 1] == 0.0
    np.testing.assert_allclose(kept.disparity, answer.disparity, atol=step / 2 * 1.001)
    np.testing.assert_allclose(kept.confidence, answer.confidence, atol=0.5 / 255 * 1.001)
    for field in ('indices', 'probabilities', 'hypotheses'):
        before, after = getattr(answer.distribution, field), getattr(kept.distribution, field)
        np.testing.assert_array_equal(before, after)
        assert before.dtype == after.dtype
    assert kept.distribution.factor == 1


def test_the_teacher_is_asked_once(tmp_path):
    teacher, pair = Counting(an_answer()), sample('scene/frame 01')
    first = TeacherCache(tmp_path, teacher).predict(pair.left, pair.right, pair.name)
    again = TeacherCache(tmp_path, teacher).predict(pair.left, pair.right, pair.name)
    assert teacher.asked == 1
    np.testing.assert_array_equal(first.disparity, again.disparity)


def test_a_changed_image_is_answered_anew(tmp_path):
    teacher = Counting(an_answer())
    cache = TeacherCache(tmp_path, teacher)
    for seed in (0, 1, 1):
        pair = sample('a', seed)
        cache.predict(pair.left, pair.right, pair.name)
    assert teacher.asked == 2
    reading = TeacherCache(tmp_path, teacher, ask=False)
    stale = sample('a', 0)
    with pytest.raises(TeacherError, match='answers other images'):
        reading.predict(stale.left, stale.right, 'a')


def test_another_teachers_answers_are_not_taken(tmp_path):
    pair = sample('a')
    TeacherCache(tmp_path, Counting(an_answer())).predict(pair.left, pair.right, 'a')
    other = Counting(an_answer(), fingerprint='cd' * 32)
    TeacherCache(tmp_path, other).predict(pair.left, pair.right, 'a')
    assert other.asked == 1
    with pytest.raises(TeacherError, match=r'has no answer for .b.*cache it first'):
        TeacherCache(tmp_path, other, ask=False).predict(pair.left, pair.right, 'b')


def test_filling_resumes_where_it_was_killed(tmp_path):
    pairs = [sample(f'set/{index}', index) for index in range(4)]
    teacher = Counting(an_answer())
    cache = TeacherCache(tmp_path, teacher)

    class Killed(Exception):
        pass

    def kill_at_two(name, fresh):
        if name == 'set/1':
            raise Killed

    with pytest.raises(Killed):
        cache.fill(pairs, kill_at_two)
    seen = []
    assert cache.fill(pairs, lambda *event: seen.append(event)) == (2, 2)
    assert seen == [('set/0', False), ('set/1', False), ('set/2', True), ('set/3', True)]
    assert teacher.asked == 4
    assert cache.fill(pairs) == (0, 4)


def test_a_write_that_fails_leaves_nothing(tmp_path, monkeypatch):
    cache, pair = TeacherCache(tmp_path, Counting(an_answer())), sample('a')

    def fail(*_):
        raise OSError('disk full')

    monkeypatch.setattr(os, 'replace', fail)
    with pytest.raises(OSError, match='disk full'):
        cache.predict(pair.left, pair.right, pair.name)
    assert not [path for path in tmp_path.rglob('*') if path.is_file()]


def test_a_damaged_answer_is_named_and_filled_anew(tmp_path):
    cache, pair = TeacherCache(tmp_path, Counting(an_answer())), sample('a')
    cache.predict(pair.left, pair.right, 'a')
    path = cache.path('a')
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(TeacherError, match=r'a\.npz is no cached answer .*delete it'):
        cache.predict(pair.left, pair.right, 'a')
    assert cache.fill([pair]) == (1, 0)
    cache.predict(pair.left, pair.right, 'a')


@pytest.mark.parametrize('name', ['', '..', 'a/../b', '/a', 'a//b'])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    with pytest.raises(TeacherError, match='no name under which'):
        TeacherCache(tmp_path, Counting(an_answer())).path(name)


def test_odd_names_stay_apart(tmp_path):
    cache = TeacherCache(tmp_path, Counting(an_answer()))
    paths = {cache.path(name) for name in ('a b', 'a%20b', 'a/b', 'a%2Fb', 'a.b')}
    assert len(paths) == 5
    assert all(cache.folder in path.parents for path in paths)
