# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Train one network on stereo pairs with truth, so that a killed run loses nothing.

A run is a folder:

    config.json          what was asked for; a resumed run must ask for the same
    checkpoint.pt        network, EMA, optimiser, step, generators (replaced atomically)
    log.jsonl            one line per logged step and per validation
    tensorboard/         the same scalars, and preview pictures
    previews/            left, truth, prediction, error as PNG

Everything random is a function of (seed, step): which pairs, which crops, which colours.
So a run that is killed and resumed sees the very batches it would have seen, and N
processes that share a batch see between them what one would.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from stereo_kd_ros.metrics import disparity_metrics
from stereo_kd_ros.visualize import colorize_disparity, colorize_error, picture_strip
from stereo_kd_training.datasets.augment import Augmentation
from stereo_kd_training.losses import (
    masked_mean,
    smooth_l1_disparity,
    two_hot_cross_entropy,
)
from stereo_kd_training.networks import (
    NetworkError,
    StereoNetwork,
    StereoOutput,
    apply_widths,
    build,
    create,
)
from stereo_kd_training.networks.contract import ContractModel
from stereo_kd_training.parallel import share_statistics
from stereo_kd_training.precision import PATTERN, machine, resolved


class TrainingError(RuntimeError):
    """A run that cannot start, cannot be resumed, or has diverged."""


REFINABLE_PX = 4.0


class LossWeights(BaseModel):
    """Weights of the supervised loss; a weight of 0 leaves its term out.

    `refined_reach` says how many cells away an answer may lie that a refinement can bring to a
    cell: 0 without `refined_moves`.
    """

    model_config = ConfigDict(extra='forbid')

    cross_entropy: float = 1.0
    disparity: float = 0.3
    coarse: float = 0.2
    confidence: float = 0.1
    refined: float = 0.0
    refined_reach: int = Field(0, ge=0)


_MOVED_TO_AUGMENTATION = ('scale_probability', 'colour_probability')


class TrainingConfig(BaseModel):
    """What a run is made of; unknown keys are refused.

    Attributes:
        precision: see `precision.resolved`.
        trained: beginnings of the names of the parts that learn; all else stays as it is, batch
            statistics included. Empty: the whole network learns.
        compile: run the network through torch.compile. Checkpoints are those of the plain
            network, so it may be switched on and off between the parts of a run.
        compile_backend: 'inductor' needs a C++ compiler (and triton on a GPU); 'aot_eager'
            and 'eager' need none, and show whether a network can be captured at all.
    """

    model_config = ConfigDict(extra='forbid')

    network: str = 'kestrel'
    options: dict[str, Any] = Field(default_factory=dict)
    initial_weights: str | None = None
    steps: int = Field(20_000, ge=1)
    batch_size: int = Field(4, ge=1)
    accumulation: int = Field(1, ge=1)
    crop_height: int = Field(192, ge=32)
    crop_width: int = Field(384, ge=32)
    peak_learning_rate: float = Field(1.5e-3, gt=0)
    optimizer: str = Field('adamw', pattern='^(adamw|adam)$')
    schedule: str = Field('one_cycle', pattern='^(one_cycle|steps)$')
    milestones: list[float] = Field(default_factory=list)
    milestone_factor: float = Field(0.1, gt=0, le=1)
    warmup_fraction: float = Field(0.05, ge=0, lt=1)
    final_fraction: float = Field(0.01, ge=0, le=1)
    weight_decay: float = Field(1e-2, ge=0)
    clip_gradient: float = Field(1.0, gt=0)
    precision: str = Field('auto', pattern=PATTERN)
    compile: bool = False
    compile_backend: Literal['inductor', 'aot_eager', 'eager'] = 'inductor'
    ema_decay: float = Field(0.999, ge=0, lt=1)
    frozen_statistics: bool = False
    trained: list[str] = Field(default_factory=list)
    augmentation: Augmentation = Field(default_factory=Augmentation)
    loss: LossWeights = Field(default_factory=LossWeights)
    seed: int = 0
    log_every: int = Field(25, ge=1)
    validate_every: int = Field(500, ge=1)
    validation_pairs: int = Field(24, ge=1)
    checkpoint_every: int = Field(200, ge=1)

    @model_validator(mode='before')
    @classmethod
    def _keys_of_earlier_versions(cls, fields: Any) -> Any:
        """The two augmentations that once stood among the other keys go to their section."""
        if not isinstance(fields, dict):
            return fields
        moved = {key: fields[key] for key in _MOVED_TO_AUGMENTATION if key in fields}
        if not moved:
            return fields
        kept = {key: value for key, value in fields.items() if key not in moved}
        section = kept.get('augmentation') or {}
        if isinstance(section, Augmentation):
            section = section.model_dump(exclude_unset=True)
        return {**kept, 'augmentation': {**section, **moved}}


