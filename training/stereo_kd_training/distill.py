# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From a teacher's answer to a student's loss: the objectives of the three papers.

A `BatchTeacher` answers the very crops that the student sees, either with a network in memory
or with answers that were stored and cropped along with the pairs. An `Objective` is what the
trainer calls for its loss: (output, batch, step) to the loss and its named terms.

    dtp       Eq. 4 on softened distributions, temperature 0.5 -> 1         (Distill-then-prune)
    compact   0.2 K ASL on volumes + 0.3 stereo-focal + multi-stage         (Compact StereoNet)
    dsnet     log-L1 + cosine at its points + soft CE + teacher pixels      (DSNet)

A teacher with another range, step or resolution of hypotheses is brought to the student's, or
to its own finer grid where the paper says so; one without a distribution is given one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from stereo_kd_training import losses
from stereo_kd_training.distributions import laplace_distribution, rebin
from stereo_kd_training.networks import StereoNetwork, StereoOutput
from stereo_kd_training.networks.blocks import coarse_hypotheses
from stereo_kd_training.train import Batch, LossWeights, supervised_loss


class DistillError(ValueError):
    """A teacher and a student that an objective cannot bring together."""


# The maps at which DSNet compares teacher and student, and their weights.
DSNET_POINTS = {
    'early1_left': 1.0,
    'early1_right': 1.0,
    'early2_left': 1.0,
    'early2_right': 1.0,
    'volume': 5.0,
}


class Distillation(BaseModel):
    """Which loss, and its settings; the defaults are the papers'.

    Attributes:
        method: 'dtp', 'compact' or 'dsnet'.
        signal: DTP's Table V: 'ground_truth', 'both' or 'teacher'.
        ground_truth: 'smooth_l1' on every stage, or 'supervised': all terms that train a
            student without a teacher.
        distance: DTP's Table VI: 'l1' (Eq. 4) or 'kl'.
        temperature: DTP's, at the first and at the last step.
        laplace_scale_px: width of the distribution given to a teacher that has none.
        teacher_weight: of the teacher's terms together.
        teacher_pixels: weight of smooth L1 to the teacher's disparity, for what no
            distribution reaches (an upsampling, an SPN); DSNet has its own.
        trust: Compact's K: 'none', 'min_max' (Eq. 5), 'percentile' (Eq. 5 between the 5th and
            95th percentile) or 'confidence' (per pixel, without truth).
        trust_bounds_px: teacher EPE at which K is 1 and 0; a recipe measures it.
        volume_weight, focal_weight, gamma: Compact's lambda_d1, lambda_d2 and exponent.
        volume_distance: between volumes, 'smooth_l1' (Eq. 2) or 'l2' (its Fig. 12).
        stage_weights: of the stages, coarse to fine; the paper's for their number otherwise.
        steps_per_epoch: epochs drive DSNet's weights.
    """

    model_config = ConfigDict(extra='forbid')

    method: Literal['dtp', 'compact', 'dsnet'] = 'dtp'
    signal: Literal['ground_truth', 'both', 'teacher'] = 'teacher'
    ground_truth: Literal['smooth_l1', 'supervised'] = 'smooth_l1'
    distance: Literal['l1', 'kl'] = 'l1'
    temperature: tuple[float, float] = (0.5, 1.0)
    laplace_scale_px: float = Field(1.0, gt=0)
    teacher_weight: float = Field(1.0, ge=0)
    teacher_pixels: float = Field(0.0, ge=0)
    trust: Literal['none', 'min_max', 'percentile', 'confidence'] = 'none'
    trust_bounds_px: tuple[float, float] | None = None
    volume_weight: float = Field(0.2, ge=0)
    focal_weight: float = Field(0.3, ge=0)
    gamma: float = Field(2.0, ge=0)
    volume_distance: Literal['smooth_l1', 'l2'] = 'smooth_l1'
    stage_weights: list[float] | None = None
    steps_per_epoch: int = Field(1000, ge=1)

    @property
    def needs_bounds(self) -> bool:
        """Whether K depends on the teacher's errors on the whole training set."""
        return self.trust in ('min_max', 'percentile')


