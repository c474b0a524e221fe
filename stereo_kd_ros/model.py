# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The ONNX contract: what a model file takes and gives, and the manifest it carries.

    inputs   left, right   uint8    [N, H, W, 3]  RGB, rectified
    outputs  disparity     float32  [N, H, W]     px at input resolution, >= 0
             confidence    float32  [N, H, W]     in [0, 1]

N, H and W are dynamic or fixed; normalisation, padding and cropping are inside the graph. The
manifest is one JSON value in the file's own metadata under `METADATA_KEY`. Reading it takes
neither onnx nor onnxruntime: the file's top-level protobuf fields are walked, the weights are
stepped over.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import sys
import tempfile
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

METADATA_KEY = 'stereo_kd_manifest'
MODELS_VARIABLE = 'STEREO_KD_MODELS'
INPUTS = ('left', 'right')
OUTPUTS = ('disparity', 'confidence')
# ModelProto's field numbers (onnx.proto); StringStringEntryProto has key = 1, value = 2.
_IR_VERSION_FIELD, _GRAPH_FIELD, _METADATA_FIELD = 1, 7, 14


class ModelError(RuntimeError):
    """A model file that is missing, damaged or breaks the contract."""


@dataclass(frozen=True)
class Manifest:
    """What a model file says about itself.

    Attributes:
        name: Of the model, e.g. `kestrel_small`.
        version: Of the model, semantic.
        network: The registered network it was exported from.
        configuration: Name, options and pruned widths that rebuild that network, {} if unknown.
        parameters: Trainable values.
        macs_640x480: Multiply-accumulates of one 640x480 pair.
        min_disparity_px: Smallest disparity it answers.
        max_disparity_px: Largest disparity it answers.
        training_data: One entry per data set, with at least `name` and `licence`.
        teacher: Who taught it, or None.
        pruning: One entry per pruning step.
        input_limits: Of `min_height`, `max_height`, `min_width`, `max_width` [px].
        metrics: Held-in figures by data set.
        weights_sha256: Of the weights it was exported from.
        exporter: Versions of what exported it.
        opset: ONNX operator set.
        stride: Sides that are multiples of it need no padding.
        licence: SPDX identifier of the weights.
        calibration_sha256: Of the images an INT8 variant was calibrated with, or None.
        calibration: The camera it was adapted to, or None: `camera.calibration_record`.
        extra: Whatever else the JSON held.
    """

    name: str
    version: str = '0.0.0'
    network: str = ''
    configuration: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    macs_640x480: int = 0
    min_disparity_px: float = 0.0
    max_disparity_px: float = 192.0
    training_data: list[dict[str, Any]] = field(default_factory=list)
    teacher: str | None = None
    pruning: list[Any] = field(default_factory=list)
    input_limits: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    weights_sha256: str = ''
    exporter: dict[str, Any] = field(default_factory=dict)
    opset: int = 0
    stride: int = 1
    licence: str = ''
    calibration_sha256: str | None = None
    calibration: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse numbers that the runtime would compute with and that cannot be.

        Raises:
            ModelError: It names the key.
        """
        if not 0 <= self.min_disparity_px < self.max_disparity_px < math.inf:
            raise ModelError(
                f"the manifest keys 'min_disparity_px' and 'max_disparity_px' are "
                f'{self.min_disparity_px} and {self.max_disparity_px}, expected '
                '0 <= min < max'
            )
        for key, value in self.input_limits.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ModelError(
                    f"the manifest key 'input_limits' holds {key!r}: {value!r}, expected a whole "
                    'number of pixels above 0'
                )

        if self.calibration is not None and not isinstance(self.calibration.get('hash'), str):
            raise ModelError(
                f"the manifest key 'calibration' is {self.calibration!r}, expected an object with "
                "the text 'hash'"
            )

    def to_json(self) -> str:
        """The manifest as one line of JSON; `extra` is spread among the other keys."""
        values = dataclasses.asdict(self)
        return json.dumps({**values.pop('extra'), **values}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Read a manifest; unknown keys go to `extra`.

        Raises:
            ModelError: It is no JSON object, or a key is missing or of the wrong type.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ModelError(f'the manifest is no JSON: {error}') from error
        if not isinstance(values, dict):
            raise ModelError(f'the manifest is a {type(values).__name__}, expected an object')
        if 'name' not in values:
            raise ModelError("the manifest lacks the key 'name'")
        known = {name: kind for name, kind in _manifest_types().items() if name != 'extra'}
        for key, expected in known.items():
            if key in values:
                values[key] = _typed(key, values[key], expected)
        extra = {key: values.pop(key) for key in list(values) if key not in known}
        return cls(**values, extra=extra)


def _manifest_types() -> dict[str, Any]:
    return typing.get_type_hints(Manifest)


def _typed(key: str, value: Any, expected: Any) -> Any:
    """A JSON value, checked against a field's annotation.

    Raises:
        ModelError: It is of another type.
    """
    kinds = typing.get_args(expected) if isinstance(expected, types.UnionType) else (expected,)
    kinds = tuple(typing.get_origin(kind) or kind for kind in kinds)
    if float in kinds and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, kinds):
        names = ' or '.join(kind.__name__.replace('NoneType', 'null') for kind in kinds)
        raise ModelError(
            f'the manifest key {key!r} is a {type(value).__name__} ({value!r}), expected {names}'
        )
    return value


def read_manifest(path: str | os.PathLike[str]) -> Manifest | None:
    """Read the manifest of a model file; None when it carries none.

    Raises:
        ModelError: The file is missing or no ONNX model, or its manifest is damaged.
    """
    value = _read_metadata(Path(path)).get(METADATA_KEY)
    if value is None:
        return None
    try:
        return Manifest.from_json(value)
    except ModelError as error:
        raise ModelError(f'{path}: {error}') from error


def write_manifest(path: str | os.PathLike[str], manifest: Manifest) -> None:
    """Put a manifest into a model file, in place and all at once.

    Raises:
        ModelError: The file cannot be read, or onnx is not installed.
    """
    try:
        import onnx
    except ImportError as error:
        raise ModelError('writing a manifest needs the onnx package: pip install onnx') from error
    path = Path(path)
    try:
        model = onnx.load(path)
    except Exception as error:
        raise ModelError(f'{path} cannot be read as an ONNX model: {error}') from error
    kept = [entry for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    model.metadata_props.add(key=METADATA_KEY, value=manifest.to_json())
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix='.part')
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(model.SerializeToString())
        os.chmod(temporary, path.stat().st_mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _read_metadata(path: Path) -> dict[str, bytes]:
    """The metadata of an ONNX file, by key.

    Raises:
        ModelError: The file is missing, cut off or no ONNX model.
    """
    try:
        with open(path, 'rb') as file:
            size = os.fstat(file.fileno()).st_size
            entries, seen = {}, set()
            for number, value in _fields(file, size, _METADATA_FIELD):
                seen.add(number)
                if number == _METADATA_FIELD:
                    entry = dict(_entry_fields(value))
                    entries[entry.get(1, b'').decode()] = entry.get(2, b'')
    except OSError as error:
        raise ModelError(f'the model file {path} cannot be read: {error.strerror}') from error
    except (ValueError, UnicodeDecodeError) as error:
        raise ModelError(f'{path} is damaged or no ONNX model: {error}') from error
    if not {_IR_VERSION_FIELD, _GRAPH_FIELD} <= seen:
        raise ModelError(f'{path} is no ONNX model: it has no IR version or no graph')
    return entries


def _fields(file: BinaryIO, size: int, wanted: int | None) -> Iterator[tuple[int, bytes]]:
    """Walk protobuf fields up to `size`; only the bytes of `wanted` (None: all) are read.

    Raises:
        ValueError: The bytes are no protobuf message.
    """
    while file.tell() < size:
        tag = _varint(file)
        number, kind = tag >> 3, tag & 7
        if number == 0:
            raise ValueError('a field has the number 0')
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 0:
            _varint(file)
        elif kind == 2:
            length = _varint(file)
        elif not length:
            raise ValueError(f'a field has the wire type {kind}')
        if file.tell() + length > size:
            raise ValueError(f'field {number} ends {file.tell() + length - size} bytes too late')
        if kind == 2 and wanted in (None, number):
            yield number, file.read(length)
        else:
            file.seek(length, os.SEEK_CUR)
            yield number, b''


def _entry_fields(entry: bytes) -> Iterator[tuple[int, bytes]]:
    import io

    return _fields(io.BytesIO(entry), len(entry), None)


def _varint(file: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise ValueError('it ends within a number')
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError('a number is longer than 64 bits')


def check_contract(inputs: Sequence[Any], outputs: Sequence[Any]) -> None:
    """Check a session's `get_inputs()` and `get_outputs()`.

    Raises:
        ModelError: It names the input or output at fault, and what was expected of it.
    """
    _check_nodes('input', inputs, INPUTS, 'tensor(uint8)', '[N, H, W, 3]', rank=4)
    for node in inputs:
        if node.shape[3] != 3:
            raise ModelError(
                f'the input {node.name!r} has the shape {node.shape}, expected [N, H, W, 3] '
                '(RGB in the last dimension)'
            )
        if isinstance(node.shape[0], int) and node.shape[0] != 1:
            raise ModelError(
                f'the input {node.name!r} has the fixed batch size {node.shape[0]}, expected a '
                'dynamic one or 1'
            )
    left, right = (next(node for node in inputs if node.name == name) for name in INPUTS)
    for ours, theirs in zip(left.shape, right.shape):
        if isinstance(ours, int) != isinstance(theirs, int) or (
            isinstance(ours, int) and ours != theirs
        ):
            raise ModelError(
                f"the input 'right' has the shape {right.shape}, expected that of 'left', "
                f'{left.shape}'
            )
    _check_nodes('output', outputs, OUTPUTS, 'tensor(float)', '[N, H, W]', rank=3)


def _check_nodes(
    kind: str, nodes: Sequence[Any], names: tuple[str, ...], dtype: str, shape: str, rank: int
) -> None:
    found = {node.name: node for node in nodes}
    listed = ', '.join(repr(name) for name in found) or 'none'
    for name in names:
        if name not in found:
            raise ModelError(f'the {kind} {name!r} is missing; the file has {listed}')
    for name in found:
        if kind == 'input' and name not in names:
            raise ModelError(
                f'the input {name!r} is not part of the contract, expected only {names}'
            )
    for name in names:
        node = found[name]
        if node.type != dtype:
            raise ModelError(f'the {kind} {name!r} is a {node.type}, expected {dtype}')
        if len(node.shape) != rank:
            raise ModelError(f'the {kind} {name!r} has the shape {node.shape}, expected {shape}')


def model_directories() -> list[Path]:
    """Where models are looked for, in order; only what exists.

    First the folders in STEREO_KD_MODELS, then the `models` folder of a source checkout, then
    the share folder of every ROS prefix, of the Python prefix and of this package's own prefix.
    """
    wanted = [Path(part) for part in os.environ.get(MODELS_VARIABLE, '').split(os.pathsep) if part]
    package = Path(__file__).resolve().parent
    wanted.append(package.parent / 'models')
    prefixes = [part for part in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if part]
    prefixes.append(sys.prefix)
    # <prefix>/lib/pythonX.Y/site-packages/stereo_kd_ros, and colcon's <prefix>/local/lib/...
    prefixes.extend(str(parent) for parent in package.parents[3:6])
    wanted.extend(Path(prefix) / 'share' / 'stereo_kd_ros' / 'models' for prefix in prefixes)
    found: list[Path] = []
    for directory in wanted:
        if directory.is_dir() and directory.resolve() not in found:
            found.append(directory.resolve())
    return found


def list_models() -> list[Path]:
    """Every model file, by stem; a stem in an earlier directory hides later ones."""
    found: dict[str, Path] = {}
    for directory in model_directories():
        for path in sorted(directory.glob('*.onnx')):
            found.setdefault(path.stem, path)
    return [found[stem] for stem in sorted(found)]


def resolve_model(name_or_path: str | os.PathLike[str]) -> Path:
    """Find a model file by path, by its folder, by its stem, or by a size such as `nano`.

    A folder stands for the one model in it, as `stereo-kd-train adapt` delivers it; a size for the
    model whose stem ends in `_<size>`.

    Raises:
        ModelError: There is none, or the folder or size fits several; it lists what exists.
    """
    path = Path(name_or_path).expanduser()
    if path.is_file():
        return path
    name = str(name_or_path)
    models = {model.stem: model for model in list_models()}
    if name.removesuffix('.onnx') in models:
        return models[name.removesuffix('.onnx')]
    sized = [stem for stem in models if stem.endswith(f'_{name}')]
    if len(sized) == 1:
        return models[sized[0]]
    if name and not sized and path.is_dir():
        return _only_model(path)
    listed = ', '.join(models) or 'none'
    if sized:
        raise ModelError(
            f'the model {name!r} could be any of {", ".join(sized)}; give one of them'
        )
    if path.suffix == '.onnx' or len(path.parts) > 1:
        raise ModelError(f'the model file {name!r} does not exist; shipped models: {listed}')
    raise ModelError(
        f'there is no model {name!r}; shipped models: {listed}. Give one of them, the path of an '
        f'ONNX file, or add its folder to {MODELS_VARIABLE}'
    )


def _only_model(folder: Path) -> Path:
    """The one model of a folder.

    Raises:
        ModelError: It holds none, or several.
    """
    models = sorted(folder.glob('*.onnx'))
    if len(models) == 1:
        return models[0]
    listed = ', '.join(model.name for model in models) or 'none'
    raise ModelError(
        f'the folder {str(folder)!r} holds {len(models)} models ({listed}), expected one ONNX '
        'file: give the path of the file itself'
    )
