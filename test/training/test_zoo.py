# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The zoo says what was measured with the very files that lie there, and its README the same."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from tiny_models import write_block_matcher
from typer.testing import CliRunner

from stereo_kd_ros.commands.main import app as runtime_app
from stereo_kd_ros.disparity_io import write_pfm
from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.metrics import useful_depth_m
from stereo_kd_ros.model import file_sha256, read_manifest, write_manifest
from stereo_kd_ros.procedural import render_pair
from stereo_kd_training.evaluate import matcher_method, model_method, run_evaluation
from stereo_kd_training.evaluation_report import (
    ReportError,
    manifest_metrics,
    read_report,
    write_json,
)
from stereo_kd_training.main import app
from stereo_kd_training.zoo import (
    RIGS,
    ZooError,
    as_json,
    as_markdown,
    collect,
    graph_sha256,
    plot_zoo,
    read_zoo,
)

MODELS = Path(__file__).resolve().parents[2] / 'models'
SHELVES = (MODELS, MODELS / 'papers')


def write_models(folder: Path) -> Path:
    folder.mkdir()
    write_block_matcher(folder / 'matcher_nano.onnx', max_disparity_px=24)
    write_block_matcher(folder / 'matcher_small.onnx', max_disparity_px=32)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_models(tmp_path / 'models')


@pytest.fixture(scope='module')
def measured(tmp_path_factory) -> Path:
    """A report: what was measured with the two models and SGBM on one shifted texture."""
    root = tmp_path_factory.mktemp('measured')
    models = write_models(root / 'models')
    scene = root / 'sets' / 'near' / 'one'
    scene.mkdir(parents=True)
    noise = np.random.default_rng(5).integers(0, 255, (60, 128, 3), np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 1.2)
    cv2.imwrite(str(scene / 'left.png'), texture[:, :120])
    cv2.imwrite(str(scene / 'right.png'), texture[:, 8:])
    write_pfm(scene / 'disp.pfm', np.full((60, 120), 8.0, np.float32))
    methods = [model_method(str(path), threads=1) for path in sorted(models.glob('*.onnx'))]
    methods.append(matcher_method('sgbm-3way'))
    figures = run_evaluation(methods, root / 'sets', latency_budget_s=0.0)
    figures['threads'] = 1
    write_json(root / 'report.json', figures)
    return root / 'report.json'


@pytest.fixture
def report(tmp_path: Path, measured: Path) -> Path:
    return Path(shutil.copy(measured, tmp_path / 'report.json'))


def zoo(*arguments: object):
    return CliRunner().invoke(app, ['zoo', *map(str, arguments)])


def test_figures_in_the_readme_are_those_of_the_report(folder: Path, report: Path) -> None:
    assert zoo(folder, '--report', report).exit_code == 0
    measured = json.loads(report.read_text())['methods']
    kept = read_zoo(folder / 'zoo.json')
    text = (folder / 'README.md').read_text()
    assert [model['name'] for model in kept['models']] == ['matcher_nano', 'matcher_small']
    for model in kept['models']:
        own = measured[model['name']]
        epe = own['summary']['geometric_mean_epe_px']
        assert model['accuracy']['summary']['geometric_mean_epe_px'] == pytest.approx(
            epe, abs=1e-4
        )
        assert model['latency'][0]['min_ms'] == pytest.approx(own['latency_ms']['min'], abs=1e-4)
        row = next(line for line in text.splitlines() if line.startswith(f'| **{model["name"]}**'))
        assert f'| {epe:.3f} |' in row
    assert '| sgbm-3way |' in text
    assert text == as_markdown(kept)


def test_each_file_carries_its_own_figures(folder: Path, report: Path) -> None:
    zoo(folder, '--report', report)
    for model in read_zoo(folder / 'zoo.json')['models']:
        path = folder / model['file']
        assert read_manifest(path).metrics == model['accuracy']
        assert (file_sha256(path), graph_sha256(path)) == (model['sha256'], model['graph_sha256'])


def test_a_second_run_without_reports_keeps_the_figures_and_check_agrees(folder, report) -> None:
    zoo(folder, '--report', report)
    before = (folder / 'zoo.json').read_text(), (folder / 'README.md').read_text()
    assert zoo(folder, '--check').exit_code == 0
    assert zoo(folder).exit_code == 0
    assert ((folder / 'zoo.json').read_text(), (folder / 'README.md').read_text()) == before


def test_a_new_manifest_keeps_figures_and_a_new_graph_loses_them(folder, report) -> None:
    zoo(folder, '--report', report)
    path = folder / 'matcher_nano.onnx'
    write_manifest(path, replace(read_manifest(path), version='9.9.9'))
    assert zoo(folder, '--check').exit_code == 1
    zoo(folder)
    nano = read_zoo(folder / 'zoo.json')['models'][0]
    assert nano['version'] == '9.9.9'
    assert nano['accuracy'] is not None
    write_block_matcher(path, max_disparity_px=28)
    result = zoo(folder)
    assert 'no figures of matcher_nano' in result.output
    nano, small = read_zoo(folder / 'zoo.json')['models']
    assert nano['accuracy'] is None
    assert nano['latency'] == []
    assert small['accuracy'] is not None


