# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Stereo networks of others as ONNX files, with their input and output declared, not coded.

Public ONNX files do not agree on anything: grey or colour, one stacked input or two, NHWC or
NCHW, normalised or not, padded to 16 or 64, positive or negative disparity. An `InputAdapter`
states these, from a YAML file or a dict:

    channels: grey            # grey | rgb | bgr
    inputs: stacked           # stacked: one input, the eyes along the channels | separate
    layout: nhwc              # nhwc | nchw
    scale: 0.00392156862745   # (scale * byte - mean) / std
    mean: [0.0]
    std: [1.0]
    multiple: 32              # H and W are padded to a multiple of it
    pad: bottom-right         # bottom-right | top-right
    output: 0                 # index of the output that holds the disparity
    output_scale: 1.0         # pixels per unit of the output; negative when it gives -d

so that any of them serves as a teacher, or as a peer in a benchmark or an evaluation. A command
line names one as `NAME=FILE.onnx`, where NAME has a known adapter, or `NAME=FILE.onnx@YAML`.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import onnxruntime

from stereo_kd_ros.sessions import quiet_session


class OnnxPeerError(ValueError):
    """An adapter that says nonsense, or a network that does not fit its adapter."""


_CHOICES = {
    'channels': ('grey', 'rgb', 'bgr'),
    'inputs': ('stacked', 'separate'),
    'layout': ('nhwc', 'nchw'),
    'pad': ('bottom-right', 'top-right'),
}


@dataclass(frozen=True)
class InputAdapter:
    """How a network wants its images and how it gives its disparity; see the module."""

    channels: Literal['grey', 'rgb', 'bgr'] = 'rgb'
    inputs: Literal['stacked', 'separate'] = 'separate'
    layout: Literal['nhwc', 'nchw'] = 'nchw'
    scale: float = 1.0 / 255.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    multiple: int = 32
    pad: Literal['bottom-right', 'top-right'] = 'bottom-right'
    output: int = 0
    output_scale: float = 1.0

    def __post_init__(self) -> None:
        for key, choices in _CHOICES.items():
            if getattr(self, key) not in choices:
                raise OnnxPeerError(
                    f'{key}: must be one of {list(choices)}, got {getattr(self, key)!r}'
                )
        if self.multiple < 1:
            raise OnnxPeerError(f'multiple: must be at least 1, got {self.multiple}')
        for key in ('mean', 'std'):
            if len(getattr(self, key)) not in (1, 1 if self.channels == 'grey' else 3):
                raise OnnxPeerError(f'{key}: needs one value, or one per channel')

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> InputAdapter:
        """Build from a mapping.

        Raises:
            OnnxPeerError: an unknown key, naming the nearest known one, or a bad value.
        """
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f', did you mean {near[0]!r}?' if near else f'; known: {known}'
                raise OnnxPeerError(f'unknown adapter key {key!r}{hint}')
        try:
            converted = {
                key: tuple(float(v) for v in value) if key in ('mean', 'std') else value
                for key, value in values.items()
            }
        except TypeError:
            raise OnnxPeerError('mean and std must be lists of numbers') from None
        return cls(**converted)

    @classmethod
    def from_yaml(cls, path: str | Path) -> InputAdapter:
        """Read from a YAML file.

        Raises:
            OnnxPeerError: not readable, not a mapping, an unknown key, or a bad value.
        """
        try:
            import yaml
        except ImportError as error:
            raise OnnxPeerError(
                f'{path}: reading an adapter needs PyYAML: pip install pyyaml'
            ) from error
        try:
            values = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
        except (OSError, UnicodeError, yaml.YAMLError) as error:
            raise OnnxPeerError(f'{path}: cannot be read as YAML: {error}') from error
        if not isinstance(values, dict):
            raise OnnxPeerError(f'{path}: expected "key: value" lines, found {values!r}')
        try:
            return cls.from_dict(values)
        except OnnxPeerError as error:
            raise OnnxPeerError(f'{path}: {error}') from error


# Adapters of public networks, by the name that a command line uses.
KNOWN_ADAPTERS = {
    # HITNet as converted from the authors' frozen graphs: the ETH3D one is grey, the
    # Scene Flow and Middlebury ones are colour.
    'hitnet': InputAdapter(channels='grey', inputs='stacked', layout='nhwc', multiple=32),
    'hitnet-colour': InputAdapter(inputs='stacked', layout='nhwc', multiple=32),
}


