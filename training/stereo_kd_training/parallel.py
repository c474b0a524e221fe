# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Batch norm whose statistics are those of the whole batch, however many processes share it.

PyTorch's SyncBatchNorm works on CUDA only. This one works wherever `torch.distributed` does,
so that two CPU processes over gloo train exactly as one.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class _SumOverProcesses(torch.autograd.Function):
    """Sum of a tensor over all processes; each one's gradient is the sum of all gradients."""

    @staticmethod
    def forward(_context: Any, value: Tensor) -> Tensor:
        total = value.clone()
        torch.distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        total = gradient.contiguous().clone()
        torch.distributed.all_reduce(total)
        return total


class _SharedStatistics:
    """Mixed into a batch norm in place: the same parameters, the batch of all processes."""

    def forward(self: _BatchNorm, x: Tensor) -> Tensor:
        if not self.training:
            return type(self).__mro__[2].forward(self, x)
        dims = [dim for dim in range(x.dim()) if dim != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        # Every process holds the same share of the batch, so means of means are the mean.
        processes = torch.distributed.get_world_size()
        mean = _SumOverProcesses.apply(values.mean(dims)) / processes
        centred = values - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().mean(dims)) / processes
        with torch.no_grad():
            count = processes * x.numel() // x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum)
        normalised = centred * torch.rsqrt(variance + self.eps).view(shape)
        return (normalised * self.weight.view(shape) + self.bias.view(shape)).to(x.dtype)


class SharedBatchNorm1d(_SharedStatistics, nn.BatchNorm1d):
    """See the module."""


class SharedBatchNorm2d(_SharedStatistics, nn.BatchNorm2d):
    """See the module."""


class SharedBatchNorm3d(_SharedStatistics, nn.BatchNorm3d):
    """See the module."""


_SHARED = {
    nn.BatchNorm1d: SharedBatchNorm1d,
    nn.BatchNorm2d: SharedBatchNorm2d,
    nn.BatchNorm3d: SharedBatchNorm3d,
}


def share_statistics(network: nn.Module) -> None:
    """Make the batch norms of `network` see the batch of all processes, in place.

    Names and values stay, so checkpoints are those of the plain network.
    """
    for module in network.modules():
        shared = _SHARED.get(type(module))
        if shared is not None:
            module.__class__ = shared
