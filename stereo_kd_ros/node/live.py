# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A bag through the live node: player and node in processes of their own, recorded here.

Everything runs in a ROS domain of its own on this machine only, over real DDS.

Latency: the player stamps both images of a pair with the wall clock when it begins to publish
them. Stamp-to-publish is the time from there to the moment when the node hands the disparity to
DDS, so it holds the transfer of both images, waiting, decoding, inference and depth.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stereo_kd_ros.bag import StereoBag, StereoBagWriter, StereoTopics
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.children import Child, ChildError, StopRequest, stop_requests
from stereo_kd_ros.node.diagnostics import DROP_CAUSES
from stereo_kd_ros.node.inputs import TOPICS
from stereo_kd_ros.node.recorder import Discarding, Recorder, open_recorder
from stereo_kd_ros.pairing import DROP_CAUSES as PAIRING_DROPS
from stereo_kd_ros.results import percentiles
from stereo_kd_ros.transport import apply_fastdds_profile

NAMESPACE = '/stereo_kd_live'
DISPARITY_TOPIC = f'{NAMESPACE}/disparity'
DEPTH_TOPIC = f'{NAMESPACE}/depth/image'

_OUTPUTS = {
    DISPARITY_TOPIC: 'stereo_msgs/msg/DisparityImage',
    DEPTH_TOPIC: 'sensor_msgs/msg/Image',
}
_DEFAULT_RATE_HZ = 10.0
# Each is what a cold, busy machine may need; others are done in seconds.
_NODE_START_TIMEOUT_S = 300.0
_MATCH_TIMEOUT_S = 120.0
# After the last pair, for what is still on its way and the node's last word on it: at least this
# long, and longer only while pairs are unaccounted for.
_SETTLE_S, _LONGEST_SETTLE_S = 2.5, 30.0
# The last word must be of at least this long after the last pair.
_LAST_WORD_S = 1.0
_PAIR_DROPS = set(DROP_CAUSES) - set(PAIRING_DROPS) - {'no_camera_info'}


class LiveError(RuntimeError):
    """The live run came to nothing; the message says why."""


