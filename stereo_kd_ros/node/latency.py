# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the node adds to bare inference: stamp to publish over real DDS, and each stage's share.

Player, node and listener are processes of their own (`live`) or share one (`one_process`). The
pairs are generated, a few scenes in turn, and uncompressed: the widest road an image takes. For
every size, rate and place a row says how long a pair took from the stamp until its disparity was
handed to DDS, which of that was transfer, waiting, decoding, inference, depth and publishing, how
many pairs were dropped, and what the engine takes alone, before any node is started.

All three are new when the first pair is sent: shared memory, maps and caches that nobody touched.
So a run begins with `LEAD_IN_S` of pairs that are told of by themselves.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnxruntime

from stereo_kd_ros.bag import StereoBag, StereoBagWriter, StereoTopics
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.children import Child, stop_requests
from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.node.live import LiveError, LiveRun, own_domain, play_through_node
from stereo_kd_ros.procedural import StereoSample, render_pair
from stereo_kd_ros.processor import StolenTime
from stereo_kd_ros.results import machine, percentiles

SCENES = 3
LEAD_IN_S = 1.0
# The node keeps the times of this many pairs, so percentiles cover a whole run up to here.
MOST_PAIRS = 300
PLACES = ('processes', 'one_process')
BARE_SECONDS, FEWEST_BARE_RUNS = 3.0, 20
ONE_PROCESS_TIMEOUT_S = 600.0
STAGES = ('wait', 'decode', 'inference', 'depth', 'publish')
_WHAT_RAN = ('subject', 'provider', 'width', 'height', 'threads', 'place')
_FIRST_STAMP_NS = 10**9


class LatencyError(ValueError):
    """A measurement that cannot be made."""