class Pair(Protocol):
    """left, right (H, W, 3) uint8 RGB; disparity (H, W) float32 px, NaN where unknown."""

    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray


class PairSource(Protocol):
    """Random access to pairs: a pool, a public set, a robot's bag."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Pair: ...


@dataclass
class Batch:
    """Tensors of one step.

    Attributes:
        left, right: (B, 3, H, W) in [0, 255].
        disparity: (B, H, W) px, NaN unknown.
        teacher_disparity: (B, H, W) px, NaN unknown, where the pairs carry a teacher's answer.
        teacher_confidence: (B, H, W) in [0, 1], with it.
        teacher_indices: (B, K, h, w) of the most probable hypotheses, where it was kept.
        teacher_probabilities: (B, K, h, w) float16, with them.
        teacher_hypotheses: (B, D) px, with them; those of a magnified pair are magnified.
    """

    left: Tensor
    right: Tensor
    disparity: Tensor
    teacher_disparity: Tensor | None = None
    teacher_confidence: Tensor | None = None
    teacher_indices: Tensor | None = None
    teacher_probabilities: Tensor | None = None
    teacher_hypotheses: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        return Batch(
            *(None if value is None else value.to(device) for value in vars(self).values())
        )


def one_cycle(step: int, config: TrainingConfig) -> float:
    """Learning rate as a share of its peak: linear warm-up, then cosine to the final share.

    A function of the step alone, so that it needs no state to resume.
    """
    progress = step / config.steps
    if progress < config.warmup_fraction:
        return min(1.0, (progress + 1.0 / config.steps) / config.warmup_fraction)
    rest = (progress - config.warmup_fraction) / (1.0 - config.warmup_fraction)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(rest, 1.0)))
    return config.final_fraction + (1.0 - config.final_fraction) * cosine


def learning_rate_share(step: int, config: TrainingConfig) -> float:
    """Learning rate as a share of its peak, for either schedule.

    'steps' multiplies by `milestone_factor` at each of `milestones`, shares of the run, so
    that a shortened run keeps the shape of its schedule.
    """
    if config.schedule == 'one_cycle':
        return one_cycle(step, config)
    passed = sum(step / config.steps >= milestone for milestone in config.milestones)
    return config.milestone_factor**passed


def make_batch(
    source: PairSource, config: TrainingConfig, step: int, rank: int = 0, ranks: int = 1
) -> Batch:
    """The share of `rank` in the batch of optimiser step `step`.

    Raises:
        TrainingError: the batch does not divide by the number of processes, or answers of a
            teacher are to be mirrored.
        DatasetError: a pair is smaller than the crop.
    """
    if config.batch_size % ranks:
        raise TrainingError(f'batch_size {config.batch_size} does not divide by {ranks} processes')
    lefts, rights, disparities = [], [], []
    teacher_disparities, confidences = [], []
    indices, probabilities, hypotheses = [], [], []
    for item in range(rank, config.batch_size, ranks):
        generator = np.random.default_rng((config.seed, step, item))
        pair = source[int(generator.integers(len(source)))]
        top = getattr(pair, 'teacher_distribution', None)
        crop = config.augmentation(
            pair.left,
            pair.right,
            pair.disparity,
            config.crop_height,
            config.crop_width,
            generator,
            1 if top is None else top.factor,
        )
        lefts.append(crop.left)
        rights.append(crop.right)
        disparities.append(crop.disparity)
        taught = getattr(pair, 'teacher_disparity', None)
        if taught is not None:
            if config.augmentation.mirror_probability:
                raise TrainingError(
                    'mirror_probability swaps the eyes, and the answers on disk are of the left '
                    'one; keep the teacher in memory (cache: false), or do not mirror'
                )
            teacher_disparities.append(crop.window.disparity(taught))
            confidences.append(crop.window.values(pair.teacher_confidence))
        if top is not None:
            indices.append(crop.window.cells(top.indices, top.factor))
            probabilities.append(crop.window.cells(top.probabilities, top.factor))
            hypotheses.append(crop.window.hypotheses(top.hypotheses))

    def planes(images: list[np.ndarray]) -> Tensor:
        # Channels last in memory, as the cameras give it and as the CPU convolves faster.
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)

    def maps(values: list[np.ndarray], kind: type = np.float32) -> Tensor | None:
        return torch.from_numpy(np.stack(values).astype(kind)) if values else None

    return Batch(
        planes(lefts),
        planes(rights),
        maps(disparities),
        maps(teacher_disparities),
        maps(confidences),
        maps(indices, np.int32),
        maps(probabilities, np.float16),
        maps(hypotheses),
    )


def supervised_loss(
    output: StereoOutput, truth: Tensor, weights: LossWeights
) -> tuple[Tensor, dict[str, Tensor]]:
    """Two-hot cross-entropy on every distribution, smooth L1 on every stage, and parts' own terms.

    Confidence learns whether the coarse answer is right within max(1 px, 5 %), by binary
    cross-entropy that does not reach the disparity. A refinement learns where the answer before
    it, of a cell or of one within `refined_reach` cells of it, was within `REFINABLE_PX`: what it
    cannot mend would drown what it can.

    Args:
        output: of the network.
        truth: (B, H, W) px; NaN and negative values are unknown.
        weights: of the terms.

    Returns:
        the sum, and each unweighted term by name.
    """
    valid = torch.isfinite(truth) & (truth >= 0)
    terms: dict[str, Tensor] = {}
    total = truth.new_zeros(())
    coarse_truth: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def at(grid: Tensor) -> tuple[Tensor, Tensor]:
        down, across = (size // cells for size, cells in zip(truth.shape[1:], grid.shape[-2:]))
        if (down, across) not in coarse_truth:
            # The middle of the cell, not its mean: see downsample_disparity.
            middle = (..., slice(down // 2, None, down), slice(across // 2, None, across))
            coarse_truth[down, across] = truth[middle], valid[middle]
        return coarse_truth[down, across]

    distributions = [(z, h) for z, h in zip(output.logits, output.hypotheses) if z is not None]
    if weights.cross_entropy and distributions:
        terms['cross_entropy'] = sum(
            two_hot_cross_entropy(z, h, *at(z)) for z, h in distributions
        ) / len(distributions)
        total = total + weights.cross_entropy * terms['cross_entropy']
    if weights.disparity:
        terms['disparity'] = sum(
            smooth_l1_disparity(stage, truth, valid) for stage in output.stages
        ) / len(output.stages)
        total = total + weights.disparity * terms['disparity']
    coarse = output.features.get('coarse')
    if weights.coarse and coarse is not None:
        terms['coarse'] = smooth_l1_disparity(coarse[:, 0], *at(coarse))
        total = total + weights.coarse * terms['coarse']
    confidence = output.features.get('confidence')
    if weights.confidence and confidence is not None and coarse is not None:
        target, known = at(coarse)
        error = (coarse[:, 0].detach() - torch.nan_to_num(target)).abs()
        right = (error < (0.05 * torch.nan_to_num(target)).clamp(min=1.0)).float()
        predicted = confidence[:, 0].clamp(1e-4, 1 - 1e-4)
        terms['confidence'] = masked_mean(
            nn.functional.binary_cross_entropy(predicted, right, reduction='none'), known
        )
        total = total + weights.confidence * terms['confidence']
    unrefined = output.features.get('unrefined')
    if weights.refined and unrefined is not None and coarse is not None:
        target, known = at(coarse)
        near = known & (_nearest_answer(unrefined, target, weights.refined_reach) < REFINABLE_PX)
        down, across = (size // cells for size, cells in zip(truth.shape[1:], near.shape[1:]))
        everywhere = near.repeat_interleave(down, 1).repeat_interleave(across, 2)
        everywhere = everywhere & valid & ((output.disparity.detach() - truth).abs() < 8)
        of_cells = nn.functional.smooth_l1_loss(
            coarse[:, 0].float(), torch.nan_to_num(target), reduction='none', beta=0.25
        )
        # What a neighbour can mend may be off by any jump: it counts, but not by its size.
        far = of_cells.clamp(min=REFINABLE_PX)
        of_cells = of_cells.clamp(max=REFINABLE_PX) + REFINABLE_PX * (far / REFINABLE_PX).log()
        terms['refined'] = (
            masked_mean(of_cells, near)
            + smooth_l1_disparity(output.disparity, truth, everywhere, beta_px=0.25)
        ) / 2
        total = total + weights.refined * terms['refined']
    return total, terms


def _nearest_answer(answer: Tensor, target: Tensor, reach: int) -> Tensor:
    """How far from its truth the best answer within `reach` cells of a cell is.

    Args:
        answer: (B, 1, h, w) px.
        target: (B, h, w) px, NaN unknown.

    Returns:
        (B, h, w) px, NaN where the truth is unknown.
    """
    rows, columns = target.shape[1:]
    padded = nn.functional.pad(answer.detach(), (reach,) * 4, mode='replicate')[:, 0]
    best = torch.full_like(target, torch.inf)
    for y in range(2 * reach + 1):
        for x in range(2 * reach + 1):
            off = (padded[:, y : y + rows, x : x + columns] - target).abs()
            best = torch.minimum(best, off)
    return best


Loss = Callable[[StereoOutput, Batch, int], tuple[Tensor, dict[str, Tensor]]]


class Trainer:
    """Runs a config in a folder; give it another `loss` to distil instead.

    Args:
        config: of the run.
        run_dir: its folder; a checkpoint in it is resumed.
        train: pairs to learn from.
        validation: pairs to measure on, never learnt from.
        loss: maps (output, batch, step) to the loss and its terms; supervised by default.
        network: trained in place of `create(config.network)`, for pruned ones.
        progress: called with (step, text) after every step; a bar lives outside.

    Raises:
        TrainingError: the folder holds another run, or there is nothing to learn from.
    """

    def __init__(
        self,
        config: TrainingConfig,
        run_dir: Path | str,
        train: PairSource,
        validation: PairSource | None = None,
        loss: Loss | None = None,
        network: StereoNetwork | None = None,
        progress: Callable[[int, str], None] | None = None,
    ) -> None:
        if len(train) == 0:
            raise TrainingError('there are no pairs to learn from')
        self.config = config
        self.run_dir = Path(run_dir)
        self.train_pairs = train
        self.validation_pairs = validation
        self.loss = loss or (
            lambda output, batch, step: supervised_loss(output, batch.disparity, config.loss)
        )
        self.progress = progress
        self.step = 0
        self.seconds = 0.0
        self.best_epe_px = math.inf
        self._stop_requested = False

        cuda = torch.cuda.is_available()
        # fp16 needs CUDA; asking for it elsewhere is a mistake that accelerate reports badly.
        if config.precision == 'fp16' and not cuda:
            raise TrainingError('precision fp16 needs a CUDA device; use auto, bf16 or no')
        before = self._left_before()
        precision = resolved(config.precision, before and before.get('computed'))
        _forget_other_precision(precision)
        self.accelerator = Accelerator(
            mixed_precision=precision,
            cpu=not cuda,
            gradient_accumulation_steps=1,
            # A loss need not reach every head that a network has.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        torch.manual_seed(config.seed)
        network = network or create(config.network, **config.options)
        if config.initial_weights:
            load_weights(network, config.initial_weights)
        down, across = network.strides
        if config.crop_height % down or config.crop_width % across:
            raise TrainingError(
                f'crop {config.crop_width}x{config.crop_height} is not a multiple of the '
                f'strides {across}x{down} of {config.network}'
            )
        if config.trained:
            train_only(network, config.trained)
        channels_last(network)
        self.ema = create_ema(network, self.accelerator.device)
        if self.accelerator.num_processes > 1:
            share_statistics(network)
        make_optimizer = {'adamw': torch.optim.AdamW, 'adam': torch.optim.Adam}
        optimizer = make_optimizer[config.optimizer](
            weight_groups(network, config.weight_decay), lr=config.peak_learning_rate
        )
        self.network, self.optimizer = self.accelerator.prepare(network, optimizer)
        self._forward = self.network
        if config.compile:
            self._forward = compiled(self.network, config.compile_backend)
        self._open_run(before)

    @property
    def plain_network(self) -> StereoNetwork:
        """The network without what a launcher wrapped round it."""
        return self.accelerator.unwrap_model(self.network)

    @property
    def checkpoint_path(self) -> Path:
        return self.run_dir / 'checkpoint.pt'

    @property
    def config_path(self) -> Path:
        return self.run_dir / 'config.json'

    def _left_before(self) -> dict[str, Any] | None:
        """The checkpoint of the run that goes on, None where one begins."""
        if not (self.config_path.exists() and self.checkpoint_path.exists()):
            return None
        return read_checkpoint(self.checkpoint_path)

    def _open_run(self, state: dict[str, Any] | None) -> None:
        self.run_dir.mkdir(parents=True, exist_ok=True)
        asked = json.loads(self.config.model_dump_json())
        if state is not None:
            # Through the model, so that a run from before a key existed has its default.
            before = TrainingConfig(**json.loads(self.config_path.read_text())).model_dump(
                mode='json'
            )
            differing = [
                key
                for key in sorted(set(before) | set(asked))
                if before.get(key) != asked.get(key) and key not in _MAY_CHANGE
            ]
            # It is the machine's matter, unless it was asked for by name both times.
            if 'auto' in (before['precision'], asked['precision']):
                differing = [key for key in differing if key != 'precision']
            if differing:
                raise TrainingError(
                    f'{self.run_dir} holds a run with another {", ".join(differing)}; '
                    'resume it as it was, or give a new folder'
                )
            self._load(state)
        if self.accelerator.is_main_process:
            _write_atomically(self.config_path, json.dumps(asked, indent=2).encode())

    def _load(self, state: dict[str, Any]) -> None:
        self.plain_network.load_state_dict(state['network'])
        self.ema.load_state_dict(state['ema'])
        self.optimizer.load_state_dict(state['optimizer'])
        torch.set_rng_state(state['torch_rng'])
        self.step = int(state['step'])
        self.seconds = float(state['seconds'])
        self.best_epe_px = float(state['best_epe_px'])
        if self.accelerator.scaler is not None and state.get('scaler'):
            self.accelerator.scaler.load_state_dict(state['scaler'])

    def save_checkpoint(self, name: str = 'checkpoint.pt') -> None:
        """Write all that a resumed run needs; a kill leaves the old file or the new one."""
        if not self.accelerator.is_main_process:
            return
        network, scaler = self.plain_network, self.accelerator.scaler
        save_atomically(
            self.run_dir / name,
            {
                'configuration': network.configuration,
                'network': network.state_dict(),
                'ema': self.ema.state_dict(),
                'optimizer': self.optimizer.state_dict(),
                'torch_rng': torch.get_rng_state(),
                'step': self.step,
                'seconds': self.seconds,
                'best_epe_px': self.best_epe_px,
                'scaler': scaler.state_dict() if scaler else None,
                'training': self.config.model_dump(),
                'computed': {
                    'precision': self.accelerator.mixed_precision,
                    'machine': machine(),
                },
            },
        )

    def _batches(self) -> Iterator[list[Batch]]:
        """Batches from the current step on, made ahead by one thread."""
        rank, ranks = self.accelerator.process_index, self.accelerator.num_processes
        accumulation = self.config.accumulation

        def make(step: int) -> list[Batch]:
            return [
                make_batch(self.train_pairs, self.config, step * accumulation + part, rank, ranks)
                for part in range(accumulation)
            ]

        with ThreadPoolExecutor(1) as pool:
            ahead: list[Future[list[Batch]]] = []
            step = self.step
            while step < self.config.steps:
                while len(ahead) < 3 and step + len(ahead) < self.config.steps:
                    ahead.append(pool.submit(make, step + len(ahead)))
                yield ahead.pop(0).result()
                step += 1

    def run(self) -> dict[str, float]:
        """Train to the end (or to SIGTERM/SIGINT, after a checkpoint); returns the metrics.

        Raises:
            TrainingError: the loss stayed non-finite; the last good checkpoint is kept and
                the batch that broke it lies beside it as diverged_batch.pt.
        """
        from torch.utils.tensorboard import SummaryWriter

        writer = None
        if self.accelerator.is_main_process:
            writer = SummaryWriter(self.run_dir / 'tensorboard', purge_step=self.step)
        previous = _catch_signals(self)
        metrics: dict[str, float] = {}
        bad_steps = 0
        sums: dict[str, float] = {}
        try:
            for batches in self._batches():
                start = time.perf_counter()
                terms = self._train_step(batches)
                self.seconds += time.perf_counter() - start
                if terms is None:
                    bad_steps += 1
                    if bad_steps >= 5:
                        self._report_divergence(batches)
                    self.step += 1
                    continue
                bad_steps = 0
                self.step += 1
                for key, value in terms.items():
                    sums[key] = sums.get(key, 0.0) + value
                last = self.step == self.config.steps
                if self.step % self.config.log_every == 0 or last:
                    self._log(
                        writer, {f'train/{k}': v / self.config.log_every for k, v in sums.items()}
                    )
                    sums = {}
                if self.progress:
                    text = f'loss {terms["loss"]:.3f}'
                    if math.isfinite(self.best_epe_px):
                        text += f'  best EPE {self.best_epe_px:.3f} px'
                    self.progress(self.step, text)
                if self.step % self.config.validate_every == 0 or last:
                    metrics = self.validate(writer)
                if self.step % self.config.checkpoint_every == 0 or last or self._stop_requested:
                    self.save_checkpoint()
                if self._stop_requested:
                    break
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            if writer:
                writer.close()
        return metrics

    def _train_step(self, batches: Sequence[Batch]) -> dict[str, float] | None:
        """One optimiser step; None when it was skipped for a non-finite loss or gradient."""
        rate = self.config.peak_learning_rate * learning_rate_share(self.step, self.config)
        for group in self.optimizer.param_groups:
            group['lr'] = rate
        self.network.train()
        if self.config.frozen_statistics:
            keep_statistics(self.plain_network)
        elif self.config.trained:
            keep_statistics(self.plain_network, self.config.trained)
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, float] = {}
        for batch in batches:
            batch = batch.to(self.accelerator.device)
            normalize = self.plain_network.normalize
            with self.accelerator.autocast():
                output = self._forward(
                    normalize(batch.left.float()), normalize(batch.right.float())
                )
            loss, terms = self.loss(output, batch, self.step)
            if not self._finite_everywhere(loss):
                return None
            self.accelerator.backward(loss / len(batches))
            for key, value in {'loss': loss, **terms}.items():
                sums[key] = sums.get(key, 0.0) + self._mean(value) / len(batches)
        norm = self.accelerator.clip_grad_norm_(
            self.network.parameters(), self.config.clip_gradient
        )
        if not self._finite_everywhere(norm):
            return self._train_step(batches) if self._scale_lowered() else None
        self.optimizer.step()
        update_ema(self.ema, self.plain_network, self.config.ema_decay, self.step)
        sums['gradient_norm'] = float(norm)
        sums['learning_rate'] = rate
        return sums

    def _scale_lowered(self) -> bool:
        """Whether fp16's gradients can be tried again, scaled less; they start by overflowing."""
        scaler = self.accelerator.scaler
        if scaler is None:
            return False
        scaler.update()
        return scaler.get_scale() >= 1.0

    def _mean(self, value: Tensor) -> float:
        """Mean over the processes, so that the log is that of the whole batch."""
        value = value.detach().float()
        if self.accelerator.num_processes > 1:
            value = self.accelerator.reduce(value, 'mean')
        return float(value)

    def _finite_everywhere(self, value: Tensor) -> bool:
        """Whether no process has a NaN; they must skip a step together or wait for ever."""
        return self._mean(torch.isfinite(value)) == 1.0

    def _report_divergence(self, batches: Sequence[Batch]) -> None:
        path = self.run_dir / 'diverged_batch.pt'
        save_atomically(
            path,
            {'batches': [vars(batch) for batch in batches], 'step': self.step},
        )
        raise TrainingError(
            f'loss or gradient was not finite for 5 steps in a row at step {self.step}; '
            f'the last good checkpoint is kept in {self.checkpoint_path}, the batch lies in '
            f'{path}. Lower peak_learning_rate or look at that batch.'
        )

    @torch.no_grad()
    def validate(self, writer: Any = None) -> dict[str, float]:
        """EPE and bad-3 of the EMA weights on the validation pairs, with preview pictures.

        Pairs without truth, as of a robot's bag, are drawn and not counted.
        """
        if self.validation_pairs is None or not self.accelerator.is_main_process:
            return {}
        count = min(len(self.validation_pairs), self.config.validation_pairs)
        results, rows = [], []
        self.ema.eval()
        for index in range(count):
            pair = self.validation_pairs[index]
            left, truth = pair.left, pair.disparity
            predicted = predict(self.ema, left, pair.right)
            known = bool(np.isfinite(truth).any())
            if known:
                results.append(disparity_metrics(predicted, truth, self.ema.max_disparity_px))
            if index < 4:
                top = float(np.nanmax(truth if known else predicted))
                rows.append(
                    picture_strip(
                        [
                            left,
                            colorize_disparity(truth, top),
                            colorize_disparity(predicted, top),
                            colorize_error(predicted, truth),
                        ],
                        ['left', 'truth', 'prediction', 'error'],
                    )
                )
        metrics = {
            f'validation/{key}': float(np.mean([getattr(m, key) for m in results]))
            for key in ('epe_px', 'bad1', 'bad3')
            if results
        }
        # Pairs of one set may differ in size, KITTI's by some columns.
        widest = max(row.shape[1] for row in rows)
        rows = [
            np.pad(row, ((0, 0), (0, widest - row.shape[1]), (0, 0)), constant_values=255)
            for row in rows
        ]
        picture = np.concatenate(rows, 0)
        previews = self.run_dir / 'previews'
        previews.mkdir(exist_ok=True)
        cv2.imwrite(str(previews / f'{self.step:07d}.png'), picture[..., ::-1])
        if writer:
            writer.add_image('validation', picture, self.step, dataformats='HWC')
        if metrics:
            self._log(writer, metrics)
            self.best_epe_px = min(self.best_epe_px, metrics['validation/epe_px'])
        return metrics

    def _log(self, writer: Any, scalars: dict[str, float]) -> None:
        if not self.accelerator.is_main_process:
            return
        for key, value in scalars.items():
            if writer:
                writer.add_scalar(key, value, self.step)
        line = {'step': self.step, 'seconds': round(self.seconds, 1), **scalars}
        with open(self.run_dir / 'log.jsonl', 'a') as log:
            log.write(json.dumps(line) + '\n')


