# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two models in one file: a pixel takes the answer of the second where the first knows less.

    better      mean over 17x17 px of (second's confidence - 1.1 * first's) above 0
    disparity   where(better, second's, first's), and confidence likewise

Fine cells tell thin things apart and lose their way on a bare wall, of which each sees little; a
network of coarser cells, for a fifth of the operations, knows the wall and not the thing. Both
confidences are calibrated probabilities, so that they may be compared, and are compared round a
pixel: where the first is lost it is now and then sure of itself. Each part is in the file as it
was, its manifest among what the file says of itself, and `first_alone` takes the first out again:
it is what is trained on. `stereo-kd-train adapt` joins what it adapted with the second again.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import cv2
import numpy as np
import typer

from stereo_kd_ros.model import INPUTS, OUTPUTS, Manifest, read_manifest, write_manifest
from stereo_kd_ros.procedural import render_pair
from stereo_kd_ros.sessions import quiet_session
from stereo_kd_training.bars import console

if TYPE_CHECKING:
    import onnx

SURER_BY, REACH_PX = 1.1, 17
KEY = 'joined'
_FIRST, _SECOND = 'first/', 'second/'
_PROBED = (192, 320)

_logger = logging.getLogger(__name__)


class JoinError(RuntimeError):
    """Models that cannot be one."""


def is_joined(manifest: Manifest | None) -> bool:
    """Whether a file holds two models."""
    return manifest is not None and KEY in manifest.extra


def joined_with(manifest: Manifest) -> str | None:
    """Name and version of the second model, if there is one."""
    if not is_joined(manifest):
        return None
    second = manifest.extra[KEY]['parts'][1]
    return f'{second["name"]} {second["version"]}'


def join(
    first: str | Path,
    second: str | Path,
    path: str | Path,
    *,
    name: str | None = None,
    version: str | None = None,
    surer_by: float = SURER_BY,
    reach_px: int = REACH_PX,
    trusting: bool = False,
) -> Manifest:
    """Write one contract model of two.

    Args:
        first, second: contract models with manifests and calibrated confidences.
        path: the .onnx file to write; may be `first`.
        name, version: of the new one; those of `first` without.
        surer_by: how many times as confident the second has to be.
        reach_px: side of the square round a pixel over which that is the mean, odd.
        trusting: takes a confidence for a probability where a file does not call it one.

    Returns:
        what the file says of itself.

    Raises:
        JoinError: a file without manifest or calibration, two models already, other sizes or
            operators than the other, or answers that are not those of the parts.
        ModelError: a file that is missing or damaged.
    """
    import onnx
    from onnx import TensorProto, compose, helper

    path = Path(path)
    if not surer_by >= 1 or reach_px < 1 or reach_px % 2 == 0:
        raise JoinError(
            f'surer_by is {surer_by} and reach_px {reach_px}, expected a factor of 1 or more and '
            'an odd number of pixels'
        )
    manifests = [_of_a_part(file, trusting) for file in (first, second)]
    parts = [
        compose.add_prefix(onnx.load(str(file)), prefix, rename_inputs=False)
        for file, prefix in ((first, _FIRST), (second, _SECOND))
    ]
    _require_alike(parts, (Path(first).name, Path(second).name))
    graphs = [part.graph for part in parts]
    confidences = [f'{prefix}confidence' for prefix in (_FIRST, _SECOND)]
    reach, half = [1.0 / reach_px] * reach_px, reach_px // 2
    chosen = [
        helper.make_node('Mul', [confidences[0], 'surer_by'], ['wanted'], '/choice/Mul'),
        helper.make_node('Sub', [confidences[1], 'wanted'], ['more'], '/choice/Sub'),
        helper.make_node('Unsqueeze', ['more', 'channel'], ['map'], '/choice/Unsqueeze'),
        # As convolutions: OpenVINO's AveragePool takes many times as long.
        helper.make_node(
            'Conv', ['map', 'down'], ['rows'], '/choice/Down', pads=[half, 0, half, 0]
        ),
        helper.make_node(
            'Conv', ['rows', 'across'], ['mean'], '/choice/Across', pads=[0, half, 0, half]
        ),
        helper.make_node('Squeeze', ['mean', 'channel'], ['round'], '/choice/Squeeze'),
        helper.make_node('Greater', ['round', 'nothing'], ['better'], '/choice/Greater'),
        *(
            helper.make_node(
                'Where',
                ['better', _SECOND + output, _FIRST + output],
                [output],
                f'/choice/{output}',
            )
            for output in OUTPUTS
        ),
    ]
    constants = [
        helper.make_tensor('surer_by', TensorProto.FLOAT, [], [surer_by]),
        helper.make_tensor('nothing', TensorProto.FLOAT, [], [0.0]),
        helper.make_tensor('channel', TensorProto.INT64, [1], [1]),
        helper.make_tensor('down', TensorProto.FLOAT, [1, 1, reach_px, 1], reach),
        helper.make_tensor('across', TensorProto.FLOAT, [1, 1, 1, reach_px], reach),
    ]
    outputs = list(graphs[0].output)
    for output in outputs:
        output.name = output.name.removeprefix(_FIRST)
    graph = helper.make_graph(
        [node for graph in graphs for node in graph.node] + chosen,
        'joined',
        graphs[0].input,
        outputs,
        [item for graph in graphs for item in graph.initializer] + constants,
    )
    model = helper.make_model(graph, opset_imports=parts[0].opset_import)
    model.ir_version = max(part.ir_version for part in parts)
    manifest = of_both(*manifests, surer_by, reach_px)
    manifest = dataclasses.replace(
        manifest, name=name or manifest.name, version=version or manifest.version
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.stem}.{os.getpid()}.onnx')
    try:
        onnx.save(model, str(partial))
        write_manifest(partial, manifest)
        _require_choice(partial, Path(first), Path(second), surer_by, reach_px)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return manifest