def test_a_report_of_other_files_is_refused(folder: Path, report: Path) -> None:
    for path in folder.glob('*.onnx'):
        write_block_matcher(path, max_disparity_px=20)
    result = zoo(folder, '--report', report)
    assert result.exit_code == 1
    assert 'evaluate those files again' in ' '.join(result.output.split())


def test_a_second_provider_adds_its_time_and_not_its_accuracy(folder: Path, report: Path) -> None:
    measured = json.loads(report.read_text())
    other = json.loads(report.read_text())
    for name in ('matcher_nano', 'matcher_small'):
        own = other['methods'].pop(name)
        own['details'] = {**own['details'], 'provider': 'openvino', 'precision': 'bf16'}
        own['summary']['geometric_mean_epe_px'] = 77.0
        other['methods'][f'{name} openvino'] = own
    model = collect(folder, [measured, other])['models'][0]
    assert [entry['provider'] for entry in model['latency']] == ['cpu', 'openvino']
    assert model['accuracy']['summary']['geometric_mean_epe_px'] < 77
    assert as_markdown(collect(folder, [measured, other])).count('openvino') == 2


def test_times_on_processors_of_two_kinds_stand_beside_each_other(
    folder: Path, report: Path
) -> None:
    reports = []
    for processor, vectors, factor in (
        ('AMD EPYC', 'AVX2', 4.0),
        ('', 'NEON', 9.0),
        ('AMD Ryzen', 'AVX2', 5.0),
        ('Intel(R) Xeon(R)', 'AVX2', 6.0),
    ):
        of = json.loads(report.read_text())
        of['machine'].update(processor=processor, vectors=vectors)
        for own in of['methods'].values():
            own['latency_ms'] = {'min': factor, 'median': factor}
        reports.append(of)
    zoo = collect(folder, reports)
    for entries in (zoo['models'][0]['latency'], *(p['latency'] for p in zoo['peers'].values())):
        told = [(entry['machine']['vectors'], entry['min_ms']) for entry in entries]
        assert told == [('AVX2', 5.0), ('AVX2', 6.0), ('NEON', 9.0)]
    text = as_markdown(zoo)
    for kind in ('AMD AVX2', 'Intel AVX2', 'NEON'):
        assert f'| matcher_nano | {kind} | cpu |' in text


def test_error_is_drawn_against_the_time_of_the_quickest_provider(
    folder: Path, report: Path, tmp_path: Path
) -> None:
    from matplotlib import pyplot

    reports = []
    for processor, vectors, factor in (('AMD EPYC', 'AVX2', 4.0), ('Intel(R) Xeon(R)', 'AVX2', 6)):
        of = json.loads(report.read_text())
        of['machine'].update(processor=processor, vectors=vectors)
        for own in of['methods'].values():
            own['latency_ms'] = {'min': factor, 'median': factor}
            own['summary']['geometric_mean_epe_px'] = 1.5
        slower = json.loads(json.dumps(of))
        for own in slower['methods'].values():
            own['details'] = {**own['details'], 'provider': 'openvino'}
            own['latency_ms'] = {'min': 1.0, 'median': 3 * factor}
        reports += [of, slower]
    figures = []
    with mock.patch.object(pyplot, 'close', figures.append):
        assert plot_zoo(collect(folder, reports), tmp_path / 'p' / 'zoo.svg') == [
            'AMD AVX2',
            'Intel AVX2',
        ]
    (figure,) = figures
    for axis, median in zip(figure.axes, (4.0, 6.0), strict=True):
        models, peers = axis.lines
        assert models.get_xydata().tolist() == [[median, 1.5]] * 2
        assert peers.get_xydata().tolist() == [[median, 1.5]]
        assert {text.get_text() for text in axis.texts} == {
            'matcher_nano', 'matcher_small', 'sgbm-3way',
        }  # fmt: skip
    assert (tmp_path / 'p' / 'zoo.svg').stat().st_size > 1000
    pyplot.close(figure)
    result = zoo(folder, '--plot', tmp_path / 'none.svg')
    assert result.exit_code == 1 and 'measured both' in ' '.join(result.output.split())
    assert not (tmp_path / 'none.svg').exists()
    assert zoo(folder, '--report', report, '--plot', tmp_path / 'zoo.png').exit_code == 0
    assert cv2.imread(str(tmp_path / 'zoo.png')) is not None
    written = (folder / 'README.md').read_bytes()
    refused = zoo(folder, '--plot', tmp_path / 'zoo.txt')
    assert refused.exit_code == 1 and 'expected .png, .svg, .pdf' in refused.output
    assert (folder / 'README.md').read_bytes() == written


def test_graph_digest_sees_the_graph_and_not_the_manifest(folder: Path) -> None:
    path = folder / 'matcher_nano.onnx'
    before = graph_sha256(path)
    write_manifest(path, replace(read_manifest(path), metrics={'summary': {'x': 1}}))
    assert graph_sha256(path) == before
    assert graph_sha256(folder / 'matcher_small.onnx') != before


