# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`make soak`: the node at full rate for as long as asked, and whether it stays what it was.

    python test/hostile/soak.py --seconds 3600 [--rate 30] [--size 320x240] [--model small]

A player process publishes a procedural pair 30 times a second, the node runs in a process of its
own as on a robot, and this process listens to the disparity and reads the node's memory off /proc.
Inputs are subscribed to reliably and deeply, so that DDS has no reason to lose an image and every
pair must be accounted for:

    lost = sent - come back - superseded

`superseded` are those that the node itself skipped for a newer one because the model was busy; the
table shows them. Memory is judged by its slope after the first third (median of pairwise slopes,
Theil-Sen): it fails above `--bound` MB/h, unless all growth since is below `--slack` MB, which is
what a short run cannot tell from noise. Latency is from the stamp, set when the player begins to
publish the pair, to receipt here. The last line is the verdict,
`soak: 3600 s, 108000 pairs, 0 lost, +0.3 MB/h`; the exit code is 1 unless it holds.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rich.table import Table
from stereo_msgs.msg import DisparityImage

from stereo_kd_ros.bag import Bag, StereoBagWriter, StereoTopics, read_stamp
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.children import Child, ChildError, StopRequest, stop_requests
from stereo_kd_ros.commands.console import console, progress_bar
from stereo_kd_ros.node.live import own_domain
from stereo_kd_ros.node.player import open_player
from stereo_kd_ros.procedural import render_pair

TOPICS = StereoTopics.in_namespace()
FRAMES_OF_BAG = 90
START_TIMEOUT_S = 200.0
# Images under way between two processes, which a machine that stands still must not lose.
DEPTH = 100
# Endpoints match in up to three seconds; a pair sent before would be lost by nobody's fault.
MATCH_S = 4.0
# After the last pair: at least this long, and longer only while the node has not told of all.
SETTLE_S, LONGEST_SETTLE_S = 4.0, 60.0
LAST_WORD_S = 2.0
DISPARITY_PX = 6


@dataclass
class Observed:
    """What was measured from outside the node."""

    latency_ms: dict[int, float] = field(default_factory=dict)  # by stamp
    memory: list[tuple[float, float]] = field(default_factory=list)  # seconds, MB
    pipeline: dict[str, str] = field(default_factory=dict)
    told_ns: int = 0  # when the last report began


@dataclass(frozen=True)
class Verdict:
    """The figures of a run, and whether they hold."""

    seconds: float
    sent: int
    superseded: int
    lost: int
    drops: dict[str, int]
    slope_mb_per_h: float
    growth_mb: float
    bound_mb_per_h: float
    slack_mb: float

    @property
    def holds(self) -> bool:
        """Whether pairs came, none was lost, and memory did not grow."""
        grows = self.slope_mb_per_h > self.bound_mb_per_h and self.growth_mb > self.slack_mb
        return self.sent > 0 and self.lost == 0 and not grows

    def line(self) -> str:
        """The last line of a run."""
        return (
            f'soak: {self.seconds:.0f} s, {self.sent} pairs, {self.lost} lost, '
            f'{self.slope_mb_per_h:+.1f} MB/h'
        )


def judge(
    observed: Observed, sent_ns: list[int], seconds: float, bound_mb_per_h: float, slack_mb: float
) -> Verdict:
    """Holds what came back to what was sent."""
    drops = {
        name.removeprefix('dropped_'): int(value)
        for name, value in observed.pipeline.items()
        if name.startswith('dropped_') and int(value)
    }
    superseded = drops.pop('superseded', 0)
    # Sent before the first that came back: endpoints had not all found each other.
    first_ns = min(observed.latency_ms, default=0)
    counted = [stamp_ns for stamp_ns in sent_ns if stamp_ns >= first_ns]
    came_back = sum(stamp_ns in observed.latency_ms for stamp_ns in counted)
    slope, growth = memory_trend(observed.memory)
    return Verdict(
        seconds=seconds,
        sent=len(counted),
        superseded=superseded,
        lost=len(counted) - came_back - superseded,
        drops=drops,
        slope_mb_per_h=slope,
        growth_mb=growth,
        bound_mb_per_h=bound_mb_per_h,
        slack_mb=slack_mb,
    )


