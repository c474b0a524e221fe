# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Export: the file answers what the network answers, at any size, or it is not written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')
pytest.importorskip('onnx', reason='export needs onnx')

from tiny_kestrel import TINY  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from stereo_kd_ros.engine import StereoEngine  # noqa: E402
from stereo_kd_ros.model import read_manifest  # noqa: E402
from stereo_kd_training.complexity import complexity  # noqa: E402
from stereo_kd_training.datasets.procedural import PoolManifest  # noqa: E402
from stereo_kd_training.export import (  # noqa: E402
    ExportError,
    build_manifest,
    check_parity,
    example_pair,
    export_again,
    export_network,
    training_sources,
)
from stereo_kd_training.main import app  # noqa: E402
from stereo_kd_training.networks import StereoNetwork, StereoOutput, create  # noqa: E402
from stereo_kd_training.networks.kestrel import with_cells  # noqa: E402
from stereo_kd_training.networks.shipped import load_shipped  # noqa: E402
from stereo_kd_training.train import predict  # noqa: E402

SIZES = ((64, 96), (70, 101), (97, 64))


@pytest.fixture(scope='module')
def network() -> StereoNetwork:
    torch.manual_seed(1)
    return create('kestrel', **TINY).eval()


@pytest.fixture(scope='module')
def exported(network, tmp_path_factory):
    path = tmp_path_factory.mktemp('export') / 'tiny.onnx'
    report = export_network(network, path, sizes=SIZES)
    return path, report


def test_parity_holds_at_multiples_and_other_sizes(exported):
    _, report = exported
    assert [(p.height, p.width) for p in report] == list(SIZES)
    assert all(p.max_difference_px <= 0.05 for p in report)


def test_the_engine_answers_as_the_network_does(exported, network):
    path, _ = exported
    left, right = (image[0] for image in example_pair(75, 110, seed=4))
    result = StereoEngine(path, provider='cpu', threads=1).infer(left, right)
    expected = predict(network, left, right)
    assert result.disparity.shape == (75, 110)
    assert np.median(np.abs(result.disparity - expected)) < 1e-3


def test_a_batch_is_answered_pair_by_pair(exported, network):
    path, _ = exported
    (parity,) = check_parity(path, network, [(64, 96)], batch=3)
    assert parity.max_difference_px <= 0.05


def test_the_manifest_travels_in_the_file(exported, network):
    path, _ = exported
    manifest = read_manifest(path)
    assert manifest.network == 'kestrel'
    assert manifest.parameters == network.parameter_count()
    assert manifest.max_disparity_px == 64
    assert len(manifest.weights_sha256) == 64
    assert manifest.exporter['torch'] == torch.__version__


def test_the_manifest_hash_follows_the_weights(network):
    torch.manual_seed(2)
    other = create('kestrel', **TINY)
    assert build_manifest(network, 'a').weights_sha256 != build_manifest(other, 'a').weights_sha256


class FixedSize(StereoNetwork):
    """A network that traces its height as a number, as careless code does."""

    stride = 8
    max_disparity_px = 16.0

    def forward(self, left, right):
        rows = torch.arange(int(left.shape[2]), dtype=torch.float32).view(1, -1, 1)
        mean = (left - right).abs().mean(1)
        return StereoOutput(disparity=mean + rows)


class OneEye(StereoNetwork):
    stride = 8
    max_disparity_px = 16.0

    def forward(self, left, right):
        return StereoOutput(disparity=left.abs().mean(1))


def test_a_network_that_bakes_in_a_size_is_not_written(tmp_path):
    path = tmp_path / 'fixed.onnx'
    with pytest.raises(ExportError):
        export_network(FixedSize(), path, sizes=SIZES)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_ignores_an_eye_is_not_written(tmp_path):
    path = tmp_path / 'one_eye.onnx'
    with pytest.raises(ExportError, match='right'):
        export_network(OneEye(), path, sizes=SIZES)
    assert list(tmp_path.iterdir()) == []


def test_a_static_variant_takes_its_one_size(network, tmp_path):
    path = tmp_path / 'static.onnx'
    report = export_network(network, path, fixed_size=(70, 101))
    assert [(p.height, p.width) for p in report] == [(70, 101)]


