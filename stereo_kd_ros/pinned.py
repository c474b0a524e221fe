# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Page-locked memory: what a GPU reads and writes by itself, without the driver's own copy.

NumPy arrays are registered with the CUDA runtime that ONNX Runtime has loaded already. Where there
is none, or it refuses, the arrays are ordinary ones and copies take the driver's detour: nothing
fails for it. Not measured on a GPU.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

LIBRARIES = ('libcudart.so.13', 'libcudart.so.12', 'libcudart.so')
# Of the CUDA runtime: memory locked for all contexts; from the device to the host.
_PORTABLE, _TO_HOST = 1, 2


class CopyError(RuntimeError):
    """The device's memory could not be read."""


class PageLocked:
    """Makes arrays in page-locked memory, and fills them from a device.

    Args:
        runtime: the CUDA runtime (`cuda_runtime`); None makes ordinary arrays.

    Attributes:
        is_available: whether there is a CUDA runtime.
    """

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self.is_available = self._runtime is not None

    def array(self, shape: Sequence[int], dtype: Any) -> NDArray[Any]:
        """An array of zeros, locked as long as it lives, where locking is to be had."""
        made = np.zeros(shape, dtype)
        runtime = self._runtime
        if runtime is None or not made.nbytes:
            return made
        address = ctypes.c_void_p(made.ctypes.data)
        if runtime.cudaHostRegister(address, ctypes.c_size_t(made.nbytes), _PORTABLE) == 0:
            # Before NumPy gives the memory back; at the end of the process CUDA may be gone first.
            weakref.finalize(made, runtime.cudaHostUnregister, address).atexit = False
        return made

    def fetch(self, into: NDArray[Any], address: int) -> None:
        """Copy what lies at an address of the device, all of `into`'s size; waits for it.

        Raises:
            CopyError: the CUDA runtime reports an error.
        """
        code = self._runtime.cudaMemcpy(
            ctypes.c_void_p(into.ctypes.data),
            ctypes.c_void_p(address),
            ctypes.c_size_t(into.nbytes),
            _TO_HOST,
        )
        if code:
            raise CopyError(
                f'copying {into.nbytes} bytes from the GPU failed with CUDA error {code}'
            )


def cuda_runtime() -> Any:
    """The CUDA runtime library; None where it cannot be loaded."""
    for name in LIBRARIES:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
