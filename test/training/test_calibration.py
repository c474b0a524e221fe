# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A calibrated confidence is honest, leaves the disparity alone, and survives the export."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from tiny_kestrel import TINY  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from stereo_kd_ros.engine import StereoEngine  # noqa: E402
from stereo_kd_ros.model import read_manifest  # noqa: E402
from stereo_kd_ros.procedural import render_pair  # noqa: E402
from stereo_kd_training.calibration import (  # noqa: E402
    CalibrationError,
    _fit,
    _Pixels,
    calibrate,
    reliability,
    right_within,
    with_calibration,
)
from stereo_kd_training.datasets.procedural import generate_pool  # noqa: E402
from stereo_kd_training.main import app  # noqa: E402
from stereo_kd_training.networks import create  # noqa: E402
from stereo_kd_training.networks.confidence import (  # noqa: E402
    RANGE_WEIGHT,
    REACH_PX,
    TEMPERATURE,
    ConfidenceCalibration,
    evidence,
    expected_deviation,
    local_range,
)
from stereo_kd_training.networks.contract import ContractModel  # noqa: E402
from stereo_kd_training.prune import save_network  # noqa: E402


@dataclass(frozen=True)
class Pair:
    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray


def pairs(count: int, seed: int = 0) -> list[Pair]:
    samples = [render_pair((seed, index), 64, 128, 60.0) for index in range(count)]
    return [Pair(sample.left, sample.right, sample.disparity) for sample in samples]


def network(seed: int = 0):
    """An untrained student: what it says is nearly arbitrary, but sometimes right."""
    torch.manual_seed(seed)
    return create('kestrel', **TINY).eval()


def test_expected_deviation_by_hand():
    hypotheses = torch.tensor([40.0, 8.0, 4.0])
    logits = torch.tensor([-50.0, 0.0, 0.0]).view(1, 3, 1, 1)
    # Half at 4 and half at 8 px: 1 px and 3 px from 5.
    assert expected_deviation(logits, hypotheses, torch.full((1, 1, 1, 1), 5.0)) == 2.0
    far = torch.tensor([0.0, -90.0, -90.0]).view(1, 3, 1, 1)
    assert expected_deviation(far, hypotheses, torch.full((1, 1, 1, 1), 5.0)) == REACH_PX
    warm = torch.tensor([-60.0, 1.0, 0.0]).view(1, 3, 1, 1)
    odds = np.exp(1 / TEMPERATURE)
    expected = (3 * odds + 1) / (odds + 1)
    found = expected_deviation(warm, hypotheses, torch.full((1, 1, 1, 1), 5.0))
    assert float(found) == pytest.approx(expected, rel=1e-5)


def test_right_is_within_a_pixel_or_a_twentieth():
    error = torch.tensor([0.9, 1.1, 1.9, 2.1])
    truth = torch.tensor([5.0, 5.0, 40.0, 40.0])
    assert right_within(error, truth).tolist() == [True, False, True, False]


def test_reliability_by_hand():
    confidence = np.array([0.95, 0.95, 0.15, 0.15])
    error = np.array([0.0, 2.0, 4.0, 4.0])
    right = np.array([1.0, 0.0, 0.0, 0.0])
    found = reliability(confidence, error, right)
    assert (found.pixels, found.right) == (4, 0.25)
    assert found.mean == pytest.approx(0.55)
    # Half the pixels claim 0.95 and are right in half of the cases; half claim 0.15 and never are.
    assert found.calibration_error == pytest.approx(0.5 * 0.45 + 0.5 * 0.15)
    perfect = reliability(np.array([1.0, 0.5, 0.2, 0.2]), error, right)
    assert perfect.ause == pytest.approx(0.0)


def test_evidence_falls_with_the_deviation_and_rises_with_mass_and_head():
    hypotheses = torch.tensor([40.0, 8.0, 4.0])
    sure, torn = torch.tensor([-50.0, -50.0, 0.0]), torch.tensor([0.0, -50.0, 0.0])
    one, answer = torch.ones(1, 1, 1, 1), torch.full((1, 1, 1, 1), 4.0)
    found = [
        float(evidence(head * one, mass * one, logits.view(1, 3, 1, 1), hypotheses, answer))
        for head, mass, logits in ((0, 1, sure), (0, 1, torn), (1, 1, torn), (0, 0.5, torn))
    ]
    assert found[0] == pytest.approx(-np.log(0.05), abs=1e-4)
    # Half of the distribution lies beyond the reach of 16 px.
    assert found[1] == pytest.approx(-np.log(8.05), abs=1e-4)
    assert found[2] > found[1] > found[3]


def test_evidence_falls_with_the_range_of_answers_round_a_cell():
    answer = torch.full((1, 1, 5, 6), 30.0)
    answer[..., 2, 4:] = 37.0
    found = local_range(answer)[0, 0]
    # A step is seen from the cells on both of its sides, corners too, and by those alone.
    near = torch.zeros(5, 6, dtype=torch.bool)
    near[1:4, 3:] = True
    assert torch.equal(found, torch.where(near, 7.0, 0.0))
    same = (torch.zeros_like(answer), torch.ones_like(answer), torch.zeros(1, 1, 5, 6))
    flat, weighted = (
        evidence(*same, torch.tensor([30.0]), answer, weight)[0, 0]
        for weight in (0.0, RANGE_WEIGHT)
    )
    torch.testing.assert_close(weighted, flat - RANGE_WEIGHT * np.log(8) * near)


