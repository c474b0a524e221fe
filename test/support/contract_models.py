# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny real ONNX models that keep the contract, or break it in one chosen way.

`difference_model` answers with arithmetic a test can do by hand:

    disparity  = |mean over RGB of (left - right)| * gain + bias
    confidence = disparity / 255
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

Dimension = int | str


def random_pair(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two (H, W, 3) uint8 images of noise."""
    rng = np.random.default_rng(seed)
    left, right = rng.integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    return left, right


def difference(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The disparity that `difference_model` answers with, (H, W)."""
    return np.abs((left.astype(float) - right.astype(float)).mean(axis=2))


def difference_model(
    path: Path,
    *,
    gain: float = 1.0,
    bias: float = 0.0,
    ceiling: float = 1e30,
    inputs: Sequence[str] = ('left', 'right'),
    outputs: Sequence[str] = ('disparity', 'confidence'),
    input_type: int = TensorProto.UINT8,
    output_type: int = TensorProto.FLOAT,
    input_shape: Sequence[Dimension] = ('N', 'H', 'W', 3),
    confidence_scale: float = 1 / 255,
    columns_step: int = 1,
    only_size: tuple[int, int] | None = None,
) -> Path:
    """Write the model to `path`, with every other option a way of breaking the contract."""
    left, right = inputs[:2]
    nodes = [
        helper.make_node('Cast', [left], ['left_f'], to=TensorProto.FLOAT),
        helper.make_node('Cast', [right], ['right_f'], to=TensorProto.FLOAT),
        helper.make_node('Sub', ['left_f', 'right_f'], ['difference']),
        helper.make_node('ReduceMean', ['difference'], ['grey'], axes=[-1], keepdims=0),
        helper.make_node('Slice', ['grey', 'from', 'to', 'axis', 'step'], ['columns']),
        helper.make_node('Abs', ['columns'], ['absolute']),
        helper.make_node('Min', ['absolute', 'ceiling'], ['magnitude']),
        helper.make_node('Mul', ['magnitude', 'gain'], ['amplified']),
        helper.make_node('Add', ['amplified', 'bias'], ['shifted']),
        helper.make_node('Add', ['shifted', 'zeros'], ['answer']),
        helper.make_node('Mul', ['answer', 'confidence_scale'], ['trust']),
    ]
    results = {'disparity': 'answer', 'confidence': 'trust'}
    nodes += [
        helper.make_node('Cast', [results.get(name, 'answer')], [name], to=output_type)
        for name in outputs
    ]
    constants = [
        helper.make_tensor(name, TensorProto.FLOAT, [], [value])
        for name, value in (
            ('gain', gain),
            ('bias', bias),
            ('ceiling', ceiling),
            ('confidence_scale', confidence_scale),
        )
    ] + [
        helper.make_tensor(name, TensorProto.INT64, [1], [value])
        for name, value in (('from', 0), ('to', 2**40), ('axis', -1), ('step', columns_step))
    ]
    # Adding a map of one size fails, while running, on pairs of any other.
    size = only_size or (1, 1)
    constants.append(
        helper.make_tensor('zeros', TensorProto.FLOAT, size, [0.0] * (size[0] * size[1]))
    )
    output_shape = list(input_shape[:-1])
    if columns_step != 1:
        output_shape[-1] = 'columns'
    graph = helper.make_graph(
        nodes,
        'difference',
        [helper.make_tensor_value_info(name, input_type, input_shape) for name in inputs],
        [helper.make_tensor_value_info(name, output_type, output_shape) for name in outputs],
        constants,
    )
    return save(path, graph)


def save(path: Path, graph: Any) -> Path:
    """Write a graph in a version that old and new runtimes read."""
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 17)])
    model.ir_version = 8
    onnx.save(model, path)
    return path
