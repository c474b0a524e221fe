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
from queue import SimpleQueue
from types import FrameType

import rclpy
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

from stereo_kd_ros.memory import keep_freed_memory
from stereo_kd_ros.node.logs import library_log_to
from stereo_kd_ros.node.parameters import ParameterError
from stereo_kd_ros.node.stereo_node import StereoNode
from stereo_kd_ros.transport import apply_fastdds_profile

SPIN_PERIOD_S = 0.2
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Waits in one thread for what a signal handler or another thread asks.

    A handler may interrupt the thread that waits, or a handler, at any step, so that any lock of
    `threading` may be held by whom it interrupts: `threading.Event.set` in a handler can wait for
    itself for ever. `SimpleQueue.put` is safe there.
    """

    def __init__(self) -> None:
        self._asked: SimpleQueue[None] = SimpleQueue()

    def ask(self) -> None:
        self._asked.put(None)

    def wait(self) -> None:
        """Returns once somebody has asked, at once if that has been."""
        self._asked.get()


def main(argv: list[str] | None = None) -> int:
    """Runs the node until SIGINT or SIGTERM.

    Args:
        argv: ROS arguments; those of the process by default.

    Returns:
        0 after a signal, 1 when the node could not start.
    """
    apply_fastdds_profile()
    keep_freed_memory()
    with _stop_signals() as request:
        rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
        try:
            return _run(request)
        finally:
            rclpy.try_shutdown()


def _run(request: StopRequest) -> int:
    try:
        node = StereoNode()
    except ParameterError as error:
        rclpy.logging.get_logger('stereo_node').fatal(str(error))
        return 1
    with library_log_to(node.get_logger()):
        return _serve(node, request)


def _serve(node: StereoNode, request: StopRequest) -> int:
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    ended = threading.Event()
    spinner = threading.Thread(
        target=_spin, args=(executor, node, request, ended), name='executor'
    )
    try:
        if node.settings.autostart and not node.start():
            node.get_logger().fatal(f'not started: {node.start_error}')
            return 1
        spinner.start()
        request.wait()
        return 0
    finally:
        ended.set()
        if spinner.is_alive():
            spinner.join()
        node.destroy_node()
        executor.shutdown()


def _spin(
    executor: SingleThreadedExecutor,
    node: StereoNode,
    request: StopRequest,
    ended: threading.Event,
) -> None:
    """Serves callbacks and logs what they throw: a bad request must not end the node."""
    while not ended.is_set():
        try:
            executor.spin_once(timeout_sec=SPIN_PERIOD_S)
        except (ExternalShutdownException, ShutdownException):
            request.ask()
            return
        except Exception as error:
            node.get_logger().error(f'in a callback: {type(error).__name__}: {error}')
            time.sleep(SPIN_PERIOD_S)


@contextmanager
def _stop_signals() -> Iterator[StopRequest]:
    """Turns SIGINT and SIGTERM into a request; outside the main thread they stay as they are.

    From the first one on they are ignored for good: the process ends, and a second one must not
    meet it half taken apart.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal requested
        requested = True
        for each in STOP_SIGNALS:
            signal.signal(each, signal.SIG_IGN)
        request.ask()

    requested = False
    before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield request
    finally:
        if not requested:
            for number, handler in before.items():
                signal.signal(number, handler)


if __name__ == '__main__':
    sys.exit(main())
