# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A verdict on models from a bag: every pair, no wall clock, the same figures every time.

`evaluate` replays a bag through the node's own pairing, decoding and engine, and writes one JSON
line per model and pair as it goes. A run that was killed goes on behind the last whole line. The
report is made of these lines alone, read one at a time: of a pair of a bag, however long that is,
a few numbers stay in memory and no picture.

Figures of a model (`report.json`, under `models`; null where there is nothing to measure them by):

    pairs                       pairs of the bag that were evaluated
    pairs_with_truth            of them, how many have ground truth
    epe_px bad1 bad2 bad3 d1    against the truth, dense protocol of `metrics`, pooled over pixels
    edge_epe_px                 the same near depth edges
    depth_mae_m depth_abs_rel   depth errors, pooled over pixels
    ause_px                     area between sparsification by confidence and by true error
    sparsification              the two curves: EPE that is left without the worst share of pixels
    ranges                      per bin of true depth: pixels, EPE, depth error
    valid_fraction              share of pixels with a disparity above 0
    mean_confidence             as the model says
    left_right_percent photometric_error plane_rms_px plane_share flicker_px    see `scores`
    sgbm_difference_px sgbm_bad3    against OpenCV's SGBM where that answers
    teacher_difference_px teacher_bad3    against the model that was named as teacher
    p50_ms p95_ms p99_ms max_ms     time in the model
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from stereo_kd_ros import scores
from stereo_kd_ros.bag import StereoBag, StereoFrame, StereoTopics
from stereo_kd_ros.baselines import Sgbm
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.metrics import (
    counted_pixels,
    disparity_metrics,
    edge_epe,
    fill_holes_row_background,
    sparsification_auc,
)
from stereo_kd_ros.model import ModelError, resolve_model
from stereo_kd_ros.onnx_peer import KNOWN_ADAPTERS, OnnxPeer, OnnxPeerError, open_onnx_peer
from stereo_kd_ros.results import machine, path_sha256, percentiles, rounded
from stereo_kd_ros.truth import TruthSource, open_truth

SCHEMA = 'stereo_kd_ros/evaluation/1'
RANGE_BINS_M = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0)
SGBM_NAME = 'sgbm-3way'
SPARSIFICATION_STEPS = 20

# Figures that are the mean over the pairs that have them.
_MEANS = (
    'valid_fraction',
    'mean_confidence',
    'left_right_percent',
    'photometric_error',
    'plane_rms_px',
    'plane_share',
    'flicker_px',
    'sgbm_difference_px',
    'sgbm_bad3',
    'teacher_difference_px',
    'teacher_bad3',
    'edge_epe_px',
    'ause_px',
)
# Everything that a gate may ask for.
FIGURES = (
    'pairs',
    'pairs_with_truth',
    'epe_px',
    'bad1',
    'bad2',
    'bad3',
    'd1',
    'depth_mae_m',
    'depth_abs_rel',
    *_MEANS,
    'p50_ms',
    'p95_ms',
    'p99_ms',
    'max_ms',
)
# What a report draws along the bag.
DRAWN = (
    'epe_px',
    'left_right_percent',
    'photometric_error',
    'flicker_px',
    'sgbm_difference_px',
    'teacher_difference_px',
    'inference_ms',
)
LIVE_FIGURES = ('live_dropped_percent', 'live_p50_ms', 'live_p95_ms', 'live_p99_ms')


class EvaluationError(RuntimeError):
    """An evaluation cannot be run or resumed; the message says what to do."""


@dataclass(frozen=True)
class Answer:
    """What a matcher says of a pair: raw disparity and confidence (H, W), or None without one."""

    disparity: np.ndarray
    confidence: np.ndarray | None
    elapsed_ms: float

    @functools.cached_property
    def dense(self) -> np.ndarray:
        """Holes filled with the background, so that all matchers are judged on the same pixels."""
        return fill_holes_row_background(self.disparity)


