# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the node adds to bare inference: stamp to publish over real DDS, and each stage's share.

Player, node and recorder are processes of their own (`live`). The pairs are generated, a few
scenes in turn, and uncompressed: the widest road an image takes. For every size and rate a row
says how long a pair took from the stamp until its disparity was handed to DDS, which of that was
transfer, waiting, decoding, inference, depth and publishing, and how many pairs were dropped.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stereo_kd_ros.bag import StereoBagWriter, StereoTopics
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.node.live import LiveRun, play_through_node
from stereo_kd_ros.procedural import render_pair
from stereo_kd_ros.results import machine

SCENES = 3
# The node keeps the times of this many pairs, so percentiles cover a whole run up to here.
MOST_PAIRS = 300
STAGES = ('wait', 'decode', 'inference', 'depth', 'publish')
_FIRST_STAMP_NS = 10**9


class LatencyError(ValueError):
    """A measurement that cannot be made."""


@dataclass(frozen=True)
class NodeRow:
    """One model at one size and rate; times in milliseconds.

    Attributes:
        stamp_to_publish_ms: p50, p95, p99 over every recorded pair, the first included.
        stage_ms: median of each stage, by the node's own clock; `transfer` is from the stamp
            until both images have arrived.
        stage_share: the same as shares of the node's median from the stamp until everything is
            sent, the depth image too.
        dropped_percent: pairs that were sent and not published, for whatever cause.
        allowed_ms: 1.1 times the median inference plus 2 ms, the node's target for the median.
    """

    subject: str
    provider: str
    width: int
    height: int
    threads: int
    rate_hz: float
    pairs_sent: int
    pairs_published: int
    dropped_percent: float
    dropped: dict[str, int]
    stamp_to_publish_ms: dict[str, float | None]
    stage_ms: dict[str, float]
    stage_share: dict[str, float]
    allowed_ms: float | None


def measure_node(
    model: Path,
    provider: str = 'cpu',
    sizes: Sequence[tuple[int, int]] = ((640, 480),),
    rates_hz: Sequence[float] = (10.0, 30.0),
    threads: int = 0,
    pairs: int = 150,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Any]:
    """Play generated pairs through the node at every size and rate.

    Args:
        model: ONNX file.
        provider: as for the node.
        sizes: (width, height) px.
        rates_hz: pairs per second.
        threads: of the CPU; 0 takes the node's default.
        pairs: of each run.
        progress: told what is being done, and how much of it.

    Returns:
        the report: a header and `rows`.

    Raises:
        LatencyError: a number is out of its range.
        BagError, ChildError, LiveError: as `play_through_node` does.
    """
    if not 2 <= pairs <= MOST_PAIRS:
        raise LatencyError(f'{pairs} pairs were asked for, expected 2 to {MOST_PAIRS}')
    if not all(rate_hz > 0 for rate_hz in rates_hz):
        raise LatencyError(f'the rates are {list(rates_hz)} Hz, expected positive ones')
    rows = []
    for width, height in sizes:
        # Gigabytes at the largest sizes: gone as soon as this size is done.
        with tempfile.TemporaryDirectory(prefix='stereo_kd_bench_') as folder:
            bag = Path(folder) / 'bag'
            _write_pairs(bag, width, height, pairs)
            for rate_hz in rates_hz:
                output = Path(folder) / f'at_{rate_hz:g}_hz'
                output.mkdir()
                what = f'{width}x{height} at {rate_hz:g} Hz'
                run = play_through_node(
                    bag,
                    output,
                    model,
                    provider,
                    rate_hz,
                    lambda phase, done, total, what=what: progress(
                        f'{what}: {phase}', done, total
                    ),
                    threads=threads,
                )
                rows.append(node_row(run, model.stem, threads))
    return {'schema': 1, 'kind': 'node', 'machine': machine(), 'rows': [asdict(r) for r in rows]}


def node_row(run: LiveRun, subject: str, threads: int) -> NodeRow:
    """The figures of one run."""
    sent = len(run.recorded_stamps)
    counts = run.to_json()
    published = counts['pairs_published']
    stage_ms = {
        stage: float(run.pipeline[f'{stage}_ms_p50'])
        for stage in STAGES
        if f'{stage}_ms_p50' in run.pipeline
    }
    whole_ms = float(run.pipeline.get('stamp_to_publish_ms_p50', 0.0))
    if whole_ms and 'total_ms_p50' in run.pipeline:
        arrived_ms = whole_ms - float(run.pipeline['total_ms_p50'])
        # Medians of two figures need not belong to one pair.
        stage_ms = {'transfer': max(round(arrived_ms, 3), 0.0), **stage_ms}
    inference_ms = stage_ms.get('inference')
    return NodeRow(
        subject=subject,
        provider=run.model.get('provider', ''),
        width=run.camera.width,
        height=run.camera.height,
        threads=threads,
        rate_hz=round(run.rate_hz, 3),
        pairs_sent=sent,
        pairs_published=published,
        dropped_percent=round(100.0 * max(sent - published, 0) / sent, 2) if sent else 0.0,
        dropped=counts['dropped'],
        stamp_to_publish_ms=run.stamp_to_publish_ms,
        stage_ms=stage_ms,
        stage_share={
            stage: round(value / whole_ms, 4) for stage, value in stage_ms.items() if whole_ms
        },
        allowed_ms=None if inference_ms is None else round(1.1 * inference_ms + 2.0, 3),
    )


def _write_pairs(bag: Path, width: int, height: int, pairs: int) -> None:
    """A bag of `SCENES` generated scenes in turn, at 10 Hz."""
    scenes = [render_pair(seed, height, width, min(192.0, width / 2)) for seed in range(SCENES)]
    camera = StereoCamera.from_intrinsics(
        fx=0.7 * width, baseline_m=0.12, width=width, height=height
    )
    with StereoBagWriter(bag, topics=StereoTopics.in_namespace('/stereo')) as writer:
        for index in range(pairs):
            scene = scenes[index % SCENES]
            stamp_ns = _FIRST_STAMP_NS + index * 100_000_000
            writer.write_pair(stamp_ns, scene.left, scene.right, camera)
