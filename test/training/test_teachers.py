# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Teachers of every kind behind one call."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from stereo_kd_ros.disparity_io import write_kitti_png, write_pfm  # noqa: E402
from stereo_kd_training.networks import StereoNetwork, StereoOutput, create  # noqa: E402
from stereo_kd_training.teachers import (  # noqa: E402
    ConsistencyChecked,
    FolderTeacher,
    OnnxAdapter,
    OnnxTeacher,
    Prediction,
    Teacher,
    TeacherError,
    TopK,
    TorchTeacher,
    build_teacher,
    consistency,
)

ADAPTERS = Path(__file__).resolve().parents[2] / 'training' / 'teachers'


class TwoBins(StereoNetwork):
    """Answers from the red channel: softmax over hypotheses 0 and 10 px."""

    stride = 4

    def forward(self, left, right):
        red = left[:, 0]
        logits = torch.stack((torch.zeros_like(red), red), 1)
        hypotheses = torch.tensor([0.0, 10.0])
        disparity = 10.0 * torch.sigmoid(red)
        return StereoOutput(disparity, logits=(logits,), hypotheses=(hypotheses,))

    def normalize(self, image):
        return image / 255.0


def image_pair(height=6, width=9, seed=0):
    generator = np.random.default_rng(seed)
    return tuple(generator.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(2))


def test_a_torch_teacher_pads_and_crops_and_keeps_what_it_is_asked_to():
    left, right = image_pair()
    answer = TorchTeacher(TwoBins(), top_k=2).predict(left, right)
    red = left[:, :, 0].astype(np.float64) / 255.0
    upper = 1 / (1 + np.exp(-red))
    np.testing.assert_allclose(answer.disparity, 10 * upper, rtol=1e-5)
    assert answer.disparity.dtype == np.float32
    assert (answer.confidence == 1).all()
    dense = answer.distribution.dense()
    np.testing.assert_allclose(dense[1], upper, atol=1e-3)
    np.testing.assert_allclose(dense.sum(0), 1.0, rtol=1e-6)


def test_no_distribution_is_kept_unless_asked_for():
    assert TorchTeacher(TwoBins()).predict(*image_pair()).distribution is None


def test_fingerprints_follow_the_weights_and_the_options():
    def teacher(seed, **options):
        torch.manual_seed(seed)
        return TorchTeacher(create('anynet', **options)).fingerprint

    assert teacher(0) == teacher(0)
    assert teacher(0) != teacher(1)
    assert teacher(0) != teacher(0, exit_stage=2)


def test_a_network_teacher_at_a_size_off_its_stride():
    teacher = TorchTeacher(create('anynet', max_disparity_px=64), top_k=3)
    answer = teacher.predict(*image_pair(50, 70))
    assert answer.disparity.shape == (50, 70)
    top = answer.distribution
    assert top.factor == 16
    assert top.indices.shape == (3, 4, 5)
    assert top.indices.dtype == np.uint8
    assert (np.diff(top.probabilities.astype(np.float32), axis=0) <= 0).all()


def test_a_fine_distribution_is_averaged_over_cells_before_its_best_are_kept():
    network = create('dtpnet', max_disparity_px=32)
    images = image_pair(45, 70)
    fine = TorchTeacher(network, top_k=32).predict(*images).distribution
    coarse = TorchTeacher(network, top_k=32, cell=4).predict(*images).distribution
    assert fine.factor == 1 and coarse.factor == 4 and coarse.indices.shape == (32, 12, 18)
    dense = fine.dense()
    np.testing.assert_allclose(
        coarse.dense()[:, 2, 3], dense[:, 8:12, 12:16].mean((1, 2)), atol=1e-3
    )
    np.testing.assert_allclose(  # the last row of cells holds a single row of pixels
        coarse.dense()[:, 11, 0], dense[:, 44, :4].mean(1), atol=1e-3
    )
    assert TorchTeacher(network, 4, cell=4).fingerprint != TorchTeacher(network, 4).fingerprint
    with pytest.raises(TeacherError, match='none fit into 5 px'):
        TorchTeacher(create('kestrel'), top_k=2, cell=5).predict(*image_pair(64, 64))
    with pytest.raises(TeacherError, match='1 pixel or more'):
        TorchTeacher(network, cell=0)


def test_what_top_k_left_over_is_spread_on_the_rest():
    top = TopK(
        np.array([[[2]], [[0]]], np.uint8),
        np.array([[[0.5]], [[0.2]]], np.float16),
        np.arange(5, dtype=np.float32),
    )
    np.testing.assert_allclose(top.dense().ravel(), [0.2, 0.1, 0.5, 0.1, 0.1], atol=1e-3)


