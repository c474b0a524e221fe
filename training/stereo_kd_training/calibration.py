# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Turn the confidence of a trained network into a probability, without touching its disparity.

The slope and offset of `networks.confidence` are fitted by logistic regression to whether each
pixel of generated pairs is right within max(1 px, 5 %): a convex problem, solved in seconds once
the pairs have been run. A share of the pairs is kept aside to say what it brought.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from stereo_kd_ros.metrics import sparsification_auc
from stereo_kd_ros.model import Manifest, read_manifest
from stereo_kd_training.joined import first_alone
from stereo_kd_training.networks import NetworkError, StereoNetwork, build
from stereo_kd_training.networks.confidence import RANGE_WEIGHT, ConfidenceCalibration

PIXELS_PER_PAIR = 2000
HELD_OUT = 0.25
RIGHT_PX, RIGHT_SHARE = 1.0, 0.05


class CalibrationError(RuntimeError):
    """A network or pool that cannot be calibrated with; the message says why."""


@dataclass(frozen=True)
class Reliability:
    """How good a confidence is on some pixels.

    Attributes:
        pixels: how many.
        right: share of pixels that are right.
        mean: mean confidence; the nearer to `right`, the more honest on the whole.
        calibration_error: mean gap between confidence and share of right pixels over ten bins of
            equal width, weighted by their pixels.
        ause: area to the oracle's sparsification curve in units of a confidence that says nothing.
    """

    pixels: int
    right: float
    mean: float
    calibration_error: float
    ause: float


@dataclass(frozen=True)
class Calibrated:
    """A network with a calibrated confidence, and what that changed on pairs held out."""

    network: StereoNetwork
    weights: dict[str, float]
    before: Reliability
    after: Reliability


@dataclass(frozen=True)
class _Pixels:
    """Some pixels: evidence, confidence as it was, error [px] and whether right, each (N,)."""

    evidence: Tensor
    before: Tensor
    error: Tensor
    right: Tensor


def right_within(error_px: Tensor, truth_px: Tensor) -> Tensor:
    """Whether an error is below max(1 px, 5 % of the truth)."""
    return error_px < (RIGHT_SHARE * truth_px).clamp(min=RIGHT_PX)


def reliability(confidence: np.ndarray, error_px: np.ndarray, right: np.ndarray) -> Reliability:
    """Judge a confidence (N,) by the errors (N,) [px] and by which pixels are right (N,)."""
    bins = np.clip((confidence * 10).astype(int), 0, 9)
    gap = 0.0
    for index in range(10):
        inside = bins == index
        if inside.any():
            gap += inside.mean() * abs(float(confidence[inside].mean() - right[inside].mean()))
    curves = sparsification_auc(error_px, confidence)
    span = curves.random - curves.oracle
    return Reliability(
        len(confidence),
        float(right.mean()),
        float(confidence.mean()),
        gap,
        curves.ause / span if span > 0 else math.nan,
    )


def with_calibration(network: StereoNetwork) -> StereoNetwork:
    """The same network, its confidence calibrated by numbers that are still to be fitted.

    Raises:
        CalibrationError: it is of a kind that has no such option.
    """
    options = {**network.configuration.get('options', {}), 'calibrated': True}
    options['calibrated_range'] = RANGE_WEIGHT
    configuration = {**network.configuration, 'options': options}
    try:
        calibrated = build(configuration)
    except NetworkError as error:
        raise CalibrationError(
            f'{type(network).__name__} has no confidence that could be calibrated: {error}'
        ) from error
    state = {**calibrated.state_dict(), **network.state_dict()}
    calibrated.load_state_dict(state)
    return calibrated.eval()


