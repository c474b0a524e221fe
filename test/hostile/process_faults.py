# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Faults that need a process boundary: kills, freezes, full disks, no memory, over real DDS.

They complete the table of `faults.py` in test/support, and are answered the same way: the right
counter (off /diagnostics), the right words (off /rosout) and the right depth again afterwards.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from faults import DISPARITY_PX, PERIOD_NS, Fault, Patient, bad_info, projection
from rclpy.context import Context
from rclpy.node import Node
from rclpy.serialization import serialize_message
from rclpy.signals import SignalHandlerOptions
from ros_rig import (
    HEIGHT,
    RELIABLE,
    WIDTH,
    Camera,
    Listener,
    Spinner,
    as_message,
    camera_infos,
    next_domain_id,
    stamped,
    textured_pair,
    wait_until,
)
from tiny_models import write_block_matcher

from stereo_kd_ros.bag import StereoBagWriter, StereoTopics
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.transport import apply_fastdds_profile

START_S = 200.0
END_S = 100.0
# What the node may still allocate when memory runs out: enough for small pairs.
SPARE_BYTES = 48 * 2**20
LARGE = (960, 1280)
# A process that subscribes, says when the first message is there, and never ends.
SUBSCRIBER = """
import rclpy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node('subscriber')
node.create_subscription(Image, 'depth/image', lambda m: print('heard', flush=True), 5)
rclpy.spin(node)
"""


class NodeProcess:
    """`stereo_node` as a process; its stderr is kept."""

    def __init__(
        self, model: Path, environ: dict[str, str], prepare: Callable[[], None] | None = None
    ) -> None:
        parameters = {
            'provider': 'cpu',
            'threads': 1,
            'model': str(model),
            'warm_up_width': WIDTH,
            'warm_up_height': HEIGHT,
        }
        command = [sys.executable, '-m', 'stereo_kd_ros.node.main', '--ros-args']
        for name, value in parameters.items():
            command += ['-p', f'{name}:={value}']
        self.said: deque[str] = deque(maxlen=200)
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, env=environ, preexec_fn=prepare
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.said.append(line)

    def wait_until_it_runs(self) -> None:
        """Waits until the model is loaded; fails when the process ends first."""

        def runs() -> bool:
            assert self.process.poll() is None, f'the node ended: {"".join(self.said)[-2000:]}'
            return any('runs on cpu' in line for line in list(self.said))

        wait_until(runs, START_S)

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        self.process.send_signal(number)

    def end(self) -> None:
        """Ends it, whatever it does."""
        self.process.kill()
        self.process.wait()
        self._reader.join()


class ProcessRig:
    """A camera here, and a node in a process of its own that can be started again."""

    def __init__(self, model: Path) -> None:
        self.model = model
        domain_id = next_domain_id()
        self.environ = {**os.environ, 'ROS_DOMAIN_ID': str(domain_id)}
        self.environ['PYTHONPATH'] = os.pathsep.join(filter(None, sys.path))
        self._context = Context()
        rclpy.init(
            args=[],
            context=self._context,
            domain_id=domain_id,
            signal_handler_options=SignalHandlerOptions.NO,
        )
        self.peer = Node('peer', context=self._context)
        self.camera = Camera(self.peer)
        self.diagnostics = self.listen('/diagnostics', DiagnosticArray)
        self._spinner = Spinner(self.peer)
        self.node = NodeProcess(model, self.environ)
        try:
            self.node.wait_until_it_runs()
        except BaseException:
            self.close()
            raise

    def listen(self, topic: str, message_type: type, qos: Any = RELIABLE) -> Listener:
        """Subscribes to an output of the node."""
        return Listener(self.peer, topic, message_type, qos)

    def ready(self, *listeners: Listener) -> None:
        """Waits until the node hears the camera; outputs match while pairs are sent."""
        wait_until(lambda: all(p.get_subscription_count() for p in self.camera.publishers()))

    def restart(self, prepare: Callable[[], None] | None = None, **environ: str) -> None:
        """Ends the node, if it has not ended, and starts another."""
        self.node.end()
        # What the old one counted says nothing of the new one.
        self.diagnostics.messages.clear()
        self.node = NodeProcess(self.model, {**self.environ, **environ}, prepare)
        self.node.wait_until_it_runs()

    def close(self) -> None:
        """Ends everything."""
        self.node.end()
        self._spinner.close()
        self.peer.destroy_node()
        # As in `Rig`: nothing may be left to a later garbage collection.
        del self._spinner, self.peer, self.camera, self.diagnostics
        gc.collect()
        self._context.try_shutdown()