class Matcher(Protocol):
    """A thing that computes disparities."""

    name: str

    def match(self, left: np.ndarray, right: np.ndarray) -> Answer:
        """The disparity of a rectified RGB pair."""

    def describe(self) -> dict[str, Any]:
        """What it is, for the report; the same for the same file and settings."""


class ModelMatcher:
    """An ONNX model through the node's engine."""

    def __init__(self, path: Path, provider: str, name: str | None = None) -> None:
        self.path = path
        self.name = name or path.stem
        self._engine = StereoEngine(path, provider=provider)
        self._warm_size: tuple[int, ...] | None = None

    def match(self, left: np.ndarray, right: np.ndarray) -> Answer:
        """Infer; the first pair of a size is preceded by a warm-up that is not counted."""
        if left.shape[:2] != self._warm_size:
            self._engine.warm_up(*left.shape[:2])
            self._warm_size = left.shape[:2]
        result = self._engine.infer(left, right)
        disparity = np.where(result.disparity > 0, result.disparity, np.nan).astype(np.float32)
        return Answer(disparity, result.confidence, result.inference_ms)

    def describe(self) -> dict[str, Any]:
        """File, hash, provider and version."""
        manifest = self._engine.manifest
        return {
            'file': self.path.name,
            'sha256': path_sha256(self.path),
            'provider': self._engine.provider,
            'version': manifest.version if manifest else None,
            'network': manifest.network if manifest else None,
        }


class PeerMatcher:
    """A foreign network, such as HITNet, as `onnx_peer` opens it."""

    def __init__(self, name: str, peer: OnnxPeer) -> None:
        self.name = name
        self._peer = peer

    def match(self, left: np.ndarray, right: np.ndarray) -> Answer:
        """Infer; what it places behind infinity is no answer."""
        started = time.perf_counter()
        disparity = self._peer(left, right)
        elapsed_ms = (time.perf_counter() - started) * 1e3
        return Answer(np.where(disparity > 0, disparity, np.nan), None, elapsed_ms)

    def describe(self) -> dict[str, Any]:
        """File, hash and adapter."""
        return {
            'file': self._peer.path.name,
            'sha256': path_sha256(self._peer.path),
            'provider': 'cpu',
            'version': None,
            'network': repr(self._peer.adapter),
        }


def open_matcher(text: str, provider: str) -> Matcher:
    """A matcher by the words of a command line.

    Args:
        text: an ONNX file of our contract, a shipped model's name, either of them under another
            name as `NAME=FILE.onnx`, or a foreign network as `NAME=FILE.onnx`, where NAME has a
            known adapter, or `NAME=FILE.onnx@YAML`.
        provider: of models of our contract.

    Raises:
        ModelError: There is no such model.
        OnnxPeerError: The file of a foreign network or its adapter is at fault.
    """
    name, separator, file = text.partition('=')
    if not separator:
        return ModelMatcher(resolve_model(text).resolve(), provider)
    if name in KNOWN_ADAPTERS or '@' in file:
        return PeerMatcher(name, open_onnx_peer(name, file))
    try:
        return ModelMatcher(resolve_model(file).resolve(), provider, name)
    except ModelError as error:
        raise OnnxPeerError(
            f'{text}: {error} A foreign network {name!r} has no known adapter (known: '
            f'{", ".join(sorted(KNOWN_ADAPTERS))}); give one: {name}={file}@ADAPTER.yaml'
        ) from error


class SgbmMatcher:
    """OpenCV's SGBM as one more model in the table."""

    name = SGBM_NAME

    def __init__(self) -> None:
        self._sgbm = Sgbm()

    def match(self, left: np.ndarray, right: np.ndarray) -> Answer:
        """Match, with its holes as NaN."""
        started = time.perf_counter()
        disparity = self._sgbm.compute(left, right)
        elapsed_ms = (time.perf_counter() - started) * 1e3
        return Answer(np.where(disparity > 0, disparity, np.nan), None, elapsed_ms)

    def describe(self) -> dict[str, Any]:
        """Its settings."""
        return {
            'file': None,
            'sha256': None,
            'provider': 'opencv',
            'version': None,
            'network': repr(self._sgbm),
        }


