# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The evaluation on truths whose figures can be worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer
from tiny_models import write_block_matcher
from typer.testing import CliRunner

from stereo_kd_ros.disparity_io import write_pfm
from stereo_kd_ros.onnx_peer import OnnxPeerError
from stereo_kd_training.datasets.base import DatasetError
from stereo_kd_training.datasets.labelled import labelled_sets
from stereo_kd_training.evaluate import (
    EvaluationError,
    Method,
    PredictionCache,
    compare,
    evaluate_command,
    evaluate_methods,
    evaluate_predictor,
    matcher_method,
    measure_latency,
    model_method,
    peer_method,
    run_evaluation,
)
from stereo_kd_training.evaluation_report import manifest_metrics, write_json

HEIGHT, WIDTH = 60, 120


def scene(folder: Path, truth: np.ndarray) -> None:
    """A random texture, shifted by the truth where that is one number."""
    folder.mkdir(parents=True)
    height, width = truth.shape
    shift = int(np.nanmax(np.where(np.isfinite(truth), truth, 0)))
    noise = np.random.default_rng(5).integers(0, 255, (height, width + shift, 3), np.uint8)
    texture = cv2.GaussianBlur(noise, (0, 0), 1.2)
    cv2.imwrite(str(folder / 'left.png'), texture[:, :width])
    cv2.imwrite(str(folder / 'right.png'), texture[:, shift:])
    write_pfm(folder / 'disp.pfm', truth)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two sets: 'far' with truth 4 (and a picture of few known pixels), 'near' with truth 10."""
    far = np.full((HEIGHT, WIDTH), 4.0, np.float32)
    scene(tmp_path / 'far/full', far)
    sparse = np.full((HEIGHT, WIDTH), np.inf, np.float32)
    sparse[0, :10] = 8.0
    scene(tmp_path / 'far/sparse', sparse)
    scene(tmp_path / 'near/full', np.full((HEIGHT, WIDTH), 10.0, np.float32))
    return tmp_path


def constant(value: float):
    return lambda left, right: np.full(left.shape[:2], value, np.float32)


def test_figures_by_hand(root: Path) -> None:
    report = evaluate_predictor(constant(6.0), root)
    far, near = report['sets']['far'], report['sets']['near']
    # Errors: 2 px on the full and on the sparse picture, 4 px on the near one.
    assert (far['pairs'], far['pixels']) == (2, HEIGHT * WIDTH + 10)
    assert far['epe_px'] == 2.0
    assert (far['bad1'], far['bad3'], far['d1']) == (100.0, 0.0, 0.0)
    assert near['epe_px'] == 4.0
    assert (near['bad3'], near['d1']) == (100.0, 100.0)
    summary = report['summary']
    assert summary['geometric_mean_epe_px'] == pytest.approx(math.sqrt(8))
    assert summary['mean_bad3'] == 50.0
    assert summary['pairs'] == 3


def test_a_set_is_the_mean_of_its_pictures_and_pooled_that_of_its_pixels(root: Path) -> None:
    far = evaluate_predictor(constant(4.0), root)['sets']['far']
    # Right on the full picture, 4 px wrong on ten pixels of the other.
    assert far['epe_px'] == 2.0
    assert far['bad3'] == 50.0
    pixels = HEIGHT * WIDTH + 10
    assert far['pooled']['epe_px'] == pytest.approx(4.0 * 10 / pixels)
    assert far['pooled']['bad3'] == pytest.approx(100 * 10 / pixels)
    assert far['images']['sparse']['epe_px'] == 4.0


def test_what_is_not_answered_is_wrong(root: Path) -> None:
    near = evaluate_predictor(constant(math.nan), root, ['near'])['sets']['near']
    assert near['epe_px'] == 10.0
    assert near['bad3'] == 100.0


def test_disparities_beyond_the_range_do_not_count(tmp_path: Path) -> None:
    truth = np.full((HEIGHT, WIDTH), 200.0, np.float32)
    truth[:5] = 191.0
    scene(tmp_path / 'near/one', truth)
    near = evaluate_predictor(constant(191.0), tmp_path)['sets']['near']
    assert (near['pixels'], near['epe_px']) == (5 * WIDTH, 0.0)


def test_a_perfect_answer_has_a_geometric_mean_of_zero(root: Path) -> None:
    summary = evaluate_predictor(constant(10.0), root, ['near'])['summary']
    assert summary['geometric_mean_epe_px'] == 0.0


def test_sets_and_limit(root: Path) -> None:
    assert list(evaluate_predictor(constant(1.0), root, ['near'])['sets']) == ['near']
    assert evaluate_predictor(constant(1.0), root, limit=1)['summary']['pairs'] == 2
    with pytest.raises(DatasetError, match='kitti2015'):
        evaluate_predictor(constant(1.0), root, ['kitti2015'])


def test_wrong_shape_is_named(root: Path) -> None:
    with pytest.raises(EvaluationError, match=r'predictor on far/full.*\(30, 120\)'):
        evaluate_predictor(lambda left, right: np.zeros((30, WIDTH)), root)


def test_methods_need_unique_names(root: Path) -> None:
    with pytest.raises(EvaluationError, match='unique'):
        evaluate_methods([Method('a', constant(1)), Method('a', constant(2))], root)


def test_confidence_is_judged_between_the_oracle_and_nothing(tmp_path: Path) -> None:
    truth = np.full((HEIGHT, WIDTH), 10.0, np.float32)
    scene(tmp_path / 'near/one', truth)
    error = np.random.default_rng(0).exponential(1.0, truth.shape).astype(np.float32)
    noise = np.random.default_rng(1).random(truth.shape)

    def ause(confidence: np.ndarray) -> float:
        predict = lambda left, right: (truth + error, confidence)  # noqa: E731
        return evaluate_predictor(predict, tmp_path)['summary']['mean_confidence_ause']

    assert ause(-error) == pytest.approx(0.0, abs=1e-6)
    assert ause(noise) == pytest.approx(1.0, abs=0.1)
    assert ause(error) > 1.5


def test_gap_tells_by_how_much_a_confidence_is_too_sure(tmp_path: Path) -> None:
    truth = np.full((HEIGHT, WIDTH), 40.0, np.float32)
    scene(tmp_path / 'near/one', truth)
    # A twentieth of 40 px is 2 px: three quarters of the picture are right.
    answer = truth + np.float32(1.9)
    answer[: HEIGHT // 4] = truth[: HEIGHT // 4] + np.float32(2.1)
    sure = np.full(truth.shape, 0.9, np.float32)
    predict = lambda left, right: (answer, sure)  # noqa: E731
    summary = evaluate_predictor(predict, tmp_path)['summary']
    assert summary['mean_confidence_gap'] == pytest.approx(0.15, abs=1e-5)
    silent = evaluate_predictor(lambda left, right: answer, tmp_path)['summary']
    assert math.isnan(silent['mean_confidence_gap'])


def test_ratios(root: Path) -> None:
    methods = [Method('wrong', constant(6.0)), Method('peer', constant(5.0))]
    report = evaluate_methods(methods, root)
    ratios = compare(report, 'peer')
    assert ratios['peer']['geometric_mean_epe_px'] == 1.0
    # far: (2 + 2) / (1 + 3), near: 4 / 5.
    assert ratios['wrong']['epe_px_by_set'] == {'far': 1.0, 'near': pytest.approx(0.8)}
    assert ratios['wrong']['worst_set'] == 'far'
    assert ratios['wrong']['geometric_mean_epe_px'] == pytest.approx(math.sqrt(0.8))


class Counting:
    """A predictor that counts how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        self.calls += 1
        return np.full(left.shape[:2], 6.0, np.float32)