@dataclass(frozen=True)
class LiveRun:
    """What happened between player and recorder.

    `recorded_stamps` maps the stamp a pair was published with to its stamp in the bag, and
    `took_ms` the same to the time until its disparity was published, of pairs that came back.
    """

    camera: StereoCamera
    rate_hz: float
    recorded_stamps: dict[int, int]
    pairs_recorded: int
    stamp_to_publish_ms: dict[str, float | None]
    stamp_to_receipt_ms: dict[str, float | None]
    publish_time_known: bool
    pipeline: dict[str, str]
    model: dict[str, str]
    took_ms: dict[int, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Counts and latencies for a result file."""
        return {
            'image_size': [self.camera.width, self.camera.height],
            'rate_hz': round(self.rate_hz, 3),
            'provider': self.model.get('provider'),
            'pairs_sent': len(self.recorded_stamps),
            'pairs_received': int(self.pipeline.get('pairs_received', 0)),
            'pairs_published': int(self.pipeline.get('pairs_published', 0)),
            'pairs_recorded': self.pairs_recorded,
            'dropped': {
                key.removeprefix('dropped_'): int(value)
                for key, value in self.pipeline.items()
                if key.startswith('dropped_')
            },
            'stamp_to_publish_ms': self.stamp_to_publish_ms,
            'stamp_to_receipt_ms': self.stamp_to_receipt_ms,
            'publish_time_known': self.publish_time_known,
            'inference_ms': {
                rank: _figure(self.pipeline, f'inference_ms_{rank}')
                for rank in ('p50', 'p95', 'p99')
            },
        }


def play_through_node(
    bag: Path,
    output: Path,
    model: Path,
    provider: str,
    rate_hz: float | None = None,
    on_progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    threads: int = 0,
    *,
    namespace: str | None = None,
    tolerance_ns: int = 0,
    recording: bool = True,
) -> LiveRun:
    """Play a bag into a node and record disparity and depth as the bag `output/recording`.

    Args:
        bag: What to play.
        output: Folder for the recording and the logs of node and player.
        model: ONNX file.
        provider: As for the node.
        rate_hz: Pairs per second; what the bag was recorded at when left out.
        on_progress: Told the phase, the pairs that came back and the pairs there are.
        threads: As for the node.
        namespace: Which camera, in a bag with several.
        tolerance_ns: How far apart the stamps of a pair may lie.
        recording: Whether to write the bag; without it what comes is only counted and timed.

    Raises:
        BagError: The bag cannot be read, or holds no stereo camera.
        CalibrationError: Its camera_info is unusable.
        ChildError: The node or the player died.
        LiveError: The node did not start, or published nothing.
    """
    with StereoBag(bag, namespace=namespace, tolerance_ns=tolerance_ns) as source:
        topics, camera, pairs = source.stereo_topics, source.camera, source.pair_count
        seconds = source.duration_s
    if not pairs:
        raise LiveError(f'{bag}: {topics.left_image} and {topics.right_image} hold no pair.')
    recorded_rate_hz = (pairs - 1) / seconds if pairs > 1 and seconds else _DEFAULT_RATE_HZ
    rate_hz = rate_hz or recorded_rate_hz
    environ = own_domain()
    os.environ.update(environ)
    log = output / 'published.jsonl'
    log.unlink(missing_ok=True)

    with ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        writer: StereoBagWriter | Discarding = Discarding()
        if recording:
            writer = stack.enter_context(StereoBagWriter(output / 'recording', 'sqlite3'))
        recorder = stack.enter_context(
            open_recorder(_OUTPUTS, writer, diagnostics_of=f'{NAMESPACE}/stereo_node')
        )
        command = _node_command(topics, model, provider, camera, threads, tolerance_ns)
        node = stack.enter_context(
            Child('node', command, log=output / 'node.log', environ=environ)
        )
        on_progress('starting the node', 0, pairs)
        _wait_for_node(recorder, node, stop)
        start = output / 'start'
        start.unlink(missing_ok=True)
        command = _player_command(
            bag, topics, log, rate_hz / recorded_rate_hz, start, tolerance_ns
        )
        player = stack.enter_context(
            Child('player', command, log=output / 'player.log', environ=environ)
        )
        on_progress('waiting for node and player to meet', 0, pairs)
        _wait_for_match(recorder, node, player, stop)
        start.touch()
        stack.callback(start.unlink, missing_ok=True)
        _record(recorder, node, player, stop, pairs, on_progress)
    sent = _published(log, topics.left_image)
    came_back = [
        arrival for arrival in recorder.arrivals[DISPARITY_TOPIC] if arrival.stamp_ns in sent
    ]
    took_ms = {a.stamp_ns: (a.source_ns - a.stamp_ns) / 1e6 for a in came_back}
    pipeline = recorder.diagnostics.get('pipeline', {})
    if not came_back:
        raise LiveError(
            f'Nothing was published for {len(sent)} pairs. The node says: '
            f'{pipeline.get("message", "nothing")}. '
            f'The end of its log ({node.log}):\n{node.tail()}'
        )
    return LiveRun(
        camera=camera,
        rate_hz=rate_hz,
        recorded_stamps=sent,
        pairs_recorded=len(came_back),
        stamp_to_publish_ms=percentiles(list(took_ms.values())),
        stamp_to_receipt_ms=percentiles([(a.received_ns - a.stamp_ns) / 1e6 for a in came_back]),
        publish_time_known=recorder.knows_source_time,
        pipeline=pipeline,
        model=recorder.diagnostics.get('model', {}),
        took_ms=took_ms,
    )


def own_domain() -> dict[str, str]:
    """An environment whose ROS graph is nobody else's: this machine, a domain from our pid."""
    environ = dict(os.environ)
    environ['ROS_DOMAIN_ID'] = str(1 + os.getpid() % 100)
    if environ.get('ROS_DISTRO') == 'humble':
        environ['ROS_LOCALHOST_ONLY'] = '1'
    else:
        environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
    environ['PYTHONUNBUFFERED'] = '1'
    apply_fastdds_profile(environ)
    return environ


def _node_command(
    topics: StereoTopics,
    model: Path,
    provider: str,
    camera: StereoCamera,
    threads: int,
    tolerance_ns: int,
) -> list[str]:
    compressed = topics.left_image.endswith('/compressed')
    remaps = {
        'left/image_rect': topics.left_image.removesuffix('/compressed'),
        'right/image_rect': topics.right_image.removesuffix('/compressed'),
        'left/camera_info': topics.left_info,
        'right/camera_info': topics.right_info,
        '__ns': NAMESPACE,
    }
    parameters = {
        'model': str(model),
        'provider': provider,
        'threads': threads,
        'warm_up_width': camera.width,
        'warm_up_height': camera.height,
        'image_transport': 'compressed' if compressed else 'raw',
    }
    if tolerance_ns:
        parameters |= {
            'approximate_sync': 'true',
            'approximate_sync_tolerance_seconds': tolerance_ns / 1e9,
        }
    command = [sys.executable, '-m', 'stereo_kd_ros.node.main', '--ros-args']
    for name, value in remaps.items():
        command += ['-r', f'{name}:={value}']
    for name, value in parameters.items():
        command += ['-p', f'{name}:={value}']
    return command


def _player_command(
    bag: Path, topics: StereoTopics, log: Path, rate: float, start: Path, tolerance_ns: int
) -> list[str]:
    command = [sys.executable, '-m', 'stereo_kd_ros.commands.main', 'play', str(bag)]
    for name in topics.names:
        command += ['--topic', name]
    command += ['--restamp', '--wait', str(_MATCH_TIMEOUT_S), '--log', str(log)]
    command += ['--restamp-tolerance', str(tolerance_ns / 1e9)]
    return [*command, '--rate', str(rate), '--hold-until', str(start)]


def _wait_for_node(recorder: Recorder, node: Child, stop: StopRequest) -> None:
    deadline = time.monotonic() + _NODE_START_TIMEOUT_S
    while recorder.diagnostics.get('pipeline', {}).get('state') != 'active':
        stop.check()
        node.require_alive()
        if time.monotonic() > deadline:
            raise LiveError(
                f'The node is not active after {_NODE_START_TIMEOUT_S:.0f} s. '
                f'The end of its log ({node.log}):\n{node.tail()}'
            )
        recorder.spin(0.2)


def _wait_for_match(recorder: Recorder, node: Child, player: Child, stop: StopRequest) -> None:
    """Wait until the node knows the player's publishers.

    Its subscriptions are best effort: what is sent before would be lost, which on a busy machine
    may be all of a short bag.
    """
    deadline = time.monotonic() + _MATCH_TIMEOUT_S
    unheard = list(TOPICS)
    while unheard:
        stop.check()
        node.require_alive()
        player.require_alive()
        if time.monotonic() > deadline:
            raise LiveError(
                f'The node does not hear the player after {_MATCH_TIMEOUT_S:.0f} s '
                f'({", ".join(unheard)}). The end of its log ({player.log}):\n{player.tail()}'
            )
        recorder.spin(0.2)
        inputs = recorder.diagnostics.get('inputs', {})
        unheard = [name for name in TOPICS if not int(inputs.get(f'{name}_publishers', 0))]


def _record(
    recorder: Recorder,
    node: Child,
    player: Child,
    stop: StopRequest,
    pairs: int,
    on_progress: Callable[[str, int, int], None],
) -> None:
    """Record until the player has ended and the node has said its last of it."""
    arrived = recorder.arrivals[DISPARITY_TOPIC]
    ended: float | None = None
    ended_ns = 0

    def settled() -> bool:
        if ended is None or time.monotonic() - ended < _SETTLE_S:
            return False
        told = recorder.diagnostics_stamp_ns - ended_ns > _LAST_WORD_S * 1e9
        all_here = told and accounted_for(recorder.diagnostics['pipeline'], len(arrived))
        return all_here or time.monotonic() - ended > _LONGEST_SETTLE_S

    while not settled():
        recorder.spin(0.1)
        on_progress('playing and recording', len(arrived), pairs)
        stop.check()
        node.require_alive()
        if ended is None and player.exit_code is not None:
            if player.exit_code != 0:
                raise ChildError(
                    f'The player ended with exit code {player.exit_code}:\n{player.tail()}'
                )
            ended, ended_ns = time.monotonic(), time.time_ns()


def accounted_for(pipeline: dict[str, str], recorded: int) -> bool:
    """Whether every pair that the node received has been published and recorded, or dropped."""
    published = int(pipeline['pairs_published'])
    dropped = sum(int(pipeline[f'dropped_{cause}']) for cause in _PAIR_DROPS)
    return published + dropped >= int(pipeline['pairs_received']) and recorded >= published


def _published(log: Path, left_image: str) -> dict[int, int]:
    """Published stamp to recorded stamp of every left image the player sent."""
    if not log.exists():
        return {}
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {
        line['published_stamp_ns']: line['stamp_ns']
        for line in lines
        if line['topic'] == left_image
    }


def _figure(values: dict[str, str], key: str) -> float | None:
    return float(values[key]) if key in values else None
