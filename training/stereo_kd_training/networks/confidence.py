# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A confidence that is a probability: what a matching distribution says, put to scale.

    evidence = 0.15 * logit of the network's own confidence head
               + 0.5 * log of the probability mass round the best hypothesis
               - log(expected deviation [px] + 0.05)
               - 0.2 * log(range of the answers of 3x3 cells [px] + 1)
    P(error < max(1 px, 5 %)) = sigmoid(slope * evidence + offset)

The deviation is that of a distribution at twice the temperature, cut off at `REACH_PX`: trained
logits are too sure of themselves, and how far away a rival lies matters up to a point. The range
tells where a step is near, which an answer on its wrong side does not know of (the variance of
disparity among the measures of Hu and Mordohai, PAMI 2012); files of before had none. Only
slope and offset are fitted, on generated pairs; weights fitted there as well, and richer heads on
the network's features, explain those better and sort the errors of real pairs worse, for they
lean on the network's own opinion, which is the surer the more a scene is like the training.
All are elementwise sums behind the logits, in float32, with no convolution (see
`networks.deployed`), and none passes a gradient on.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo_kd_training.networks import deployed
from stereo_kd_training.networks.base import opaque

TEMPERATURE = 2.0
REACH_PX = 16.0
HEAD_WEIGHT = 0.15
WINDOW_WEIGHT = 0.5
RANGE_WEIGHT = 0.2
_FLOOR_PX = 0.05


@opaque()
def expected_deviation(logits: Tensor, hypotheses_px: Tensor, answer_px: Tensor) -> Tensor:
    """Mean of min(|hypothesis - answer|, `REACH_PX`) at `TEMPERATURE`, (B, 1, h, w) px.

    Args:
        logits: (B, D, h, w).
        hypotheses_px: (D,).
        answer_px: (B, 1, h, w).
    """
    top = logits.amax(1, keepdim=True)
    likelihood = torch.exp((logits - top) * (1.0 / TEMPERATURE))
    deviation = (hypotheses_px.view(1, -1, 1, 1) - answer_px).abs().clamp(max=REACH_PX)
    return (likelihood * deviation).sum(1, keepdim=True) / likelihood.sum(1, keepdim=True)


def evidence(
    head: Tensor,
    mass: Tensor,
    logits: Tensor,
    hypotheses_px: Tensor,
    answer_px: Tensor,
    range_weight: float = RANGE_WEIGHT,
) -> Tensor:
    """What speaks for each answer, (B, 1, h, w); higher is surer.

    Args:
        head: the network's own confidence before the sigmoid, (B, 1, h, w).
        mass: probability within the regression window, (B, 1, h, w).
        logits: (B, D, h, w).
        hypotheses_px: (D,).
        answer_px: (B, 1, h, w), the coarse disparity.
        range_weight: of the range of answers round a cell.
    """
    answer_px = answer_px.detach()
    deviation = expected_deviation(logits.detach(), hypotheses_px, answer_px)
    window = torch.log(mass.detach().clamp(min=1e-4))
    own = head.clamp(-9.0, 9.0)
    found = HEAD_WEIGHT * own + WINDOW_WEIGHT * window - torch.log(deviation + _FLOOR_PX)
    if range_weight:
        spread = deployed.local_range if deployed.deployed('confidence') else local_range
        found = found - range_weight * torch.log(spread(answer_px) + 1.0)
    return found


def local_range(answer_px: Tensor) -> Tensor:
    """The largest less the smallest of 3x3 cells, (B, 1, h, w) to (B, 1, h, w)."""
    return F.max_pool2d(answer_px, 3, 1, 1) + F.max_pool2d(-answer_px, 3, 1, 1)


class ConfidenceCalibration(nn.Module):
    """Evidence to probability by two numbers, all maps (B, 1, h, w).

    They are scalars of their own, not one vector, so that each keeps its name in an ONNX file.

    Args:
        range_weight: as of `evidence`; a network's options say it, since files of before had 0.
    """

    def __init__(self, range_weight: float = RANGE_WEIGHT) -> None:
        super().__init__()
        self.range_weight = range_weight
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, head: Tensor, mass: Tensor, logits: Tensor, hypotheses_px: Tensor, answer_px: Tensor
    ) -> Tensor:
        found = self.evidence(head, mass, logits, hypotheses_px, answer_px)
        return torch.sigmoid(self.slope * found + self.offset)

    def evidence(
        self, head: Tensor, mass: Tensor, logits: Tensor, hypotheses_px: Tensor, answer_px: Tensor
    ) -> Tensor:
        """`evidence` with its own `range_weight`."""
        return evidence(head, mass, logits, hypotheses_px, answer_px, self.range_weight)