@dataclass(frozen=True)
class Options:
    """What is evaluated, apart from the models.

    `truth` is a folder of files or the name of a topic, `extrinsics` a file that says where its
    LiDAR is (see `truth`); `every` = 2 takes each second pair.
    """

    topics: StereoTopics | None = None
    namespace: str | None = None
    tolerance_ns: int = 0
    truth: str | None = None
    extrinsics: str | None = None
    every: int = 1
    max_pairs: int | None = None
    left_right: bool = True
    max_disparity_px: float = 192.0


@dataclass
class _Track:
    """Which pairs one model has done, and what it said of the last one."""

    matcher: Matcher
    path: Path
    done: set[int] = field(default_factory=set)
    previous: Answer | None = None

    def append(self, record: dict[str, Any]) -> None:
        self.done.add(record['index'])
        with self.path.open('a') as lines:
            lines.write(json.dumps(record, allow_nan=False) + '\n')
            lines.flush()
            os.fsync(lines.fileno())


def evaluate(
    bag_path: Path,
    matchers: Sequence[Matcher],
    output: Path,
    options: Options | None = None,
    on_pair: Callable[[int, int], None] = lambda done, total: None,
    teacher: Matcher | None = None,
) -> dict[str, Any]:
    """Evaluate models on a bag, or go on where an earlier call was cut off.

    Args:
        bag_path: Any bag that `StereoBag` reads.
        matchers: What is compared; names must differ.
        output: Folder of the results; one JSON-lines file per model is kept there.
        options: What to evaluate and against which truth.
        on_pair: Told how many pairs are done and how many there are.
        teacher: What the models should agree with; it is not evaluated itself.

    Returns:
        The report, without gate and live figures.

    Raises:
        BagError: The bag cannot be read.
        CalibrationError: Its camera_info is unusable.
        EvaluationError: The folder holds results of something else, or the bag has no pair.
        TruthError: The truth that was asked for is not there.
    """
    options = options or Options()
    names = [matcher.name for matcher in matchers]
    if len(set(names)) != len(names):
        raise EvaluationError(
            f'Two models share a name: {", ".join(sorted(names))}. '
            'Give one of them another: --model NAME=FILE.onnx.'
        )
    output.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        bag = stack.enter_context(_open(bag_path, options))
        identity = {
            'schema': SCHEMA,
            'bag': {'name': bag_path.name, 'sha256': path_sha256(bag_path)},
            'options': {
                key: value
                for key, value in vars(options).items()
                if key not in ('topics', 'max_pairs')
            },
            'topics': vars(bag.stereo_topics),
            'teacher': {'name': teacher.name, **teacher.describe()} if teacher else None,
        }
        tracks = [_Track(matcher, output / f'{matcher.name}.jsonl') for matcher in matchers]
        for track in tracks:
            _resume(track, identity | {'model': track.matcher.describe()})
        camera = bag.camera
        truth = stack.enter_context(open_truth(bag, options.truth, options.extrinsics))
        total = _wanted_pairs(bag.pair_count, options)
        _replay(bag, camera, tracks, truth, teacher, options, lambda done: on_pair(done, total))
        unpaired = dict(bag.unpaired)
        if not any(track.done for track in tracks):
            raise EvaluationError(f'{bag_path} holds no pair: {unpaired} found no partner.')
        return {
            **identity,
            'pairs_in_bag': bag.pair_count,
            'unpaired': unpaired,
            'image_size': [camera.width, camera.height],
            'camera': {'fx_px': rounded(camera.fx), 'baseline_m': rounded(camera.baseline_m, 6)},
            'rectified_topics': bag.looks_rectified,
            'machine': machine(),
            'models': [
                {
                    'name': track.matcher.name,
                    **track.matcher.describe(),
                    **summarise(read_records(track.path)),
                }
                for track in tracks
            ],
        }


