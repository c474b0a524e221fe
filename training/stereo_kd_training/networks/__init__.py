# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Stereo networks by name: `create('kestrel', width=32)` builds any student or teacher.

One file per network; a file is imported only when its network is asked for, so an
unused teacher costs nothing and cannot break the others.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from stereo_kd_training.networks.base import NetworkError, StereoNetwork, StereoOutput
from stereo_kd_training.networks.channels import apply_widths

__all__ = [
    'NetworkError',
    'StereoNetwork',
    'StereoOutput',
    'apply_widths',
    'build',
    'create',
    'names',
]

# name -> (module, class, options fixed by the name)
_REGISTRY: dict[str, tuple[str, str, dict[str, Any]]] = {
    'kestrel': ('kestrel', 'Kestrel', {}),
    'dtpnet': ('dtpnet', 'DTPNet', {}),
    'dtpnet_setting1': ('dtpnet', 'DTPNet', {'setting': 1}),
    'dtpnet_setting2': ('dtpnet', 'DTPNet', {'setting': 2}),
    'compact_stereonet': ('compact_stereonet', 'CompactStereoNet', {}),
    'anynet': ('anynet', 'AnyNet', {}),
    'dsnet': ('dsnet', 'DSNet', {}),
    'dsnet_wo': ('dsnet', 'DSNet', {'attention': False}),
    'dsnet_slied8': ('dsnet', 'DSNet', {'channels': 8, 'attention': False, 'projection': False}),
    'psmnet': ('psmnet', 'PSMNet', {}),
    'gwcnet_g': ('gwcnet', 'GwcNet', {}),
    'gwcnet_gc': ('gwcnet', 'GwcNet', {'concat_volume': True}),
    'acvnet': ('acvnet', 'ACVNet', {}),
    'acvnet_large': ('acvnet', 'ACVNet', {'attention_channels': 32}),
}


def names() -> list[str]:
    """Names that `create` takes, sorted."""
    return sorted(_REGISTRY)


def create(name: str, **options: Any) -> StereoNetwork:
    """Build the network `name`; `options` override those that the name fixes.

    Raises:
        NetworkError: unknown name, or an option the network does not take.
    """
    if name not in _REGISTRY:
        near = difflib.get_close_matches(name, _REGISTRY, n=1)
        hint = f'; did you mean {near[0]!r}?' if near else ''
        raise NetworkError(f'unknown network {name!r}{hint} (known: {", ".join(names())})')
    module_name, class_name, fixed = _REGISTRY[name]
    module = importlib.import_module(f'{__name__}.{module_name}')
    merged = {**fixed, **options}
    try:
        network = getattr(module, class_name)(**merged)
    except TypeError as error:
        raise NetworkError(f'network {name!r} refused its options {merged}: {error}') from error
    network.configuration = {'name': name, 'options': dict(options)}
    return network


def build(configuration: dict[str, Any]) -> StereoNetwork:
    """Rebuild what `StereoNetwork.configuration` describes, pruned or not, without weights.

    Raises:
        NetworkError: it names no network, or widths that do not fit it.
    """
    if 'name' not in configuration:
        raise NetworkError(f'a configuration needs a name, got only {sorted(configuration)}')
    network = create(configuration['name'], **configuration.get('options', {}))
    if configuration.get('widths'):
        apply_widths(network, configuration['widths'])
        network.configuration['widths'] = dict(configuration['widths'])
    return network
