# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A variant in fewer bits keeps the contract and its measured loss, or is not written."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')
onnx = pytest.importorskip('onnx', reason='export needs onnx')

import onnxruntime  # noqa: E402
from tiny_kestrel import TINY  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from stereo_kd_ros.engine import StereoEngine  # noqa: E402
from stereo_kd_ros.model import file_sha256, read_manifest  # noqa: E402
from stereo_kd_training import quantize as module  # noqa: E402
from stereo_kd_training.export import example_pair, export_network  # noqa: E402
from stereo_kd_training.main import app  # noqa: E402
from stereo_kd_training.networks import create  # noqa: E402
from stereo_kd_training.quantize import QuantizeError, quantize  # noqa: E402

SMALL = {'calibration_pairs': 2, 'measured_pairs': 2, 'size': (64, 128)}


@pytest.fixture(scope='module')
def source(tmp_path_factory):
    torch.manual_seed(1)
    network = create('kestrel', **TINY).eval()
    path = tmp_path_factory.mktemp('source') / 'tiny.onnx'
    export_network(network, path, sizes=((64, 96),))
    return path


def kinds(path) -> dict[str, set[str]]:
    """Operators of the file, and the modules whose convolutions read 8-bit or half weights."""
    graph = onnx.load(path).graph
    makers = {output: node for node in graph.node for output in node.output}
    narrow = set()
    weights = {item.name: item.data_type for item in graph.initializer}
    for node in graph.node:
        if node.op_type == 'Conv':
            maker = makers.get(node.input[1])
            of_8_bits = maker is not None and maker.op_type == 'DequantizeLinear'
            if of_8_bits or weights.get(node.input[1]) == onnx.TensorProto.FLOAT16:
                narrow.add(node.name)
    return {'operators': {node.op_type for node in graph.node}, 'narrow': narrow}


def answers_as(source, variant, tolerance_px: float) -> None:
    """The engine takes the variant at any size, and it answers nearly what the source does."""
    left, right = (image[0] for image in example_pair(75, 110, seed=4))
    found = StereoEngine(variant, provider='cpu', threads=1).infer(left, right)
    expected = StereoEngine(source, provider='cpu', threads=1).infer(left, right)
    assert found.disparity.shape == (75, 110)
    assert np.isfinite(found.disparity).all()
    assert np.median(np.abs(found.disparity - expected.disparity)) < tolerance_px


def test_half_precision_keeps_the_contract_and_the_answer(source, tmp_path):
    out = tmp_path / 'half.onnx'
    variant = quantize(source, out, 'fp16', **SMALL)
    assert abs(variant.loss) <= variant.limit == 0.01
    narrow = kinds(out)['narrow']
    assert narrow
    assert not any('/stem/' in name or '/upsampling/' in name for name in narrow)
    answers_as(source, out, 0.1)


def test_int8_keeps_the_contract_and_says_what_it_lost(source, tmp_path):
    out = tmp_path / 'int8.onnx'
    variant = quantize(source, out, 'int8', limit=10.0, **SMALL)
    assert variant.kept == ()
    found = kinds(out)
    assert {'QuantizeLinear', 'DequantizeLinear'} <= found['operators']
    assert len(found['narrow']) > 10
    assert not any('/logits/' in name or '/head/' in name for name in found['narrow'])
    answers_as(source, out, 8.0)
    manifest = read_manifest(out)
    assert manifest.name == f'{read_manifest(source).name}_int8'
    assert len(manifest.calibration_sha256) == 64
    told = manifest.extra['variant']
    assert told['precision'] == 'int8'
    assert told['source_sha256'] == file_sha256(source)
    assert told['loss'] == pytest.approx(variant.loss, abs=1e-4)
    assert told['epe_px'] == pytest.approx(variant.epe_px, abs=1e-3)


def measured(monkeypatch, epe_px) -> None:
    """EPE as a function of how many blocks the file has in 8 bits, without running it."""

    def epe(path, samples):
        blocks = {module._block(name) for name in kinds(path)['narrow']}
        return epe_px(blocks)

    monkeypatch.setattr(module, '_epe', epe)


@pytest.mark.skipif(
    'OpenVINOExecutionProvider' not in onnxruntime.get_available_providers(),
    reason='needs onnxruntime-openvino',
)
@pytest.mark.parametrize('precision', ['int8', 'fp16'])
def test_openvino_takes_it_for_any_size(source, tmp_path, precision):
    out = tmp_path / 'variant.onnx'
    quantize(source, out, precision, limit=10.0, **SMALL)
    left, right = (image[0] for image in example_pair(75, 110, seed=4))
    found = StereoEngine(out, 'openvino', threads=1, precision='fp32').infer(left, right)
    expected = StereoEngine(out, 'cpu', threads=1).infer(left, right)
    assert np.median(np.abs(found.disparity - expected.disparity)) < 0.1


def test_the_blocks_that_cost_most_stay_float(source, tmp_path, monkeypatch):
    cost = {'encoder/up4': 0.5, 'aggregation/down4': 0.02, 'aggregation/up4': 0.02}
    measured(monkeypatch, lambda blocks: 2.0 * (1 + sum(cost.get(one, 0.0) for one in blocks)))
    variant = quantize(source, tmp_path / 'some.onnx', 'int8', **SMALL)
    assert variant.loss == pytest.approx(0.02)
    assert 'encoder/up4' in variant.kept
    assert len(variant.kept) == 2
    assert variant.losses[-1][0] == 'encoder/up4'
    told = {module._block(name) for name in kinds(tmp_path / 'some.onnx')['narrow']}
    assert told == set(variant.quantized)


@pytest.mark.parametrize('precision', ['int8', 'fp16'])
def test_above_the_limit_nothing_is_written(source, tmp_path, monkeypatch, precision):
    measured(monkeypatch, lambda blocks: 2.0 if not blocks else 2.2)
    with pytest.raises(QuantizeError, match=r'\+10\.0 % of 2\.000 px; allowed'):
        quantize(source, tmp_path / 'out' / 'lossy.onnx', precision, **SMALL)
    assert list((tmp_path / 'out').iterdir()) == []


def test_a_model_without_anything_to_quantise_is_an_error(source, tmp_path):
    for precision in ('int8', 'fp16'):
        with pytest.raises(QuantizeError, match='convolution'):
            quantize(source, tmp_path / 'none.onnx', precision, keep='.*', **SMALL)
    with pytest.raises(QuantizeError, match='int4'):
        quantize(source, tmp_path / 'none.onnx', 'int4', **SMALL)
    assert not (tmp_path / 'none.onnx').exists()


def test_the_command_writes_and_tells(source, tmp_path):
    out = tmp_path / 'half.onnx'
    options = ['--precision', 'fp16', '--pairs', '2', '--size', '128x64', '-o', str(out)]
    result = CliRunner().invoke(app, ['quantize', str(source), *options])
    assert result.exit_code == 0, result.output
    assert 'EPE on 2 generated pairs' in result.output
    assert out.is_file()
    result = CliRunner().invoke(app, ['quantize', str(source), '--precision', 'int4', '-o', 'x'])
    assert result.exit_code == 1
    assert 'int4' in result.output
