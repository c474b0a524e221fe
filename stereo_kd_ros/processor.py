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


class StolenTime:
    """What the host of a virtual machine gave to others while processors here had work to do.

    Begins when it is made. It is why a pair is late, or dropped, that nothing here explains.
    """

    def __init__(self) -> None:
        self._began = _ticks()

    def percent(self) -> float | None:
        """Of the time of all processors since then; None where the system does not tell."""
        began, now = self._began, _ticks()
        if began is None or now is None or now[1] <= began[1]:
            return None
        return round(100.0 * (now[0] - began[0]) / (now[1] - began[1]), 2)


def _ticks() -> tuple[int, int] | None:
    """Stolen ones and all of them, of all processors since the system started."""
    try:
        line = Path('/proc/stat').read_text(encoding='utf-8').partition('\n')[0].split()
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; guests' time is in the user's.
    if line[:1] != ['cpu'] or len(line) < 9:
        return None
    ticks = [int(word) for word in line[1:9]]
    return ticks[7], sum(ticks)


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