def test_cropping_an_answer_crops_all_of_it():
    top = TopK(
        np.arange(8, dtype=np.uint8).reshape(1, 2, 4),
        np.ones((1, 2, 4), np.float16),
        np.arange(8, dtype=np.float32),
        factor=4,
    )
    answer = Prediction(
        np.arange(8 * 16, dtype=np.float32).reshape(8, 16), np.ones((8, 16), np.float32), top
    )
    part = answer.cropped(4, 8, 4, 8)
    assert part.disparity.shape == part.confidence.shape == (4, 8)
    assert part.disparity[0, 0] == 4 * 16 + 8
    assert part.distribution.indices.tolist() == [[[6, 7]]]
    with pytest.raises(TeacherError, match='does not fall on cells of 4 px'):
        answer.cropped(2, 8, 4, 8)


@pytest.mark.parametrize(
    ('left', 'right', 'complaint'),
    [
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), 'left image is float32'),
        (
            np.zeros((4, 4, 3), np.uint8),
            np.zeros((4, 4), np.uint8),
            r'right image is uint8 \(4, 4',
        ),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8), 'differ in size'),
    ],
)
def test_images_that_are_no_pair_are_refused(left, right, complaint):
    with pytest.raises(TeacherError, match=complaint):
        TorchTeacher(TwoBins()).predict(left, right)


def write_onnx(path, max_value=None):
    """An ONNX file that answers left gray - right gray, (N, H, W, 2) -> (N, H, W, 1)."""
    onnx = pytest.importorskip('onnx')
    helper, float_type = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [
        helper.make_node('Split', ['pair'], ['l', 'r'], axis=3),
        helper.make_node('Sub', ['l', 'r'], ['answer']),
    ]
    graph = helper.make_graph(
        nodes,
        'difference',
        [helper.make_tensor_value_info('pair', float_type, ['n', 'h', 'w', 2])],
        [helper.make_tensor_value_info('answer', float_type, ['n', 'h', 'w', 1])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 11)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def adapter_file(path, **changes) -> Path:
    lines = {
        'name': 'difference',
        'inputs': '[{name: pair, views: [left, right], colour: gray, layout: NHWC}]',
        'output': '{name: answer, scale: 0.5}',
        'pad_multiple': '4',
        'max_disparity_px': '60',
    } | changes
    path.write_text('\n'.join(f'{key}: {value}' for key, value in lines.items() if value))
    return path


def test_an_onnx_teacher_is_fed_as_its_adapter_says(tmp_path):
    left, right = image_pair(6, 9)
    adapter = OnnxAdapter.from_yaml(adapter_file(tmp_path / 'a.yaml'))
    answer = OnnxTeacher(write_onnx(tmp_path / 'm.onnx'), adapter).predict(left, right)
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32) for image in (left, right)]
    expected = 0.5 * (gray[0] - gray[1])
    known = (expected >= 0) & (expected <= 60)
    np.testing.assert_allclose(answer.disparity[known], expected[known])
    assert np.isnan(answer.disparity[~known]).all()
    np.testing.assert_array_equal(answer.confidence, known.astype(np.float32))


@pytest.mark.parametrize(
    ('changes', 'complaint'),
    [
        ({'pad_multipel': '4'}, "unknown key 'pad_multipel'; did you mean 'pad_multiple'"),
        ({'output': None}, 'a key is missing'),
        ({'output': '{}'}, 'a key is missing'),
        ({'inputs': '[{name: p, views: [left], colour: grey}]'}, "colour is one of .*got 'grey'"),
        ({'inputs': '[{name: p, views: [middle]}]'}, 'view is one of left, right'),
        ({'inputs': '[{name: p, views: []}]'}, 'views is empty'),
        ({'inputs': '[{name: p, views: [left], layout: HWC}]'}, 'layout is one of NHWC, NCHW'),
        ({'name': '"unclosed'}, 'is not YAML'),
    ],
)
def test_an_adapter_that_is_wrong_says_where(tmp_path, changes, complaint):
    path = adapter_file(tmp_path / 'wrong.yaml', **changes)
    with pytest.raises(TeacherError, match=complaint) as caught:
        OnnxAdapter.from_yaml(path)
    assert 'wrong.yaml' in str(caught.value)


def test_an_adapter_for_another_file_is_refused(tmp_path):
    changes = {'inputs': '[{name: left, views: [left]}]'}
    adapter = OnnxAdapter.from_yaml(adapter_file(tmp_path / 'a.yaml', **changes))
    with pytest.raises(TeacherError, match=r"names the inputs \['left'\].* has \['pair'\]"):
        OnnxTeacher(write_onnx(tmp_path / 'm.onnx'), adapter)


def test_a_file_that_is_no_onnx_is_refused(tmp_path):
    adapter = OnnxAdapter.from_yaml(adapter_file(tmp_path / 'a.yaml'))
    (tmp_path / 'no.onnx').write_bytes(b'no model')
    with pytest.raises(TeacherError, match=r'no\.onnx cannot be loaded'):
        OnnxTeacher(tmp_path / 'no.onnx', adapter)


