# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Losses of stereo distillation, each named after its source, with the equation.

Conventions shared by all of them:

* Disparities are (B, H, W) in pixels of the input image, `valid` is a boolean mask of the
  same shape (None means everywhere). A non-finite target is never valid.
* `logits` are (B, D, h, w) matching scores, higher is better, one per disparity hypothesis;
  `hypotheses` (D,) says which disparity, in input pixels, each channel stands for. A network
  that produces costs negates them first (`scores_from`).
* Every loss is a mean over the valid pixels of the whole batch. No valid pixel gives 0 that is
  still attached to the graph, never NaN. Arithmetic is float32 whatever autocast chose.

Sources: DTPnet (Distill-then-prune), Compact StereoNet (IEEE Access, equations 2 to 8),
DSNet (Distilling Stereo Networks for Performant and Efficient Leaner Networks).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class LossError(ValueError):
    """Tensors that a loss cannot compare, or a setting it does not know."""


def masked_mean(values: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean of `values` where `valid`; 0 with a (zero) gradient when nothing is valid."""
    if valid is None:
        return values.mean()
    valid = valid.to(values.dtype)
    return (values * valid).sum() / valid.sum().clamp(min=1.0)


def target_and_mask(target: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """`target` as float32 without its invalid values (set to 0), and the mask of the rest."""
    finite = torch.isfinite(target)
    valid = finite if valid is None else valid.bool() & finite
    # Zeroed, not only masked: a masked NaN still turns the gradient into NaN.
    return torch.where(valid, target, torch.zeros_like(target)).float(), valid


def _same_shape(what: str, first: Tensor, second: Tensor) -> None:
    if first.shape != second.shape:
        raise LossError(
            f'{what}: shapes {tuple(first.shape)} and {tuple(second.shape)} differ; '
            'bring both to the same grid first'
        )


def downsample_disparity(
    disparity: Tensor, valid: Tensor | None, factors: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """(B, H, W) truth on the grid of a volume of `factors` (height, width), still in input pixels.

    Each cell takes the median of its valid pixels: sparse truth stays usable, and no value
    is invented between the two surfaces that meet inside a cell.

    Returns:
        disparity (B, H/fy, W/fx) and its mask.
    """
    disparity, valid = target_and_mask(disparity, valid)
    batch, height, width = disparity.shape
    down, across = factors
    if height % down or width % across:
        raise LossError(f'{height}x{width} is not a multiple of the cells, {down}x{across}')
    if factors == (1, 1):
        return disparity, valid
    missing = torch.where(valid, disparity, torch.full_like(disparity, torch.nan))
    cells = missing.view(batch, height // down, down, width // across, across)
    median = cells.transpose(2, 3).flatten(3).nanmedian(dim=3).values
    return target_and_mask(median, None)


def two_hot_cross_entropy(
    logits: Tensor, hypotheses: Tensor, disparity: Tensor, valid: Tensor | None = None
) -> Tensor:
    """Cross-entropy against the two hypotheses that enclose the true disparity.

    A truth d between h_i and h_(i+1) has the target w at i+1 and 1 - w at i, with
    w = (d - h_i) / (h_(i+1) - h_i), whose expectation is d itself. As the target sums to 1,

        L = logsumexp(z) - (1 - w) z_i - w z_(i+1),

    so two scores are gathered and no (B, D, h, w) target is ever made.

    Args:
        logits: (B, D, h, w).
        hypotheses: (D,) px, increasing or decreasing.
        disparity: (B, h, w) px. Beyond the outer hypotheses it counts as invalid.
        valid: (B, h, w).
    """
    if logits.shape[1] != hypotheses.numel() or hypotheses.numel() < 2:
        raise LossError(
            f'{logits.shape[1]} score channels against {hypotheses.numel()} hypotheses; '
            'they must be the same number, 2 or more'
        )
    _same_shape('two_hot_cross_entropy', logits[:, 0], disparity)
    hypotheses, order = hypotheses.to(device=logits.device, dtype=torch.float32).sort()
    target, valid = target_and_mask(disparity, valid)
    valid = valid & (target >= hypotheses[0]) & (target <= hypotheses[-1])
    lower = torch.bucketize(target, hypotheses, right=True) - 1
    lower = lower.clamp(0, hypotheses.numel() - 2)
    start, end = hypotheses[lower], hypotheses[lower + 1]
    weight = ((target - start) / (end - start)).clamp(0.0, 1.0)

    logits = logits.float()
    enclosing = logits.gather(1, torch.stack((order[lower], order[lower + 1]), dim=1))
    expected = enclosing[:, 0] * (1.0 - weight) + enclosing[:, 1] * weight
    return masked_mean(logits.logsumexp(dim=1) - expected, valid)


def smooth_l1_disparity(
    pred: Tensor, truth: Tensor, valid: Tensor | None = None, beta_px: float = 1.0
) -> Tensor:
    """Smooth L1 of two disparity maps (B, H, W), Compact Eq. 2:

    0.5 x^2 / beta if |x| < beta, |x| - 0.5 beta otherwise.
    """
    _same_shape('smooth_l1_disparity', pred, truth)
    truth, valid = target_and_mask(truth, valid)
    return masked_mean(
        F.smooth_l1_loss(pred.float(), truth, reduction='none', beta=beta_px), valid
    )


# Volumes of different networks, made comparable


def scores_from(volume: Tensor, convention: str) -> Tensor:
    """Matching scores, higher is better, from a volume of either sign.

    GwcNet, PSMNet and ACVNet regress softmax(+volume) ('score'); AnyNet and Compact StereoNet
    regress softmax(-volume) ('cost'). Comparing one with the other unsigned teaches a student
    the worst match.
    """
    if convention == 'score':
        return volume
    if convention == 'cost':
        return -volume
    raise LossError(f"volume convention {convention!r} is neither 'score' nor 'cost'")


def resample_logits(
    logits: Tensor, hypotheses: Tensor, to_hypotheses: Tensor, size: tuple[int, int]
) -> Tensor:
    """(B, D, h, w) scores read at other hypotheses and another (height, width).

    Compact StereoNet upsamples the student's volume to the teacher's grid; here the disparity
    axis is interpolated at the true positions of the hypotheses (a plain resize with
    half-pixel centres would shift every hypothesis), the image axes bilinearly. Hypotheses
    outside the given range take the nearest end.
    """
    if hypotheses.numel() != logits.shape[1]:
        raise LossError(f'{logits.shape[1]} score channels, {hypotheses.numel()} hypotheses')
    given = hypotheses.to(logits.device, torch.float32)
    wanted = to_hypotheses.to(logits.device, torch.float32)
    logits = logits.float()
    if not torch.equal(given, wanted):
        hypotheses, order = given.sort()
        lower = (torch.bucketize(wanted, hypotheses, right=True) - 1).clamp(
            0, max(hypotheses.numel() - 2, 0)
        )
        upper = (lower + 1).clamp(max=hypotheses.numel() - 1)
        gap = (hypotheses[upper] - hypotheses[lower]).clamp(min=1e-6)
        weight = ((wanted - hypotheses[lower]) / gap).clamp(0.0, 1.0).view(1, -1, 1, 1)
        low, high = logits[:, order[lower]], logits[:, order[upper]]
        logits = low * (1.0 - weight) + high * weight
    if logits.shape[2:] != torch.Size(size):
        logits = F.interpolate(logits, size=size, mode='bilinear', align_corners=False)
    return logits


# Distill-then-prune (DTPnet)

SIGNALS = ('ground_truth', 'both', 'teacher')


def signal_weights(signal: str) -> tuple[float, float]:
    """Weights (ground truth, teacher) of DTP's three supervision signals (its Table V)."""
    if signal not in SIGNALS:
        raise LossError(f'unknown signal {signal!r}; one of {", ".join(SIGNALS)}')
    return (0.0 if signal == 'teacher' else 1.0, 0.0 if signal == 'ground_truth' else 1.0)


def dtp_temperature(progress: float, start: float = 0.5, end: float = 1.0) -> float:
    """DTP's temperature, linear from `start` to `end` as `progress` goes from 0 to 1.

    Below 1 it sharpens: the student first learns where the teacher's peak is, then its shape.
    """
    return start + (end - start) * min(max(progress, 0.0), 1.0)


def dtp_l1(
    student_logits: Tensor,
    teacher_logits: Tensor,
    valid: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """DTP Eq. 4: L1 between the softened distributions, mean over pixels,

    L = sum_(i <= d_max) |softmax(p / t)_i - softmax(q / t)_i|,

    which is twice the total variation distance: between 0 and 2.
    """
    _same_shape('dtp_l1', student_logits, teacher_logits)
    student = (student_logits.float() / temperature).softmax(dim=1)
    teacher = (teacher_logits.detach().float() / temperature).softmax(dim=1)
    return masked_mean((student - teacher).abs().sum(dim=1), valid)


def dtp_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    valid: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """The KL variant of DTP's Table VI: sum_i q_i (log q_i - log p_i), q the teacher's.

    Not multiplied by t^2 as Hinton's, for the table changes nothing but the distance.
    """
    _same_shape('dtp_kl', student_logits, teacher_logits)
    student = (student_logits.float() / temperature).log_softmax(dim=1)
    teacher = (teacher_logits.detach().float() / temperature).log_softmax(dim=1)
    return masked_mean((teacher.exp() * (teacher - student)).sum(dim=1), valid)


# Compact StereoNet


def adaptive_weights_min_max(errors_px: Tensor) -> Tensor:
    """Compact Eq. 5 as printed: K_j = 1 - (E_j - min E) / (max E - min E).

    Args:
        errors_px: (N,) EPE of the teacher on each sample of the whole training set.

    Returns:
        (N,) in [0, 1]. Equal errors give 1, for none is worse than another.
    """
    return _linear_trust(errors_px, errors_px.min(), errors_px.max())


def adaptive_weights_percentile(
    errors_px: Tensor, low: float = 0.05, high: float = 0.95
) -> Tensor:
    """Compact Eq. 5 between two quantiles instead of the extremes.

    One sample on which the teacher fails sets max E, and the printed form then gives nearly
    every other sample K = 1: no selection is left. Quantiles keep the scale of the many.
    """
    if not 0.0 <= low < high <= 1.0:
        raise LossError(f'quantiles must satisfy 0 <= low < high <= 1, got {low} and {high}')
    bounds = torch.quantile(errors_px.float(), torch.tensor([low, high], device=errors_px.device))
    return _linear_trust(errors_px, bounds[0], bounds[1])


def _linear_trust(errors_px: Tensor, best: Tensor, worst: Tensor) -> Tensor:
    if not torch.isfinite(errors_px).all():
        raise LossError('teacher errors hold NaN or infinite values; drop those samples first')
    errors = errors_px.float()
    span = worst.float() - best.float()
    if span <= 0:
        # Quantiles may coincide while outliers remain above them.
        return (errors <= worst).float()
    return (1.0 - (errors - best) / span).clamp(0.0, 1.0)


def adaptive_weights_confidence(confidence: Tensor, floor: float = 0.0) -> Tensor:
    """K per pixel from the teacher's own confidence (B, h, w), which needs no ground truth.

    Below `floor` a pixel teaches nothing; above it K rises linearly to 1.
    """
    if not 0.0 <= floor < 1.0:
        raise LossError(f'floor must be in [0, 1), got {floor}')
    confidence = torch.nan_to_num(confidence.detach().float(), nan=0.0)
    return ((confidence - floor) / (1.0 - floor)).clamp(0.0, 1.0)


def adaptive_smooth_l1(
    student_logits: Tensor,
    teacher_logits: Tensor,
    trust: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Compact Eq. 2 to 4: L_acvs = K_j / (H W D) sum_ij SmoothL1(a_t - a_s).

    Args:
        student_logits: (B, D, h, w) volume after the 3D convolutions.
        teacher_logits: the same shape.
        trust: K, (B,) per sample or (B, h, w) per pixel; None is L_cvs (Eq. 3).
        valid: (B, h, w).
    """
    _same_shape('adaptive_smooth_l1', student_logits, teacher_logits)
    distance = F.smooth_l1_loss(
        student_logits.float(), teacher_logits.detach().float(), reduction='none'
    )
    return _trusted_mean(distance, trust, valid)


def adaptive_l2(
    student_logits: Tensor,
    teacher_logits: Tensor,
    trust: Tensor | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """The squared distance of Compact's Fig. 12 in the place of `adaptive_smooth_l1`.

    The paper's point: it follows outliers.
    """
    _same_shape('adaptive_l2', student_logits, teacher_logits)
    distance = (student_logits.float() - teacher_logits.detach().float()).square()
    return _trusted_mean(distance, trust, valid)


def _trusted_mean(distance: Tensor, trust: Tensor | None, valid: Tensor | None) -> Tensor:
    """Mean of (B, D, h, w) where valid, each sample or pixel times its K."""
    distance = distance.mean(dim=1)
    if trust is not None:
        if trust.dim() == 1 and trust.shape[0] == distance.shape[0]:
            trust = trust.view(-1, 1, 1)
        elif trust.shape != distance.shape:
            raise LossError(
                f'trust must be {(distance.shape[0],)} or {tuple(distance.shape)}, '
                f'got {tuple(trust.shape)}'
            )
        # K scales the loss, it does not re-normalise it: a bad teacher must count less.
        distance = distance * trust.to(distance)
    return masked_mean(distance, valid)


def stereo_focal_cross_entropy(
    student_logits: Tensor,
    teacher_logits: Tensor,
    valid: Tensor | None = None,
    gamma: float = 2.0,
    floor: float = 0.05,
) -> Tensor:
    """Compact Eq. 6 with its misprint corrected:

        L_cvdf = 1/(HW) sum_pixels sum_d (1 - p_t(d))^(-gamma) (-p_t(d) log p_s(d)).

    The exponent is negative on purpose: the few hypotheses near the true disparity must not
    drown among the many of probability 0. 1 - p_t is clamped at `floor`, as a certain teacher
    would give an infinite weight. gamma = 0 is the plain cross-entropy of the paper's Fig. 12;
    gamma = 5 is DSNet's FocalLoss.
    """
    _same_shape('stereo_focal_cross_entropy', student_logits, teacher_logits)
    teacher = teacher_logits.detach().float().softmax(dim=1)
    weight = (1.0 - teacher).clamp(min=floor) ** -gamma
    student = student_logits.float().log_softmax(dim=1)
    return masked_mean(-(weight * teacher * student).sum(dim=1), valid)


def stereo_focal_as_printed(
    student_logits: Tensor,
    teacher_logits: Tensor,
    valid: Tensor | None = None,
    gamma: float = 2.0,
    floor: float = 0.05,
) -> Tensor:
    """Compact Eq. 6 letter by letter: (1 - p_s)^(-gamma) (-p_t log p_t).

    Kept to show that it cannot be what was trained: the student appears in the modulating
    factor alone. With that factor held constant, as focal losses hold it, no gradient reaches
    the student; without, it moves p_s to wherever -p_t log p_t is small, which includes every
    hypothesis that the teacher rules out.
    """
    _same_shape('stereo_focal_as_printed', student_logits, teacher_logits)
    teacher = teacher_logits.detach().float().log_softmax(dim=1)
    student = student_logits.float().softmax(dim=1)
    weight = (1.0 - student).clamp(min=floor) ** -gamma
    return masked_mean(-(weight * teacher.exp() * teacher).sum(dim=1), valid)


COMPACT_STAGE_WEIGHTS = (0.5, 0.5, 1.0, 1.0)


def multi_stage_smooth_l1(
    stages: tuple[Tensor, ...],
    truth: Tensor,
    valid: Tensor | None = None,
    weights: tuple[float, ...] = COMPACT_STAGE_WEIGHTS,
) -> Tensor:
    """Compact Eq. 8: sum_i lambda_i SmoothL1(d* - d_i), lambda = 0.5, 0.5, 1, 1.

    A weight of 0 leaves its stage out (SPN refinement is off for the first epochs).
    """
    if len(stages) != len(weights):
        raise LossError(f'{len(stages)} stages but {len(weights)} weights')
    terms = [
        weight * smooth_l1_disparity(stage, truth, valid)
        for stage, weight in zip(stages, weights, strict=True)
        if weight
    ]
    if not terms:
        raise LossError('every stage weight is 0: nothing to train')
    return torch.stack(terms).sum()


# DSNet

DSNET_STAGE_WEIGHTS = (0.5, 0.7, 1.0)
DSNET_SOFT_WEIGHTS = (0.5, 1.0)


def log_l1_v2(pred: Tensor, truth: Tensor, valid: Tensor | None = None) -> Tensor:
    """DSNet's LogL1_v2: mean log(|e| + 0.5), steep near 0 and flat for outliers.

    Negative below half a pixel; its smallest value is log 0.5.
    """
    _same_shape('log_l1_v2', pred, truth)
    truth, valid = target_and_mask(truth, valid)
    return masked_mean(((pred.float() - truth).abs() + 0.5).log(), valid)


def multi_stage_log_l1(
    stages: tuple[Tensor, ...],
    truth: Tensor,
    valid: Tensor | None = None,
    weights: tuple[float, ...] = DSNET_STAGE_WEIGHTS,
) -> Tensor:
    """DSNet's supervision of its heads: weights 0.5, 0.7, 1, coarse to fine."""
    if len(stages) != len(weights):
        raise LossError(f'{len(stages)} stages but {len(weights)} weights')
    return torch.stack(
        [w * log_l1_v2(stage, truth, valid) for stage, w in zip(stages, weights, strict=True)]
    ).sum()


def cosine_distillation(student: Tensor, teacher: Tensor, valid: Tensor | None = None) -> Tensor:
    """DSNet's feature and volume term: mean of 1 - cos over the channels of two maps.

    Args:
        student: (B, C, ...): a feature map (B, C, h, w) or a volume (B, C, D, h, w).
        teacher: the same shape.
        valid: (B, ...), without the channel axis.
    """
    _same_shape('cosine_distillation', student, teacher)
    similarity = F.cosine_similarity(student.float(), teacher.detach().float(), dim=1, eps=1e-6)
    return masked_mean(1.0 - similarity, valid)


def soft_cross_entropy(
    student_logits: Tensor, teacher_logits: Tensor, valid: Tensor | None = None
) -> Tensor:
    """DSNet's soft term: -sum_d softmax(T)_d log softmax(S)_d, mean over pixels.

    The public code divides by W H only, so its weight grows with the batch; this is also
    divided by the batch.
    """
    _same_shape('soft_cross_entropy', student_logits, teacher_logits)
    teacher = teacher_logits.detach().float().softmax(dim=1)
    student = student_logits.float().log_softmax(dim=1)
    return masked_mean(-(teacher * student).sum(dim=1), valid)


def teacher_smooth_l1(
    pred: Tensor, teacher_disparity: Tensor, valid: Tensor | None = None
) -> Tensor:
    """DSNet's teacher-pixel term: smooth L1 to the teacher's disparity, last output only."""
    return smooth_l1_disparity(pred, teacher_disparity.detach(), valid)


def dsnet_weights(epoch: int) -> dict[str, float]:
    """Weights of DSNet's joint loss at `epoch` (from 0).

    1 ground truth + 1 features + 0.2 soft + 0.1 teacher pixels; the feature and soft weights
    are divided by 10 at epochs 1, 2 and 4.
    """
    fade = 0.1 ** sum(epoch >= drop for drop in (1, 2, 4))
    return {
        'ground_truth': 1.0,
        'features': 1.0 * fade,
        'soft': 0.2 * fade,
        'teacher_pixels': 0.1,
    }
