# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Small real ONNX models: a block matcher that keeps the contract, and files that break it.

The block matcher compares 7x7 windows of the mean of the three channels at every whole disparity
from 0 to `max_disparity_px` and takes the best, so a picture shifted by d pixels gives exactly d.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stereo_kd_ros.model import Manifest, write_manifest

WINDOW_PX = 7
IMAGE = ['N', 'H', 'W', 3]
MAP = ['N', 'H', 'W']


def write_block_matcher(
    path: Path,
    max_disparity_px: int = 16,
    name: str = 'block_matcher',
    with_manifest: bool = True,
    fails_above_px: int = 10_000,
) -> Path:
    """Writes the block matcher; it fails at run time on images higher than `fails_above_px`."""
    graph = _Graph()
    grey = {}
    for side in ('left', 'right'):
        real = graph.add('Cast', [side], to=TensorProto.FLOAT)
        grey[side] = graph.add('ReduceMean', [real], axes=[3], keepdims=0)
        grey[side] = graph.add('Unsqueeze', [grey[side], graph.integers([1])])
    costs = [
        graph.add('Abs', [graph.add('Sub', [grey['left'], _moved(graph, grey['right'], d)])])
        for d in range(max_disparity_px + 1)
    ]
    volume = graph.add('Concat', costs, axis=1)
    border = WINDOW_PX // 2
    cost = graph.add(
        'AveragePool',
        [volume],
        kernel_shape=[WINDOW_PX, WINDOW_PX],
        pads=[border] * 4,
        strides=[1, 1],
    )
    best = graph.add('ArgMin', [cost], axis=1, keepdims=0)
    disparity = graph.add('Cast', [best], to=TensorProto.FLOAT)
    # A look-up behind the end of a table is an error that ONNX Runtime meets only when it runs.
    height = graph.add('Gather', [graph.add('Shape', ['left']), graph.integers([1])], axis=0)
    zeros = graph.constant(np.zeros(fails_above_px + 1, np.float32))
    zero = graph.add('Gather', [zeros, height], axis=0)
    graph.add('Add', [disparity, zero], output='disparity')
    least = graph.add('ReduceMin', [cost], axes=[1], keepdims=0)
    share = graph.add('Div', [least, graph.real(255.0)])
    graph.add('Sub', [graph.real(1.0), share], output='confidence')
    graph.save(path)
    if with_manifest:
        write_manifest(
            path,
            Manifest(
                name=name,
                version='1.0',
                network='block matching',
                max_disparity_px=float(max_disparity_px),
            ),
        )
    return path


def write_contract_breaker(path: Path) -> Path:
    """Writes a valid ONNX file whose second output is called `certainty`."""
    graph = _Graph(outputs=('disparity', 'certainty'))
    for side, name in (('left', 'disparity'), ('right', 'certainty')):
        real = graph.add('Cast', [side], to=TensorProto.FLOAT)
        graph.add('ReduceMean', [real], output=name, axes=[3], keepdims=0)
    graph.save(path)
    return path


def write_failing_model(path: Path, max_width_px: int = 64) -> Path:
    """Writes a contract model that loads, and fails at run time on every image but one width."""
    graph = _Graph()
    fixed = graph.constant(np.zeros((1, 1, max_width_px), np.float32))
    for side, name in (('left', 'disparity'), ('right', 'confidence')):
        real = graph.add('Cast', [side], to=TensorProto.FLOAT)
        grey = graph.add('ReduceMean', [real], axes=[3], keepdims=0)
        graph.add('Mul', [grey, fixed], output=name)
    graph.save(path)
    return path


def _moved(graph: _Graph, image: str, columns: int) -> str:
    """The image moved right by whole columns: what the left eye sees of it at that disparity."""
    if columns == 0:
        return image
    pads = graph.integers([0, 0, 0, columns, 0, 0, 0, 0])
    padded = graph.add('Pad', [image, pads], mode='edge')
    return graph.add(
        'Slice', [padded, graph.integers([0]), graph.integers([-columns]), graph.integers([3])]
    )


class _Graph:
    def __init__(self, outputs: tuple[str, str] = ('disparity', 'confidence')) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []
        self._outputs = outputs

    def add(self, operator: str, inputs: list[str], output: str = '', **attributes: object) -> str:
        output = output or f'value_{len(self._nodes)}'
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def constant(self, value: np.ndarray) -> str:
        name = f'constant_{len(self._constants)}'
        self._constants.append(numpy_helper.from_array(value, name))
        return name

    def integers(self, values: list[int]) -> str:
        return self.constant(np.array(values, np.int64))

    def real(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))

    def save(self, path: Path) -> None:
        inputs = [
            helper.make_tensor_value_info(n, TensorProto.UINT8, IMAGE) for n in ('left', 'right')
        ]
        outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, MAP) for n in self._outputs]
        graph = helper.make_graph(self._nodes, 'tiny', inputs, outputs, self._constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
        model.ir_version = 8
        onnx.save(model, path)
