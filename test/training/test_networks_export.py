# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every student behind the runtime's contract, at sizes the exporter never saw."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')
onnxruntime = pytest.importorskip('onnxruntime')

from stereo_kd_training.export import OPSET, ContractModel, example_pair  # noqa: E402
from stereo_kd_training.networks import create  # noqa: E402


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        ('dtpnet', {'head': 'paper'}),
        ('dtpnet', {'head': 'quarter'}),
        ('dtpnet', {'volume': 'iterative'}),
        ('compact_stereonet', {}),
        ('compact_stereonet', {'exit_stage': 2}),
        ('anynet', {}),
        ('dsnet_slied8', {}),
    ],
)
def test_a_student_exports_once_for_all_sizes(tmp_path, name, options):
    torch.manual_seed(0)
    network = create(name, max_disparity_px=32, **options).eval()
    model = ContractModel(network).eval()
    maps = ('left', 'right', 'disparity', 'confidence')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer's advice on the exporter
        torch.onnx.export(
            model,
            tuple(torch.from_numpy(image) for image in example_pair(64, 96)),
            str(tmp_path / 'student.onnx'),
            opset_version=OPSET,
            dynamo=False,
            input_names=list(maps[:2]),
            output_names=list(maps[2:]),
            dynamic_axes={key: {0: 'N', 1: 'H', 2: 'W'} for key in maps},
        )
    session = onnxruntime.InferenceSession(
        str(tmp_path / 'student.onnx'), providers=['CPUExecutionProvider']
    )
    for height, width in ((64, 96), (50, 133)):
        left, right = example_pair(height, width, seed=1)
        with torch.no_grad():
            expected = model(torch.from_numpy(left), torch.from_numpy(right))
        answer = session.run(None, {'left': left, 'right': right})
        assert answer[0].shape == answer[1].shape == (1, height, width)
        # untrained scores tie in places, and rounding decides there
        difference = np.abs(answer[0] - expected[0].numpy())
        assert (difference > 0.05).mean() < 0.01
        np.testing.assert_allclose(answer[1], expected[1].numpy(), atol=0.05)
        # a graph that had lost an eye would not notice the swap
        swapped = session.run(None, {'left': right, 'right': left})
        assert np.abs(swapped[0] - answer[0]).max() > 1e-4
