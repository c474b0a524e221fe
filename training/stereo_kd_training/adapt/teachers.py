# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The teacher as a command line names it, with the licence that its labels come under.

NAME=FILE.onnx              a public network with an adapter in training/teachers/NAME.yaml
NAME=FILE.onnx@ADAPTER.yaml the same with an adapter of your own
FILE.onnx, small            a file that keeps this project's contract, or a shipped model
NAME=FILE.onnx              the same under another name, where NAME has no adapter
FILE.pt, RUN                a checkpoint or run folder of this package
ensemble=ANY OF THESE       the same in several sizes, upright and upside down, see `ensemble`
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import stereo_kd_training
from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.model import ModelError, file_sha256, read_manifest, resolve_model
from stereo_kd_training.ensemble import Ensemble
from stereo_kd_training.teachers import (
    OnnxAdapter,
    OnnxTeacher,
    Prediction,
    Teacher,
    TeacherError,
    TorchTeacher,
    check_pair,
)
from stereo_kd_training.train import load_network

ENSEMBLE = 'ensemble'
UNKNOWN_LICENCE = 'unknown: ask the authors of the teacher'


@dataclass(frozen=True)
class NamedTeacher:
    """A teacher, and under which licence its labels come."""

    teacher: Teacher
    licence: str

    @property
    def name(self) -> str:
        """For tables and manifests."""
        return self.teacher.name


class ContractTeacher(Teacher):
    """A model that keeps this project's contract, through the node's own engine."""

    def __init__(self, path: Path, name: str | None = None, threads: int | None = None) -> None:
        self.path = path
        self.name = name or path.stem
        self.fingerprint = hashlib.sha256(f'contract {file_sha256(path)}'.encode()).hexdigest()
        self._engine = StereoEngine(path, provider='cpu', threads=threads)
        manifest = self._engine.manifest
        self.max_disparity_px = manifest.max_disparity_px if manifest else None

    def predict(self, left: np.ndarray, right: np.ndarray, name: str = '') -> Prediction:
        check_pair(left, right)
        answer = self._engine.infer(left, right)
        return Prediction(np.array(answer.disparity), np.array(answer.confidence))


def open_teacher(
    text: str, licence: str | None = None, threads: int | None = None
) -> NamedTeacher:
    """Open a teacher by the words of a command line.

    Args:
        text: see the module.
        licence: of its labels; that of its adapter or manifest without.
        threads: of ONNX Runtime; its own choice without.

    Raises:
        TeacherError: it is not there, or cannot be used.
    """
    name, separator, file = text.partition('=')
    if separator and name == ENSEMBLE:
        member = open_teacher(file, licence, threads)
        return NamedTeacher(Ensemble(member.teacher), member.licence)
    adapters = known_adapters()
    if separator and ('@' in file or name in adapters):
        path, _, adapter_file = file.partition('@')
        adapter = OnnxAdapter.from_yaml(adapter_file or adapters[name])
        teacher: Teacher = OnnxTeacher(path, adapter, threads=threads)
        return NamedTeacher(teacher, licence or adapter.licence or UNKNOWN_LICENCE)
    path = Path(text).expanduser()
    if not separator and (path.suffix == '.pt' or (path / 'checkpoint.pt').is_file()):
        return NamedTeacher(TorchTeacher(load_network(path)), licence or UNKNOWN_LICENCE)
    try:
        path = resolve_model(file if separator else text)
        manifest = read_manifest(path)
        teacher = ContractTeacher(path, name if separator else None, threads)
    except ModelError as error:
        raise TeacherError(
            f'the teacher {text!r} cannot be used: {str(error).rstrip(".")}. A network of others '
            f'is given as NAME=FILE.onnx@ADAPTER.yaml; NAME=FILE.onnx will do where NAME has an '
            f'adapter here ({", ".join(sorted(adapters)) or "none has"})'
        ) from error
    known = manifest.licence if manifest else ''
    return NamedTeacher(teacher, licence or known or UNKNOWN_LICENCE)


def known_adapters() -> dict[str, Path]:
    """The adapters that come with this package for public networks, by name."""
    folders = [
        Path(stereo_kd_training.__file__).resolve().parents[1] / 'teachers',
        Path(sys.prefix) / 'share' / 'stereo_kd_ros' / 'teachers',
    ]
    return {path.stem: path for folder in reversed(folders) for path in folder.glob('*.yaml')}