@contextmanager
def first_alone(path: str | Path) -> Iterator[Path]:
    """The first model of a joined file, as a file of its own for a while; any other as it is.

    Raises:
        ModelError: the file is missing or damaged.
    """
    path = Path(path)
    manifest = read_manifest(path) if path.suffix == '.onnx' else None
    if not is_joined(manifest):
        yield path
        return
    _logger.warning('%s is two models in one: taken is the first', path.name)
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / path.name
        write_first(path, alone)
        yield alone


@contextmanager
def second_alone(path: str | Path) -> Iterator[Path]:
    """The second model of a joined file, as a file of its own for a while."""
    with tempfile.TemporaryDirectory() as folder:
        alone = Path(folder) / Path(path).name
        _write_part(path, alone, _SECOND)
        yield alone


def write_first(path: str | Path, out: str | Path) -> None:
    """Write the first model of the joined file `path` to `out`, as it was before."""
    _write_part(path, out, _FIRST)


def join_again(adapted: str | Path, joined: str | Path, path: str | Path) -> Manifest:
    """Write `adapted` to `path`, joined with the second model of the file `joined` as that is.

    Raises:
        JoinError: as `join`.
        ModelError: a file is missing or damaged.
    """
    about = read_manifest(joined).extra[KEY]
    with second_alone(joined) as second:
        return join(
            adapted,
            second,
            path,
            surer_by=about['surer_by'],
            reach_px=about['reach_px'],
            trusting=True,
        )


def joined_again(adapted: Manifest, joined: Manifest) -> Manifest:
    """What a file of `join_again` says of itself."""
    about = joined.extra[KEY]
    second = Manifest.from_json(json.dumps(about['parts'][1]))
    return of_both(adapted, second, about['surer_by'], about['reach_px'])


def _write_part(path: str | Path, out: str | Path, prefix: str) -> None:
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    about = read_manifest(path).extra[KEY]['parts'][(_FIRST, _SECOND).index(prefix)]
    nodes = [node for node in graph.node if node.output[0].startswith(prefix)]
    values = [item for item in graph.initializer if item.name.startswith(prefix)]
    for kept, of_the_part in ((graph.node, nodes), (graph.initializer, values)):
        del kept[:]
        kept.extend(of_the_part)
    for item in [*graph.node, *graph.initializer]:
        item.name = item.name.removeprefix(prefix)
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [name.removeprefix(prefix) for name in names]
    onnx.save(model, str(out))
    write_manifest(out, Manifest.from_json(json.dumps(about)))


def _of_a_part(path: str | Path, trusting: bool) -> Manifest:
    manifest = read_manifest(path)
    if manifest is None:
        raise JoinError(f'{path} carries no manifest; expected a file of `stereo-kd-train export`')
    if is_joined(manifest):
        raise JoinError(f'{path} is two models already; join the files that it was made of')
    if not (trusting or manifest.extra.get('confidence')):
        raise JoinError(
            f'the confidence of {path} is no probability, so that it cannot be compared; run '
            '`stereo-kd-train calibrate` first'
        )
    return manifest


