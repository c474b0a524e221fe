# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two models in one file: which of them a pixel takes, and the first of them out again."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

torch = pytest.importorskip('torch', reason='the training extra is not installed')

from tiny_kestrel import TINY  # noqa: E402
from typer.testing import CliRunner  # noqa: E402

from stereo_kd_ros.engine import StereoEngine  # noqa: E402
from stereo_kd_ros.model import Manifest, read_manifest, write_manifest  # noqa: E402
from stereo_kd_training.adapt.student import find_student  # noqa: E402
from stereo_kd_training.export import build_manifest, export_again, export_network  # noqa: E402
from stereo_kd_training.joined import JoinError, first_alone, is_joined, join, joined_with  # noqa: E402
from stereo_kd_training.main import app  # noqa: E402
from stereo_kd_training.networks import create  # noqa: E402
from stereo_kd_training.networks.shipped import load_shipped  # noqa: E402
from stereo_kd_training.zoo import as_markdown, collect  # noqa: E402

FITTED = {'confidence': {'means': 'P(error < max(1 px, 5%))'}}


def write_reader(path: Path, disparity: int, confidence: int, sides=('H', 'W'), **about) -> Path:
    """A contract model that reads its answers off the left picture's channels."""
    nodes = [helper.make_node('Cast', ['left'], ['values'], to=TensorProto.FLOAT)]
    constants = [helper.make_tensor('most', TensorProto.FLOAT, [], [255.0])]
    for name, channel in (('disparity', disparity), ('share', confidence)):
        constants.append(helper.make_tensor(f'of_{name}', TensorProto.INT64, [], [channel]))
        nodes.append(helper.make_node('Gather', ['values', f'of_{name}'], [name], axis=3))
    nodes.append(helper.make_node('Div', ['share', 'most'], ['confidence']))
    eye, map_ = ['N', *sides, 3], ['N', *sides]
    graph = helper.make_graph(
        nodes,
        'reader',
        [helper.make_tensor_value_info(n, TensorProto.UINT8, eye) for n in ('left', 'right')],
        [
            helper.make_tensor_value_info(n, TensorProto.FLOAT, map_)
            for n in ('disparity', 'confidence')
        ],
        constants,
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)], ir_version=8), path
    )
    fields = {'name': path.stem, 'licence': 'Apache-2.0', 'extra': FITTED, **about}
    write_manifest(path, Manifest(**fields))
    return path


@pytest.fixture
def readers(tmp_path: Path) -> tuple[Path, Path]:
    """Red says the one's disparity and green its confidence, blue both of the other."""
    data = [{'name': 'a', 'licence': 'CC0-1.0'}]
    first = write_reader(
        tmp_path / 'first.onnx', 0, 1, parameters=5, macs_640x480=50, training_data=data,
        input_limits={'max_width': 640, 'min_width': 2}, stride=4, max_disparity_px=128.0,
    )  # fmt: skip
    second = write_reader(
        tmp_path / 'second.onnx', 2, 2, parameters=3, macs_640x480=7, stride=6,
        training_data=[*data, {'name': 'b', 'licence': 'MIT'}], licence='MIT',
        input_limits={'max_width': 900, 'min_width': 3}, max_disparity_px=192.0,
    )  # fmt: skip
    return first, second


def asked(path: Path, left: np.ndarray):
    return StereoEngine(path, 'cpu').infer(left, left)


def test_a_pixel_takes_the_second_where_it_is_surer(readers, tmp_path):
    join(*readers, tmp_path / 'both.onnx', reach_px=1)
    #                    second: surer  hardly surer  as sure  less
    red = np.uint8([[10, 20, 30, 40]])
    green = np.uint8([[100, 100, 100, 200]])
    blue = np.uint8([[120, 109, 100, 90]])
    left = np.ascontiguousarray(np.stack([red, green, blue], -1))
    found = asked(tmp_path / 'both.onnx', left)
    np.testing.assert_array_equal(found.disparity, [[120, 20, 30, 40]])
    np.testing.assert_allclose(found.confidence, np.array([[120, 100, 100, 200]]) / 255, rtol=1e-6)


def test_what_is_compared_is_the_mean_round_a_pixel(readers, tmp_path):
    """On the left the second is surer but for one pixel, on the right the first but for one."""
    join(*readers, tmp_path / 'both.onnx', reach_px=5)
    left = np.zeros((20, 40, 3), np.uint8)
    left[:, :20] = 10, 50, 200
    left[:, 20:] = 10, 200, 50
    left[10, 8] = 10, 250, 0
    left[10, 30] = 10, 0, 250
    found = asked(tmp_path / 'both.onnx', left).disparity
    assert (found[:, :17] == left[:, :17, 2]).all() and (found[:, 23:] == 10).all()