def calibrate(
    network: StereoNetwork,
    pairs: Sequence[Any],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Calibrated:
    """Fit a network's confidence on pairs with truth; its disparity stays as it is.

    Args:
        network: trained; calibrated anew where it was calibrated before.
        pairs: with `left`, `right` (H, W, 3) uint8 and `disparity` (H, W) px, NaN unknown.
        seed: of which pixels are taken.
        progress: called with pairs done and all pairs.

    Raises:
        CalibrationError: too few pairs, or no pixel is right, or none is wrong.
    """
    if len(pairs) < 4:
        raise CalibrationError(f'a calibration needs 4 pairs or more, got {len(pairs)}')
    before = network.eval()
    calibrated = with_calibration(network)
    generator = np.random.default_rng(seed)
    taken = []
    for index in range(len(pairs)):
        # Every fourth is judged by, so that both parts hold what a list of several pools holds.
        judges = index % round(1 / HELD_OUT) == 0
        taken.append(_pixels(before if judges else None, calibrated, pairs[index], generator))
        if progress is not None:
            progress(index + 1, len(pairs))
    every = round(1 / HELD_OUT)
    learn = _join([pixels for index, pixels in enumerate(taken) if index % every])
    judge = _join(taken[::every])
    if not 0 < float(learn.right.mean()) < 1:
        raise CalibrationError(
            f'of {len(learn.right)} pixels {int(learn.right.sum())} are right: nothing to tell '
            'apart; take other pairs or another network'
        )
    weights = _fit(learn)
    calibration: ConfidenceCalibration = calibrated.calibration
    with torch.no_grad():
        for name, value in weights.items():
            getattr(calibration, name).fill_(value)
    after = torch.sigmoid(weights['slope'] * judge.evidence + weights['offset'])
    error, right = judge.error.numpy(), judge.right.numpy()
    return Calibrated(
        calibrated,
        weights,
        reliability(judge.before.numpy(), error, right),
        reliability(after.numpy(), error, right),
    )


@torch.no_grad()
def _pixels(
    before: StereoNetwork | None,
    calibrated: StereoNetwork,
    pair: Any,
    generator: np.random.Generator,
) -> _Pixels:
    """Random pixels of one pair, each the answer at full resolution, its coarse cell's evidence.

    Without `before` the confidence that it had is left at NaN.
    """
    noted: list[Tensor] = []

    def note(module: torch.nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        noted.append(module.evidence(*inputs))

    images = []
    height, width = pair.disparity.shape
    down, across = calibrated.strides
    pad = [0, -width % across, 0, -height % down]
    for picture in (pair.left, pair.right):
        planes = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float()
        images.append(calibrated.normalize(F.pad(planes, pad, mode='replicate')))
    handle = calibrated.calibration.register_forward_hook(note)
    try:
        output = calibrated(*images)
    finally:
        handle.remove()
    truth = torch.from_numpy(np.array(pair.disparity, np.float32))
    known = torch.isfinite(truth) & (truth >= 0) & (truth < calibrated.max_disparity_px)
    rows, columns = torch.nonzero(known, as_tuple=True)
    chosen = torch.from_numpy(generator.permutation(len(rows))[:PIXELS_PER_PAIR])
    rows, columns = rows[chosen], columns[chosen]
    cell = [size // cells for size, cells in zip(images[0].shape[2:], noted[0].shape[2:])]
    found = noted[0][0, 0, rows // cell[0], columns // cell[1]]
    truth = truth[rows, columns]
    error = (output.disparity[0, rows, columns] - truth).abs()
    confidence = torch.full_like(error, torch.nan)
    if before is not None:
        confidence = before(*images).confidence[0, rows, columns].clamp(0, 1).float()
    return _Pixels(found.float(), confidence, error, right_within(error, truth).float())


def _join(parts: Sequence[_Pixels]) -> _Pixels:
    return _Pixels(
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ('evidence', 'before', 'error', 'right')
        )
    )


def _fit(pixels: _Pixels) -> dict[str, float]:
    """Slope and offset by Newton steps, a little drawn to zero so that they always exist."""
    scale = float(pixels.evidence.std().clamp(min=1e-3))
    terms = torch.stack([pixels.evidence / scale, torch.ones_like(pixels.evidence)], 1).double()
    wanted = pixels.right.double()
    weights = torch.zeros(2, dtype=torch.float64)
    ridge = 1e-4 * torch.eye(2, dtype=torch.float64)
    for _ in range(50):
        chance = torch.sigmoid(terms @ weights)
        gradient = terms.T @ (chance - wanted) / len(terms) + ridge @ weights
        curvature = (terms * (chance * (1 - chance))[:, None]).T @ terms / len(terms) + ridge
        step = torch.linalg.solve(curvature, gradient)
        # Where nearly all is decided the curvature vanishes and a full step overshoots.
        weights = weights - step * min(1.0, 5.0 / float(step.abs().max().clamp(min=1e-9)))
        if float(step.abs().max()) < 1e-9:
            break
    return {'slope': float(weights[0]) / scale, 'offset': float(weights[1])}


def load_trained(path: Path) -> tuple[StereoNetwork, Manifest | None]:
    """A network of a run folder, checkpoint or shipped ONNX file, and the manifest of the last.

    Raises:
        TrainingError, ModelError or NetworkError: the file is none of these, or damaged.
    """
    from stereo_kd_training.networks.shipped import load_shipped
    from stereo_kd_training.train import load_network

    if path.suffix == '.onnx':
        with first_alone(path) as alone:
            return load_shipped(alone), read_manifest(alone)
    return load_network(path), None


class PairsOf(Sequence[Any]):
    """Pairs of several pools, read when they are asked for."""

    def __init__(self, samples: Sequence[tuple[Any, int]]):
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        source, row = self.samples[index]
        return source[row]
