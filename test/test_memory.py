# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a process frees it keeps: counted in page faults, of a process of its own."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

IMAGE_PAGES = 675  # of 1280x720 rgb8, in pages of 4 kB
PAIRS = 40

_PLAYER = """
import ctypes, resource, sys
from stereo_kd_ros.memory import keep_freed_memory

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes, libc.memset.argtypes = (
    [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t])
size = 1280 * 720 * 3

def pair():
    both = [libc.malloc(size) for _ in range(2)]
    for image in both:
        libc.memset(image, 1, size)
    for image in both:
        libc.free(image)

kept = keep_freed_memory() if 'keep' in sys.argv else None
for _ in range(5):
    pair()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range({pairs}):
    pair()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*arguments: str) -> tuple[str, int]:
    script = _PLAYER.replace('{pairs}', str(PAIRS))
    command = [sys.executable, '-c', script, *arguments]
    kept, number = subprocess.run(
        command, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    return kept, int(number)


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='mallopt is of glibc')
def test_the_memory_of_a_pair_serves_the_next_one() -> None:
    kept, with_it = faults('keep')
    _, without = faults()
    assert kept == 'True'
    assert without > PAIRS * IMAGE_PAGES
    assert with_it < PAIRS * IMAGE_PAGES / 10
