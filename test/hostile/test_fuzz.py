# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The fuzzer in short, and proof that its judge sees what it is there to see."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import fuzz
import fuzz_target
import numpy as np
import pytest
from fuzz_target import DEFAULTS, Crash, FuzzTarget, WrongAnswer
from hypothesis import given, settings
from hypothesis import strategies as st
from mutations import Shot, camera_infos, over_the_wire, raw_image, set_stamp, shot

from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.node import messages, outputs, pipeline

NOW_NS = 1_700_000_000_000_000_000


@pytest.fixture(scope='module')
def engine(tmp_path_factory: pytest.TempPathFactory) -> StereoEngine:
    return fuzz_target.open_engine(tmp_path_factory.mktemp('model'))


@settings(max_examples=200)
@given(rng=st.randoms(use_true_random=False), compressed=st.booleans(), approximate=st.booleans())
def test_damaged_messages_are_refused_or_answered_right(
    engine: StereoEngine, rng: Random, compressed: bool, approximate: bool
) -> None:
    target = FuzzTarget(engine, compressed=compressed, approximate=approximate)
    for _ in range(3):
        target.round(rng)


def good_shot(seed: int) -> Shot:
    """A pair in bgr8 with a cx offset that leaves some pixels without a disparity."""
    rng = Random(seed)
    infos = camera_infos(rng, 12, 16)
    while infos[0].p[2] <= infos[1].p[2]:
        infos = camera_infos(rng, 12, 16)
    made = (raw_image(rng, 'bgr8', 12, 16), raw_image(rng, 'bgr8', 12, 16), *infos)
    return Shot(*(over_the_wire(set_stamp(message, NOW_NS)) for message in made))


def test_a_good_pair_is_published_and_judged(engine: StereoEngine) -> None:
    target = FuzzTarget(engine)
    target.throw(good_shot(0), DEFAULTS)
    assert target.outcomes == {'published': 1}
    assert target.messages == 4


def moved(image: np.ndarray) -> np.ndarray:
    return np.roll(image, 1, axis=1)


def swapped(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[..., ::-1])


def wrapped(module: Any, name: str, change: Any) -> tuple[Any, str, Any]:
    """A function of the node whose answer is changed."""
    original = getattr(module, name)
    return module, name, lambda *args, **options: change(original(*args, **options))


def zero_for_nan(message: Any) -> Any:
    depth = np.nan_to_num(np.frombuffer(message.data, np.float32))
    message.data = depth.tobytes()
    return message


def stamped_now(message: Any) -> Any:
    message.header = type(message.header)(frame_id='optical')
    return message


def invalid_in_window(message: Any) -> Any:
    message.valid_window.width -= 1
    return message


@pytest.mark.parametrize(
    ('sabotage', 'said'),
    [
        (wrapped(pipeline, 'decode_image', moved), 'confidence'),
        (wrapped(pipeline, 'decode_image', swapped), 'colours'),
        (wrapped(pipeline, 'mask_disparity', lambda d: d * np.float32(1.001)), 'disparity'),
        (wrapped(pipeline, 'mask_disparity', lambda d: np.nan_to_num(d, nan=3.0)), 'where there'),
        (wrapped(outputs, 'depth_message', zero_for_nan), 'depth'),
        (wrapped(outputs, 'depth_camera_info', stamped_now), 'header'),
        (wrapped(outputs, 'disparity_message', invalid_in_window), 'valid_window'),
        (
            wrapped(
                pipeline, 'stereo_camera', lambda c: replace(c, baseline_m=1.01 * c.baseline_m)
            ),
            't at',
        ),
    ],
)
def test_a_wrong_answer_is_seen(
    engine: StereoEngine,
    monkeypatch: pytest.MonkeyPatch,
    sabotage: tuple[Any, str, Any],
    said: str,
) -> None:
    monkeypatch.setattr(*sabotage)
    with pytest.raises(WrongAnswer, match=said):
        FuzzTarget(engine).throw(good_shot(0), DEFAULTS)


def test_a_good_image_that_is_refused_is_wrong(
    engine: StereoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(message: Any, side: str) -> None:
        raise pipeline.PairDropped('image', 'no')

    monkeypatch.setattr(pipeline, 'decode', refuse)
    with pytest.raises(WrongAnswer, match='expected published'):
        FuzzTarget(engine).throw(good_shot(0), DEFAULTS)


def test_an_error_the_node_does_not_know_is_a_crash(
    engine: StereoEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, 'image_bytes', None)
    with pytest.raises(Crash, match='TypeError'):
        FuzzTarget(engine).throw(good_shot(0), DEFAULTS)


def test_the_same_seed_throws_the_same_messages() -> None:
    shots = [shot(Random('0/7'), NOW_NS, False) for _ in range(2)]
    assert str(shots[0]) == str(shots[1])


def test_the_command_counts_what_it_threw(tmp_path: Path) -> None:
    tally = fuzz.supervise(seed=1, messages=300, seconds=250, log=tmp_path / 'log')
    assert tally.sound, tally.failures
    assert tally.messages >= 300
    assert tally.outcomes['published'] > 20


def child_running(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> fuzz.Child:
    """A child whose program is `code`."""
    script = tmp_path / 'child.py'
    script.write_text(code)
    monkeypatch.setattr(fuzz, '__file__', str(script))
    return fuzz.Child(0, 0, tmp_path / 'log')


@pytest.mark.parametrize(
    ('code', 'crashes', 'hangs'),
    [('import os; os.abort()', 1, 0), ('import time; time.sleep(600)', 0, 1)],
)
def test_death_and_silence_are_counted_and_the_next_child_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, crashes: int, hangs: int
) -> None:
    monkeypatch.setattr(fuzz, 'HANG_S', 1.0 if hangs else 200.0)
    tally = fuzz.Tally()
    child = child_running(code, monkeypatch, tmp_path)
    following = fuzz.go_on(child, tally, 0, tmp_path / 'log')
    try:
        assert (tally.crashes, tally.hangs) == (crashes, hangs)
        assert not tally.sound
        assert following.next_round == fuzz.ROUNDS_PER_REPORT
        assert child.end() != 0
    finally:
        following.end()
