# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A stereo node and a camera beside it, over real DDS in one process.

    with Rig(model='block_matcher.onnx') as rig:
        depth = rig.listen('depth/image', Image)
        rig.ready()
        rig.camera.send(left, right, stamp_ns=1_000)
        message = depth.next()

Both nodes have their own rclpy context, so they meet only through the middleware.
"""

from __future__ import annotations

import gc
import itertools
import os
import threading
import time
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.context import Context
from rclpy.executors import (
    ExternalShutdownException,
    InvalidHandle,
    ShutdownException,
    SingleThreadedExecutor,
)
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CameraInfo, Image

from stereo_kd_ros.image import encode_image
from stereo_kd_ros.node import stereo_node
from stereo_kd_ros.node.inputs import TOPICS
from stereo_kd_ros.node.stereo_node import StereoNode

Value = TypeVar('Value')
# How long a test waits for what must come. Costs nothing when it comes; a cold or crowded machine
# may need tens of seconds for the first import, the first participant or a single callback.
PATIENCE_S = 90.0
# Best effort, the node's default, may lose a test's only message on a busy machine.
RELIABLE_INPUTS = {
    f'qos_overrides./{topic}.subscription.reliability': 'reliable' for topic in TOPICS.values()
}
RELIABLE = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE)
HEIGHT, WIDTH, FX_PX, BASELINE_M = 48, 64, 100.0, 0.2
DOMAINS = 8


_rig_numbers = itertools.count()


def next_domain_id() -> int:
    """Returns a domain for one rig, as a node just gone may still seem to offer its services.

    They are the few that follow the one of the environment, so that another run on the same
    machine is met in none of them.
    """
    base = int(os.environ.get('ROS_DOMAIN_ID', '0'))
    return 1 + (base + next(_rig_numbers) % DOMAINS) % 100


def wait_until(condition: Callable[[], Value], timeout_s: float = PATIENCE_S) -> Value:
    """Returns the condition's first true value; fails after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            raise AssertionError(f'not true within {timeout_s} s: {condition}')
        time.sleep(0.01)
    return value


class Said:
    """All that was written to stderr since it was made, however many reads it came in."""

    def __init__(self, capfd: Any) -> None:
        self._capfd = capfd
        capfd.readouterr()
        self.text = ''

    def read(self) -> str:
        """Returns all of it so far."""
        self.text += self._capfd.readouterr().err
        return self.text

    def wait_for(self, text: str) -> None:
        """Waits until it holds this."""
        wait_until(lambda: text in self.read())