def memory_trend(memory: list[tuple[float, float]]) -> tuple[float, float]:
    """Returns slope [MB/h] and growth [MB] after the first third of `(seconds, MB)` samples."""
    settled = np.array(memory[len(memory) // 3 :]).reshape(-1, 2)
    if len(settled) < 2:
        return 0.0, 0.0
    thinned = settled[:: max(1, len(settled) // 300)]
    first, second = np.triu_indices(len(thinned), 1)
    rise = thinned[second] - thinned[first]
    slope = float(np.median(rise[:, 1] / rise[:, 0]))
    tenth = max(1, len(settled) // 10)
    growth = float(np.median(settled[-tenth:, 1]) - np.median(settled[:tenth, 1]))
    return slope * 3600.0, growth


def write_bag(path: Path, width: int, height: int, rate_hz: float) -> None:
    """Writes a short bag of procedural pairs, which the player repeats."""
    camera = StereoCamera.from_intrinsics(width * 0.8, 0.12, width, height)
    sample = render_pair(3, height, width, max_disparity_px=width / 8)
    with StereoBagWriter(path, topics=TOPICS) as writer:
        for frame in range(FRAMES_OF_BAG):
            left, right = (np.roll(view, frame, axis=1) for view in (sample.left, sample.right))
            writer.write_pair(10**9 + round(frame / rate_hz * 1e9), left, right, camera)


def play(path: Path, seconds: float, rate_hz: float, log: Path) -> None:
    """Is the player process: repeats the bag, and logs the stamp of every pair it has sent."""
    ends_s = time.monotonic() + seconds
    with (
        Bag(path) as bag,
        open_player(bag, topics=TOPICS.names, depth=DEPTH) as player,
        log.open('w') as sent,
    ):
        unheard = player.wait_for_subscribers(TOPICS.names, START_TIMEOUT_S)
        if unheard:
            raise SystemExit(f'nobody listens to {", ".join(unheard)}')
        time.sleep(MATCH_S)
        ends_s = time.monotonic() + seconds
        while player.running and time.monotonic() < ends_s:
            began_s, parts = time.monotonic(), Counter[int]()
            for message in player.play(restamp_now=True):
                stamp_ns = message.published_stamp_ns
                parts[stamp_ns] += 1
                if parts[stamp_ns] == len(TOPICS.names):
                    sent.write(f'{stamp_ns}\n')
                    if time.monotonic() > ends_s:
                        break
            time.sleep(max(0.0, began_s + FRAMES_OF_BAG / rate_hz - time.monotonic()))
        player.flush()


@contextmanager
def listening(observed: Observed) -> Iterator[Node]:
    """A node that notes when each disparity comes, and the node's last word on its counts."""

    def arrived(cdr: bytes) -> None:
        stamp_ns = read_stamp(cdr)
        observed.latency_ms[stamp_ns] = (time.time_ns() - stamp_ns) / 1e6

    def told(message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.endswith(': pipeline'):
                observed.pipeline = {pair.key: pair.value for pair in status.values}
                stamp = message.header.stamp
                observed.told_ns = stamp.sec * 10**9 + stamp.nanosec

    rclpy.init(args=[], signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
    node = rclpy.create_node('soak')
    try:
        qos = QoSProfile(depth=DEPTH, reliability=ReliabilityPolicy.RELIABLE)
        node.create_subscription(DisparityImage, 'disparity', arrived, qos, raw=True)
        node.create_subscription(DiagnosticArray, '/diagnostics', told, 10)
        yield node
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


def own_memory_mb(pid: int) -> float:
    """Returns the resident memory that is a process's own.

    Shared pages are left out: DDS fills its ring in shared memory, of a fixed size, little by
    little, which would look like a leak.
    """
    status = Path(f'/proc/{pid}/status').read_text()
    (line,) = [line for line in status.splitlines() if line.startswith('RssAnon:')]
    return int(line.split()[1]) * 1024 / 1e6


def node_command(model: str, width: int, height: int) -> list[str]:
    """Starts the node with inputs that lose nothing: what is lost is then lost by the node."""
    parameters = {
        'model': model,
        'provider': 'cpu',
        'warm_up_width': width,
        'warm_up_height': height,
        **{
            f'qos_overrides.{topic}.subscription.{policy}': value
            for topic in TOPICS.names
            for policy, value in (('reliability', 'reliable'), ('depth', DEPTH))
        },
        'qos_overrides./disparity.publisher.depth': DEPTH,
    }
    command = [sys.executable, '-m', 'stereo_kd_ros.node.main', '--ros-args']
    return [*command, *itertools.chain(*(('-p', f'{n}:={v}') for n, v in parameters.items()))]


def soak(asked: argparse.Namespace, folder: Path, observed: Observed) -> list[int]:
    """Runs player and node for the time asked; returns the stamps of the pairs sent.

    Raises:
        ChildError: A process died.
    """
    width, height = asked.size
    bag, log = folder / 'bag', folder / 'sent.txt'
    write_bag(bag, width, height, asked.rate)
    environ = own_domain()
    os.environ.update(environ)
    player_command = [sys.executable, __file__, '--play', str(bag), '--log', str(log)]
    player_command += ['--seconds', str(asked.seconds), '--rate', str(asked.rate)]
    with ExitStack() as stack:
        stop = stack.enter_context(stop_requests())
        listener = stack.enter_context(listening(observed))
        node = stack.enter_context(
            Child(
                'node',
                node_command(asked.model, width, height),
                log=folder / 'node.log',
                environ=environ,
            )
        )
        player = stack.enter_context(
            Child('player', player_command, log=folder / 'player.log', environ=environ)
        )
        _watch(asked.seconds, listener, node, player, stop, observed)
    return [int(line) for line in log.read_text().split()]


def _watch(
    seconds: float,
    listener: Node,
    node: Child,
    player: Child,
    stop: StopRequest,
    observed: Observed,
) -> None:
    """Listens until the player has ended and the node has told its last counts."""
    began_s, ended_s, ended_ns, sampled_s = None, None, 0, 0.0

    def settled() -> bool:
        if ended_s is None or time.monotonic() - ended_s < SETTLE_S:
            return False
        told = observed.told_ns - ended_ns > LAST_WORD_S * 1e9
        published = int(observed.pipeline.get('pairs_published', 0))
        all_here = told and len(observed.latency_ms) >= published
        return all_here or time.monotonic() - ended_s > LONGEST_SETTLE_S

    with progress_bar() as progress:
        task = progress.add_task('seconds', total=round(seconds))
        while not settled():
            rclpy.spin_once(listener, timeout_sec=0.1)
            stop.check()
            node.require_alive()
            now_s = time.monotonic()
            if began_s is None and observed.latency_ms:
                began_s = now_s
            if began_s is not None and ended_s is None and now_s - sampled_s >= 1.0:
                sampled_s = now_s
                observed.memory.append((now_s - began_s, own_memory_mb(node.pid)))
                progress.update(task, completed=min(round(now_s - began_s), round(seconds)))
            if ended_s is None and player.exit_code is not None:
                if player.exit_code:
                    raise ChildError(f'The player ended with {player.exit_code}: {player.tail()}')
                ended_s, ended_ns = now_s, time.time_ns()


def plot(observed: Observed, path: Path, title: str) -> None:
    """Draws latency and memory over time as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    stamps_ns = sorted(observed.latency_ms)
    minutes = (np.array(stamps_ns) - stamps_ns[0]) / 60e9
    latency_ms = [observed.latency_ms[stamp_ns] for stamp_ns in stamps_ns]
    memory = np.array(observed.memory)
    figure = Figure(figsize=(9, 6), layout='constrained')
    FigureCanvasAgg(figure)
    above, below = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title)
    above.plot(minutes, latency_ms, '.', markersize=2, alpha=0.5, rasterized=True)
    above.set_ylabel('stamp to receipt [ms]')
    above.set_ylim(0, float(np.percentile(latency_ms, 99.9)) * 1.2)
    below.plot(memory[:, 0] / 60, memory[:, 1])
    below.set_ylabel("the node's memory [MB]")
    below.set_xlabel('minutes')
    below.set_ylim(0, memory[:, 1].max() * 1.2)
    for axes in (above, below):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def show(verdict: Verdict, observed: Observed) -> None:
    """Prints the figures behind the verdict."""
    latency_ms = sorted(observed.latency_ms.values()) or [float('nan')]
    p50, p95, p99 = np.percentile(latency_ms, (50, 95, 99))
    table = Table(title='Soak', box=None, show_header=False)
    rows = {
        'pairs sent': f'{verdict.sent}',
        'come back': f'{verdict.sent - verdict.superseded - verdict.lost}',
        'superseded by a newer one': f'{verdict.superseded}',
        'lost': f'{verdict.lost}',
        'dropped by the node': str(verdict.drops or 'none'),
        'stamp to receipt p50 / p95 / p99 / max [ms]': (
            f'{p50:.1f} / {p95:.1f} / {p99:.1f} / {latency_ms[-1]:.1f}'
        ),
        'memory at the start / end [MB]': (
            f'{observed.memory[0][1]:.1f} / {observed.memory[-1][1]:.1f}'
            if observed.memory
            else 'unknown'
        ),
        'growth after the first third [MB]': f'{verdict.growth_mb:+.2f}',
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    console.print(verdict.line(), highlight=False, soft_wrap=True)


def image_size(text: str) -> tuple[int, int]:
    """Reads `320x240`."""
    width, _, height = text.partition('x')
    return int(width), int(height)


def main() -> int:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--seconds', type=float, default=60.0)
    parser.add_argument('--rate', type=float, default=30.0, help='pairs per second')
    parser.add_argument('--size', type=image_size, default=(320, 240), help='as in 320x240')
    parser.add_argument('--model', default='small', help='a file, or a name or size')
    parser.add_argument('--bound', type=float, default=2.0, help='memory slope allowed [MB/h]')
    parser.add_argument('--slack', type=float, default=4.0, help='growth too small to tell [MB]')
    parser.add_argument('--plot', type=Path, default=Path('build/soak.png'))
    parser.add_argument('--play', type=Path, help=argparse.SUPPRESS)
    parser.add_argument('--log', type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.play is not None:
        play(asked.play, asked.seconds, asked.rate, asked.log)
        return 0
    observed = Observed()
    with tempfile.TemporaryDirectory(prefix='soak_') as folder:
        try:
            sent_ns = soak(asked, Path(folder), observed)
        except ChildError as error:
            console.print(f'soak: {error}', markup=False, style='red')
            return 1
    verdict = judge(observed, sent_ns, asked.seconds, asked.bound, asked.slack)
    if observed.latency_ms and observed.memory:
        plot(observed, asked.plot, verdict.line())
        console.print(f'plot: {asked.plot}', highlight=False)
    show(verdict, observed)
    return 0 if verdict.holds else 1


if __name__ == '__main__':
    sys.exit(main())
