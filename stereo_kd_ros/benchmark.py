# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""How fast models and their peers are on this machine, side by side and above the floor.

All subjects of one image size run in turn, A B C A B C ..., so that a machine whose speed
drifts slows them all; what is worth quoting are the ratios. The floor of a model is

    max(MACs / measured peak MACs per second, bytes moved / measured bandwidth),

both measured beside it with the same number of threads: matrix products through the provider and
in the precision that ran, and copies of a block larger than the caches (`peak`). Memory is that of
a process which opens one subject and nothing else (`subjects.measure_memory`).

The error beside a time is the EPE on procedural pairs of the same size, drawn here with exact
truth, or on those of a bag: over all pixels that have truth, with the holes of classic matchers
filled. Peers
over a fixed range of 192 px and networks trained on other scenes may be at home elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

import stereo_kd_ros
from stereo_kd_ros.cache import gpu_and_driver
from stereo_kd_ros.metrics import DisparityMetrics, disparity_metrics
from stereo_kd_ros.model import resolve_model
from stereo_kd_ros.peak import Peak, PeakError, measure_peak
from stereo_kd_ros.procedural import render_pair
from stereo_kd_ros.processor import StolenTime, maker_of, processor_name, vector_unit
from stereo_kd_ros.providers import ON_GPU
from stereo_kd_ros.subjects import (
    DISPARITY_RANGE_PX,
    BenchmarkError,
    Image,
    Subject,
    SubjectSpec,
    check_peer,
    measure_memory,
    provider_of,
)

REFERENCE = 'sgbm-3way'
PLOTS = ('.png', '.svg', '.pdf')
# Seeds of the pairs that errors are measured on; the pair that is timed has seed 0.
FIRST_EPE_SEED = 1
# Of a bag, errors are measured on this many pairs.
BAG_PAIRS = 20
Disparity = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """One subject at one size; times in milliseconds of wall time.

    `provider` and `precision` are those that ran, `memory_mb` what opening and running it added at
    most, `ratio_to_reference` the median over the turns of its time over the first peer's.
    """

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
    precision: str = ''


class Pairs(Protocol):
    """What is timed and measured on."""

    def timed(self, width: int, height: int) -> tuple[Image, Image]:
        """The pair that is timed at a size, (H, W, 3) RGB each."""

    def labelled(self, width: int, height: int) -> Iterator[tuple[Image, Image, Disparity]]:
        """Pairs of a size with their true disparity, (H, W) px, NaN where it is unknown."""


@dataclass(frozen=True)
class GeneratedPairs:
    """Procedural pairs of any size.

    Attributes:
        count: of those with truth; the one that is timed is another.
    """

    count: int = 0

    def timed(self, width: int, height: int) -> tuple[Image, Image]:
        """The pair of seed 0."""
        pair = render_pair(0, height, width)
        return pair.left, pair.right

    def labelled(self, width: int, height: int) -> Iterator[tuple[Image, Image, Disparity]]:
        """Those of the seeds behind it, with a range that fits the width."""
        for seed in range(FIRST_EPE_SEED, FIRST_EPE_SEED + self.count):
            pair = render_pair(seed, height, width, min(DISPARITY_RANGE_PX, width / 2))
            yield pair.left, pair.right, pair.disparity


