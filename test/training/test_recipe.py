# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Recipes: mistakes named, budgets, a run killed anywhere that ends where it would have."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the training extra is not installed')

from two_processes import run_in_two_processes  # noqa: E402

import stereo_kd_training  # noqa: E402
from stereo_kd_ros.disparity_io import write_pfm  # noqa: E402
from stereo_kd_training.datasets.base import DatasetError  # noqa: E402
from stereo_kd_training.export import export_network  # noqa: E402
from stereo_kd_training.networks import create  # noqa: E402
from stereo_kd_training.networks.channels import channel_widths  # noqa: E402
from stereo_kd_training.prune import count_macs, save_network  # noqa: E402
from stereo_kd_training.recipe import RecipeError, check_recipe, read_recipe  # noqa: E402
from stereo_kd_training.stages import RecipeRun, plan  # noqa: E402
from stereo_kd_training.train import load_network  # noqa: E402

TINY = {
    'stem': 8,
    'encoder': [8, 8, 8],
    'matching': 8,
    'context': 8,
    'aggregation': [16, 16, 16, 16],
    'blocks': [1, 1, 1, 1],
    'max_disparity_px': 64,
}


@pytest.fixture
def pairs(tmp_path) -> Path:
    """A folder of six pairs: one texture seen twice, 6 + i px apart."""
    root = tmp_path / 'pairs'
    for side in ('left', 'right', 'disparity'):
        (root / side).mkdir(parents=True)
    for index in range(6):
        generator = np.random.default_rng(index)
        coarse = generator.integers(0, 255, (20, 40, 3), np.uint8)
        texture = cv2.resize(coarse, (140 + 6 + index, 72), interpolation=cv2.INTER_CUBIC)
        shift = 6 + index
        cv2.imwrite(str(root / f'left/{index}.png'), texture[:, :140])
        cv2.imwrite(str(root / f'right/{index}.png'), texture[:, shift : shift + 140])
        np.save(root / f'disparity/{index}.npy', np.full((72, 140), shift, np.float32))
    return root


def training(steps: int = 3, **fields) -> dict:
    return {
        'network': 'kestrel',
        'options': TINY,
        'steps': steps,
        'batch_size': 2,
        'crop_height': 64,
        'crop_width': 96,
        'precision': 'no',
        'validate_every': 2,
        'validation_pairs': 1,
        'checkpoint_every': 1,
        'log_every': 1,
        **fields,
    }


def content(pairs: Path, **sections) -> dict:
    """Everything a recipe can do, at a size for a test."""
    source = {'name': 'folder', 'root': str(pairs), 'options': {'disparity': 'disparity'}}
    return {
        'name': 'tiny',
        'data': {
            'train': [{**source, 'last': 4}],
            'validation': [{**source, 'first': 4}],
        },
        'teach': {'training': training(2)},
        'teacher': {'network': 'kestrel', 'cache': True},
        'distill': {
            'training': training(3),
            'loss': {'method': 'dtp', 'signal': 'both', 'teacher_pixels': 0.5},
        },
        'prune': {'ratio': 0.5, 'steps': 2, 'tune_steps': 2, 'round_to': 4},
        'tune': {'training': training(2)},
        **sections,
    }


# Reading


def test_an_unknown_key_names_the_nearest_one(pairs):
    wrong = content(pairs)
    wrong['distill']['training']['stepz'] = 5
    with pytest.raises(RecipeError, match=r"training.stepz: unknown key; did you mean 'steps'"):
        check_recipe(wrong)
    wrong = content(pairs)
    wrong['data']['train'][0]['rot'] = '/'
    with pytest.raises(RecipeError, match=r"data.train.0.rot: unknown key; did you mean 'root'"):
        check_recipe(wrong)
    with pytest.raises(RecipeError, match="distil: unknown key; did you mean 'distill'"):
        check_recipe({**content(pairs), 'distil': {}})


def test_every_mistake_is_listed(pairs):
    wrong = content(pairs)
    wrong['distill']['training']['batch_size'] = 0
    wrong['prune']['target'] = 'parameters'
    with pytest.raises(RecipeError) as error:
        check_recipe(wrong)
    assert 'distill.training.batch_size' in str(error.value)
    assert 'prune: give either ratio, or target and value' in str(error.value)


