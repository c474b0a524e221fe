# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a network costs: parameters and multiply-accumulates, counted without computing.

Networks run on PyTorch's meta device, where tensors have shapes but no values, so counting
PSMNet takes neither its minute nor its gigabytes. Convolutions (plain and transposed),
linear layers and matrix products count; norms, activations, interpolation and elementwise
volumes do not, as is usual. One pair is counted, that is both views.

Papers that quote "FLOPs" mostly mean these MACs; some count one view only.
"""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from torch.utils.module_tracker import ModuleTracker

from stereo_kd_training import networks


@dataclass(frozen=True)
class Complexity:
    """Of one network at one size.

    Attributes:
        parameters: trainable values.
        macs: multiply-accumulates for one pair.
        macs_by_module: of the network's direct children, where any.
    """

    parameters: int
    macs: int
    macs_by_module: dict[str, int]


class MacCounter(TorchDispatchMode):
    """Counts the multiply-accumulates of every operation that PyTorch has a formula for.

    `torch.utils.flop_counter.FlopCounterMode` counts the same and several times slower, as it
    takes every other operation apart in search of some.
    """

    def __init__(self, modules: ModuleTracker) -> None:
        super().__init__()
        self.modules = modules
        self.by_module: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            macs = formula(*args, **kwargs, out_val=result) // 2
            for name in self.modules.parents:
                self.by_module[name] += macs
        return result


def complexity(network: nn.Module, height: int = 480, width: int = 640) -> Complexity:
    """Count `network`, which is left as it is, in inference mode for one (height, width) pair.

    As at run time, the pair is padded to the multiples that the network's strides ask for.
    """
    down, across = getattr(network, 'strides', (1, 1))
    height, width = height + -height % down, width + -width % across
    ghost = copy.deepcopy(network).to('meta').eval()
    left = torch.empty(1, 3, height, width, device='meta')
    right = torch.empty(1, 3, height, width, device='meta')
    with ModuleTracker() as modules, MacCounter(modules) as counter, torch.no_grad():
        ghost(left, right)
    root = type(ghost).__name__
    return Complexity(
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
        macs=counter.by_module[root],
        macs_by_module={
            name: counter.by_module[f'{root}.{name}']
            for name, _ in ghost.named_children()
            if f'{root}.{name}' in counter.by_module
        },
    )


def networks_table() -> list[dict[str, Any]]:
    """One row per registered network: name, parameters, macs_640x480, source."""
    rows = []
    for name in networks.names():
        with torch.device('meta'):
            network = networks.create(name)
        counted = complexity(network)
        rows.append(
            {
                'name': name,
                'parameters': counted.parameters,
                'macs_640x480': counted.macs,
                'source': network.source,
            }
        )
    return rows