@dataclass(frozen=True)
class NodeRow:
    """One model at one size, rate and place; times in milliseconds.

    Attributes:
        place: of `PLACES`: where player, node and listener ran.
        sent_hz: pairs per second that the player really sent.
        bare_ms: p50, p95, p99 of the engine alone on the same pairs, from array to array.
        stamp_to_publish_ms: p50, p95, p99 over every recorded pair after the lead-in.
        stage_ms: median of each stage, by the node's own clock; `transfer` is from the stamp
            until both images have arrived.
        stage_share: the same as shares of the node's median from the stamp until everything is
            sent, the depth image too.
        dropped_percent: pairs that were sent after the lead-in and not published.
        dropped: pairs of the whole run, the lead-in as well, by cause.
        lead_in: `pairs` that were sent before these, how many of them were `lost`, and how long
            the first of them that was published and the slowest one took, `first_ms` and
            `longest_ms`.
        allowed_ms: 1.1 times the median inference plus 2 ms, the node's target for the median.
        stolen_percent: of the processors' time during the run that the host of a virtual machine
            gave to others; None where the system does not tell.
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
    place: str = 'processes'
    sent_hz: float = 0.0
    bare_ms: dict[str, float | None] | None = None
    stolen_percent: float | None = None
    lead_in: dict[str, float | None] | None = None


def measure_node(
    model: Path,
    provider: str = 'cpu',
    sizes: Sequence[tuple[int, int]] = ((640, 480),),
    rates_hz: Sequence[float] = (10.0, 30.0),
    threads: int = 0,
    pairs: int = 150,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    places: Sequence[str] = PLACES,
    seconds: float | None = None,
) -> dict[str, Any]:
    """Play generated pairs through the node at every size, rate and place.

    Args:
        model: ONNX file.
        provider: as for the node.
        sizes: (width, height) px.
        rates_hz: pairs per second.
        threads: of the CPU; 0 takes the node's default.
        pairs: of each run.
        progress: told what is being done, and how much of it.
        places: of `PLACES`.
        seconds: of each run, which then decides how many pairs it has, up to `MOST_PAIRS`.

    Returns:
        the report: a header, `rows` and `without_drops`.

    Raises:
        LatencyError: a number is out of its range.
        BagError, ChildError, LiveError: as `play_through_node` does.
    """
    if not 2 <= pairs <= MOST_PAIRS:
        raise LatencyError(f'{pairs} pairs were asked for, expected 2 to {MOST_PAIRS}')
    if not all(rate_hz > 0 for rate_hz in rates_hz):
        raise LatencyError(f'the rates are {list(rates_hz)} Hz, expected positive ones')
    if not set(places) <= set(PLACES):
        raise LatencyError(f'the places are {list(places)}, expected some of {", ".join(PLACES)}')
    # Before anything runs here, so that the load is that of others.
    header = {
        **machine(),
        'load_1min': round(os.getloadavg()[0], 2),
        'onnxruntime': onnxruntime.__version__,
    }
    rows = []
    for width, height in sizes:
        progress(f'{width}x{height}: the engine alone', 0, 1)
        scenes = _scenes(width, height)
        bare_ms = measure_bare(model, provider, threads, scenes)
        for rate_hz in rates_hz:
            number = pairs if seconds is None else round(seconds * rate_hz)
            number = max(2, min(number, MOST_PAIRS))
            # Gigabytes at the largest sizes: gone as soon as this rate is done.
            with tempfile.TemporaryDirectory(prefix='stereo_kd_bench_') as name:
                folder = Path(name)
                lead_in = max(1, round(LEAD_IN_S * rate_hz))
                _write_pairs(folder / 'bag', scenes, lead_in + number)
                for place in places:
                    what = f'{width}x{height} at {rate_hz:g} Hz, {place.replace("_", " ")}'
                    stolen = StolenTime()
                    run = _run(
                        place,
                        folder,
                        model,
                        provider,
                        rate_hz,
                        threads,
                        lambda phase, done, total, what=what: progress(
                            f'{what}: {phase}', done, total
                        ),
                    )
                    row = node_row(run, model.stem, threads, place, bare_ms, lead_in)
                    rows.append(replace(row, stolen_percent=stolen.percent()))
    told = [asdict(row) for row in rows]
    return {
        'schema': 1,
        'kind': 'node',
        'machine': header,
        'rows': told,
        'without_drops': rates_without_drops(told),
    }


def rates_without_drops(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Up to which of the measured rates nothing was dropped, by subject, size and place.

    Args:
        rows: `NodeRow`s as a report has them.

    Returns:
        one entry each, with `rate_hz` None where pairs were dropped at the lowest rate already.
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in _WHAT_RAN), []).append(row)
    found = []
    for ran, of in groups.items():
        highest = None
        for row in sorted(of, key=lambda row: row['rate_hz']):
            if row['dropped_percent'] > 0:
                break
            highest = row['rate_hz']
        found.append({**dict(zip(_WHAT_RAN, ran)), 'rate_hz': highest})
    return found


def measure_bare(
    model: Path, provider: str, threads: int, scenes: Sequence[StereoSample]
) -> dict[str, float | None]:
    """p50, p95 and p99 of the engine alone [ms], for some seconds.

    Raises:
        EngineError: the model does not run.
    """
    engine = StereoEngine(model, provider, threads or None)
    engine.warm_up(*scenes[0].left.shape[:2])
    taken_ms: list[float] = []
    began = time.perf_counter()
    while len(taken_ms) < FEWEST_BARE_RUNS or time.perf_counter() - began < BARE_SECONDS:
        scene = scenes[len(taken_ms) % len(scenes)]
        start = time.perf_counter()
        engine.infer(scene.left, scene.right)
        taken_ms.append((time.perf_counter() - start) * 1e3)
    return percentiles(taken_ms)


def _run(
    place: str,
    folder: Path,
    model: Path,
    provider: str,
    rate_hz: float,
    threads: int,
    progress: Callable[[str, int, int], None],
) -> LiveRun:
    output = folder / place
    output.mkdir()
    if place == 'processes':
        return play_through_node(
            folder / 'bag',
            output,
            model,
            provider,
            rate_hz,
            progress,
            threads=threads,
            recording=False,
        )
    return _play_in_one_process(
        folder / 'bag', output, model, provider, rate_hz, progress, threads
    )


def _play_in_one_process(
    bag: Path,
    output: Path,
    model: Path,
    provider: str,
    rate_hz: float,
    progress: Callable[[str, int, int], None],
    threads: int,
) -> LiveRun:
    """The counterpart of `play_through_node`; that process is a child, so that it is alone."""
    with StereoBag(bag) as source:
        camera, pairs = source.camera, source.pair_count
    environ = own_domain()
    os.environ.update(environ)
    result = output / 'result.json'
    command = [sys.executable, '-m', 'stereo_kd_ros.node.one_process']
    command += [str(bag), str(model), str(result), '--rate', str(rate_hz)]
    command += ['--provider', provider, '--threads', str(threads)]
    deadline = time.monotonic() + ONE_PROCESS_TIMEOUT_S
    with (
        stop_requests() as stop,
        Child('node', command, log=output / 'log', environ=environ) as child,
    ):
        progress('playing', 0, pairs)
        while child.exit_code is None and time.monotonic() < deadline:
            stop.check()
            time.sleep(0.1)
        if not result.exists():
            raise LiveError(f'The node gave no result. The end of its log:\n{child.tail()}')
    told = json.loads(result.read_text())
    sent = {stamp: stamp for stamp in told['sent']}
    came_back = [arrival for arrival in told['arrivals'] if arrival[0] in sent]
    if not came_back:
        raise LiveError(f'Nothing was published for {len(sent)} pairs:\n{child.tail()}')
    took_ms = {at: (there - at) / 1e6 for at, there, _ in came_back}
    return LiveRun(
        camera=camera,
        rate_hz=rate_hz,
        recorded_stamps=sent,
        pairs_recorded=len(came_back),
        stamp_to_publish_ms=percentiles(list(took_ms.values())),
        stamp_to_receipt_ms=percentiles([(here - at) / 1e6 for at, _, here in came_back]),
        publish_time_known=told['knows_source_time'],
        pipeline=told['pipeline'],
        model={'provider': told['provider']},
        took_ms=took_ms,
    )


def node_row(
    run: LiveRun,
    subject: str,
    threads: int,
    place: str = 'processes',
    bare_ms: dict[str, float | None] | None = None,
    lead_in: int = 0,
) -> NodeRow:
    """The figures of one run, whose first `lead_in` pairs are told of by themselves."""
    stamps = sorted(run.recorded_stamps)
    early_ms = [run.took_ms[stamp] for stamp in stamps[:lead_in] if stamp in run.took_ms]
    sent = len(stamps) - lead_in
    counts = run.to_json()
    published = counts['pairs_published'] - len(early_ms)
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
        stamp_to_publish_ms=percentiles(
            [run.took_ms[stamp] for stamp in stamps[lead_in:] if stamp in run.took_ms]
        ),
        stage_ms=stage_ms,
        stage_share={
            stage: round(value / whole_ms, 4) for stage, value in stage_ms.items() if whole_ms
        },
        allowed_ms=None if inference_ms is None else round(1.1 * inference_ms + 2.0, 3),
        place=place,
        sent_hz=_rate_of(list(run.recorded_stamps)),
        bare_ms=bare_ms,
        lead_in={
            'pairs': lead_in,
            'lost': lead_in - len(early_ms),
            'first_ms': round(early_ms[0], 3) if early_ms else None,
            'longest_ms': round(max(early_ms), 3) if early_ms else None,
        },
    )


def _rate_of(stamps_ns: list[int]) -> float:
    """Stamps per second."""
    span_ns = max(stamps_ns) - min(stamps_ns) if stamps_ns else 0
    return round((len(stamps_ns) - 1) * 1e9 / span_ns, 2) if span_ns else 0.0


def _scenes(width: int, height: int) -> list[StereoSample]:
    return [render_pair(seed, height, width, min(192.0, width / 2)) for seed in range(SCENES)]


def _write_pairs(bag: Path, scenes: Sequence[StereoSample], pairs: int) -> None:
    """A bag of generated scenes in turn, at 10 Hz."""
    height, width = scenes[0].left.shape[:2]
    camera = StereoCamera.from_intrinsics(
        fx=0.7 * width, baseline_m=0.12, width=width, height=height
    )
    with StereoBagWriter(bag, topics=StereoTopics.in_namespace('/stereo')) as writer:
        for index in range(pairs):
            scene = scenes[index % len(scenes)]
            stamp_ns = _FIRST_STAMP_NS + index * 100_000_000
            writer.write_pair(stamp_ns, scene.left, scene.right, camera)
    # Else the kernel writes hundreds of megabytes to disk while the run has begun.
    for part in bag.iterdir():
        with part.open('rb') as file:
            os.fsync(file.fileno())