@pytest.mark.parametrize(
    'sections, message',
    [
        ({'teacher': None, 'teach': None}, 'no teacher section'),
        ({'teach': None}, 'no checkpoint and no teach stage'),
        ({'teacher': {'onnx': 'x.onnx'}}, 'needs cache: true'),
        ({'teacher': {'model': 'medium'}}, 'needs cache: true'),
        ({'teacher': {'model': 'medium', 'folder': 'x'}}, 'one of network, model, onnx, folder'),
        ({'teacher': {'network': 'psmnet'}}, "teach trains 'kestrel' but the teacher is"),
        ({'prune': {'target': 'flops', 'value': 1}}, 'parameters, macs, latency_ms'),
        ({'teacher': {'network': 'kestrel', 'top_k': 4}}, 'top_k is for the cache'),
        ({'teacher': {'folder': 'x', 'cache': True, 'top_k': 4}}, 'top_k is for the cache'),
        ({'teacher': {'network': 'kestrel', 'cache_folder': 'x'}}, 'needs cache: true'),
        ({'name': 'a/b'}, 'name'),
    ],
)
def test_sections_that_do_not_fit_together(pairs, sections, message):
    with pytest.raises(RecipeError, match=message):
        check_recipe(content(pairs, **sections))


def test_variables_in_paths(tmp_path, monkeypatch):
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(
        'name: v\ndata: {train: [{name: kitti2015, root: $STEREO_TEST_ROOT/k}]}\n'
        'distill: {training: {network: kestrel}}\n'
    )
    monkeypatch.delenv('STEREO_TEST_ROOT', raising=False)
    with pytest.raises(RecipeError, match='STEREO_TEST_ROOT'):
        read_recipe(recipe)
    monkeypatch.setenv('STEREO_TEST_ROOT', '/data')
    assert read_recipe(recipe).data.train[0].root == '/data/k'


def test_files_that_are_no_recipe(tmp_path):
    with pytest.raises(RecipeError, match='cannot be read'):
        read_recipe(tmp_path / 'none.yaml')
    (tmp_path / 'list.yaml').write_text('- 1\n')
    with pytest.raises(RecipeError, match='holds list'):
        read_recipe(tmp_path / 'list.yaml')
    (tmp_path / 'broken.yaml').write_text('a: [\n')
    with pytest.raises(RecipeError, match='not YAML'):
        read_recipe(tmp_path / 'broken.yaml')


def test_a_budget_shortens_every_stage_alike(pairs):
    long = content(pairs)
    long['distill']['training']['steps'] = 3000
    long['teach']['training']['steps'] = 1000
    long['prune']['tune_steps'] = 500
    recipe = check_recipe(long)
    assert recipe.with_budget(0.1).steps() == {
        'teach': 100,
        'distill': 300,
        'prune': 100,
        'tune': 1,
    }
    assert sum(recipe.with_budget(500).steps().values()) == pytest.approx(500, abs=5)
    assert recipe.with_budget(1e9).steps() == recipe.steps()
    with pytest.raises(RecipeError, match='budget'):
        recipe.with_budget(0)


FOLDER = Path(stereo_kd_training.__file__).parents[1] / 'recipes'
# The others are configurations of a single training.
SHIPPED = sorted(path for path in FOLDER.glob('*.yaml') if '\ndata:' in path.read_text())


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path, monkeypatch):
    for variable in (
        'SCENE_FLOW',
        'KITTI',
        'POOL',
        'PSMNET',
        'GWCNET',
        'ACVNET',
        'RUN',
        'ROOMS',
        'SMALL',
        'LARGE',
    ):
        monkeypatch.setenv(variable, '/somewhere')
    recipe = read_recipe(path)
    assert recipe.about


