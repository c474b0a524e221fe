# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The processor that this runs on, as far as speed depends on it.

A name alone says too little: hosts of virtual machines call processors of several generations
`AMD EPYC`, of which one computes five times as fast as another.
"""

from __future__ import annotations

from pathlib import Path

# Flags of /proc/cpuinfo, the first that is there counts.
_X86 = (
    ('amx_bf16', 'AMX BF16'),
    ('avx512_bf16', 'AVX-512 BF16'),
    ('avx512_vnni', 'AVX-512 VNNI'),
    ('avx512f', 'AVX-512'),
    ('avx_vnni', 'AVX2 VNNI'),
    ('avx2', 'AVX2'),
    ('sse4_2', 'SSE4.2'),
)
_ARM = (
    ('i8mm', 'NEON I8MM'),
    ('asimddp', 'NEON DOTPROD'),
    ('asimd', 'NEON'),
    ('neon', 'NEON'),
)


def processor_name() -> str:
    """The processor's model, as Linux tells it; empty elsewhere."""
    for line in _lines():
        if line.startswith(('model name', 'Model', 'Hardware')):
            return line.partition(':')[2].strip()
    return ''


def maker_of(name: str) -> str:
    """The maker in a `processor_name`: `AMD` of `AMD EPYC`, `Intel` of `Intel(R) Xeon(R)`."""
    return name.replace('(R)', ' ').partition(' ')[0]


def vector_unit() -> str:
    """The best of its vector instructions that networks profit from; empty if not known."""
    flags = _flags()
    return next((named for flag, named in _X86 + _ARM if flag in flags), '')


def computes_bf16() -> bool:
    """Whether it has instructions for BF16; whether those gain anything, only measuring tells.

    AMX does, and AVX-512 BF16 of AMD's Zen 4 halves the time of single precision. On an Intel
    Xeon whose AMX was hidden from the virtual machine, AVX-512 BF16 took 1.5 times as long.
    """
    return not _flags().isdisjoint({'avx512_bf16', 'amx_bf16'})


def _flags() -> set[str]:
    for line in _lines():
        if line.startswith(('flags', 'Features')):
            return set(line.partition(':')[2].split())
    return set()


def _lines() -> list[str]:
    try:
        return Path('/proc/cpuinfo').read_text(encoding='utf-8', errors='replace').splitlines()
    except OSError:
        return []