def test_the_manifest_names_every_texture_licence_once():
    texture = {'name': 'walls, CC0-1.0', 'source': 'walls', 'licence': 'CC0-1.0'}
    pools = [
        PoolManifest(10, 288, 576, seed, 192.0, (0.1, 0.6), textures=[texture]) for seed in (1, 2)
    ]
    sources = training_sources(pools)
    assert [source['name'] for source in sources] == [
        'procedural scenes', 'walls, CC0-1.0', 'procedural scenes',
    ]  # fmt: skip
    assert sources[1]['licence'] == 'CC0-1.0'
    assert [source['seed'] for source in sources if 'seed' in source] == [1, 2]


def test_one_pixel_beyond_the_tolerance_is_enough_to_refuse(network, tmp_path, monkeypatch):
    honest = check_parity

    def one_pixel_off(path, network, sizes, batch=1):
        return [
            replace(p, max_difference_px=0.051, off_fraction=1e-6)
            for p in honest(path, network, sizes, batch)
        ]

    monkeypatch.setattr('stereo_kd_training.export.check_parity', one_pixel_off)
    with pytest.raises(ExportError, match=r'allowed 0\.05 px'):
        export_network(network, tmp_path / 'off.onnx', sizes=SIZES[:1])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(('asked', 'off_px'), [([0], 0.0), ([0, 2], 1.0), ([0, 1, 2], 1.0)])
def test_what_is_off_on_one_pair_of_three_is_a_tie(exported, network, monkeypatch, asked, off_px):
    path, _ = exported
    honest = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    runs = []

    class OffOnSomePairs:
        get_inputs, get_outputs = honest.get_inputs, honest.get_outputs

        def run(self, names, views):
            disparity, confidence = honest.run(names, views)
            disparity[:, :3, :3] += float(len(runs) in asked)
            runs.append(views['left'])
            return disparity, confidence

    monkeypatch.setattr('stereo_kd_training.export.quiet_session', lambda path: OffOnSomePairs())
    (parity,) = check_parity(path, network, SIZES[:1])
    assert parity.max_difference_px == pytest.approx(off_px, abs=1e-3)
    assert len(runs) == 3
    assert not np.array_equal(runs[0], runs[1])


def test_a_shipped_file_is_written_anew_with_its_answers_and_manifest(exported, network, tmp_path):
    path, _ = exported
    marked = tmp_path / 'marked.onnx'
    manifest = replace(build_manifest(network, 'marked'), licence='CC0-1.0', version='3.2.1')
    export_network(network, marked, manifest, sizes=SIZES[:1])
    again = tmp_path / 'again.onnx'
    result = CliRunner().invoke(app, ['export', str(marked), '-o', str(again)])
    assert result.exit_code == 0, result.output
    written = read_manifest(again)
    assert (written.name, written.version, written.licence) == ('marked', '3.2.1', 'CC0-1.0')
    left, right = (image[0] for image in example_pair(75, 110, seed=4))
    first, second = (
        StereoEngine(file, provider='cpu', threads=1).infer(left, right).disparity
        for file in (path, again)
    )
    assert np.median(np.abs(first - second)) < 1e-3


def test_a_tempered_file_says_so_and_keeps_no_figures_of_its_source(network, tmp_path):
    source, out = tmp_path / 'source.onnx', tmp_path / 'soft.onnx'
    manifest = replace(
        build_manifest(network, 'soft'),
        metrics={'sets': {}},
        extra={'confidence': {'pairs': 3, 'held_out': {}}, 'steps': 7},
    )
    export_network(network, source, manifest, sizes=SIZES[:1])
    asked = ['--temperature', '1.25', '--version', '2.0.0']
    result = CliRunner().invoke(app, ['export', str(source), '-o', str(out), *asked])
    assert result.exit_code == 0, result.output
    written = read_manifest(out)
    assert (written.version, written.metrics) == ('2.0.0', {})
    assert written.extra == {
        'steps': 7,
        'temperature': 1.25,
        'confidence': {'pairs': 3, 'tempered': 1.25},
    }
    assert written.macs_640x480 == complexity(network).macs
    result = CliRunner().invoke(app, ['export', str(out), '-o', str(out), *asked])
    twice = read_manifest(out).extra
    assert (twice['temperature'], twice['confidence']['tempered']) == (1.5625, 1.5625)
    left, right = (image[0] for image in example_pair(75, 110, seed=4))
    hard, soft = (
        StereoEngine(f, provider='cpu', threads=1).infer(left, right) for f in (source, out)
    )
    assert not np.array_equal(hard.disparity, soft.disparity)