def selected_frames(
    bag_path: Path, wanted: Sequence[int], options: Options | None = None
) -> Iterator[tuple[int, StereoFrame, np.ndarray | None]]:
    """Go through the bag once more for a few pairs: (index, frame, truth or None)."""
    options = options or Options()
    with (
        _open(bag_path, options) as bag,
        open_truth(bag, options.truth, options.extrinsics) as truth,
    ):
        last = max(wanted, default=-1)
        for index, frame in enumerate(bag.pairs()):
            if index > last:
                break
            if index in wanted:
                known = truth.disparity(frame.stamp_ns, index) if truth else None
                yield index, frame, known


def read_records(path: Path) -> Iterator[dict[str, Any]]:
    """What a results file says of each pair, in the order of the bag, one at a time."""
    return (json.loads(line) for line in itertools.islice(_whole_lines(path), 1, None))


def drawn_figures(path: Path) -> dict[str, np.ndarray]:
    """Of each figure of `DRAWN` the points (pair, value) of a results file, float64 (N, 2)."""
    points = {name: array('d') for name in DRAWN}
    for record in read_records(path):
        values = dict(record)
        if record['truth'] is not None:
            values['epe_px'] = record['truth']['disparity']['epe_px']
        for name in DRAWN:
            if values.get(name) is not None:
                points[name].extend((record['index'], values[name]))
    return {name: np.array(values).reshape(-1, 2) for name, values in points.items()}