class BagPairs:
    """The pairs of a bag, at its own size.

    Args:
        bag: a rosbag of rectified images.
        truth: as `open_truth` takes it; no errors without.
        count: of the pairs that errors are measured on, from all over the bag.

    Attributes:
        size: (width, height) px.

    Raises:
        BagError, TruthError: as they do, or the bag holds no pair.
    """

    def __init__(self, bag: Path, truth: str | None, count: int = BAG_PAIRS) -> None:
        from stereo_kd_ros.bag import BagError, StereoBag
        from stereo_kd_ros.truth import open_truth

        first: tuple[Image, Image] | None = None
        self._labelled: list[tuple[Image, Image, Disparity]] = []
        with StereoBag(bag) as source, open_truth(source, truth) as known:
            step = max(1, source.pair_count // max(count, 1))
            for index, frame in enumerate(source.pairs()):
                first = (frame.left, frame.right) if first is None else first
                if known is None:
                    break
                # Asked for each, since topics are read in time order.
                disparity = known.disparity(frame.stamp_ns, index)
                if index % step == 0 and disparity is not None and len(self._labelled) < count:
                    self._labelled.append((frame.left, frame.right, disparity))
        if first is None:
            raise BagError(f'{bag} holds no pair of images that belong together')
        if truth is not None and not self._labelled:
            raise BenchmarkError(f'{truth} has no true disparity of a pair of {bag}')
        self._first = first
        self.size = (first[0].shape[1], first[0].shape[0])

    def timed(self, width: int, height: int) -> tuple[Image, Image]:
        """The first pair."""
        return self._first

    def labelled(self, width: int, height: int) -> Iterator[tuple[Image, Image, Disparity]]:
        """Those that have truth."""
        yield from self._labelled


def measure_epe(
    subjects: Sequence[Subject], pairs: Pairs, width: int, height: int
) -> list[float | None]:
    """EPE [px] of each subject on the pairs of a size that have truth, over all pixels of it."""
    parts: list[list[DisparityMetrics]] = [[] for _ in subjects]
    for left, right, truth in pairs.labelled(width, height):
        for subject, of in zip(subjects, parts):
            if subject.disparity is not None:
                of.append(
                    disparity_metrics(subject.disparity(left, right), truth, DISPARITY_RANGE_PX)
                )
    return [DisparityMetrics.pooled(of).epe_px if of else None for of in parts]


def time_in_turn(
    subjects: Sequence[Subject],
    left: Image,
    right: Image,
    runs: int,
    progress: Callable[[int], None] | None = None,
    on_failure: Callable[[Subject, Exception], None] | None = None,
) -> list[list[float]]:
    """Milliseconds of `runs` runs of each subject, taken in turn after two uncounted ones.

    With `on_failure`, who fails in the uncounted ones is told to it and has no times; without, its
    error is raised.
    """
    times: list[list[float]] = [[] for _ in subjects]
    running: list[tuple[Subject, list[float]]] = []
    for subject, taken in zip(subjects, times):
        try:
            if subject.prepare is not None:
                subject.prepare(*left.shape[:2])
            for _ in range(2):
                subject.run(left, right)
        except Exception as error:  # OpenCV's and ONNX Runtime's errors share no base class
            if on_failure is None:
                raise
            on_failure(subject, error)
        else:
            running.append((subject, taken))
    for _ in range(runs):
        for subject, taken in running:
            start = time.perf_counter()
            subject.run(left, right)
            whole_ms = 1e3 * (time.perf_counter() - start)
            taken.append(whole_ms if subject.own_ms is None else subject.own_ms())
            # Worker threads of the last subject may still spin for a moment.
            time.sleep(0.003)
        if progress:
            progress(1)
    return times


def floor_ms(subject: Subject, width: int, height: int, peak: Peak | None) -> float | None:
    """The time below which this machine cannot run the subject; None for a peer.

    `peak` is that of the provider, precision and threads that ran.
    """
    if subject.macs_640x480 is None or peak is None:
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
    memory: bool = True,
    data: Path | None = None,
    truth: str | None = None,
) -> dict[str, Any]:
    """Time every model on every provider, and the peers, at every size and thread count.

    Args:
        models: names or paths.
        providers: of the models, as PROVIDER or PROVIDER:PRECISION; one that does not load here is
            reported under `skipped`.
        peers: as `subjects` lists them; ratios refer to the first.
        sizes: (width, height) px; who does not run at one is reported under `skipped`.
        threads: CPU threads.
        runs: counted runs of each subject.
        progress: called with (what, done, total).
        epe_pairs: procedural pairs of each size to measure errors on; none without.
        memory: measure that of each subject and size, a second or two each.
        data: a bag whose pairs are timed and measured on instead of generated ones, at their own
            size instead of `sizes`.
        truth: of that bag, as `open_truth` takes it; without, its errors are not known.

    Returns:
        the report: a header, `rows` (one per subject, size and thread count), `skipped`.

    Raises:
        BenchmarkError: a peer, provider or precision does not exist, or nothing could be opened.
        ModelError: a model does not exist.
        OnnxPeerError, ProcessPeerError: a peer does not open.
        BagError, TruthError: the bag or its truth cannot be read.
    """
    for model in models:
        resolve_model(model)
    for name in peers:
        check_peer(name)
    specs = [SubjectSpec('peer', name) for name in peers]
    specs += [
        SubjectSpec('model', model, *provider_of(of)) for model in models for of in providers
    ]
    header = machine(specs)
    if truth is not None and data is None:
        raise BenchmarkError(f'the truth {truth} is of no bag; name that as well')
    pairs: Pairs = GeneratedPairs(epe_pairs)
    if data is not None:
        pairs = BagPairs(data, truth, epe_pairs or BAG_PAIRS)
        sizes = [pairs.size]
    bench = _Bench(runs, pairs, memory)
    stolen = StolenTime()
    total = len(sizes) * len(threads)
    for number, count in enumerate(threads):
        with _opened(specs, count, bench.skipped) as subjects:
            for position, size in enumerate(sizes):
                if progress:
                    what = f'{size[0]}x{size[1]}, {count} threads'
                    progress(what, number * len(sizes) + position, total)
                bench.measure(subjects, size, count)
    return {
        'schema': 1,
        'machine': {
            **header,
            'load_1min_after': round(os.getloadavg()[0], 2),
            'stolen_percent': stolen.percent(),
        },
        'peak': [asdict(peak) for peak in bench.peaks.values() if peak is not None],
        'reference': bench.reference,
        'epe_pairs': epe_pairs,
        'data': None if data is None else data.name,
        'rows': [asdict(row) for row in bench.rows],
        'skipped': bench.skipped,
    }


