# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run a recipe: teach -> cache -> distill -> prune -> tune -> export -> evaluate.

A run is a folder that says all that happened:

    recipe.json      what was asked for; a resumed run must ask for the same
    versions.json    of every package, and the git revision
    teach/ distill/ tune/       a training run each, see `train`
    cache/                      the teacher's answers, see `teacher_cache`
    prune/ratio.json            the ratio that meets the target
    prune/step_0/start.pt       the pruned network before it is trained, and its training run
    export/NAME.onnx            the model of the robot
    evaluate/metrics.json       of every stage's network on the validation pairs
    STAGE/done.json             what the finished stage says of itself

Killed at any point, the same command goes on: a finished stage is not repeated, a stage in
training resumes from its checkpoint, pruning from its last step, the cache from its last pair.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from stereo_kd_ros.metrics import DisparityMetrics, disparity_metrics
from stereo_kd_training import losses, prune
from stereo_kd_training.adapt.teachers import open_teacher
from stereo_kd_training.complexity import complexity
from stereo_kd_training.datasets.base import DatasetError
from stereo_kd_training.datasets.kitti import fold
from stereo_kd_training.datasets.named import open_dataset
from stereo_kd_training.datasets.procedural import PairPool, PoolError
from stereo_kd_training.distill import (
    BatchTeacher,
    Distillation,
    NetworkTeacher,
    Objective,
    StoredTeacher,
)
from stereo_kd_training.measured_pruning import prune_on_pairs, prune_until
from stereo_kd_training.networks import StereoNetwork, create
from stereo_kd_training.networks.checkpoint import load_checkpoint
from stereo_kd_training.networks.shipped import load_shipped
from stereo_kd_training.precision import resolved
from stereo_kd_training.recipe import Recipe, RecipeError, Source, Training
from stereo_kd_training.teacher_cache import TeacherCache
from stereo_kd_training.teachers import (
    ConsistencyChecked,
    Teacher,
    TopK,
    TorchTeacher,
    build_teacher,
)
from stereo_kd_training.train import (
    Trainer,
    TrainingConfig,
    TrainingError,
    load_network,
    predict,
    read_checkpoint,
)

PACKAGES = ('torch', 'torch_pruning', 'accelerate', 'numpy', 'opencv-python-headless', 'onnx')
# progress(stage, step, steps, text)
Progress = Callable[[str, int, int, str], None]


class Interrupted(RuntimeError):
    """The run was asked to stop; started again, it goes on where it was."""


@dataclass(frozen=True)
class NamedPair:
    """One pair as the trainer and the teachers take it.

    Attributes:
        name: unique within the run's pairs.
        left, right: (H, W, 3) uint8 RGB.
        disparity: (H, W) float32 px, NaN unknown.
        teacher_disparity, teacher_confidence: (H, W), where a cache was read along.
        teacher_distribution: where the cache keeps one.
    """

    name: str
    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray
    teacher_disparity: np.ndarray | None = None
    teacher_confidence: np.ndarray | None = None
    teacher_distribution: TopK | None = None


class Pairs(Sequence[NamedPair]):
    """The pairs of several sources, one after the other.

    A pair keeps its name in its set, by which a folder of disparities answers it; where there
    are several sources, the set's name stands before it.

    Args:
        sources: of a recipe.

    Raises:
        RecipeError: a source that holds no pairs, or a range beyond its pairs.
        DatasetError: a source that is not there.
    """

    def __init__(self, sources: Sequence[Source]) -> None:
        self._items: list[tuple[Any, int, str]] = []
        self.training_data: list[dict[str, Any]] = []
        for position, source in enumerate(sources):
            label, pairs = _label(source), _open_source(source)
            chosen = range(len(pairs))[source.first : source.last]
            if not chosen:
                raise RecipeError(
                    f'{label} gives no pairs (it has {len(pairs)}, asked for '
                    f'{source.first} to {source.last})'
                )
            prefix = ''
            if len(sources) > 1:
                same = sum(_label(other) == label for other in sources) > 1
                prefix = f'{label}-{position}/' if same else f'{label}/'
            files = getattr(pairs, 'pairs', None)
            self._items += [
                (pairs, index, prefix + (files[index].name if files else f'{index:06d}'))
                for index in chosen
            ] * source.repeat
            known = [entry for entry in _stated(pairs, label) if entry not in self.training_data]
            self.training_data += known

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> NamedPair:  # type: ignore[override]
        pairs, inner, name = self._items[index]
        pair = pairs[inner]
        return NamedPair(name, pair.left, pair.right, pair.disparity)