def _forget_other_precision(precision: str) -> None:
    """Lets one process train at one precision after another, which accelerate refuses."""
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()


# A resumed run may be stretched, and may report otherwise, but must learn the same way.
_MAY_CHANGE = {
    'steps',
    'log_every',
    'validate_every',
    'validation_pairs',
    'checkpoint_every',
    'initial_weights',
    'compile',
    'compile_backend',
}


def compiled(network: nn.Module, backend: str = 'inductor') -> Callable[..., StereoOutput]:
    """`network` through torch.compile, sharing its weights; it is compiled when first called.

    Raises:
        TrainingError: at the first call, where the backend cannot compile it here; says why.
    """
    fast = torch.compile(network, backend=backend)

    def call(*images: Tensor) -> StereoOutput:
        try:
            return fast(*images)
        except (RuntimeError, ImportError, OSError) as error:
            if not type(error).__module__.startswith(('torch._dynamo', 'torch._inductor')):
                raise
            reason = str(error).strip().splitlines()[0]
            raise TrainingError(
                f'torch.compile with backend {backend!r} failed: {reason}. It needs a C++ '
                'compiler on a CPU, triton on a GPU; or set compile: false'
            ) from error

    return call


def channels_last(network: nn.Module) -> None:
    """Lay the 2D kernels of `network` out as the batches are, in place; 3D kernels stay."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def weight_groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Decay for convolution weights alone: decaying a norm or a bias only shifts it."""
    learning = [p for p in network.parameters() if p.requires_grad]
    decayed = [p for p in learning if p.ndim > 1]
    plain = [p for p in learning if p.ndim <= 1]
    return [
        {'params': decayed, 'weight_decay': weight_decay},
        {'params': plain, 'weight_decay': 0.0},
    ]


