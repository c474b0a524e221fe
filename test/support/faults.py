# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Named faults, injected into the real node over real DDS.

Each fault must be answered by the right counter and the right words (both may be none), and the
node must give the right depth again afterwards. `make faults` runs these and those that need a
process boundary (test/hostile/process_faults.py), and prints the table.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from rcl_interfaces.msg import Log
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from ros_rig import (
    BASELINE_M,
    FX_PX,
    HEIGHT,
    WIDTH,
    Camera,
    Rig,
    as_message,
    camera_infos,
    stamped,
    textured_pair,
    wait_until,
)
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image
from stereo_msgs.msg import DisparityImage
from tiny_models import write_block_matcher, write_failing_model

DISPARITY_PX = 5
TALLEST_PX = 100
PERIOD_NS = 33_000_000
# A burst may reach a busy node in pieces, so that what it should count does not come about.
ATTEMPTS, ANSWER_S = 4, 20.0
END_S = 120.0
START_NS = 1_700_000_000_000_000_000


class Patient:
    """A running node, a camera that sends right pairs on demand, and the node's log."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.depth = rig.listen('depth/image', Image)
        self._log = rig.listen('/rosout', Log)
        self.stamp_ns = START_NS
        rig.ready(self.depth)

    def send(self, **changes: Any) -> int:
        """Sends one pair, right but for `left`, `right`, `infos`, and returns its stamp."""
        self.stamp_ns += PERIOD_NS
        left, right = textured_pair(DISPARITY_PX)
        pair = {'left': left, 'right': right, 'infos': camera_infos(), **changes}
        self.rig.camera.send(stamp_ns=self.stamp_ns, **pair)
        return self.stamp_ns

    def require_healthy(self, fx: float = FX_PX) -> None:
        """Sends right pairs until the depth of one of them comes back, and checks it."""
        sent = []

        def answered() -> Image | None:
            sent.append(self.send(infos=camera_infos(fx=fx)))
            time.sleep(0.03)
            return next((m for m in self.depth.messages[-5:] if stamp_of(m) in sent), None)

        message = wait_until(answered)
        assert (message.height, message.width) == (HEIGHT, WIDTH)
        depth_m = np.frombuffer(message.data, np.float32).reshape(HEIGHT, WIDTH)
        np.testing.assert_allclose(depth_m[4:-4, 9:-4], fx * BASELINE_M / DISPARITY_PX, rtol=1e-6)

    def send_and_wait(self) -> int:
        """Sends one right pair, waits for its depth, and returns its stamp.

        It is the newest there is: whatever was sent before has been paired or left behind.
        """
        stamp_ns = self.send()
        wait_until(lambda: self.newest_depth_ns() == stamp_ns)
        return stamp_ns

    def newest_depth_ns(self) -> int:
        """Returns the stamp of the last depth that came back; 0 before the first."""
        return stamp_of(self.depth.messages[-1]) if self.depth.messages else 0

    def count(self, name: str) -> int:
        """Returns a counter of the node."""
        return self.rig.node.counts()[name]

    def said(self, text: str) -> bool:
        """Whether the node has logged this."""
        return any(text in record.msg for record in self._log.messages)

    def forget(self) -> None:
        """Forgets the log and its throttle, so that the next fault is heard."""
        self._log.messages.clear()
        self.rig.node.log_throttle.clear()


def stamp_of(message: Any) -> int:
    """Returns a message's stamp in nanoseconds."""
    return message.header.stamp.sec * 1_000_000_000 + message.header.stamp.nanosec


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        inject: Does it.
        counter: What must be counted, or empty.
        says: What must be logged, or empty.
        parameters: Of the node, beyond the model.
    """

    name: str
    inject: Callable[[Patient], None]
    counter: str = ''
    says: str = ''
    parameters: dict[str, Any] = field(default_factory=dict)


def changed(**values: Any) -> Image:
    """The right image with some of its fields overwritten."""
    message = as_message(textured_pair(DISPARITY_PX)[1])
    for name, value in values.items():
        setattr(message, name, value)
    return message


def bad_right(**values: Any) -> Callable[[Patient], None]:
    """A right image with some of its fields overwritten."""
    return lambda patient: patient.send(right=changed(**values)) and None


def bad_info(side: int, **values: Any) -> Callable[[Patient], None]:
    """A camera_info with some of its fields overwritten."""

    def inject(patient: Patient) -> None:
        infos = camera_infos()
        for name, value in values.items():
            setattr(infos[side], name, value)
        patient.send(infos=infos)

    return inject


def projection(fx: float, tx: float) -> list[float]:
    """A projection matrix."""
    return [fx, 0.0, WIDTH / 2, tx, 0.0, fx, HEIGHT / 2, 0.0, 0.0, 0.0, 1.0, 0.0]


def other_size(patient: Patient) -> None:
    """Both eyes and their calibration change size; the output must follow."""
    left, right = textured_pair(DISPARITY_PX, HEIGHT + 16, WIDTH + 32)
    infos = camera_infos(HEIGHT + 16, WIDTH + 32)
    stamp_ns = patient.send(left=left, right=right, infos=infos)
    wait_until(lambda: patient.newest_depth_ns() == stamp_ns)
    assert patient.depth.messages[-1].width == WIDTH + 32


def other_focal_length(patient: Patient) -> None:
    """The camera zooms; depth must follow at once."""
    patient.require_healthy(fx=2 * FX_PX)


def right_frame_differs(patient: Patient) -> None:
    """The right eye has a frame of its own."""
    patient.stamp_ns += PERIOD_NS
    left, right = textured_pair(DISPARITY_PX)
    right = stamped(as_message(right), patient.stamp_ns, 'right_optical')
    patient.rig.camera.send(left, right, patient.stamp_ns, camera_infos())


def jump(seconds: float) -> Callable[[Patient], None]:
    """All stamps move at once, and stay there."""

    def inject(patient: Patient) -> None:
        patient.send()
        patient.stamp_ns += round(seconds * 1e9)

    return inject


def stray_future_stamp(patient: Patient) -> None:
    """One left image is stamped an hour ahead."""
    patient.rig.camera.send_left(textured_pair()[0], patient.stamp_ns + 3_600_000_000_000)


def backward_stamp(patient: Patient) -> None:
    """One left image comes late, after newer pairs."""
    late_ns = patient.send() - 1
    for _ in range(3):
        patient.send_and_wait()
    patient.rig.camera.send_left(textured_pair()[0], late_ns)


def duplicate_stamp(patient: Patient) -> None:
    """A left image comes twice."""
    stamp_ns = patient.send_and_wait()
    patient.rig.camera.send_left(textured_pair()[0], stamp_ns)


def eye_dies(patient: Patient) -> None:
    """The right eye stops for 30 frames."""
    for _ in range(30):
        patient.stamp_ns += PERIOD_NS
        patient.rig.camera.send_left(textured_pair()[0], patient.stamp_ns)
        time.sleep(0.01)


def eyes_drift_apart(patient: Patient) -> None:
    """The right stamps run slowly away until the node names and counts it."""
    left, right = textured_pair(DISPARITY_PX)
    drift_ns, before = 0, patient.count('dropped_unmatched_left')

    def named() -> bool:
        nonlocal drift_ns
        # Up to half a period, or they would meet the next frame.
        drift_ns = min(drift_ns + 100_000, PERIOD_NS // 2)
        patient.stamp_ns += PERIOD_NS
        patient.rig.camera.send(
            left, right, patient.stamp_ns, camera_infos(), patient.stamp_ns + drift_ns
        )
        time.sleep(0.03)
        # Said after half a second, and counted when the queue is full, whichever comes first.
        counted = patient.count('dropped_unmatched_left') > before
        return counted and patient.said('stamps_apart')

    wait_until(named)


def bag_loops(patient: Patient) -> None:
    """The same 20 stamps three times over, the right eye two frames short; most must pair."""
    first_ns = patient.send_and_wait()
    left, right = textured_pair(DISPARITY_PX)
    before = patient.count('pairs_received')
    received = patient.rig.node.inputs.received
    for _ in range(3):
        for frame in range(20):
            patient.stamp_ns = first_ns + (frame + 1) * PERIOD_NS
            due = {'left_image': received['left_image'] + 1}
            if frame < 18:
                due['right_image'] = received['right_image'] + 1
                patient.rig.camera.send(left, right, patient.stamp_ns, camera_infos())
            else:
                patient.rig.camera.send_left(left, patient.stamp_ns)
            # At the pace of the node: its queue of five must not overflow.
            wait_until(lambda due=due: all(received[name] >= n for name, n in due.items()))
    wait_until(lambda: patient.count('pairs_received') - before >= 48)


def simulated_clock_jumps(patient: Patient) -> None:
    """With use_sim_time and max_age, /clock and the stamps jump back by an hour."""
    clock = patient.rig.peer.create_publisher(Clock, '/clock', 10)
    wait_until(clock.get_subscription_count)
    for now_ns in (patient.stamp_ns + 10**9, patient.stamp_ns - 3600 * 10**9):
        sec, nanosec = divmod(now_ns, 10**9)
        tick = Clock(clock=Time(sec=sec, nanosec=nanosec))

        def ticked(now_ns: int = now_ns, tick: Clock = tick) -> bool:
            clock.publish(tick)  # to best effort, so again and again
            return patient.rig.node.get_clock().now().nanoseconds == now_ns

        wait_until(ticked)
        patient.stamp_ns = now_ns
        patient.require_healthy()


def model_file_deleted(patient: Patient) -> None:
    """The model's file vanishes; what is loaded must go on."""
    Path(patient.rig.node.settings.model).unlink()


