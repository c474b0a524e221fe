# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The machine's peak: products that are right in every precision, and errors in words."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import onnxruntime
import pytest

from stereo_kd_ros import peak
from stereo_kd_ros.peak import PeakError, chain_of_products, measure_peak, one_pass


@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'int8', 'fp16'])
def test_the_files_written_by_hand_are_sound_onnx(precision):
    onnx = pytest.importorskip('onnx', reason='checks with onnx')
    model = onnx.load_model_from_string(chain_of_products(precision, side=8, layers=3))
    onnx.checker.check_model(model, full_check=True)
    assert sum(node.op_type == 'MatMul' for node in model.graph.node) == 3
    kinds = {tensor.data_type for tensor in model.graph.initializer if tensor.name[:2] == 'w_'}
    assert (onnx.TensorProto.INT8 in kinds) == (precision == 'int8')
    onnx.checker.check_model(onnx.load_model_from_string(one_pass(64)), full_check=True)


@pytest.mark.parametrize('precision', ['fp32', 'int8'])
def test_ones_stay_ones_through_all_products(precision):
    session = onnxruntime.InferenceSession(
        chain_of_products(precision, side=64, layers=4), providers=['CPUExecutionProvider']
    )
    (given,) = session.run(None, {'x': np.ones((64, 64), np.float32)})
    np.testing.assert_allclose(given, 1.0, atol=1e-3)


def test_the_peak_says_what_it_is_of():
    found = measure_peak(1)
    assert (found.threads, found.provider, found.precision) == (1, 'cpu', 'fp32')
    # A slow core does a billion a second, and no machine a million times as many.
    assert 0.1 < found.gmacs_per_second < 1e6
    assert 0.1 < found.gigabytes_per_second < 1e6


def test_a_provider_that_is_not_there_is_told():
    if 'CUDAExecutionProvider' in onnxruntime.get_available_providers():
        pytest.skip('this onnxruntime has CUDA built in')
    with pytest.raises(PeakError, match=r'cuda in fp32 cannot be measured: .*without cuda'):
        measure_peak(1, 'cuda')


def test_wrong_products_are_no_peak(monkeypatch):
    monkeypatch.setattr(peak, 'SECONDS', 0.0)
    monkeypatch.setattr(peak, 'SIDE', 16)
    monkeypatch.setattr(peak, 'chain_of_products', lambda precision: one_pass_of_a_square())
    with pytest.raises(PeakError, match=r'gives -1\.000 where 1 is right'):
        peak.arithmetic(1, 'cpu', 'fp32')


def one_pass_of_a_square() -> bytes:
    return peak._model([peak._node('Neg', ['x'], 'y')], [], (16, 16))


def test_time_that_others_took_does_not_count(monkeypatch):
    """Of two seconds on the clock the two threads computed for one each."""
    monkeypatch.setattr(peak, 'SECONDS', 5.0)
    clock = {'now': 0.0, 'computed': 0.0}

    def work() -> None:
        clock['now'] += 2.0
        clock['computed'] += 2.0

    monkeypatch.setattr(peak.time, 'perf_counter', lambda: clock['now'])
    monkeypatch.setattr(peak.time, 'process_time', lambda: clock['computed'])
    assert peak._least_seconds(work, threads=2) == pytest.approx(1.0)
    # A GPU computes in no time of this process.
    assert peak._least_seconds(work, threads=None) == pytest.approx(2.0)


@pytest.mark.skipif(
    'OpenVINOExecutionProvider' not in onnxruntime.get_available_providers(),
    reason='this onnxruntime has no OpenVINO',
)
@pytest.mark.parametrize('precision', ['fp32', 'bf16', 'int8'])
def test_openvino_has_peaks_of_its_own(precision):
    command = [sys.executable, '-m', 'stereo_kd_ros.peak', '--provider', 'openvino']
    told = subprocess.run(
        [*command, '--precision', precision], capture_output=True, text=True, env=dict(os.environ)
    )
    assert told.returncode == 0, told.stderr
    assert f'"precision": "{precision}"' in told.stdout