def train_only(network: nn.Module, beginnings: Sequence[str]) -> None:
    """Let only the parameters learn whose names begin so.

    Raises:
        TrainingError: no parameter's name begins with one of them.
    """
    names = [name for name, _ in network.named_parameters()]
    for beginning in beginnings:
        if not any(name.startswith(beginning) for name in names):
            parts = sorted({name.split('.')[0] for name in names})
            raise TrainingError(
                f'no part of the network begins with {beginning!r}; it has {", ".join(parts)}'
            )
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name.startswith(tuple(beginnings)))


def keep_statistics(network: nn.Module, but: Sequence[str] = ()) -> None:
    """Let batch norms go on with the statistics that they have, also in training.

    For a trained network that learns on from a few small batches: statistics of two crops are
    noise, and those of a new domain alone would make it forget the old one. Norms whose names
    begin with one of `but` are left alone.
    """
    for name, module in network.named_modules():
        norm = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if norm and not name.startswith(tuple(but)):
            module.eval()


def create_ema(network: StereoNetwork, device: torch.device) -> StereoNetwork:
    """A frozen copy of the network that will follow it."""
    ema = copy.deepcopy(network).to(device)
    ema.requires_grad_(False)
    return ema.eval()


@torch.no_grad()
def update_ema(ema: nn.Module, network: nn.Module, decay: float, step: int) -> None:
    """ema += (1 - decay) * (network - ema), with a shorter memory while the run is young."""
    decay = min(decay, (1.0 + step) / (10.0 + step))
    theirs = network.state_dict()
    floating = [(v, theirs[k]) for k, v in ema.state_dict().items() if v.is_floating_point()]
    torch._foreach_lerp_([a for a, _ in floating], [b for _, b in floating], 1.0 - decay)
    for key, value in ema.state_dict().items():
        if not value.is_floating_point():
            value.copy_(theirs[key])


