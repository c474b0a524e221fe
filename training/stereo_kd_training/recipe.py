# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One YAML is one experiment: what a recipe may say, checked before anything runs.

    name: dtpnet-kitti                     folder and model name
    seed: 0
    data: {train: [...], validation: [...]}
    teach: {...}                           train the teacher first
    teacher: {network: psmnet, checkpoint: ..., cache: false}
    distill: {training: {...}, loss: {...}}
    prune: {ratio: 0.37, steps: 5, tune_steps: 2000}
    tune: {training: {...}, loss: {...}}
    export: {tolerance_px: 0.05}
    evaluate: {root: $STEREO_BENCHMARKS}

Stages that a recipe leaves out do not run. Paths may hold $VARIABLES. An unknown key is an
error that names the nearest known one.
"""

from __future__ import annotations

import difflib
import os
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from stereo_kd_training.distill import Distillation
from stereo_kd_training.prune import TARGETS
from stereo_kd_training.train import TrainingConfig

Settings = TypeVar('Settings', bound=BaseModel)


class RecipeError(ValueError):
    """A recipe that cannot be read, or that asks for what does not exist."""


class _Section(BaseModel):
    model_config = ConfigDict(extra='forbid')


class Source(_Section):
    """Where pairs come from: a `pool` made by generate, or a public set by `name` and `root`.

    Attributes:
        pool: folder of procedural pairs.
        name, root, options: as `datasets.named.open_dataset` takes them.
        first, last: only these pairs, counted from 0, `last` excluded; negative from the end.
        fold, folds: only one part of a cross-validation; `part` says which.
        repeat: times that the source counts, so that a small set weighs more.
    """

    pool: str | None = None
    name: str | None = None
    root: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    first: int | None = None
    last: int | None = None
    fold: int | None = None
    folds: int = Field(5, ge=2)
    part: Literal['train', 'validation'] = 'train'
    repeat: int = Field(1, ge=1)

    @model_validator(mode='after')
    def _one_kind(self) -> Source:
        if (self.pool is None) == (self.name is None):
            raise ValueError('give either pool, or name and root')
        if self.name is not None and self.root is None:
            raise ValueError(f'data set {self.name!r} needs its root folder')
        if self.pool is not None and self.fold is not None:
            raise ValueError('folds are for public sets; use first and last with a pool')
        return self


class Data(_Section):
    """Pairs to learn from and pairs to measure on."""

    train: list[Source] = Field(min_length=1)
    validation: list[Source] = Field(default_factory=list)


class TeacherSection(_Section):
    """The teacher; see `teachers.build_teacher` for the keys that are not here.

    Attributes:
        network, checkpoint, options: a network of this package, from a checkpoint or a model file
            that it was exported to. Without, it is the one that the teach stage trained.
        model: what `stereo-kd-train adapt --teacher` takes, such as `medium` or
            `ensemble=medium`.
        onnx, adapter: any ONNX file.
        folder: disparities computed elsewhere.
        consistency_px: lower the confidence where left and right disagree.
        cache: keep answers on disk before the student starts. Needed for all but a network; a
            network without it answers every crop, colours and all, which features need.
        top_k: with the cache of a network, also keep each pixel's most probable hypotheses
            (float16), from which losses on distributions learn. Without, they learn from a
            Laplace distribution round the disparity.
        top_k_cell: pixels of a cell of these distributions.
        cache_folder: share the answers between runs; in the run folder otherwise.
    """

    network: str | None = None
    checkpoint: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    model: str | None = None
    onnx: str | None = None
    adapter: str | None = None
    folder: str | None = None
    consistency_px: float | None = None
    cache: bool = False
    top_k: int = Field(0, ge=0)
    top_k_cell: int = Field(4, ge=1)
    cache_folder: str | None = None

    @model_validator(mode='after')
    def _one_kind(self) -> TeacherSection:
        known = ('network', 'model', 'onnx', 'folder')
        kinds = [kind for kind in known if getattr(self, kind) is not None]
        if len(kinds) != 1:
            raise ValueError(f'a teacher is one of {", ".join(known)}')
        if kinds[0] != 'network' and not self.cache:
            raise ValueError(f'a teacher by {kinds[0]} needs cache: true')
        if self.top_k and (kinds[0] != 'network' or not self.cache):
            raise ValueError('top_k is for the cache of a teacher by network')
        if self.cache_folder is not None and not self.cache:
            raise ValueError('cache_folder needs cache: true')
        return self

    def description(self) -> dict[str, Any]:
        """For `teachers.build_teacher`."""
        ours = {'cache', 'cache_folder', 'top_k', 'top_k_cell'}
        given = self.model_dump(exclude=ours, exclude_none=True)
        return {key: value for key, value in given.items() if value != {}}


class Training(_Section):
    """One stage of training: how, and with which loss (supervised when there is none)."""

    training: TrainingConfig
    loss: Distillation | None = None


class Pruning(_Section):
    """DTP's loop: prune a share, train, repeat.

    Attributes:
        ratio: share of channels removed in the end; or a `target` and its `value` instead.
        by: `weights`, the smallest ones of every group alike, or `measured`: the blocks that are
            missed least (`measured_pruning`); `ratio` is then the share of operations removed, and
            `target` can only be macs.
        crops: to judge by when measured.
        steps: prunings.
        tune_steps: optimiser steps after each.
        round_to: widths become multiples of it.
        keep: features whose channels stay.
        size: [height, width] at which operations or milliseconds are counted.
        learning_rate: peak of each tuning; a third of the distillation's otherwise.
    """

    ratio: float | None = Field(None, ge=0, lt=1)
    target: str | None = None
    value: float | None = Field(None, gt=0)
    by: Literal['weights', 'measured'] = 'weights'
    crops: int = Field(24, ge=2)
    steps: int = Field(5, ge=1)
    tune_steps: int = Field(1000, ge=1)
    round_to: int = Field(8, ge=1)
    keep: list[str] = Field(default_factory=list)
    size: tuple[int, int] = (480, 640)
    learning_rate: float | None = Field(None, gt=0)

    @model_validator(mode='after')
    def _one_goal(self) -> Pruning:
        if (self.ratio is None) == (self.target is None):
            raise ValueError('give either ratio, or target and value')
        if self.target is not None:
            if self.target not in TARGETS:
                raise ValueError(f'target is one of {", ".join(TARGETS)}, got {self.target!r}')
            if self.value is None:
                raise ValueError(f'target {self.target!r} needs a value')
            if self.by == 'measured' and self.target != 'macs':
                raise ValueError(f'what is measured counts macs, not {self.target}')
        return self


class Export(_Section):
    """The ONNX file of the run."""

    tolerance_px: float = Field(0.05, gt=0)
    licence: str = 'Apache-2.0'
    version: str = '0.1.0'
    options: dict[str, Any] = Field(default_factory=dict)


class Evaluation(_Section):
    """Beside the validation pairs: a benchmark folder and its sets, for the last network."""

    root: str | None = None
    sets: list[str] | None = None
    limit: int | None = Field(None, ge=1)


class Recipe(_Section):
    """See the module."""

    name: str = Field(pattern=r'^[A-Za-z0-9][A-Za-z0-9_.-]*$')
    about: str = ''
    seed: int = 0
    data: Data
    teach: Training | None = None
    teacher: TeacherSection | None = None
    distill: Training
    prune: Pruning | None = None
    tune: Training | None = None
    export: Export | None = None
    evaluate: Evaluation | None = None

    @model_validator(mode='after')
    def _teacher_is_there(self) -> Recipe:
        losses = [s.loss for s in (self.distill, self.tune) if s and s.loss]
        needs = any(loss.signal != 'ground_truth' for loss in losses)
        if needs and self.teacher is None:
            raise ValueError('the loss follows a teacher but the recipe has no teacher section')
        teacher = self.teacher
        if teacher and teacher.network and not teacher.checkpoint and not self.teach:
            raise ValueError('the teacher network has no checkpoint and no teach stage trains it')
        if self.teach and teacher and teacher.network != self.teach.training.network:
            raise ValueError(
                f'teach trains {self.teach.training.network!r} but the teacher is '
                f'{teacher.network!r}'
            )
        return self

    def stages(self) -> list[str]:
        """Names of the stages that will run, in order."""
        present = {
            'teach': self.teach,
            'cache': self.teacher and self.teacher.cache,
            'distill': self.distill,
            'prune': self.prune,
            'tune': self.tune,
            'export': self.export,
            'evaluate': True,
        }
        return [name for name, section in present.items() if section]

    def steps(self) -> dict[str, int]:
        """Optimiser steps of each stage that trains."""
        counted = {}
        if self.teach:
            counted['teach'] = self.teach.training.steps
        counted['distill'] = self.distill.training.steps
        if self.prune:
            counted['prune'] = self.prune.steps * self.prune.tune_steps
        if self.tune:
            counted['tune'] = self.tune.training.steps
        return counted

    def with_budget(self, budget: float) -> Recipe:
        """The same experiment, shortened: a share below 1, or a total number of steps.

        Schedules are shares of a run, so they keep their shape. Validation and checkpoints
        come at least ten times in each run.

        Raises:
            RecipeError: a budget of nothing.
        """
        if budget <= 0:
            raise RecipeError(f'a budget is a share below 1 or a number of steps, got {budget}')
        share = budget if budget < 1 else min(1.0, budget / sum(self.steps().values()))
        shorter = self.model_copy(deep=True)
        for stage in (shorter.teach, shorter.distill, shorter.tune):
            if stage:
                _shorten(stage.training, share)
                if stage.loss:
                    stage.loss.steps_per_epoch = _scaled(stage.loss.steps_per_epoch, share)
        if shorter.prune:
            shorter.prune.tune_steps = _scaled(shorter.prune.tune_steps, share)
        return shorter


def _scaled(count: int, share: float) -> int:
    return max(1, round(count * share))


def _shorten(training: TrainingConfig, share: float) -> None:
    training.steps = _scaled(training.steps, share)
    tenth = max(1, training.steps // 10)
    training.validate_every = min(training.validate_every, tenth)
    training.checkpoint_every = min(training.checkpoint_every, tenth)
    training.log_every = min(training.log_every, tenth)


def read_recipe(path: Path | str, changes: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe.

    Args:
        path: of the YAML file.
        changes: `KEY=VALUE` each, where KEY is a path such as `distill.training.batch_size`,
            or `data.train.0.last` in a list, and VALUE is YAML.

    Raises:
        RecipeError: no such file, no YAML, an unset variable, or a key or value that is wrong;
            every mistake is listed with where it is.
    """
    content = _unshared(read_settings(path))
    for change in changes:
        _change(content, change)
    return check_recipe(_expanded(content, str(path)), str(path))