def model_file_damaged(patient: Patient) -> None:
    """Another model is asked for whose file is rubbish; the old one must stay."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'rubbish.onnx'
        write_failing_model(path)
        path.write_bytes(path.read_bytes()[:-200])
        (result,) = patient.rig.node.set_parameters([Parameter('model', value=str(path))])
        if result.successful:
            wait_until(lambda: patient.said('the model stays'))
        else:
            assert 'rubbish.onnx' in result.reason


def model_fails_at_run_time(patient: Patient) -> None:
    """ONNX Runtime fails in the middle of the graph."""
    left, right = textured_pair(DISPARITY_PX, 2 * TALLEST_PX, WIDTH)
    patient.send(left=left, right=right, infos=camera_infos(2 * TALLEST_PX, WIDTH))


def parameter_storm(patient: Patient) -> None:
    """300 changes, half of them refused, while pairs come in."""
    for number in range(300):
        name, value = [
            ('max_depth', 5.0 + number),
            ('max_depth', -1.0),
            ('queue_size', number + 20),
        ][number % 3]
        (result,) = patient.rig.node.set_parameters([Parameter(name, value=value)])
        assert result.successful == (number % 3 == 0)
        if number % 20 == 0:
            patient.send()
    patient.rig.node.set_parameters([Parameter('max_depth', value=float('inf'))])


def subscriber_churn(patient: Patient) -> None:
    """Subscribers of another output come and go while pairs come in."""
    for _ in range(20):
        listener = patient.rig.listen('disparity', DisparityImage)
        patient.send()
        time.sleep(0.02)
        patient.rig.peer.destroy_subscription(listener.subscription)


def slow_subscriber(patient: Patient) -> None:
    """A reliable subscriber of depth one that sleeps in its callback."""
    qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
    slow = patient.rig.peer.create_subscription(
        Image, 'confidence', lambda m: time.sleep(0.2), qos
    )
    before = patient.count('pairs_published')

    def goes_on() -> bool:
        patient.send()
        time.sleep(0.03)
        return patient.count('pairs_published') >= before + 10

    wait_until(goes_on)
    patient.rig.peer.destroy_subscription(slow)


def camera_restarts(patient: Patient) -> None:
    """The camera's publishers vanish and come back, their clock at zero."""
    for publisher in patient.rig.camera.publishers():
        patient.rig.peer.destroy_publisher(publisher)
    patient.rig.camera = Camera(patient.rig.peer)
    patient.rig.ready()
    patient.stamp_ns = 10**9


