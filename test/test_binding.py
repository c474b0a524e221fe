# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Both bindings in the real ONNX Runtime; the device's buffers lie in the computer's memory."""

from __future__ import annotations

import ctypes
import gc
import threading
import time

import numpy as np
import onnxruntime
import pytest

from stereo_kd_ros.binding import SIZES_FITTED, SIZES_KEPT, DeviceBinding, HostBinding
from stereo_kd_ros.pinned import CopyError, PageLocked

pytest.importorskip('onnx', reason='builds its models with onnx')
from at_once import at_once
from contract_models import difference, difference_model, random_pair
from tiny_models import write_block_matcher


@pytest.fixture(scope='module')
def session(tmp_path_factory):
    path = difference_model(tmp_path_factory.mktemp('models') / 'difference.onnx')
    return onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])


class PretendedRuntime:
    """The CUDA runtime's three functions, over memory that is the computer's own."""

    def __init__(self, refuses: bool = False, copy_error: int = 0) -> None:
        self.locked: dict[int, int] = {}
        self.refuses, self.copy_error = refuses, copy_error
        self.copies_to_locked: list[bool] = []

    def cudaHostRegister(self, address, size, flags) -> int:
        assert flags == 1
        assert address.value not in self.locked
        if not self.refuses:
            self.locked[address.value] = size.value
        return int(self.refuses)

    def cudaHostUnregister(self, address) -> int:
        del self.locked[address.value]
        return 0

    def cudaMemcpy(self, to, source, size, kind) -> int:
        assert kind == 2
        self.copies_to_locked.append(self.locked.get(to.value) == size.value)
        ctypes.memmove(to, source, size.value)
        return self.copy_error


@pytest.fixture(params=['host', 'device', 'device with graphs', 'device, page-locked'])
def binding(request, session):
    if request.param == 'host':
        return HostBinding(session)
    locked = PageLocked(PretendedRuntime()) if request.param.endswith('locked') else None
    return DeviceBinding(
        session, 'cpu', cuda_graph=request.param.endswith('graphs'), page_locked=locked
    )


def test_sizes_come_and_go(binding):
    for turn in range(3):
        for step in range(SIZES_KEPT + 3):
            left, right = random_pair(10 + step, 20, seed=100 * turn + step)
            disparity, confidence = binding.run(left, right)
            np.testing.assert_allclose(disparity, difference(left, right), atol=1e-3)
            np.testing.assert_allclose(confidence, disparity / 255, atol=1e-5)


def test_a_batch_is_its_pairs(binding):
    pairs = [random_pair(9, 11, seed) for seed in range(3)]
    left, right = (np.stack(eyes) for eyes in zip(*pairs))
    disparity, confidence = binding.run_batch(left, right)
    assert disparity.shape == confidence.shape == (3, 9, 11)
    for number, pair in enumerate(pairs):
        np.testing.assert_allclose(disparity[number], difference(*pair), atol=1e-3)
        np.testing.assert_allclose(binding.run(*pair)[0], disparity[number])


def test_a_result_stays_what_it_was(binding):
    first = binding.run(*random_pair(16, 16, seed=1))
    before = [array.copy() for array in first]
    for seed in range(3):
        binding.run(*random_pair(16, 16, seed=seed))
    for array, kept in zip(first, before):
        np.testing.assert_array_equal(array, kept)


def test_views_are_taken(binding):
    left, right = random_pair(20, 30)
    left, right = left[::2, 5:25], right[::-2, 5:25, ::-1]
    np.testing.assert_allclose(binding.run(left, right)[0], difference(left, right), atol=1e-3)


def test_threads_do_not_mix_their_pairs(binding):
    def work(seed: int) -> None:
        left, right = random_pair(12, 14, seed)
        for _ in range(30):
            got = binding.run(left, right)[0]
            np.testing.assert_allclose(got, difference(left, right), atol=1e-3)

    at_once(work, range(4))


def test_the_device_keeps_a_bounded_number_of_sizes(session):
    binding = DeviceBinding(session, 'cpu')
    for height in range(10, 30):
        binding.run(*random_pair(height, 8))
    assert len(binding._buffers) == SIZES_KEPT


def test_every_recorded_graph_has_a_number_and_keeps_its_buffers(session):
    binding = DeviceBinding(session, 'cpu', cuda_graph=True)
    numbers = []
    for height in range(10, 12 + SIZES_KEPT):
        binding.run(*random_pair(height, 8))
        numbers.append(
            binding._of_size((1, height, 8)).options.get_run_config_entry('gpu_graph_id')
        )
    assert numbers == ['1', '2', '3', '4', '-1', '-1']
    assert [size[1] for size in binding._buffers] == [10, 11, 12, 13]


