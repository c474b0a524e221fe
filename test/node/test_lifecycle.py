# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Lifecycle over its services, and the exchange of the model while pairs keep coming."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.parameter import Parameter
from ros_rig import WIDTH, Listener, Rig, camera_infos, textured_pair, wait_until
from sensor_msgs.msg import Image
from tiny_models import write_block_matcher, write_contract_breaker, write_failing_model

from stereo_kd_ros.model import Manifest, write_manifest

CONFIGURE = Transition.TRANSITION_CONFIGURE
ACTIVATE = Transition.TRANSITION_ACTIVATE
DEACTIVATE = Transition.TRANSITION_DEACTIVATE
CLEANUP = Transition.TRANSITION_CLEANUP
SHUTDOWN = Transition.TRANSITION_ACTIVE_SHUTDOWN


def ask(rig: Rig, service: str, kind: type, request: object, patience_s: float = 20.0) -> object:
    """Returns the answer of a service; None when it was lost.

    A service answers once, and drops its answer when it does not know the asking client yet.
    """
    client = rig.peer.create_client(kind, f'/stereo_node/{service}')
    try:
        wait_until(client.service_is_ready)
        future = client.call_async(request)
        with suppress(AssertionError):
            wait_until(future.done, patience_s)
        return future.result() if future.done() else None
    finally:
        rig.peer.destroy_client(client)


def change(rig: Rig, transition: int) -> bool:
    request = ChangeState.Request(transition=Transition(id=transition))
    for _ in range(3):
        before = rig.node.state
        answer = ask(rig, 'change_state', ChangeState, request, patience_s=80.0)
        if answer is not None:
            return answer.success
        if rig.node.state != before:
            return True
    raise AssertionError('change_state does not answer')


def label(rig: Rig) -> str:
    request = GetState.Request()
    return wait_until(lambda: ask(rig, 'get_state', GetState, request)).current_state.label


def test_the_way_there_and_back_twice(block_matcher: str) -> None:
    with Rig(start=False, model=block_matcher) as rig:
        depth = rig.listen('depth/image', Image)
        left, right = textured_pair()
        for round_number in (1, 2):
            assert label(rig) == 'unconfigured'
            assert change(rig, CONFIGURE)
            assert rig.node.inputs is None, 'an inactive node must not subscribe'
            assert rig.values('model')['provider'] == 'cpu'
            assert change(rig, ACTIVATE)
            rig.ready(depth)
            rig.camera.send(left, right, round_number, camera_infos())
            assert depth.next().header.stamp.nanosec == round_number
            assert change(rig, DEACTIVATE)
            assert rig.values('model')['provider'] == 'cpu', 'the model must stay warm'
            assert rig.values('pipeline')['state'] == 'inactive'
            wait_until(lambda: not rig.camera.left.get_subscription_count())
            assert change(rig, CLEANUP)
            assert 'provider' not in rig.values('model')
        assert rig.values('pipeline')['pairs_published'] == '2'


