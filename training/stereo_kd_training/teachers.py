# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Teachers: whatever answers a stereo pair, behind one call.

    TorchTeacher        a network of this package with a checkpoint
    OnnxTeacher         any ONNX file, its inputs described by a small YAML (teachers/*.yaml)
    FolderTeacher       disparities computed elsewhere
    ConsistencyChecked  one of the above, its confidence lowered where left and right disagree

A teacher gives a disparity and a confidence, and a distribution over disparities if it has
one. `teacher_cache.TeacherCache` keeps answers on disk; `distributions` makes a
distribution out of a disparity and carries it to another network's hypotheses.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from stereo_kd_ros.disparity_io import read_kitti_png, read_pfm
from stereo_kd_ros.sessions import quiet_session
from stereo_kd_training import networks
from stereo_kd_training.networks.base import StereoNetwork, StereoOutput
from stereo_kd_training.networks.checkpoint import load_checkpoint


class TeacherError(ValueError):
    """A teacher that cannot be built or asked, or an answer that cannot be found."""


@dataclass(frozen=True)
class TopK:
    """The K most probable disparities of each pixel.

    Attributes:
        indices: (K, h, w) uint8 or uint16, into `hypotheses`.
        probabilities: (K, h, w) float16, falling along K; their sum is at most 1.
        hypotheses: (D,) float32 px.
        factor: image pixels per cell; h = ceil(H / factor).
    """

    indices: np.ndarray
    probabilities: np.ndarray
    hypotheses: np.ndarray
    factor: int = 1

    def dense(self) -> np.ndarray:
        """(D, h, w) float32 that sums to 1; what the K left over is spread evenly on the rest."""
        count = len(self.hypotheses)
        known = self.probabilities.astype(np.float32)
        total = known.sum(0)
        known /= np.maximum(total, 1.0)
        others = max(count - known.shape[0], 1)
        rest = np.clip(1.0 - total, 0.0, None) / others
        full = np.broadcast_to(rest, (count, *rest.shape)).copy()
        np.put_along_axis(full, self.indices.astype(np.int64), known, 0)
        return full / full.sum(0)

    def cropped(self, top: int, left: int, height: int, width: int) -> TopK:
        """The cells of a window given in image pixels.

        Raises:
            TeacherError: the window does not fall on cells.
        """
        if any(value % self.factor for value in (top, left, height, width)):
            raise TeacherError(
                f'window {top, left, height, width} does not fall on cells of {self.factor} px'
            )
        rows = slice(top // self.factor, (top + height) // self.factor)
        columns = slice(left // self.factor, (left + width) // self.factor)
        return TopK(
            self.indices[:, rows, columns],
            self.probabilities[:, rows, columns],
            self.hypotheses,
            self.factor,
        )


@dataclass(frozen=True)
class Prediction:
    """A teacher's answer to one pair.

    Attributes:
        disparity: (H, W) float32 px, NaN where the teacher knows nothing.
        confidence: (H, W) float32 in [0, 1].
        distribution: where the teacher has one and was asked to keep it.
    """

    disparity: np.ndarray
    confidence: np.ndarray
    distribution: TopK | None = None

    def cropped(self, top: int, left: int, height: int, width: int) -> Prediction:
        """The same answer for a window of the left image."""
        rows, columns = slice(top, top + height), slice(left, left + width)
        distribution = self.distribution
        return Prediction(
            self.disparity[rows, columns],
            self.confidence[rows, columns],
            None if distribution is None else distribution.cropped(top, left, height, width),
        )


class Teacher(ABC):
    """Answers rectified pairs.

    Attributes:
        name: for tables and logs.
        fingerprint: hexadecimal; changes whenever the answers might.
        max_disparity_px: the largest it can answer, where that is known.
    """

    name: str
    fingerprint: str
    max_disparity_px: float | None = None

    @abstractmethod
    def predict(self, left: np.ndarray, right: np.ndarray, name: str = '') -> Prediction:
        """Answer one pair.

        Args:
            left, right: (H, W, 3) uint8 RGB.
            name: of the sample, for teachers that look answers up.

        Raises:
            TeacherError: the pair cannot be answered.
        """


class TorchTeacher(Teacher):
    """A network of this package.

    Args:
        network: in any mode; put into inference mode here.
        top_k: probabilities kept per cell; 0 keeps none.
        device: where to run.
        cell: a distribution of finer cells is averaged over cells of this many pixels first,
            which is what a student at that resolution would compare itself with. A full one
            of PSMNet takes 16 times the disk of one at 4.
    """

    def __init__(
        self, network: StereoNetwork, top_k: int = 0, device: str = 'cpu', cell: int = 1
    ) -> None:
        if top_k < 0:
            raise TeacherError(f'top_k is 0 or more, got {top_k}')
        if cell < 1:
            raise TeacherError(f'a cell has 1 pixel or more, got {cell}')
        self.network = network.eval().to(device)
        self.top_k = top_k
        self.cell = cell
        self.device = torch.device(device)
        self.max_disparity_px = float(network.max_disparity_px)
        self.name = str(network.configuration.get('name', type(network).__name__.lower()))
        kept = f'top_k={top_k}' + (f' cell={cell}' if top_k and cell > 1 else '')
        digest = hashlib.sha256(f'torch {self.name} {kept}'.encode())
        digest.update(json.dumps(network.configuration, sort_keys=True, default=str).encode())
        for key, value in network.state_dict().items():
            digest.update(key.encode())
            digest.update(np.ascontiguousarray(value.cpu().numpy()).tobytes())
        self.fingerprint = digest.hexdigest()

    @classmethod
    def from_checkpoint(
        cls,
        network: str,
        checkpoint: str | Path,
        options: Mapping[str, Any] | None = None,
        top_k: int = 0,
        device: str = 'cpu',
        cell: int = 1,
    ) -> TorchTeacher:
        """Build network `network` with `options` and load `checkpoint` strictly."""
        built = networks.create(network, **(options or {}))
        load_checkpoint(built, checkpoint)
        return cls(built, top_k, device, cell)

    @torch.inference_mode()
    def predict(self, left: np.ndarray, right: np.ndarray, name: str = '') -> Prediction:
        check_pair(left, right)
        height, width = left.shape[:2]
        down, across = self.network.strides
        pad = (0, -width % across, 0, -height % down)
        images = []
        for image in (left, right):
            planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
            planes = F.pad(planes.to(self.device).float(), pad, mode='replicate')
            images.append(self.network.normalize(planes))
        output = self.network(*images)
        disparity = output.disparity[0, :height, :width].float().cpu().numpy()
        if output.confidence is None:
            confidence = np.ones_like(disparity)
        else:
            confidence = output.confidence[0, :height, :width].float().cpu().numpy()
        distribution = None
        if self.top_k:
            distribution = self._distribution(output, height, width, images[0].shape[-2:])
        return Prediction(disparity, np.clip(confidence, 0.0, 1.0), distribution)

    def _distribution(
        self, output: StereoOutput, height: int, width: int, padded: Sequence[int]
    ) -> TopK:
        """Of the finest stage that has one."""
        staged = [
            (logits, hypotheses)
            for logits, hypotheses in zip(output.logits, output.hypotheses)
            if logits is not None
        ]
        if not staged:
            raise TeacherError(f'{self.name} has no distribution over disparities; use top_k=0')
        logits, hypotheses = staged[-1]
        factor, across = (size // cells for size, cells in zip(padded, logits.shape[-2:]))
        if factor != across:
            raise TeacherError(
                f'{self.name} has cells of {across}x{factor} px; a cached distribution takes '
                'square ones: use top_k=0, or teach without a cache'
            )
        logits = logits[0, :, : -(-height // factor), : -(-width // factor)]
        probabilities = torch.softmax(logits.float(), 0)
        if factor < self.cell:
            if self.cell % factor:
                raise TeacherError(
                    f'{self.name} has cells of {factor} px, of which none fit into {self.cell} px'
                )
            probabilities = F.avg_pool2d(
                probabilities[None], self.cell // factor, ceil_mode=True, count_include_pad=False
            )[0]
            factor = self.cell
        count = probabilities.shape[0]
        kept, indices = probabilities.topk(min(self.top_k, count), 0)
        return TopK(
            indices.cpu().numpy().astype(np.uint8 if count <= 256 else np.uint16),
            kept.cpu().numpy().astype(np.float16),
            hypotheses.float().cpu().numpy(),
            factor,
        )


_COLOURS = ('gray', 'rgb', 'bgr')
_LAYOUTS = ('NHWC', 'NCHW')
_VIEWS = ('left', 'right')


@dataclass(frozen=True)
class OnnxInput:
    """How one input of an ONNX teacher is made from a pair.

    Attributes:
        name: of the input in the file.
        views: 'left', 'right' or both, stacked along the channels in this order.
        colour: 'gray', 'rgb' or 'bgr'.
        layout: 'NHWC' or 'NCHW'.
        scale: multiplies the 0..255 values first.
        mean, std: then subtracted and divided by, one per channel of a view.
    """

    name: str
    views: tuple[str, ...]
    colour: str = 'rgb'
    layout: str = 'NCHW'
    scale: float = 1.0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for what, value, known in (
            ('colour', self.colour, _COLOURS),
            ('layout', self.layout, _LAYOUTS),
            *(('view', view, _VIEWS) for view in self.views),
        ):
            if value not in known:
                raise TeacherError(
                    f'input {self.name!r}: {what} is one of {", ".join(known)}, got {value!r}'
                )
        if not self.views:
            raise TeacherError(f'input {self.name!r}: views is empty')

    def tensor(self, pair: Mapping[str, np.ndarray]) -> np.ndarray:
        """(1, H, W, C) or (1, C, H, W) float32 out of {'left': ..., 'right': ...} RGB."""
        planes = []
        for view in self.views:
            image = pair[view]
            if self.colour == 'gray':
                image = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[:, :, None]
            elif self.colour == 'bgr':
                image = image[:, :, ::-1]
            values = image.astype(np.float32) * np.float32(self.scale)
            if self.mean:
                values = values - np.asarray(self.mean, np.float32)
            if self.std:
                values = values / np.asarray(self.std, np.float32)
            planes.append(values)
        stacked = np.concatenate(planes, 2)[None]
        if self.layout == 'NCHW':
            stacked = stacked.transpose(0, 3, 1, 2)
        return np.ascontiguousarray(stacked)


@dataclass(frozen=True)
class OnnxOutput:
    """Where an ONNX teacher's disparity is: (1, H, W), with or without a channel of one.

    Attributes:
        name: of the output in the file.
        scale: pixels per unit, -1 for a network that answers x_right - x_left.
    """

    name: str
    scale: float = 1.0


@dataclass(frozen=True)
class OnnxAdapter:
    """What one must know of an ONNX file to use it as a teacher.

    Attributes:
        name: for tables and logs.
        inputs: all of the file's inputs.
        output: its disparity.
        pad_multiple: sides are padded to multiples of it.
        max_disparity_px: answers beyond it count as unknown, None for no limit.
        licence: under which its labels come, as far as its authors state it.
    """

    name: str
    inputs: tuple[OnnxInput, ...]
    output: OnnxOutput
    pad_multiple: int = 1
    max_disparity_px: float | None = None
    # Not part of the fingerprint, which is made of the repr: it changes no answer.
    licence: str = field(default='', repr=False)

    @classmethod
    def from_yaml(cls, path: str | Path) -> OnnxAdapter:
        """Read an adapter file.

        Raises:
            TeacherError: absent, not YAML, or with a key or value that is not known.
        """
        import yaml

        path = Path(path)
        try:
            content = yaml.safe_load(path.read_text())
        except OSError as error:
            raise TeacherError(f'no teacher adapter at {path}: {error.strerror}') from error
        except yaml.YAMLError as error:
            raise TeacherError(f'{path} is not YAML: {error}') from error
        try:
            content = _known_keys(cls, content)
            content['inputs'] = tuple(
                OnnxInput(**_known_keys(OnnxInput, entry)) for entry in content['inputs']
            )
            content['output'] = OnnxOutput(**_known_keys(OnnxOutput, content['output']))
            return cls(**content)
        except TeacherError as error:
            raise TeacherError(f'{path}: {error}') from error
        except (TypeError, KeyError) as error:
            raise TeacherError(f'{path}: a key is missing ({error})') from error


def _known_keys(record: type, content: Any) -> dict[str, Any]:
    known = [field.name for field in fields(record)]
    if not isinstance(content, dict):
        raise TeacherError(f'expected the keys {", ".join(known)}, got {content!r}')
    for key in content:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise TeacherError(f'unknown key {key!r}{hint} (known: {", ".join(known)})')
    return {
        key: tuple(value) if isinstance(value, list) else value for key, value in content.items()
    }


class OnnxTeacher(Teacher):
    """An ONNX file through ONNX Runtime. Its confidence is 1 wherever it answers.

    Args:
        model: the file.
        adapter: its description.
        providers: ONNX Runtime's execution providers, in order of preference.
        threads: of one operator; None leaves it to ONNX Runtime.
    """

    def __init__(
        self,
        model: str | Path,
        adapter: OnnxAdapter,
        providers: Sequence[str] = ('CPUExecutionProvider',),
        threads: int | None = None,
    ) -> None:
        model = Path(model)
        if not model.is_file():
            raise TeacherError(
                f'no ONNX teacher at {model}: expected the path of an .onnx file; check the path'
            )
        try:
            self.session = quiet_session(model, threads, providers)
        except Exception as error:  # ONNX Runtime's own classes share no public base
            raise TeacherError(f'{model} cannot be loaded: {error}') from error
        for kind, wanted, present in (
            ('input', {i.name for i in adapter.inputs}, self.session.get_inputs()),
            ('output', {adapter.output.name}, self.session.get_outputs()),
        ):
            names = {node.name for node in present}
            surplus = names - wanted if kind == 'input' else set()
            if wanted - names or surplus:
                raise TeacherError(
                    f'adapter {adapter.name!r} names the {kind}s {sorted(wanted)}, '
                    f'{model} has {sorted(names)}'
                )
        self.adapter = adapter
        self.max_disparity_px = adapter.max_disparity_px
        self.name = adapter.name
        digest = hashlib.sha256(f'onnx {adapter}'.encode())
        digest.update(model.read_bytes())
        self.fingerprint = digest.hexdigest()

    def predict(self, left: np.ndarray, right: np.ndarray, name: str = '') -> Prediction:
        check_pair(left, right)
        height, width = left.shape[:2]
        multiple = self.adapter.pad_multiple
        pad = ((0, -height % multiple), (0, -width % multiple), (0, 0))
        pair = {
            view: np.pad(image, pad, mode='edge') for view, image in zip(_VIEWS, (left, right))
        }
        feed = {entry.name: entry.tensor(pair) for entry in self.adapter.inputs}
        (answer,) = self.session.run([self.adapter.output.name], feed)
        expected = tuple(pair['left'].shape[:2])
        squeezed = np.squeeze(answer)
        if squeezed.shape != expected:
            raise TeacherError(f'{self.name} answered {answer.shape}, expected one {expected} map')
        disparity = squeezed[:height, :width].astype(np.float32) * np.float32(
            self.adapter.output.scale
        )
        known = np.isfinite(disparity) & (disparity >= 0)
        if self.adapter.max_disparity_px is not None:
            known &= disparity <= self.adapter.max_disparity_px
        return Prediction(np.where(known, disparity, np.nan), known.astype(np.float32))


class FolderTeacher(Teacher):
    """Disparities computed elsewhere: FOLDER/NAME.pfm, .png (uint16, px * 256) or .npy (px).

    A confidence may lie beside as FOLDER/NAME.confidence.png (uint8, 255 is certain).
    Values that are not finite or not positive are unknown.
    """

    _readers: Mapping[str, Callable[[Path], np.ndarray]] = {
        '.pfm': read_pfm,
        '.png': read_kitti_png,
        '.npy': lambda path: np.load(path, allow_pickle=False),
    }

    def __init__(self, folder: str | Path, name: str = 'precomputed') -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise TeacherError(f'no folder of disparities at {self.folder}')
        self.name = name
        digest = hashlib.sha256(b'folder')
        for path in sorted(p for p in self.folder.rglob('*') if p.is_file()):
            status = path.stat()
            described = f'{path.relative_to(self.folder)} {status.st_size} {status.st_mtime_ns}'
            digest.update(described.encode())
        self.fingerprint = digest.hexdigest()

    def predict(self, left: np.ndarray, right: np.ndarray, name: str = '') -> Prediction:
        check_pair(left, right)
        candidates = [self.folder / f'{name}{suffix}' for suffix in self._readers]
        for path in candidates:
            if name and path.is_file():
                break
        else:
            raise TeacherError(
                f'no disparity for {name!r}: looked for '
                f'{", ".join(path.name for path in candidates)} in {self.folder}'
            )
        disparity = np.asarray(self._readers[path.suffix](path), np.float32)
        if disparity.shape != left.shape[:2]:
            raise TeacherError(f'{path} is {disparity.shape}, the image is {left.shape[:2]}')
        known = np.isfinite(disparity) & (disparity > 0)
        confidence = known.astype(np.float32)
        beside = self.folder / f'{name}.confidence.png'
        if beside.is_file():
            levels = cv2.imread(str(beside), cv2.IMREAD_GRAYSCALE)
            if levels is None or levels.shape != disparity.shape:
                raise TeacherError(f'{beside} is no uint8 image of {disparity.shape}')
            confidence *= levels.astype(np.float32) / 255.0
        return Prediction(np.where(known, disparity, np.nan), confidence)


class ConsistencyChecked(Teacher):
    """Another teacher, asked twice: its confidence falls where left and right disagree.

    The right view's disparity is the answer to the mirrored pair. Confidence is multiplied
    by exp(-difference / tolerance_px); where the right view has no answer it is 0.

    Args:
        teacher: not one that looks answers up by name.
        tolerance_px: difference at which confidence falls to 1/e.
    """

    def __init__(self, teacher: Teacher, tolerance_px: float = 1.0) -> None:
        if isinstance(teacher, FolderTeacher):
            raise TeacherError('a folder of disparities cannot be asked about mirrored images')
        self.teacher = teacher
        self.tolerance_px = tolerance_px
        self.name = f'{teacher.name}+consistency'
        described = f'consistency {tolerance_px} {teacher.fingerprint}'
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()

    def predict(self, left: np.ndarray, right: np.ndarray, name: str = '') -> Prediction:
        answer, agreement = asked_twice(self.teacher, left, right, self.tolerance_px, name)
        return Prediction(answer.disparity, answer.confidence * agreement, answer.distribution)


def asked_twice(
    teacher: Teacher, left: np.ndarray, right: np.ndarray, tolerance_px: float, name: str = ''
) -> tuple[Prediction, np.ndarray]:
    """A teacher's answer, and how far its answer to the mirrored pair agrees (`consistency`)."""
    answer = teacher.predict(left, right, name)
    mirrored = teacher.predict(
        np.ascontiguousarray(right[:, ::-1]), np.ascontiguousarray(left[:, ::-1]), name
    )
    return answer, consistency(answer.disparity, mirrored.disparity[:, ::-1], tolerance_px)


def consistency(
    disparity_left: np.ndarray, disparity_right: np.ndarray, tolerance_px: float = 1.0
) -> np.ndarray:
    """exp(-|d_left(x) - d_right(x - d_left(x))| / tolerance), (H, W) float32; 0 if unknown."""
    height, width = disparity_left.shape
    x = np.arange(width, dtype=np.float32)[None] - np.nan_to_num(disparity_left)
    rows = np.arange(height)[:, None]
    inside = (x >= 0) & (x <= width - 1)
    position = np.clip(x, 0, width - 1)
    low = np.floor(position).astype(np.int64)
    high = np.minimum(low + 1, width - 1)
    fraction = position - low
    # the nearer of both neighbours: averaging across an edge would invent a third surface
    near = np.where(fraction < 0.5, disparity_right[rows, low], disparity_right[rows, high])
    difference = np.abs(disparity_left - near)
    agreement = np.exp(-np.nan_to_num(difference, nan=np.inf) / tolerance_px)
    return np.where(inside, agreement, 0.0).astype(np.float32)


def build_teacher(description: Mapping[str, Any]) -> Teacher:
    """A teacher from a recipe's `teacher` section.

    One of `network` (with `checkpoint`, optional `options`, `top_k`, `cell`, `device`), `onnx`
    (with `adapter`, optional `providers`, `threads`) or `folder`; and `consistency_px` on top.

    Raises:
        TeacherError: none or several of these, or a key that does not belong.
    """
    settings = dict(description)
    tolerance = settings.pop('consistency_px', None)
    kinds = {
        'network': ('checkpoint', 'options', 'top_k', 'device', 'cell'),
        'onnx': ('adapter', 'providers', 'threads'),
        'folder': ('name',),
    }
    given = [kind for kind in kinds if kind in settings]
    if len(given) != 1:
        raise TeacherError(
            f'a teacher is described by one of {", ".join(kinds)}, got {sorted(settings)}'
        )
    kind = given[0]
    subject = settings.pop(kind)
    for key in settings:
        if key not in kinds[kind]:
            near = difflib.get_close_matches(key, kinds[kind], n=1)
            hint = f'; did you mean {near[0]!r}?' if near else ''
            raise TeacherError(f'{key!r} does not belong to a teacher by {kind}{hint}')
    teacher: Teacher
    try:
        if kind == 'network':
            teacher = TorchTeacher.from_checkpoint(subject, **settings)
        elif kind == 'onnx':
            adapter = OnnxAdapter.from_yaml(settings.pop('adapter'))
            teacher = OnnxTeacher(subject, adapter, **settings)
        else:
            teacher = FolderTeacher(subject, **settings)
    except (TypeError, KeyError) as error:
        raise TeacherError(f'a teacher by {kind} lacks a key: {error}') from error
    return teacher if tolerance is None else ConsistencyChecked(teacher, float(tolerance))


def check_pair(left: np.ndarray, right: np.ndarray) -> None:
    """Refuse what is not two uint8 (H, W, 3) images of one size.

    Raises:
        TeacherError: names the side, its type and its shape.
    """
    for side, image in (('left', left), ('right', right)):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise TeacherError(
                f'the {side} image is {image.dtype} {image.shape}, expected uint8 (H, W, 3)'
            )
    if left.shape != right.shape:
        raise TeacherError(f'left {left.shape} and right {right.shape} differ in size')