def test_a_file_may_be_given_other_cells(network, tmp_path):
    source, out = tmp_path / 'source.onnx', tmp_path / 'tall.onnx'
    manifest = replace(build_manifest(network, 'square'), metrics={'sets': {}}, macs_640x480=1)
    export_network(network, source, manifest, sizes=SIZES[:1])
    asked = ['export', str(source), '-o', str(out), '--cell-height-px', '6']
    result = CliRunner().invoke(app, asked)
    assert 'needs --cell-px' in f'{result.output} {result.exception}'
    assert not out.exists()
    result = CliRunner().invoke(app, [*asked, '--cell-px', '4'])
    assert result.exit_code == 0, result.output
    written = read_manifest(out)
    assert (written.name, written.metrics, written.stride) == ('square', {}, 96)
    options = written.configuration['options']
    assert (options['cell_px'], options['cell_height_px']) == (4, 6)
    assert written.macs_640x480 > 1
    # and the file is one that a network is made of again
    assert load_shipped(out).cell == (6, 4)


def test_two_files_may_be_mixed(network, tmp_path):
    """The same weights in other cells change nothing, others do; both have seen what they saw."""
    torch.manual_seed(5)
    tall = {'cell_px': 4, 'cell_height_px': 6}
    kinds = {
        'one': network,
        'same': with_cells(network, 4, 6),
        'other': create('kestrel', **TINY, **tall),
    }
    for name, part in kinds.items():
        data = [{'name': name, 'licence': 'Apache-2.0'}]
        built = build_manifest(part.eval(), name, version='1.2.0')
        manifest = replace(built, training_data=data)
        export_network(part, tmp_path / f'{name}.onnx', manifest, sizes=SIZES[:1])
    left, right = torch.randn(2, 1, 3, 64, 96)
    logits = {}
    for name in ('same', 'other'):
        out = tmp_path / f'with_{name}.onnx'
        asked = ['--after', str(tmp_path / f'{name}.onnx'), '--share', '0.25', '-o', str(out)]
        result = CliRunner().invoke(app, ['export', str(tmp_path / 'one.onnx'), *asked])
        assert result.exit_code == 0, result.output
        written = read_manifest(out)
        assert [entry['name'] for entry in written.training_data] == ['one', name]
        assert (written.extra['mixed_with'], written.extra['share']) == (f'{name} 1.2.0', 0.25)
        mean = load_shipped(out)
        assert mean.cell == (4, 4)
        with torch.no_grad():
            logits[name] = mean(left, right).logits[0]
    with torch.no_grad():
        expected = network(left, right).logits[0]
    # a file's norms are gauged anew by what its network sees, which cells change
    torch.testing.assert_close(logits['same'], expected, atol=0.03, rtol=0.01)
    assert (logits['other'] - expected).abs().max() > 0.3


def test_weights_in_half_precision_halve_the_file_and_not_the_answer(tmp_path):
    torch.manual_seed(0)
    options = {**TINY, 'aggregation': (32, 64, 64, 64), 'encoder': (32, 64, 64)}
    network = create('kestrel', **options).eval()
    whole, half = tmp_path / 'whole.onnx', tmp_path / 'half.onnx'
    export_network(network, whole, sizes=((64, 96),))
    export_again(whole, half, half_weights=True)
    saved = whole.stat().st_size - half.stat().st_size
    large = sum(p.numel() for p in network.parameters() if p.ndim == 4 and p.numel() >= 4096)
    assert saved == pytest.approx(2 * large, rel=0.1)
    left, right = example_pair(70, 101)
    answers = [
        onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider']).run(
            ['disparity'], {'left': left, 'right': right}
        )[0]
        for file in (whole, half)
    ]
    assert 0 < np.abs(answers[0] - answers[1]).mean() < 0.02
    # What was rounded once is not rounded again, and can be trained on.
    again = load_shipped(half)
    export_again(half, tmp_path / 'again.onnx', half_weights=True)
    assert read_manifest(half).version == read_manifest(tmp_path / 'again.onnx').version
    for name, value in load_shipped(tmp_path / 'again.onnx').state_dict().items():
        torch.testing.assert_close(value, again.state_dict()[name], rtol=1e-4, atol=1e-4)
