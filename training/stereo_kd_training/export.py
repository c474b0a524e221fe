# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A trained network as one ONNX file that keeps the runtime's contract.

    left, right          uint8   (N, H, W, 3)  RGB, rectified; N, H, W dynamic
    disparity            float32 (N, H, W)     input pixels, >= 0
    confidence           float32 (N, H, W)     [0, 1]

Scaling, normalisation, padding to the network's stride (replicated, right and bottom, so
that x stays x) and cropping are inside the graph. `export_network` traces with two
*different* images (one tensor given twice makes an exporter drop an eye), attaches the
manifest, and deletes its work when ONNX Runtime and PyTorch disagree by more than
`tolerance_px` at any probed size.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from torch import nn

from stereo_kd_ros.model import (
    Manifest,
    ModelError,
    check_contract,
    read_manifest,
    write_manifest,
)
from stereo_kd_ros.sessions import quiet_session
from stereo_kd_training.datasets.procedural import PoolManifest
from stereo_kd_training.joined import first_alone
from stereo_kd_training.networks import StereoNetwork
from stereo_kd_training.networks.contract import ContractModel

OPSET = 17
PARITY_TOLERANCE_PX = 0.05
SMALLEST_HALVED = 4096
PARITY_SIZES = ((192, 256), (250, 330), (240, 427), (375, 621))


class ExportError(RuntimeError):
    """A network that cannot be exported, or an export that does not match it."""


@dataclass(frozen=True)
class Parity:
    """Largest difference between ONNX Runtime and PyTorch at one input size.

    `off_fraction` is the share of pixels off by more than `PARITY_TOLERANCE_PX`: a few say
    that two hypotheses tied to rounding, many that a shape was traced as a number.
    """

    height: int
    width: int
    max_difference_px: float
    off_fraction: float
    max_confidence_difference: float