def test_useful_depth_is_where_the_error_makes_a_tenth() -> None:
    near, far = useful_depth_m(60.0, 120.0, 0.5)
    assert near == pytest.approx(0.5)
    # At 12 m the disparity is 5 px, and half a pixel is a tenth of it.
    assert far == pytest.approx(12.0)
    assert math.isnan(useful_depth_m(60.0, 120.0, None)[1])
    assert all(near < far for near, far in (useful_depth_m(fb, 192, 1.0) for _, fb in RIGS))


def test_models_command_tells_the_useful_depth_of_a_rig(folder, monkeypatch) -> None:
    path = folder / 'matcher_nano.onnx'
    manifest = read_manifest(path)
    metrics = {'summary': {'geometric_mean_epe_px': 0.5}}
    write_manifest(path, replace(manifest, metrics=metrics))
    monkeypatch.setenv('STEREO_KD_MODELS', str(folder))
    result = CliRunner().invoke(runtime_app, ['models', '--rig', '60'], env={'COLUMNS': '200'})
    assert result.exit_code == 0, result.output
    assert '2.50 .. 12.0' in result.output


def test_an_empty_folder_and_damaged_json_are_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(ZooError, match=r'no \.onnx'):
        collect(tmp_path)
    (folder / 'zoo.json').write_text('{"models": [')
    result = zoo(folder)
    assert result.exit_code == 1
    assert 'zoo.json' in result.output
    write_block_matcher(folder / 'silent.onnx', with_manifest=False)
    with pytest.raises(ZooError, match='no manifest'):
        collect(folder)


def test_what_is_no_report_is_told_with_what_writes_one(
    tmp_path: Path, folder: Path, report: Path
) -> None:
    wrong = tmp_path / 'wrong.json'
    for text, said in (('{', 'is not JSON'), ('[]', 'no methods'), ('{}', 'no methods')):
        wrong.write_text(text)
        result = zoo(folder, '--report', wrong)
        assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
        told = ' '.join(result.output.split())
        assert f'wrong.json {said}' in told.replace('holds ', '')
        assert '`stereo-kd-train evaluate --json`' in told
    with pytest.raises(ReportError, match=r"not of 'absent' but of .*sgbm-3way"):
        manifest_metrics(read_report(report), 'absent')


@pytest.mark.parametrize('shelf', SHELVES, ids=['ours', 'papers'])
def test_the_shipped_readme_is_made_from_the_shipped_json(shelf: Path) -> None:
    shipped = read_zoo(shelf / 'zoo.json')
    assert (shelf / 'zoo.json').read_text() == as_json(shipped)
    assert (shelf / 'README.md').read_text() == as_markdown(shipped)


@pytest.mark.parametrize('shelf', SHELVES, ids=['ours', 'papers'])
def test_the_shipped_json_is_of_the_shipped_files(shelf: Path) -> None:
    shipped = {model['file']: model for model in read_zoo(shelf / 'zoo.json')['models']}
    files = {path.name: graph_sha256(path) for path in shelf.glob('*.onnx')}
    assert {name: model['graph_sha256'] for name, model in shipped.items()} == files, (
        'run `stereo-kd-train evaluate --model ... --json REPORT` and '
        '`stereo-kd-train zoo models --report REPORT`'
    )
    for model in shipped.values():
        assert model['accuracy'] is not None
        assert read_manifest(shelf / model['file']).metrics == model['accuracy']
        assert model['bytes'] < 5_000_000


def test_a_papers_student_answers_as_any_model_does() -> None:
    sample = render_pair(5, 96, 160, 48.0)
    for path in (MODELS / 'papers').glob('*.onnx'):
        result = StereoEngine(path, 'cpu', threads=1).infer(sample.left, sample.right)
        assert result.disparity.shape == result.confidence.shape == (96, 160)
        known = np.isfinite(sample.disparity)
        error = np.abs(result.disparity - sample.disparity)[known]
        assert np.median(error) < 4.0, f'{path.name} has learnt nothing'


def test_licences_of_one_source_stand_together_and_name_their_models(folder: Path) -> None:
    def learnt(name: str, *licences: str) -> None:
        path = folder / f'matcher_{name}.onnx'
        sources = [{'name': 'scenes', 'licence': 'Apache-2.0', 'seed': seed} for seed in (1, 2)]
        sources += [{'name': f'walls, {one}', 'licence': one} for one in licences]
        write_manifest(path, replace(read_manifest(path), training_data=sources))

    learnt('nano', 'CC0-1.0', 'MIT')
    learnt('small', 'MIT', 'CC0-1.0')
    page = as_markdown(collect(folder))
    assert '| walls | CC0-1.0, MIT | all |' in page and '| scenes | Apache-2.0 | all |' in page
    learnt('small', 'MIT')
    page = as_markdown(collect(folder))
    assert '| walls | CC0-1.0, MIT | matcher_nano |' in page
    assert '| walls | MIT | matcher_small |' in page
