# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rigs that share a session: everyone gets the own answer, errors stay with who made them."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from stereo_kd_ros.batching import BatchingEngine
from stereo_kd_ros.engine import EngineError, StereoEngine

pytest.importorskip('onnx', reason='builds its models with onnx')
from contract_models import difference, difference_model, random_pair

WAIT_S = 60


@pytest.fixture
def engine(tmp_path):
    return StereoEngine(difference_model(tmp_path / 'difference.onnx'), 'cpu', threads=1)


class Gate:
    """Holds up the first run of an engine until told, so that others have to queue."""

    def __init__(self, engine: StereoEngine, monkeypatch) -> None:
        self.entered, self.open = threading.Event(), threading.Event()
        self.batches: list[int] = []
        infer, infer_batch = engine.infer, engine.infer_batch

        def one(left, right):
            self.entered.set()
            assert self.open.wait(WAIT_S)
            return infer(left, right)

        def several(pairs):
            self.batches.append(len(pairs))
            return infer_batch(pairs)

        monkeypatch.setattr(engine, 'infer', one)
        monkeypatch.setattr(engine, 'infer_batch', several)


def run_all(batching: BatchingEngine, gate: Gate, pairs: list[np.ndarray]) -> list:
    """The first pair begins, all others queue behind it; answers or errors in their order."""
    answers: list = [None] * len(pairs)

    def rig(number: int) -> None:
        try:
            answers[number] = batching.infer(*pairs[number])
        except EngineError as error:
            answers[number] = error

    threads = [threading.Thread(target=rig, args=(number,)) for number in range(len(pairs))]
    threads[0].start()
    assert gate.entered.wait(WAIT_S)
    for number, thread in enumerate(threads[1:], start=1):
        thread.start()
        deadline = threading.Event()
        while len(batching._queue) < number and thread.is_alive():
            deadline.wait(0.005)
    gate.open.set()
    for thread in threads:
        thread.join(WAIT_S)
        assert not thread.is_alive()
    return answers


def test_pairs_that_wait_run_together_and_apart_by_size(engine, monkeypatch):
    batching, gate = BatchingEngine(engine, most=3), Gate(engine, monkeypatch)
    sizes = [(10, 12)] + [(20, 30)] * 5 + [(8, 9)]
    pairs = [random_pair(*size, seed) for seed, size in enumerate(sizes)]
    for answer, pair in zip(run_all(batching, gate, pairs), pairs):
        np.testing.assert_allclose(answer.disparity, difference(*pair), atol=1e-3)
        assert answer.inference_ms > 0
    assert gate.batches == [3, 2]
    assert (batching.runs, batching.pairs) == (4, 7)


def test_who_brings_a_wrong_pair_fails_alone(engine, monkeypatch):
    batching, gate = BatchingEngine(engine), Gate(engine, monkeypatch)
    pairs = [random_pair(20, 30, seed) for seed in range(4)]
    wrong = [pairs[0], pairs[1], (pairs[2][0], pairs[2][1][:10]), pairs[3]]
    answers = run_all(batching, gate, wrong)
    assert isinstance(answers[2], EngineError)
    for number in (0, 1, 3):
        np.testing.assert_allclose(
            answers[number].disparity, difference(*pairs[number]), atol=1e-3
        )
    # And it goes on.
    np.testing.assert_allclose(
        batching.infer(*pairs[0]).disparity, difference(*pairs[0]), atol=1e-3
    )


def test_a_model_of_one_pair_gets_them_one_by_one(tmp_path, monkeypatch):
    path = difference_model(tmp_path / 'one.onnx', input_shape=(1, 'H', 'W', 3))
    engine = StereoEngine(path, 'cpu', threads=1)
    assert not engine.takes_batches
    with pytest.raises(EngineError, match='one pair at a time'):
        engine.infer_batch([random_pair(4, 4, 0), random_pair(4, 4, 1)])
    batching, gate = BatchingEngine(engine), Gate(engine, monkeypatch)
    pairs = [random_pair(6, 7, seed) for seed in range(3)]
    for answer, pair in zip(run_all(batching, gate, pairs), pairs):
        np.testing.assert_allclose(answer.disparity, difference(*pair), atol=1e-3)
    assert gate.batches == []


def test_a_batch_is_of_one_size_and_of_an_open_engine(engine):
    pairs = [random_pair(6, 7, 0), random_pair(7, 6, 1)]
    with pytest.raises(EngineError, match='one size'):
        engine.infer_batch(pairs)
    results = engine.infer_batch([pairs[0], pairs[0][::-1]])
    np.testing.assert_allclose(results[0].disparity, results[1].disparity)
    engine.close()
    with pytest.raises(EngineError, match='closed'):
        engine.infer_batch(pairs)
    with pytest.raises(ValueError, match='most'):
        BatchingEngine(engine, most=0)
