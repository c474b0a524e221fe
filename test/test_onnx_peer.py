# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Foreign ONNX networks: tiny real files that answer with what they were given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from stereo_kd_ros.onnx_peer import (
    KNOWN_ADAPTERS,
    InputAdapter,
    OnnxPeer,
    OnnxPeerError,
    open_onnx_peer,
)

onnx = pytest.importorskip('onnx', reason='builds its networks with onnx')
from onnx import TensorProto, helper  # noqa: E402

FLOAT = TensorProto.FLOAT


def save(path: Path, nodes: list, inputs: dict[str, list], outputs: dict[str, list]) -> Path:
    graph = helper.make_graph(
        nodes,
        'tiny',
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


def stacked_echo(path: Path, channels: int, channel: int, layout: str = 'nhwc') -> Path:
    """One input of stacked views; answers one of its channels as (N, H, W, 1) or (N, 1, H, W)."""
    axis = 3 if layout == 'nhwc' else 1
    shape = ['n', 'h', 'w', channels] if layout == 'nhwc' else ['n', channels, 'h', 'w']
    index = helper.make_tensor('index', TensorProto.INT64, [1], [channel])
    nodes = [
        helper.make_node('Constant', [], ['index'], value=index),
        helper.make_node('Gather', ['input:0', 'index'], ['out'], axis=axis),
    ]
    return save(path, nodes, {'input:0': shape}, {'out': [None] * 4})


def separate_difference(path: Path) -> Path:
    """Two NCHW inputs; the second output is left minus right, first channel, (N, 1, H, W)."""
    index = helper.make_tensor('index', TensorProto.INT64, [1], [0])
    nodes = [
        helper.make_node('Constant', [], ['index'], value=index),
        helper.make_node('Sub', ['l', 'r'], ['all']),
        helper.make_node('Gather', ['all', 'index'], ['out'], axis=1),
        helper.make_node('Identity', ['l'], ['other']),
    ]
    shape = ['n', 3, 'h', 'w']
    return save(path, nodes, {'l': shape, 'r': shape}, {'other': [None] * 4, 'out': [None] * 4})


@pytest.fixture
def pair() -> tuple[np.ndarray, np.ndarray]:
    left, right = np.random.default_rng(0).integers(0, 255, (2, 37, 53, 3), np.uint8)
    return left, right


@pytest.mark.parametrize('pad', ['bottom-right', 'top-right'])
def test_grey_stacked(tmp_path: Path, pair, pad: str) -> None:
    adapter = InputAdapter.from_dict(
        {'channels': 'grey', 'inputs': 'stacked', 'layout': 'nhwc', 'pad': pad}
    )
    for channel in (0, 1):
        peer = OnnxPeer(stacked_echo(tmp_path / f'{channel}.onnx', 2, channel), adapter)
        grey = cv2.cvtColor(pair[channel], cv2.COLOR_RGB2GRAY)
        answer = peer(*pair)
        assert answer.dtype == np.float32
        np.testing.assert_allclose(answer, grey / 255.0, atol=1e-6)


@pytest.mark.parametrize('layout', ['nhwc', 'nchw'])
@pytest.mark.parametrize('channels, order', [('rgb', (0, 1, 2)), ('bgr', (2, 1, 0))])
def test_colour_stacked(tmp_path: Path, pair, layout: str, channels: str, order) -> None:
    values = {'channels': channels, 'inputs': 'stacked', 'layout': layout}
    values |= {'scale': 1.0, 'mean': [1, 2, 3], 'std': [10, 20, 40], 'multiple': 16}
    for index in range(6):
        path = stacked_echo(tmp_path / f'{index}.onnx', 6, index, layout)
        own = index % 3
        expected = (pair[index // 3][..., order[own]] - (1.0, 2.0, 3.0)[own]) / (10, 20, 40)[own]
        np.testing.assert_allclose(
            OnnxPeer(path, InputAdapter.from_dict(values))(*pair), expected, rtol=1e-5
        )


def test_separate_inputs_output_index_and_sign(tmp_path: Path, pair) -> None:
    path = separate_difference(tmp_path / 'net.onnx')
    adapter = InputAdapter(scale=1.0, output=1, output_scale=-2.0, multiple=64)
    expected = -2.0 * (pair[0][..., 0].astype(float) - pair[1][..., 0])
    np.testing.assert_allclose(OnnxPeer(path, adapter)(*pair), expected)
    with pytest.raises(OnnxPeerError, match=r'other has shape \(1, 3, 64, 64\)'):
        OnnxPeer(path, InputAdapter(multiple=64))(*pair)


def test_identity_follows_file_and_adapter(tmp_path: Path) -> None:
    one, two = (stacked_echo(tmp_path / f'{c}.onnx', 2, c) for c in (0, 1))
    adapter = KNOWN_ADAPTERS['hitnet']
    identities = {
        OnnxPeer(one, adapter).identity,
        OnnxPeer(two, adapter).identity,
        OnnxPeer(one, InputAdapter(inputs='stacked')).identity,
    }
    assert len(identities) == 3
    assert OnnxPeer(one, adapter).identity in identities


@pytest.mark.parametrize(
    'values, words',
    [
        ({'chanels': 'grey'}, "'chanels', did you mean 'channels'"),
        ({'zzz': 1}, r"'zzz'; known: \['channels'"),
        ({'layout': 'NHWC'}, "layout: must be one of.*'NHWC'"),
        ({'multiple': 0}, 'multiple: must be at least 1'),
        ({'mean': 0.5}, 'lists of numbers'),
        ({'mean': [0.1, 0.2]}, 'mean: needs one value'),
        ({'channels': 'grey', 'std': [1, 1, 1]}, 'std: needs one value'),
    ],
)
def test_bad_adapters(values: dict, words: str) -> None:
    with pytest.raises(OnnxPeerError, match=words):
        InputAdapter.from_dict(values)


def test_yaml(tmp_path: Path, pair) -> None:
    adapter = tmp_path / 'mine.yaml'
    pytest.importorskip('yaml')
    adapter.write_text('channels: grey\ninputs: stacked\nlayout: nhwc\nmean: [0.5]\n')
    network = stacked_echo(tmp_path / 'net.onnx', 2, 0)
    peer = open_onnx_peer('mine', f'{network}@{adapter}')
    grey = cv2.cvtColor(pair[0], cv2.COLOR_RGB2GRAY)
    np.testing.assert_allclose(peer(*pair), grey / 255.0 - 0.5, atol=1e-6)
    for text, words in (
        ('- a\n', 'key: value'),
        ('colour: rgb\n', r'mine\.yaml: unknown.*colour'),
        ('a: [', r'mine\.yaml: cannot be read as YAML'),
    ):
        adapter.write_text(text)
        with pytest.raises(OnnxPeerError, match=words):
            InputAdapter.from_yaml(adapter)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    separate = separate_difference(tmp_path / 'net.onnx')
    with pytest.raises(OnnxPeerError, match=r"inputs: stacked.*1 input.*\['l', 'r'\]"):
        OnnxPeer(separate, KNOWN_ADAPTERS['hitnet'])
    with pytest.raises(OnnxPeerError, match=r"output 2 of \['other', 'out'\]"):
        OnnxPeer(separate, InputAdapter(output=2))
    broken = tmp_path / 'broken.onnx'
    broken.write_bytes(b'no network')
    with pytest.raises(OnnxPeerError, match=r'broken\.onnx: onnxruntime cannot load'):
        OnnxPeer(broken, InputAdapter())
    with pytest.raises(OnnxPeerError, match=r'absent\.onnx: cannot be read'):
        OnnxPeer(tmp_path / 'absent.onnx', InputAdapter())
    with pytest.raises(OnnxPeerError, match=r"'raft' has no known adapter.*raft=net\.onnx@"):
        open_onnx_peer('raft', 'net.onnx')
    with pytest.raises(OnnxPeerError, match=r'absent\.yaml: cannot be read'):
        open_onnx_peer('raft', f'{separate}@{tmp_path}/absent.yaml')
