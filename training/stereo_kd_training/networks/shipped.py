# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A trainable network out of a shipped ONNX file, which has no batch norms any more.

An export folds every batch norm into the convolution before it. Training on needs them
back: each gets the statistics that its convolution's answers have on generated pairs, and
the scale and shift that undo them, so the network answers as the file does. Convolutions
are rescaled to answers of unit variance, the scale that an optimiser expects.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from stereo_kd_ros.model import read_manifest
from stereo_kd_ros.procedural import render_pair
from stereo_kd_ros.sessions import quiet_session
from stereo_kd_training.joined import first_alone
from stereo_kd_training.networks import build
from stereo_kd_training.networks.base import NetworkError, StereoNetwork
from stereo_kd_training.networks.contract import ContractModel

STATISTICS_PAIRS = 8
STATISTICS_HEIGHT, STATISTICS_WIDTH = 192, 384
PARITY_TOLERANCE_PX = 0.05
PARITY_PAIRS = 3
_SCOPE = '/network/'


class ShippedModelError(NetworkError):
    """A file from which no network can be rebuilt; the message says what it lacks."""


def load_shipped(path: str | Path, pairs: int = STATISTICS_PAIRS) -> StereoNetwork:
    """The network of an ONNX file of `export_network`, ready to be trained on, in eval mode.

    Args:
        path: the .onnx file with its manifest; of a joined one the first is taken.
        pairs: generated pairs over which the statistics of batch norms are taken.

    Raises:
        ShippedModelError: it carries no manifest, its weights do not fit the network that the
            manifest names, or the rebuilt network answers otherwise than the file by more than
            `PARITY_TOLERANCE_PX`.
        ModelError: the file is missing or no ONNX model.
    """
    with first_alone(path) as alone:
        return _loaded(alone, pairs)


def _loaded(path: Path, pairs: int) -> StereoNetwork:
    manifest = read_manifest(path)
    if manifest is None or not (manifest.configuration or manifest.network):
        raise ShippedModelError(
            f'{path} does not say which network it is; expected a file of `stereo-kd-train export`'
        )
    network = build(manifest.configuration or {'name': manifest.network}).eval()
    images = [_generated(seed) for seed in range(pairs)]
    followers = _followers(network, images[0])
    named, scoped = _weights(path)
    state = network.state_dict()
    left = {name for name, _ in network.named_parameters()}
    named.update(network.recovered(scoped))
    for name, value in named.items():
        if name in left:
            _set(state, name, value, path)
            left.discard(name)
    for name, module in network.named_modules():
        if not isinstance(module, _ConvNd) or name not in scoped:
            continue
        weight, bias = scoped[name]
        _set(state, f'{name}.weight', weight, path)
        left.discard(f'{name}.weight')
        follower = followers.get(name)
        if follower is not None and f'{follower}.weight' in left:
            shift = torch.zeros(len(weight)) if bias is None else bias
            _set(state, f'{follower}.weight', torch.ones(len(shift)), path)
            _set(state, f'{follower}.bias', shift, path)
            _set(state, f'{follower}.running_mean', torch.zeros(len(shift)), path)
            norm = network.get_submodule(follower)
            _set(state, f'{follower}.running_var', torch.full((len(shift),), 1 - norm.eps), path)
            left -= {f'{follower}.weight', f'{follower}.bias'}
        elif module.bias is not None and bias is not None:
            _set(state, f'{name}.bias', bias, path)
            left.discard(f'{name}.bias')
    if left:
        raise ShippedModelError(
            f'{path} holds no weights for {len(left)} parameters of {manifest.network}, first '
            f'{min(left)!r}; expected a file of `stereo-kd-train export`, not optimised since'
        )
    network.load_state_dict(state)
    with network.as_written(scoped):
        _require_parity(path, network)
        _restore_statistics(network, followers, images)
        _require_parity(path, network)
    return network


def _set(state: dict[str, Tensor], name: str, value: Tensor, path: Path) -> None:
    if state[name].shape != value.shape:
        raise ShippedModelError(
            f'{path}: {name!r} has shape {tuple(value.shape)}, the network of its manifest '
            f'expects {tuple(state[name].shape)}'
        )
    state[name] = value.to(state[name].dtype)


def _weights(path: Path) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, Tensor | None]]]:
    """Initialisers that kept a parameter's name, and (weight, bias) by a convolution's name.

    Node names are scopes, `/network/encoder/stem/stem.0/Conv` for `encoder.stem.0`: each part
    repeats the container's own name when it has a number.
    """
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(path)).graph
    values = {
        item.name: torch.from_numpy(np.array(numpy_helper.to_array(item)))
        for item in graph.initializer
    }
    # Weights stored in half precision are made single by a Cast.
    for node in graph.node:
        if node.op_type == 'Cast' and node.input[0] in values:
            values[node.output[0]] = values[node.input[0]].float()
    prefix = _SCOPE.strip('/') + '.'
    named = {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)}
    found: dict[str, dict[str, tuple[Tensor, Tensor | None]]] = {}
    for node in graph.node:
        if node.op_type not in ('Conv', 'ConvTranspose') or not node.name.startswith(_SCOPE):
            continue
        parts: list[str] = []
        for part in node.name.removeprefix(_SCOPE).split('/')[:-1]:
            # `quarter`, then `quarter.1`, then `quarter.1.0` name one path.
            if parts and part.startswith(parts[-1] + '.'):
                parts.pop()
            parts.append(part)
        # One that is of no module has no weights, but numbers of its own.
        if parts and len(node.input) > 1 and node.input[1] in values:
            bias = values.get(node.input[2]) if len(node.input) > 2 else None
            # Called twice, a module's second call shares the weights of its first.
            found.setdefault('.'.join(parts), {})[node.input[1]] = (values[node.input[1]], bias)
    return named, {name: _joined(list(parts.values())) for name, parts in found.items()}


