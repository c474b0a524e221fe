# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A confidence that is a probability: what a matching distribution says, put to scale.

    evidence = 0.15 * logit of the network's own confidence head
               + 0.5 * log of the probability mass round the best hypothesis
               - log(expected deviation [px] + 0.05)
    P(error < max(1 px, 5 %)) = sigmoid(slope * evidence + offset)

The deviation is that of a distribution at twice the temperature, cut off at `REACH_PX`: trained
logits are too sure of themselves, and how far away a rival lies matters up to a point. Only
slope and offset are fitted, on generated pairs; weights fitted there as well, and richer heads on
the network's features, explain those better and sort the errors of real pairs worse, for they
lean on the network's own opinion, which is the surer the more a scene is like the training.
All are elementwise sums behind the logits, in float32, with no convolution (see
`networks.deployed`), and none passes a gradient on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stereo_kd_training.networks.base import opaque

TEMPERATURE = 2.0
REACH_PX = 16.0
HEAD_WEIGHT = 0.15
WINDOW_WEIGHT = 0.5
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
    head: Tensor, mass: Tensor, logits: Tensor, hypotheses_px: Tensor, answer_px: Tensor
) -> Tensor:
    """What speaks for each answer, (B, 1, h, w); higher is surer.

    Args:
        head: the network's own confidence before the sigmoid, (B, 1, h, w).
        mass: probability within the regression window, (B, 1, h, w).
        logits: (B, D, h, w).
        hypotheses_px: (D,).
        answer_px: (B, 1, h, w), the coarse disparity.
    """
    deviation = expected_deviation(logits.detach(), hypotheses_px, answer_px.detach())
    window = torch.log(mass.detach().clamp(min=1e-4))
    own = head.clamp(-9.0, 9.0)
    return HEAD_WEIGHT * own + WINDOW_WEIGHT * window - torch.log(deviation + _FLOOR_PX)


class ConfidenceCalibration(nn.Module):
    """Evidence to probability by two numbers, all maps (B, 1, h, w).

    They are scalars of their own, not one vector, so that each keeps its name in an ONNX file.
    """

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))
        self.offset = nn.Parameter(torch.tensor(0.0))

    def forward(
        self, head: Tensor, mass: Tensor, logits: Tensor, hypotheses_px: Tensor, answer_px: Tensor
    ) -> Tensor:
        found = evidence(head, mass, logits, hypotheses_px, answer_px)
        return torch.sigmoid(self.slope * found + self.offset)