def test_changes_on_the_command_line(tmp_path):
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(
        'name: v\ndata: {train: [{name: kitti2015, root: /k}]}\n'
        'distill: {training: {network: kestrel}}\n'
    )
    changed = read_recipe(
        recipe,
        [
            'distill.training.batch_size=2',
            'data.train.0.last=7',
            'distill.training.options={max_disparity_px: 64}',
            'prune.ratio=0.5',
            'distill.training.augmentation.stretch=0.1',
        ],
    )
    assert changed.distill.training.batch_size == 2 and changed.data.train[0].last == 7
    assert changed.distill.training.options == {'max_disparity_px': 64}
    assert changed.prune.ratio == 0.5 and changed.distill.training.augmentation.stretch == 0.1
    for change, message in (
        ('distill.training.batchsize=2', r"batchsize: unknown key; did you mean 'batch_size'"),
        ('data.train.1.last=7', r"'1' is no place in a list of 1"),
        ('distill', 'expected KEY=VALUE'),
        ('name.first=x', r"'name' is a value"),
        ('distill.training.options={', 'is not YAML'),
    ):
        with pytest.raises(RecipeError, match=message):
            read_recipe(recipe, [change])


def test_a_change_touches_one_key_though_yaml_repeats_its_section(tmp_path):
    recipe = tmp_path / 'recipe.yaml'
    recipe.write_text(
        'name: v\ndata: {train: [{name: kitti2015, root: /k}]}\n'
        'distill: {training: {network: kestrel}, loss: &loss {signal: ground_truth}}\n'
        'tune: {training: {network: kestrel}, loss: *loss}\n'
    )
    changed = read_recipe(recipe, ['distill.loss.gamma=5'])
    assert changed.distill.loss.gamma == 5 and changed.tune.loss.gamma == 2


CALLED = """
stereo-kd-train() {
  printf '%s\\0' "$SCENE_FLOW" "$KITTI" "$PSMNET" "$GWCNET" "$ACVNET" "$RUN" "$BENCHMARK" "$@"
  printf '\\n\\0'
}
jq() { :; }
"""


def documented_runs(page: str) -> list[tuple[dict[str, str], list[str]]]:
    """Environment and arguments of every `stereo-kd-train` in the section on the papers' data."""
    section = page.split('### With Scene Flow and KITTI on disk', 1)[1].split('\n## ', 1)[0]
    script = CALLED + '\n'.join(re.findall(r'```bash\n(.*?)```', section, re.DOTALL))
    environment = {'PATH': os.environ['PATH'], 'BENCHMARK': '/bench'}
    ran = subprocess.run(
        ['bash', '-eu', '-c', 'RUN=\n' + script], capture_output=True, env=environment, check=True
    )
    names = ('SCENE_FLOW', 'KITTI', 'PSMNET', 'GWCNET', 'ACVNET', 'RUN', 'BENCHMARK')
    calls = [call.split('\0')[:-1] for call in ran.stdout.decode().split('\n\0')[:-1]]
    return [(dict(zip(names, call)), call[len(names) :]) for call in calls]


@pytest.mark.skipif(shutil.which('bash') is None, reason='the page is for bash')
def test_every_documented_experiment_is_a_recipe_that_can_be_built(repository, monkeypatch):
    calls = documented_runs((repository / 'docs/recipes.md').read_text())
    assert len(calls) > 50
    experiments = {}
    for environment, arguments in calls:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        (path,) = (repository / argument for argument in arguments if argument.endswith('.yaml'))
        changes = [after for flag, after in itertools.pairwise(arguments) if flag == '--set']
        recipe = read_recipe(path, changes)
        if arguments[0] == 'ablate':
            assert recipe.teacher.checkpoint
            continue
        for stage in (recipe.teach, recipe.distill, recipe.tune):
            if stage:
                with torch.device('meta'):
                    create(stage.training.network, **stage.training.options)
        if '--dry-run' not in arguments and '--budget' not in arguments:
            folder = arguments[arguments.index('-o') + 1]
            assert folder not in experiments, 'two experiments in one folder'
            experiments[folder] = recipe.model_dump(exclude={'name', 'about'})
    contents = list(experiments.values())
    assert all(a != b for a, b in itertools.combinations(contents, 2)), 'the same one twice'


