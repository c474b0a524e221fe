# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How fast models and their peers are on this machine, side by side and above the floor.

All subjects of one image size run in turn, A B C A B C ..., so that a machine whose speed
drifts slows them all; what is worth quoting are the ratios. The floor of a model is

    max(MACs / measured peak MACs per second, bytes moved / measured bandwidth),

both measured in the same run with the same number of threads: single-precision matrix
products, and copies of a block larger than the caches. A provider that computes in BF16 or
INT8 may come below it.

The error beside a time is the EPE on procedural pairs of the same size, drawn here with exact
truth: over all pixels, occluded ones included, with the holes of classic matchers filled. Peers
over a fixed range of 192 px and networks trained on other scenes may be at home elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import stereo_kd_ros
from stereo_kd_ros.metrics import DisparityMetrics, disparity_metrics
from stereo_kd_ros.model import resolve_model
from stereo_kd_ros.procedural import render_pair

Image = NDArray[np.uint8]
Run = Callable[[Image, Image], Any]
REFERENCE = 'sgbm-3way'
DISPARITY_RANGE_PX = 192
# Seeds of the pairs that errors are measured on; the pair that is timed has seed 0.
FIRST_EPE_SEED = 1


class BenchmarkError(ValueError):
    """A benchmark that cannot be run or compared."""


@dataclass(frozen=True)
class Subject:
    """Something that is timed.

    Attributes:
        name: of the model or peer.
        provider: what really runs it.
        run: takes two (H, W, 3) uint8 RGB images.
        disparity: takes the same, gives (H, W) px, dense; None when it has no error to measure.
        prepare: told (height, width) [px] before a size is timed, as a node does at its start.
        macs_640x480: multiply-accumulates of a model at 640x480; None for a peer.
        weight_bytes: read once per frame.
        memory_mb: resident memory that opening and one run added.
    """

    name: str
    provider: str
    run: Run
    macs_640x480: int | None = None
    weight_bytes: int = 0
    memory_mb: float | None = None
    disparity: Run | None = None
    prepare: Callable[[int, int], Any] | None = None


@dataclass(frozen=True)
class Row:
    """One subject at one size; times in milliseconds of wall time."""

    subject: str
    provider: str
    width: int
    height: int
    threads: int
    runs: int
    min_ms: float
    p50_ms: float
    p99_ms: float
    fps: float
    floor_ms: float | None
    ratio_to_reference: float | None
    memory_mb: float | None
    epe: float | None = None


@dataclass(frozen=True)
class Peak:
    """What the machine does at best with a number of threads."""

    threads: int
    gmacs_per_second: float
    gigabytes_per_second: float


_PEAK_PROGRAM = """
import time, numpy as np
n = 1024
a = np.ones((n, n), np.float32); b = np.ones((n, n), np.float32); c = np.empty_like(a)
def best(work, seconds=0.6):
    fastest, end = 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter(); work(); fastest = min(fastest, time.perf_counter() - start)
    return fastest
np.matmul(a, b, out=c)
macs = n ** 3 / best(lambda: np.matmul(a, b, out=c))
block = np.ones(1 << 27, np.uint8); copy = np.empty_like(block)
rate = 2 * block.nbytes / best(lambda: np.copyto(copy, block))
print(macs, rate)
"""


