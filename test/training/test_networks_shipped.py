# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A shipped file becomes the network it was: same answers, batch norms that normalise again."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from tiny_kestrel import TINY
from torch import nn

from stereo_kd_ros.model import Manifest, write_manifest
from stereo_kd_ros.sessions import quiet_session
from stereo_kd_training.export import build_manifest, example_pair, export_network
from stereo_kd_training.networks import StereoNetwork, build, create
from stereo_kd_training.networks.channels import apply_widths, changed_widths
from stereo_kd_training.networks.contract import ContractModel
from stereo_kd_training.networks.shipped import ShippedModelError, load_shipped
from stereo_kd_training.train import TrainingError, between, load_weights


def lived(network: StereoNetwork) -> StereoNetwork:
    """Batch norms as after some training, not as made."""
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean):
                values.data.add_(0.2 * torch.randn(values.shape, generator=generator))
            module.running_var.mul_(
                1.0 + torch.rand(module.running_var.shape, generator=generator)
            )
    return network.eval()


@pytest.fixture(scope='module')
def network() -> StereoNetwork:
    torch.manual_seed(0)
    return lived(create('kestrel', **TINY))


@pytest.fixture(scope='module')
def shipped(network: StereoNetwork, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp('shipped') / 'tiny.onnx'
    export_network(network, path, build_manifest(network, 'tiny'), sizes=[(96, 160)])
    return path


def answers(network: StereoNetwork) -> torch.Tensor:
    left, right = (torch.from_numpy(image) for image in example_pair(96, 160, seed=3))
    with torch.no_grad():
        return ContractModel(network)(left, right)[0]


def test_the_network_answers_as_before(network: StereoNetwork, shipped: Path) -> None:
    rebuilt = load_shipped(shipped, pairs=2)
    torch.testing.assert_close(answers(rebuilt), answers(network), atol=0.01, rtol=0)
    assert rebuilt.configuration['name'] == 'kestrel'


def test_batch_norms_hold_the_statistics_of_what_they_read(shipped: Path) -> None:
    rebuilt = load_shipped(shipped, pairs=2)
    spread = []

    def note(_module: nn.Module, inputs: tuple[torch.Tensor, ...], _output: torch.Tensor) -> None:
        spread.append((float(inputs[0].mean()), float(inputs[0].std())))

    rebuilt.encoder.stem[1].register_forward_hook(note)
    answers(rebuilt)
    norm = rebuilt.encoder.stem[1]
    assert float(norm.running_var.mean()) == pytest.approx(1.0)
    assert not torch.equal(norm.weight, torch.ones_like(norm.weight))
    assert 0.2 < spread[0][1] < 5.0, 'answers of about unit variance'


def test_a_step_of_training_moves_every_weight(shipped: Path) -> None:
    rebuilt = load_shipped(shipped, pairs=1).train()
    left, right = (torch.from_numpy(image) for image in example_pair(96, 160))
    disparity, confidence = ContractModel(rebuilt)(left, right)
    (disparity.mean() + confidence.mean()).backward()
    assert all(parameter.grad is not None for parameter in rebuilt.parameters())


def pruned() -> StereoNetwork:
    whole = create('kestrel', **TINY)
    narrow = create('kestrel', **TINY)
    apply_widths(narrow, {'guide.0': [8, 16, 1], 'guide.1': [16], 'upsampling.0.0': [32, 48, 1]})
    narrow.configuration['widths'] = changed_widths(narrow, whole)
    for parameter in narrow.parameters():
        nn.init.normal_(parameter, std=0.2)
    return lived(narrow)


def test_pruned_widths_come_back(tmp_path: Path) -> None:
    narrow = pruned()
    export_network(narrow, tmp_path / 'narrow.onnx', sizes=[(96, 160)])
    rebuilt = load_shipped(tmp_path / 'narrow.onnx', pairs=1)
    assert rebuilt.guide[0].out_channels == 16
    torch.testing.assert_close(answers(rebuilt), answers(narrow), atol=0.01, rtol=0)


def test_a_run_may_start_from_a_shipped_file(network: StereoNetwork, shipped: Path) -> None:
    other = create('kestrel', **TINY).eval()
    load_weights(other, shipped)
    torch.testing.assert_close(answers(other), answers(network), atol=0.01, rtol=0)


def test_a_run_may_start_from_a_pruned_file(tmp_path: Path) -> None:
    narrow = pruned()
    export_network(narrow, tmp_path / 'narrow.onnx', sizes=[(96, 160)])
    other = create('kestrel', **TINY).eval()
    load_weights(other, tmp_path / 'narrow.onnx')
    assert other.configuration['widths'] == narrow.configuration['widths']
    torch.testing.assert_close(answers(other), answers(narrow), atol=0.01, rtol=0)
    # what a checkpoint of that run is rebuilt from
    again = build(other.configuration).eval()
    again.load_state_dict(other.state_dict())
    torch.testing.assert_close(answers(again), answers(other))


def test_a_pruned_start_for_another_network_is_refused(tmp_path: Path) -> None:
    export_network(pruned(), tmp_path / 'narrow.onnx', sizes=[(96, 160)])
    with pytest.raises(TrainingError, match=r'narrow\.onnx does not fit this network'):
        load_weights(create('anynet'), tmp_path / 'narrow.onnx')


def test_a_run_may_start_from_a_calibrated_file(tmp_path: Path) -> None:
    """Its confidence was fitted to its answers, which training is about to change."""
    torch.manual_seed(1)
    calibrated = lived(create('kestrel', **TINY, calibrated=True))
    export_network(calibrated, tmp_path / 'calibrated.onnx', sizes=[(96, 160)])
    other = create('kestrel', **TINY).eval()
    load_weights(other, tmp_path / 'calibrated.onnx')
    torch.testing.assert_close(answers(other), answers(calibrated), atol=0.01, rtol=0)


def test_there_is_nothing_between_a_whole_network_and_a_pruned_one() -> None:
    with pytest.raises(TrainingError, match='differ in more than their weights'):
        between(create('kestrel', **TINY), pruned(), 0.5)
    with pytest.raises(TrainingError, match='differ in more than their weights'):
        between(create('kestrel', **TINY), create('kestrel', **TINY, calibrated=True), 0.5)


@pytest.mark.parametrize(('wrong', 'taken'), [({1}, True), ({0, 2}, False)])
def test_a_tie_on_one_pair_is_borne_and_wrong_weights_are_not(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, wrong: set[int], taken: bool
) -> None:
    class Session:
        """The file's answers, but for the pairs that are wrong."""

        def __init__(self, path: Path) -> None:
            self.session, self.asked = quiet_session(path), 0

        def run(self, names: list[str], images: dict[str, np.ndarray]) -> list[np.ndarray]:
            (disparity,) = self.session.run(names, images)
            self.asked += 1
            return [disparity + 20.0 * (self.asked - 1 in wrong)]

    monkeypatch.setattr('stereo_kd_training.networks.shipped.quiet_session', Session)
    with (
        contextlib.nullcontext() if taken else pytest.raises(ShippedModelError, match=r'100\.0 %')
    ):
        load_shipped(shipped)


def test_a_file_that_does_not_say_what_it_is_is_refused(shipped: Path, tmp_path: Path) -> None:
    model = onnx.load(str(shipped))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / 'bare.onnx'))
    with pytest.raises(ShippedModelError, match='does not say which network'):
        load_shipped(tmp_path / 'bare.onnx')


def test_a_file_of_another_network_is_refused(shipped: Path, tmp_path: Path) -> None:
    path = tmp_path / 'other.onnx'
    path.write_bytes(shipped.read_bytes())
    write_manifest(path, Manifest(name='other', network='kestrel'))
    with pytest.raises(ShippedModelError, match='expects'):
        load_shipped(path)