def example_pair(height: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two different uint8 (1, H, W, 3) images: smooth texture, the right one shifted.

    Plain noise would probe the network where every hypothesis ties.
    """
    generator = np.random.default_rng(seed)
    shift = 12
    coarse = generator.uniform(0, 255, (1, 3, height // 6 + 2, (width + shift) // 6 + 2))
    texture = F.interpolate(
        torch.from_numpy(coarse), (height, width + shift), mode='bicubic', align_corners=False
    )
    texture = texture.clamp(0, 255).byte().numpy().transpose(0, 2, 3, 1)
    left = np.ascontiguousarray(texture[:, :, :width])
    return left, np.ascontiguousarray(texture[:, :, shift:])


def weights_sha256(network: nn.Module) -> str:
    """SHA-256 over names and values of all weights, in state-dict order."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value.detach().cpu().numpy()).tobytes())
    return digest.hexdigest()


def build_manifest(network: StereoNetwork, name: str, **fields: Any) -> Manifest:
    """Manifest of `network`; `fields` override or add (training_data, metrics, ...)."""
    import onnx
    import onnxruntime

    known: dict[str, Any] = {
        'name': name,
        'network': network.configuration.get('name', type(network).__name__.lower()),
        # Through JSON, so that tuples are lists here as they will be in the file.
        'configuration': json.loads(json.dumps(network.configuration)),
        'parameters': network.parameter_count(),
        'max_disparity_px': float(network.max_disparity_px),
        'weights_sha256': weights_sha256(network),
        'stride': int(network.stride),
        'opset': OPSET,
        'exporter': {
            'torch': torch.__version__,
            'onnx': onnx.__version__,
            'onnxruntime': onnxruntime.__version__,
            'python': platform.python_version(),
            'date': datetime.date.today().isoformat(),
        },
    }
    return replace(Manifest(**known), **fields)


def training_sources(pools: Iterable[PoolManifest]) -> list[dict[str, Any]]:
    """Where the training data of a model comes from, with licences, for its manifest."""
    sources: list[dict[str, Any]] = []
    for pool in pools:
        sources.append(
            {
                'name': 'procedural scenes',
                'licence': 'Apache-2.0',
                'pairs': pool.pairs,
                'size': f'{pool.width}x{pool.height}',
                'seed': pool.seed,
                'generator_version': pool.generator_version,
                'scenes': pool.scenes,
                'textures_sha256': pool.textures_sha256,
                **({'without': pool.without} if pool.without else {}),
            }
        )
        sources.extend(dict(texture) for texture in pool.textures if texture not in sources)
    return sources


def earlier_sources(path: Path, known: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Training data of the model file `path` that `known` does not list yet.

    Raises:
        ExportError: the file says nothing of itself.
        ModelError: the file is missing or no ONNX model.
    """
    manifest = read_manifest(path)
    if manifest is None:
        raise ExportError(f'{path} carries no manifest, so what it has seen is not known')
    return [entry for entry in manifest.training_data if entry not in known]


def export_again(
    source: Path | str,
    path: Path | str,
    fixed_size: tuple[int, int] | None = None,
    *,
    temperature: float = 1.0,
    cells: tuple[int, int | None] | None = None,
    mixed_with: Path | None = None,
    share: float = 1.0,
    mix: Callable[[Path, StereoNetwork, float], StereoNetwork] | None = None,
    version: str | None = None,
    refined_by: Path | None = None,
    passes: int | None = None,
    spread: int | None = None,
    half_weights: bool = False,
) -> list[Parity]:
    """Write a shipped file anew, in the forms that are exported today.

    Weights, answers and all that the manifest says but the exporter stay, unless `temperature` is
    another than 1, there are other `cells`, the weights are mixed or a refinement is taken over:
    then figures of the source are left out, being another's, and but for `temperature` its
    calibration too.

    Args:
        source: a file of `export_network`; of a joined one the first is written.
        path: the .onnx file to write; may be the same.
        fixed_size: as of `export_network`.
        temperature: as of `StereoNetwork.temper`; written into the manifest.
        cells: width and height [px] as of `kestrel.with_cells`.
        mixed_with: another file, whose training data count too; written into the manifest.
        share: of the weights that are the source's.
        mix: makes a network of that file, the source's network in its cells, and the share.
        version: of the new file; the source's without.
        refined_by: another file, whose refinement is taken and whose training data count too.
        passes: how often the refinement is asked.
        spread: after how many passes, each time, the surest answers spread.
        half_weights: as of `store_halves`.

    Raises:
        ShippedModelError: no network can be rebuilt from the source.
        NetworkError: it has no temperature, no cells that can be changed, or takes no refinement.
        ExportError: as of `export_network`.
    """
    from stereo_kd_ros.model import read_manifest
    from stereo_kd_training.complexity import complexity
    from stereo_kd_training.networks.kestrel import with_cells, with_refinement
    from stereo_kd_training.networks.shipped import load_shipped

    with first_alone(source) as alone:
        network = load_shipped(alone)
        manifest = read_manifest(alone)
    changes = (cells, mixed_with, refined_by, passes, spread)
    other_answers = any(change is not None for change in changes)
    if temperature != 1.0 or other_answers:
        extra = {key: value for key, value in manifest.extra.items() if key != 'confidence'}
        fitted = manifest.extra.get('confidence')
        if isinstance(fitted, dict) and not other_answers:
            # By the same numbers still, but what was measured of them was not of these logits.
            kept = {key: value for key, value in fitted.items() if key != 'held_out'}
            before = fitted.get('tempered', 1.0)
            extra['confidence'] = {**kept, 'tempered': round(before * temperature, 6)}
        manifest = replace(manifest, metrics={}, extra=extra)
    if cells is not None:
        network = with_cells(network, *cells)
    if mixed_with is not None:
        network = mix(mixed_with, network, share)
        data = manifest.training_data
        manifest = replace(manifest, training_data=data + earlier_sources(mixed_with, data))
        other = read_manifest(mixed_with)
        manifest.extra['mixed_with'] = f'{other.name} {other.version}'
        manifest.extra['share'] = share
    if (passes, spread) != (None, None) and refined_by is None:
        network = with_refinement(network, network, passes, spread)
    if refined_by is not None:
        network = with_refinement(network, load_shipped(refined_by), passes, spread)
        data = manifest.training_data
        manifest = replace(manifest, training_data=data + earlier_sources(refined_by, data))
        other = read_manifest(refined_by)
        manifest.extra['refined_by'] = f'{other.name} {other.version}'
    if temperature != 1.0:
        network.temper(temperature)
        before = manifest.extra.get('temperature', 1.0)
        manifest.extra['temperature'] = round(before * temperature, 6)
    now = build_manifest(network, manifest.name)
    manifest = replace(
        manifest,
        version=version or manifest.version,
        configuration=now.configuration,
        parameters=now.parameters,
        # Of the graph as it is written today, which may fill pictures up by less.
        macs_640x480=complexity(network).macs,
        stride=now.stride,
        weights_sha256=now.weights_sha256,
        exporter=now.exporter,
        opset=now.opset,
    )
    return export_network(
        network, path, manifest, fixed_size=fixed_size, half_weights=half_weights
    )


def arrange_weights(path: Path | str) -> None:
    """Keep each weight of a convolution once, and a bias for each convolution that adds it.

    A trace writes what was made for it as a constant, once for every call of a module; what reads
    weights expects initialisers. And OpenVINO takes no bias into a convolution that another one
    shares, and then no activation and no sum behind it either; as it makes one of equal ones, a
    copy differs by the last bit of a number.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(path))
    graph = model.graph
    convolutions = [node for node in graph.node if node.op_type == 'Conv']
    read = {name for node in convolutions for name in node.input[1:]}
    values = {item.name: numpy_helper.to_array(item) for item in graph.initializer}
    others = []
    for node in graph.node:
        if node.op_type == 'Constant' and node.output[0] in read:
            values[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == 'Identity' and node.output[0] in read and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]]
        else:
            others.append(node)
    del graph.node[:]
    graph.node.extend(others)
    weights: dict[bytes, str] = {}
    biases: set[bytes] = set()
    for node in (node for node in graph.node if node.op_type == 'Conv'):
        for index, name in enumerate(node.input):
            if index == 0 or name not in values:
                continue
            value = np.array(values[name])
            if index == 1:
                name = weights.setdefault(value.tobytes() + str(value.shape).encode(), name)
            else:
                largest = np.abs(value).argmax()
                while value.tobytes() in biases:
                    value[largest] = np.nextafter(value[largest], np.float32(np.inf))
                biases.add(value.tobytes())
                name = f'{node.name}/bias'
            node.input[index] = name
            values[name] = value
    used = {name for node in graph.node for name in node.input}
    names = [item.name for item in graph.initializer]
    kept = [item for item in graph.initializer if item.name in used]
    made = [name for name in values if name in used and name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.initializer.extend(numpy_helper.from_array(values[name], name) for name in made)
    onnx.save(model, str(path))


def store_halves(path: Path | str) -> None:
    """Keep the weights of large convolutions in half precision, for a file of half the size.

    They are made single again when the file is opened: arithmetic and speed stay, answers move by
    what 11 bits of a weight are worth.

    Raises:
        ExportError: more than one pixel in a hundred moves by more than `PARITY_TOLERANCE_PX`.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(path))
    graph = model.graph
    weights = {node.input[1] for node in graph.node if node.op_type == 'Conv'}
    casts = []
    for item in graph.initializer:
        if item.data_type != TensorProto.FLOAT or item.name not in weights:
            continue
        value = numpy_helper.to_array(item)
        if value.size < SMALLEST_HALVED:
            continue
        name, stored = item.name, f'{item.name}_half'
        item.CopyFrom(numpy_helper.from_array(value.astype(np.float16), stored))
        casts.append(
            helper.make_node('Cast', [stored], [name], f'/{stored}', to=TensorProto.FLOAT)
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    pair = dict(zip(('left', 'right'), example_pair(*PARITY_SIZES[-1])))
    before = quiet_session(path).run(['disparity'], pair)[0]
    partial = Path(path).with_suffix('.half')
    try:
        onnx.save(model, str(partial))
        after = quiet_session(partial).run(['disparity'], pair)[0]
        moved = float((np.abs(after - before) > PARITY_TOLERANCE_PX).mean())
        if moved > 0.01:
            raise ExportError(
                f'{100 * moved:.1f} % of pixels move by more than {PARITY_TOLERANCE_PX} px with '
                'weights in half precision, allowed 1 %; export without --half-weights'
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def check_parity(
    path: Path | str,
    network: StereoNetwork,
    sizes: Iterable[tuple[int, int]] = PARITY_SIZES,
    batch: int = 1,
) -> list[Parity]:
    """Run file and network on the same pairs; sizes are (height, width).

    Two hypotheses that tie to rounding may fall either way. Where a pair is off by more than
    `PARITY_TOLERANCE_PX` two others of its size are asked, and the one between counts: a shape
    that was traced as a number is seen on all three.

    Raises:
        ExportError: the file breaks the contract or does not run at a size.
    """
    session = quiet_session(path)
    try:
        check_contract(session.get_inputs(), session.get_outputs())
    except ModelError as error:
        raise ExportError(
            f'{path}: {error}. An exporter drops an input that the network never reads.'
        ) from error
    model = ContractModel(network).eval()
    report = []
    for size in sizes:
        found = [_parity(path, session, model, size, range(batch))]
        if found[0].max_difference_px > PARITY_TOLERANCE_PX:
            for first in (batch, 2 * batch):
                seeds = range(first, first + batch)
                found.append(_parity(path, session, model, size, seeds))
        report.append(sorted(found, key=lambda parity: parity.max_difference_px)[len(found) // 2])
    return report


def _parity(
    path: Path | str,
    session: onnxruntime.InferenceSession,
    model: ContractModel,
    size: tuple[int, int],
    seeds: Sequence[int],
) -> Parity:
    """Of `example_pair`s of these seeds, as one batch."""
    height, width = size
    pairs = [example_pair(height, width, seed) for seed in seeds]
    left = np.concatenate([pair[0] for pair in pairs])
    right = np.concatenate([pair[1] for pair in pairs])
    try:
        disparity, confidence = session.run(
            ['disparity', 'confidence'], {'left': left, 'right': right}
        )
    except Exception as error:  # ONNX Runtime's own errors share no base class
        raise ExportError(
            f'{path} does not run at {width}x{height}: {error}. '
            'Look for a size that was traced as a number.'
        ) from error
    with torch.no_grad():
        expected, expected_confidence = model(torch.from_numpy(left), torch.from_numpy(right))
    if disparity.shape != (len(pairs), height, width):
        raise ExportError(
            f'{path}: output disparity is {disparity.shape} for a {height}x{width} input, '
            f'expected {(len(pairs), height, width)}'
        )
    difference = np.abs(disparity - expected.numpy())
    return Parity(
        height,
        width,
        float(difference.max()),
        float((difference > PARITY_TOLERANCE_PX).mean()),
        float(np.abs(confidence - expected_confidence.numpy()).max()),
    )


def export_network(
    network: StereoNetwork,
    path: Path | str,
    manifest: Manifest | None = None,
    *,
    tolerance_px: float = PARITY_TOLERANCE_PX,
    sizes: Sequence[tuple[int, int]] = PARITY_SIZES,
    fixed_size: tuple[int, int] | None = None,
    half_weights: bool = False,
) -> list[Parity]:
    """Write `network` to `path` and prove that ONNX Runtime answers what PyTorch answers.

    Args:
        network: trained network; it is put in eval mode and left so.
        path: the .onnx file; replaced only when parity holds.
        manifest: what the file says of itself; built from the network when absent.
        tolerance_px: largest allowed difference of disparity.
        sizes: (height, width) probed, multiples of the stride and others.
        fixed_size: (height, width) of a static variant, for builders that need one.
        half_weights: as of `store_halves`, once parity has been proven without it.

    Raises:
        ExportError: the exporter failed, or a probed size is off by more than the tolerance.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    network.eval()
    model = ContractModel(network).eval()
    height, width = fixed_size or (4 * network.strides[0], 6 * network.strides[1])
    left, right = (torch.from_numpy(image) for image in example_pair(height, width))
    dynamic = None
    if fixed_size is None:
        dynamic = {
            key: {0: 'N', 1: 'H', 2: 'W'} for key in ('left', 'right', 'disparity', 'confidence')
        }
    else:
        sizes = [fixed_size]
    partial = path.with_name(f'.{path.stem}.{os.getpid()}.onnx')
    try:
        with warnings.catch_warnings():
            # Tracing warns of every shape turned into a number; the parity check at several
            # sizes is what proves that none was.
            warnings.simplefilter('ignore')
            torch.onnx.export(
                model,
                (left, right),
                str(partial),
                input_names=['left', 'right'],
                output_names=['disparity', 'confidence'],
                dynamic_axes=dynamic,
                opset_version=OPSET,
                dynamo=False,
            )
        arrange_weights(partial)
        write_manifest(partial, manifest or build_manifest(network, path.stem))
        report = check_parity(partial, network, sizes)
        wrong = [p for p in report if not p.max_difference_px <= tolerance_px]
        if wrong:
            worst = max(wrong, key=lambda p: p.max_difference_px)
            raise ExportError(
                f'{path.name}: ONNX Runtime differs from PyTorch by '
                f'{worst.max_difference_px:.3f} px at {worst.height}x{worst.width} '
                f'({100 * worst.off_fraction:.3f} % of pixels), allowed {tolerance_px} px; '
                'nothing was written. Look for an operator traced with a fixed size.'
            )
        if half_weights:
            store_halves(partial)
        os.replace(partial, path)
    except (RuntimeError, torch.onnx.OnnxExporterError) as error:
        if isinstance(error, ExportError):
            raise
        raise ExportError(f'{type(network).__name__} cannot be exported: {error}') from error
    finally:
        partial.unlink(missing_ok=True)
    return report