@pytest.fixture
def scene_flow(tmp_path) -> Path:
    """One pair for each of Scene Flow's three sets, and one to test."""
    root = tmp_path / 'scene_flow'
    for index, (name, place) in enumerate(
        [
            ('FlyingThings3D', 'TRAIN/A/0000'),
            ('FlyingThings3D', 'TEST/A/0000'),
            ('Monkaa', 'a_rain_of_stones_x2'),
            ('Driving', '15mm_focallength/scene_forwards/fast'),
        ]
    ):
        frames = root / name / 'frames_cleanpass' / place
        truth = root / name / 'disparity' / place / 'left'
        for folder in (frames / 'left', frames / 'right', truth):
            folder.mkdir(parents=True)
        coarse = np.random.default_rng(index).integers(0, 255, (20, 40, 3), np.uint8)
        texture = cv2.resize(coarse, (168, 72), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(frames / 'left/0006.png'), texture[:, :160])
        cv2.imwrite(str(frames / 'right/0006.png'), texture[:, 8:])
        write_pfm(truth / '0006.pfm', np.full((72, 160), 8, np.float32))
    return root


@pytest.mark.parametrize('path', SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_says_what_it_would_do(path, scene_flow, monkeypatch):
    """The plan of the paper's own length, on a small copy of the data where there is one."""
    for variable in ('KITTI', 'POOL', 'RUN', 'ROOMS', 'SMALL', 'LARGE'):
        monkeypatch.setenv(variable, '/nowhere')
    for variable in ('PSMNET', 'GWCNET', 'ACVNET'):
        monkeypatch.setenv(variable, str(scene_flow))
    monkeypatch.setenv('SCENE_FLOW', str(scene_flow))
    recipe = read_recipe(path)
    text = '\n'.join(plan(recipe, measure_time=False))
    assert recipe.name in text and 'distill -> ' in text and 'GMAC at 640x480' in text
    for stage, steps in recipe.steps().items():
        assert f'  {stage}: {steps:,} steps' in text
    if 'scene_flow' in path.stem:
        assert 'NOT THERE' not in text and text.count('1 pairs') == 1 and '3 pairs' in text
    else:
        assert 'NOT THERE' in text


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_papers_recipe_runs_from_its_data_to_a_model_file(scene_flow, tmp_path, monkeypatch):
    """DTPNet's on Scene Flow: every stage, shortened by --budget, with another small teacher."""
    from typer.testing import CliRunner

    from stereo_kd_training.main import app

    torch.manual_seed(0)
    weights = tmp_path / 'anynet.tar'
    torch.save({'state_dict': create('anynet', max_disparity_px=64).state_dict()}, weights)
    monkeypatch.setenv('SCENE_FLOW', str(scene_flow))
    monkeypatch.setenv('PSMNET', str(weights))
    path = FOLDER / 'dtpnet_scene_flow.yaml'
    changes = {
        'teacher.network': 'anynet',
        'teacher.options': '{max_disparity_px: 64}',
        'distill.training.options': '{max_disparity_px: 64}',
        'distill.training.batch_size': 2,
        'distill.training.crop_height': 64,
        'distill.training.crop_width': 96,
        'prune.steps': 2,
    }
    command = ['run', str(path), '-o', str(tmp_path / 'run'), '--budget', '6', '--threads', '1']
    for key, value in changes.items():
        command += ['--set', f'{key}={value}']
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    summary = json.loads((tmp_path / 'run/summary.json').read_text())
    assert list(summary) == ['distill', 'prune', 'export', 'evaluate']
    assert summary['prune']['ratio'] == 0.37 and len(summary['prune']['steps']) == 2
    metrics = summary['evaluate']['metrics']
    assert metrics['prune']['parameters'] < 0.55 * metrics['distill']['parameters']
    first = json.loads((tmp_path / 'run/distill/log.jsonl').read_text().splitlines()[0])
    assert first['train/dtp_l1'] > 0 and 'train/ground_truth' not in first
    assert (tmp_path / 'run' / summary['export']['model']).is_file()


@pytest.fixture
def kitti(tmp_path) -> Path:
    """Six frames laid out as KITTI 2015, no two of one width, with truth in every second row."""
    frames = tmp_path / 'kitti/training'
    for folder in ('image_2', 'image_3', 'disp_occ_0'):
        (frames / folder).mkdir(parents=True)
    for index in range(6):
        width, name = 160 + index, f'{index:06d}_10.png'
        coarse = np.random.default_rng(index).integers(0, 255, (20, 40, 3), np.uint8)
        texture = cv2.resize(coarse, (width + 8, 72), interpolation=cv2.INTER_CUBIC)
        cv2.imwrite(str(frames / 'image_2' / name), texture[:, :width])
        cv2.imwrite(str(frames / 'image_3' / name), texture[:, 8:])
        truth = np.full((72, width), 8 * 256, np.uint16)
        truth[::2] = 0
        cv2.imwrite(str(frames / 'disp_occ_0' / name), truth)
    return frames.parent


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    'network, last, stages',
    [
        ('dtpnet', 'prune', ['distill', 'prune', 'export', 'evaluate']),
        ('compact_stereonet', 'tune', ['distill', 'tune', 'export', 'evaluate']),
    ],
)
def test_the_kitti_recipes_run(kitti, tmp_path, monkeypatch, network, last, stages):
    """From weights of the run before, over a fold of frames of different sizes."""
    small = {'max_disparity_px': 64}
    torch.manual_seed(0)
    weights = tmp_path / 'anynet.tar'
    torch.save({'state_dict': create('anynet', **small).state_dict()}, weights)
    save_network(create(network, **small), tmp_path / 'before.pt')
    for variable in ('PSMNET', 'GWCNET'):
        monkeypatch.setenv(variable, str(weights))
    monkeypatch.setenv('KITTI', str(kitti))
    monkeypatch.setenv('RUN', str(tmp_path / 'before.pt'))
    changes = ['teacher.network=anynet', f'teacher.options={small}']
    path = FOLDER / f'{network}_kitti.yaml'
    shipped = read_recipe(path)
    for stage in ('distill', 'tune'):
        if section := getattr(shipped, stage):
            options = {**small, **section.training.options}
            fields = {'options': options, 'batch_size': 2, 'crop_height': 64, 'crop_width': 96}
            changes += [f'{stage}.training.{key}={value}' for key, value in fields.items()]
    if shipped.prune:
        changes.append('prune.steps=1')
    summary = RecipeRun(read_recipe(path, changes).with_budget(4), tmp_path / 'run').run()
    assert list(summary) == stages
    assert summary['evaluate']['metrics'][last]['validation']['epe_px'] > 0
    assert (tmp_path / 'run' / summary['export']['model']).is_file()