def summarise(records: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """The figures of one model, as the module lists them, from the records of its pairs."""
    pairs = 0
    # Weighed by their pixels, as if all pairs were one picture.
    pooled = _Mean(('epe_px', 'bad1', 'bad2', 'bad3', 'd1'))
    means = {name: _Mean((name,)) for name in _MEANS}
    curves: _Mean | None = None
    ranges: list[dict[str, Any]] = []
    scored = 0
    times = array('d')
    for record in records:
        pairs += 1
        times.append(record['inference_ms'])
        for name in _MEANS:
            if record.get(name) is not None:
                means[name].add(record, 1)
        if record['truth'] is None:
            continue
        scored += 1
        pooled.add(record['truth']['disparity'], record['truth']['disparity']['pixels'])
        ranges = _pool_ranges(ranges, record['truth']['ranges'])
        if sparsified := record['truth'].get('sparsification'):
            curves = curves or _Mean(tuple(sparsified))
            curves.add(sparsified, 1)
    figures: dict[str, Any] = {'pairs': pairs, 'pairs_with_truth': scored, **pooled.rounded()}
    depth_pixels = sum(item['pixels'] for item in ranges)
    for name, total in (('depth_mae_m', 'error_m'), ('depth_abs_rel', 'relative')):
        known = sum(item[total] for item in ranges) / depth_pixels if depth_pixels else None
        figures[name] = rounded(known)
    for name in _MEANS:
        figures |= means[name].rounded()
    for rank, value in percentiles(times).items():
        figures[f'{rank}_ms'] = value
    figures['max_ms'] = rounded(max(times), 3) if times else None
    figures['sparsification'] = curves.rounded() if curves else None
    figures['ranges'] = [
        {
            'from_m': item['from_m'],
            'to_m': item['to_m'],
            'pixels': item['pixels'],
            'epe_px': rounded(item['error_px'] / item['pixels']) if item['pixels'] else None,
            'mae_m': rounded(item['error_m'] / item['pixels']) if item['pixels'] else None,
        }
        for item in ranges
    ]
    return figures


class _Mean:
    """Weighted means of named values, or of lists of them, as they come."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._sums: dict[str, Any] = dict.fromkeys(names, 0.0)
        self._weight = 0.0

    def add(self, values: dict[str, Any], weight: float) -> None:
        self._weight += weight
        for name in self._names:
            value = values[name]
            if isinstance(value, list):
                value = np.array(value, np.float64)
            self._sums[name] = self._sums[name] + weight * value

    def rounded(self) -> dict[str, Any]:
        """None for each without any."""
        if not self._weight:
            return dict.fromkeys(self._names)
        means = {name: total / self._weight for name, total in self._sums.items()}
        return {
            name: list(map(rounded, mean)) if isinstance(mean, np.ndarray) else rounded(mean)
            for name, mean in means.items()
        }


def _open(bag_path: Path, options: Options) -> StereoBag:
    return StereoBag(
        bag_path,
        options.topics,
        namespace=options.namespace,
        tolerance_ns=options.tolerance_ns,
    )


def _wanted_pairs(pairs: int, options: Options) -> int:
    wanted = -(-pairs // options.every)
    return wanted if options.max_pairs is None else min(wanted, options.max_pairs)


def _resume(track: _Track, identity: dict[str, Any]) -> None:
    """Take over the lines of an earlier run, if they are of the same thing."""
    asked = json.loads(json.dumps(identity))
    lines = _whole_lines(track.path)
    known = json.loads(next(lines, '{}'))
    first = next(lines, None)
    if first is None:
        track.path.write_text(json.dumps(identity) + '\n')
        return
    if known != asked:
        changed = sorted(key for key in asked if known.get(key) != asked[key])
        raise EvaluationError(
            f'{track.path} holds results for another {" and ".join(changed)}: '
            'choose another folder, or remove that file.'
        )
    track.done = {json.loads(line)['index'] for line in itertools.chain((first,), lines)}
    # A line that was cut off must not be continued by the next one.
    os.truncate(track.path, sum(len(line) for line in _whole_lines(track.path)))


def _whole_lines(path: Path) -> Iterator[bytes]:
    """The lines of a results file; one that was cut off in the middle ends them."""
    if not path.exists():
        return
    with path.open('rb') as lines:
        for line in lines:
            try:
                json.loads(line)
            except ValueError:
                return
            if not line.endswith(b'\n'):
                return
            yield line


def _replay(
    bag: StereoBag,
    camera: StereoCamera,
    tracks: Sequence[_Track],
    truth: TruthSource | None,
    teacher: Matcher | None,
    options: Options,
    on_pair: Callable[[int], None],
) -> None:
    sgbm = SgbmMatcher()
    previous: StereoFrame | None = None
    done = 0
    for index, frame in enumerate(bag.pairs()):
        if index % options.every:
            continue
        if options.max_pairs is not None and done >= options.max_pairs:
            break
        missing = [track for track in tracks if index not in track.done]
        # The next pair's flicker needs this one's disparity, also when this one is done already.
        following = index + options.every
        is_last = done + 1 >= _wanted_pairs(bag.pair_count, options)
        needed = [
            track
            for track in tracks
            if track in missing or not (is_last or following in track.done)
        ]
        known = truth.disparity(frame.stamp_ns, index) if truth and missing else None
        reference = sgbm.match(frame.left, frame.right) if missing else None
        taught = teacher.match(frame.left, frame.right) if missing and teacher else None
        for track in tracks:
            if track not in needed:
                track.previous = None
                continue
            if track.matcher.name == SGBM_NAME and reference is not None:
                answer = reference
            else:
                answer = track.matcher.match(frame.left, frame.right)
            if track in missing:
                assert reference is not None
                record = {'index': index, 'stamp_ns': frame.stamp_ns}
                record |= _figures(track, frame, answer, previous, known, camera, options)
                record |= _agreement(track.matcher.name, answer, reference, taught, options)
                track.append(record)
            track.previous = answer
        previous = frame
        done += 1
        on_pair(done)


def _figures(
    track: _Track,
    frame: StereoFrame,
    answer: Answer,
    previous: StereoFrame | None,
    truth: np.ndarray | None,
    camera: StereoCamera,
    options: Options,
) -> dict[str, Any]:
    """Everything that one pair says about one model."""
    left_right = math.nan
    if options.left_right:
        # The right view's disparity is the left view's of the mirrored, swapped pair.
        mirrored = track.matcher.match(_mirror(frame.right), _mirror(frame.left))
        left_right = scores.left_right_percent(answer.disparity, mirrored.disparity[:, ::-1])
    flicker = math.nan
    if previous is not None and track.previous is not None:
        flicker = scores.flicker_px(
            answer.disparity, track.previous.disparity, frame.left, previous.left
        )
    plane_rms, plane_share = scores.planarity(answer.disparity)
    confidence = math.nan if answer.confidence is None else float(answer.confidence.mean())
    record: dict[str, Any] = {
        'inference_ms': round(answer.elapsed_ms, 3),
        'valid_fraction': rounded(float(np.isfinite(answer.disparity).mean())),
        'mean_confidence': rounded(confidence),
        'left_right_percent': rounded(left_right),
        'photometric_error': rounded(
            scores.photometric_error(frame.left, frame.right, answer.disparity)
        ),
        'plane_rms_px': rounded(plane_rms),
        'plane_share': rounded(plane_share),
        'flicker_px': rounded(flicker),
        'edge_epe_px': None,
        'ause_px': None,
        'truth': None,
    }
    if truth is not None and counted_pixels(truth, options.max_disparity_px).any():
        record |= _against_truth(answer, truth, camera, options.max_disparity_px)
    return record


def _agreement(
    name: str, answer: Answer, sgbm: Answer, teacher: Answer | None, options: Options
) -> dict[str, float | None]:
    """How far a model is from SGBM and from the teacher, where these have an answer."""
    figures: dict[str, float | None] = {}
    for prefix, other in (('sgbm', None if name == SGBM_NAME else sgbm), ('teacher', teacher)):
        difference = None
        if other is not None:
            difference = disparity_metrics(answer.dense, other.disparity, options.max_disparity_px)
        figures[f'{prefix}_difference_px'] = rounded(difference.epe_px) if difference else None
        figures[f'{prefix}_bad3'] = rounded(difference.bad3) if difference else None
    return figures


def _against_truth(
    answer: Answer, truth: np.ndarray, camera: StereoCamera, max_disparity_px: float
) -> dict[str, Any]:
    dense = answer.dense
    metrics = disparity_metrics(dense, truth, max_disparity_px)
    counted = counted_pixels(truth, max_disparity_px)
    error_px = np.abs(dense - truth)[counted].astype(np.float64)
    true_m = camera.disparity_to_depth(camera.disparity_from_pixels(truth[counted]))
    found_m = camera.disparity_to_depth(camera.disparity_from_pixels(dense[counted]))
    ranges = []
    for low, high in itertools.pairwise(RANGE_BINS_M):
        inside = (true_m >= low) & (true_m < high) & np.isfinite(found_m)
        error_m = np.abs(found_m - true_m)[inside].astype(np.float64)
        ranges.append(
            {
                'from_m': low,
                'to_m': high,
                'pixels': int(inside.sum()),
                'error_px': float(error_px[inside].sum()),
                'error_m': float(error_m.sum()),
                'relative': float((error_m / true_m[inside]).sum()),
            }
        )
    known: dict[str, Any] = {'disparity': vars(metrics), 'ranges': ranges}
    ause = math.nan
    if answer.confidence is not None:
        confidence = answer.confidence[counted]
        sparsified = sparsification_auc(error_px, confidence, SPARSIFICATION_STEPS)
        ause = sparsified.ause
        known['sparsification'] = {
            'epe_px': [rounded(value) for value in sparsified.curve],
            'oracle_px': [rounded(value) for value in sparsified.oracle_curve],
        }
    return {
        'edge_epe_px': rounded(edge_epe(dense, truth, max_disparity_px=max_disparity_px)),
        'ause_px': rounded(ause),
        'truth': known,
    }


def _pool_ranges(pooled: list[dict[str, Any]], bins: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The bins with those of one more pair."""
    if not pooled:
        return bins
    added = ('pixels', 'error_px', 'error_m', 'relative')
    return [
        {**before, **{name: before[name] + item[name] for name in added}}
        for before, item in zip(pooled, bins, strict=True)
    ]


def _mirror(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])
