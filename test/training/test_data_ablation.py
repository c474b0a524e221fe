# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Leaving ingredients of the generated scenes out: pools that differ in nothing else."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('torch', reason='the training extra is not installed')

from stereo_kd_ros.disparity_io import write_pfm
from stereo_kd_training.ablation import Budget
from stereo_kd_training.data_ablation import (
    JUDGE_SEED,
    VARIANTS,
    DataBudget,
    as_markdown,
    run_data_ablation,
)
from stereo_kd_training.datasets.base import DatasetError
from stereo_kd_training.datasets.procedural import PoolManifest, pool_pair
from stereo_kd_training.networks import NetworkError

STUDENT = Budget(
    steps=1, batch_size=1, crop_height=64, crop_width=96, max_disparity_px=64, seeds=2,
    student='kestrel',
)  # fmt: skip
BUDGET = DataBudget(pairs=2, judged=1, height=64, width=128, student=STUDENT)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('data_ablation')


@pytest.fixture(scope='module')
def report(folder):
    return run_data_ablation(folder, BUDGET)


def test_every_variant_is_trained_and_judged_alike(folder, report):
    assert [row['variant'] for row in report['rows']] == [
        title for title in VARIANTS if title != 'without pictures'
    ]
    assert all(
        len(row['epe_px']) == 2 and np.isfinite(row['epe_px']).all() for row in report['rows']
    )
    judge = PoolManifest.read(folder / 'pools' / 'judge')
    assert judge.seed == JUDGE_SEED and judge.pairs == 1 and judge.cameras
    recipes = [json.loads(p.read_text()) for p in sorted((folder / 'runs').glob('*/recipe.json'))]
    assert len(recipes) == 2 * len(report['rows'])
    for recipe in recipes:
        assert recipe['data']['validation'][0]['pool'].endswith('judge')
        assert recipe['distill'] == recipes[0]['distill']


def test_pools_differ_in_what_is_left_out_and_in_nothing_else(folder, report):
    def manifest(name):
        return vars(PoolManifest.read(folder / 'pools' / name))

    everything = manifest('everything')
    for name, changed in (
        ('without_3_d_scenes', {'scenes': {'layered': 1.0}}),
        ('without_layered_scenes', {'scenes': {'rooms': 1.0}}),
        ('without_faults_of_cameras', {'cameras': False}),
        ('without_mirrors', {'without': ['mirrors']}),
    ):
        assert manifest(name) == {**everything, **changed}


def test_what_is_finished_is_not_repeated(folder, report):
    heard = []
    again = run_data_ablation(folder, BUDGET, progress=lambda stage, *_: heard.append(stage))
    assert again == report == json.loads((folder / 'data.json').read_text())
    assert not [stage for stage in heard if not stage.endswith('pool')]
    text = (folder / 'data.md').read_text()
    assert text == as_markdown(report) and 'small-scale' in text and '2 seeds' in text
    assert 'without 3-D scenes' in (folder / 'data.svg').read_text()


def test_differences_are_taken_seed_by_seed():
    def row(variant, epe):
        return {'variant': variant, 'epe_px': epe, 'bad3': [10.0, 20.0]}

    budget = json.loads(json.dumps({**vars(BUDGET), 'student': vars(STUDENT)}))
    rows = [row('everything', [1.0, 2.0]), row('without x', [1.1, 2.2])]
    table = as_markdown({'budget': budget, 'rows': rows})
    assert '| without x | 1.65 ± 0.78 | +10 ± 0 % | 15.0 ± 7.1 |' in table


def test_a_folder_of_labelled_pairs_judges_too(tmp_path):
    import cv2

    scene = tmp_path / 'real' / 'ours' / 'shift'
    scene.mkdir(parents=True)
    texture = np.random.default_rng(0).integers(0, 255, (64, 140, 3), np.uint8)
    cv2.imwrite(str(scene / 'left.png'), texture[:, :128])
    cv2.imwrite(str(scene / 'right.png'), texture[:, 8:136])
    write_pfm(scene / 'disp.pfm', np.full((64, 128), 8, np.float32))
    found = run_data_ablation(
        tmp_path / 'out',
        DataBudget(pairs=1, judged=1, height=64, width=128, student=STUDENT),
        benchmark=tmp_path / 'real',
    )
    assert all(np.isfinite(row['real_epe_px']).all() for row in found['rows'])
    assert 'real EPE px' in as_markdown(found)
    assert 'real EPE [px]' in (tmp_path / 'out' / 'data.svg').read_text()


def test_what_cannot_work_is_told_before_anything_is_rendered(tmp_path):
    out = tmp_path / 'out'
    with pytest.raises(DatasetError, match='nowhere'):
        run_data_ablation(out, BUDGET, benchmark=tmp_path / 'nowhere')
    misspelt = replace(BUDGET, student=replace(STUDENT, student='kestral'))
    with pytest.raises(NetworkError, match="did you mean 'kestrel'"):
        run_data_ablation(out, misspelt)
    assert not out.exists()


@pytest.mark.parametrize('scenes', [{'layered': 1.0}, {'rooms': 1.0}])
def test_without_cameras_the_scene_is_the_same_and_both_eyes_see_it_alike(scenes):
    """A textured point has the very same colour in both eyes, and rows are rows."""
    settings = {'pairs': 1, 'height': 96, 'width': 192, 'max_disparity_px': 32.0}
    plain = PoolManifest(seed=4, difficulty=(0.2, 0.2), scenes=scenes, cameras=False, **settings)
    taken = PoolManifest(seed=4, difficulty=(0.2, 0.2), scenes=scenes, **settings)
    drawn, photographed = pool_pair(plain, 0, None), pool_pair(taken, 0, None)
    assert not np.array_equal(drawn.left, photographed.left)
    if 'layered' in scenes:  # a room's sizes come after the draw of the rectification
        np.testing.assert_array_equal(drawn.disparity, photographed.disparity)
    rows, columns = np.mgrid[0:96, 0:192]
    there = columns - drawn.disparity
    known = np.isfinite(there) & (there >= 1) & (there < 190) & ~drawn.occluded
    low = np.floor(np.where(known, there, 0)).astype(int)
    share = np.where(known, there - low, 0)[..., None]
    right = drawn.right.astype(float)
    seen = right[rows, low] * (1 - share) + right[rows, low + 1] * share
    difference = np.abs(seen - drawn.left).mean(-1)[known]
    assert np.median(difference) < 4.0
    brightness = drawn.left[known].mean() - seen[known].mean()
    assert abs(brightness) < 0.5
