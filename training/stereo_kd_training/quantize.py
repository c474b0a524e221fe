# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An exported model in fewer bits, and proof that it still measures what it measured.

    int8   convolutions of 8-bit integers (QDQ, per channel), calibrated on generated pairs
    fp16   the whole network in half precision, for GPUs; images, volume, regression and
           upsampling stay float

(BF16 takes no file: OpenVINO computes a float model in it where the processor can.) The result
keeps the contract: bytes in, float maps out. What must resolve a fraction of a pixel stays float
in either: everything that is no convolution, the first convolution, and those named in `FLOAT`.

INT8 is a bargain block by block: each block of the network is tried alone, and the cheapest ones
are taken together as long as the EPE on other generated pairs grows by no more than the limit.
Where not even the cheapest block is within it, nothing is written.

Whether it pays in time depends on the processor: docs/speed.md has what was measured.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from stereo_kd_ros.metrics import DisparityMetrics, disparity_metrics
from stereo_kd_ros.model import (
    Manifest,
    ModelError,
    check_contract,
    file_sha256,
    read_manifest,
    write_manifest,
)
from stereo_kd_ros.procedural import StereoSample, render_pair
from stereo_kd_ros.sessions import quiet_session

PRECISIONS = ('int8', 'fp16')
# What a variant may lose in EPE on generated pairs.
LIMITS = {'int8': 0.03, 'fp16': 0.01}
PAIR_HEIGHT, PAIR_WIDTH = 256, 512
# Neither the pairs of training (pools start at 0) nor those of `stereo-kd bench`.
FIRST_CALIBRATION_SEED, FIRST_MEASURED_SEED = 9_100_000, 9_200_000
# Modules whose answer is a coordinate, a weight of one, or what both views are compared by.
FLOAT = (
    r'(^|/)(stem|tall_stem|head|context|guide|upsampling|scaling|logits|confidence|choice)(\.|/|$)'
    # sums that are written as convolutions
    r'|/(network|refinement)/Conv(_\d+)?$'
)

# Operators that compute in whatever precision they are given, and their inputs that are maps.
_DATA_INPUTS = {'Relu': 1, 'Add': 2, 'Concat': 99, 'Resize': 1}

# Told what is being done, how many steps are done and how many there are.
Progress = Callable[[str, int, int], None]


class QuantizeError(RuntimeError):
    """A model that cannot be had in fewer bits; the message says why."""


@dataclass(frozen=True)
class Variant:
    """What became of a model.

    Attributes:
        precision: one of `PRECISIONS`.
        epe_px, source_epe_px: on the generated pairs that it was measured on.
        loss: relative growth of the EPE; negative when it got smaller.
        limit: of the loss.
        pairs: how many it was measured on.
        quantized: names of the blocks in 8 bits; empty for fp16.
        kept: names of the blocks that stayed float because of the limit.
        losses: loss of every block alone; empty for fp16.
    """

    precision: str
    epe_px: float
    source_epe_px: float
    loss: float
    limit: float
    pairs: int
    quantized: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()
    losses: tuple[tuple[str, float], ...] = ()


