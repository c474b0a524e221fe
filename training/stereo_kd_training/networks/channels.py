# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The widths of a network's layers as plain numbers, and a network rebuilt from them.

A pruned network is its name, its options and `channel_widths` where they differ from the
unpruned one: text that can be read, compared and stored, never a pickled module.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from stereo_kd_training.networks.base import NetworkError

Widths = dict[str, list[int]]


def channel_widths(network: nn.Module) -> Widths:
    """Layer name to [in, out, groups] (convolution), [in, out] (linear), [channels] (norm)."""
    widths: Widths = {}
    for name, module in network.named_modules():
        if isinstance(module, _ConvNd):
            widths[name] = [module.in_channels, module.out_channels, module.groups]
        elif isinstance(module, nn.Linear):
            widths[name] = [module.in_features, module.out_features]
        elif isinstance(module, _BatchNorm):
            widths[name] = [module.num_features]
        elif isinstance(module, nn.GroupNorm):
            widths[name] = [module.num_channels]
    return widths


def changed_widths(network: nn.Module, original: nn.Module) -> Widths:
    """The widths of `network` that differ from those of `original`."""
    before = channel_widths(original)
    return {
        name: width for name, width in channel_widths(network).items() if before[name] != width
    }


@torch.no_grad()
def apply_widths(network: nn.Module, widths: dict[str, Any]) -> None:
    """Give the named layers other widths, with zeroed weights, in place.

    Weights are to be loaded afterwards. Layers that are not named keep what they have.

    Raises:
        NetworkError: a name that is not a layer, or numbers that do not describe it.
    """
    modules = dict(network.named_modules())
    for name, width in widths.items():
        module = modules.get(name)
        if module is None:
            raise NetworkError(f'pruned layer {name!r} does not exist in {type(network).__name__}')
        if len(width) != len(channel_widths(module).get('', ())) or any(w < 1 for w in width):
            raise NetworkError(f'widths {width} do not describe {name!r} ({module})')
        _resize(module, [int(w) for w in width])


def _resize(module: nn.Module, width: list[int]) -> None:
    if isinstance(module, _ConvNd):
        module.in_channels, module.out_channels, module.groups = width
        first, second = module.out_channels, module.in_channels // module.groups
        if isinstance(module, _ConvTransposeNd):
            first, second = module.in_channels, module.out_channels // module.groups
        module.weight = _like(module.weight, (first, second, *module.weight.shape[2:]))
        if module.bias is not None:
            module.bias = _like(module.bias, (module.out_channels,))
    elif isinstance(module, nn.Linear):
        module.in_features, module.out_features = width
        module.weight = _like(module.weight, (module.out_features, module.in_features))
        if module.bias is not None:
            module.bias = _like(module.bias, (module.out_features,))
    else:
        size = (width[0],)
        if isinstance(module, nn.GroupNorm):
            module.num_channels = width[0]
        else:
            module.num_features = width[0]
            if module.running_mean is not None:
                module.running_mean = module.running_mean.new_zeros(size)
                module.running_var = module.running_var.new_ones(size)
        if module.weight is not None:
            module.weight = _like(module.weight, size)
            module.bias = _like(module.bias, size)


def _like(parameter: nn.Parameter, shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(parameter.new_zeros(shape), requires_grad=parameter.requires_grad)