def test_answers_of_a_method_with_an_identity_are_kept(root: Path, tmp_path: Path) -> None:
    cache = PredictionCache(tmp_path / 'cache')
    predict = Counting()

    def run(identity: str | None) -> dict:
        method = Method('peer', predict, identity=identity)
        return evaluate_methods([method], root, ['far', 'near'], cache=cache)['peer']

    first = run('one')
    assert predict.calls == 3
    assert run('one') == first
    assert predict.calls == 3
    run('two')
    assert predict.calls == 6
    run(None)
    assert predict.calls == 9
    for file in (tmp_path / 'cache').iterdir():
        file.write_bytes(file.read_bytes()[:100])
    assert run('one') == first
    assert predict.calls == 12


def test_cache_lies_in_the_users_cache(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    assert PredictionCache().folder.is_relative_to(tmp_path)


def test_sgbm_finds_the_shift_everywhere(root: Path) -> None:
    method = matcher_method('sgbm-3way')
    report = evaluate_methods([method], root, ['near'])['sgbm-3way']
    assert report['sets']['near']['bad1'] < 10
    assert report['sets']['near']['pixels'] == HEIGHT * WIDTH


def test_latency_is_measured_for_all() -> None:
    image = np.zeros((10, 10, 3), np.uint8)
    methods = [Method('a', constant(1)), Method('b', constant(2))]
    timing = measure_latency(methods, image, image, max_rounds=4)
    assert set(timing) == {'a', 'b'}
    for of in timing.values():
        assert of['runs'] == 4
        assert 0 < of['min'] <= of['median']


def test_a_model_is_made_ready_for_the_size_that_it_is_timed_at():
    calls = []
    image = np.zeros((24, 40, 3), np.uint8)
    method = Method(
        'ready',
        lambda left, right: calls.append('pair') or left[..., 0].astype(np.float32),
        warm_up=lambda height, width: calls.append((height, width)),
    )
    measure_latency([method], image, image, max_rounds=3)
    assert calls == [(24, 40), *4 * ['pair']]


@pytest.mark.parametrize(
    'text, words',
    [
        ('sgbm', r"unknown peer 'sgbm'.*sgbm-3way"),
        ('raft=net.onnx', r"'raft' has no known adapter.*raft=net\.onnx@ADAPTER\.yaml"),
    ],
)
def test_unknown_peers(text: str, words: str) -> None:
    with pytest.raises((EvaluationError, OnnxPeerError), match=words):
        peer_method(text)


def test_a_report_says_what_was_computed_in_when_it_was_timed(root: Path) -> None:
    details = {'precision': 'bf16'}
    method = Method(
        'chosen',
        lambda left, right: np.ones(left.shape[:2], np.float32),
        'model',
        None,
        details,
        lambda height, width: details.update(precision='fp32'),
    )
    report = run_evaluation([method], root, sets=['far'], latency_budget_s=0.0)
    assert report['methods']['chosen']['details'] == {'precision': 'fp32'}


def test_model_beside_a_peer(root: Path, tmp_path: Path) -> None:
    path = write_block_matcher(tmp_path / 'tiny.onnx')
    methods = [model_method(str(path)), matcher_method('bm')]
    pictures = tmp_path / 'pictures'
    report = run_evaluation(
        methods, root, sets=['far', 'near'], pictures=pictures, latency_budget_s=0.0
    )
    assert report['reference'] == 'bm'
    of = report['methods']['tiny']
    assert of['details']['manifest']['network'] == 'block matching'
    assert of['details']['provider'] == 'cpu'
    # Whole-pixel shifts, so the block matcher is right but for the strip that only the left sees.
    assert of['sets']['far']['images']['full']['bad1'] < 10
    assert 0 <= of['summary']['mean_confidence_ause'] < 2
    assert report['methods']['bm']['latency_ms']['min'] > 0
    assert {p.relative_to(pictures).as_posix() for p in pictures.rglob('*.png')} == {
        'far/full.png',
        'far/sparse.png',
        'near/full.png',
    }
    file = tmp_path / 'report.json'
    write_json(file, report)
    assert json.loads(file.read_text())['methods']['bm']['summary']['mean_confidence_ause'] is None
    entry = manifest_metrics(report, 'tiny')
    assert entry['sets']['far']['epe_px'] == pytest.approx(of['sets']['far']['epe_px'], abs=1e-4)
    assert 'images' not in json.dumps(entry)
    json.dumps(entry, allow_nan=False)


@pytest.fixture
def command() -> typer.Typer:
    app = typer.Typer()
    app.command()(evaluate_command)
    return app


def test_command(root: Path, tmp_path: Path, command: typer.Typer, monkeypatch) -> None:
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    model = write_block_matcher(tmp_path / 'tiny.onnx')
    out, chart = tmp_path / 'out/report.json', tmp_path / 'out/chart.png'
    arguments = ['--data', str(root), '--model', str(model), '--set', 'near', '--set', 'far']
    arguments += ['--peer', 'sgbm-3way', '--peer', 'bm', '--no-latency', '--json', str(out)]
    pytest.importorskip('matplotlib')
    result = CliRunner().invoke(command, [*arguments, '--plot', str(chart)])
    assert result.exit_code == 0, result.output
    for word in ('near (1)', 'far (2)', 'tiny', 'sgbm-3way', 'geometric mean'):
        assert word in result.output
    report = json.loads(out.read_text())
    assert list(report['methods']) == ['tiny', 'sgbm-3way', 'bm']
    assert report['reference'] == 'sgbm-3way'
    assert report['threads'] == 2
    assert cv2.imread(str(chart)) is not None
    assert any((tmp_path / 'cache').rglob('*.npy'))


@pytest.mark.parametrize(
    'arguments, words',
    [
        (['--model', 'absent.onnx'], 'absent.onnx'),
        (['--peer', 'sgm'], 'unknown peer'),
        (['--peer', 'hitnet=absent.onnx'], 'absent.onnx: cannot be read'),
        (['--reference', 'bm'], "reference 'bm' is none of"),
        (['--set', 'kitti2015'], 'no set'),
    ],
)
def test_command_errors_are_one_line_and_exit_1(
    root: Path, command: typer.Typer, arguments: list[str], words: str
) -> None:
    result = CliRunner().invoke(command, ['--data', str(root), *arguments])
    assert result.exit_code == 1
    assert words in result.output
    assert 'Traceback' not in result.output


def test_sgbm_on_real_pairs_is_as_published(data_dir: Path) -> None:
    # Measured independently of this code, with the same settings and hole filling.
    published = {'middlebury2001': (0.31, 3.4, 1.6), 'middlebury2003': (1.42, 11.6, 8.1)}
    report = evaluate_methods([matcher_method('sgbm-3way')], data_dir, list(published))
    for name, figures in published.items():
        of = report['sgbm-3way']['sets'][name]
        assert (of['epe_px'], of['bad1'], of['bad3']) == pytest.approx(figures, abs=0.06)


def test_hitnet_on_a_real_pair(data_dir: Path) -> None:
    network = data_dir / 'weights/hitnet/hitnet_eth3d.onnx'
    if not network.is_file() or 'middlebury2001' not in labelled_sets(data_dir):
        pytest.skip(f'no HITNet or Middlebury 2001 in {data_dir}')
    method = peer_method(f'hitnet={network}', threads=1)
    report = evaluate_methods([method], data_dir, ['middlebury2001'], limit=1)
    # SGBM has 0.27 px there.
    assert report['hitnet']['sets']['middlebury2001']['epe_px'] < 0.2