# Running


def test_a_dry_run_tells_stages_data_and_time(pairs):
    recipe = check_recipe(content(pairs))
    text = '\n'.join(plan(recipe))
    assert 'teach -> cache -> distill -> prune -> tune -> evaluate' in text
    assert '4 pairs' in text and '2 pairs' in text
    assert 'prune: 4 steps' in text and 'on this machine' in text
    absent = content(pairs)
    absent['data']['train'][0]['root'] = '/nowhere'
    absent['distill']['training']['initial_weights'] = '/no/weights.pt'
    absent['teach'] = None
    absent['teacher'] = {'network': 'psmnet', 'checkpoint': '/no/psmnet.tar'}
    text = '\n'.join(plan(check_recipe(absent), measure_time=False))
    assert 'train: folder in /nowhere: NOT THERE' in text
    assert 'teacher: psmnet, in memory: NOT THERE: /no/psmnet.tar' in text
    assert 'starts from: /no/weights.pt: NOT THERE' in text


def test_a_wrong_root_does_not_claim_the_folder(pairs, tmp_path):
    wrong = content(pairs)
    wrong['data']['train'][0]['root'] = str(tmp_path / 'misspelt')
    with pytest.raises(DatasetError, match='Looked for'):
        RecipeRun(check_recipe(wrong), tmp_path / 'run')
    RecipeRun(check_recipe(content(pairs)), tmp_path / 'run')


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_runs_a_recipe_to_a_model_file(pairs, tmp_path):
    from typer.testing import CliRunner

    from stereo_kd_ros.model import read_manifest
    from stereo_kd_training.main import app

    path = tmp_path / 'recipe.yaml'
    sections = {'teach': None, 'tune': None, 'export': {'licence': 'MIT'}}
    recipe = content(pairs, **sections)
    recipe['prune'] = {'target': 'parameters', 'value': 0.6, 'steps': 1, 'tune_steps': 1}
    recipe['teacher'] = None
    recipe['distill'] = {'training': training(6)}
    path.write_text(json.dumps({key: value for key, value in recipe.items() if value}))
    told = CliRunner().invoke(
        app, ['run', str(path), '-o', str(tmp_path / 'run'), '--dry-run', '--threads', '1']
    )
    assert told.exit_code == 0 and 'distill -> prune -> export -> evaluate' in told.output
    assert not (tmp_path / 'run').exists()
    done = CliRunner().invoke(
        app, ['run', str(path), '-o', str(tmp_path / 'run'), '--threads', '1']
    )
    assert done.exit_code == 0, done.output
    manifest = read_manifest(tmp_path / 'run/export/tiny.onnx')
    assert manifest.licence == 'MIT' and len(manifest.pruning) == 1
    full = RecipeRun(read_recipe(path), tmp_path / 'run')
    assert manifest.parameters <= 0.6 * load_network(full.networks()['distill']).parameter_count()
    path.write_text('name: x\nstages: []\n')
    refused = CliRunner().invoke(app, ['run', str(path), '-o', str(tmp_path / 'other')])
    assert refused.exit_code == 1 and 'stages: unknown key' in refused.output


