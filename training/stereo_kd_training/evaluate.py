# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Measure models beside classic matchers and other networks, on every labelled set, densely.

Dense means that every ground-truth pixel with 0 < d < 192 counts for everybody: a network
answers everywhere, and a matcher's holes are filled with the smaller of the row's two nearest
answers. Numbers of a set are the mean over its pictures of each picture's own number (the
mean over all pixels of the set is kept as `pooled`); numbers over sets are the geometric mean
for EPE, so that a set with large disparities does not drown the others, and the plain mean
for percentages. Latency is measured in turn, one call each per round, on one 640x480 picture
with the same number of threads, the matchers padded so that they too answer every column.

`evaluate_predictor` judges any function from two images to a disparity, so that a network in
training needs no export; `evaluate_command` is the command line. No torch here.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stereo_kd_ros import baselines, metrics
from stereo_kd_ros.baselines import BlockMatcher, Sgbm
from stereo_kd_ros.benchmark import check_plot
from stereo_kd_ros.metrics import (
    DisparityMetrics,
    counted_pixels,
    disparity_metrics,
    edge_epe,
    geometric_mean,
    sparsification_auc,
)
from stereo_kd_ros.onnx_peer import KNOWN_ADAPTERS, open_onnx_peer
from stereo_kd_ros.processor import processor_name, vector_unit
from stereo_kd_training.datasets.base import StereoSample
from stereo_kd_training.datasets.labelled import labelled_sets
from stereo_kd_training.evaluation_report import (
    plot_report,
    print_report,
    write_json,
    write_strip,
)
from stereo_kd_training.sheets import Extremes, write_picture

# Two (H, W, 3) uint8 RGB images to a disparity (H, W) px, or to (disparity, confidence).
Predict = Callable[[np.ndarray, np.ndarray], 'np.ndarray | tuple[np.ndarray, np.ndarray]']

MAX_DISPARITY_PX = 192
LATENCY_SIZE = (640, 480)

_MATCHERS: dict[str, Sgbm | BlockMatcher] = {
    'sgbm-3way': Sgbm(MAX_DISPARITY_PX, '3way'),
    'sgbm-hh': Sgbm(MAX_DISPARITY_PX, 'hh'),
    'sgbm-hh4': Sgbm(MAX_DISPARITY_PX, 'hh4'),
    'bm': BlockMatcher(MAX_DISPARITY_PX),
}


class EvaluationError(RuntimeError):
    """A method that cannot be set up, or that answered something that is no disparity."""


@dataclass(frozen=True)
class Method:
    """One row of the comparison.

    Attributes:
        name: for tables, unique in a run.
        predict: two (H, W, 3) uint8 RGB images to a disparity (H, W) px that is finite
            everywhere, or to that and a confidence (H, W), higher is surer.
        kind: 'model' (the file under test), 'peer' or 'predictor'.
        identity: what makes its answers reproducible; None when they must not be cached.
        details: facts for the report, JSON values.
        warm_up: called with height and width [px] before pairs of one size are timed.
    """

    name: str
    predict: Predict
    kind: str = 'predictor'
    identity: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    warm_up: Callable[[int, int], Any] | None = None


class PredictionCache:
    """Disparities of methods that do not change, one .npy per method and pair."""

    def __init__(self, folder: Path | None = None) -> None:
        if folder is None:
            base = os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'
            folder = Path(base) / 'stereo_kd_ros' / 'predictions'
        self.folder = folder

    def disparity(self, method: Method, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """The disparity of a method with an identity, from disk where it is known."""
        key = hashlib.blake2b(str(method.identity).encode(), digest_size=20)
        for image in (left, right):
            key.update(repr(image.shape).encode())
            key.update(np.ascontiguousarray(image))
        path = self.folder / f'{key.hexdigest()}.npy'
        # A half-written or foreign file is as good as none.
        with contextlib.suppress(OSError, ValueError, EOFError):
            known = np.load(path, allow_pickle=False)
            if known.shape == left.shape[:2]:
                return known
        disparity, _ = _split(method.predict(left, right))
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f'.{os.getpid()}.partial')
            with partial.open('wb') as stream:
                np.save(stream, disparity)
            partial.replace(path)
        return disparity