def measure_peak(threads: int) -> Peak:
    """Best single-precision MAC rate of `threads` threads, and copy bandwidth of one.

    Runs in a process of its own: BLAS reads its number of threads only at start.
    """
    names = ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')
    environment = {**os.environ, **dict.fromkeys(names, str(threads))}
    result = subprocess.run(
        [sys.executable, '-c', _PEAK_PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    macs, rate = (float(word) for word in result.stdout.split())
    return Peak(threads, macs / 1e9, rate / 1e9)


def open_model(model: str, provider: str, threads: int) -> Subject:
    """A contract model behind `StereoEngine`.

    Raises:
        EngineError, ModelError: as the engine does.
    """
    from stereo_kd_ros.engine import StereoEngine

    before = _resident_mb()
    engine = StereoEngine(model, provider=provider, threads=threads)
    engine.warm_up(480, 640, runs=1)
    manifest = engine.manifest
    label = engine.provider
    if label == 'openvino':
        label = f'openvino {engine.precision}'
    return Subject(
        name=manifest.name if manifest else Path(engine.path).stem,
        provider=label,
        run=engine.infer,
        macs_640x480=getattr(manifest, 'macs_640x480', 0) or None,
        weight_bytes=Path(engine.path).stat().st_size,
        memory_mb=round(_resident_mb() - before, 1),
        disparity=lambda left, right: engine.infer(left, right).disparity,
        prepare=lambda height, width: engine.warm_up(height, width, runs=1),
    )


def open_peer(text: str, threads: int) -> Subject:
    """A classic matcher over 192 px, padded so that every column can be matched, or a network.

    Args:
        text: the matcher's name, or NAME=FILE.onnx as `onnx_peer` has it.
        threads: of the CPU.

    Raises:
        BenchmarkError: there is no such matcher.
        OnnxPeerError: the network's file or its adapter is at fault.
    """
    name, separator, file = text.partition('=')
    return _open_network(name, file, threads) if separator else _open_matcher(name, threads)


def _open_network(name: str, file: str, threads: int) -> Subject:
    from stereo_kd_ros.onnx_peer import open_onnx_peer

    before = _resident_mb()
    network = open_onnx_peer(name, file, threads)
    pair = render_pair(0, 128, 256)
    network(pair.left, pair.right)
    return Subject(
        name,
        'cpu',
        network,
        weight_bytes=network.path.stat().st_size,
        memory_mb=round(_resident_mb() - before, 1),
        disparity=network,
    )


def _open_matcher(name: str, threads: int) -> Subject:
    import cv2

    from stereo_kd_ros.baselines import BlockMatcher, Sgbm

    makers: dict[str, Callable[[], Any]] = {
        'sgbm-3way': lambda: Sgbm(DISPARITY_RANGE_PX, '3way'),
        'sgbm-hh': lambda: Sgbm(DISPARITY_RANGE_PX, 'hh'),
        'bm': lambda: BlockMatcher(DISPARITY_RANGE_PX),
    }
    if name not in makers:
        raise BenchmarkError(
            f'there is no peer {name!r}; expected one of {", ".join(makers)}, or NAME=FILE.onnx'
        )
    matcher = makers[name]()

    def run(left: Image, right: Image) -> Any:
        cv2.setNumThreads(threads)
        return matcher.compute(left, right)

    return Subject(name, f'opencv {cv2.__version__}', run, disparity=matcher.dense)


def measure_epe(
    subjects: Sequence[Subject], width: int, height: int, pairs: int
) -> list[float | None]:
    """EPE [px] of each subject on `pairs` procedural pairs of a size, over all their pixels."""
    parts: list[list[DisparityMetrics]] = [[] for _ in subjects]
    for seed in range(FIRST_EPE_SEED, FIRST_EPE_SEED + pairs):
        sample = render_pair(seed, height, width, min(DISPARITY_RANGE_PX, width / 2))
        for subject, of in zip(subjects, parts):
            if subject.disparity is not None:
                given = subject.disparity(sample.left, sample.right)
                of.append(disparity_metrics(given, sample.disparity, DISPARITY_RANGE_PX))
    return [DisparityMetrics.pooled(of).epe_px if of else None for of in parts]


def time_in_turn(
    subjects: Sequence[Subject],
    left: Image,
    right: Image,
    runs: int,
    progress: Callable[[int], None] | None = None,
) -> list[list[float]]:
    """Milliseconds of `runs` runs of each subject, taken in turn after two uncounted ones."""
    times: list[list[float]] = [[] for _ in subjects]
    for subject in subjects:
        if subject.prepare is not None:
            subject.prepare(*left.shape[:2])
        for _ in range(2):
            subject.run(left, right)
    for _ in range(runs):
        for subject, taken in zip(subjects, times):
            start = time.perf_counter()
            subject.run(left, right)
            taken.append(1e3 * (time.perf_counter() - start))
            # Worker threads of the last subject may still spin for a moment.
            time.sleep(0.003)
        if progress:
            progress(1)
    return times


def floor_ms(subject: Subject, width: int, height: int, peak: Peak) -> float | None:
    """The time below which this machine cannot run the subject; None for a peer."""
    if subject.macs_640x480 is None:
        return None
    pixels = width * height
    compute = subject.macs_640x480 * pixels / (640 * 480) / (peak.gmacs_per_second * 1e9)
    # Two images of three bytes in, two maps of four bytes out, the weights once.
    moved = pixels * (2 * 3 + 2 * 4) + subject.weight_bytes
    return 1e3 * max(compute, moved / (peak.gigabytes_per_second * 1e9))


def benchmark(
    models: Sequence[str],
    providers: Sequence[str] = ('cpu',),
    peers: Sequence[str] = (REFERENCE,),
    sizes: Sequence[tuple[int, int]] = ((640, 480),),
    threads: Sequence[int] = (2,),
    runs: int = 30,
    progress: Callable[[str, int, int], None] | None = None,
    epe_pairs: int = 0,
) -> dict[str, Any]:
    """Time every model on every provider, and the peers, at every size and thread count.

    Args:
        models: names or paths.
        providers: of the models; one that does not load is reported under `skipped`.
        peers: classic matchers or NAME=FILE.onnx; ratios refer to the first.
        sizes: (width, height) px.
        threads: CPU threads.
        runs: counted runs of each subject.
        progress: called with (what, done, total).
        epe_pairs: procedural pairs of each size to measure errors on; none without.

    Returns:
        the report: a header, `rows` (one per subject, size and thread count), `skipped`.

    Raises:
        BenchmarkError: nothing could be opened.
        ModelError: a model does not exist.
    """
    for model in models:
        resolve_model(model)
    rows: list[Row] = []
    skipped: list[dict[str, str]] = []
    peaks = []
    errors: dict[tuple[Any, ...], float | None] = {}
    total = len(sizes) * len(threads)
    for number, count in enumerate(threads):
        peak = measure_peak(count)
        peaks.append(asdict(peak))
        subjects = [open_peer(name, count) for name in peers]
        for model in models:
            for provider in providers:
                try:
                    subjects.append(open_model(model, provider, count))
                except (RuntimeError, ValueError) as error:
                    skipped.append({'subject': model, 'provider': provider, 'reason': str(error)})
        if not subjects:
            reasons = '; '.join(item['reason'] for item in skipped) or 'no subject was named'
            raise BenchmarkError(f'there is nothing to measure: {reasons}')
        for position, (width, height) in enumerate(sizes):
            if progress:
                progress(
                    f'{width}x{height}, {count} threads', number * len(sizes) + position, total
                )
            pair = render_pair(0, height, width)
            times = time_in_turn(subjects, pair.left, pair.right, runs)
            base = np.array(times[0]) if peers else None
            # The number of threads changes no answer.
            if number == 0:
                for subject, epe in zip(subjects, measure_epe(subjects, width, height, epe_pairs)):
                    errors[subject.name, subject.provider, width, height] = epe
            for subject, taken in zip(subjects, times):
                epe = errors.get((subject.name, subject.provider, width, height))
                rows.append(_row(subject, taken, base, width, height, peak, epe))
    return {
        'schema': 1,
        'machine': machine(),
        'peak': peaks,
        'reference': peers[0].partition('=')[0] if peers else None,
        'epe_pairs': epe_pairs,
        'rows': [asdict(row) for row in rows],
        'skipped': skipped,
    }


def _row(
    subject: Subject,
    taken: Sequence[float],
    base: NDArray[np.float64] | None,
    width: int,
    height: int,
    peak: Peak,
    epe: float | None,
) -> Row:
    p50, p99 = np.percentile(taken, (50, 99))
    floor = floor_ms(subject, width, height, peak)
    # Pair by pair: both of a pair met the same state of the machine.
    ratio = None if base is None else float(np.median(np.array(taken) / base))
    return Row(
        subject=subject.name,
        provider=subject.provider,
        width=width,
        height=height,
        threads=peak.threads,
        runs=len(taken),
        min_ms=round(min(taken), 3),
        p50_ms=round(float(p50), 3),
        p99_ms=round(float(p99), 3),
        fps=round(1e3 / float(p50), 2),
        floor_ms=None if floor is None else round(floor, 3),
        ratio_to_reference=None if ratio is None else round(ratio, 4),
        memory_mb=subject.memory_mb,
        epe=None if epe is None or math.isnan(epe) else round(epe, 3),
    )


def machine() -> dict[str, Any]:
    """Processor, load and versions: what a figure means nothing without."""
    import cv2
    import onnxruntime

    return {
        'processor': _processor(),
        'cores': os.cpu_count(),
        'load_1min': round(os.getloadavg()[0], 2),
        'system': platform.platform(),
        'python': platform.python_version(),
        'onnxruntime': onnxruntime.__version__,
        'opencv': cv2.__version__,
        'numpy': np.__version__,
        'stereo_kd_ros': stereo_kd_ros.__version__,
    }


def compare_with(
    report: Mapping[str, Any], baseline: Mapping[str, Any], tolerance: float = 0.25
) -> list[str]:
    """What got slower, as sentences: rows whose ratio to the reference grew by > tolerance.

    Only ratios of one run are compared, so that another machine can be held to them.

    Raises:
        BenchmarkError: the two reports share no row.
    """

    def ratios(of: Mapping[str, Any]) -> dict[tuple[Any, ...], float]:
        keys = ('subject', 'provider', 'width', 'height', 'threads')
        return {
            tuple(row[key] for key in keys): row['ratio_to_reference']
            for row in of['rows']
            if row['ratio_to_reference'] is not None and row['subject'] != of['reference']
        }

    before, now = ratios(baseline), ratios(report)
    shared = sorted(set(before) & set(now), key=str)
    if not shared:
        raise BenchmarkError(
            'the baseline has no model, provider, size and thread count in common with this run'
        )
    return [
        f'{key[0]} on {key[1]} at {key[2]}x{key[3]}, {key[4]} threads: {now[key]:.2f} times the '
        f'{report["reference"]}, was {before[key]:.2f}'
        for key in shared
        if now[key] > before[key] * (1.0 + tolerance)
    ]


def write_report(report: Mapping[str, Any], path: Path) -> None:
    """The report as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + '\n', encoding='utf-8')


def read_report(path: Path) -> dict[str, Any]:
    """A report written by `write_report`.

    Raises:
        BenchmarkError: the file is something else.
    """
    try:
        report = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise BenchmarkError(f'{path} cannot be read as a benchmark report: {error}') from error
    if not isinstance(report, dict) or not {'rows', 'reference'} <= set(report):
        raise BenchmarkError(f'{path} is no benchmark report (it lacks rows or reference)')
    return report


def plot_report(report: Mapping[str, Any], path: Path) -> None:
    """Median time over pixels, one line per subject, with its floor below it (matplotlib)."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchmarkError(
            'a plot needs matplotlib: pip install matplotlib, or leave --plot out'
        ) from error
    figure = Figure(figsize=(8, 6), layout='constrained')
    axes = figure.subplots()
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in report['rows']:
        groups.setdefault((row['subject'], row['provider'], row['threads']), []).append(row)
    for (subject, provider, threads), rows in groups.items():
        rows = sorted(rows, key=lambda row: row['width'] * row['height'])
        pixels = [row['width'] * row['height'] / 1e6 for row in rows]
        label = f'{subject}, {provider}, {threads} thread{"s" if threads > 1 else ""}'
        times = [row['p50_ms'] for row in rows]
        (line,) = axes.plot(pixels, times, 'o-', label=label)
        if rows[0]['floor_ms'] is not None:
            axes.plot(pixels, [row['floor_ms'] for row in rows], ':', color=line.get_color())
    sizes = sorted({(row['width'], row['height']) for row in report['rows']}, key=math.prod)
    axes.set(
        xscale='log',
        yscale='log',
        xlabel='image size [px], by its number of pixels',
        ylabel='median time per pair [ms]',
        title=f'{report["machine"]["processor"]} (dotted: floor)',
    )
    axes.set_xticks([math.prod(size) / 1e6 for size in sizes])
    axes.set_xticklabels([f'{width}x{height}' for width, height in sizes])
    axes.set_xticks([], minor=True)
    axes.grid(True, which='both', alpha=0.3)
    # Below the axes: inside of them it lay on the lines.
    figure.legend(loc='outside lower center', ncols=2, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _processor() -> str:
    try:
        for line in Path('/proc/cpuinfo').read_text(encoding='utf-8').splitlines():
            if line.startswith('model name'):
                return line.partition(':')[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _resident_mb() -> float:
    try:
        pages = int(Path('/proc/self/statm').read_text(encoding='ascii').split()[1])
    except (OSError, ValueError, IndexError):
        return math.nan
    return pages * os.sysconf('SC_PAGE_SIZE') / 1e6