@pytest.mark.timeout(600)
def test_a_recipe_prunes_by_what_is_measured(pairs, tmp_path):
    recipe = content(pairs, teach=None, tune=None, teacher=None)
    recipe['distill'] = {'training': training(2)}
    recipe['prune'] = {'by': 'measured', 'ratio': 0.06, 'crops': 2, 'steps': 2, 'tune_steps': 1}
    run = RecipeRun(check_recipe(without_nothing(recipe)), tmp_path / 'run')
    summary = run.run()
    whole, pruned = (count_macs(load_network(run.networks()[k])) for k in ('distill', 'prune'))
    assert 0.5 * whole < pruned <= 0.94 * whole
    between = count_macs(load_network(tmp_path / 'run/prune/step_0/start.pt'))
    assert pruned < between <= 0.97 * whole
    assert [step['ratio'] for step in summary['prune']['steps']] == [0.03, 0.06]


def test_what_is_measured_has_no_other_target_than_operations(pairs):
    wrong = content(pairs)
    wrong['prune'] = {'by': 'measured', 'target': 'latency_ms', 'value': 10}
    with pytest.raises(RecipeError, match='what is measured counts macs, not latency_ms'):
        check_recipe(wrong)
    wrong['prune'] = {'by': 'guessing', 'ratio': 0.1}
    with pytest.raises(RecipeError, match=r'prune\.by'):
        check_recipe(wrong)


def without_nothing(sections: dict) -> dict:
    return {key: value for key, value in sections.items() if value is not None}


class Killed(Exception):
    """Stands for a power cut: nothing of the run's own cleaning up is relied upon."""


def run_killing_at(recipe, folder: Path, moments: list[tuple[str, int]]) -> None:
    """Run to the end, dying once at each (stage, step)."""
    left = list(moments)

    def die(stage: str, step: int, _steps: int, _text: str) -> None:
        if left and (stage, step) == left[0]:
            left.pop(0)
            raise Killed

    while True:
        try:
            RecipeRun(recipe, folder, die).run()
            break
        except Killed:
            continue
    assert not left, f'never came to {left}'


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_in_every_stage_ends_as_one_that_was_not(pairs, tmp_path):
    recipe = check_recipe(content(pairs))
    RecipeRun(recipe, tmp_path / 'whole').run()
    moments = [
        ('teach', 2),
        ('cache', 2),
        ('distill', 2),
        ('prune', 1),
        ('prune', 4),
        ('tune', 1),
        ('evaluate', 1),
    ]
    run_killing_at(recipe, tmp_path / 'killed', moments)
    whole, killed = (RecipeRun(recipe, tmp_path / name) for name in ('whole', 'killed'))
    assert list(whole.networks()) == ['distill', 'prune', 'tune']
    for stage, checkpoint in whole.networks().items():
        ours = load_network(checkpoint).state_dict()
        theirs = load_network(killed.networks()[stage]).state_dict()
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), stage
    distilled, pruned = (load_network(whole.networks()[s]) for s in ('distill', 'prune'))
    assert pruned.parameter_count() < distilled.parameter_count()
    assert channel_widths(load_network(whole.networks()['tune'])) == channel_widths(pruned)

    summary = json.loads((tmp_path / 'whole' / 'summary.json').read_text())
    assert summary['cache']['pairs'] == 4
    assert summary['prune']['ratio'] == 0.5 and len(summary['prune']['steps']) == 2
    assert set(summary['evaluate']['metrics']) == {'distill', 'prune', 'tune'}
    assert json.loads((tmp_path / 'whole/versions.json').read_text())['torch']