@dataclass(frozen=True)
class TeacherAnswer:
    """What a teacher says of one batch.

    Attributes:
        disparity: (B, H, W) px, NaN unknown.
        confidence: (B, H, W) in [0, 1], or None.
        logits: (B, D, h, w) scores, higher is better, or None.
        hypotheses: (D,) px of the scores.
        volume: (B, d, h', w') scores before they are upsampled, or None.
        volume_hypotheses: (d,) px.
        features: maps by name that feature losses may compare.
        up_to_a_constant: the volume was made of probabilities, so each pixel's scores are
            known but for a constant.
    """

    disparity: Tensor
    confidence: Tensor | None = None
    logits: Tensor | None = None
    hypotheses: Tensor | None = None
    volume: Tensor | None = None
    volume_hypotheses: Tensor | None = None
    features: dict[str, Tensor] = field(default_factory=dict)
    up_to_a_constant: bool = False


class BatchTeacher(Protocol):
    """Answers a batch; never trained."""

    def __call__(self, batch: Batch) -> TeacherAnswer: ...


class NetworkTeacher:
    """A network in memory, asked about each batch as the student sees it, colours and all.

    Args:
        network: put in eval mode, and never trained.
        precision: of its arithmetic, as the trainer's: 'no', 'bf16' or 'fp16'.
    """

    def __init__(self, network: StereoNetwork, precision: str = 'no') -> None:
        self.network = network.eval().requires_grad_(False)
        self.dtype = {'bf16': torch.bfloat16, 'fp16': torch.float16}.get(precision)

    @torch.no_grad()
    def __call__(self, batch: Batch) -> TeacherAnswer:
        network = self.network.to(batch.left.device)
        height, width = batch.left.shape[-2:]
        down, across = network.strides
        pad = (0, -width % across, 0, -height % down)
        images = [
            network.normalize(F.pad(image.float(), pad, mode='replicate'))
            for image in (batch.left, batch.right)
        ]
        with torch.autocast(batch.left.device.type, self.dtype, enabled=self.dtype is not None):
            output = network(*images)
        logits, hypotheses = finest_distribution(output)
        volume, volume_hypotheses = logits, hypotheses
        scores = output.features.get('scores')
        if logits is not None and scores is not None and scores.shape[1] < logits.shape[1]:
            disparities = round(network.max_disparity_px)
            aligned = getattr(network, 'align_corners', False)
            volume = scores
            volume_hypotheses = coarse_hypotheses(scores.unsqueeze(1), disparities, aligned)
        if any(pad):
            output.disparity = output.disparity[:, :height, :width]
            if output.confidence is not None:
                output.confidence = output.confidence[:, :height, :width]
            logits = _without_padding(logits, height, width, images[0].shape[-2:])
            volume = _without_padding(volume, height, width, images[0].shape[-2:])
        return TeacherAnswer(
            output.disparity,
            output.confidence,
            logits,
            hypotheses,
            volume,
            volume_hypotheses,
            output.features,
        )


class StoredTeacher:
    """Answers that were computed before and came along with the pairs.

    They are those to the whole pairs, without the colours and the crop of the batch.
    """

    def __call__(self, batch: Batch) -> TeacherAnswer:
        if batch.teacher_disparity is None:
            raise DistillError(
                'the pairs carry no teacher answers; fill the cache, or give a teacher network'
            )
        disparity, confidence = batch.teacher_disparity, batch.teacher_confidence
        if batch.teacher_indices is None:
            return TeacherAnswer(disparity, confidence)
        probabilities, hypotheses = stored_distribution(batch)
        scores = as_logits(probabilities)
        return TeacherAnswer(
            disparity,
            confidence,
            logits=scores,
            hypotheses=hypotheses,
            volume=scores,
            volume_hypotheses=hypotheses,
            up_to_a_constant=True,
        )


