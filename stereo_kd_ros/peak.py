# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a machine does at best: arithmetic in the precision that a model runs in, and copies.

    python -m stereo_kd_ros.peak --threads 2 --provider openvino --precision bf16

A floor is honest only if its peak belongs to the same provider, precision and threads: the BF16 or
INT8 units of a processor do several times what its single-precision ones do. So the arithmetic is
timed through the provider itself, in a chain of large matrix products with constant weights, which
every provider computes by its best kernel and keeps in the precision asked for. In FP32 NumPy's
BLAS has its turn as well, and the better counts.

Bandwidth is that of copies of blocks larger than the caches, by as many threads; on a GPU that of
one pass over such a block in its own memory. Nothing of the GPU's part has been measured.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from stereo_kd_ros.providers import (
    EXECUTION_PROVIDERS,
    ON_GPU,
    GpuOptions,
    cuda_options,
    openvino_options,
)

SIDE, LAYERS = 1024, 8
BLOCK_BYTES = 1 << 27
SECONDS = 0.6
TIMEOUT_S = 180.0
_PRECISIONS = ('fp32', 'bf16', 'fp16', 'int8')
# Element types of ONNX.
_FLOAT, _UINT8, _INT8, _HALF = 1, 2, 3, 10


class PeakError(RuntimeError):
    """A peak that cannot be measured here."""


@dataclass(frozen=True)
class Peak:
    """What the machine does at best with a number of threads.

    Attributes:
        threads: of the CPU.
        gmacs_per_second: multiply-accumulates, 1e9 of them.
        gigabytes_per_second: read and written.
        provider: that computed.
        precision: in which it did.
    """

    threads: int
    gmacs_per_second: float
    gigabytes_per_second: float
    provider: str = 'cpu'
    precision: str = 'fp32'


