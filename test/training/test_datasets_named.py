# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sets by name, and what a misspelt one is told."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from stereo_kd_training.datasets.base import DatasetError
from stereo_kd_training.datasets.named import OPENERS, open_dataset


def test_options_reach_the_set(tmp_path: Path) -> None:
    for side in ('l', 'r'):
        (tmp_path / side).mkdir()
        cv2.imwrite(str(tmp_path / side / '1.png'), np.zeros((4, 4, 3), np.uint8))
    assert len(open_dataset('folder', tmp_path, left='l', right='r')) == 1


@pytest.mark.parametrize('name', OPENERS)
def test_every_set_says_what_an_empty_root_lacks(tmp_path: Path, name: str) -> None:
    options = {'year': '2014'} if name == 'middlebury' else {}
    with pytest.raises(DatasetError, match=r'(?s)Looked for:.*Found there: .*empty'):
        open_dataset(name, tmp_path, **options)


@pytest.mark.parametrize(
    'name, options, words',
    [
        ('kiti2015', {}, "'kiti2015', did you mean 'kitti2015'"),
        ('xyz', {}, r"'xyz'; known: bag, driving"),
        ('kitti2015', {'ocluded': True}, "no option 'ocluded', did you mean 'occluded'"),
        ('middlebury', {}, r"year.*its options: \['year'\]"),
    ],
)
def test_misspelt(tmp_path: Path, name: str, options: dict, words: str) -> None:
    with pytest.raises(DatasetError, match=words):
        open_dataset(name, tmp_path, **options)