def stored_distribution(batch: Batch) -> tuple[Tensor, Tensor]:
    """All of the distributions of which a batch carries the most probable values.

    What the K leave over is spread evenly on the other hypotheses, as `TopK.dense` does. A
    pair that was magnified has magnified hypotheses; it is brought to the common ones.

    Returns:
        probabilities (B, D, h, w) float32 and hypotheses (D,) px.
    """
    hypotheses = batch.teacher_hypotheses
    kept = batch.teacher_probabilities.float()
    count = hypotheses.shape[1]
    total = kept.sum(1, keepdim=True)
    kept = kept / total.clamp(min=1.0)
    rest = (1.0 - total).clamp(min=0.0) / max(count - kept.shape[1], 1)
    full = rest.repeat(1, count, 1, 1).scatter(1, batch.teacher_indices.long(), kept)
    full = full / full.sum(1, keepdim=True)
    # Hypotheses differ by the magnification alone; the largest range holds all of the mass.
    common = hypotheses[hypotheses.amax(1).argmax()]
    return torch.cat([rebin(p[None], own, common) for p, own in zip(full, hypotheses)]), common


def finest_distribution(output: StereoOutput) -> tuple[Tensor | None, Tensor | None]:
    """Scores (B, D, h, w) and hypotheses (D,) of the last stage that has them."""
    for logits, hypotheses in zip(reversed(output.logits), reversed(output.hypotheses)):
        if logits is not None:
            return logits, hypotheses
    return None, None


