# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd-train` from nothing to a file that the runtime runs."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from typer.testing import CliRunner  # noqa: E402

from stereo_kd_ros.engine import StereoEngine  # noqa: E402
from stereo_kd_ros.model import read_manifest  # noqa: E402
from stereo_kd_ros.procedural import render_pair  # noqa: E402
from stereo_kd_training.main import app  # noqa: E402

# After four steps two hypotheses are often as good as each other, and the runtime may choose
# otherwise than PyTorch; the whole range's mean (window 0) depends on no choice.
CONFIG = """
network: kestrel
options:
  {stem: 8, encoder: [8, 8, 8], matching: 8, context: 8, aggregation: [16, 16, 16, 16],
   blocks: [1, 1, 1, 1], max_disparity_px: 64, window: 0}
steps: 4
batch_size: 2
crop_height: 64
crop_width: 96
validate_every: 2
validation_pairs: 1
precision: 'no'
"""


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def run(*words: object):
    return CliRunner().invoke(app, [str(word) for word in words])


def test_scenes_to_training_to_a_file_the_runtime_runs(tmp_path):
    pool, folder, model = tmp_path / 'pool', tmp_path / 'run', tmp_path / 'tiny.onnx'
    config = tmp_path / 'tiny.yaml'
    config.write_text(CONFIG)
    result = run('generate', '-o', pool, '--pairs', 6, '--height', 96, '--width', 160,
                 '--workers', 1)  # fmt: skip
    assert result.exit_code == 0, result.output
    result = run('train', folder, '--pool', pool, '-c', config, '--holdout', 2, '--threads', 1)
    assert result.exit_code == 0, result.output
    assert {'checkpoint.pt', 'config.json', 'log.jsonl', 'tensorboard', 'previews'} <= set(
        os.listdir(folder)
    )
    result = run('export', folder, '-o', model, '--pool', pool, '--version', '1.2.3')
    assert result.exit_code == 0, result.output

    manifest = read_manifest(model)
    assert (manifest.name, manifest.version, manifest.licence) == ('tiny', '1.2.3', 'Apache-2.0')
    assert manifest.training_data[0]['name'] == 'procedural scenes'
    assert manifest.training_data[0]['pairs'] == 6
    assert manifest.extra['steps'] == 4
    assert manifest.macs_640x480 > 1e6
    pair = render_pair(0, 90, 150)
    answer = StereoEngine(model, provider='cpu', threads=1).infer(pair.left, pair.right)
    assert answer.disparity.shape == (90, 150)

    # What it began with has seen counts too, and no path of this machine is told.
    second = tmp_path / 'second'
    config.write_text(CONFIG + f'initial_weights: {model}\n')
    result = run('train', second, '--pool', pool, '-c', config, '--holdout', 2, '--threads', 1)
    assert result.exit_code == 0, result.output
    result = run('export', second, '-o', tmp_path / 'later.onnx', '--after', model)
    assert result.exit_code == 0, result.output
    later = read_manifest(tmp_path / 'later.onnx')
    assert later.training_data == manifest.training_data
    assert later.extra['training']['initial_weights'] == 'tiny.onnx'

    # None of the way is what it began with; half of it lies between.
    answers = {}
    for share in (0, 0.5, 1):
        path = tmp_path / f'share{share}.onnx'
        result = run('export', second, '-o', path, '--after', model, '--share', share)
        assert result.exit_code == 0, result.output
        engine = StereoEngine(path, provider='cpu', threads=1)
        answers[share] = engine.infer(pair.left, pair.right).disparity
    np.testing.assert_allclose(answers[0], answer.disparity, atol=0.02)
    assert np.abs(answers[1] - answers[0]).mean() > np.abs(answers[0.5] - answers[0]).mean() > 0
    result = run('export', second, '-o', tmp_path / 'lost.onnx', '--share', 0.5)
    assert result.exit_code == 1 and '--share needs --after' in result.output
    result = run('export', model, '-o', tmp_path / 'lost.onnx', '--share', 0.5)
    assert result.exit_code == 1 and '--share needs --after' in result.output
    assert not (tmp_path / 'lost.onnx').exists()


def test_a_misspelt_key_and_a_missing_pool_are_one_line_errors(tmp_path):
    config = tmp_path / 'wrong.yaml'
    config.write_text('networc: kestrel\n')
    pool = tmp_path / 'pool'
    run('generate', '-o', pool, '--pairs', 3, '--height', 64, '--width', 96, '--workers', 1)
    result = run('train', tmp_path / 'run', '--pool', pool, '-c', config)
    assert result.exit_code == 1
    assert "networc: unknown key; did you mean 'network'?" in result.output.replace('\n', ' ')
    for words, said in (
        (['--pool', tmp_path / 'absent'], 'absent/pool.json does not exist; make a pool with'),
        (['--pool', pool, '--holdout', 3], 'generate more, or measure on fewer (--holdout)'),
        (['--pool', pool, '-c', tmp_path / 'absent.yaml'], 'absent.yaml cannot be read: No such'),
        (['--pool', pool, '-c', pool], 'pool cannot be read: Is a directory'),
    ):
        result = run('train', tmp_path / 'run', *words)
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
        assert said in result.output.replace('\n', '')


def test_a_config_that_is_no_set_of_keys_is_told_with_its_name(tmp_path):
    config = tmp_path / 'some.yaml'
    for text, said in (('- 3', 'holds list, expected keys with'), ('a: [', 'is not YAML')):
        config.write_text(text)
        for words in (
            ['train', tmp_path / 'run', '--pool', tmp_path, '-c', config],
            ['adapt', tmp_path, '--teacher', 'small', '-o', tmp_path / 'model', '-c', config],
        ):
            result = run(*words)
            assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
            assert f'some.yaml {said}' in result.output.replace('\n', '')


def test_what_is_no_size_is_told_before_any_work(tmp_path):
    out = tmp_path / 'out'
    for words in (
        ['ablate', 'signal', '--pool', tmp_path, '-o', out, '--crop', '256'],
        ['export', tmp_path, '-o', out, '--fixed-size', '640x'],
        ['quantize', tmp_path / 'x.onnx', '-o', out, '--size', '0x64'],
    ):
        result = run(*words)
        assert result.exit_code == 2 and 'WIDTHxHEIGHT' in result.output, result.output
    assert not out.exists()


def test_exporting_what_is_no_run_names_it(tmp_path):
    result = run('export', tmp_path, '-o', tmp_path / 'x.onnx')
    assert result.exit_code == 1 and 'checkpoint' in result.output


def test_networks_are_listed_for_people_and_programs():
    result = run('networks', '--json')
    assert result.exit_code == 0, result.output
    rows = {row['name']: row for row in json.loads(result.output)}
    assert rows['kestrel']['parameters'] == 473_698
    assert set(rows['kestrel']) == {'name', 'parameters', 'macs_640x480', 'source'}
    assert run('networks').exit_code == 0
