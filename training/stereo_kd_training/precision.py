# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What training computes in: `no` (single), `bf16` or `fp16` beside it, or `auto`.

Autocast to BF16 halves the time of a step where the hardware has instructions for it. A
processor without computes the same in software: a 3x3 convolution with its gradient took 35
times as long as in single precision on one with AVX2 alone.
"""

from __future__ import annotations

import logging

import torch

from stereo_kd_ros.processor import computes_bf16, vector_unit

PATTERN = '^(auto|no|bf16|fp16)$'

_logger = logging.getLogger(__name__)


def hardware_has_bf16() -> bool:
    """Whether the GPU that training takes, or else the processor, computes in BF16 itself."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return computes_bf16()


def resolved(precision: str) -> str:
    """`precision`, with `auto` as `bf16` where the hardware has it and else `no`.

    What is asked for by name is taken, with a warning where it will be slow.
    """
    if precision == 'auto':
        return 'bf16' if hardware_has_bf16() else 'no'
    if precision == 'bf16' and not hardware_has_bf16():
        where = 'this GPU' if torch.cuda.is_available() else f'this processor ({vector_unit()})'
        _logger.warning(
            'precision bf16 is computed in software on %s, many times slower than no: '
            "take precision: 'auto' or 'no'",
            where,
        )
    return precision