def test_a_folder_of_disparities_can_teach(pairs, tmp_path):
    """Teacher only, from a file by the pair's own name; the truth plays no part."""
    recipe = content(pairs, teach=None, prune=None, tune=None)
    for source in recipe['data']['train']:
        source['options'] = {}
    recipe['teacher'] = {'folder': str(pairs / 'disparity'), 'cache': True}
    recipe['distill'] = {
        'training': training(1),
        'loss': {'method': 'dtp', 'signal': 'teacher', 'teacher_pixels': 1.0},
    }
    RecipeRun(check_recipe(recipe), tmp_path / 'run').run()
    first = json.loads((tmp_path / 'run/distill/log.jsonl').read_text().splitlines()[0])
    assert first['train/dtp_l1'] > 0 and first['train/teacher_pixels'] > 0
    assert len(list((tmp_path / 'run/cache').rglob('*.npz'))) == 4


@pytest.mark.parametrize('several', ['', 'ensemble='])
def test_a_model_file_can_teach(pairs, tmp_path, several):
    """As words of a command line, asked once or several times; its answers are kept."""
    file = tmp_path / 'teacher.onnx'
    # Of some untrained networks two hypotheses tie, which the parity of an export does not bear.
    torch.manual_seed(1)
    export_network(create('kestrel', **TINY).eval(), file)
    recipe = content(pairs, teach=None, prune=None, tune=None)
    recipe['teacher'] = {'model': f'{several}{file}', 'cache': True}
    recipe['distill'] = {
        'training': training(1),
        'loss': {'method': 'dtp', 'signal': 'teacher', 'teacher_pixels': 1.0},
    }
    checked = check_recipe(recipe)
    assert any(f'teacher: {several}{file}, cached' in line for line in plan(checked, False))
    assert RecipeRun(checked, tmp_path / 'run').run()['cache']['computed'] == 4
    first = json.loads((tmp_path / 'run/distill/log.jsonl').read_text().splitlines()[0])
    assert first['train/dtp_l1'] > 0


def test_a_model_file_teaches_from_memory_as_its_checkpoint_does(pairs, tmp_path):
    torch.manual_seed(1)
    network = create('kestrel', **TINY).eval()
    save_network(network, tmp_path / 'teacher.pt')
    export_network(network, tmp_path / 'teacher.onnx')
    losses = []
    for suffix in ('pt', 'onnx'):
        recipe = content(pairs, teach=None, prune=None, tune=None)
        recipe['teacher'] = {
            'network': 'kestrel',
            'checkpoint': str(tmp_path / f'teacher.{suffix}'),
        }
        recipe['distill'] = {
            'training': training(1),
            'loss': {'method': 'dtp', 'signal': 'teacher', 'distance': 'kl'},
        }
        RecipeRun(check_recipe(recipe), tmp_path / suffix).run()
        log = (tmp_path / suffix / 'distill/log.jsonl').read_text().splitlines()[0]
        losses.append(json.loads(log)['train/loss'])
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_student_learns_from_distributions_on_disk_that_runs_share(pairs, tmp_path):
    """With top_k the loss is that of the teacher's own distribution, not of a Laplace one."""
    shared = tmp_path / 'answers'
    first = content(pairs, prune=None, tune=None)
    first['teacher'].update(top_k=16, cache_folder=str(shared))
    first['distill'] = {
        'training': training(1),
        'loss': {'method': 'dtp', 'signal': 'teacher'},
    }
    run = RecipeRun(check_recipe(first), tmp_path / 'first')
    summary = run.run()
    assert summary['cache']['computed'] == 4 and not list((tmp_path / 'first/cache').glob('*/'))
    stored = sorted(shared.rglob('*.npz'))
    assert len(stored) == 4
    with np.load(stored[0]) as answer:
        assert answer['probabilities'].dtype == np.float16
        assert answer['probabilities'].shape == (16, 18, 35)

    checkpoint = run.folder / 'teach/checkpoint.pt'
    second = {**first, 'teach': None}
    second['teacher'] = {**first['teacher'], 'checkpoint': str(checkpoint)}
    again = RecipeRun(check_recipe(second), tmp_path / 'second').run()
    assert (again['cache']['computed'], again['cache']['kept']) == (0, 4)
    plain = {**second, 'teacher': {'network': 'kestrel', 'cache': True}}
    plain['teacher']['checkpoint'] = str(checkpoint)
    RecipeRun(check_recipe(plain), tmp_path / 'laplace').run()

    def loss(name: str) -> float:
        text = (tmp_path / name / 'distill/log.jsonl').read_text()
        return json.loads(text.splitlines()[0])['train/dtp_l1']

    assert loss('first') == pytest.approx(loss('second'))
    # An untrained teacher is unsure, a Laplace distribution round its answer is not.
    assert loss('first') < 0.95 * loss('laplace')


