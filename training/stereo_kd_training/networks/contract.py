# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The runtime's contract round any network: camera bytes in, camera-sized maps out.

left, right   uint8   (N, H, W, 3)  RGB, any H and W
disparity     float32 (N, H, W)     input pixels, >= 0
confidence    float32 (N, H, W)     [0, 1]; 1 where the network has no such head
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stereo_kd_training.networks import deployed
from stereo_kd_training.networks.base import StereoNetwork


class ContractModel(nn.Module):
    """A network behind the contract: camera bytes in, camera-sized maps out."""

    def __init__(self, network: StereoNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        height, width = left.shape[1], left.shape[2]
        down, across = self.network.strides
        # Replicated rows and columns continue the surface; a black margin would be an edge.
        pad = [0, (across - width % across) % across, 0, (down - height % down) % down]
        images = []
        for image in (left, right):
            if deployed.deployed('input'):
                scale, offset = self.network.input_normalisation
                images.append(deployed.normalised(image, pad, scale, offset, self.network.resizes))
            else:
                planes = image.permute(0, 3, 1, 2).float()
                images.append(self.network.normalize(F.pad(planes, pad, mode='replicate')))
        if self.network.crops:
            # Where it costs least: before confidences are as many as pixels.
            output = self.network(*images, (height, width))
            return output.disparity, output.confidence
        output = self.network(*images)
        disparity = output.disparity[:, :height, :width].clamp(min=0.0)
        if output.confidence is None:
            confidence = torch.ones_like(disparity)
        else:
            confidence = output.confidence[:, :height, :width].clamp(0.0, 1.0)
        return disparity, confidence