def test_how_much_surer_can_be_set(readers, tmp_path):
    left = np.uint8([[[10, 200, 250], [20, 100, 109], [30, 250, 240]]])
    for surer_by, expected in ((1.0, [250, 109, 30]), (1.1, [250, 20, 30]), (3.0, [10, 20, 30])):
        join(*readers, tmp_path / 'both.onnx', surer_by=surer_by, reach_px=1)
        found = asked(tmp_path / 'both.onnx', left).disparity
        np.testing.assert_array_equal(found, [expected])
    for wrong in ({'surer_by': 0.9}, {'reach_px': 4}, {'reach_px': -1}):
        with pytest.raises(JoinError, match=next(iter(wrong))):
            join(*readers, tmp_path / 'wrong.onnx', **wrong)
    assert not (tmp_path / 'wrong.onnx').exists()


def test_the_file_says_what_both_are(readers, tmp_path):
    made = join(*readers, tmp_path / 'both.onnx', name='pair', version='2.0.0')
    told = read_manifest(tmp_path / 'both.onnx')
    assert told == made and is_joined(told) and not is_joined(read_manifest(readers[0]))
    assert (told.name, told.version, joined_with(told)) == ('pair', '2.0.0', 'second 0.0.0')
    assert (told.parameters, told.stride) == (8, 12)
    # and the mean of 17 pixels each way
    assert told.macs_640x480 == 57 + 2 * 17 * 640 * 480
    assert told.licence == 'Apache-2.0 AND MIT' and told.max_disparity_px == 192
    assert [entry['name'] for entry in told.training_data] == ['a', 'b']
    assert told.weights_sha256 not in {read_manifest(reader).weights_sha256 for reader in readers}
    assert told.input_limits == {'max_width': 640, 'min_width': 3}
    assert [part['name'] for part in told.extra['joined']['parts']] == ['first', 'second']
    assert '(, with second 0.0.0 in its file), weights' in as_markdown(collect(tmp_path))


def test_the_first_comes_out_as_it_was(readers, tmp_path):
    join(*readers, tmp_path / 'both.onnx')
    left = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    with first_alone(tmp_path / 'both.onnx') as alone:
        assert read_manifest(alone) == read_manifest(readers[0])
        found = StereoEngine(alone, 'cpu').infer(left, left)
    np.testing.assert_array_equal(found.disparity, left[..., 0])
    with first_alone(readers[1]) as same:
        assert same == readers[1]


def test_what_cannot_be_one_is_refused(readers, tmp_path):
    first, second = readers
    join(first, second, tmp_path / 'both.onnx')
    told = read_manifest(first)
    bare = write_reader(tmp_path / 'bare.onnx', 0, 1, extra={})
    sized = write_reader(tmp_path / 'sized.onnx', 0, 1, sides=(64, 96))
    unsaid = tmp_path / 'unsaid.onnx'
    model = onnx.load(first)
    del model.metadata_props[:]
    onnx.save(model, unsaid)
    for other, match in (
        (tmp_path / 'both.onnx', 'two models already'),
        (bare, 'stereo-kd-train calibrate'),
        (sized, 'fixed-size'),
        (unsaid, 'no manifest'),
    ):
        for pair in ((first, other), (other, first)):
            with pytest.raises(JoinError, match=match):
                join(*pair, tmp_path / 'no.onnx')
    assert not (tmp_path / 'no.onnx').exists() and read_manifest(first) == told


@pytest.fixture(scope='module')
def students(tmp_path_factory) -> tuple[Path, Path]:
    """Two untrained ones, in fine cells and in coarse ones."""
    folder = tmp_path_factory.mktemp('students')
    for seed, (name, cells) in enumerate((('fine', {'cell_px': 3}), ('coarse', {'cell_px': 6}))):
        torch.manual_seed(seed)
        network = create(
            'kestrel', **{**TINY, 'max_disparity_px': 48, 'calibrated': True}, **cells
        )
        manifest = dataclasses.replace(build_manifest(network.eval(), name), extra=FITTED)
        export_network(network, folder / f'{name}.onnx', manifest, sizes=((96, 128),))
    return folder / 'fine.onnx', folder / 'coarse.onnx'


def test_a_command_joins_students_and_the_first_can_be_trained_on(students, tmp_path):
    both, again = tmp_path / 'both.onnx', tmp_path / 'again.onnx'
    result = CliRunner().invoke(
        app, ['join', *map(str, students), '-o', str(both), '--name', 'two']
    )
    assert result.exit_code == 0 and 'two 0.0.0' in result.output, result.output
    network = load_shipped(both)
    assert network.cell == (3, 3)
    alone = StereoEngine(students[0], 'cpu')
    left, right = np.random.default_rng(1).integers(0, 256, (2, 96, 128, 3), np.uint8)
    export_again(both, again)
    assert read_manifest(again).name == 'fine' and not is_joined(read_manifest(again))
    expected = alone.infer(left, right).disparity.copy()
    for path in (again, find_student(str(both)).onnx(tmp_path / 'adapt')):
        found = StereoEngine(path, 'cpu').infer(left, right).disparity
        assert np.median(np.abs(found - expected)) < 0.01