def test_what_goes_to_a_gpu_and_comes_back_lies_in_locked_memory(session):
    runtime = PretendedRuntime()
    binding = DeviceBinding(session, 'cpu', page_locked=PageLocked(runtime))
    for seed in range(3):
        left, right = random_pair(8, 10, seed)
        np.testing.assert_allclose(binding.run(left, right)[0], difference(left, right), atol=1e-3)
    # Two images and two maps of one size, locked once.
    assert sorted(runtime.locked.values()) == [240, 240, 320, 320]
    assert runtime.copies_to_locked == [True] * 6
    # A size that goes gives its memory back.
    for height in range(10, 10 + SIZES_KEPT):
        binding.run(*random_pair(height, 8))
    gc.collect()
    assert len(runtime.locked) == 4 * SIZES_KEPT
    del binding
    gc.collect()
    assert not runtime.locked


def test_memory_that_cannot_be_locked_is_only_slower(session):
    runtime = PretendedRuntime(refuses=True)
    binding = DeviceBinding(session, 'cpu', page_locked=PageLocked(runtime))
    left, right = random_pair(8, 10)
    np.testing.assert_allclose(binding.run(left, right)[0], difference(left, right), atol=1e-3)
    del binding
    gc.collect()
    assert runtime.copies_to_locked == [False] * 2


def test_a_failed_copy_is_an_error_with_its_number(session):
    locked = PageLocked(PretendedRuntime(copy_error=700))
    binding = DeviceBinding(session, 'cpu', page_locked=locked)
    with pytest.raises(CopyError, match=r'320 bytes .* CUDA error 700'):
        binding.run(*random_pair(8, 10))


class Told:
    """A session that says it was run, and runs another."""

    def __init__(self, session) -> None:
        self._session, self.runs = session, 0

    def io_binding(self):
        return self._session.io_binding()

    def run_with_iobinding(self, binding) -> None:
        self.runs += 1
        self._session.run_with_iobinding(binding)


class Noted:
    """An I/O binding that notes what it is given; the rest is ONNX Runtime's."""

    def __init__(self, binding) -> None:
        self._binding = binding
        self.inputs: list[np.ndarray] = []
        self.outputs: list[int] = []

    def __getattr__(self, name):
        return getattr(self._binding, name)

    def bind_cpu_input(self, name, array) -> None:
        self.inputs.append(array)
        self._binding.bind_cpu_input(name, array)

    def bind_output(self, name, device, device_id, kind, shape, address) -> None:
        self.outputs.append(address)
        self._binding.bind_output(name, device, device_id, kind, shape, address)


class NotedSession:
    """Runs another session, and tells whether a run is going on."""

    def __init__(self, session) -> None:
        self._session, self.is_running, self.runs = session, False, 0

    def io_binding(self) -> Noted:
        self.binding = Noted(self._session.io_binding())
        return self.binding

    def run_with_iobinding(self, binding) -> None:
        self.is_running = True
        self._session.run_with_iobinding(binding._binding)
        self.is_running = False
        self.runs += 1


def test_on_a_cpu_nothing_is_copied_into_the_graph_or_out_of_it(session):
    noted = NotedSession(session)
    left, right = random_pair(12, 14)
    maps = HostBinding(noted).run(left, right)
    for image, bound in zip((left, right), noted.binding.inputs):
        assert np.shares_memory(image, bound)
    assert noted.binding.outputs == [array.ctypes.data for array in maps]


def test_python_goes_on_while_a_pair_is_computed(tmp_path):
    """The executor that takes the next images must not wait for the interpreter's lock."""
    path = write_block_matcher(tmp_path / 'slow.onnx', 48)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    noted = NotedSession(
        onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    )
    binding, most_runs, seen = HostBinding(noted), 20, 0
    pair = random_pair(320, 480)

    def work() -> None:
        while noted.runs < most_runs and seen < 5 * most_runs:
            binding.run(*pair)

    worker = threading.Thread(target=work)
    worker.start()
    while worker.is_alive():
        time.sleep(0.0005)
        seen += noted.is_running
    worker.join()
    # With the lock held this thread could look in once a run, just before it begins.
    assert seen >= 5 * most_runs


def test_a_size_runs_with_the_session_made_for_it(session):
    binding = HostBinding(session)
    fitted = [Told(session) for _ in range(SIZES_FITTED + 1)]
    for step, of_size in enumerate(fitted):
        binding.fit(10 + step, 20, of_size)
    for step in range(len(fitted)):
        left, right = random_pair(10 + step, 20)
        disparity, _ = binding.run(left, right)
        np.testing.assert_allclose(disparity, difference(left, right), atol=1e-3)
    # The oldest has made room.
    assert [of_size.runs for of_size in fitted] == [0] + [1] * SIZES_FITTED
    assert not binding.fits(10, 20)
