# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A confidence that is a probability: what a matching distribution says, weighed by five numbers.

    P(error < max(1 px, 5 %)) = sigmoid(offset
                                        + head * logit of the network's own confidence head
                                        + window * log mass round the best hypothesis
                                        - spread * log expected deviation [px]
                                        + nearness * log(1 + disparity))

The deviation is that of a distribution at twice the temperature, cut off at `REACH_PX`: trained
logits are too sure of themselves, and how far away a rival lies matters up to a point. A richer
head on the network's features sorts generated pairs better and real ones worse; these few cues
carry over. All are elementwise sums behind the logits, in float32, with no convolution (see
`networks.deployed`), and none passes a gradient on.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from stereo_kd_training.networks.base import opaque

TEMPERATURE = 2.0
REACH_PX = 16.0
_FLOOR_PX = 0.05
CUES = ('head', 'window', 'spread', 'nearness')


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


class ConfidenceCalibration(nn.Module):
    """The five numbers, and the map they make: all (B, 1, h, w).

    They are scalars of their own, not one vector, so that each keeps its name in an ONNX file.
    """

    def __init__(self) -> None:
        super().__init__()
        # About what the product of head and mass says, until `calibrate` has measured.
        self.offset = nn.Parameter(torch.tensor(0.0))
        self.head = nn.Parameter(torch.tensor(0.5))
        self.window = nn.Parameter(torch.tensor(1.0))
        self.spread = nn.Parameter(torch.tensor(0.5))
        self.nearness = nn.Parameter(torch.tensor(0.0))

    @staticmethod
    def cues(
        head: Tensor, mass: Tensor, logits: Tensor, hypotheses_px: Tensor, answer_px: Tensor
    ) -> tuple[Tensor, ...]:
        """What `CUES` names, each (B, 1, h, w).

        Args:
            head: the network's own confidence before the sigmoid, (B, 1, h, w).
            mass: probability within the regression window, (B, 1, h, w).
            logits: (B, D, h, w).
            hypotheses_px: (D,).
            answer_px: (B, 1, h, w), the coarse disparity.
        """
        mass, logits, answer_px = mass.detach(), logits.detach(), answer_px.detach()
        deviation = expected_deviation(logits, hypotheses_px, answer_px)
        return (
            head.clamp(-9.0, 9.0),
            torch.log(mass.clamp(min=1e-4)),
            torch.log(deviation + _FLOOR_PX),
            torch.log(answer_px.clamp(min=0.0) + 1.0),
        )

    def forward(
        self, head: Tensor, mass: Tensor, logits: Tensor, hypotheses_px: Tensor, answer_px: Tensor
    ) -> Tensor:
        own, window, spread, near = self.cues(head, mass, logits, hypotheses_px, answer_px)
        evidence = self.head * own + self.window * window - self.spread * spread
        return torch.sigmoid(evidence + self.nearness * near + self.offset)
