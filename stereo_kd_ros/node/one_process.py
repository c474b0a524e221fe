# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A bag through the node with player, node and listener in one process.

    python -m stereo_kd_ros.node.one_process BAG MODEL RESULT --rate 30

The counterpart of `live`, where each is a process of its own, for `latency`. rclpy has no
intra-process transport: images still pass through DDS, which need not cross a border between
processes, and all three share one interpreter lock. Nothing is recorded.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from pathlib import Path
from typing import Any

import rclpy
from rclpy.executors import ExternalShutdownException, ShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from stereo_kd_ros.bag import StereoBag, StereoTopics
from stereo_kd_ros.memory import keep_freed_memory
from stereo_kd_ros.node.live import DEPTH_TOPIC, DISPARITY_TOPIC, NAMESPACE
from stereo_kd_ros.node.player import BagPlayer
from stereo_kd_ros.node.recorder import Discarding, Recorder
from stereo_kd_ros.node.stereo_node import StereoNode
from stereo_kd_ros.transport import apply_fastdds_profile

_OUTPUTS = {
    DISPARITY_TOPIC: 'stereo_msgs/msg/DisparityImage',
    DEPTH_TOPIC: 'sensor_msgs/msg/Image',
}
_MATCH_TIMEOUT_S = 120.0
_LONGEST_SETTLE_S = 30.0


def play_in_one_process(
    bag: Path, model: Path, provider: str, threads: int, rate_hz: float
) -> dict[str, Any]:
    """Play a bag of pairs through a node beside it; rclpy must be initialised.

    Returns:
        what `latency` needs: stamps sent, arrivals, counts and percentiles of the node.

    Raises:
        RuntimeError: the node did not start, or does not hear the player.
    """
    with StereoBag(bag) as source:
        camera, topics, pairs = source.camera, source.stereo_topics, source.pair_count
        recorded_rate_hz = (pairs - 1) / source.duration_s
        node = StereoNode(
            namespace=NAMESPACE,
            cli_args=_remaps(topics),
            parameter_overrides=[
                Parameter(name, value=value)
                for name, value in (
                    ('model', str(model)),
                    ('provider', provider),
                    ('threads', threads),
                    ('warm_up_width', camera.width),
                    ('warm_up_height', camera.height),
                )
            ],
        )
        peer = rclpy.create_node('stereo_kd_peer')
        recorder = Recorder(peer, _OUTPUTS, Discarding())
        stop = threading.Event()
        spinners: list[threading.Thread] = []
        try:
            if not node.start():
                raise RuntimeError(f'the node did not start: {node.start_error}')
            spinners += [_spin(each, stop) for each in (node, peer)]
            player = BagPlayer(peer, source, topics=topics.names)
            _wait_for_match(node, player, topics)
            sent = [
                played.published_stamp_ns
                for played in player.play(rate=rate_hz / recorded_rate_hz, restamp_now=True)
                if played.topic == topics.left_image
            ]
            _settle(node, recorder)
            figures = {**node.counts(), **node.times.percentiles()}
            provider_in_use = node.models.current().engine.provider
        finally:
            stop.set()
            for spinner in spinners:
                spinner.join()
            node.destroy_node()
            peer.destroy_node()
    return {
        'sent': sent,
        'knows_source_time': recorder.knows_source_time,
        'arrivals': [
            (a.stamp_ns, a.source_ns, a.received_ns) for a in recorder.arrivals[DISPARITY_TOPIC]
        ],
        'pipeline': {name: str(value) for name, value in figures.items()},
        'provider': provider_in_use,
    }


def _remaps(topics: StereoTopics) -> list[str]:
    remaps = {
        'left/image_rect': topics.left_image,
        'right/image_rect': topics.right_image,
        'left/camera_info': topics.left_info,
        'right/camera_info': topics.right_info,
    }
    words = ['--ros-args']
    for name, topic in remaps.items():
        words += ['-r', f'{name}:={topic}']
    return words


def _spin(node: Node, stop: threading.Event) -> threading.Thread:
    executor = SingleThreadedExecutor()
    executor.add_node(node)

    def serve() -> None:
        while not stop.is_set():
            try:
                executor.spin_once(timeout_sec=0.1)
            except (ExternalShutdownException, ShutdownException):
                return
        executor.shutdown()

    thread = threading.Thread(target=serve, name=f'{node.get_name()}_executor')
    thread.start()
    return thread


def _wait_for_match(node: StereoNode, player: BagPlayer, topics: StereoTopics) -> None:
    unheard = player.wait_for_subscribers(topics.names, _MATCH_TIMEOUT_S)
    deadline = time.monotonic() + _MATCH_TIMEOUT_S

    def met() -> bool:
        # A publisher knows of a subscriber before that knows it, and best effort waits for nobody.
        wanted = node.outputs.wanted(lazy=True) >= {'disparity', 'depth'}
        return wanted and all(node.inputs.publisher_counts().values())

    while not unheard and not met():
        if time.monotonic() > deadline:
            unheard = ['its outputs']
        time.sleep(0.05)
    if unheard:
        raise RuntimeError(f'player, node and listener do not meet: {", ".join(unheard)}')


def _settle(node: StereoNode, recorder: Recorder) -> None:
    """Wait until the node is idle and what it published is here."""
    deadline = time.monotonic() + _LONGEST_SETTLE_S
    idle_since, before = time.monotonic(), -1
    while time.monotonic() < deadline and time.monotonic() - idle_since < 1.0:
        counts = node.counts()
        here = len(recorder.arrivals[DISPARITY_TOPIC]) >= counts['pairs_published']
        if sum(counts.values()) != before or not here or node.inference_began_s is not None:
            idle_since, before = time.monotonic(), sum(counts.values())
        time.sleep(0.05)


def main(argv: list[str] | None = None) -> int:
    """Play a bag and write what was measured as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('bag', type=Path)
    parser.add_argument('model', type=Path)
    parser.add_argument('result', type=Path)
    parser.add_argument('--rate', type=float, required=True, help='pairs per second')
    parser.add_argument('--provider', default='cpu')
    parser.add_argument('--threads', type=int, default=0)
    asked = parser.parse_args(argv)
    apply_fastdds_profile()
    keep_freed_memory()
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    try:
        result = play_in_one_process(
            asked.bag, asked.model, asked.provider, asked.threads, asked.rate
        )
    finally:
        rclpy.try_shutdown()
    asked.result.write_text(json.dumps(result))
    return 0


if __name__ == '__main__':
    sys.exit(main())