@contextmanager
def _opened(
    specs: Sequence[SubjectSpec], threads: int, skipped: list[dict[str, str]]
) -> Iterator[list[tuple[SubjectSpec, Subject]]]:
    """All subjects that open, under names that differ; closed at the end.

    Raises:
        BenchmarkError: there is none.
    """
    opened: list[tuple[SubjectSpec, Subject]] = []
    try:
        for spec in specs:
            try:
                opened.append((spec, spec.open(threads)))
            except (RuntimeError, ValueError) as error:
                # A peer is asked for by name and file; a provider may be missing on this machine.
                if spec.kind == 'peer':
                    raise
                told = {'subject': spec.name, 'provider': spec.provider, 'reason': str(error)}
                if told not in skipped:
                    skipped.append(told)
        if not opened:
            reasons = '; '.join(item['reason'] for item in skipped) or 'no subject was named'
            raise BenchmarkError(f'there is nothing to measure: {reasons}')
        yield _told_apart(opened)
    finally:
        for _, subject in opened:
            if subject.close is not None:
                subject.close()


def _told_apart(
    opened: Sequence[tuple[SubjectSpec, Subject]],
) -> list[tuple[SubjectSpec, Subject]]:
    """Two files that call themselves the same get their files' names beside it."""
    calls = Counter(name for name, _ in {(subject.name, spec.name) for spec, subject in opened})
    return [
        (spec, replace(subject, name=f'{subject.name} ({Path(spec.name).name})'))
        if calls[subject.name] > 1
        else (spec, subject)
        for spec, subject in opened
    ]


class _Bench:
    """The rows so far, and what several of them share."""

    def __init__(self, runs: int, pairs: Pairs, memory: bool) -> None:
        self.rows: list[Row] = []
        self.reference: str | None = None
        self.skipped: list[dict[str, str]] = []
        self.peaks: dict[tuple[int, str, str], Peak | None] = {}
        self._runs, self._pairs, self._memory = runs, pairs, memory
        self._errors: dict[tuple[Any, ...], float | None] = {}

    def measure(
        self,
        opened: Sequence[tuple[SubjectSpec, Subject]],
        size: tuple[int, int],
        threads: int,
    ) -> None:
        """Add the rows of one size and number of threads."""
        width, height = size
        left, right = self._pairs.timed(width, height)
        subjects = [subject for _, subject in opened]

        def failed(subject: Subject, error: Exception) -> None:
            reason = f'at {width}x{height}: {" ".join(str(error).split())}'
            self._skip(subject.name, subject.provider, reason)

        times = time_in_turn(subjects, left, right, self._runs, on_failure=failed)
        # What ran last is what was timed: an engine may choose anew for each size.
        ran = [
            (subject.provider, subject.precision) if subject.ran is None else subject.ran()
            for subject in subjects
        ]
        base = None
        if opened[0][0].kind == 'peer':
            self.reference = subjects[0].name
            base = np.array(times[0]) if times[0] else None
        measured = [index for index, taken in enumerate(times) if taken]
        # The number of threads changes no answer.
        unknown = [index for index in measured if (size, index) not in self._errors]
        found = measure_epe([subjects[index] for index in unknown], self._pairs, *size)
        self._errors.update(((size, index), epe) for index, epe in zip(unknown, found))
        for index in measured:
            spec, subject = opened[index]
            subject = replace(subject, provider=ran[index][0], precision=ran[index][1])
            peak = None if subject.macs_640x480 is None else self._peak(threads, *ran[index])
            row = _row(subject, times[index], base, size, threads, peak)
            memory_mb = measure_memory(spec, *size, threads) if self._memory else None
            epe = self._errors[size, index]
            known = None if epe is None or math.isnan(epe) else round(epe, 3)
            self.rows.append(replace(row, memory_mb=memory_mb, epe=known))

    def _peak(self, threads: int, provider: str, precision: str) -> Peak | None:
        key = (threads, provider, precision)
        if key not in self.peaks:
            try:
                self.peaks[key] = measure_peak(*key)
            except PeakError as error:
                self.peaks[key] = None
                self._skip('floor', provider, str(error))
        return self.peaks[key]

    def _skip(self, subject: str, provider: str, reason: str) -> None:
        self.skipped.append({'subject': subject, 'provider': provider, 'reason': reason})