class ProcessPatient(Patient):
    """A patient of which only topics and signals are in reach."""

    rig: ProcessRig

    def count(self, name: str) -> int:
        """Returns a counter of the newest diagnostics; 0 before the first."""
        for array in reversed(self.rig.diagnostics.messages):
            for status in array.status:
                if status.name.endswith(': pipeline'):
                    return int({pair.key: pair.value for pair in status.values}.get(name, 0))
        return 0

    def forget(self) -> None:
        """Forgets the log; the node's throttle of five seconds stays."""
        self._log.messages.clear()

    @contextmanager
    def pairs_pouring_in(self, pause_s: float = 0.01) -> Iterator[None]:
        """Sends pairs in a thread meanwhile."""
        stop = threading.Event()

        def pour() -> None:
            while not stop.wait(pause_s):
                self.send()

        thread = threading.Thread(target=pour)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def node_killed(patient: ProcessPatient) -> None:
    """SIGKILL in full flow; a new one takes over."""
    with patient.pairs_pouring_in():
        time.sleep(0.2)
        patient.rig.node.send(signal.SIGKILL)
        patient.rig.restart()


def node_frozen(patient: ProcessPatient) -> None:
    """The node gets no processor for two seconds, while pairs go on."""
    with patient.pairs_pouring_in():
        patient.rig.node.send(signal.SIGSTOP)
        time.sleep(2.0)
        patient.rig.node.send(signal.SIGCONT)


def ended_in_full_flow(*signals: signal.Signals) -> Callable[[ProcessPatient], None]:
    """Signals while pairs pour in: it must end by itself, with 0, and say nothing of a crash."""

    def inject(patient: ProcessPatient) -> None:
        process = patient.rig.node.process
        with patient.pairs_pouring_in():
            time.sleep(0.2)
            for number in signals:
                process.send_signal(number)
                time.sleep(0.02)
            process.wait(END_S)
        said = ''.join(patient.rig.node.said)
        assert process.returncode == 0, f'exit code {process.returncode}: {said[-1000:]}'
        assert 'Traceback' not in said
        patient.rig.restart()

    return inject


def camera_killed(patient: ProcessPatient) -> None:
    """A camera process dies in mid-flow; another camera, of an older clock, takes over."""
    with tempfile.TemporaryDirectory() as folder:
        bag, log = Path(folder) / 'bag', Path(folder) / 'sent.txt'
        camera = StereoCamera.from_intrinsics(100.0, 0.2, WIDTH, HEIGHT)
        left, right = textured_pair(DISPARITY_PX)
        with StereoBagWriter(bag, topics=StereoTopics.in_namespace()) as writer:
            for frame in range(90):
                writer.write_pair(10**9 + frame * 33_000_000, left, right, camera)
        before = patient.count('pairs_published')
        command = [sys.executable, str(Path(__file__).with_name('soak.py')), '--play', str(bag)]
        command += ['--log', str(log), '--seconds', '60']
        with ended(subprocess.Popen(command, env=patient.rig.environ)):
            wait_until(lambda: patient.count('pairs_published') > before + 10, START_S)