def info_stops(patient: Patient) -> None:
    """camera_info stops while images go on: the last one counts."""
    for _ in range(5):
        patient.send(infos=None)
        time.sleep(0.05)


def everybody_leaves(patient: Patient) -> None:
    """The only subscriber leaves; nothing may be computed until one is back."""
    rig = patient.rig
    rig.peer.destroy_subscription(patient.depth.subscription)
    wait_until(lambda: not rig.node.outputs.wanted(lazy=True))
    patient.send()
    wait_until(lambda: patient.count('dropped_no_subscriber'))
    patient.depth = rig.listen('depth/image', Image)
    rig.ready(patient.depth)


def flood(patient: Patient) -> None:
    """Pairs come as fast as DDS carries them: the newest wins, nothing queues."""
    left, right = (as_message(image) for image in textured_pair(DISPARITY_PX))
    infos = camera_infos()
    for _ in range(300):
        patient.stamp_ns += 1000
        patient.rig.camera.send(left, right, patient.stamp_ns, infos)
    newest_ns = patient.stamp_ns
    wait_until(lambda: patient.newest_depth_ns() == newest_ns)


def signals(*numbers: signal.Signals) -> Callable[[Patient], None]:
    """A node in a process of its own gets signals, and must end cleanly."""

    def inject(patient: Patient) -> None:
        command = [sys.executable, '-m', 'stereo_kd_ros.node.main', '--ros-args']
        command += ['-p', 'provider:=cpu', '-p', f'model:={patient.rig.node.settings.model}']
        command += ['-p', f'warm_up_width:={WIDTH}', '-p', f'warm_up_height:={HEIGHT}']
        command += ['-r', 'stereo_node:__ns:=/other']
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            started = next((line for line in process.stderr if 'runs on cpu' in line), '')
            assert started, 'the node did not start'
            for number in numbers:
                process.send_signal(number)
                time.sleep(0.02)
            _, errors = process.communicate(timeout=END_S)
        finally:
            process.kill()
            process.wait()
        assert process.returncode == 0, f'exit code {process.returncode}: {errors}'
        assert 'Traceback' not in errors

    return inject


