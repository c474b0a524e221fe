# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a benchmark opens: in which precision it says to run, and memory that is its own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('onnx', reason='builds its models with onnx')
from tiny_models import write_block_matcher

from stereo_kd_ros.model import read_manifest, write_manifest
from stereo_kd_ros.subjects import (
    BenchmarkError,
    SubjectSpec,
    measure_memory,
    open_model,
    provider_of,
    resident_mb,
)


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('cpu', ('cpu', 'auto')),
        ('auto', ('auto', 'auto')),
        ('openvino:bf16', ('openvino', 'bf16')),
        ('tensorrt:fp16', ('tensorrt', 'fp16')),
        ('openvino:auto', ('openvino', 'auto')),
    ],
)
def test_a_provider_may_come_with_a_precision(text, expected):
    assert provider_of(text) == expected


@pytest.mark.parametrize('text', ['', 'cpu:', 'cpu:bf16', 'openvino:int4', ':fp32', 'gpu:fp16'])
def test_what_is_no_provider_or_not_its_precision_is_told(text):
    with pytest.raises(BenchmarkError, match=r'expected one of|computes in'):
        provider_of(text)


@pytest.mark.parametrize(
    ('variant', 'precision'),
    [({}, 'fp32'), ({'precision': 'int8'}, 'int8'), ({'precision': 'fp16'}, 'fp32'), (7, 'fp32')],
)
def test_a_file_in_few_bits_is_held_to_the_peak_of_those(tmp_path, variant, precision):
    """The CPU's kernels compute a file in fp16 in single precision."""
    path = write_block_matcher(tmp_path / 'variant.onnx', 4)
    write_manifest(path, replace(read_manifest(path), extra={'variant': variant}))
    subject = open_model(str(path), 'cpu', 1)
    assert (subject.provider, subject.precision) == ('cpu', precision)
    assert subject.ran() == ('cpu', precision)
    subject.close()


def test_memory_is_the_subjects_own_whatever_this_process_holds(tmp_path):
    held = np.ones(400_000_000, np.uint8)
    assert resident_mb('VmHWM') > 400
    path = write_block_matcher(tmp_path / 'tiny.onnx', 4)
    small = measure_memory(SubjectSpec('model', str(path), 'cpu'), 64, 64, 1)
    large = measure_memory(SubjectSpec('model', str(path), 'cpu'), 1280, 960, 1)
    # Five planes of 1.2 million floats at the least, and nothing of this process's.
    assert small + 20 < large < 400
    assert held[-1] == 1


def test_who_does_not_run_has_no_memory():
    assert measure_memory(SubjectSpec('model', 'absent.onnx', 'cpu'), 64, 64, 1) is None