def _row(
    subject: Subject,
    taken: Sequence[float],
    base: NDArray[np.float64] | None,
    size: tuple[int, int],
    threads: int,
    peak: Peak | None,
) -> Row:
    p50, p99 = np.percentile(taken, (50, 99))
    floor = floor_ms(subject, *size, peak)
    # Pair by pair: both of a pair met the same state of the machine.
    ratio = None if base is None else float(np.median(np.array(taken) / base))
    return Row(
        subject=subject.name,
        provider=subject.provider,
        width=size[0],
        height=size[1],
        threads=threads,
        runs=len(taken),
        min_ms=round(min(taken), 3),
        p50_ms=round(float(p50), 3),
        p99_ms=round(float(p99), 3),
        fps=round(1e3 / float(p50), 2),
        floor_ms=None if floor is None else round(floor, 3),
        ratio_to_reference=None if ratio is None else round(ratio, 4),
        memory_mb=None,
        precision=subject.precision,
    )


def machine(specs: Sequence[SubjectSpec] = ()) -> dict[str, Any]:
    """Processor, load and versions: what a figure means nothing without.

    The GPU and its driver are among them where `specs` may run there.
    """
    import cv2
    import onnxruntime

    told = {
        'processor': processor_name() or platform.processor() or platform.machine(),
        'vectors': vector_unit(),
        'cores': os.cpu_count(),
        'load_1min': round(os.getloadavg()[0], 2),
        'system': platform.platform(),
        'python': platform.python_version(),
        'onnxruntime': onnxruntime.__version__,
        'opencv': cv2.__version__,
        'numpy': np.__version__,
        'stereo_kd_ros': stereo_kd_ros.__version__,
    }
    with suppress(metadata.PackageNotFoundError):
        told['openvino'] = metadata.version('openvino')
    if any(spec.provider in (*ON_GPU, 'auto') for spec in specs):
        gpu, driver = gpu_and_driver(0)
        told.update({'gpu': gpu, 'driver': driver} if gpu else {})
    return told


def baseline_for(path: Path, vectors: str, processor: str) -> dict[str, Any]:
    """The report to compare with: of this file, or that in a folder whose processor is alike.

    What a matcher of integers and a network cost beside each other differs with the instructions
    that a processor has, by a factor of five from AVX2 to BF16, and by half among makers whose
    processors have the same ones.

    Args:
        path: a report, or a folder of reports.
        vectors: the `vector_unit` that the new report is of.
        processor: its `processor_name`, of which the maker counts, the first word.

    Raises:
        BenchmarkError: there is no such file, or none in the folder for such a processor.
    """
    if not path.is_dir():
        return read_report(path)
    told, wanted = [], (maker_of(processor), vectors)
    for file in sorted(path.glob('*.json')):
        report = read_report(file)
        of = report.get('machine', {})
        kind = (maker_of(of.get('processor') or ''), of.get('vectors') or '')
        if kind == wanted:
            return report
        told.append(f'{file.name} ({" ".join(filter(None, kind)) or "unknown"})')
    raise BenchmarkError(
        f'{path} has no report of a processor like this one '
        f'({" ".join(filter(None, wanted)) or "unknown"}), but '
        f'{", ".join(told) or "no report at all"}; make one with --json {path}/NAME.json where '
        'nothing else runs, and later runs are held to it'
    )