def test_another_recipe_in_the_same_folder_is_refused(pairs, tmp_path):
    sections = {'teach': None, 'teacher': None, 'prune': None, 'tune': None}
    plain = content(pairs, **sections)
    plain['distill'] = {'training': training(1)}
    RecipeRun(check_recipe(plain), tmp_path / 'run').run()
    plain['seed'] = 7
    with pytest.raises(RecipeError, match='another seed'):
        RecipeRun(check_recipe(plain), tmp_path / 'run')


@pytest.mark.parametrize('method', ['dtp', 'compact', 'dsnet'])
def test_every_objective_trains_from_a_network_in_memory(pairs, tmp_path, method):
    loss = {'method': method, 'signal': 'both'}
    if method == 'compact':
        loss['trust'] = 'percentile'
    recipe = check_recipe(
        content(
            pairs,
            teach={'training': training(1)},
            teacher={'network': 'kestrel'},
            distill={'training': training(1), 'loss': loss},
            prune=None,
            tune=None,
        )
    )
    RecipeRun(recipe, tmp_path / 'run').run()
    lines = (tmp_path / 'run/distill/log.jsonl').read_text().splitlines()
    logged = json.loads(lines[0])
    terms = {
        'dtp': {'dtp_l1'},
        'compact': {'volume', 'focal'},
        'dsnet': {'soft', 'teacher_pixels'},
    }[method]
    assert {f'train/{term}' for term in terms | {'ground_truth', 'loss'}} <= set(logged)
    assert all(np.isfinite(value) for value in logged.values())


TWO_PROCESSES = """
import json, os, sys
import torch
torch.set_num_threads(1)
from stereo_kd_training.recipe import check_recipe
from stereo_kd_training.stages import RecipeRun
RecipeRun(check_recipe(json.loads(sys.argv[1])), sys.argv[2]).run()
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_over_gloo_give_the_loss_curve_of_one(pairs, tmp_path):
    plain = content(pairs, teach=None, teacher=None, prune=None, tune=None)
    plain['distill'] = {'training': training(3, batch_size=4)}
    RecipeRun(check_recipe(plain), tmp_path / 'one').run()
    run_in_two_processes(TWO_PROCESSES, json.dumps(plain), str(tmp_path / 'two'))

    def curve(name: str, key: str) -> list[float]:
        lines = (tmp_path / name / 'distill/log.jsonl').read_text().splitlines()
        logged = [json.loads(line) for line in lines]
        return [line[key] for line in logged if key in line]

    one, two = curve('one', 'train/loss'), curve('two', 'train/loss')
    assert len(one) == 3
    # Batch norm over half of the batch would differ by percents.
    smooth = (curve(name, 'train/cross_entropy')[0] for name in ('one', 'two'))
    assert next(smooth) == pytest.approx(next(smooth), rel=1e-6)
    # Of an untrained network's hypotheses many are nearly as good as the best: in sums of another
    # order another one is, and the window round it moves.
    assert two[0] == pytest.approx(one[0], rel=1e-4)
    # Adam magnifies that; that nothing else differs is shown in float64 by test_parallel.
    assert two == pytest.approx(one, rel=0.03)