class TaughtPairs(Sequence[NamedPair]):
    """Pairs with the answers that a cache holds for them."""

    def __init__(self, pairs: Pairs, cache: TeacherCache) -> None:
        self._pairs, self._cache = pairs, cache

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, index: int) -> NamedPair:  # type: ignore[override]
        pair = self._pairs[index]
        answer = self._cache.predict(pair.left, pair.right, pair.name)
        return NamedPair(
            pair.name,
            pair.left,
            pair.right,
            pair.disparity,
            answer.disparity,
            answer.confidence,
            answer.distribution,
        )


def _label(source: Source) -> str:
    return str(source.name) if source.pool is None else Path(source.pool).name


def _stated(pairs: Any, label: str) -> list[dict[str, Any]]:
    """What a source says of itself and its licences, for the manifest of what learns from it."""
    if isinstance(pairs, PairPool):
        from stereo_kd_training.export import training_sources

        return training_sources([pairs.manifest])
    known = pairs.training_data() if hasattr(pairs, 'training_data') else []
    return known or [{'name': label, 'licence': 'see the data set'}]


def _open_source(source: Source) -> Any:
    if source.pool is not None:
        return PairPool(source.pool)
    pairs = open_dataset(source.name, source.root, **source.options)
    if source.fold is None:
        return pairs
    train, validation = fold(pairs, source.fold, source.folds)
    return train if source.part == 'train' else validation