def measure_peak(threads: int, provider: str = 'cpu', precision: str = 'fp32') -> Peak:
    """Best MAC rate of a provider in a precision, and the bandwidth beside it.

    Runs in a process of its own: BLAS reads its number of threads only at start.

    Raises:
        PeakError: the provider does not run, or not in this precision.
    """
    names = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    command = [sys.executable, '-m', 'stereo_kd_ros.peak', '--threads', str(threads)]
    try:
        result = subprocess.run(
            [*command, '--provider', provider, '--precision', precision],
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise PeakError(
            f'the peak of {provider} in {precision} was not there after {TIMEOUT_S:.0f} s'
        ) from error
    if result.returncode:
        last = (result.stderr.strip().splitlines() or ['no reason was given'])[-1]
        raise PeakError(f'the peak of {provider} in {precision} cannot be measured: {last}')
    return Peak(**json.loads(result.stdout.splitlines()[-1]))


def chain_of_products(precision: str, side: int = SIDE, layers: int = LAYERS) -> bytes:
    """An ONNX file: `x` (side, side) float32 through `layers` products with one weight, to `y`.

    The weight is 1 / side everywhere, so ones stay ones. `int8` has a quantised weight, and maps
    quantised in between; `fp16` computes in half precision throughout. `bf16` is what a provider
    makes of float32.
    """
    kind = _HALF if precision == 'fp16' else _FLOAT
    nodes, tensors = [], []
    if precision == 'int8':
        tensors += [
            _tensor('w_q', _INT8, np.ones((side, side), np.int8)),
            _tensor('w_scale', _FLOAT, np.array(1.0 / side, np.float32)),
            _tensor('w_zero', _INT8, np.array(0, np.int8)),
            _tensor('x_scale', _FLOAT, np.array(1.0 / 128.0, np.float32)),
            _tensor('x_zero', _UINT8, np.array(0, np.uint8)),
        ]
        nodes.append(_node('DequantizeLinear', ['w_q', 'w_scale', 'w_zero'], 'w'))
    else:
        dtype = np.float16 if kind == _HALF else np.float32
        tensors.append(_tensor('w', kind, np.full((side, side), 1.0 / side, dtype)))
    here = 'x'
    if kind == _HALF:
        nodes.append(_node('Cast', ['x'], 'x_half', to=_HALF))
        here = 'x_half'
    for layer in range(layers):
        if precision == 'int8':
            coded, near = f'q{layer}', f'd{layer}'
            nodes.append(_node('QuantizeLinear', [here, 'x_scale', 'x_zero'], coded))
            nodes.append(_node('DequantizeLinear', [coded, 'x_scale', 'x_zero'], near))
            here = near
        nodes.append(_node('MatMul', [here, 'w'], f'm{layer}'))
        here = f'm{layer}'
    if kind == _HALF:
        nodes.append(_node('Cast', [here], 'y', to=_FLOAT))
    else:
        # An output of another name than the last product's keeps its layers alike.
        nodes.append(_node('Identity', [here], 'y'))
    return _model(nodes, tensors, (side, side))


def one_pass(elements: int) -> bytes:
    """An ONNX file that reads `x` (elements,) float32 and writes as much to `y`."""
    return _model([_node('Neg', ['x'], 'y')], [], (elements,))


def arithmetic(threads: int, provider: str, precision: str) -> float:
    """Multiply-accumulates per second of a provider.

    Raises:
        PeakError: it does not run, or computes something else.
    """
    session = _session(chain_of_products(precision), threads, provider, precision)
    ones = np.ones((SIDE, SIDE), np.float32)
    binding, bound = _bound(session, ones, provider)
    computing = None if provider in ON_GPU else threads
    seconds = _least_seconds(lambda: session.run_with_iobinding(binding), computing)
    given = bound.numpy()
    if not np.allclose(given, 1.0, atol=0.05):
        raise PeakError(f'{provider} in {precision} gives {given.flat[0]:.3f} where 1 is right')
    macs = LAYERS * SIDE**3 / seconds
    if precision != 'fp32' or provider in ON_GPU:
        return macs
    left, right, product = ones, ones.copy(), np.empty_like(ones)
    return max(
        macs, SIDE**3 / _least_seconds(lambda: np.matmul(left, right, out=product), threads)
    )


def bandwidth(threads: int, provider: str) -> float:
    """Bytes read and written per second."""
    if provider in ON_GPU:
        elements = BLOCK_BYTES // 4
        session = _session(one_pass(elements), threads, provider, 'fp32')
        binding, _ = _bound(session, np.ones(elements, np.float32), provider)
        return 2 * BLOCK_BYTES / _least_seconds(lambda: session.run_with_iobinding(binding), None)
    block = np.ones(BLOCK_BYTES, np.uint8)
    copy = np.empty_like(block)
    parts = list(zip(np.array_split(copy, threads), np.array_split(block, threads)))

    def copy_all() -> None:
        # NumPy copies without the interpreter lock.
        workers = [threading.Thread(target=np.copyto, args=part) for part in parts]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return 2 * block.nbytes / _least_seconds(copy_all, threads)


def _least_seconds(work: Callable[[], Any], threads: int | None) -> float:
    """The quickest run; with `threads` that compute throughout, none that had to share a core.

    A busy machine takes cores away for longer than a run lasts. What the threads computed
    meanwhile tells how long it would have taken with all of them: the smaller of both counts.
    """
    for _ in range(2):
        work()
    least, ends_at = float('inf'), time.perf_counter() + SECONDS
    while time.perf_counter() < ends_at:
        started, computed = time.perf_counter(), time.process_time()
        work()
        taken = time.perf_counter() - started
        if threads is not None:
            taken = min(taken, (time.process_time() - computed) / threads)
        least = min(least, taken)
    return least


def _session(model: bytes, threads: int, provider: str, precision: str) -> Any:
    """A session that one provider really runs.

    Raises:
        PeakError: another one does.
    """
    import onnxruntime

    wanted = EXECUTION_PROVIDERS[provider]
    if wanted not in onnxruntime.get_available_providers():
        raise PeakError(f'this onnxruntime was built without {provider}')
    given: dict[str, str] = {}
    if provider == 'openvino':
        given = openvino_options(threads, 'bf16' if precision == 'bf16' else 'fp32')
    elif provider == 'cuda':
        given = cuda_options(GpuOptions())
    elif provider == 'tensorrt':
        given = {'trt_fp16_enable': str(precision == 'fp16')}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=[(wanted, given)])
    if session.get_providers()[0] != wanted:
        raise PeakError(f'onnxruntime runs {session.get_providers()[0]} instead of {provider}')
    return session