def textured_pair(
    disparity_px: int = 5, height: int = HEIGHT, width: int = WIDTH, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns RGB `(H, W, 3)` views of a fronto-parallel random texture at one whole disparity."""
    scene = np.random.default_rng(seed).integers(
        0, 256, (height, width + disparity_px, 3), dtype=np.uint8
    )
    return scene[:, :width].copy(), scene[:, disparity_px:].copy()


def camera_infos(
    height: int = HEIGHT,
    width: int = WIDTH,
    fx: float = FX_PX,
    baseline_m: float = BASELINE_M,
    cx_offset_px: float = 0.0,
) -> tuple[CameraInfo, CameraInfo]:
    """Returns the camera_info of a rectified pair."""
    infos = []
    for side in ('left', 'right'):
        cx = width / 2 - (cx_offset_px if side == 'right' else 0.0)
        tx = -fx * baseline_m if side == 'right' else 0.0
        info = CameraInfo(height=height, width=width, distortion_model='plumb_bob', d=[0.0] * 5)
        info.k = [fx, 0.0, cx, 0.0, fx, height / 2, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [fx, 0.0, cx, tx, 0.0, fx, height / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
        infos.append(info)
    return infos[0], infos[1]


class Spinner:
    """Serves a node's callbacks in a thread until it is closed; `errors` are what they raised."""

    def __init__(self, node: Node) -> None:
        self.errors: list[str] = []
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop.is_set():
            try:
                self._executor.spin_once(timeout_sec=0.05)
            except (ExternalShutdownException, ShutdownException):
                return
            except InvalidHandle:
                pass  # destroyed by the test's own thread while it was being waited for
            except Exception:
                # As the node's own executor does: one bad callback must not end all others.
                self.errors.append(traceback.format_exc())

    def close(self) -> None:
        """Ends the thread."""
        self._stop.set()
        self._thread.join()
        self._executor.shutdown()


class Listener:
    """Collects what arrives on a topic."""

    def __init__(self, node: Node, topic: str, message_type: type, qos: QoSProfile) -> None:
        self.messages: list[Any] = []
        self._read = 0
        self.subscription = node.create_subscription(
            message_type, topic, self.messages.append, qos
        )

    def next(self, timeout_s: float = PATIENCE_S) -> Any:
        """Returns the next message that was not yet returned, waiting for it."""
        wait_until(lambda: len(self.messages) > self._read, timeout_s)
        self._read += 1
        return self.messages[self._read - 1]


class Camera:
    """Publishes pairs and their calibration."""

    def __init__(self, node: Node, qos: QoSProfile = RELIABLE) -> None:
        self.node = node
        self.left = node.create_publisher(Image, 'left/image_rect', qos)
        self.right = node.create_publisher(Image, 'right/image_rect', qos)
        self.left_info = node.create_publisher(CameraInfo, 'left/camera_info', qos)
        self.right_info = node.create_publisher(CameraInfo, 'right/camera_info', qos)

    def publishers(self) -> tuple[Any, ...]:
        """The four publishers."""
        return self.left, self.right, self.left_info, self.right_info

    def send(
        self,
        left: np.ndarray | Image,
        right: np.ndarray | Image,
        stamp_ns: int,
        infos: tuple[CameraInfo, CameraInfo] | None = None,
        right_stamp_ns: int | None = None,
    ) -> None:
        """Publishes camera_info and images; arrays are RGB."""
        right_stamp_ns = stamp_ns if right_stamp_ns is None else right_stamp_ns
        for info, publisher in zip(infos or (), (self.left_info, self.right_info)):
            publisher.publish(stamped(info, stamp_ns))
        self.send_left(left, stamp_ns)
        self.send_right(right, right_stamp_ns)

    def send_left(self, image: np.ndarray | Image, stamp_ns: int) -> None:
        """Publishes one left image."""
        self.left.publish(stamped(as_message(image), stamp_ns))

    def send_right(self, image: np.ndarray | Image, stamp_ns: int) -> None:
        """Publishes one right image."""
        self.right.publish(stamped(as_message(image), stamp_ns))


def as_message(image: np.ndarray | Image) -> Image:
    """Returns an RGB array as an Image; a message as it is."""
    return Image(**encode_image(image, 'rgb8')) if isinstance(image, np.ndarray) else image


def stamped(message: Any, stamp_ns: int, frame_id: str = 'left_optical') -> Any:
    """Sets stamp and frame; a frame that was set stays."""
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
    message.header.frame_id = message.header.frame_id or frame_id
    return message


class Rig:
    """A started stereo node, a camera and listeners; parameters are the keyword arguments."""

    def __init__(
        self,
        start: bool = True,
        cli_args: tuple[str, ...] = (),
        namespace: str = '',
        best_effort: bool = False,
        **parameters: Any,
    ) -> None:
        self._start, self._cli_args, self._namespace = start, cli_args, namespace
        # A warm-up at the size of the test's images: none needs VGA.
        self._parameters = {
            'provider': 'cpu',
            'warm_up_width': WIDTH,
            'warm_up_height': HEIGHT,
            **({} if best_effort else RELIABLE_INPUTS),
            **parameters,
        }

    def __enter__(self) -> Rig:
        self._contexts = [Context(), Context()]
        self._spinners: list[Spinner] = []
        self._nodes: list[Node] = []
        try:
            self._open()
        except BaseException:
            self._close()
            raise
        return self

    def _open(self) -> None:
        domain_id = next_domain_id()
        for context, args in zip(self._contexts, (list(self._cli_args), [])):
            rclpy.init(
                args=args,
                context=context,
                domain_id=domain_id,
                signal_handler_options=SignalHandlerOptions.NO,
            )
        node_context, peer_context = self._contexts
        # Tests need not wait a second for each report.
        stereo_node.HEALTH_PERIOD_S = 0.1
        self.node = StereoNode(
            context=node_context,
            namespace=self._namespace,
            parameter_overrides=[Parameter(n, value=v) for n, v in self._parameters.items()],
        )
        self._nodes.append(self.node)
        self.peer = Node('peer', context=peer_context, namespace=self._namespace)
        self._nodes.append(self.peer)
        self.camera = Camera(self.peer)
        self.diagnostics = self.listen('/diagnostics', DiagnosticArray)
        if self._start:
            assert self.node.start(), f'the node did not start: {self.node.start_error}'
        self._spinners += [Spinner(self.node), Spinner(self.peer)]

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        errors = [error for spinner in self._spinners for error in spinner.errors]
        self._close()
        assert kind is not None or not errors, '\n'.join(['a callback raised:', *errors])

    def _close(self) -> None:
        while self._spinners:
            self._spinners.pop().close()
        # A node freed later would take /rosout from the next node of its name. So no name may be
        # left to any, and what rclpy has below them goes before their contexts.
        for name in ('node', 'peer', 'camera', 'diagnostics'):
            self.__dict__.pop(name, None)
        while self._nodes:
            self._nodes.pop(0).destroy_node()
        gc.collect()
        while self._contexts:
            self._contexts.pop(0).try_shutdown()

    def listen(self, topic: str, message_type: type, qos: QoSProfile = RELIABLE) -> Listener:
        """Subscribes to an output of the node."""
        return Listener(self.peer, topic, message_type, qos)

    def ready(self, *listeners: Listener) -> None:
        """Waits until the node hears the camera and has a publisher for each listener."""
        wait_until(lambda: all(p.get_subscription_count() for p in self.camera.publishers()))
        self.heard(*listeners)

    def heard(self, *listeners: Listener) -> None:
        """Waits until the node knows each listener: before, it has nobody to publish for."""
        for listener in listeners:
            topic = listener.subscription.topic_name
            wait_until(lambda topic=topic: matched(self.node, topic))

    def status(self, part: str) -> Any:
        """Returns a diagnostics status of a part that was made after this call.

        A report on its way was made before it, so the stamp decides; the second report
        counts where simulated time stands still.
        """
        seen = len(self.diagnostics.messages)
        asked_ns = self.node.get_clock().now().nanoseconds

        def answered() -> bool:
            stamp = (
                self.diagnostics.messages[-1].header.stamp if self.diagnostics.messages else None
            )
            return (
                len(self.diagnostics.messages) >= seen + 2
                and stamp.sec * 1_000_000_000 + stamp.nanosec >= asked_ns
            )

        wait_until(answered)
        for status in self.diagnostics.messages[-1].status:
            if status.name.endswith(f': {part}'):
                return status
        raise AssertionError(f'no status {part!r} in {self.diagnostics.messages[-1]}')

    def values(self, part: str) -> dict[str, str]:
        """Returns the newest key-values of a part."""
        return {pair.key: pair.value for pair in self.status(part).values}


def matched(node: Node, topic: str) -> bool:
    """Whether a publisher of the node on that topic has a subscriber."""
    return any(
        publisher.topic_name == topic and publisher.get_subscription_count()
        for publisher in node.publishers
    )