def _without_padding(
    scores: Tensor | None, height: int, width: int, padded: torch.Size
) -> Tensor | None:
    if scores is None:
        return None
    down, across = (size // cells for size, cells in zip(padded, scores.shape[-2:]))
    return scores[..., : -(-height // down), : -(-width // across)]


def teacher_distribution(
    answer: TeacherAnswer,
    hypotheses: Tensor,
    size: tuple[int, int],
    laplace_scale_px: float = 1.0,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """The teacher's softened distribution on a student's hypotheses and (height, width).

    Softening comes first, on the teacher's own grid. A finer map is averaged over the cells of
    the student's; averaging and re-binning keep the mass.

    Returns:
        probabilities (B, D, h, w) and where they are known (B, h, w).
    """
    if answer.logits is None:
        down, across = (
            pixels // cells for pixels, cells in zip(answer.disparity.shape[-2:], size)
        )
        coarse, known = losses.downsample_disparity(answer.disparity, None, (down, across))
        coarse = torch.where(known, coarse, torch.full_like(coarse, torch.nan))
        # A Laplace density raised to 1/t is one of t times the width.
        spread = laplace_distribution(coarse, hypotheses, laplace_scale_px * temperature)
        return spread, known
    probabilities = (answer.logits.float() / temperature).softmax(dim=1)
    # Each axis for itself: cells need not be square, and those of the two may differ in one only.
    averaged = tuple(min(has, wanted) for has, wanted in zip(probabilities.shape[-2:], size))
    if averaged != tuple(probabilities.shape[-2:]):
        probabilities = F.adaptive_avg_pool2d(probabilities, averaged)
    if averaged != tuple(size):
        probabilities = F.interpolate(probabilities, size, mode='bilinear', align_corners=False)
    probabilities = rebin(probabilities, answer.hypotheses, hypotheses)
    known = torch.ones_like(probabilities[:, 0], dtype=torch.bool)
    return probabilities, known


def as_logits(probabilities: Tensor) -> Tensor:
    """Scores whose softmax is `probabilities`, those below 1e-8 raised to it."""
    return probabilities.clamp(min=1e-8).log()


def sample_trust(
    teacher_disparity: Tensor, truth: Tensor, valid: Tensor, bounds_px: tuple[float, float]
) -> Tensor:
    """Compact Eq. 5 for the samples of a batch: (B,) K from each one's own teacher EPE.

    Args:
        teacher_disparity, truth: (B, H, W) px.
        valid: (B, H, W).
        bounds_px: EPE at which K is 1 and at which it is 0, from the whole training set.
    """
    best, worst = bounds_px
    valid = valid & torch.isfinite(teacher_disparity)
    error = torch.where(valid, (teacher_disparity - truth).abs(), torch.zeros_like(truth))
    epe = error.flatten(1).sum(1) / valid.flatten(1).sum(1).clamp(min=1)
    trust = 1.0 - (epe - best) / max(worst - best, 1e-6)
    # Without truth nothing speaks against the teacher.
    return torch.where(valid.flatten(1).any(1), trust.clamp(0.0, 1.0), torch.ones_like(trust))


class Objective:
    """The loss of a distillation run.

    Args:
        settings: which loss.
        teacher: its source; may be None for the signal 'ground_truth'.
        steps: of the run, over which the temperature rises.
        supervised: weights of the terms of `ground_truth: supervised`.

    Raises:
        DistillError: a teacher is needed and absent, or K is asked for without its bounds.
    """

    def __init__(
        self,
        settings: Distillation,
        teacher: BatchTeacher | None,
        steps: int,
        supervised: LossWeights | None = None,
    ) -> None:
        self.settings = settings
        self.teacher = teacher
        self.steps = steps
        self.supervised = supervised or LossWeights()
        self.truth_weight, self.teacher_weight = losses.signal_weights(settings.signal)
        self.teacher_weight *= settings.teacher_weight
        if self.teacher_weight and teacher is None:
            raise DistillError(f'signal {settings.signal!r} needs a teacher')
        if settings.needs_bounds and settings.trust_bounds_px is None:
            raise DistillError(
                f'trust {settings.trust!r} needs trust_bounds_px: [best, worst] in px'
            )

    def __call__(
        self, output: StereoOutput, batch: Batch, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        terms: dict[str, Tensor] = {}
        total = output.disparity.new_zeros((), dtype=torch.float32)
        truth, valid = losses.target_and_mask(batch.disparity, batch.disparity >= 0)
        if self.truth_weight:
            weight, names = self._truth_terms(output, batch.disparity, truth, valid, step)
            terms.update(names)
            total = total + self.truth_weight * weight
        if self.teacher_weight and self.teacher is not None:
            answer = self.teacher(batch)
            method = getattr(self, f'_{self.settings.method}')
            named = method(output, answer, truth, valid, step)
            if self.settings.teacher_pixels and self.settings.method != 'dsnet':
                pixels = losses.teacher_smooth_l1(output.disparity, answer.disparity)
                named['teacher_pixels'] = (self.settings.teacher_pixels, pixels)
            for name, (weight, value) in named.items():
                terms[name] = value
                total = total + self.teacher_weight * weight * value
        return total, terms

    def _truth_terms(
        self, output: StereoOutput, raw: Tensor, truth: Tensor, valid: Tensor, step: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        if self.settings.ground_truth == 'supervised':
            return supervised_loss(output, raw, self.supervised)
        weights = self._stage_weights(len(output.stages))
        if self.settings.method == 'dsnet':
            value = losses.multi_stage_log_l1(output.stages, truth, valid, weights)
        else:
            value = losses.multi_stage_smooth_l1(output.stages, truth, valid, weights)
        return value, {'ground_truth': value}

    def _stage_weights(self, count: int) -> tuple[float, ...]:
        """Given ones, or the paper's last `count`; a single stage weighs 1."""
        if self.settings.stage_weights is not None:
            return tuple(self.settings.stage_weights)
        paper = (
            losses.DSNET_STAGE_WEIGHTS
            if self.settings.method == 'dsnet'
            else losses.COMPACT_STAGE_WEIGHTS
        )
        if count > len(paper):
            raise DistillError(f'the student has {count} stages; give stage_weights for them')
        return (*paper[: count - 1], 1.0)

    def _dtp(
        self, output: StereoOutput, answer: TeacherAnswer, truth: Tensor, valid: Tensor, step: int
    ) -> dict[str, tuple[float, Tensor]]:
        logits, hypotheses = self._student_distribution(output)
        progress = step / max(self.steps - 1, 1)
        temperature = losses.dtp_temperature(progress, *self.settings.temperature)
        teacher, known = teacher_distribution(
            answer,
            hypotheses,
            logits.shape[-2:],
            self.settings.laplace_scale_px,
            temperature,
        )
        # The teacher is softened already; its scores are scaled so that it stays so.
        target = temperature * as_logits(teacher)
        distance = losses.dtp_l1 if self.settings.distance == 'l1' else losses.dtp_kl
        value = distance(logits, target, known, temperature)
        return {f'dtp_{self.settings.distance}': (1.0, value)}

    def _compact(
        self, output: StereoOutput, answer: TeacherAnswer, truth: Tensor, valid: Tensor, step: int
    ) -> dict[str, tuple[float, Tensor]]:
        logits, hypotheses = self._student_distribution(output)
        if answer.volume is not None:
            # The student is brought to the teacher's finer grid, once, for the loss alone.
            size = answer.volume.shape[-2:]
            teacher = answer.volume.float()
            student = losses.resample_logits(
                logits, hypotheses, answer.volume_hypotheses, tuple(size)
            )
            if answer.up_to_a_constant:
                student = student.log_softmax(1)
            known = None
        else:
            probabilities, known = teacher_distribution(
                answer, hypotheses, logits.shape[-2:], self.settings.laplace_scale_px
            )
            teacher, student = as_logits(probabilities), logits
        squared = self.settings.volume_distance == 'l2'
        distance = losses.adaptive_l2 if squared else losses.adaptive_smooth_l1
        trust = self._trust(answer, truth, valid, teacher.shape)
        return {
            'volume': (
                self.settings.volume_weight,
                distance(student, teacher, trust, known),
            ),
            'focal': (
                self.settings.focal_weight,
                losses.stereo_focal_cross_entropy(
                    student, teacher, known, gamma=self.settings.gamma
                ),
            ),
        }

    def _trust(
        self, answer: TeacherAnswer, truth: Tensor, valid: Tensor, shape: torch.Size
    ) -> Tensor | None:
        if self.settings.needs_bounds:
            return sample_trust(answer.disparity, truth, valid, self.settings.trust_bounds_px)
        if self.settings.trust == 'confidence':
            if answer.confidence is None:
                raise DistillError("trust 'confidence' needs a teacher that has a confidence")
            coarse = F.adaptive_avg_pool2d(answer.confidence.unsqueeze(1), shape[-2:])
            return losses.adaptive_weights_confidence(coarse[:, 0])
        return None

    def _dsnet(
        self, output: StereoOutput, answer: TeacherAnswer, truth: Tensor, valid: Tensor, step: int
    ) -> dict[str, tuple[float, Tensor]]:
        weights = losses.dsnet_weights(step // self.settings.steps_per_epoch)
        # The paper masks by the truth; pairs without any are all the teacher's.
        judged = valid if valid.any() else None
        named = {
            'teacher_pixels': (
                weights['teacher_pixels'],
                losses.teacher_smooth_l1(output.disparity, answer.disparity, judged),
            )
        }
        distributions = [
            (logits, hypotheses)
            for logits, hypotheses in zip(output.logits, output.hypotheses)
            if logits is not None
        ][-len(losses.DSNET_SOFT_WEIGHTS) :]
        soft = []
        for weight, (logits, hypotheses) in zip(
            losses.DSNET_SOFT_WEIGHTS[-len(distributions) :], distributions
        ):
            teacher, known = teacher_distribution(
                answer, hypotheses, logits.shape[-2:], self.settings.laplace_scale_px
            )
            soft.append(weight * losses.soft_cross_entropy(logits, as_logits(teacher), known))
        if soft:
            named['soft'] = (weights['soft'], torch.stack(soft).sum())
        shared = [name for name in DSNET_POINTS if name in output.features]
        shared = [name for name in shared if name in answer.features]
        if shared:
            compared = [
                DSNET_POINTS[name]
                * losses.cosine_distillation(output.features[name], answer.features[name])
                for name in shared
                if output.features[name].shape == answer.features[name].shape
            ]
            if not compared:
                raise DistillError(
                    f'teacher and student share the points {", ".join(shared)} but not their '
                    'shapes; DSNet distils from ACVNet'
                )
            named['features'] = (weights['features'], torch.stack(compared).sum())
        return named

    @staticmethod
    def _student_distribution(output: StereoOutput) -> tuple[Tensor, Tensor]:
        logits, hypotheses = finest_distribution(output)
        if logits is None or hypotheses is None:
            raise DistillError(
                'the student has no distribution over disparities; use method dsnet without '
                'soft terms, or teacher_pixels alone'
            )
        return logits, hypotheses
