# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from stereo_kd_ros import processor

EPYC = 'model name\t: AMD EPYC\n'


def told(monkeypatch: pytest.MonkeyPatch, text: str | None) -> None:
    def read(self: Path, *args: object, **kwargs: object) -> str:
        assert str(self) == '/proc/cpuinfo'
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
