# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import time
from pathlib import Path

import pytest

from stereo_kd_ros import processor

EPYC = 'model name\t: AMD EPYC\n'


def told(monkeypatch: pytest.MonkeyPatch, *texts: str | None, path: str = '/proc/cpuinfo') -> None:
    """A file of the system that says each of `texts` in turn, then the last; None is no file."""
    left = list(texts)

    def read(self: Path, *args: object, **kwargs: object) -> str:
        assert str(self) == path
        text = left.pop(0) if len(left) > 1 else left[0]
        if text is None:
            raise FileNotFoundError(str(self))
        return text

    monkeypatch.setattr(Path, 'read_text', read)


@pytest.mark.parametrize(
    ('text', 'vectors', 'bf16'),
    [
        (
            EPYC + 'flags\t\t: fpu sse4_2 avx2 avx512f avx512_vnni avx512_bf16\n',
            'AVX-512 BF16',
            True,
        ),
        (EPYC + 'flags\t\t: sse4_2 avx2 avx512f avx512_bf16 amx_bf16\n', 'AMX BF16', True),
        (EPYC + 'flags\t\t: sse4_2 avx2 avx512f avx512_vnni\n', 'AVX-512 VNNI', False),
        (EPYC + 'flags\t\t: sse4_2 avx2\n', 'AVX2', False),
        # A word that is part of another does not count.
        (EPYC + 'flags\t\t: sse4_2 avx2x\n', 'SSE4.2', False),
        ('Features\t: fp asimd asimddp\nModel\t: Raspberry Pi 5\n', 'NEON DOTPROD', False),
        ('Features\t: fp asimd bf16 i8mm\n', 'NEON I8MM', False),
        ('', '', False),
        (None, '', False),
    ],
)
def test_the_best_instructions_are_named(monkeypatch, text, vectors, bf16):
    told(monkeypatch, text)
    assert (processor.vector_unit(), processor.computes_bf16()) == (vectors, bf16)


def test_the_model_is_what_the_system_says(monkeypatch):
    told(monkeypatch, EPYC)
    assert processor.processor_name() == 'AMD EPYC'
    told(monkeypatch, None)
    assert processor.processor_name() == ''


@pytest.mark.parametrize(
    ('name', 'maker'),
    [
        ('AMD EPYC', 'AMD'),
        ('Intel(R) Xeon(R) Processor', 'Intel'),
        ('Raspberry Pi 5 Model B', 'Raspberry'),
        ('', ''),
    ],
)
def test_the_maker_is_the_first_word(name, maker):
    assert processor.maker_of(name) == maker


def test_this_one_is_one_line():
    assert '\n' not in processor.processor_name()


@pytest.mark.parametrize(
    ('before', 'after', 'percent'),
    [
        # 30 of 200 ticks; the guest's, behind them, are the user's once more.
        ('cpu  1 2 3 4 5 6 7 8 9 9\ncpu0 1', 'cpu  51 12 13 94 5 6 17 38 99 9\n', 15.0),
        ('cpu  1 2 3 4 5 6 7 0 0 0\n', 'cpu  2 2 3 4 5 6 7 0 0 0\n', 0.0),
        ('cpu  1 2 3 4 5 6 7 8 0 0\n', 'cpu  1 2 3 4 5 6 7 8 0 0\n', None),
        ('cpu  1 2 3 4\n', 'cpu  9 2 3 4\n', None),
        ('', '', None),
        (None, None, None),
    ],
)
def test_time_that_the_host_took(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str | None, percent: float | None
) -> None:
    told(monkeypatch, before, after, path='/proc/stat')
    assert processor.StolenTime().percent() == percent


def test_time_that_the_host_took_here() -> None:
    stolen = processor.StolenTime()
    deadline = time.monotonic() + 5
    while stolen.percent() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    percent = stolen.percent()
    assert percent is None if not Path('/proc/stat').exists() else 0 <= percent <= 100
