# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Comparisons: every variant is a valid recipe, equals differ in nothing but what is compared."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('torch', reason='the training extra is not installed')

from stereo_kd_training.ablation import (
    ABLATIONS,
    AblationError,
    Budget,
    as_markdown,
    run_ablation,
    variant_recipe,
)
from stereo_kd_training.networks import create
from stereo_kd_training.recipe import check_recipe

DATA = {
    'train': [{'pool': '/pool', 'last': -4}],
    'validation': [{'pool': '/pool', 'first': -4}],
}


@pytest.mark.parametrize('name', ABLATIONS)
def test_every_variant_is_a_recipe_of_a_network_that_exists(name):
    for title, variant in ABLATIONS[name].items():
        recipe = check_recipe(variant_recipe('x', variant, DATA, Budget(), 1, Path('/teacher')))
        training = recipe.distill.training
        assert create(training.network, **training.options).parameter_count() > 0, title


def test_pruned_and_unpruned_variants_train_as_long():
    steps = {
        title: sum(
            check_recipe(variant_recipe('x', variant, DATA, Budget(), 0, Path('/teacher')))
            .steps()
            .values()
        )
        for title, variant in ABLATIONS['distil_prune'].items()
    }
    assert len(set(steps.values())) == 1, steps


def test_an_unknown_comparison_is_told(tmp_path):
    with pytest.raises(AblationError, match='one of signal, loss'):
        run_ablation('signals', tmp_path, DATA, Budget())


def test_a_comparison_runs_reports_and_is_not_repeated(tmp_path):
    root = tmp_path / 'pairs'
    for side in ('left', 'right', 'disparity'):
        (root / side).mkdir(parents=True)
    for index in range(3):
        texture = np.random.default_rng(index).integers(0, 255, (72, 148, 3), np.uint8)
        cv2.imwrite(str(root / f'left/{index}.png'), texture[:, :140])
        cv2.imwrite(str(root / f'right/{index}.png'), texture[:, 8:])
        np.save(root / f'disparity/{index}.npy', np.full((72, 140), 8, np.float32))
    source = {'name': 'folder', 'root': str(root), 'options': {'disparity': 'disparity'}}
    data = {'train': [{**source, 'last': 2}], 'validation': [{**source, 'first': 2}]}
    budget = Budget(
        steps=1,
        teacher_steps=1,
        batch_size=2,
        crop_height=64,
        crop_width=96,
        max_disparity_px=64,
        seeds=2,
        student='kestrel',
    )
    report = run_ablation('loss', tmp_path / 'loss', data, budget)
    assert [row['variant'] for row in report['rows']] == ['KL divergence', 'L1 norm (Eq. 4)']
    assert all(len(row['epe_px']) == 2 for row in report['rows'])
    text = (tmp_path / 'loss/report.md').read_text()
    assert text == as_markdown(report) and '2 seeds' in text and 'small-scale' in text
    heard = []
    again = run_ablation(
        'loss', tmp_path / 'loss', data, budget, lambda stage, *_: heard.append(stage)
    )
    assert again == report and not heard
    assert json.loads((tmp_path / 'loss/report.json').read_text()) == report