@contextmanager
def ended(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """Kills a process in the end, frozen or not."""
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextmanager
def subscriber(patient: ProcessPatient) -> Iterator[subprocess.Popen[str]]:
    """A process that receives depth; it is killed in the end."""
    command = [sys.executable, '-c', SUBSCRIBER]
    process = subprocess.Popen(command, env=patient.rig.environ, stdout=subprocess.PIPE, text=True)
    with ended(process), patient.pairs_pouring_in(0.03):
        assert process.stdout.readline() == 'heard\n'
        yield process


def subscriber_killed(patient: ProcessPatient) -> None:
    """A subscriber dies without a word, in full flow."""
    with subscriber(patient) as process:
        process.kill()
        require_flow(patient)


def subscriber_frozen(patient: ProcessPatient) -> None:
    """A reliable subscriber stops reading and acknowledging; the others must not wait for it."""
    with subscriber(patient) as process:
        process.send_signal(signal.SIGSTOP)
        require_flow(patient)


def require_flow(patient: ProcessPatient) -> None:
    """Waits until 30 more depth images have come."""
    before = len(patient.depth.messages)
    wait_until(lambda: len(patient.depth.messages) >= before + 30)


def no_bytes_left() -> None:
    """Lets this process write no byte to any file, as on a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def disk_full(patient: ProcessPatient) -> None:
    """Not a byte can be written: no log, no cache, no shared memory."""
    patient.rig.restart(no_bytes_left)
    patient.require_healthy()
    patient.rig.restart()


def no_home(patient: ProcessPatient) -> None:
    """Home and cache folders cannot be made."""
    nowhere = '/proc/nowhere'
    patient.rig.restart(XDG_CACHE_HOME=nowhere, HOME=nowhere, ROS_LOG_DIR=tempfile.gettempdir())
    patient.require_healthy()
    patient.rig.restart()


def out_of_memory(patient: ProcessPatient) -> None:
    """Memory runs out in the middle of a large inference; small ones must go on without more."""
    pid = patient.rig.node.process.pid
    pages = int(Path(f'/proc/{pid}/statm').read_text().split()[0])
    limit = pages * resource.getpagesize() + SPARE_BYTES
    resource.prlimit(pid, resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    left, right = textured_pair(DISPARITY_PX, *LARGE)
    infos = camera_infos(*LARGE)
    before = patient.count('dropped_inference')

    def dropped() -> bool:
        patient.send(left=left, right=right, infos=infos)
        time.sleep(0.1)
        return patient.count('dropped_inference') > before

    wait_until(dropped)
    patient.require_healthy()
    resource.prlimit(pid, resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)


def model_file_replaced(patient: ProcessPatient) -> None:
    """Rubbish is written over the model's file in place; what is loaded must go on."""
    good = patient.rig.model.read_bytes()
    try:
        patient.rig.model.write_bytes(b'\xff' * len(good))
        patient.require_healthy()
    finally:
        patient.rig.model.write_bytes(good)


def damaged_on_the_wire(patient: ProcessPatient) -> None:
    """Messages cut off, with absurd lengths, and with flipped bits.

    The middleware throws most of them away before the node could count them.
    """
    rng = Random(0)
    camera, infos, images = patient.rig.camera, camera_infos(), textured_pair(DISPARITY_PX)
    good = (*infos, *(as_message(image) for image in images))
    publishers = (camera.left_info, camera.right_info, camera.left, camera.right)
    for number in range(60):
        patient.stamp_ns += PERIOD_NS
        for publisher, message in zip(publishers, good):
            data = bytearray(serialize_message(stamped(message, patient.stamp_ns)))
            if number % 3 == 0:
                data = data[: rng.randrange(len(data))]
            elif number % 3 == 1:
                place = 4 * rng.randrange(1, 20)
                data[place : place + 4] = b'\xff' * 4
            else:
                data[rng.randrange(4, 100)] ^= 1 << rng.randrange(8)
            publisher.publish(bytes(data))
        time.sleep(0.02)


# In the same process as the node, for `faults.run_all`.
MORE_FAULTS = [
    Fault('P negative', bad_info(1, p=projection(-100.0, 20.0)), 'dropped_calibration', 'fx=-100'),
    Fault(
        'P beyond any camera',
        bad_info(1, p=projection(100.0, -1e30)),
        'dropped_calibration',
        'at most 10000 m',
    ),
]
PROCESS_FAULTS = [
    Fault('node frozen and resumed', node_frozen),
    Fault('model file overwritten while running', model_file_replaced),
    Fault('bytes damaged on the wire', damaged_on_the_wire),
    Fault('camera process killed', camera_killed, 'clock_jumps'),
    Fault('subscriber process killed', subscriber_killed),
    Fault('subscriber process frozen', subscriber_frozen),
    Fault('out of memory in inference', out_of_memory, says='inference'),
    Fault('SIGTERM in full flow', ended_in_full_flow(signal.SIGTERM)),
    Fault('SIGINT twice in full flow', ended_in_full_flow(signal.SIGINT, signal.SIGINT)),
    Fault('node process killed and restarted', node_killed),
    Fault('disk full', disk_full),
    Fault('no home to keep a cache in', no_home),
]


def survive(fault: Fault, patient: ProcessPatient) -> None:
    """Injects a fault; raises AssertionError when it is not answered or not recovered from."""
    patient.forget()
    before = patient.count(fault.counter)
    fault.inject(patient)
    patient.require_healthy()
    if fault.counter:
        wait_until(lambda: patient.count(fault.counter) > before)
    if fault.says:
        wait_until(lambda: patient.said(fault.says))


def run_processes(
    faults: list[Fault], on_result: Callable[[Fault], None] = lambda fault: None
) -> list[tuple[Fault, float, str]]:
    """Injects faults one after the other.

    Returns:
        The fault, the seconds it took, and why it was not survived (empty when it was).
    """
    apply_fastdds_profile()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        rig = ProcessRig(write_block_matcher(Path(folder) / 'model.onnx'))
        try:
            patient = ProcessPatient(rig)
            patient.require_healthy()
            for fault in faults:
                began_s, reason = time.monotonic(), ''
                try:
                    survive(fault, patient)
                except Exception:
                    reason = traceback.format_exc().strip().split('\n')[-1]
                    rig.restart()
                results.append((fault, time.monotonic() - began_s, reason))
                on_result(fault)
        finally:
            rig.close()
    return results