def _joined(parts: list[tuple[Tensor, Tensor | None]]) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a convolution that was written in parts of its answers."""
    weight = torch.cat([weight for weight, _ in parts])
    biases = [bias for _, bias in parts if bias is not None]
    return weight, torch.cat(biases) if len(biases) == len(parts) else None


def _generated(seed: int) -> tuple[Tensor, Tensor]:
    sample = render_pair(seed, STATISTICS_HEIGHT, STATISTICS_WIDTH)
    left, right = (torch.from_numpy(np.array(eye))[None] for eye in (sample.left, sample.right))
    return left, right


@torch.no_grad()
def _followers(network: StereoNetwork, images: tuple[Tensor, Tensor]) -> dict[str, str]:
    """Names of convolutions to those of the batch norms that read their answers and no other's."""
    answers: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, str] = {}

    def note(name: str):
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            if isinstance(_module, _ConvNd):
                answers[id(output)] = (name, output)  # held, so that its id stays its own
            elif id(inputs[0]) in answers:
                found[answers[id(inputs[0])][0]] = name

        return hook

    handles = [
        module.register_forward_hook(note(name))
        for name, module in network.named_modules()
        if isinstance(module, (_ConvNd, _BatchNorm))
    ]
    try:
        ContractModel(network)(*images)
    finally:
        for handle in handles:
            handle.remove()
    return found


@torch.no_grad()
def _restore_statistics(
    network: StereoNetwork,
    followers: dict[str, str],
    images: Iterable[tuple[Tensor, Tensor]],
) -> None:
    """Batch norms that change nothing to ones that normalise, with the same answers."""
    sums: dict[str, list[Tensor]] = {}

    def gather(name: str):
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> None:
            other = [axis for axis in range(output.dim()) if axis != 1]
            values = output.double()
            count = torch.tensor(float(values.numel() / values.shape[1]))
            new = [count, values.sum(other), values.square().sum(other)]
            sums[name] = [a + b for a, b in zip(sums[name], new)] if name in sums else new

        return hook

    handles = [
        network.get_submodule(name).register_forward_hook(gather(name)) for name in followers
    ]
    try:
        for pair in images:
            ContractModel(network)(*pair)
    finally:
        for handle in handles:
            handle.remove()
    for name, follower in followers.items():
        convolution, norm = network.get_submodule(name), network.get_submodule(follower)
        count, total, squares = sums[name]
        mean = total / count
        # A channel that never answers keeps its scale.
        variance = (squares / count - mean.square()).clamp(min=0.0)
        deviation = torch.where(variance > 1e-8, variance.sqrt(), torch.ones_like(variance))
        transposed = convolution.transposed
        shape = [1] * convolution.weight.dim()
        shape[1 if transposed else 0] = -1
        if transposed and convolution.groups > 1:
            continue  # its weight's second axis is a group's share of the answers
        convolution.weight.div_(deviation.float().view(shape))
        norm.running_mean.copy_(mean / deviation)
        norm.running_var.copy_(torch.where(variance > 1e-8, 1.0, variance))
        norm.weight.copy_(deviation * (norm.running_var.double() + norm.eps).sqrt())
        norm.bias.add_(mean.float())


@torch.no_grad()
def _require_parity(path: Path, network: StereoNetwork) -> None:
    """Raise unless network and file answer alike on most of some pairs.

    Two hypotheses that tie to rounding may fall either way, and a refinement carries that to a
    hundred cells round it: what differs on one pair of three is a tie, a wrong weight is seen on
    all of them.
    """
    session = quiet_session(path)
    rebuilt = ContractModel(network).eval()
    shares = []
    for seed in range(STATISTICS_PAIRS, STATISTICS_PAIRS + PARITY_PAIRS):
        left, right = _generated(seed)
        expected = session.run(['disparity'], {'left': left.numpy(), 'right': right.numpy()})[0]
        found = rebuilt(left, right)[0].numpy()
        shares.append(float((np.abs(found - expected) > PARITY_TOLERANCE_PX).mean()))
    off = statistics.median(shares)
    if not off < 1e-3:
        raise ShippedModelError(
            f'{path}: the network rebuilt from its manifest and weights answers otherwise at '
            f'{100 * off:.1f} % of pixels; the file was exported by other code or changed since'
        )
