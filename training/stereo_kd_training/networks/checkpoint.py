# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Reading weight files: ours and the official ones, never executing what they contain.

A checkpoint is a `torch.save` file holding a state dict, or a dict with one under
`state_dict`, `model` or `network`. The `module.` prefix of data-parallel training is dropped.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from stereo_kd_training.networks.base import NetworkError

_ENVELOPES = ('state_dict', 'model', 'network')
_PARALLEL_PREFIX = 'module.'


class CheckpointError(NetworkError):
    """A file that is not a checkpoint, or one for another network."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors by name.

    Raises:
        CheckpointError: the file is absent, is not a checkpoint, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'no checkpoint at {path}')
    try:
        content = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise CheckpointError(
            f'{path} is not a checkpoint that can be read safely ({reason}); expected a '
            'torch.save file of tensors only'
        ) from error
    if isinstance(content, dict):
        for envelope in _ENVELOPES:
            if isinstance(content.get(envelope), dict):
                content = content[envelope]
                break
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f'{path} holds no state dict (found {type(content).__name__})')
    strangers = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if strangers:
        raise CheckpointError(
            f'{path} holds no state dict: {strangers[0]!r} is not a tensor (expected tensors by '
            f'name, bare or under one of {", ".join(_ENVELOPES)})'
        )
    return {str(key).removeprefix(_PARALLEL_PREFIX): value for key, value in content.items()}


def load_checkpoint(network: nn.Module, path: str | Path) -> None:
    """Load `path` into `network`, every name and shape matching.

    Raises:
        CheckpointError: unreadable, or for another network; names the first misfit.
    """
    state = read_state_dict(path)
    own = network.state_dict()
    name = type(network).__name__
    missing = [key for key in own if key not in state]
    unexpected = [key for key in state if key not in own]
    # files written before PyTorch 0.4.1 do not count batches
    missing = [key for key in missing if not key.endswith('num_batches_tracked')]
    if missing or unexpected:
        parts = []
        if missing:
            parts.append(f'{len(missing)} missing, first {missing[0]!r}')
        if unexpected:
            parts.append(f'{len(unexpected)} unexpected, first {unexpected[0]!r}')
        raise CheckpointError(f'{path} is not a checkpoint of {name}: {"; ".join(parts)}')
    for key, value in state.items():
        if value.shape != own[key].shape:
            raise CheckpointError(
                f'{path} is not a checkpoint of this {name}: {key!r} has shape '
                f'{tuple(value.shape)}, expected {tuple(own[key].shape)}'
            )
    network.load_state_dict({**own, **state})
