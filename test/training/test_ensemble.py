# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A model asked several times: the median by hand, sizes and turns undone, a range respected."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from hypothesis.extra import numpy as arrays  # noqa: E402
from tiny_models import write_block_matcher  # noqa: E402

from stereo_kd_training.adapt.teachers import open_teacher  # noqa: E402
from stereo_kd_training.ensemble import Ensemble, weighted_median  # noqa: E402
from stereo_kd_training.evaluate import peer_method  # noqa: E402
from stereo_kd_training.teachers import FolderTeacher, Prediction, Teacher, TeacherError  # noqa: E402


def test_the_median_is_that_of_the_weight():
    values = np.array([[9.0], [1.0], [5.0], [7.0]])
    assert weighted_median(values, np.array([[1.0], [1.0], [1.0], [1.0]])) == 5.0
    assert weighted_median(values, np.array([[8.0], [1.0], [1.0], [1.0]])) == 9.0
    assert weighted_median(values, np.array([[0.0], [1.0], [0.0], [0.9]])) == 1.0


@given(
    arrays.arrays(np.float64, (5, 3), elements=st.floats(-1e3, 1e3, allow_nan=False, width=32)),
    st.floats(0.1, 10),
)
def test_of_equal_weights_it_is_the_median(values, weight):
    found = weighted_median(values, np.full(values.shape, weight))
    np.testing.assert_array_equal(found, np.median(values, 0))


class Painted(Teacher):
    """Knows the disparity because it is painted in: red in px of a picture 64 wide."""

    name, fingerprint = 'painted', '00'

    def __init__(self, ends_px: float = np.inf, says_so: bool = True) -> None:
        self.ends_px = ends_px
        self.max_disparity_px = ends_px if says_so else None
        self.sizes: list[tuple[int, int]] = []

    def predict(self, left, right, name=''):
        self.sizes.append(left.shape[:2])
        disparity = np.minimum(left[..., 0] * (left.shape[1] / 64.0), self.ends_px)
        return Prediction(disparity.astype(np.float32), np.ones(left.shape[:2], np.float32))


@pytest.fixture
def painted() -> np.ndarray:
    picture = np.zeros((40, 64, 3), np.uint8)
    picture[:20, :, 0] = 10
    picture[20:, :, 0] = 30
    return picture


def test_every_size_and_turn_says_the_same_of_what_is_painted_in(painted):
    teacher = Painted()
    answer = Ensemble(teacher).predict(painted, painted)
    assert teacher.sizes[::2] == teacher.sizes[1::2] == [(28, 45), (40, 64), (56, 90), (80, 128)]
    assert answer.disparity.shape == answer.confidence.shape == (40, 64)
    # Upright above, deep below: were a turn not undone they would have changed places.
    np.testing.assert_allclose(answer.disparity[:18], 10.0, atol=0.2)
    np.testing.assert_allclose(answer.disparity[22:], 30.0, atol=0.6)
    np.testing.assert_allclose(answer.confidence[:18], 1.0, atol=1e-3)


def test_one_that_is_not_sure_has_no_say(painted):
    class Odd(Painted):
        def predict(self, left, right, name=''):
            answer = super().predict(left, right)
            if left.shape[0] >= 56:  # four of eight
                return Prediction(answer.disparity + 50.0, 0.2 * answer.confidence)
            return answer

    answer = Ensemble(Odd()).predict(painted, painted)
    np.testing.assert_allclose(answer.disparity[:18], 10.0, atol=0.2)
    np.testing.assert_allclose(answer.confidence[:18], 0.5, atol=1e-3)


def test_beyond_its_range_an_enlarged_pair_has_no_voice(painted):
    # At twice the size 30 px are 60, which a range of 48 px does not hold.
    scales = (1.0, 1.8, 2.0)
    answer = Ensemble(Painted(48.0), scales).predict(painted, painted)
    np.testing.assert_allclose(answer.disparity[22:], 30.0, atol=0.6)
    np.testing.assert_allclose(answer.disparity[:18], 10.0, atol=0.2)
    unaware = Ensemble(Painted(48.0, says_so=False), scales).predict(painted, painted)
    assert (unaware.disparity[22:] < 28.0).all(), 'it is the range that kept them silent'


def test_where_no_member_knows_anything_nothing_is_known(painted):
    class Blind(Painted):
        def predict(self, left, right, name=''):
            answer = super().predict(left, right)
            disparity = answer.disparity.copy()
            disparity[:, : left.shape[1] // 2] = np.nan
            return Prediction(disparity, answer.confidence)

    answer = Ensemble(Blind()).predict(painted, painted)
    assert np.isnan(answer.disparity[:, :30]).all() and (answer.confidence[:, :30] == 0).all()
    assert np.isfinite(answer.disparity[:, 34:]).all()


def test_what_cannot_be_asked_so_is_told(tmp_path):
    with pytest.raises(TeacherError, match='the least at most 1'):
        Ensemble(Painted(), (1.4, 2.0))
    (tmp_path / 'a.npy').touch()
    with pytest.raises(TeacherError, match='resized images'):
        Ensemble(FolderTeacher(tmp_path))
    with pytest.raises(TeacherError, match='painted x8 is an ensemble already'):
        Ensemble(Ensemble(Painted()))


def test_a_command_line_names_one(tmp_path):
    model = write_block_matcher(tmp_path / 'blocks.onnx', 16)
    named = open_teacher(f'ensemble={model}', threads=1)
    assert named.name == 'blocks x8'
    assert named.teacher.fingerprint != open_teacher(str(model), threads=1).teacher.fingerprint
    method = peer_method(f'ensemble={model}', 1)
    left = np.random.default_rng(2).integers(0, 255, (48, 96, 3), dtype=np.uint8)
    disparity, confidence = method.predict(left, np.roll(left, -4, 1))
    assert abs(np.median(disparity[8:-8, 20:-8]) - 4.0) < 0.3
    assert np.isfinite(disparity).all() and confidence.shape == (48, 96)
    with pytest.raises(TeacherError, match='cannot be used'):
        open_teacher('ensemble=nowhere.onnx')