def test_a_network_calibrated_before_there_was_a_range_says_what_it_said():
    network = with_calibration(create('kestrel', **TINY))
    assert network.calibration.range_weight == RANGE_WEIGHT
    before = create('kestrel', **TINY, calibrated=True)
    assert before.calibration.range_weight == 0
    # Calibrated anew it has one.
    assert with_calibration(before).calibration.range_weight == RANGE_WEIGHT


def test_fit_finds_the_numbers_that_made_the_odds():
    generator = torch.Generator().manual_seed(0)
    given = 3 * torch.randn(60000, generator=generator) - 1
    chance = torch.sigmoid(0.7 * given + 0.3)
    right = (torch.rand(60000, generator=generator) < chance).float()
    found = _fit(_Pixels(given, chance, chance, right))
    assert found == {'slope': pytest.approx(0.7, abs=0.05), 'offset': pytest.approx(0.3, abs=0.06)}


def test_calibrated_confidence_is_as_often_right_as_it_says():
    result = calibrate(network(), pairs(12))
    assert abs(result.after.mean - result.after.right) < 0.12
    assert result.after.calibration_error < result.before.calibration_error
    assert result.after.pixels == result.before.pixels > 1000


def test_a_wrong_scale_is_unlearned():
    """A confidence that is always too sure becomes the one that it would have been."""
    honest = network()
    result = calibrate(honest, pairs(8, seed=3))
    boaster = with_calibration(honest)
    with torch.no_grad():
        boaster.calibration.slope.fill_(result.weights['slope'])
        boaster.calibration.offset.fill_(result.weights['offset'] + 3)
    again = calibrate(boaster, pairs(8, seed=3))
    assert again.before.mean > again.after.mean
    assert again.before.calibration_error > again.after.calibration_error
    assert again.before.ause == pytest.approx(again.after.ause, abs=0.02)
    assert again.weights == pytest.approx(result.weights, abs=1e-4)


def test_disparity_stays_to_the_last_bit_and_confidence_changes():
    plain = network()
    calibrated = calibrate(plain, pairs(8)).network
    sample = pairs(1, seed=9)[0]
    eyes = [torch.from_numpy(np.array(eye))[None] for eye in (sample.left, sample.right)]
    with torch.no_grad():
        before, after = ContractModel(plain)(*eyes), ContractModel(calibrated)(*eyes)
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])
    assert after[1].min() >= 0
    assert after[1].max() <= 1


def test_confidence_passes_no_gradient_to_the_distribution():
    calibration = ConfidenceCalibration()
    logits = torch.randn(1, 6, 2, 3, requires_grad=True)
    head = torch.randn(1, 1, 2, 3, requires_grad=True)
    mass = torch.rand(1, 1, 2, 3, requires_grad=True)
    answer = torch.rand(1, 1, 2, 3, requires_grad=True)
    calibration(head, mass, logits, torch.arange(6.0), answer).sum().backward()
    assert logits.grad is None
    assert mass.grad is None
    assert answer.grad is None
    assert head.grad is not None
    assert calibration.slope.grad is not None


def test_what_cannot_be_calibrated_is_said():
    with pytest.raises(CalibrationError, match='4 pairs'):
        calibrate(network(), pairs(2))
    with pytest.raises(CalibrationError, match='no confidence'):
        calibrate(create('dtpnet', max_disparity_px=64), pairs(4))
    blind = [Pair(p.left, p.right, np.full_like(p.disparity, 63.0)) for p in pairs(4)]
    with pytest.raises(CalibrationError, match='0 are right'):
        calibrate(network(), blind)


def test_command_writes_a_file_that_answers_the_same_disparity(tmp_path: Path):
    generate_pool(tmp_path / 'pool', 6, 64, 128, seed=1, progress=False, max_disparity_px=60)
    checkpoint = tmp_path / 'trained.pt'
    save_network(network(), checkpoint)
    runner = CliRunner()

    def run(*arguments: object) -> str:
        result = runner.invoke(app, [*map(str, arguments), '--pool', str(tmp_path / 'pool')])
        assert result.exit_code == 0, result.output
        return result.output

    first, second = tmp_path / 'tiny_nano.onnx', tmp_path / 'again.onnx'
    output = run('calibrate', checkpoint, '-o', first, '--threads', 1)
    assert 'after: confidence' in output
    manifest = read_manifest(first)
    assert manifest.name == 'tiny_nano'
    assert manifest.configuration['options']['calibrated'] is True
    assert set(manifest.extra['confidence']['weights']) == {'slope', 'offset'}
    assert json.dumps(manifest.extra['confidence']['held_out'])
    # A shipped file is calibrated anew, and keeps its name and its sources.
    run('calibrate', first, '-o', second, '--threads', 1)
    again = read_manifest(second)
    assert again.name == 'tiny_nano'
    assert again.training_data == manifest.training_data
    sample = pairs(1, seed=4)[0]
    answers = [
        StereoEngine(path, provider='cpu', threads=1).infer(sample.left, sample.right)
        for path in (first, second)
    ]
    plain = ContractModel(network())
    with torch.no_grad():
        eyes = [torch.from_numpy(np.array(eye))[None] for eye in (sample.left, sample.right)]
        expected = plain(*eyes)[0][0].numpy()
    for answer in answers:
        assert (np.abs(answer.disparity - expected) > 0.05).mean() < 0.01
    weights = [read_manifest(path).extra['confidence']['weights'] for path in (first, second)]
    assert weights[0] == pytest.approx(weights[1], rel=0.05, abs=0.05)