def quantize(
    source: Path | str,
    out: Path | str,
    precision: str,
    *,
    limit: float | None = None,
    calibration_pairs: int = 12,
    measured_pairs: int = 16,
    size: tuple[int, int] = (PAIR_HEIGHT, PAIR_WIDTH),
    keep: str = FLOAT,
    progress: Progress = lambda what, done, total: None,
) -> Variant:
    """Write a variant of a contract model in another precision.

    Args:
        source: an exported model.
        out: where the variant goes; replaced only when its loss is within the limit.
        precision: `int8` or `fp16`.
        limit: allowed relative growth of the EPE; `LIMITS` without.
        calibration_pairs: generated pairs that the ranges of int8 are taken from.
        measured_pairs: other generated pairs that the loss is measured on.
        size: (height, width) of both.
        keep: regular expression of modules that stay float, over names such as
            `/network/encoder/stem/stem.0/Conv`.

    Raises:
        QuantizeError: the model has nothing to quantise, or the loss is above the limit.
        ModelError: the source is no contract model.
    """
    source, out = Path(source), Path(out)
    if precision not in PRECISIONS:
        raise QuantizeError(f'precision is {precision!r}, expected one of {PRECISIONS}')
    limit = LIMITS[precision] if limit is None else limit
    manifest = read_manifest(source) or Manifest(name=source.stem)
    measured = _pairs(FIRST_MEASURED_SEED, measured_pairs, size)
    reference_px = _epe(source, measured)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f'.{out.stem}.') as folder:
        work = Path(folder)
        made, calibration = work / 'variant.onnx', None
        if precision == 'fp16':
            _to_half(source, made, keep)
            epe_px = _epe(made, measured)
            variant = Variant(
                precision,
                epe_px,
                reference_px,
                epe_px / reference_px - 1.0,
                limit,
                measured_pairs,
            )
        else:
            calibration = _pairs(FIRST_CALIBRATION_SEED, calibration_pairs, size)
            maker = _Int8Maker(source, work, calibration, keep)
            variant = _bargain(maker, made, measured, reference_px, limit, progress)
        if not variant.loss <= limit:
            raise QuantizeError(
                f'{source.name} in {precision} has an EPE of {variant.epe_px:.3f} px on '
                f'{measured_pairs} generated pairs, {100 * variant.loss:+.1f} % of '
                f'{reference_px:.3f} px; allowed are {100 * limit:.1f} %, so nothing was written'
            )
        name = f'{manifest.name}_{precision}'
        write_manifest(
            made,
            replace(
                manifest,
                name=name,
                calibration_sha256=_sha256(calibration) if calibration else None,
                extra={**manifest.extra, 'variant': _told(variant, source, manifest)},
            ),
        )
        os.replace(made, out)
    return variant


def _told(variant: Variant, source: Path, manifest: Manifest) -> dict[str, Any]:
    """What the manifest says of a variant."""
    return {
        'of': manifest.name,
        'source_sha256': file_sha256(source),
        'precision': variant.precision,
        'generated_pairs': variant.pairs,
        'epe_px': round(variant.epe_px, 4),
        'source_epe_px': round(variant.source_epe_px, 4),
        'loss': round(variant.loss, 4),
        'limit': variant.limit,
        'blocks': list(variant.quantized),
        'blocks_kept_float': list(variant.kept),
    }


def measure_loss(
    source: Path | str, variant: Path | str, samples: Sequence[Any]
) -> tuple[float, float]:
    """Mean EPE [px] of source and variant over samples with `left`, `right`, `disparity`."""
    return _epe(Path(source), samples), _epe(Path(variant), samples)


def _bargain(
    maker: _Int8Maker,
    made: Path,
    measured: Sequence[StereoSample],
    reference_px: float,
    limit: float,
    progress: Progress,
) -> Variant:
    """Quantise as many blocks as the limit allows, the cheapest first."""

    def variant(blocks: Sequence[str], path: Path) -> Variant:
        maker.make(blocks, path)
        epe_px = _epe(path, measured)
        kept = tuple(name for name in maker.blocks if name not in blocks)
        return Variant(
            'int8',
            epe_px,
            reference_px,
            epe_px / reference_px - 1.0,
            limit,
            len(measured),
            tuple(blocks),
            kept,
        )

    names = list(maker.blocks)
    total = len(names) + 2
    progress('all blocks', 0, total)
    found = variant(names, made)
    if found.loss <= limit:
        return found
    losses: dict[str, float] = {}
    for number, name in enumerate(names):
        progress(name, number + 1, total)
        losses[name] = variant([name], maker.folder / 'one.onnx').loss
    # All together lose too much; so do some number of the cheapest, found by halving.
    ranked = sorted(names, key=losses.__getitem__)
    good: Variant | None = None
    low, high = 0, len(ranked) - 1
    progress('the cheapest blocks together', total - 1, total)
    while low < high:
        middle = (low + high + 1) // 2
        tried = variant(ranked[:middle], maker.folder / 'some.onnx')
        if tried.loss <= limit:
            good, low = tried, middle
            os.replace(maker.folder / 'some.onnx', made)
        else:
            high = middle - 1
    cheapest = tuple((name, round(losses[name], 5)) for name in ranked)
    return replace(good or found, losses=cheapest)