class RecipeRun:
    """A recipe in its folder.

    Args:
        recipe: checked.
        folder: of the run; what lies there of the same recipe is continued.
        progress: called with (stage, step, steps, text); a bar lives outside.

    Raises:
        RecipeError: the folder holds another recipe's run.
    """

    def __init__(
        self, recipe: Recipe, folder: Path | str, progress: Progress | None = None
    ) -> None:
        self.recipe = recipe
        self.folder = Path(folder)
        self.progress = progress or (lambda stage, step, steps, text: None)
        self.state = PartialState(cpu=not torch.cuda.is_available())
        self.train_pairs = Pairs(recipe.data.train)
        self.validation_pairs = Pairs(recipe.data.validation) if recipe.data.validation else None
        # After the data is there: a wrong root must not become what the folder stands for.
        self._claim_folder()
        self._answers: TeacherCache | None = None
        self._teacher_network: StereoNetwork | None = None

    def run(self) -> dict[str, Any]:
        """Run every stage that is not finished; returns what each says of itself.

        Raises:
            Interrupted: after SIGINT or SIGTERM, with everything saved.
            TrainingError, PruneError, ExportError, ...: a stage failed; what was finished stays.
        """
        summary: dict[str, Any] = {}
        for stage in self.recipe.stages():
            done = self.folder / stage / 'done.json'
            if not done.is_file():
                start = time.monotonic()
                facts = getattr(self, f'_{stage}')()
                facts['seconds'] = round(time.monotonic() - start, 1)
                self._write(done, facts)
            self.state.wait_for_everyone()
            summary[stage] = json.loads(done.read_text())
        self._write(self.folder / 'summary.json', summary)
        return summary

    def network(self) -> StereoNetwork:
        """The last stage's network that there is, in eval mode.

        Raises:
            RecipeError: nothing was trained yet.
        """
        for candidate in reversed(list(self.networks().values())):
            return load_network(candidate)
        raise RecipeError(f'{self.folder} holds no trained network yet')

    def networks(self) -> dict[str, Path]:
        """Checkpoint of each finished stage that left one, in order."""
        found = {}
        for stage in ('distill', 'prune', 'tune'):
            done = self.folder / stage / 'done.json'
            if done.is_file():
                found[stage] = self.folder / json.loads(done.read_text())['checkpoint']
        return found

    # Stages

    def _teach(self) -> dict[str, Any]:
        section = self.recipe.teach
        return self._train('teach', self.folder / 'teach', section, None)

    def _cache(self) -> dict[str, Any]:
        cache = self._open_cache()
        total = len(self.train_pairs)
        counted = [0]

        def report(name: str, _fresh: bool) -> None:
            counted[0] += 1
            self.progress('cache', counted[0], total, name)

        computed, kept = 0, 0
        if self.state.is_main_process:
            computed, kept = cache.fill(self.train_pairs, report)
        self.state.wait_for_everyone()
        return {'teacher': cache.name, 'pairs': total, 'computed': computed, 'kept': kept}

    def _distill(self) -> dict[str, Any]:
        return self._train('distill', self.folder / 'distill', self.recipe.distill, None)

    def _prune(self) -> dict[str, Any]:
        section = self.recipe.prune
        folder = self.folder / 'prune'
        source = self.networks()['distill']
        ratio = self._pruning_ratio(source)
        steps = []
        for step in range(section.steps):
            here = folder / f'step_{step}'
            start = here / 'start.pt'
            share = ratio * (step + 1) / section.steps
            if not start.is_file() and self.state.is_main_process:
                prune.save_network(self._pruned(load_network(source), share), start)
            self.state.wait_for_everyone()
            network = load_network(start)
            facts = self._train(
                'prune', here, self._tuning(section.tune_steps), network, step * section.tune_steps
            )
            source = here / 'checkpoint.pt'
            steps.append({'ratio': share, 'parameters': network.parameter_count(), **facts})
        return {
            'ratio': ratio,
            'steps': steps,
            'checkpoint': str(source.relative_to(self.folder)),
        }

    def _pruned(self, network: StereoNetwork, ratio: float) -> StereoNetwork:
        """The network with `ratio` of the channels, or operations, of the distilled one gone."""
        section = self.recipe.prune
        if section.by == 'weights':
            prune.prune_to_ratio(
                network, ratio, round_to=section.round_to, keep=tuple(section.keep)
            )
            return network
        wanted = (1 - ratio) * prune.count_macs(
            load_network(self.networks()['distill']), *section.size
        )
        training = self.recipe.distill.training
        removals = prune_on_pairs(
            network,
            self.train_pairs,
            crops=section.crops,
            crop=(training.crop_height, training.crop_width),
            seed=self.recipe.seed,
            block=section.round_to,
            keep=tuple(section.keep),
            size=section.size,
            progress=lambda tried, groups: self.progress('trials', tried, groups, ''),
        )
        return prune_until(
            network, removals, lambda found: prune.count_macs(found, *section.size) <= wanted
        )

    def _tune(self) -> dict[str, Any]:
        network = load_network(list(self.networks().values())[-1])
        change_options(network, self.recipe.tune.training.options)
        return self._train('tune', self.folder / 'tune', self.recipe.tune, network)

    def _export(self) -> dict[str, Any]:
        from stereo_kd_training.export import build_manifest, export_network

        section = self.recipe.export
        path = self.folder / 'export' / f'{self.recipe.name}.onnx'
        if not self.state.is_main_process:
            return {}
        network = self.network()
        change_options(network, section.options)
        pruned = self.folder / 'prune' / 'done.json'
        manifest = build_manifest(
            network,
            self.recipe.name,
            version=section.version,
            licence=section.licence,
            macs_640x480=complexity(network).macs,
            teacher=self._teacher_name(),
            training_data=self.train_pairs.training_data,
            pruning=json.loads(pruned.read_text())['steps'] if pruned.is_file() else [],
            extra={'recipe': self.recipe.name, 'steps': self.recipe.steps()},
        )
        self.progress('export', 0, 1, path.name)
        report = export_network(network, path, manifest, tolerance_px=section.tolerance_px)
        self.progress('export', 1, 1, path.name)
        return {
            'model': str(path.relative_to(self.folder)),
            'parity_px': max(parity.max_difference_px for parity in report),
        }

    def _evaluate(self) -> dict[str, Any]:
        section = self.recipe.evaluate
        results: dict[str, Any] = {}
        if not self.state.is_main_process:
            return results
        for stage, checkpoint in self.networks().items():
            network = load_network(checkpoint)
            cost = complexity(network)
            results[stage] = {'parameters': cost.parameters, 'macs_640x480': cost.macs}
            if self.validation_pairs is not None:
                results[stage]['validation'] = self._validated(network, stage)
        if section is not None and section.root is not None:
            from stereo_kd_training.evaluate import evaluate_predictor

            network = self.network()
            results['benchmark'] = evaluate_predictor(
                lambda left, right: predict(network, left, right),
                section.root,
                section.sets,
                section.limit,
            )
        self._write(self.folder / 'evaluate' / 'metrics.json', results)
        return {'metrics': results}

    # Parts of stages

    def _train(
        self,
        stage: str,
        folder: Path,
        section: Training,
        network: StereoNetwork | None,
        offset: int = 0,
    ) -> dict[str, Any]:
        """One training run; `offset` is added to the steps that are reported."""
        config = section.training.model_copy(
            update={'seed': self.recipe.seed + section.training.seed}
        )
        total = self.recipe.steps().get(stage, config.steps)
        trainer = Trainer(
            config,
            folder,
            self._pairs_for(section),
            self.validation_pairs,
            loss=self._objective(section, config),
            network=network,
            progress=lambda step, text: self.progress(stage, offset + step, total, text),
        )
        metrics = trainer.run()
        if trainer.step < config.steps:
            raise Interrupted(
                f'{stage} stopped at step {trainer.step} of {config.steps}; run the same command '
                'to go on'
            )
        checkpoint = folder / 'checkpoint.pt'
        self.state.wait_for_everyone()
        return {
            'checkpoint': str(checkpoint.relative_to(self.folder)),
            'training_seconds': round(trainer.seconds, 1),
            **metrics,
        }

    def _tuning(self, steps: int) -> Training:
        """Distillation again, shorter and gentler, after a pruning."""
        before = self.recipe.distill.training
        rate = self.recipe.prune.learning_rate or before.peak_learning_rate / 3
        tenth = max(1, steps // 10)
        training = before.model_copy(
            update={
                'steps': steps,
                'peak_learning_rate': rate,
                'initial_weights': None,
                'validate_every': min(before.validate_every, steps),
                'checkpoint_every': min(before.checkpoint_every, tenth),
                'log_every': min(before.log_every, tenth),
            }
        )
        return Training(training=training, loss=self.recipe.distill.loss)

    def _pruning_ratio(self, checkpoint: Path) -> float:
        section = self.recipe.prune
        path = self.folder / 'prune' / 'ratio.json'
        if section.ratio is not None:
            return section.ratio
        if section.by == 'measured':
            before = prune.count_macs(load_network(checkpoint), *section.size)
            if section.value >= before:
                raise prune.PruneError(
                    f'the network has {before:.3g} macs already; `value` is to be less than that'
                )
            return 1 - section.value / before
        if not path.is_file() and self.state.is_main_process:
            height, width = section.size
            self.progress('prune', 0, 1, f'looking for {section.target} of {section.value}')
            ratio = prune.find_ratio(
                load_network(checkpoint),
                section.target,
                section.value,
                height=height,
                width=width,
                round_to=section.round_to,
                keep=tuple(section.keep),
            )
            self._write(path, {'ratio': ratio, 'target': section.target, 'value': section.value})
        self.state.wait_for_everyone()
        return float(json.loads(path.read_text())['ratio'])

    def _objective(self, section: Training, config: TrainingConfig) -> Objective | None:
        if section.loss is None:
            return None
        settings = section.loss
        teacher: BatchTeacher | None = None
        if settings.signal != 'ground_truth':
            teacher = self._batch_teacher()
            if settings.needs_bounds and settings.trust_bounds_px is None:
                bounds = self._trust_bounds(settings)
                settings = settings.model_copy(update={'trust_bounds_px': bounds})
        return Objective(settings, teacher, config.steps, config.loss)

    def _batch_teacher(self) -> BatchTeacher:
        if self.recipe.teacher.cache:
            return StoredTeacher()
        precision = self.recipe.distill.training.precision
        return NetworkTeacher(self._load_teacher_network(), resolved(precision))

    def _pairs_for(self, section: Training) -> Sequence[NamedPair]:
        loss = section.loss
        stored = self.recipe.teacher is not None and self.recipe.teacher.cache
        if stored and loss is not None and loss.signal != 'ground_truth':
            return TaughtPairs(self.train_pairs, self._open_cache())
        return self.train_pairs

    def _open_cache(self) -> TeacherCache:
        if self._answers is None:
            section = self.recipe.teacher
            teacher: Teacher
            if section.model is not None:
                teacher = open_teacher(section.model).teacher
            elif section.network is not None:
                network = self._load_teacher_network()
                teacher = TorchTeacher(network, section.top_k, cell=section.top_k_cell)
            else:
                teacher = build_teacher({**section.description(), 'consistency_px': None})
            if section.consistency_px is not None:
                teacher = ConsistencyChecked(teacher, section.consistency_px)
            folder = section.cache_folder or self.folder / 'cache'
            self._answers = TeacherCache(folder, teacher)
        return self._answers

    def _load_teacher_network(self) -> StereoNetwork:
        if self._teacher_network is None:
            section = self.recipe.teacher
            if section.checkpoint is None:
                network = load_network(self.folder / 'teach')
            else:
                network = load_any_network(section.network, section.options, section.checkpoint)
            self._teacher_network = network
        return self._teacher_network

    def _trust_bounds(self, settings: Distillation) -> tuple[float, float]:
        """Teacher EPE of all training pairs, once per run, to the ends of Compact's K."""
        path = self.folder / 'cache' / 'teacher_errors.json'
        if not path.is_file() and self.state.is_main_process:
            teacher: Teacher
            if self.recipe.teacher.cache:
                teacher = self._open_cache()
            else:
                teacher = TorchTeacher(self._load_teacher_network())
            errors = []
            for index, pair in enumerate(self.train_pairs):
                answer = teacher.predict(pair.left, pair.right, pair.name)
                error = float(np.nanmean(np.abs(answer.disparity - pair.disparity)))
                errors += [error] if np.isfinite(error) else []
                self.progress('cache', index + 1, len(self.train_pairs), 'teacher error')
            if not errors:
                raise RecipeError(
                    'loss.trust compares the teacher with ground truth, and no training pair has '
                    'any; use trust: confidence'
                )
            self._write(path, {'epe_px': errors})
        self.state.wait_for_everyone()
        errors = torch.tensor(json.loads(path.read_text())['epe_px'])
        if settings.trust == 'min_max':
            return float(errors.min()), float(errors.max())
        low, high = torch.quantile(errors, torch.tensor([0.05, 0.95])).tolist()
        return low, high

    def _validated(self, network: StereoNetwork, stage: str) -> dict[str, float]:
        results: list[DisparityMetrics] = []
        for index, pair in enumerate(self.validation_pairs):
            answer = predict(network, pair.left, pair.right)
            results.append(disparity_metrics(answer, pair.disparity, network.max_disparity_px))
            self.progress('evaluate', index + 1, len(self.validation_pairs), stage)
        known = [r for r in results if r.pixels]
        return {
            key: float(np.mean([getattr(r, key) for r in known]))
            for key in ('epe_px', 'bad1', 'bad2', 'bad3', 'd1')
            if known
        }

    def _teacher_name(self) -> str | None:
        teacher = self.recipe.teacher
        if teacher is None:
            return None
        return teacher.network or Path(teacher.onnx or teacher.folder).stem

    def _claim_folder(self) -> None:
        asked = self.recipe.model_dump(mode='json')
        path = self.folder / 'recipe.json'
        if path.is_file():
            # Through the model, so that a run from before a key existed has its default.
            before = Recipe.model_validate_json(path.read_text()).model_dump(mode='json')
            differing = [key for key in asked if before.get(key) != asked[key]]
            if differing:
                raise RecipeError(
                    f'{self.folder} holds a run of a recipe with another '
                    f'{", ".join(differing)}; give a new folder, or the recipe as it was'
                )
        self._write(path, asked)
        self._write(self.folder / 'versions.json', versions())

    def _write(self, path: Path, content: Any) -> None:
        if not self.state.is_main_process:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'.{path.name}.{os.getpid()}')
        partial.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
        os.replace(partial, path)