def evaluate_predictor(
    predict: Predict,
    root: str | Path,
    sets: list[str] | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Judge one function from (left, right) to a disparity on the labelled sets in `root`.

    Args:
        predict: takes two (H, W, 3) uint8 RGB images, gives (H, W) float px, or that and a
            confidence (H, W).
        root: a benchmark folder, see `stereo_kd_training.datasets.labelled`.
        sets: only these sets.
        limit: at most so many pairs of each set (the first ones).

    Returns:
        `{'sets': {set: figures}, 'summary': figures}`, as one method of the full report.

    Raises:
        DatasetError: no labelled set in `root`, or an unknown set.
        EvaluationError: an answer of the wrong shape.
    """
    method = Method('predictor', predict)
    return evaluate_methods([method], root, sets=sets, limit=limit)['predictor']


def evaluate_methods(
    methods: Sequence[Method],
    root: str | Path,
    sets: list[str] | None = None,
    limit: int | None = None,
    cache: PredictionCache | None = None,
    on_pair: Callable[[str, StereoSample, Mapping[str, np.ndarray]], None] | None = None,
    progress: Progress | None = None,
) -> dict[str, dict[str, Any]]:
    """Run every method over every pair, each pair read once.

    Args:
        methods: with unique names.
        root, sets, limit: as in `evaluate_predictor`.
        cache: where answers of methods with an identity are kept.
        on_pair: called after each pair with its set's name and all answers by method name.
        progress: a running rich progress to report to.

    Returns:
        Per method name `{'sets': ..., 'summary': ..., 'kind': ..., 'details': ...}`.
    """
    names = [method.name for method in methods]
    if len(set(names)) != len(names):
        raise EvaluationError(f'methods must have unique names, got {names}')
    found = labelled_sets(root, sets)
    images: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
        name: {set_name: {} for set_name in found} for name in names
    }
    indices = {set_name: range(len(dataset))[:limit] for set_name, dataset in found.items()}
    task = progress and progress.add_task('', total=sum(map(len, indices.values())) * len(names))
    for set_name, dataset in found.items():
        for index in indices[set_name]:
            sample = dataset[index]
            answers = {}
            for method in methods:
                if progress is not None:
                    label = f'{set_name}/{sample.name} {method.name}'
                    progress.update(task, description=label)
                disparity, confidence = _answer(method, sample, set_name, cache)
                images[method.name][set_name][sample.name] = _figures(
                    disparity, confidence, sample.disparity
                )
                answers[method.name] = disparity
                if progress is not None:
                    progress.advance(task)
            if on_pair is not None:
                on_pair(set_name, sample, answers)
    report = {}
    for method in methods:
        of_sets = {name: _set_figures(found) for name, found in images[method.name].items()}
        report[method.name] = {
            'kind': method.kind,
            'details': dict(method.details),
            'sets': of_sets,
            'summary': summarize(of_sets),
        }
    return report


def _split(answer: Any) -> tuple[np.ndarray, np.ndarray | None]:
    disparity, confidence = answer if isinstance(answer, tuple) else (answer, None)
    return np.asarray(disparity), None if confidence is None else np.asarray(confidence)


def _answer(
    method: Method, sample: StereoSample, set_name: str, cache: PredictionCache | None
) -> tuple[np.ndarray, np.ndarray | None]:
    if cache is not None and method.identity is not None:
        disparity, confidence = cache.disparity(method, sample.left, sample.right), None
    else:
        disparity, confidence = _split(method.predict(sample.left, sample.right))
    for values in (disparity, confidence):
        if values is not None and values.shape != sample.disparity.shape:
            raise EvaluationError(
                f'{method.name} on {set_name}/{sample.name}: answered an array of shape '
                f'{values.shape} for images of {sample.disparity.shape}'
            )
    return disparity, confidence


def _figures(
    disparity: np.ndarray, confidence: np.ndarray | None, truth: np.ndarray
) -> dict[str, Any]:
    measured = disparity_metrics(disparity, truth, MAX_DISPARITY_PX)
    edges = edge_epe(disparity, truth, max_disparity_px=MAX_DISPARITY_PX)
    figures = {**asdict(measured), 'edge_epe_px': edges}
    if confidence is not None:
        figures['confidence_ause'] = _relative_ause(disparity, confidence, truth)
        figures['confidence_gap'] = _confidence_gap(disparity, confidence, truth)
    return figures


def _relative_ause(disparity: np.ndarray, confidence: np.ndarray, truth: np.ndarray) -> float:
    """Area between the confidence's sparsification curve and the oracle's.

    In units of what a confidence that says nothing has: 0 is perfect, 1 is useless.
    """
    counted = counted_pixels(truth, MAX_DISPARITY_PX)
    if not counted.any():
        return math.nan
    error = np.abs(np.nan_to_num(disparity[counted]) - truth[counted])
    curves = sparsification_auc(error, confidence[counted])
    return _ratio(curves.ause, curves.random - curves.oracle)


def _confidence_gap(disparity: np.ndarray, confidence: np.ndarray, truth: np.ndarray) -> float:
    """Mean confidence less the share of pixels right within max(1 px, 5 %).

    0 is honest, above 0 too sure; NaN where nothing counts.
    """
    counted = counted_pixels(truth, MAX_DISPARITY_PX)
    if not counted.any():
        return math.nan
    error = np.abs(np.nan_to_num(disparity[counted]) - truth[counted])
    right = error < np.maximum(1.0, 0.05 * truth[counted])
    return float(np.mean(confidence[counted])) - float(right.mean())


def _set_figures(images: dict[str, dict[str, Any]]) -> dict[str, Any]:
    keys = [item.name for item in fields(DisparityMetrics)]
    measured = [DisparityMetrics(**{key: image[key] for key in keys}) for image in images.values()]
    figures = {
        'pairs': len(images),
        **asdict(DisparityMetrics.per_image_mean(measured)),
        'pooled': asdict(DisparityMetrics.pooled(measured)),
        'images': images,
    }
    for key in ('edge_epe_px', 'confidence_ause', 'confidence_gap'):
        figures[key] = _mean(image.get(key, math.nan) for image in images.values())
    return figures


def summarize(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Figures over sets: geometric mean of EPE and edge EPE, mean of the percentages."""
    return {
        'pairs': sum(figures['pairs'] for figures in sets.values()),
        'pixels': sum(figures['pixels'] for figures in sets.values()),
        'geometric_mean_epe_px': _geometric_mean(f['epe_px'] for f in sets.values()),
        'geometric_mean_edge_epe_px': _geometric_mean(f['edge_epe_px'] for f in sets.values()),
        **{f'mean_{key}': _mean(f[key] for f in sets.values()) for key in ('bad1', 'bad3', 'd1')},
        'mean_confidence_ause': _mean(f['confidence_ause'] for f in sets.values()),
        'mean_confidence_gap': _mean(f['confidence_gap'] for f in sets.values()),
    }


def compare(report: Mapping[str, Mapping[str, Any]], reference: str) -> dict[str, dict[str, Any]]:
    """Ratios of every method to `reference`; below 1 is better, but for `speed_up`."""
    base = report[reference]
    ratios = {}
    for name, method in report.items():
        by_set = {
            key: _ratio(figures['epe_px'], base['sets'][key]['epe_px'])
            for key, figures in method['sets'].items()
        }
        known = {key: value for key, value in by_set.items() if not math.isnan(value)}
        worst = max(known, key=known.__getitem__) if known else None
        summary, base_summary = method['summary'], base['summary']
        ratios[name] = {
            **{
                key: _ratio(summary[key], base_summary[key])
                for key in (
                    'geometric_mean_epe_px',
                    'geometric_mean_edge_epe_px',
                    'mean_bad1',
                    'mean_bad3',
                    'mean_d1',
                )
            },
            'epe_px_by_set': by_set,
            'worst_set': worst,
            'worst_set_epe_px': known[worst] if worst else math.nan,
            'speed_up': _ratio(
                base.get('latency_ms', {}).get('min', math.nan),
                method.get('latency_ms', {}).get('min', math.nan),
            ),
        }
    return ratios


def measure_latency(
    methods: Sequence[Method],
    left: np.ndarray,
    right: np.ndarray,
    budget_s: float = 20.0,
    max_rounds: int = 30,
) -> dict[str, dict[str, Any]]:
    """Time the methods in turn on one pair: `{name: {'min', 'median', 'runs'}}` in ms.

    In turn, so that whatever else the machine does hits all of them alike. The minimum is the
    figure to compare; the median tells how disturbed the measurement was.
    """
    times: dict[str, list[float]] = {method.name: [] for method in methods}
    for method in methods:
        if method.warm_up is not None:
            method.warm_up(*left.shape[:2])
        method.predict(left, right)
    begin = time.perf_counter()
    for round_index in range(max_rounds):
        for method in methods:
            start = time.perf_counter()
            method.predict(left, right)
            times[method.name].append((time.perf_counter() - start) * 1e3)
        if round_index + 1 >= 3 and time.perf_counter() - begin > budget_s:
            break
    return {
        name: {'min': min(values), 'median': statistics.median(values), 'runs': len(values)}
        for name, values in times.items()
    }


def matcher_method(name: str) -> Method:
    """The classic matcher `name` as a method with its holes filled.

    Raises:
        EvaluationError: unknown name.
    """
    if name not in _MATCHERS:
        raise EvaluationError(
            f'unknown peer {name!r}: known are {sorted(_MATCHERS)}, or NAME=FILE.onnx with NAME '
            f'one of {sorted(KNOWN_ADAPTERS)}, or NAME=FILE.onnx@ADAPTER.yaml'
        )
    matcher = _MATCHERS[name]
    # Matching and hole filling are code of this project: their text is part of the identity.
    code = hashlib.sha256()
    for module in (baselines, metrics):
        code.update(Path(module.__file__).read_bytes())
    identity = f'{matcher!r} opencv {cv2.__version__} {code.hexdigest()}'
    return Method(name, matcher.dense, 'peer', identity, {'matcher': repr(matcher)})


def peer_method(text: str, threads: int | None = None) -> Method:
    """Parse a command line peer: a matcher's name, NAME=FILE.onnx[@YAML], or ensemble=TEACHER.

    Raises:
        EvaluationError: unknown matcher.
        OnnxPeerError: the file or its adapter is at fault, or the adapter is unknown.
        TeacherError: an ensemble of what is no teacher.
    """
    from stereo_kd_training.adapt.teachers import ENSEMBLE, open_teacher

    name, separator, file = text.partition('=')
    if not separator:
        return matcher_method(name)
    if name == ENSEMBLE:
        teacher = open_teacher(text, threads=threads).teacher

        def predict(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            answer = teacher.predict(left, right)
            return np.nan_to_num(answer.disparity), answer.confidence

        return Method(teacher.name, predict, 'peer', None, {'fingerprint': teacher.fingerprint})
    network = open_onnx_peer(name, file, threads)
    return Method(name, network, 'peer', network.identity, {'file': network.path.name})


def model_method(text: str, provider: str = 'cpu', threads: int | None = None) -> Method:
    """A file that keeps the project's ONNX contract, by path or by name.

    Raises:
        ModelError: not found, or it breaks the contract.
        EngineError: the provider does not run it.
    """
    from stereo_kd_ros.engine import StereoEngine
    from stereo_kd_training.zoo import graph_sha256

    engine = StereoEngine(text, provider=provider, threads=threads)

    def predict(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        result = engine.infer(left, right)
        return result.disparity, result.confidence

    details = {
        'file': engine.path.name,
        'sha256': hashlib.sha256(engine.path.read_bytes()).hexdigest(),
        'graph_sha256': graph_sha256(engine.path),
        'provider': engine.provider,
        'precision': engine.precision,
        'manifest': engine.manifest and json.loads(engine.manifest.to_json()),
    }
    name = engine.path.stem if provider == 'cpu' else f'{engine.path.stem} {engine.provider}'

    def warm_up(height: int, width: int) -> None:
        # As the node does: a provider may have a session of its own for the size in use, and
        # computes there in what is quickest.
        engine.warm_up(height, width)
        details.update(provider=engine.provider, precision=engine.precision)

    return Method(name, predict, 'model', None, details, warm_up)


def evaluate_command(
    data: Annotated[
        Path,
        typer.Option(
            help='Benchmark folder: <set>/<scene>/{left.png, right.png, disp*}.',
            envvar='STEREO_KD_DATA',
        ),
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(help='Contract ONNX model, path or name; may be repeated.'),
    ] = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help='sgbm-3way, sgbm-hh, sgbm-hh4, bm, hitnet=FILE.onnx or NAME=FILE.onnx@YAML; '
            'may be repeated.',
            show_default='sgbm-3way',
        ),
    ] = None,
    provider: Annotated[
        list[str] | None,
        typer.Option(
            help='ONNX Runtime provider of the models: cpu, openvino, cuda, tensorrt, auto; one '
            'row for each when repeated.',
            show_default='cpu',
        ),
    ] = None,
    sets: Annotated[
        list[str] | None, typer.Option('--set', help='Only this set; may be repeated.')
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help='At most so many pairs of each set.')
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(help='Method that ratios refer to.', show_default='the first peer'),
    ] = None,
    json_path: Annotated[
        Path | None, typer.Option('--json', help='Write everything measured as JSON.')
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help='Write a chart (PNG, SVG or PDF; needs matplotlib).')
    ] = None,
    pictures: Annotated[
        Path | None, typer.Option(help='Folder for one strip of pictures per pair.')
    ] = None,
    extremes: Annotated[
        Path | None,
        typer.Option(help='Picture (.png, .jpg) of the worst and best pairs of the first method.'),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help='Threads of every method.')] = 2,
    latency: Annotated[bool, typer.Option(help='Measure the time at 640x480 as well.')] = True,
    cache: Annotated[
        bool, typer.Option(help="Keep and reuse the peers' disparities in the user's cache.")
    ] = True,
) -> None:
    """Measure models beside SGBM and other networks on every labelled set."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    cv2.setNumThreads(threads)
    try:
        if plot is not None:
            check_plot(plot)
        methods = [
            model_method(text, name, threads)
            for text in model or []
            for name in provider or ['cpu']
        ]
        methods += [peer_method(text, threads) for text in peer or ['sgbm-3way']]
        report = run_evaluation(
            methods,
            data,
            sets=sets or None,
            limit=limit,
            reference=reference,
            latency=latency,
            cache=PredictionCache() if cache else None,
            pictures=pictures,
            extremes=extremes,
            console=console,
        )
    except (ValueError, RuntimeError) as error:
        console.print(f'[red]error:[/red] {error}', highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    report['threads'] = threads
    print_report(report, console)
    if json_path is not None:
        write_json(json_path, report)
        console.print(f'wrote {json_path}')
    if plot is not None:
        plot_report(report, plot)
        console.print(f'wrote {plot}')


def run_evaluation(
    methods: Sequence[Method],
    root: str | Path,
    *,
    sets: list[str] | None = None,
    limit: int | None = None,
    reference: str | None = None,
    latency: bool = True,
    latency_budget_s: float = 20.0,
    cache: PredictionCache | None = None,
    pictures: Path | None = None,
    extremes: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Evaluate, time and compare: the whole report as JSON values.

    Timing stops after `latency_budget_s` seconds, but not before three rounds.

    Raises:
        EvaluationError: `reference` is none of the methods.
        DatasetError: no labelled set in `root`, or an unknown set.
    """
    if not methods:
        raise EvaluationError('nothing to evaluate: name at least one model or peer')
    names = [method.name for method in methods]
    if reference is None:
        reference = next((m.name for m in methods if m.kind == 'peer'), names[0])
    if reference not in names:
        raise EvaluationError(f'reference {reference!r} is none of the methods {names}')
    timing_pair: list[StereoSample] = []
    seen = Extremes()

    def on_pair(set_name: str, sample: StereoSample, answers: Mapping[str, np.ndarray]) -> None:
        if not timing_pair or _size_distance(sample) < _size_distance(timing_pair[0]):
            timing_pair[:] = [sample]
        if pictures is not None:
            write_strip(pictures / set_name / f'{sample.name}.png', sample, answers)
        if extremes is not None:
            label = f'{set_name}/{sample.name}'
            seen.see(label, sample.left, sample.disparity, answers[names[0]])

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn('{task.description}'),
    )
    with Progress(*columns, console=console or Console(quiet=True), transient=True) as progress:
        by_method = evaluate_methods(methods, root, sets, limit, cache, on_pair, progress)
    if extremes is not None:
        write_picture(extremes, seen.sheet())
    if latency:
        left, right = (
            cv2.resize(image, LATENCY_SIZE, interpolation=cv2.INTER_AREA)
            for image in (timing_pair[0].left, timing_pair[0].right)
        )
        for name, timing in measure_latency(methods, left, right, latency_budget_s).items():
            by_method[name]['latency_ms'] = timing
        for method in methods:
            # What it computes in may have been chosen as it was warmed up.
            by_method[method.name]['details'] = dict(method.details)
    return {
        'protocol': {
            'pixels': f'0 < d < {MAX_DISPARITY_PX}',
            'holes': 'smaller of the two nearest answers on the row',
            'within_a_set': "mean of the pictures' figures; `pooled` is the mean of the pixels",
            'over_sets': 'geometric mean of EPE, arithmetic mean of percentages',
            'confidence_ause': 'area between the curves of remaining error of the confidence and '
            'of the oracle, in units of a confidence that says nothing',
            'confidence_gap': 'mean confidence less the share within max(1 px, 5 %); 0 is honest',
            'edges': 'within 5 px of a step above 2 px between neighbours with truth; a truth '
            'as sparse as LiDAR has none',
            'latency': f'{LATENCY_SIZE[0]}x{LATENCY_SIZE[1]}, in turn, CPU, milliseconds',
            'limit_pairs_per_set': limit,
        },
        'machine': _machine(),
        'reference': reference,
        'methods': by_method,
        'ratios': compare(by_method, reference),
    }


def _size_distance(sample: StereoSample) -> float:
    height, width = sample.disparity.shape
    return abs(math.log(width / LATENCY_SIZE[0])) + abs(math.log(height / LATENCY_SIZE[1]))


def _machine() -> dict[str, Any]:
    import onnxruntime

    with contextlib.suppress(OSError):
        load = os.getloadavg()[0]
        return {
            'processor': processor_name() or platform.processor() or platform.machine(),
            'vectors': vector_unit(),
            'cores': os.cpu_count(),
            'load_1min': load,
            'opencv': cv2.__version__,
            'onnxruntime': onnxruntime.__version__,
        }
    return {}


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _geometric_mean(values: Iterable[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return math.nan
    return geometric_mean(known) if min(known) > 0 else 0.0


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference else math.nan
