# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pairs without truth get a teacher's, where it agrees with itself.

The scene is a square at 12 px before a wall at 4 px; teachers are functions of the pictures.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from stereo_kd_ros.disparity_io import read_pfm
from stereo_kd_training.datasets.base import DatasetError
from stereo_kd_training.datasets.labelled import labelled_sets
from stereo_kd_training.label_folder import label_folder, self_consistent, unlabelled_pairs
from stereo_kd_training.main import app
from stereo_kd_training.teachers import Prediction, Teacher

HEIGHT, WIDTH = 40, 80
WALL, SQUARE = 4, 12


class TwoLevels(Teacher):
    """Knows that what is bright is near, in whichever eye it is asked about."""

    name, fingerprint, max_disparity_px = 'two levels', 'ab' * 32, None

    def __init__(self) -> None:
        self.asked = 0

    def predict(self, left, right, name='') -> Prediction:
        self.asked += 1
        disparity = np.where(left[..., 0] > 128, SQUARE, WALL).astype(np.float32)
        return Prediction(disparity, np.ones_like(disparity))


def views() -> tuple[np.ndarray, np.ndarray]:
    left, right = (np.full((HEIGHT, WIDTH, 3), 60, np.uint8) for _ in range(2))
    left[10:30, 40:60] = 200
    right[10:30, 40 - SQUARE : 60 - SQUARE] = 200
    return left, right


@pytest.fixture
def data(tmp_path):
    for scene in ('robot/one', 'robot/two'):
        folder = tmp_path / 'data' / scene
        folder.mkdir(parents=True)
        for eye, view in zip(('left', 'right'), views()):
            cv2.imwrite(str(folder / f'{eye}.png'), view)
    return tmp_path / 'data'


def test_what_only_one_eye_sees_is_unknown_and_all_else_is_the_teachers():
    labels = self_consistent(TwoLevels(), *views(), 1.0)
    expected = np.full((HEIGHT, WIDTH), WALL, np.float32)
    expected[10:30, 40:60] = SQUARE
    expected[:, :WALL] = np.nan
    # Wall whose place in the right picture the square takes: x - 4 in 28..47, left of the square.
    expected[10:30, 32:40] = np.nan
    np.testing.assert_array_equal(labels, expected)


def test_a_labelled_folder_is_a_benchmark_and_goes_on_where_it_was(data, tmp_path):
    teacher, out = TwoLevels(), tmp_path / 'out'
    made = label_folder(data, out, teacher)
    assert made.pairs == 2 and teacher.asked == 4
    known = np.isfinite(read_pfm(out / 'robot/one/disp.pfm'))
    assert made.kept == pytest.approx(known.mean(), abs=1e-3)
    pair = labelled_sets(out)['robot'][0]
    assert np.nanmax(pair.disparity) == SQUARE and np.isnan(pair.disparity).any()
    (out / 'robot/two/disp.pfm').unlink()
    assert label_folder(data, out, teacher) == made
    assert teacher.asked == 6, 'only the pair that had not been finished'


def test_answers_of_two_teachers_do_not_mix(data, tmp_path):
    label_folder(data, tmp_path / 'out', TwoLevels())
    with pytest.raises(DatasetError, match=r'two levels within 1\.0 px.*another folder'):
        label_folder(data, tmp_path / 'out', TwoLevels(), 2.0)


def test_faults_of_the_data_are_named(data, tmp_path):
    with pytest.raises(DatasetError, match=r'(?s)left\.png.*no disp'):
        (tmp_path / 'empty').mkdir()
        unlabelled_pairs(tmp_path / 'empty')
    with pytest.raises(DatasetError, match='folder of its own'):
        label_folder(data, data, TwoLevels())
    cv2.imwrite(str(data / 'robot/two/right.png'), np.zeros((HEIGHT, WIDTH - 8, 3), np.uint8))
    with pytest.raises(DatasetError, match=r'80x40.*72x40'):
        label_folder(data, tmp_path / 'out', TwoLevels())


def test_scenes_with_truth_are_passed_over(data):
    (data / 'robot/one/disp.pfm').write_bytes(b'')
    assert [pair.name for pair in unlabelled_pairs(data)] == ['robot/two']


def test_command(data, tmp_path):
    out = tmp_path / 'out'
    told = CliRunner().invoke(
        app, ['label', str(data), '-o', str(out), '--teacher', 'nano', '--threads', '1']
    )
    assert told.exit_code == 0, told.output
    assert '2 pairs' in told.output and (out / 'robot/two/disp.pfm').is_file()