def compare_with(
    report: Mapping[str, Any], baseline: Mapping[str, Any], tolerance: float = 0.25
) -> list[str]:
    """What got slower, as sentences: rows whose ratio to the reference grew by > tolerance.

    Only ratios of one run are compared, so that another machine of its kind can be held to them.

    Raises:
        BenchmarkError: the two reports share no row.
    """

    before, now = _ratios(baseline), _ratios(report)
    shared = sorted(set(before) & set(now), key=str)
    if not shared:
        raise BenchmarkError(
            'the baseline has no model, provider, size and thread count in common with this run'
        )
    return [
        f'{_words(key)}: {now[key]:.2f} times the {report["reference"]}, was {before[key]:.2f}'
        for key in shared
        if now[key] > before[key] * (1.0 + tolerance)
    ]


def not_compared(report: Mapping[str, Any], baseline: Mapping[str, Any]) -> list[str]:
    """What `compare_with` is silent about, as sentences: rows that only one of both has.

    Of the baseline's only those at the sizes and thread counts of this run count.
    """
    before, now = _ratios(baseline), _ratios(report)
    at = {key[2:] for key in now}
    gone = sorted((key for key in set(before) - set(now) if key[2:] in at), key=str)
    new = sorted(set(now) - set(before), key=str)
    return [f'{_words(key)}: in the baseline, but not in this run' for key in gone] + [
        f'{_words(key)}: not in the baseline' for key in new
    ]


def _ratios(report: Mapping[str, Any]) -> dict[tuple[Any, ...], float]:
    """Ratio to the reference by subject, what ran it, width, height and threads."""
    found = {}
    for row in report['rows']:
        if row['ratio_to_reference'] is None or row['subject'] == report['reference']:
            continue
        ran, precision = row['provider'], row.get('precision', '')
        # Reports of before call what is not in single precision `openvino bf16`.
        if precision not in ('', 'fp32'):
            ran = f'{ran} {precision}'
        # A matcher of another version of OpenCV is still that matcher.
        ran = ran.split()[0] if ran.startswith('opencv') else ran
        key = (row['subject'], ran, row['width'], row['height'], row['threads'])
        found[key] = row['ratio_to_reference']
    return found


def _words(key: tuple[Any, ...]) -> str:
    return f'{key[0]} on {key[1]} at {key[2]}x{key[3]}, {key[4]} threads'


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


def check_plot(path: Path) -> None:
    """Check that a chart can be drawn to a file, before minutes are spent on what it shows.

    Raises:
        BenchmarkError: matplotlib is missing, or the file's kind is unknown.
    """
    if path.suffix.lower() not in PLOTS:
        raise BenchmarkError(f'{path} is no chart that can be drawn; expected {", ".join(PLOTS)}')
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise BenchmarkError(
            'a plot needs matplotlib: pip install matplotlib, or leave --plot out'
        ) from error


def plot_report(report: Mapping[str, Any], path: Path) -> None:
    """Median time over pixels, one line per subject, with its floor below it.

    Raises:
        BenchmarkError: as of `check_plot`.
    """
    check_plot(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 6), layout='constrained')
    axes = figure.subplots()
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in report['rows']:
        ran = f'{row["provider"]} {row.get("precision", "")}'.strip()
        groups.setdefault((row['subject'], ran, row['threads']), []).append(row)
    for (subject, provider, threads), rows in groups.items():
        rows = sorted(rows, key=lambda row: row['width'] * row['height'])
        pixels = [row['width'] * row['height'] / 1e6 for row in rows]
        label = f'{subject}, {provider}, {threads} thread{"s" if threads > 1 else ""}'
        times = [row['p50_ms'] for row in rows]
        (line,) = axes.plot(pixels, times, 'o-', label=label)
        floors = [(x, row['floor_ms']) for x, row in zip(pixels, rows) if row['floor_ms']]
        if floors:
            # Marked, since a line through one size alone cannot be seen.
            axes.plot(*zip(*floors), ':', color=line.get_color(), marker='_', markersize=14)
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