def _require_alike(parts: list[onnx.ModelProto], names: tuple[str, str]) -> None:
    def sides(part: onnx.ModelProto) -> list[list[Any]]:
        shapes = {item.name: item.type.tensor_type.shape.dim for item in part.graph.input}
        return [[dim.dim_param or dim.dim_value for dim in shapes[name]] for name in INPUTS]

    for what, values in (
        ('inputs', [sides(part) for part in parts]),
        ('operators', [{o.domain: o.version for o in part.opset_import} for part in parts]),
    ):
        if values[0] != values[1]:
            raise JoinError(
                f'{names[0]} has the {what} {values[0]} and {names[1]} {values[1]}, expected the '
                'same; export both again, with the same --fixed-size or none'
            )


def of_both(first: Manifest, second: Manifest, surer_by: float, reach_px: int) -> Manifest:
    """What two models are together; all that is not told here is the first one's."""
    parts = (first, second)
    limits = dict(first.input_limits)
    for key, value in second.input_limits.items():
        tighter = min if key.startswith('max') else max
        limits[key] = tighter(value, limits.get(key, value))
    return dataclasses.replace(
        first,
        parameters=sum(part.parameters for part in parts),
        macs_640x480=sum(part.macs_640x480 for part in parts) + 2 * reach_px * 640 * 480,
        min_disparity_px=min(part.min_disparity_px for part in parts),
        max_disparity_px=max(part.max_disparity_px for part in parts),
        training_data=first.training_data
        + [entry for entry in second.training_data if entry not in first.training_data],
        input_limits=limits,
        metrics={},
        weights_sha256=hashlib.sha256(
            ''.join(part.weights_sha256 for part in parts).encode()
        ).hexdigest(),
        stride=math.lcm(first.stride, second.stride),
        licence=' AND '.join(dict.fromkeys(part.licence for part in parts if part.licence)),
        extra={
            **first.extra,
            KEY: {
                'surer_by': surer_by,
                'reach_px': reach_px,
                'parts': [json.loads(part.to_json()) for part in parts],
            },
        },
    )


def _require_choice(path: Path, first: Path, second: Path, surer_by: float, reach_px: int) -> None:
    """Raise unless the file answers what its parts say of a generated pair, pixel by pixel."""
    sample = render_pair(0, *_PROBED)
    feed = {'left': np.array(sample.left)[None], 'right': np.array(sample.right)[None]}
    asked = (
        dict(zip(OUTPUTS, quiet_session(p).run(OUTPUTS, feed))) for p in (path, first, second)
    )
    found, one, other = asked
    more = other['confidence'][0] - np.float32(surer_by) * one['confidence'][0]
    better = cv2.blur(more, (reach_px, reach_px), borderType=cv2.BORDER_CONSTANT) > 0
    for output in OUTPUTS:
        expected = np.where(better, other[output], one[output])
        # What is as good as the other may fall either way.
        off = float((np.abs(found[output] - expected) > 1e-3).mean())
        if off > 1e-2:
            raise JoinError(
                f'{path.name} answers otherwise than its parts at {off:.1%} of pixels; nothing '
                'was written'
            )


def join_command(
    first: Annotated[Path, typer.Argument(help='A .onnx with fine cells.')],
    second: Annotated[Path, typer.Argument(help='One that is surer where the first is lost.')],
    out: Annotated[Path, typer.Option('--out', '-o', help='The .onnx file to write.')],
    name: Annotated[str | None, typer.Option(help='Of the model; that of FIRST without.')] = None,
    version: Annotated[str | None, typer.Option(help='Likewise.')] = None,
    surer_by: Annotated[
        float, typer.Option(help='So many times as confident the second has to be.')
    ] = SURER_BY,
    reach_px: Annotated[
        int, typer.Option(help='On the mean over so many pixels each way round it; odd.')
    ] = REACH_PX,
) -> None:
    """Make one model of two: the second answers where it knows more than the first."""
    manifest = join(
        first,
        second,
        out,
        name=name,
        version=version,
        surer_by=surer_by,
        reach_px=reach_px,
    )
    console.print(
        f'{manifest.name} {manifest.version}: {manifest.macs_640x480 / 1e9:.2f} GMAC at 640x480, '
        f'wrote {out} ({out.stat().st_size / 1e6:.2f} MB)'
    )
