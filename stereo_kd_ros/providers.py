# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Execution providers of ONNX Runtime: their names, precisions, order and options.

Everything here is arithmetic on names and numbers, so that it can be tested on a machine that
has none of the hardware. What the CUDA and TensorRT options win has not been measured; they
follow ONNX Runtime's documentation of the two providers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .model import INPUTS

EXECUTION_PROVIDERS = {
    'tensorrt': 'TensorrtExecutionProvider',
    'cuda': 'CUDAExecutionProvider',
    'openvino': 'OpenVINOExecutionProvider',
    'cpu': 'CPUExecutionProvider',
}
AUTO_ORDER = ('tensorrt', 'cuda', 'openvino', 'cpu')
ON_GPU = frozenset({'tensorrt', 'cuda'})
EXTRAS = {'tensorrt': 'gpu', 'cuda': 'gpu', 'openvino': 'openvino', 'cpu': 'cpu'}
PRECISIONS = ('auto', 'fp32', 'bf16', 'fp16')

Size = tuple[int, int]
# What a TensorRT engine covers when the camera's size is not known yet: (height, width).
USUAL_SIZE: Size = (480, 640)
LARGEST_SIZE: Size = (1200, 1920)


class ProviderOptionError(ValueError):
    """An option with which a provider cannot work."""


@dataclass(frozen=True)
class SizeProfile:
    """Image sizes (height, width) [px] that one TensorRT engine is built for.

    The engine runs every size from `smallest` to `largest` and is fastest at `usual`.

    Raises:
        ProviderOptionError: The three are not in order.
    """

    smallest: Size
    usual: Size
    largest: Size

    def __post_init__(self) -> None:
        for low, middle, high in zip(self.smallest, self.usual, self.largest):
            if not 1 <= low <= middle <= high:
                raise ProviderOptionError(
                    f'the sizes {self} are not in order: expected 1 <= smallest <= usual <= '
                    'largest in height and in width'
                )

    @classmethod
    def fixed(cls, height: int, width: int) -> SizeProfile:
        """One size only: the fastest engine, and the quickest to build."""
        return cls((height, width), (height, width), (height, width))

    def takes(self, height: int, width: int) -> bool:
        """Whether an engine of this profile runs the size."""
        return all(
            low <= value <= high
            for low, value, high in zip(self.smallest, (height, width), self.largest)
        )

    def __str__(self) -> str:
        return ' '.join(
            f'{height}x{width}' for height, width in (self.smallest, self.usual, self.largest)
        )


@dataclass(frozen=True)
class GpuOptions:
    """How a model runs on an NVIDIA GPU.

    Attributes:
        device: Which GPU, as CUDA counts them.
        cuda_graph: Record the kernels of each image size once and replay them, which saves
            launching them one by one. ONNX Runtime refuses models with control flow.
        search_convolutions: Let cuDNN time every algorithm at each new size (slow warm-up,
            fastest after) rather than guess.
        workspace_mb: Scratch memory TensorRT may take while it builds and runs.
        profile: Sizes of the engine when TensorRT is asked for by name; a span around
            640x480 without.

    Raises:
        ProviderOptionError: A number is out of its range.
    """

    device: int = 0
    cuda_graph: bool = False
    search_convolutions: bool = True
    workspace_mb: int = 2048
    profile: SizeProfile | None = None

    def __post_init__(self) -> None:
        if self.device < 0:
            raise ProviderOptionError(f'the GPU is {self.device}, expected 0 or more')
        if self.workspace_mb < 64:
            raise ProviderOptionError(
                f'the workspace is {self.workspace_mb} MB, expected 64 or more'
            )


def provider_names(provider: str | Sequence[str]) -> tuple[str, ...]:
    """The providers to try, in order.

    Raises:
        ProviderOptionError: One of them does not exist, or there is none.
    """
    if provider == 'auto':
        return AUTO_ORDER
    names = (provider,) if isinstance(provider, str) else tuple(provider)
    for name in names:
        if name not in EXECUTION_PROVIDERS:
            known = ', '.join(('auto', *EXECUTION_PROVIDERS))
            raise ProviderOptionError(f'there is no provider {name!r}, expected one of {known}')
    if not names:
        raise ProviderOptionError('no provider was given')
    return names


