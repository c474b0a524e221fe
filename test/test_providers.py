# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Names, precisions and options of the execution providers, with none of their hardware."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_kd_ros.providers import (
    AUTO_ORDER,
    GpuOptions,
    ProviderOptionError,
    SizeProfile,
    cuda_options,
    openvino_options,
    precisions,
    provider_names,
    tensorrt_options,
    usual_profile,
)

sizes = st.integers(1, 5000)


def test_auto_prefers_the_faster_hardware():
    assert provider_names('auto') == AUTO_ORDER == ('tensorrt', 'cuda', 'openvino', 'cpu')
    assert provider_names('cuda') == ('cuda',)
    assert provider_names(['cpu', 'cuda']) == ('cpu', 'cuda')


@pytest.mark.parametrize('provider', ['gpu', [], ['cpu', 'auto'], ''])
def test_unknown_providers_are_refused(provider):
    with pytest.raises(ProviderOptionError):
        provider_names(provider)


@pytest.mark.parametrize(
    ('name', 'precision', 'bf16', 'expected'),
    [
        ('cpu', 'auto', True, ('fp32',)),
        ('cuda', 'auto', True, ('fp32',)),
        ('openvino', 'auto', True, ('bf16', 'fp32')),
        ('openvino', 'auto', False, ('fp32',)),
        ('openvino', 'bf16', False, ('bf16',)),
        ('tensorrt', 'auto', False, ('fp16', 'fp32')),
        ('tensorrt', 'fp32', False, ('fp32',)),
    ],
)
def test_precisions_are_tried_fastest_first(name, precision, bf16, expected):
    assert precisions(name, precision, bf16) == expected


@pytest.mark.parametrize(
    ('name', 'precision', 'owner'),
    [('cpu', 'bf16', 'openvino'), ('cuda', 'fp16', 'tensorrt'), ('tensorrt', 'bf16', 'openvino')],
)
def test_a_precision_of_another_provider_is_refused_by_name(name, precision, owner):
    with pytest.raises(ProviderOptionError, match=f'{precision} needs the provider {owner}'):
        precisions(name, precision, True)


@pytest.mark.parametrize('options', [{'device': -1}, {'workspace_mb': 1}])
def test_impossible_gpu_options_are_refused(options):
    with pytest.raises(ProviderOptionError, match='expected'):
        GpuOptions(**options)


@pytest.mark.parametrize(
    'sizes_px',
    [((2, 2), (1, 2), (3, 3)), ((1, 1), (2, 4), (3, 3)), ((0, 1), (1, 1), (1, 1))],
)
def test_a_profile_out_of_order_is_refused(sizes_px):
    with pytest.raises(ProviderOptionError, match='not in order'):
        SizeProfile(*sizes_px)


@given(sizes, sizes, st.none() | sizes, st.none() | sizes)
def test_the_usual_profile_keeps_the_models_limits(min_height, min_width, more_height, more_width):
    max_height = None if more_height is None else min_height + more_height - 1
    max_width = None if more_width is None else min_width + more_width - 1
    profile = usual_profile(min_height, min_width, max_height, max_width)
    assert profile.smallest == (min_height, min_width)
    assert max_height is None or profile.largest[0] <= max_height
    assert max_width is None or profile.largest[1] <= max_width
    assert profile.takes(*profile.usual)
    assert not profile.takes(profile.largest[0] + 1, profile.largest[1])


def test_a_model_of_one_size_has_a_profile_of_that_size():
    assert usual_profile(24, 40, 24, 40) == SizeProfile.fixed(24, 40)


def test_openvino_is_told_precision_and_threads_as_json():
    config = json.loads(openvino_options(3, 'bf16')['load_config'])
    assert config == {'CPU': {'INFERENCE_PRECISION_HINT': 'bf16', 'INFERENCE_NUM_THREADS': '3'}}


def test_cuda_options():
    options = cuda_options(GpuOptions(device=1, cuda_graph=True, search_convolutions=False))
    assert options['device_id'] == '1'
    assert options['enable_cuda_graph'] == '1'
    assert options['cudnn_conv_algo_search'] == 'HEURISTIC'
    assert cuda_options(GpuOptions())['enable_cuda_graph'] == '0'
    assert all(isinstance(value, str) for value in options.values())


def test_tensorrt_is_told_every_size_of_both_images():
    profile = SizeProfile((64, 128), (480, 640), (720, 1280))
    options = tensorrt_options(GpuOptions(), 'fp16', profile, Path('/e'), Path('/t'))
    assert options['trt_profile_min_shapes'] == 'left:1x64x128x3,right:1x64x128x3'
    assert options['trt_profile_opt_shapes'] == 'left:1x480x640x3,right:1x480x640x3'
    assert options['trt_profile_max_shapes'] == 'left:1x720x1280x3,right:1x720x1280x3'
    assert options['trt_fp16_enable'] == 'True'
    assert (options['trt_engine_cache_path'], options['trt_timing_cache_path']) == ('/e', '/t')


def test_without_a_cache_tensorrt_keeps_nothing():
    options = tensorrt_options(GpuOptions(), 'fp32', SizeProfile.fixed(8, 8), None, None)
    assert not [name for name in options if 'cache' in name]
    assert options['trt_fp16_enable'] == 'False'
