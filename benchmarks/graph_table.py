# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What each way of writing the graph wins: Kestrel exported with one thing changed, timed in turn.

    python benchmarks/graph_table.py export FOLDER [--model small]     needs torch
    python benchmarks/graph_table.py measure FOLDER --provider openvino --precision bf16

The first writes one file per variant, all with the same weights and (but for what is stated) the
same answers; the second times them with any ONNX Runtime, one thread, in turn, by the processor
time the process took: on a busy machine that still tells a few per cent, which time on the
clock does not. Where a session's memory lies moves it by several per cent: so each variant gets
more than one session, of which the quicker counts, in huge pages where the C library has them.
`kept` variants lack one form that `export_network` writes, so that what it wins is the difference.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

SESSIONS = 2
HUGE_PAGES = 'glibc.malloc.hugetlb=1'

# What a variant is, and whether the export has it (True), or it was tried and thrown away.
VARIANTS: dict[str, tuple[str, bool]] = {
    'as_shipped': ('the export as it is', True),
    'without_input': (
        'bytes normalised as rows of channels last -> as planes, turned first',
        True,
    ),
    'without_levels': ('bytes less a whole number, over 128 -> as in training', True),
    'without_views': ('stems of each view by itself -> of both, then cut apart', True),
    'without_stem': ('cells of six pixels resized by the stem -> before it', True),
    'without_norms': ('sums of squares by a convolution -> ReduceL2 of each view', True),
    'without_costs': (
        'refinement by tables of cells, its reader in three -> as in training',
        True,
    ),
    'shared_biases': ('a bias for each pass of a refinement -> one for all', True),
    'without_scale': ('volume scaled by a convolution -> by a product, kept in FP32', True),
    'without_upsampling': ('nine convolutions for nine parts -> one, cut up', True),
    'summed_one_by_one': ('nine neighbours summed by twos and threes -> one by one', True),
    'without_volume': ('volume by blocks -> a whole row against a whole row', True),
    'without_regression': ('regression by maxima and sums -> ArgMax and Where', True),
    'without_confidence': ('x4 bilinear as sums -> Resize', True),
    'softmax_regression': ('exp and sums -> Softmax over channels', True),
    'volume_of_slices': ('volume by blocks -> one product and sum per disparity, stacked', True),
    'volume_of_planes': (
        'volume from views with channels last -> right view by rows of each channel',
        True,
    ),
    'volume_by_gather': ('volume by blocks -> band cut out of the row product by Gather', True),
    'softmax_upsampling': ('one map, nine parts, exp and sums -> Softmax over 9, sum', True),
    'unfused_batch_norm': ('batch norms folded -> left in the file', True),
    'upsampling_in_parts': ('one map, exp, then nine parts -> nine parts, then exp', False),
    'upsampling_by_reduction': ('one map, nine parts -> 5-D product and ReduceSum', False),
}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='command', required=True)
    writer = commands.add_parser('export', help='write the variants')
    writer.add_argument('folder', type=Path)
    writer.add_argument('--model', default='small', help='a shipped Kestrel')
    timer = commands.add_parser('measure', help='time them')
    timer.add_argument('folder', type=Path)
    timer.add_argument('--provider', choices=('cpu', 'openvino'), default='cpu')
    timer.add_argument('--precision', choices=('fp32', 'bf16'), default='fp32')
    timer.add_argument('--size', default='640x480')
    timer.add_argument('--runs', type=int, default=12)
    timer.add_argument('--json', type=Path)
    arguments = parser.parse_args()
    if arguments.command == 'export':
        export(arguments.folder, arguments.model)
    else:
        if 'GLIBC_TUNABLES' not in os.environ:
            # The C library reads it only at start.
            os.environ['GLIBC_TUNABLES'] = HUGE_PAGES
            os.execv(sys.executable, [sys.executable, *sys.argv])
        width, height = (int(part) for part in arguments.size.split('x'))
        measure(
            arguments.folder,
            arguments.provider,
            arguments.precision,
            (height, width),
            arguments.runs,
            arguments.json,
        )