def test_every_adapter_of_the_project_reads():
    found = sorted(ADAPTERS.glob('*.yaml'))
    assert found
    for path in found:
        assert OnnxAdapter.from_yaml(path).inputs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hitnet_answers_a_kitti_pair_well(data_dir):
    model = data_dir / 'weights' / 'hitnet' / 'hitnet_eth3d.onnx'
    if not model.is_file():
        pytest.skip(f'no weights at {model}')
    folder = data_dir / 'kitti2015' / '000016_10'
    left, right = (
        cv2.cvtColor(cv2.imread(str(folder / f'{side}.png')), cv2.COLOR_BGR2RGB)
        for side in ('left', 'right')
    )
    truth = cv2.imread(str(folder / 'disp_noc.png'), cv2.IMREAD_UNCHANGED) / 256.0
    teacher = build_teacher({'onnx': model, 'adapter': ADAPTERS / 'hitnet.yaml', 'threads': 1})
    answer = teacher.predict(left, right)
    error = np.abs(answer.disparity - truth)[truth > 0]
    assert np.nanmean(error) < 0.6
    assert np.isfinite(error).mean() > 0.99


def test_precomputed_disparities_in_three_formats(tmp_path):
    left, right = image_pair()
    disparity = np.linspace(1, 40, 54, dtype=np.float32).reshape(6, 9)
    disparity[0, 0] = np.nan
    (tmp_path / 'scene').mkdir()
    write_pfm(tmp_path / 'scene' / 'a.pfm', disparity)
    write_kitti_png(tmp_path / 'b.png', disparity)
    np.save(tmp_path / 'c.npy', disparity)
    cv2.imwrite(str(tmp_path / 'c.confidence.png'), np.full((6, 9), 51, np.uint8))
    teacher = FolderTeacher(tmp_path)
    for name in ('scene/a', 'b', 'c'):
        answer = teacher.predict(left, right, name)
        np.testing.assert_allclose(answer.disparity, disparity, atol=1 / 256)
        assert answer.confidence[0, 0] == 0
        assert answer.confidence[1, 1] == pytest.approx(0.2 if name == 'c' else 1.0)
    with pytest.raises(TeacherError, match=r"no disparity for 'd': looked for d\.pfm"):
        teacher.predict(left, right, 'd')
    with pytest.raises(TeacherError, match=r'is \(6, 9\), the image is \(4, 4\)'):
        teacher.predict(left[:4, :4], right[:4, :4], 'b')
    with pytest.raises(TeacherError, match='no folder of disparities'):
        FolderTeacher(tmp_path / 'none')


def test_consistency_reads_the_right_view_where_the_left_points():
    left = np.full((2, 8), 3.0, np.float32)
    right = np.full((2, 8), 3.0, np.float32)
    right[0, 2] = 5.0  # left x = 5 points here
    right[0, 3] = np.nan  # and x = 6 here
    agreement = consistency(left, right, tolerance_px=1.0)
    assert (agreement[:, :3] == 0).all()  # out of the right view
    assert (agreement[1, 3:] == 1).all()
    assert agreement[0, 5] == pytest.approx(np.exp(-2.0))
    assert agreement[0, 6] == 0


def test_a_teacher_that_answers_the_same_shift_both_ways_is_consistent():
    class Shifted(Teacher):
        name, fingerprint = 'shifted', 'ab'

        def predict(self, left, right, name=''):
            disparity = np.full(left.shape[:2], 2.0, np.float32)
            return Prediction(disparity, np.ones_like(disparity))

    answer = ConsistencyChecked(Shifted()).predict(*image_pair(4, 8))
    assert (answer.confidence[:, :2] == 0).all()
    assert (answer.confidence[:, 2:] == 1).all()


@pytest.mark.parametrize(
    ('description', 'complaint'),
    [
        ({}, 'is described by one of network, onnx, folder'),
        ({'onnx': 'a', 'folder': 'b'}, 'is described by one of'),
        ({'network': 'psmnet', 'chekpoint': 'x'}, "'chekpoint' does not .*did you mean 'checkpoi"),
        ({'network': 'psmnet'}, 'lacks a key'),
        ({'onnx': 'a.onnx'}, "lacks a key: 'adapter'"),
    ],
)
def test_a_description_that_is_wrong_says_what(description, complaint):
    with pytest.raises(TeacherError, match=complaint):
        build_teacher(description)


def test_descriptions_build_what_they_say(tmp_path):
    network = create('anynet')
    torch.save(network.state_dict(), tmp_path / 'anynet.tar')
    teacher = build_teacher(
        {
            'network': 'anynet',
            'checkpoint': tmp_path / 'anynet.tar',
            'options': {'exit_stage': 3},
            'consistency_px': 2.0,
        }
    )
    assert isinstance(teacher, ConsistencyChecked)
    assert teacher.tolerance_px == 2.0
    assert teacher.teacher.network.exit_stage == 3
    with pytest.raises(TeacherError, match='cannot be asked about mirrored'):
        build_teacher({'folder': tmp_path, 'consistency_px': 1.0})