def _bound(session: Any, x: np.ndarray, provider: str) -> tuple[Any, Any]:
    """A binding of `x` and `y` in the provider's own memory, and the value of `y`."""
    import onnxruntime

    device = 'cuda' if provider in ON_GPU else 'cpu'
    value = onnxruntime.OrtValue.ortvalue_from_numpy(x, device, 0)
    answer = onnxruntime.OrtValue.ortvalue_from_shape_and_type(x.shape, np.float32, device, 0)
    binding = session.io_binding()
    binding.bind_ortvalue_input('x', value)
    binding.bind_ortvalue_output('y', answer)
    return binding, answer


# ONNX files are protocol buffers: each field is a number, a kind and a value. Written by hand,
# since the runtime does without the `onnx` package.


def _varint(value: int) -> bytes:
    coded = bytearray()
    while value > 0x7F:
        coded.append(value & 0x7F | 0x80)
        value >>= 7
    coded.append(value)
    return bytes(coded)


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _bytes(field: int, value: bytes | str) -> bytes:
    content = value.encode() if isinstance(value, str) else value
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _tensor(name: str, kind: int, values: np.ndarray) -> bytes:
    dims = b''.join(_number(1, length) for length in values.shape)
    return dims + _number(2, kind) + _bytes(8, name) + _bytes(9, values.tobytes())


def _node(operator: str, inputs: Sequence[str], output: str, **integers: int) -> bytes:
    attributes = (
        _bytes(1, key) + _number(3, value) + _number(20, 2) for key, value in integers.items()
    )
    return (
        b''.join(_bytes(1, name) for name in inputs)
        + _bytes(2, output)
        + _bytes(3, output)
        + _bytes(4, operator)
        + b''.join(_bytes(5, attribute) for attribute in attributes)
    )


def _model(nodes: Sequence[bytes], tensors: Sequence[bytes], shape: Sequence[int]) -> bytes:
    """A file of opset 17 with input `x` and output `y`, both float32 of one shape."""
    dims = b''.join(_bytes(1, _number(1, length)) for length in shape)
    kind = _bytes(1, _number(1, _FLOAT) + _bytes(2, dims))
    graph = (
        b''.join(_bytes(1, node) for node in nodes)
        + _bytes(2, 'peak')
        + b''.join(_bytes(5, tensor) for tensor in tensors)
        + _bytes(11, _bytes(1, 'x') + _bytes(2, kind))
        + _bytes(12, _bytes(1, 'y') + _bytes(2, kind))
    )
    opset = _bytes(1, '') + _number(2, 17)
    return _number(1, 8) + _bytes(7, graph) + _bytes(8, opset)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--provider', choices=tuple(EXECUTION_PROVIDERS), default='cpu')
    parser.add_argument('--precision', choices=_PRECISIONS, default='fp32')
    asked = parser.parse_args(argv)
    try:
        peak = Peak(
            asked.threads,
            round(arithmetic(asked.threads, asked.provider, asked.precision) / 1e9, 2),
            round(bandwidth(asked.threads, asked.provider) / 1e9, 2),
            asked.provider,
            asked.precision,
        )
    except PeakError as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps(asdict(peak)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