def export(folder: Path, model: str) -> None:
    """Write every variant of a shipped model; say how far its answers are from the first's."""
    import onnxruntime
    import torch

    from stereo_kd_ros.model import resolve_model
    from stereo_kd_training.export import arrange_weights, example_pair
    from stereo_kd_training.networks.contract import ContractModel
    from stereo_kd_training.networks.shipped import load_shipped

    folder.mkdir(parents=True, exist_ok=True)
    network = load_shipped(resolve_model(model)).eval()
    left, right = (torch.from_numpy(image) for image in example_pair(128, 192))
    names = ('left', 'right', 'disparity', 'confidence')
    probe = dict(zip(names, example_pair(250, 330, 3)))
    expected = None
    for name in VARIANTS:
        path = folder / f'{name}.onnx'
        extra: dict[str, Any] = {}
        if name == 'unfused_batch_norm':
            extra = {'training': torch.onnx.TrainingMode.PRESERVE, 'do_constant_folding': False}
        with changed(name):
            torch.onnx.export(
                ContractModel(network).eval(),
                (left, right),
                str(path),
                input_names=list(names[:2]),
                output_names=list(names[2:]),
                dynamic_axes={key: {0: 'N', 1: 'H', 2: 'W'} for key in names},
                opset_version=17,
                dynamo=False,
                **extra,
            )
        if name not in ('shared_biases', 'unfused_batch_norm'):
            arrange_weights(path)
        session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
        disparity = session.run(['disparity'], probe)[0]
        expected = disparity if expected is None else expected
        print(f'{name}: off by {np.abs(disparity - expected).max():.1e} px at most', flush=True)


@contextlib.contextmanager
def changed(name: str) -> Iterator[None]:
    """Trace Kestrel with one thing changed."""
    from unittest import mock

    from stereo_kd_training.networks import deployed, kestrel

    forms = _torch_forms()
    if name.startswith('without_'):
        with deployed.without(name.removeprefix('without_')):
            yield
        return
    places: dict[str, tuple[Any, str, Callable[..., Any]]] = {
        'softmax_regression': (deployed, 'window_regression', forms['softmax_regression']),
        'volume_of_slices': (deployed, 'correlation_volume', forms['volume_of_slices']),
        'volume_of_planes': (deployed, 'correlation_volume', forms['volume_of_planes']),
        'volume_by_gather': (deployed, 'correlation_volume', forms['volume_by_gather']),
        'softmax_upsampling': (kestrel, 'convex_upsample', forms['softmax_upsampling']),
        'upsampling_in_parts': (kestrel, 'convex_upsample', forms['upsampling_in_parts']),
        'upsampling_by_reduction': (kestrel, 'convex_upsample', forms['upsampling_by_reduction']),
        'summed_one_by_one': (deployed, 'weighted_mean', kestrel.weighted_mean),
    }
    if name not in places:
        yield
        return
    owner, attribute, form = places[name]
    # A form of the upsampling takes all weights in one map, not those of nine convolutions.
    left_out = ('upsampling',) if attribute == 'convex_upsample' else ()
    with deployed.without(*left_out), mock.patch.object(owner, attribute, form):
        yield


