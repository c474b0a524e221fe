# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What training computes in: `no` (single), `bf16` or `fp16` beside it, or `auto`.

Autocast to BF16 halves the time of a step on a GPU, and on a processor whose instructions for it
are quick. One without computes the same in software: a 3x3 convolution with its gradient took 35
times as long as in single precision with AVX2 alone. One whose instructions are slow gains
nothing: the same took 1.7 times as long on an Intel Xeon with AVX-512 BF16 and without AMX. So
`auto` takes the time of a few convolutions in both, once per run and kind of machine.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Mapping

import torch

from stereo_kd_ros.processor import computes_bf16, vector_unit

PATTERN = '^(auto|no|bf16|fp16)$'

_RUNS = 6
_WORTH_IT = 0.9

_logger = logging.getLogger(__name__)


def hardware_has_bf16() -> bool:
    """Whether the GPU that training takes, or else the processor, computes in BF16 itself."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return computes_bf16()


def machine() -> str:
    """What computes, as far as it decides which precision is the quicker one."""
    if torch.cuda.is_available():
        return 'cuda'
    return f'{vector_unit() or "cpu"}, {"with" if hardware_has_bf16() else "without"} bf16'


def resolved(precision: str, before: Mapping[str, str] | None = None) -> str:
    """`precision`, with `auto` as `bf16` where that is the quicker one and else `no`.

    What is asked for by name is taken, with a warning where it will be slow.

    Args:
        precision: as asked for.
        before: the `precision` that a run which goes on was computed in, and the `machine` that
            did. On such a machine `auto` is that again: measured once more, beside other work, it
            might be the other.
    """
    if precision == 'auto':
        if before and before['machine'] == machine():
            return before['precision']
        return 'bf16' if hardware_has_bf16() and bf16_pays() else 'no'
    if precision == 'bf16' and not hardware_has_bf16():
        where = 'this GPU' if torch.cuda.is_available() else f'this processor ({vector_unit()})'
        _logger.warning(
            'precision bf16 is computed in software on %s, many times slower than no: '
            "take precision: 'auto' or 'no'",
            where,
        )
    return precision


@functools.cache
def bf16_pays() -> bool:
    """Whether convolutions and their gradients take less time in BF16, a GPU's without asking.

    On a CPU a quarter of a second of both in turn, in the shapes of a student's encoder; a gain
    of less than a tenth is none.
    """
    if torch.cuda.is_available():
        return True
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        layers = torch.nn.Sequential(
            torch.nn.Conv2d(32, 32, 3, padding=1),
            torch.nn.Conv2d(32, 96, 1),
            torch.nn.Conv2d(96, 96, 3, padding=1, groups=96),
            torch.nn.Conv2d(96, 32, 1),
        ).to(memory_format=torch.channels_last)
        images = torch.rand(2, 32, 48, 96).to(memory_format=torch.channels_last)
        taken_s: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(_RUNS):
            for enabled, spent in taken_s.items():
                started = time.perf_counter()
                with torch.autocast('cpu', torch.bfloat16, enabled=enabled):
                    result = layers(images)
                result.float().square().mean().backward()
                spent.append(time.perf_counter() - started)
    # The first of each compiles its kernels.
    single_s, bf16_s = (min(spent[1:]) for spent in taken_s.values())
    _logger.info('a step of convolutions: %.1f ms, in bf16 %.1f', 1e3 * single_s, 1e3 * bf16_s)
    return bf16_s < _WORTH_IT * single_s
