# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an adaptation is asked for, and the folder it lives in."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from stereo_kd_ros.bag import StereoBag
from stereo_kd_training.precision import PATTERN

STAGES = ('look', 'select', 'label', 'render', 'distil', 'prune', 'gate', 'deliver')
# progress(stage, step, steps, text)
Progress = Callable[[str, int, int, str], None]


class AdaptError(RuntimeError):
    """An adaptation that cannot work, and what to do about it."""


class AdaptSettings(BaseModel):
    """What is asked for; a run that is resumed must ask for the same.

    Attributes:
        bags: of one camera.
        teachers: as `adapt.teachers.open_teacher` takes them; the first one teaches, the others
            are asked for a second opinion.
        out: model folder to be made.
        name: of the model; that of the folder without.
        student: shipped model, its file, or a checkpoint of this package.
        latency_ms: of one pair of the bag's size; the student's own without.
        student_ms: what the student takes on the robot, where that is another machine than
            this one; times measured here are scaled by the ratio.
        latency_threads: of ONNX Runtime, when time is measured and for the teacher; 0 is its
            own choice, as the node's.
        truth: folder or topic with ground truth, used where it is known.
        extrinsics: file that says where the LiDAR of the truth is, see `truth.read_extrinsics`.
        namespace, tolerance_s: which camera of the bags, and how far apart stamps may lie.
        accept: checks of `stereo-kd doctor` whose errors are known and lived with.
        max_pairs: to train on; twice as many are looked at.
        validation, held_out: shares of each bag, taken from its end.
        steps: of the distillation; a pruning adds a half of them. None takes as many as show
            every pair of the bags `distil.CROPS_PER_PAIR` times, and `distil.MOST_STEPS` at most.
        minutes: instead of steps, as many as fit into this time.
        bag_share: of the crops that come from the bags, the others are procedural.
        reminders: share of those that hold the student's own sure answers where there is no
            label; the others say nothing there.
        prune_steps: prunings, each followed by training.
        prune_crops: to judge by which channels are missed least.
        round_to: channels that go at once; what is left is a multiple of it.
        margin: by which the error against the teacher must fall, as a share; a negative one lets
            it grow, for a student that is pruned to be faster.
        tolerance: by which the error on procedural scenes may grow, as a share.
        bag_licence, teacher_licence: written into the manifest.
    """

    model_config = ConfigDict(extra='forbid')

    bags: list[str] = Field(min_length=1)
    teachers: list[str] = Field(min_length=1)
    out: str
    name: str = Field(pattern=r'^[A-Za-z0-9][A-Za-z0-9_.-]*$')
    student: str = 'small'
    latency_ms: float | None = Field(None, gt=0)
    student_ms: float | None = Field(None, gt=0)
    latency_threads: int = Field(0, ge=0)
    truth: str | None = None
    extrinsics: str | None = None
    namespace: str | None = None
    tolerance_s: float = Field(0.0, ge=0)
    accept: list[str] = Field(default_factory=list)
    max_pairs: int = Field(400, ge=4)
    validation: float = Field(0.1, gt=0, lt=0.5)
    held_out: float = Field(0.25, gt=0, lt=0.8)
    steps: int | None = Field(None, ge=1)
    minutes: float | None = Field(None, gt=0)
    batch_size: int = Field(4, ge=1)
    crop_height: int = Field(192, ge=32)
    crop_width: int = Field(384, ge=32)
    learning_rate: float = Field(1.5e-4, gt=0)
    bag_share: float = Field(0.5, gt=0, le=1)
    reminders: float = Field(0.15, ge=0, le=1)
    procedural_pairs: int = Field(600, ge=4)
    procedural_validation: int = Field(96, ge=1)
    procedural_watched: int = Field(48, ge=1)
    procedural_height: int = Field(256, ge=64)
    procedural_width: int = Field(512, ge=64)
    prune_steps: int = Field(2, ge=1)
    prune_crops: int = Field(32, ge=2)
    round_to: int = Field(8, ge=1)
    margin: float = Field(0.1, gt=-1, lt=1)
    tolerance: float = Field(0.05, ge=0)
    precision: str = Field('auto', pattern=PATTERN)
    seed: int = 0
    bag_licence: str = "the bag owner's own"
    teacher_licence: str | None = None

    def open_bag(self, path: Path) -> StereoBag:
        """A bag, to be opened as one of the camera that is meant."""
        return StereoBag(
            path, namespace=self.namespace, tolerance_ns=round(self.tolerance_s * 1e9)
        )

    def sha256(self) -> str:
        """Of all that is asked for; names a run without its paths."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


class RunFolder:
    """Everything an adaptation leaves on disk before it delivers.

        settings.json       what was asked for
        log.txt             what happened, line by line
        STAGE/done.json     what a finished stage says of itself; written last, and whole
        report.html, report.json

    Args:
        settings: checked.
        folder: of the run; what lies there of the same settings is continued.
        progress: a bar lives outside.
        on_line: told every line of the log.

    Raises:
        AdaptError: the folder belongs to another adaptation, or one is at work in it.
    """

    def __init__(
        self,
        settings: AdaptSettings,
        folder: Path | str,
        progress: Progress | None = None,
        on_line: Callable[[str], None] | None = None,
        is_main: bool = True,
    ) -> None:
        self.settings = settings
        self.folder = Path(folder)
        self.progress = progress or (lambda stage, step, steps, text: None)
        self.is_main = is_main
        self._on_line = on_line or (lambda line: None)
        self._lock: Any = None

    def open(self) -> None:
        """Take the folder, or go on in it."""
        if not self.is_main:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        # The lock goes with its process, however that ends.
        self._lock = open(self.folder / 'lock', 'w')  # noqa: SIM115
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise AdaptError(
                f'another adaptation is at work in {self.folder}; wait for it, or give another '
                '--work folder'
            ) from error
        asked = self.settings.model_dump(mode='json')
        path = self.folder / 'settings.json'
        if path.is_file():
            before = json.loads(path.read_text())
            differing = [key for key in asked if before.get(key) != asked[key]]
            if differing and not self.is_done('look'):
                # Nothing was learnt yet: a teacher was misspelt, say. What was begun is another's.
                shutil.rmtree(self.stage('look'), ignore_errors=True)
            elif differing:
                changed = ', '.join(
                    f'{key} {before.get(key)!r}, now {asked[key]!r}' for key in differing
                )
                self.close()
                raise AdaptError(
                    f'{self.folder} holds an adaptation with another {changed}; ask for the same '
                    'to go on, or give another --work folder'
                )
        write_json(path, asked)

    def close(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def say(self, stage: str, text: str) -> None:
        """A line of the log."""
        if not self.is_main:
            return
        line = f'{time.strftime("%Y-%m-%d %H:%M:%S")} {stage:8} {text}'
        if self.folder.is_dir():
            with (self.folder / 'log.txt').open('a', encoding='utf-8') as log:
                log.write(line + '\n')
        self._on_line(line)

    def stage(self, name: str) -> Path:
        """A stage's own folder."""
        return self.folder / name

    def is_done(self, stage: str) -> bool:
        """Whether a stage has finished."""
        return (self.stage(stage) / 'done.json').is_file()

    def facts(self, stage: str) -> dict[str, Any]:
        """What a finished stage says of itself."""
        return json.loads((self.stage(stage) / 'done.json').read_text())

    def finish(self, stage: str, facts: dict[str, Any]) -> None:
        """Mark a stage as finished."""
        self.stage(stage).mkdir(parents=True, exist_ok=True)
        write_json(self.stage(stage) / 'done.json', facts)

    def wait_for(self, path: Path) -> None:
        """Wait for a file that the main process writes; it may take hours, so no barrier."""
        while not path.is_file():
            time.sleep(0.2)


def write_json(path: Path, content: Any) -> None:
    """Write a file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.{os.getpid()}')
    partial.write_text(json.dumps(content, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    os.replace(partial, path)