def _torch_forms() -> dict[str, Callable[..., Any]]:
    """The forms that the export does not have; here, since `measure` runs without torch."""
    import torch
    import torch.nn.functional as F

    from stereo_kd_training.networks import deployed

    def softmax_regression(logits, hypotheses, radius):
        _, best = logits.max(1, keepdim=True)
        index = torch.arange(logits.shape[1], dtype=logits.dtype).view(1, -1, 1, 1)
        window = torch.softmax(logits, 1) * ((index - best).abs() <= radius)
        within = window.sum(1, keepdim=True)
        return (window * hypotheses.view(1, -1, 1, 1)).sum(1, keepdim=True) / within, within

    def volume_of_slices(left, right, hypotheses):
        width = left.shape[3]
        padded = F.pad(right, (hypotheses - 1, 0))
        parts = [(left * padded[..., k : k + width]).sum(1) for k in range(hypotheses)]
        return torch.stack(parts, 1)

    def volume_of_planes(left, right, hypotheses):
        batch, channels, height, width = left.shape
        count = (width + hypotheses - 1) // hypotheses
        missing = count * hypotheses - width
        rows_left = F.pad(left, (0, missing)).permute(0, 2, 3, 1)
        rows_left = rows_left.reshape(batch, height, count, hypotheses, channels)
        rows_right = F.pad(right, (hypotheses, missing)).permute(0, 2, 1, 3)
        rows_right = rows_right.reshape(batch, height, channels, count + 1, hypotheses)
        pairs = torch.cat((rows_right[:, :, :, :-1], rows_right[:, :, :, 1:]), -1)
        products = torch.matmul(rows_left, pairs.permute(0, 1, 3, 2, 4))
        flat = F.pad(products.flatten(3), (0, hypotheses))
        skewed = flat.reshape(batch, height, count, hypotheses, 2 * hypotheses + 1)
        band = skewed[..., 1 : hypotheses + 1]
        band = band.reshape(batch, height, count * hypotheses, hypotheses)
        return band[:, :, :width].permute(0, 3, 1, 2)

    def volume_by_gather(left, right, hypotheses):
        batch, _, height, width = left.shape
        rows_right = F.pad(right, (hypotheses - 1, 0)).permute(0, 2, 1, 3)
        products = torch.matmul(left.permute(0, 2, 3, 1), rows_right)
        x = torch.arange(width).view(-1, 1)
        index = x * (width + hypotheses - 1) + x + torch.arange(hypotheses).view(1, -1)
        band = products.flatten(2).index_select(2, index.flatten())
        return band.view(batch, height, width, hypotheses).permute(0, 3, 1, 2)

    def neighbours(coarse):
        height, width = coarse.shape[2:]
        padded = F.pad(coarse, (1, 1, 1, 1), mode='replicate')
        return [padded[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]

    def cropped(parts, factors, size):
        fine = deployed.shuffled(parts, factors)
        return fine if size is None else fine[:, :, : size[0], : size[1]].clamp(min=0.0)

    def upsampling_in_parts(coarse, weights, factors, size=None):
        weighted, total = 0.0, 0.0
        count = factors[0] * factors[1]
        for k, value in enumerate(neighbours(coarse)):
            share = torch.exp(weights[:, k * count : (k + 1) * count].clamp(-10.0, 10.0))
            weighted, total = weighted + share * value, total + share
        return cropped(weighted / total, factors, size)

    def nine(coarse, weights, factors):
        batch, _, height, width = coarse.shape
        parts = weights.clamp(-10.0, 10.0).view(batch, 9, factors[0] * factors[1], height, width)
        return parts, torch.stack(neighbours(coarse), 1)

    def upsampling_by_reduction(coarse, weights, factors, size=None):
        parts, values = nine(coarse, weights, factors)
        shares = torch.exp(parts)
        return cropped((shares * values).sum(1) / shares.sum(1), factors, size)

    def softmax_upsampling(coarse, weights, factors, size=None):
        parts, values = nine(coarse, weights, factors)
        return cropped((torch.softmax(parts, 1) * values).sum(1), factors, size)

    return {
        'softmax_regression': softmax_regression,
        'volume_of_slices': volume_of_slices,
        'volume_of_planes': volume_of_planes,
        'volume_by_gather': volume_by_gather,
        'upsampling_in_parts': upsampling_in_parts,
        'upsampling_by_reduction': upsampling_by_reduction,
        'softmax_upsampling': softmax_upsampling,
    }


def measure(
    folder: Path,
    provider: str,
    precision: str,
    size: tuple[int, int],
    runs: int,
    json_path: Path | None,
) -> None:
    """Time the variants in a folder in turn and print a table."""
    import onnxruntime

    from stereo_kd_ros.processor import processor_name

    height, width = size
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (height // 4 + 1, width // 4 + 8, 3), dtype=np.uint8)
    texture = texture.repeat(4, axis=0).repeat(4, axis=1)[np.newaxis, :height]
    inputs = {
        'left': np.ascontiguousarray(texture[:, :, :width]),
        'right': np.ascontiguousarray(texture[:, :, 24 : 24 + width]),
    }
    subjects: dict[str, tuple[str, bool, list[Any]]] = {}

    def add(name: str, what: str, kept: bool, file: str, **options: Any) -> None:
        try:
            sessions = [
                _session(folder, provider, precision, size, name=file, **options)
                for _ in range(SESSIONS)
            ]
        except Exception as error:  # ONNX Runtime's own errors share no base class
            print(f'not measured: {name}: {str(error).splitlines()[0]}', file=sys.stderr)
            return
        runs_of = [functools.partial(session.run, None, inputs) for session in sessions]
        subjects[name] = what, kept, runs_of

    for name, (what, kept) in VARIANTS.items():
        if (folder / f'{name}.onnx').is_file():
            add(name, what, kept, name)
    fixed_pays = provider == 'openvino'
    add('any_size', 'fixed shapes -> any size', fixed_pays, 'as_shipped', fixed=False)
    if provider == 'cpu':
        levels = onnxruntime.GraphOptimizationLevel
        for level, what in (
            (levels.ORT_ENABLE_EXTENDED, 'all optimisations -> without NCHWc layouts'),
            (levels.ORT_DISABLE_ALL, 'all optimisations -> none'),
        ):
            add(level.name.lower(), what, True, 'as_shipped', level=level)
        saved = folder / 'optimised' / 'as_shipped.onnx'
        saved.parent.mkdir(exist_ok=True)
        _session(folder, provider, precision, size, name='as_shipped', save=saved)
        add('offline', 'optimised at each start -> beforehand', False, 'optimised/as_shipped')
    subjects['preprocessing_outside'] = (
        'bytes in -> both images made float and normalised in numpy (that alone)',
        True,
        [lambda: [_normalised(image) for image in inputs.values()]],
    )
    taken: dict[str, list[float]] = {name: [] for name in subjects}
    for turn in range(runs + 1):
        for name, (_, _, runs_of) in subjects.items():
            for run in runs_of:
                started = time.process_time()
                run()
                if turn:
                    taken[name].append(1e3 * (time.process_time() - started))
    base = min(taken['as_shipped'])
    rows = []
    for name, (what, kept, _) in subjects.items():
        least = min(taken[name])
        # What the kept form wins, or what the other one would have won.
        change = least if name == 'preprocessing_outside' else least - base
        rows.append(
            {
                'variant': name,
                'change': what,
                'kept': kept,
                'least_ms': round(least, 2),
                'difference_ms': round(change, 2),
            }
        )
    report = {
        'machine': processor_name() or platform.machine(),
        'onnxruntime': onnxruntime.__version__,
        'provider': provider,
        'precision': precision,
        'width': width,
        'height': height,
        'threads': 1,
        'runs': runs,
        'time': 'least processor time of one pair',
        'rows': rows,
    }
    if json_path:
        json_path.write_text(json.dumps(report, indent=1) + '\n', encoding='utf-8')
    print(f'{provider} in {precision}, {width}x{height}, one thread; as shipped {base:.1f} ms')
    print('| Changed | in the export | ms | difference |\n|---|---|---|---|')
    for row in rows[1:]:
        had = 'first form' if row['kept'] else 'first form; second thrown away'
        print(f'| {row["change"]} | {had} | {row["least_ms"]} | {row["difference_ms"]:+.1f} |')


def _session(
    folder: Path,
    provider: str,
    precision: str,
    size: tuple[int, int],
    *,
    name: str,
    fixed: bool = True,
    level: Any = None,
    save: Path | None = None,
) -> Any:
    import onnxruntime

    from stereo_kd_ros.providers import EXECUTION_PROVIDERS, openvino_options

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if fixed and provider == 'openvino':
        for dimension, length in zip('NHW', (1, *size)):
            options.add_free_dimension_override_by_name(dimension, length)
    if level is not None:
        options.graph_optimization_level = level
    if save is not None:
        options.optimized_model_filepath = str(save)
    wanted = EXECUTION_PROVIDERS[provider]
    chosen = (wanted, openvino_options(1, precision)) if provider == 'openvino' else wanted
    path = folder / f'{name}.onnx'
    session = onnxruntime.InferenceSession(str(path), options, providers=[chosen])
    if session.get_providers()[0] != wanted:
        raise SystemExit(f'this onnxruntime runs {session.get_providers()[0]} instead of {wanted}')
    return session


def _normalised(image: np.ndarray) -> np.ndarray:
    mean = np.array((0.485, 0.456, 0.406), np.float32)
    deviation = np.array((0.229, 0.224, 0.225), np.float32)
    values = (image.astype(np.float32) / 255 - mean) / deviation
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2))


if __name__ == '__main__':
    main()