class _Int8Maker:
    """Makes variants of one model in which the convolutions of some blocks are of 8 bits.

    Raises:
        QuantizeError: no convolution may be quantised.
    """

    def __init__(
        self, source: Path, folder: Path, calibration: Sequence[StereoSample], keep: str
    ) -> None:
        import onnx

        self.folder = folder
        self._source = source
        self._calibration = calibration
        graph = onnx.load(str(source)).graph
        convolutions = [node for node in graph.node if node.op_type == 'Conv']
        pattern = re.compile(keep)
        first = {node.name for node in convolutions if _reads_no_convolution(graph, node)}
        self.blocks: dict[str, list[str]] = {}
        for node in convolutions:
            if node.name and node.name not in first and not pattern.search(node.name):
                self.blocks.setdefault(_block(node.name), []).append(node.name)
        if not self.blocks:
            raise QuantizeError(
                f'{source} has no convolution that may be quantised: {len(convolutions)} in all, '
                f'and those that match {keep!r} and the first ones stay float'
            )

    def make(self, blocks: Sequence[str], path: Path) -> None:
        """Write the variant with these blocks in 8 bits."""
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        wanted = [name for block in blocks for name in self.blocks[block]]
        # Ranges are taken once, with the first variant, which is of all blocks, where onnxruntime
        # can keep them (1.25 and later).
        ranges = {'calibration_cache_path': str(self.folder / 'ranges')}
        if 'calibration_cache_path' not in inspect.signature(quantize_static).parameters:
            ranges = {}
        with _quiet():
            quantize_static(
                str(self._source),
                str(path),
                _Reader(self._calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=['Conv'],
                nodes_to_quantize=wanted,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                **ranges,
            )


class _Reader:
    """Generated pairs as onnxruntime's calibration takes them."""

    def __init__(self, pairs: Sequence[StereoSample]) -> None:
        self._pairs = iter(pairs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The inputs of the next pair; None when there is none."""
        pair = next(self._pairs, None)
        if pair is None:
            return None
        return {'left': pair.left[np.newaxis], 'right': pair.right[np.newaxis]}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.get_next, None)


def _reads_no_convolution(graph: Any, node: Any) -> bool:
    """Whether a node's data comes from the images through no convolution."""
    makers = {output: maker for maker in graph.node for output in maker.output}
    waiting, seen = [node.input[0]], set()
    while waiting:
        name = waiting.pop()
        maker = makers.get(name)
        if maker is None or name in seen:
            continue
        seen.add(name)
        if maker.op_type == 'Conv':
            return False
        waiting.extend(maker.input)
    return True


def _block(name: str) -> str:
    """The two outermost modules of a node below the network: `encoder/up4`."""
    parts = [part for part in name.split('/') if part][:-1]
    if parts and parts[0] == 'network':
        parts = parts[1:]
    return '/'.join(parts[:2]) or name


def _to_half(source: Path, path: Path, keep: str) -> None:
    """Convolutions in half precision, and what merely lies between them.

    Casts stand at the borders: the first convolutions take images and stay float, and so does
    what `keep` names.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(source))
    graph = model.graph
    pattern = re.compile(keep)
    makers = {output: node for node in graph.node for output in node.output}
    half = {
        node.name
        for node in graph.node
        if node.op_type == 'Conv'
        and not pattern.search(node.name)
        and not _reads_no_convolution(graph, node)
    }
    if not half:
        raise QuantizeError(f'{source} has no convolution that may be of half precision')
    for node in graph.node:
        inputs = node.input[: _DATA_INPUTS.get(node.op_type, 0)]
        if inputs and all(name in makers and makers[name].name in half for name in inputs):
            half.add(node.name)
    weights = {item.name: item for item in graph.initializer}
    casts: dict[tuple[str, int], str] = {}
    nodes = []

    def cast(name: str, kind: int) -> str:
        if (name, kind) not in casts:
            casts[name, kind] = f'{name}_{"half" if kind == TensorProto.FLOAT16 else "float"}'
            nodes.append(helper.make_node('Cast', [name], [casts[name, kind]], to=kind))
            nodes[-1].name = f'{casts[name, kind]}_cast'
        return casts[name, kind]

    for node in graph.node:
        is_half = node.name in half
        for place, name in enumerate(node.input):
            if is_half and node.op_type == 'Conv' and name in weights:
                values = numpy_helper.to_array(weights[name])
                if values.dtype == np.float32:
                    narrow = numpy_helper.from_array(values.astype(np.float16), f'{name}_half')
                    weights[narrow.name] = narrow
                    node.input[place] = narrow.name
            elif name in makers and (node.op_type != 'Resize' or place == 0):
                from_half = makers[name].name in half
                if is_half and not from_half:
                    node.input[place] = cast(name, TensorProto.FLOAT16)
                elif from_half and not is_half:
                    node.input[place] = cast(name, TensorProto.FLOAT)
        nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [item for name, item in weights.items() if name in used]
    copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(copies)
    graph.initializer.extend(kept)
    onnx.save(model, str(path))


def _pairs(first_seed: int, count: int, size: tuple[int, int]) -> list[StereoSample]:
    height, width = size
    reach = min(192.0, width / 2)
    return [render_pair(first_seed + number, height, width, reach) for number in range(count)]


def _sha256(pairs: Sequence[StereoSample]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(np.ascontiguousarray(pair.left).tobytes())
        digest.update(np.ascontiguousarray(pair.right).tobytes())
    return digest.hexdigest()


def _epe(path: Path, samples: Sequence[Any]) -> float:
    """EPE [px] over all pixels with truth of all samples.

    Raises:
        QuantizeError: the file does not run.
        ModelError: it breaks the contract.
    """
    try:
        session = quiet_session(path, int(os.environ.get('OMP_NUM_THREADS', '0') or 0))
    except Exception as error:  # ONNX Runtime's own errors share no base class
        raise QuantizeError(f'{path.name} does not load: {error}') from error
    try:
        check_contract(session.get_inputs(), session.get_outputs())
    except ModelError as error:
        raise ModelError(f'{path.name} breaks the contract: {error}') from error
    parts: list[DisparityMetrics] = []
    for sample in samples:
        inputs = {'left': sample.left[np.newaxis], 'right': sample.right[np.newaxis]}
        disparity = session.run(['disparity'], inputs)[0][0]
        parts.append(disparity_metrics(disparity, sample.disparity, 192))
    return float(DisparityMetrics.pooled(parts).epe_px)


def quantize_command(
    model: Annotated[str, typer.Argument(help='File, or a name or size of a shipped model.')],
    out: Annotated[Path, typer.Option('--out', '-o', help='The .onnx file to write.')],
    precision: Annotated[str, typer.Option(help='int8 or fp16.')] = 'int8',
    limit: Annotated[
        float | None,
        typer.Option(min=0.0, help='Allowed growth of the EPE: 0.03 for int8, 0.01 for fp16.'),
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help='Generated pairs it is measured on.')] = 16,
    calibration_pairs: Annotated[
        int, typer.Option(min=1, help='Other generated pairs that ranges are taken from.')
    ] = 12,
    size: Annotated[str, typer.Option(help='WIDTHxHEIGHT of the generated pairs.')] = '512x256',
    keep: Annotated[
        str, typer.Option(help='Regular expression of modules that stay float.')
    ] = FLOAT,
    data: Annotated[
        Path | None, typer.Option(help='Labelled pairs: report the loss on them as well.')
    ] = None,
) -> None:
    """Write a model in fewer bits; loss measured and within the limit, or no file."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    from stereo_kd_ros.commands.console import image_size
    from stereo_kd_ros.model import resolve_model
    from stereo_kd_training.datasets.labelled import labelled_sets

    console = Console()
    width, height = image_size(size)
    source = resolve_model(model)
    sets = labelled_sets(data) if data else {}
    columns = (TextColumn('{task.description}'), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task('measuring', total=None)
        made = quantize(
            source,
            out,
            precision,
            limit=limit,
            calibration_pairs=calibration_pairs,
            measured_pairs=pairs,
            size=(height, width),
            keep=keep,
            progress=lambda what, done, total: bar.update(
                task, description=what, completed=done, total=total
            ),
        )
    console.print(
        f'EPE on {made.pairs} generated pairs: {made.epe_px:.3f} px, '
        f'{100 * made.loss:+.2f} % of {made.source_epe_px:.3f} px '
        f'(allowed {100 * made.limit:+.1f} %)'
    )
    if made.kept:
        console.print(f'left in float to stay within it: {", ".join(made.kept)}')
    for name, samples in sets.items():
        before, after = measure_loss(source, out, samples)
        change = 100 * (after / before - 1)
        console.print(f'{name}: {before:.3f} px before, {after:.3f} px after ({change:+.2f} %)')
    console.print(f'wrote {out} ({out.stat().st_size / 1e6:.2f} MB)')


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the advice to pre-process, which needs fixed shapes."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        root.setLevel(level)