def precisions(name: str, precision: str, cpu_has_bf16: bool) -> tuple[str, ...]:
    """Precisions to try with a provider, in order.

    CUDA runs the numbers that are in the file: half precision there takes a file in fp16.

    Raises:
        ProviderOptionError: The provider does not compute in this one.
    """
    own = {'openvino': ('bf16', 'fp32'), 'tensorrt': ('fp16', 'fp32')}.get(name, ('fp32',))
    if precision == 'auto':
        return ('fp32',) if name == 'openvino' and not cpu_has_bf16 else own
    if precision not in own:
        owner = {'bf16': 'openvino', 'fp16': 'tensorrt'}.get(precision, 'of another name')
        raise ProviderOptionError(
            f'it computes in {" and ".join(own)} only; {precision} needs the provider {owner}'
        )
    return (precision,)


def usual_profile(
    min_height: int, min_width: int, max_height: int | None, max_width: int | None
) -> SizeProfile:
    """The sizes a TensorRT engine covers for a model with these limits."""
    smallest = (min_height, min_width)
    largest = (
        max(min_height, min(LARGEST_SIZE[0], max_height or LARGEST_SIZE[0])),
        max(min_width, min(LARGEST_SIZE[1], max_width or LARGEST_SIZE[1])),
    )
    usual = (
        min(max(USUAL_SIZE[0], min_height), largest[0]),
        min(max(USUAL_SIZE[1], min_width), largest[1]),
    )
    return SizeProfile(smallest, usual, largest)


def openvino_options(threads: int, precision: str) -> dict[str, str]:
    """Options of OpenVINO on the CPU."""
    hint = {'fp32': 'f32', 'bf16': 'bf16'}[precision]
    config = {'INFERENCE_PRECISION_HINT': hint, 'INFERENCE_NUM_THREADS': str(threads)}
    return {'device_type': 'CPU', 'load_config': json.dumps({'CPU': config})}


def cuda_options(gpu: GpuOptions) -> dict[str, str]:
    """Options of CUDA; memory is taken as needed, since a robot's GPU has other guests."""
    return {
        'device_id': str(gpu.device),
        'arena_extend_strategy': 'kSameAsRequested',
        'cudnn_conv_algo_search': 'EXHAUSTIVE' if gpu.search_convolutions else 'HEURISTIC',
        'cudnn_conv_use_max_workspace': '1',
        'do_copy_in_default_stream': '1',
        'enable_cuda_graph': str(int(gpu.cuda_graph)),
    }


def tensorrt_options(
    gpu: GpuOptions,
    precision: str,
    profile: SizeProfile,
    engine_cache: Path | None,
    timing_cache: Path | None,
) -> dict[str, str]:
    """Options of TensorRT; without the two folders nothing is kept for the next start."""
    options = {
        'device_id': str(gpu.device),
        'trt_max_workspace_size': str(gpu.workspace_mb * 1024 * 1024),
        'trt_fp16_enable': str(precision == 'fp16'),
        'trt_cuda_graph_enable': str(gpu.cuda_graph),
        'trt_profile_min_shapes': _shapes(profile.smallest),
        'trt_profile_opt_shapes': _shapes(profile.usual),
        'trt_profile_max_shapes': _shapes(profile.largest),
    }
    if engine_cache is not None:
        options['trt_engine_cache_enable'] = 'True'
        options['trt_engine_cache_path'] = str(engine_cache)
    if timing_cache is not None:
        options['trt_timing_cache_enable'] = 'True'
        options['trt_timing_cache_path'] = str(timing_cache)
    return options


def _shapes(size: Size) -> str:
    return ','.join(f'{name}:1x{size[0]}x{size[1]}x3' for name in INPUTS)
