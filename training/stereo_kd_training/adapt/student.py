# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The student that an adaptation starts from, as a network and as the file it is measured by."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stereo_kd_ros.model import Manifest, file_sha256, read_manifest, resolve_model
from stereo_kd_training.export import export_network
from stereo_kd_training.joined import (
    is_joined,
    join_again,
    joined_again,
    second_alone,
    write_first,
)
from stereo_kd_training.networks import StereoNetwork
from stereo_kd_training.networks.shipped import load_shipped
from stereo_kd_training.prune import measure_file_ms
from stereo_kd_training.train import load_network


@dataclass(frozen=True)
class Student:
    """Where the student comes from.

    Attributes:
        source: file it was read from.
        name: for tables.
        sha256: of that file.
        training_data: what it was trained on, from its manifest.
        licence: of its weights.
    """

    source: Path
    name: str
    sha256: str
    training_data: list[dict[str, Any]]
    licence: str

    @property
    def is_checkpoint(self) -> bool:
        """Whether it is a checkpoint of this package and no ONNX file."""
        return self.source.suffix != '.onnx'

    @property
    def is_joined(self) -> bool:
        """Whether its file holds a second model, which stays as it is."""
        return not self.is_checkpoint and is_joined(read_manifest(self.source))

    def network(self) -> StereoNetwork:
        """The trainable network, in eval mode."""
        return load_network(self.source) if self.is_checkpoint else load_shipped(self.source)

    def onnx(self, folder: Path) -> Path:
        """What is adapted, as a file; a checkpoint is exported into `folder` once.

        Of a joined one that is the first.
        """
        joined = self.is_joined
        if not self.is_checkpoint and not joined:
            return self.source
        path = folder / f'{self.name}.onnx'
        if path.is_file():
            return path
        if joined:
            folder.mkdir(parents=True, exist_ok=True)
            write_first(self.source, path)
        else:
            export_network(self.network(), path)
        return path

    def whole(self, folder: Path) -> Path:
        """The file to measure it by: `onnx`, or all of a joined one."""
        return self.source if self.is_joined else self.onnx(folder)

    def second_ms(self, height: int, width: int, threads: int) -> float:
        """Milliseconds of the second model, which no adaptation changes; 0 without one."""
        if not self.is_joined:
            return 0.0
        with second_alone(self.source) as path:
            return measure_file_ms(path, height, width, threads)

    def completed(self, adapted: Path) -> Path:
        """The file `adapted`, or what it is joined to with the second model of the student's."""
        if not self.is_joined:
            return adapted
        path = adapted.with_name(f'{adapted.stem}-joined.onnx')
        join_again(adapted, self.source, path)
        return path

    def described(self, adapted: Manifest) -> Manifest:
        """What a `completed` file says of itself, where the adapted one says `adapted`."""
        return joined_again(adapted, read_manifest(self.source)) if self.is_joined else adapted


def find_student(text: str) -> Student:
    """The student by name, file, checkpoint or run folder.

    Raises:
        ModelError: there is none.
    """
    path = Path(text).expanduser()
    if (path / 'checkpoint.pt').is_file():
        path = path / 'checkpoint.pt'
    if path.suffix == '.pt' and path.is_file():
        return Student(path, path.stem, file_sha256(path), [], '')
    path = resolve_model(text)
    manifest = read_manifest(path)
    return Student(
        path,
        path.stem,
        file_sha256(path),
        manifest.training_data if manifest else [],
        manifest.licence if manifest else '',
    )