def change_options(network: StereoNetwork, options: dict[str, Any]) -> None:
    """Set options of a built network that need no other weights, as DTPNet's head.

    Raises:
        RecipeError: it has no such attribute.
    """
    before = network.configuration.setdefault('options', {})
    for option, value in options.items():
        if before.get(option) == value:
            continue
        if not hasattr(network, option):
            raise RecipeError(
                f'{type(network).__name__} has no option {option!r} that a trained network can '
                'change'
            )
        setattr(network, option, value)
        before[option] = value


def load_any_network(name: str, options: dict[str, Any], path: str | Path) -> StereoNetwork:
    """A network from a checkpoint of this trainer, a model file, or an official state dict.

    Args:
        name: of the network, which an official state dict does not say.
        options: of it, for the same case.
        path: a run's checkpoint, an ONNX file that one of ours was exported to, or a state dict.

    Raises:
        CheckpointError: none of these, or of another network.
        ModelError: an ONNX file that says of no network how it is built.
    """
    if Path(path).suffix == '.onnx':
        return load_shipped(Path(path))
    try:
        read_checkpoint(path)
    except TrainingError:
        network = create(name, **options)
        load_checkpoint(network, path)
        return network.eval()
    return load_network(path)


def versions() -> dict[str, str]:
    """Versions of what computes, and the git revision of this package where it is known."""
    found = {'python': platform.python_version(), 'platform': platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    revision = subprocess.run(
        ['git', 'describe', '--always', '--dirty'],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    if revision.returncode == 0:
        found['git'] = revision.stdout.strip()
    return found


def plan(recipe: Recipe, measure_time: bool = True) -> list[str]:
    """What a run would do, line by line: data, networks, steps, and time where measured.

    The time is one measured training step of the student at a small size, scaled by pixels.
    """
    lines = [f'{recipe.name}: {" -> ".join(recipe.stages())}']
    for part, sources in (('train', recipe.data.train), ('validation', recipe.data.validation)):
        for source in sources:
            label = source.pool or f'{source.name} in {source.root}'
            try:
                lines.append(f'  {part}: {label}, {len(Pairs([source]))} pairs')
            except (DatasetError, PoolError, RecipeError, OSError, ValueError) as error:
                lines.append(f'  {part}: {label}: NOT THERE: {str(error).splitlines()[0]}')
    if recipe.teacher:
        kept = 'cached' if recipe.teacher.cache else 'in memory'
        teacher = recipe.teacher
        named = teacher.network or teacher.model or teacher.onnx or teacher.folder
        files = (teacher.checkpoint, teacher.onnx, teacher.adapter, teacher.folder)
        lines.append(f'  teacher: {named}, {kept}{_absent(*files)}')
    student = recipe.distill.training
    if student.initial_weights:
        lines.append(f'  starts from: {student.initial_weights}{_absent(student.initial_weights)}')
    network = create(student.network, **student.options)
    cost = complexity(network)
    lines.append(
        f'  student: {student.network}, {cost.parameters:,} parameters, '
        f'{cost.macs / 1e9:.2f} GMAC at 640x480'
    )
    seconds = _step_seconds(network, student) if measure_time else None
    for stage, steps in recipe.steps().items():
        line = f'  {stage}: {steps:,} steps of {student.batch_size} crops'
        if seconds is not None and stage != 'teach':
            line += f', about {_duration(steps * seconds)} on this machine (without the teacher)'
        lines.append(line)
    return lines


def _absent(*paths: str | None) -> str:
    """What to add to a line about files of which one is not there."""
    missing = [path for path in paths if path is not None and not Path(path).exists()]
    return f': NOT THERE: {missing[0]}' if missing else ''


def _step_seconds(network: StereoNetwork, config: TrainingConfig) -> float:
    """Seconds of one optimiser step, from one pair at the smallest size."""
    height, width = prune.trace_size(network)
    network.train()
    # Two crops, because batch norm of a small map refuses to train on a single value.
    pair = [torch.rand(2, 3, height, width) for _ in range(2)]
    for _ in range(2):
        start = time.perf_counter()
        losses.smooth_l1_disparity(
            network(*pair).disparity, torch.ones(2, height, width)
        ).backward()
        seconds = time.perf_counter() - start
    crops = config.batch_size * config.accumulation
    pixels = config.crop_height * config.crop_width * crops
    return seconds * pixels / (2 * height * width)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f'{seconds:.0f} s'
    if seconds < 7200:
        return f'{seconds / 60:.0f} min'
    return f'{seconds / 3600:.1f} h'
