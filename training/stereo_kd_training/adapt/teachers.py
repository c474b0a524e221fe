# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The teacher as a command line names it, with the licence that its labels come under.

NAME=FILE.onnx              a public network with an adapter in training/teachers/NAME.yaml
NAME=FILE.onnx@ADAPTER.yaml the same with an adapter of your own
FILE.onnx, small            a file that keeps this project's contract, or a shipped model
FILE.pt, RUN                a checkpoint or run folder of this package
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

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.fingerprint = hashlib.sha256(f'contract {file_sha256(path)}'.encode()).hexdigest()
        self._engine = StereoEngine(path, provider='cpu')

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
    if separator:
        path, _, adapter_file = file.partition('@')
        adapter = OnnxAdapter.from_yaml(adapter_file or known_adapter(name))
        teacher: Teacher = OnnxTeacher(path, adapter, threads=threads)
        return NamedTeacher(teacher, licence or adapter.licence or UNKNOWN_LICENCE)
    path = Path(text).expanduser()
    if path.suffix == '.pt' or (path / 'checkpoint.pt').is_file():
        return NamedTeacher(TorchTeacher(load_network(path)), licence or UNKNOWN_LICENCE)
    try:
        path = resolve_model(text)
        manifest = read_manifest(path)
        teacher = ContractTeacher(path)
    except ModelError as error:
        raise TeacherError(
            f'the teacher {text!r} cannot be used: {error}. A network of others is given as '
            'NAME=FILE.onnx or NAME=FILE.onnx@ADAPTER.yaml'
        ) from error
    known = manifest.licence if manifest else ''
    return NamedTeacher(teacher, licence or known or UNKNOWN_LICENCE)


def known_adapter(name: str) -> Path:
    """The adapter that comes with this package for a public network.

    Raises:
        TeacherError: there is none of that name; it lists those that are.
    """
    folders = [
        Path(stereo_kd_training.__file__).resolve().parents[1] / 'teachers',
        Path(sys.prefix) / 'share' / 'stereo_kd_ros' / 'teachers',
    ]
    known = {path.stem: path for folder in reversed(folders) for path in folder.glob('*.yaml')}
    if name not in known:
        raise TeacherError(
            f'the teacher {name!r} has no adapter (known: {", ".join(sorted(known)) or "none"}); '
            f'give one: {name}=FILE.onnx@ADAPTER.yaml'
        )
    return known[name]
