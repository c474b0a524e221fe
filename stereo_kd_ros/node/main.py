# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Runs the stereo node as a process: `ros2 run stereo_kd_ros stereo_node`.

The callbacks run in a thread of their own and the main thread waits for a signal, so that SIGINT
and SIGTERM are seen at once whatever a callback does, and a second one during the clean-up changes
nothing.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import rclpy
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from stereo_kd_ros.node.logs import library_log_to
from stereo_kd_ros.node.parameters import ParameterError
from stereo_kd_ros.node.stereo_node import StereoNode
from stereo_kd_ros.transport import apply_fastdds_profile

SPIN_PERIOD_S = 0.2


def main(argv: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM.

    Args:
        argv: ROS arguments; those of the process by default.

    Returns:
        0 after a signal, 1 when the node could not start.
    """
    apply_fastdds_profile()
    stop = threading.Event()
    with _signals_set(stop):
        rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
        try:
            return _run(stop)
        finally:
            rclpy.try_shutdown()


def _run(stop: threading.Event) -> int:
    try:
        node = StereoNode()
    except ParameterError as error:
        rclpy.logging.get_logger('stereo_node').fatal(str(error))
        return 1
    with library_log_to(node.get_logger()):
        return _serve(node, stop)


def _serve(node: StereoNode, stop: threading.Event) -> int:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    spinner = threading.Thread(target=_spin, args=(executor, node, stop), name='executor')
    try:
        if node.settings.autostart and not node.start():
            node.get_logger().fatal(f'not started: {node.start_error}')
            return 1
        spinner.start()
        stop.wait()
        return 0
    finally:
        stop.set()
        if spinner.is_alive():
            spinner.join()
        node.destroy_node()
        executor.shutdown()


def _spin(executor: SingleThreadedExecutor, node: StereoNode, stop: threading.Event) -> None:
    """Serves callbacks and logs what they throw: a bad request must not end the node."""
    while not stop.is_set():
        try:
            executor.spin_once(timeout_sec=SPIN_PERIOD_S)
        except (ExternalShutdownException, ShutdownException):
            stop.set()
        except Exception as error:
            node.get_logger().error(f'in a callback: {type(error).__name__}: {error}')
            time.sleep(SPIN_PERIOD_S)


@contextmanager
def _signals_set(stop: threading.Event) -> Iterator[None]:
    """Lets SIGINT and SIGTERM set `stop`; outside the main thread signals stay as they are.

    After a signal they are ignored for good: the process ends, and a second one must not meet it
    half taken apart.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def request_stop(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        stop.set()

    requested = False
    before = {
        number: signal.signal(number, request_stop) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_IGN if requested else handler)


if __name__ == '__main__':
    sys.exit(main())