def open_onnx_peer(name: str, file: str, threads: int | None = None) -> OnnxPeer:
    """Open `FILE.onnx` with the known adapter of a name, or `FILE.onnx@YAML` with its own.

    Raises:
        OnnxPeerError: the file or its adapter is at fault, or there is no adapter.
    """
    path, separator, adapter_file = file.partition('@')
    if separator:
        return OnnxPeer(path, InputAdapter.from_yaml(adapter_file), threads)
    if name not in KNOWN_ADAPTERS:
        raise OnnxPeerError(
            f'peer {name!r} has no known adapter (known: {sorted(KNOWN_ADAPTERS)}); '
            f'give one: {name}={path}@ADAPTER.yaml'
        )
    return OnnxPeer(path, KNOWN_ADAPTERS[name], threads)


class OnnxPeer:
    """A foreign stereo network: `disparity = peer(left, right)`.

    Attributes:
        adapter: its declaration.
        path: its file.
        identity: a string that changes when the file, the adapter or the runtime does.
    """

    def __init__(
        self, path: str | Path, adapter: InputAdapter, threads: int | None = None
    ) -> None:
        path = Path(path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise OnnxPeerError(f'{path}: cannot be read: {error.strerror}') from error
        try:
            self._session = quiet_session(content, threads)
        except Exception as error:  # onnxruntime raises types of its own for every fault
            raise OnnxPeerError(f'{path}: onnxruntime cannot load it: {error}') from error
        self.adapter, self.path = adapter, path
        self._inputs = [tensor.name for tensor in self._session.get_inputs()]
        expected = 1 if adapter.inputs == 'stacked' else 2
        if len(self._inputs) != expected:
            raise OnnxPeerError(
                f'{path}: the adapter says inputs: {adapter.inputs}, which means {expected} '
                f'input(s), but the network has {self._inputs}'
            )
        outputs = [tensor.name for tensor in self._session.get_outputs()]
        if not -len(outputs) <= adapter.output < len(outputs):
            raise OnnxPeerError(f'{path}: output {adapter.output} of {outputs} does not exist')
        self._output = outputs[adapter.output]
        self.identity = ' '.join(
            (
                hashlib.sha256(content).hexdigest(),
                json.dumps(asdict(adapter), sort_keys=True),
                f'onnxruntime {onnxruntime.__version__}',
            )
        )

    def __call__(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Match a pair of (H, W, 3) uint8 RGB images: (H, W) float32 px.

        Raises:
            OnnxPeerError: the output has not the size of the (padded) input.
        """
        height, width = left.shape[:2]
        bottom, right_px = -height % self.adapter.multiple, -width % self.adapter.multiple
        top = bottom if self.adapter.pad == 'top-right' else 0
        tensors = [
            self._tensor(
                cv2.copyMakeBorder(image, top, bottom - top, 0, right_px, cv2.BORDER_REPLICATE)
            )
            for image in (left, right)
        ]
        if self.adapter.inputs == 'stacked':
            tensors = [np.concatenate(tensors, axis=3 if self.adapter.layout == 'nhwc' else 1)]
        (output,) = self._session.run(
            [self._output], dict(zip(self._inputs, tensors, strict=True))
        )
        padded = (height + bottom, width + right_px)
        if output.size != padded[0] * padded[1]:
            raise OnnxPeerError(
                f'output {self._output} has shape {output.shape} for an input of {padded}; '
                'is `output` the right index, `multiple` the right one?'
            )
        disparity = output.reshape(padded)[top : top + height, :width]
        return np.ascontiguousarray(disparity * self.adapter.output_scale, dtype=np.float32)

    def _tensor(self, image: np.ndarray) -> np.ndarray:
        """(H, W, 3) uint8 RGB to the network's own scale and layout, with a batch axis."""
        adapter = self.adapter
        if adapter.channels == 'grey':
            image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
        elif adapter.channels == 'bgr':
            image = image[..., ::-1]
        mean = np.asarray(adapter.mean, np.float32)
        std = np.asarray(adapter.std, np.float32)
        values = (image.astype(np.float32) * np.float32(adapter.scale) - mean) / std
        if adapter.layout == 'nchw':
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None])
