# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Comparisons: every variant is a valid recipe, equals differ in nothing but what is compared."""

from __future__ import annotations

import json
from dataclasses import replace
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
    run_name,
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
        recipe = check_recipe(variant_recipe(variant, DATA, Budget(), 1, Path('/out')))
        training = recipe.distill.training
        assert create(training.network, **training.options).parameter_count() > 0, title


def test_pruned_and_unpruned_variants_train_as_long():
    for budget in (Budget(), Budget(steps=7, tune_steps=5)):
        steps = {
            title: sum(
                check_recipe(variant_recipe(variant, DATA, budget, 0, Path('/out')))
                .steps()
                .values()
            )
            for title, variant in ABLATIONS['distil_prune'].items()
        }
        assert len(set(steps.values())) == 1, steps


def test_another_student_stands_in_only_where_no_part_of_dtpnet_is_compared():
    budget = Budget(student='kestrel')
    networks = {
        name: {
            variant_recipe(variant, DATA, budget, 0, Path('/out'))['distill']['training'][
                'network'
            ]
            for variant in variants.values()
        }
        for name, variants in ABLATIONS.items()
    }
    assert networks == {
        'signal': {'kestrel'},
        'loss': {'kestrel'},
        'modules': {'dtpnet'},
        'compact': {'compact_stereonet'},
        'distil_prune': {'kestrel'},
    }


def test_runs_are_shared_exactly_where_they_are_the_same():
    def name(table: str, title: str, seed: int = 0, steps: int = 9) -> str:
        budget = Budget(steps=steps)
        return run_name(variant_recipe(ABLATIONS[table][title], DATA, budget, seed, Path('/o')))

    assert name('signal', 'knowledge only') == name('loss', 'L1 norm (Eq. 4)')
    assert name('signal', 'knowledge only') != name('loss', 'KL divergence')
    assert name('signal', 'knowledge only') != name('signal', 'knowledge only', seed=1)
    assert name('signal', 'knowledge only') != name('signal', 'knowledge only', steps=8)


def test_versions_of_compact_stereonet_are_those_of_its_table():
    terms = {}
    for title, variant in ABLATIONS['compact'].items():
        recipe = check_recipe(variant_recipe(variant, DATA, Budget(), 0, Path('/out')))
        loss = recipe.distill.loss
        terms[title] = (loss.signal, loss.trust, loss.gamma)
    assert terms == {
        'v1: no teacher': ('ground_truth', 'none', 2.0),
        'SL1 + CE': ('both', 'none', 0.0),
        'v2: SL1 + focal': ('both', 'none', 2.0),
        'v3: ASL + focal': ('both', 'percentile', 2.0),
    }


def test_data_and_teacher_may_be_those_of_a_recipe(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from stereo_kd_training import ablation
    from stereo_kd_training.main import app

    path = tmp_path / 'recipe.yaml'
    path.write_text(
        'name: r\ndata: {train: [{name: kitti2015, root: /k}]}\n'
        'teacher: {network: psmnet, checkpoint: /p.tar}\n'
        'distill: {training: {network: dtpnet}, loss: {signal: teacher}}\n'
    )
    recipes = []

    def run(name, folder, data, budget, progress, teacher):
        recipes.extend(
            check_recipe(variant_recipe(variant, data, budget, 0, folder, teacher))
            for variant in ABLATIONS[name].values()
        )
        return {'ablation': name, 'budget': vars(budget), 'teacher': teacher, 'rows': []}

    monkeypatch.setattr(ablation, 'run_ablation', run)
    command = ['ablate', 'signal', '-o', str(tmp_path / 'out'), '--max-disparity', '192']
    done = CliRunner().invoke(app, [*command, '--recipe', str(path)])
    assert done.exit_code == 0, done.output
    assert 'taught by psmnet' in done.output
    assert all(recipe.data.train[0].name == 'kitti2015' for recipe in recipes)
    teachers = [recipe.teacher and recipe.teacher.checkpoint for recipe in recipes]
    assert teachers == [None, '/p.tar', '/p.tar']
    for options in ([], ['--pool', '/pool', '--recipe', str(path)]):
        refused = CliRunner().invoke(app, [*command, *options])
        assert refused.exit_code == 1 and 'either --pool, or --recipe' in refused.output


def test_an_unknown_comparison_is_told(tmp_path):
    with pytest.raises(AblationError, match='one of signal, loss'):
        run_ablation('signals', tmp_path, DATA, Budget())


@pytest.fixture
def data(tmp_path) -> dict:
    """Three pairs of a folder as a recipe's data."""
    root = tmp_path / 'pairs'
    for side in ('left', 'right', 'disparity'):
        (root / side).mkdir(parents=True)
    for index in range(3):
        texture = np.random.default_rng(index).integers(0, 255, (72, 148, 3), np.uint8)
        cv2.imwrite(str(root / f'left/{index}.png'), texture[:, :140])
        cv2.imwrite(str(root / f'right/{index}.png'), texture[:, 8:])
        np.save(root / f'disparity/{index}.npy', np.full((72, 140), 8, np.float32))
    source = {'name': 'folder', 'root': str(root), 'options': {'disparity': 'disparity'}}
    return {'train': [{**source, 'last': 2}], 'validation': [{**source, 'first': 2}]}


def test_comparisons_share_a_teacher_and_runs_report_and_are_not_repeated(tmp_path, data):
    budget = Budget(
        steps=1,
        tune_steps=2,
        teacher_steps=1,
        batch_size=2,
        crop_height=64,
        crop_width=96,
        max_disparity_px=64,
        seeds=2,
        student='kestrel',
    )
    out = tmp_path / 'out'
    report = run_ablation('loss', out, data, budget)
    assert [row['variant'] for row in report['rows']] == ['KL divergence', 'L1 norm (Eq. 4)']
    assert all(len(row['epe_px']) == len(row['bad3']) == 2 for row in report['rows'])
    text = (out / 'loss.md').read_text()
    assert text == as_markdown(report) and '2 seeds' in text and 'small-scale' in text
    assert f'{report["teacher"]["validation"]["epe_px"]:.2f} px' in text
    assert 'KL divergence' in (out / 'loss.svg').read_text()
    answers = {path: path.stat().st_mtime_ns for path in (out / 'answers').rglob('*.npz')}
    assert len(answers) == 2
    heard = []
    again = run_ablation('loss', out, data, budget, lambda stage, *_: heard.append(stage))
    assert again == report and not heard
    assert json.loads((out / 'loss.json').read_text()) == report

    # Both signals of the teacher are there already, and so is its answer to every pair.
    heard = set()
    fewer = replace(budget, seeds=1)
    pruned = run_ablation('distil_prune', out, data, fewer, lambda s, *_: heard.add(s))
    assert {'neither-0 distill', 'neither-0 tune', 'prune_only-0 prune'} <= heard
    assert {p: p.stat().st_mtime_ns for p in (out / 'answers').rglob('*.npz')} == answers
    assert not any(label.endswith(' cache') for label in heard)
    sizes = [row['parameters'] for row in pruned['rows']]
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3]
    for title in ('distil_only', 'distil_and_prune'):
        assert not any(label.startswith(title) and label.endswith('distill') for label in heard)