FAULTS = [
    Fault('SIGTERM', signals(signal.SIGTERM)),
    Fault('SIGINT twice', signals(signal.SIGINT, signal.SIGINT)),
    Fault('wrong encoding', bad_right(encoding='rgb9'), 'dropped_image', "'rgb9'"),
    Fault('step too short', bad_right(step=10), 'dropped_image', 'step is 10'),
    Fault('step too long', bad_right(step=4096), 'dropped_image', 'expected 196608'),
    Fault('truncated data', bad_right(data=b'\0' * 99), 'dropped_image', 'data has 99 bytes'),
    Fault(
        'over-long data',
        bad_right(data=b'\0' * (HEIGHT * WIDTH * 3 + 1)),
        'dropped_image',
        'expected 9216',
    ),
    Fault('no data', bad_right(data=b''), 'dropped_image', 'data has 0 bytes'),
    Fault('zero size', bad_right(height=0, width=0), 'dropped_image', '0x0'),
    Fault('absurd size', bad_right(height=2**31, width=2**31), 'dropped_image', 'step is'),
    Fault('size changes mid-stream', other_size),
    Fault(
        'left and right differ in size',
        lambda patient: patient.send(right=textured_pair(width=WIDTH - 8)[1]) and None,
        'dropped_size_mismatch',
        'both eyes must deliver the same size',
    ),
    Fault(
        'camera_info of another size',
        lambda patient: patient.send(infos=camera_infos(width=2 * WIDTH)) and None,
        'dropped_size_mismatch',
        'describes 128x48',
    ),
    Fault('K zero', bad_info(0, k=[0.0] * 9), 'dropped_calibration', 'uncalibrated'),
    Fault('P zero', bad_info(1, p=[0.0] * 12), 'dropped_calibration', 'right'),
    Fault(
        'P not a number',
        bad_info(1, p=projection(float('nan'), -20.0)),
        'dropped_calibration',
        'nan',
    ),
    Fault('Tx zero', bad_info(1, p=projection(FX_PX, 0.0)), 'dropped_calibration', 'Tx'),
    Fault('Tx positive', bad_info(1, p=projection(FX_PX, 20.0)), 'dropped_calibration', 'swapped'),
    Fault(
        'focal lengths differ', bad_info(1, p=projection(90.0, -18.0)), 'dropped_calibration', 'fx'
    ),
    Fault('camera_info changes', other_focal_length),
    Fault('camera_info stops', info_stops),
    Fault('frame ids differ', right_frame_differs, says="right images in 'right_optical'"),
    Fault('one stamp in the future', stray_future_stamp),
    Fault('all stamps jump ahead', jump(3600.0)),
    Fault('all stamps jump back', jump(-3600.0)),
    Fault('a late image', backward_stamp, 'dropped_backward'),
    Fault('an image twice', duplicate_stamp, 'dropped_duplicate'),
    Fault('one eye dies and comes back', eye_dies, 'dropped_unmatched_left'),
    Fault(
        'eyes drift apart',
        eyes_drift_apart,
        'dropped_unmatched_left',
        'ms apart at best',
        {'silence_timeout': 0.5},
    ),
    Fault('bag loops', bag_loops, 'clock_jumps'),
    Fault(
        'simulated clock jumps back',
        simulated_clock_jumps,
        parameters={'use_sim_time': True, 'max_age': 5.0},
    ),
    Fault('model file deleted', model_file_deleted),
    Fault('model switched to a damaged file', model_file_damaged),
    Fault('model fails mid-run', model_fails_at_run_time, 'dropped_inference', 'inference'),
    Fault('parameter storm', parameter_storm),
    Fault('subscriber churn', subscriber_churn),
    Fault('slow subscriber', slow_subscriber),
    Fault('last subscriber leaves', everybody_leaves, 'dropped_no_subscriber'),
    Fault('camera restarts', camera_restarts),
    Fault('flood of pairs', flood, 'dropped_superseded'),
]