def read_settings(path: Path | str) -> dict[str, Any]:
    """Keys and values of a YAML file; none of an empty one.

    Raises:
        RecipeError: no such file, no YAML, or something else than keys with values.
    """
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8'))
    except OSError as error:
        raise RecipeError(f'{path} cannot be read: {error.strerror}; check the path') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f'{path} is not YAML: {error}') from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise RecipeError(
            f'{path} holds {type(content).__name__}, expected keys with values, as in `steps: 400`'
        )
    return content


def _unshared(value: Any) -> Any:
    """A copy in which what YAML repeats by an alias is there several times, to be changed singly.

    `copy.deepcopy` would keep such values one and the same.
    """
    if isinstance(value, dict):
        return {key: _unshared(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_unshared(inner) for inner in value]
    return value


def _change(content: dict[str, Any], change: str) -> None:
    """Apply `KEY=VALUE` to plain values; whether KEY exists is for the check of the recipe."""
    key, sign, text = change.partition('=')
    if not sign or not key:
        raise RecipeError(f'{change!r} is no change; expected KEY=VALUE, as in prune.ratio=0.5')
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise RecipeError(f'{key}: {text!r} is not YAML: {error}') from error
    *parents, last = key.split('.')
    here: Any = content
    for part in parents:
        if isinstance(here, list):
            here = here[_place(here, part, key)]
        elif isinstance(here, dict):
            if here.get(part) is None:
                here[part] = {}
            here = here[part]
    if isinstance(here, list):
        here[_place(here, last, key)] = value
    elif isinstance(here, dict):
        here[last] = value
    else:
        raise RecipeError(f'{key}: {parents[-1]!r} is a value, not a section')


def _place(items: list[Any], part: str, key: str) -> int:
    if not part.isdigit() or int(part) >= len(items):
        raise RecipeError(f'{key}: {part!r} is no place in a list of {len(items)}, from 0')
    return int(part)


def check_recipe(content: dict[str, Any], where: str = 'recipe') -> Recipe:
    """Build a Recipe out of plain values.

    Raises:
        RecipeError: see `read_recipe`.
    """
    return check_settings(Recipe, content, where)


def check_settings(model: type[Settings], content: Any, where: str) -> Settings:
    """Build `model` out of plain values, as read from a YAML file.

    Raises:
        RecipeError: names each key at fault in `where`, and for an unknown one the nearest known.
    """
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = [_explained(model, problem) for problem in error.errors()]
        raise RecipeError(f'{where}: ' + '; '.join(problems)) from error


def _explained(model: type[BaseModel], problem: Any) -> str:
    location = [part for part in problem['loc'] if part not in ('__root__',)]
    place = '.'.join(str(part) for part in location) or 'recipe'
    if problem['type'] != 'extra_forbidden':
        message = problem['msg'].removeprefix('Value error, ')
        return f'{place}: {message}'
    known = sorted(_fields_at(model, location[:-1]))
    near = difflib.get_close_matches(str(location[-1]), known, n=1)
    hint = f'did you mean {near[0]!r}?' if near else f'known: {", ".join(known)}'
    return f'{place}: unknown key; {hint}'


def _fields_at(model: type[BaseModel], location: Sequence[str | int]) -> set[str]:
    """Keys that may stand where `location` points in `model`."""
    current: type[BaseModel] = model
    for part in location:
        if isinstance(part, int):
            continue
        inner = _models_in(current.model_fields[part].annotation)
        if not inner:
            return set()
        current = inner[0]
    return set(current.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if typing.get_origin(annotation) in (list, typing.Union, types.UnionType):
        return [m for inner in typing.get_args(annotation) for m in _models_in(inner)]
    return []


_VARIABLE = re.compile(r'\$(\w+|\{\w+\})')


def _expanded(value: Any, where: str) -> Any:
    """`value` with $NAME and ${NAME} in its strings replaced."""
    if isinstance(value, dict):
        return {key: _expanded(inner, where) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expanded(inner, where) for inner in value]
    if not isinstance(value, str):
        return value
    unset = [
        name
        for name in (match.strip('{}') for match in _VARIABLE.findall(value))
        if name not in os.environ
    ]
    if unset:
        raise RecipeError(
            f'{where}: {value!r} needs the environment variable {unset[0]}; '
            f'set it, as in `export {unset[0]}=/path`'
        )
    return os.path.expandvars(value)