def test_shutdown_from_active_ends_in_finalized(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:
        assert change(rig, SHUTDOWN)
        assert label(rig) == 'finalized'
        assert rig.node.inputs is None


def test_a_missing_model_leaves_it_unconfigured_until_it_is_there(
    block_matcher: str, tmp_path: Path
) -> None:
    path = tmp_path / 'late.onnx'
    with Rig(start=False, model=str(path)) as rig:
        assert not change(rig, CONFIGURE)
        assert label(rig) == 'unconfigured'
        assert 'does not exist' in rig.status('model').message
        path.write_bytes(Path(block_matcher).read_bytes())
        assert change(rig, CONFIGURE)
        assert change(rig, ACTIVATE)


def test_what_is_read_at_configure_may_change_before_it(block_matcher: str) -> None:
    with Rig(start=False, model='no such model') as rig:
        results = rig.node.set_parameters(
            [Parameter('model', value=block_matcher), Parameter('queue_size', value=3)]
        )
        assert all(result.successful for result in results)
        assert change(rig, CONFIGURE)


@contextmanager
def streaming(rig: Rig, depth: Listener) -> Iterator[None]:
    """Sends a pair each time the last one has come back, so that none may be superseded."""
    stop = threading.Event()

    def stream() -> None:
        left, right = textured_pair()
        stamp_ns = 0
        while not stop.is_set():
            stamp_ns += 1_000_000
            rig.camera.send(left, right, stamp_ns, camera_infos())
            try:
                wait_until(lambda stamp_ns=stamp_ns: nanoseconds(depth)[-1:] == [stamp_ns])
            except AssertionError as error:
                lost.append(f'pair {stamp_ns}: {error}')
                return
            time.sleep(0.005)

    lost: list[str] = []
    thread = threading.Thread(target=stream)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
    assert not lost


def nanoseconds(depth: Listener) -> list[int]:
    return [m.header.stamp.sec * 1_000_000_000 + m.header.stamp.nanosec for m in depth.messages]


def set_model(rig: Rig, model: str | Path) -> object:
    (result,) = rig.node.set_parameters([Parameter('model', value=str(model))])
    return result


def test_the_model_is_exchanged_without_losing_a_pair(block_matcher: str, tmp_path: Path) -> None:
    other = write_block_matcher(tmp_path / 'other.onnx', max_disparity_px=24, name='other')
    with Rig(model=block_matcher) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        with streaming(rig, depth):
            wait_until(lambda: len(depth.messages) > 5)
            assert set_model(rig, other).successful
            wait_until(lambda: rig.values('model')['model_switch'] == f'switched to {other}')
            published = len(depth.messages)
            wait_until(lambda: len(depth.messages) > published + 5)
        assert rig.values('model')['model_name'] == 'other'
        assert np.all(np.diff(nanoseconds(depth)) == 1_000_000), 'every pair must come back'
        assert rig.node.get_parameter('model').value == str(other)


@pytest.mark.parametrize('kind', ['missing', 'corrupt', 'contract', 'runtime'])
def test_a_model_that_does_not_work_is_rolled_back(
    block_matcher: str, tmp_path: Path, kind: str
) -> None:
    bad = tmp_path / 'bad.onnx'
    if kind == 'corrupt':
        bad.write_bytes(b'not a model')
    elif kind == 'contract':
        write_contract_breaker(bad)
    elif kind == 'runtime':
        write_failing_model(bad, max_width_px=32)
    with Rig(model=block_matcher) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        with streaming(rig, depth):
            wait_until(lambda: len(depth.messages) > 2)
            result = set_model(rig, bad)
            if result.successful:
                wait_until(lambda: 'rolled back' in rig.values('model')['model_switch'])
            else:
                assert 'bad.onnx' in result.reason
            assert kind != 'missing' or not result.successful
            published = len(depth.messages)
            wait_until(lambda: len(depth.messages) > published + 2)
        wait_until(lambda: rig.node.get_parameter('model').value == block_matcher)
        assert rig.values('model')['model_name'] == 'block_matcher'
        assert np.all(np.diff(nanoseconds(depth)) == 1_000_000)


def test_a_switch_that_fails_before_its_request_is_stored_leaves_the_old_name(
    block_matcher: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = write_failing_model(tmp_path / 'bad.onnx', max_width_px=32)
    with Rig(model=block_matcher) as rig:
        begin_switch = rig.node.models.begin_switch

        def fail_first(name: str) -> None:
            begin_switch(name)
            wait_until(lambda: 'rolled back' in rig.node.models.last_switch)
            time.sleep(0.2)

        monkeypatch.setattr(rig.node.models, 'begin_switch', fail_first)
        assert set_model(rig, bad).successful
        wait_until(lambda: rig.node.get_parameter('model').value == block_matcher)
        assert rig.node.settings.model == block_matcher


def test_a_model_that_fails_on_its_first_real_pair_is_rolled_back(
    block_matcher: str, tmp_path: Path
) -> None:
    # Works at the warm-up's size, before any camera is known, and on no other.
    picky = write_failing_model(tmp_path / 'picky.onnx', max_width_px=32)
    with Rig(model=block_matcher, warm_up_width=32, warm_up_height=32) as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready(depth)
        assert set_model(rig, picky).successful
        wait_until(lambda: rig.values('model').get('model') == str(picky))
        left, right = textured_pair()
        rig.camera.send(left, right, 1, camera_infos())
        wait_until(lambda: rig.node.counts()['dropped_inference'] == 1)
        rig.camera.send(left, right, 2, camera_infos())
        assert depth.next().header.stamp.nanosec == 2
        assert rig.node.get_parameter('model').value == block_matcher


def test_a_missing_sync_backend_fails_the_configuration(
    block_matcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, 'message_filters', None)
    with Rig(start=False, model=block_matcher, sync_backend='message_filters') as rig:
        assert not rig.node.start()
        assert 'sync_backend builtin' in rig.node.start_error


def test_a_model_of_another_size_than_the_warm_up_starts_with_a_warning(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    manifest = Manifest(name='large', input_limits={'min_width': 4 * WIDTH})
    path = write_block_matcher(tmp_path / 'large.onnx')
    write_manifest(path, manifest)
    with Rig(model=str(path)):
        assert 'set warm_up_width' in capfd.readouterr().err


def test_a_configuration_that_fails_half_way_frees_what_it_had_loaded(block_matcher: str) -> None:
    with Rig(start=False, model=block_matcher, auto_model='no such model') as rig:
        assert not rig.node.start()
        assert 'no such model' in rig.node.start_error
        assert 'provider' not in rig.values('model')
        assert rig.node.set_parameters([Parameter('auto_model', value='')])[0].successful
        assert rig.node.start()
        assert rig.status('model').message == 'runs on cpu'