@contextmanager
def patient_with(parameters: dict[str, Any]) -> Iterator[Patient]:
    """A healthy node with a model file of its own."""
    with tempfile.TemporaryDirectory() as folder:
        model = write_block_matcher(Path(folder) / 'model.onnx', fails_above_px=TALLEST_PX)
        with Rig(model=str(model), **parameters) as rig:
            patient = Patient(rig)
            patient.require_healthy()
            yield patient


def survive(fault: Fault, patient: Patient) -> None:
    """Injects a fault; raises AssertionError when it is not answered or not recovered from."""
    patient.forget()
    before = patient.count(fault.counter)
    for _ in range(ATTEMPTS):
        fault.inject(patient)
        with suppress(AssertionError):
            wait_until(lambda: answered(fault, patient, before), ANSWER_S)
            break
    else:
        raise AssertionError(f'not answered by {fault.counter} and {fault.says!r}')
    patient.require_healthy()


def answered(fault: Fault, patient: Patient, before: int) -> bool:
    """Whether the fault has been counted and named."""
    counted = not fault.counter or patient.count(fault.counter) > before
    return counted and (not fault.says or patient.said(fault.says))


class Ward:
    """Keeps one patient, and takes in another when a fault needs other parameters."""

    def __init__(self) -> None:
        self._patient: Patient | None = None
        self._parameters: dict[str, Any] = {}
        self._stay = ExitStack()

    def __enter__(self) -> Ward:
        return self

    def __exit__(self, *error: object) -> None:
        self._stay.close()

    def treat(self, fault: Fault) -> None:
        """Injects a fault; raises what `survive` raises, and then takes a new patient."""
        try:
            survive(fault, self._admit(fault.parameters))
        except BaseException:
            self._discharge()
            raise

    def _admit(self, parameters: dict[str, Any]) -> Patient:
        if self._patient is None or self._parameters != parameters:
            self._discharge()
            self._parameters = parameters
            self._patient = self._stay.enter_context(patient_with(parameters))
        return self._patient

    def _discharge(self) -> None:
        self._patient = None
        self._stay.close()


def run_all(faults: list[Fault]) -> list[tuple[Fault, float, str]]:
    """Injects faults one after the other.

    Returns:
        The fault, the seconds it took, and why it was not survived (empty when it was).
    """
    results = []
    with Ward() as ward:
        for fault in faults:
            began_s, reason = time.monotonic(), ''
            try:
                ward.treat(fault)
            except Exception:
                reason = traceback.format_exc().strip().split('\n')[-1]
            results.append((fault, time.monotonic() - began_s, reason))
    return results
