# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One pair through an ONNX Runtime session, with as few copies as the provider allows.

`HostBinding` hands over the addresses of the caller's images and of the maps that are returned:
nothing is copied; a size may have a session that was made for it alone. `DeviceBinding` keeps
buffers in the memory of a GPU, one set per image size, and page-locked ones beside them in the
computer's: one copy in, one out, no allocation on either side of it once a size is known, and
addresses that never change, which is what a CUDA graph needs.

    left, right: (H, W, 3) uint8        ->        disparity, confidence: (H, W) float32

`run_batch` takes and gives N of each as one array, (N, H, W, 3) and (N, H, W).
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .model import INPUTS, OUTPUTS
from .pinned import PageLocked, cuda_runtime

Image = NDArray[np.uint8]
Map = NDArray[np.float32]

SIZES_KEPT = 4
# Each is a whole session, with its own weights and memory.
SIZES_FITTED = 2


class HostBinding:
    """Runs a session whose memory is the computer's own; thread-safe."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self._fitted: dict[tuple[int, int], Any] = {}

    def fit(self, height: int, width: int, session: Any) -> None:
        """Run pairs of this size with a session of their own; of `SIZES_FITTED`, the newest."""
        newest = [*self._fitted.items(), ((height, width), session)][-SIZES_FITTED:]
        self._fitted = dict(newest)

    def fits(self, height: int, width: int) -> bool:
        """Whether this size has a session of its own."""
        return (height, width) in self._fitted

    def run(self, left: Image, right: Image) -> tuple[Map, Map]:
        """Disparity and confidence, written by the graph into arrays of their own."""
        session = self._fitted.get(left.shape[:2], self.session)
        disparity, confidence = self._run(session, left[np.newaxis], right[np.newaxis])
        return disparity[0], confidence[0]

    def run_batch(self, left: Image, right: Image) -> tuple[Map, Map]:
        """The same for N pairs at once."""
        return self._run(self.session, left, right)

    def _run(self, session: Any, left: Image, right: Image) -> tuple[Map, Map]:
        # The binding holds addresses only; these lists keep the memory until the run is over.
        images = [np.ascontiguousarray(image) for image in (left, right)]
        outputs = [np.empty(left.shape[:3], dtype=np.float32) for _ in OUTPUTS]
        binding = session.io_binding()
        for name, image in zip(INPUTS, images):
            binding.bind_cpu_input(name, image)
        for name, array in zip(OUTPUTS, outputs):
            binding.bind_output(name, 'cpu', 0, np.float32, array.shape, array.ctypes.data)
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return outputs[0], outputs[1]


@dataclass(frozen=True)
class _Buffers:
    """One image size's memory, bound once: on the device, and page-locked what goes there."""

    images: tuple[Any, ...]
    maps: tuple[Any, ...]
    staged_images: tuple[Image, ...]
    staged_maps: tuple[Map | None, ...]
    binding: Any
    options: Any


class DeviceBinding:
    """Runs a session whose memory is a GPU's; one pair at a time, thread-safe.

    Args:
        session: Of CUDA or TensorRT.
        device: `cuda`; `cpu` runs the same path through the computer's own memory.
        device_id: Which one.
        cuda_graph: Whether the session replays CUDA graphs. Each size then is a graph of its
            own, and sizes beyond the first `SIZES_KEPT` run without.
        page_locked: Makes the computer's side of the buffers; by the CUDA runtime without.
    """

    def __init__(
        self,
        session: Any,
        device: str = 'cuda',
        device_id: int = 0,
        cuda_graph: bool = False,
        page_locked: PageLocked | None = None,
    ) -> None:
        self.session = session
        if page_locked is None:
            page_locked = PageLocked(cuda_runtime() if device == 'cuda' else None)
        self._page_locked = page_locked
        self._device, self._device_id, self._cuda_graph = device, device_id, cuda_graph
        self._lock = threading.Lock()
        self._buffers: OrderedDict[tuple[int, ...], _Buffers] = OrderedDict()

    def run(self, left: Image, right: Image) -> tuple[Map, Map]:
        """Disparity and confidence, copied out of the device once."""
        disparity, confidence = self.run_batch(left[np.newaxis], right[np.newaxis])
        return disparity[0], confidence[0]

    def run_batch(self, left: Image, right: Image) -> tuple[Map, Map]:
        """The same for N pairs at once; each N has buffers of its own."""
        with self._lock:
            buffers = self._of_size(left.shape[:3])
            for value, staged, image in zip(buffers.images, buffers.staged_images, (left, right)):
                np.copyto(staged, image)
                value.update_inplace(staged)
            self.session.run_with_iobinding(buffers.binding, buffers.options)
            buffers.binding.synchronize_outputs()
            maps = [self._fetched(*both) for both in zip(buffers.maps, buffers.staged_maps)]
        return maps[0], maps[1]

    def _fetched(self, value: Any, staged: Map | None) -> Map:
        """What the device holds, in an array of the caller's own."""
        if staged is not None:
            self._page_locked.fetch(staged, value.data_ptr())
            return staged.copy()
        array = value.numpy()
        # In the computer's memory it is a view of what comes next.
        return array.copy() if self._device == 'cpu' else array

    def _of_size(self, size: tuple[int, ...]) -> _Buffers:
        known = self._buffers.get(size)
        if known is not None:
            self._buffers.move_to_end(size)
            return known
        full = len(self._buffers) >= SIZES_KEPT
        if self._cuda_graph and full:
            # A recorded graph writes to its buffers' addresses: they may not be given away.
            return self._allocate(size, graph=-1)
        if full:
            self._buffers.popitem(last=False)
        made = self._allocate(size, graph=len(self._buffers) + 1)
        self._buffers[size] = made
        return made

    def _allocate(self, size: tuple[int, ...], graph: int) -> _Buffers:
        def on_device(shape: tuple[int, ...], kind: type) -> Any:
            return onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                shape, kind, self._device, self._device_id
            )

        binding = self.session.io_binding()
        images = tuple(on_device((*size, 3), np.uint8) for _ in INPUTS)
        maps = tuple(on_device(size, np.float32) for _ in OUTPUTS)
        for name, value in zip(INPUTS, images):
            binding.bind_ortvalue_input(name, value)
        for name, value in zip(OUTPUTS, maps):
            binding.bind_ortvalue_output(name, value)
        options = None
        if self._cuda_graph:
            options = onnxruntime.RunOptions()
            options.add_run_config_entry('gpu_graph_id', str(graph))
        locked = self._page_locked
        return _Buffers(
            images,
            maps,
            tuple(locked.array((*size, 3), np.uint8) for _ in INPUTS),
            tuple(
                locked.array(size, np.float32) if locked.is_available else None for _ in OUTPUTS
            ),
            binding,
            options,
        )