@torch.no_grad()
def predict(network: StereoNetwork, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Disparity (H, W) of one uint8 RGB pair of any size, padded as the export pads."""
    device = next(network.parameters()).device
    pair = [
        torch.from_numpy(np.ascontiguousarray(image))[None].to(device) for image in (left, right)
    ]
    return ContractModel(network).eval()(*pair)[0][0].float().cpu().numpy()


def save_atomically(path: Path, state: dict[str, Any]) -> None:
    """`torch.save` that a kill cannot leave half done."""
    partial = path.with_suffix(f'.{os.getpid()}.part')
    torch.save(state, partial)
    os.replace(partial, path)


def _write_atomically(path: Path, content: bytes) -> None:
    partial = path.with_suffix(f'.{os.getpid()}.part')
    partial.write_bytes(content)
    os.replace(partial, path)


def read_checkpoint(path: Path | str) -> dict[str, Any]:
    """A checkpoint of this trainer, loaded without unpickling code.

    Raises:
        TrainingError: there is none, or the file is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainingError(
            f'there is no checkpoint {path}; give a run folder of `stereo-kd-train train`, or the '
            'checkpoint.pt in it'
        )
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch raises whatever its unpickler meets
        raise TrainingError(f'{path} is not a checkpoint that can be loaded: {error}') from error
    if not isinstance(state, dict) or not {'configuration', 'network', 'ema'} <= set(state):
        raise TrainingError(
            f'{path} is a torch file but no checkpoint of this trainer '
            '(it lacks configuration, network or ema)'
        )
    return state


def load_network(path: Path | str, ema: bool = True) -> StereoNetwork:
    """The network of a checkpoint or run folder, rebuilt from its configuration, in eval mode."""
    path = Path(path)
    state = read_checkpoint(path / 'checkpoint.pt' if path.is_dir() else path)
    configuration = state['configuration']
    network = build(configuration)
    network.load_state_dict(state['ema' if ema else 'network'])
    return network.eval()


def load_weights(network: StereoNetwork, path: Path | str) -> None:
    """Start `network` from the EMA weights of another run, or from a shipped ONNX file.

    Some networks may start from another of their family, see `StereoNetwork.fitted`. Where the
    other was pruned, `network` loses the same channels first.

    Raises:
        TrainingError: the weights belong to another network.
    """
    path = Path(path)
    if path.suffix == '.onnx':
        from stereo_kd_training.networks.shipped import load_shipped

        shipped = load_shipped(path)
        configuration, weights = shipped.configuration, shipped.state_dict()
    else:
        state = read_checkpoint(path / 'checkpoint.pt' if path.is_dir() else path)
        configuration, weights = state['configuration'], state['ema']
    widths = configuration.get('widths')
    try:
        if widths and not network.configuration.get('widths'):
            widths = network.followed(widths)
            apply_widths(network, widths)
            network.configuration['widths'] = dict(widths)
        network.load_state_dict(network.fitted(weights))
    except (RuntimeError, NetworkError) as error:
        raise TrainingError(f'{path} does not fit this network: {error}') from error


def between(start: StereoNetwork, trained: StereoNetwork, share: float) -> StereoNetwork:
    """A new network in eval mode whose weights lie between those of two.

    Args:
        start, trained: one network before and after training.
        share: of the way from the one (0) to the other (1); half of it is their mean.

    Raises:
        TrainingError: they differ in more than their weights.
    """
    network = copy.deepcopy(trained)
    weights, first = network.state_dict(), start.state_dict()
    other = [k for k, v in first.items() if k not in weights or weights[k].shape != v.shape]
    if other or len(first) != len(weights):
        raise TrainingError(
            'there is nothing between two networks that differ in more than their weights'
            + (f', as in {other[0]}' if other else '')
        )
    for key, value in first.items():
        if value.is_floating_point():
            weights[key].lerp_(value, 1 - share)
    return network.eval()


def _catch_signals(trainer: Trainer) -> dict[int, Any]:
    """Ask for a checkpoint and a clean end on the first SIGINT or SIGTERM."""

    def stop(_number: int, _frame: Any) -> None:
        if trainer._stop_requested:
            raise KeyboardInterrupt
        trainer._stop_requested = True

    try:
        return {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread: whoever runs us handles signals
        return {}


class ConcatenatedPairs:
    """Several pair sources as one; `split` keeps the last pairs of the first for measuring."""

    def __init__(self, sources: Sequence[PairSource], indices: range | None = None) -> None:
        self._sources = list(sources)
        self._ends = np.cumsum([len(source) for source in self._sources])
        total = int(self._ends[-1]) if self._sources else 0
        self._indices = indices if indices is not None else range(total)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Pair:
        position = self._indices[index]
        which = int(np.searchsorted(self._ends, position, side='right'))
        start = int(self._ends[which - 1]) if which else 0
        return self._sources[which][position - start]

    def split(self, holdout: int) -> tuple[ConcatenatedPairs, ConcatenatedPairs]:
        """All but the last `holdout` pairs, and those.

        Raises:
            TrainingError: nothing would be left to learn from.
        """
        count = len(self)
        if holdout >= count:
            raise TrainingError(
                f'{count} pairs cannot spare {holdout} for measuring; generate more, or '
                'measure on fewer (--holdout)'
            )
        return (
            ConcatenatedPairs(self._sources, self._indices[: count - holdout]),
            ConcatenatedPairs(self._sources, self._indices[count - holdout :]),
        )
