# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Every student behind the runtime's contract, at sizes the exporter never saw."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')
onnxruntime = pytest.importorskip('onnxruntime')

from stereo_kd_training.export import (  # noqa: E402
    OPSET,
    ContractModel,
    example_pair,
    export_network,
)
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
        ('dsnet_slied8', {'head': 'quarter'}),
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


def test_where_dsnet_differs_from_its_file_neither_is_exact(tmp_path, monkeypatch):
    """Untrained, two hypotheses far apart tie in some pixels: rounding decides, in either."""
    torch.manual_seed(0)
    network = create('dsnet').eval()
    export_network(network, tmp_path / 'dsnet.onnx', sizes=(), tolerance_px=1.0)
    session = onnxruntime.InferenceSession(
        str(tmp_path / 'dsnet.onnx'), providers=['CPUExecutionProvider']
    )
    pair = example_pair(96, 160)
    images = [torch.from_numpy(image) for image in pair]
    (file,) = session.run(['disparity'], dict(zip(('left', 'right'), pair)))
    with torch.no_grad():
        single = ContractModel(network)(*images)[0].numpy()
        monkeypatch.setattr(torch.Tensor, 'float', torch.Tensor.double)
        exact = ContractModel(network.double())(*images)[0].numpy()
    assert exact.dtype == np.float64
    of_file, of_network = np.abs(file - exact), np.abs(single - exact)
    assert np.median(of_file) < 1e-3
    # The file is no further from the exact answer than what it was made of.
    assert of_file.max() < 2 * of_network.max()
    assert (of_file > 0.05).mean() <= 2 * (of_network > 0.05).mean()
