# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The table of all networks: what they cost, what their papers state, what is left of them.

One command measures it and writes it into docs/networks.md, between two markers. Counts are
exact; latencies are of the machine at hand, the least of several runs on one thread.
"""

from __future__ import annotations

import platform
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from stereo_kd_ros.sessions import quiet_session
from stereo_kd_training import networks, prune
from stereo_kd_training.complexity import complexity
from stereo_kd_training.datasets.labelled import labelled_sets
from stereo_kd_training.export import example_pair, export_network
from stereo_kd_training.networks.base import NetworkError, StereoNetwork
from stereo_kd_training.networks.checkpoint import load_checkpoint

BEGIN = '<!-- begin: stereo-kd-train networks --write -->'
END = '<!-- end -->'
PRUNED_RATIO, PRUNED_ROUND_TO = 0.5, 8
TEACHERS = ('psmnet', 'gwcnet_g', 'gwcnet_gc', 'acvnet', 'acvnet_large')

# name -> parameters and GMAC at 640x480 that the paper, or the public network, states. Papers
# count MACs in different ways; only figures for this size and both views are given.
STATED: dict[str, tuple[str, str]] = {
    'kestrel': ('ours', 'ours'),
    'dtpnet': ('0.64 M', '6.25'),
    'dtpnet_setting2': ('0.95 M', ''),
    'dtpnet_setting1': ('2.04 M', ''),
    'compact_stereonet': ('0.042 M', ''),
    'anynet': ('0.043 M', ''),
    'dsnet': ('1.86 M', ''),
    'dsnet_wo': ('1.55 M', ''),
    'dsnet_slied8': ('1.05 M', ''),
    'psmnet': ('5.22 M', ''),
    'gwcnet_g': ('6.52 M', ''),
    'gwcnet_gc': ('6.91 M', ''),
    'acvnet': ('6.23 M', ''),
    'acvnet_large': ('7.17 M', ''),
}
# Other ways to run a network that change its latency.
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    'dtpnet': {
        '`dtpnet`, `head: paper`': {'head': 'paper'},
        '`dtpnet`, `head: quarter`': {'head': 'quarter'},
    },
    'compact_stereonet': {
        '`compact_stereonet`': {},
        '`compact_stereonet`, `exit_stage: 3`': {'exit_stage': 3},
    },
    'anynet': {'`anynet`': {}, '`anynet`, `exit_stage: 3`': {'exit_stage': 3}},
}
OFFICIAL = {
    'AnyNet, KITTI 2015': ('anynet', 'anynet/anynet_kitti2015.tar', None),
    'AnyNet, KITTI 2012': ('anynet', 'anynet/anynet_kitti2012.tar', None),
    'AnyNet, Scene Flow': ('anynet', 'anynet/anynet_sceneflow.tar', None),
    # Half a minute a pair on a CPU.
    'PSMNet, KITTI 2015': ('psmnet', 'psmnet/psmnet_stackhourglass_kitti2015.tar', 2),
}


def measure(
    names: list[str] | None = None,
    latency: bool = True,
    seconds: float = 6.0,
    heard: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Count, prune, export and time networks.

    Args:
        names: of networks; all without.
        latency: also export students and time them at 640x480.
        seconds: for the repetitions of one latency; at least two are made.
        heard: told what is being done.
    """
    rows, exports = [], []
    for name in names or list(STATED):
        heard(name)
        torch.manual_seed(0)
        network = networks.create(name)
        cost = complexity(network)
        pruned = networks.create(name)
        prune.prune_to_ratio(pruned, PRUNED_RATIO, round_to=PRUNED_ROUND_TO)
        rows.append(
            {
                'name': name,
                'role': 'teacher' if name in TEACHERS else 'student',
                'parameters': cost.parameters,
                'macs_640x480': cost.macs,
                'stated': STATED[name],
                'pruned_parameters': pruned.parameter_count(),
                'pruned_macs_640x480': complexity(pruned).macs,
            }
        )
        if latency and name not in TEACHERS:
            for label, options in VARIANTS.get(name, {f'`{name}`': {}}).items():
                heard(label)
                exports.append({'label': label, **_exported(name, options, seconds)})
    return {'rows': rows, 'exports': exports, 'machine': _machine() if latency else None}


def _exported(name: str, options: dict[str, Any], seconds: float) -> dict[str, Any]:
    """Parity and latency of an untrained network's ONNX file."""
    torch.manual_seed(0)
    network = networks.create(name, **options).eval()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'network.onnx'
        # Ties between untrained scores may go either way; what is off is reported, not refused.
        sizes = ((96, 160), (101, 163))
        parity = export_network(network, path, sizes=sizes, tolerance_px=network.max_disparity_px)
        session = quiet_session(path, threads=1)
        left, right = example_pair(480, 640)
        times: list[float] = []
        while len(times) < 2 or (sum(times) < seconds and len(times) < 20):
            start = time.thread_time()
            session.run(None, {'left': left, 'right': right})
            times.append(time.thread_time() - start)
    return {
        'parity_px': max(p.max_difference_px for p in parity),
        'off_fraction': max(p.off_fraction for p in parity),
        'latency_ms': 1e3 * min(times),
        'runs': len(times),
    }


def official_errors(
    weights: Path | str,
    pairs: Path | str,
    limit: int | None = None,
    heard: Callable[[str], None] = lambda text: None,
) -> list[dict[str, Any]]:
    """Official weights on KITTI 2015 pairs with LiDAR truth, as their authors pad and count.

    Args:
        weights: folder with the files of `OFFICIAL`; those that are not there are left out.
        pairs: a benchmark folder with a set `kitti2015`, see `datasets.labelled`.
        limit: pairs at most.
        heard: told what is being done.

    Raises:
        DatasetError: no such set.
    """
    samples = labelled_sets(pairs, ['kitti2015'])['kitti2015']
    rows = []
    for label, (name, file, few) in OFFICIAL.items():
        path = Path(weights) / file
        if not path.is_file():
            continue
        network = networks.create(name).eval()
        load_checkpoint(network, path)
        count = min(len(samples), limit or len(samples), few or len(samples))
        errors = []
        for sample in (samples[index] for index in range(count)):
            heard(f'{label}: {sample.name}')
            errors.append(_stage_errors(network, sample.left, sample.right, sample.disparity))
        epe, bad = np.asarray([e for e, _ in errors]), [b for _, b in errors]
        rows.append(
            {
                'weights': label,
                'pairs': count,
                'epe_px': epe.mean(0).tolist(),
                'd1_percent': float(np.mean(bad)),
            }
        )
    return rows


@torch.no_grad()
def _stage_errors(
    network: StereoNetwork, left: np.ndarray, right: np.ndarray, truth: np.ndarray
) -> tuple[list[float], float]:
    """EPE in px of every stage, coarse to fine, and D1 in percent of the last."""
    height, width = truth.shape
    down, across = network.strides
    up = -height % down
    images = [
        network.normalize(
            F.pad(
                torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float(),
                (0, -width % across, up, 0),
            )
        )
        for image in (left, right)
    ]
    known = np.isfinite(truth)
    errors = [
        np.abs(stage[0, up:, :width].numpy() - truth)[known] for stage in network(*images).stages
    ]
    wrong = (errors[-1] > 3) & (errors[-1] > 0.05 * truth[known])
    return [float(error.mean()) for error in errors], float(100 * wrong.mean())


def _machine() -> str:
    import onnxruntime

    processor = platform.processor() or platform.machine()
    try:
        for line in Path('/proc/cpuinfo').read_text().splitlines():
            if line.startswith('model name'):
                processor = line.split(':', 1)[1].strip()
                break
    except OSError:
        pass
    return f'{processor}, ONNX Runtime {onnxruntime.__version__}'


def as_markdown(report: dict[str, Any]) -> str:
    """Tables of `measure`, and of `official_errors` under the key `official`."""
    lines = [
        '| Name | Role | Parameters | Stated | GMAC | Stated | Half pruned | GMAC |',
        '| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |',
    ]
    for row in report['rows']:
        parameters, macs = row['stated']
        lines.append(
            f'| `{row["name"]}` | {row["role"]} | {row["parameters"]:,} | {parameters} '
            f'| {row["macs_640x480"] / 1e9:.2f} | {macs} '
            f'| {row["pruned_parameters"]:,} | {row["pruned_macs_640x480"] / 1e9:.2f} |'
        )
    if report.get('exports'):
        lines += [
            '',
            f'CPU time of one thread at 640x480 ({report["machine"]}), the least of several runs:',
            '',
            '| Network | ONNX: largest difference | off by > 0.05 px | CPU time | Runs |',
            '| --- | ---: | ---: | ---: | ---: |',
        ]
        lines += [
            f'| {row["label"]} | {row["parity_px"]:.4f} px | {100 * row["off_fraction"]:.2f} % '
            f'| {row["latency_ms"]:,.0f} ms | {row["runs"]} |'
            for row in report['exports']
        ]
    if report.get('official'):
        lines += [
            '',
            '| Official weights | KITTI 2015 pairs | EPE of the stages in px | D1 |',
            '| --- | ---: | ---: | ---: |',
        ]
        lines += [
            f'| {row["weights"]} | {row["pairs"]} '
            f'| {", ".join(f"{value:.2f}" for value in row["epe_px"])} '
            f'| {row["d1_percent"]:.1f} % |'
            for row in report['official']
        ]
    return '\n'.join(lines) + '\n'


def write_into(page: Path, text: str) -> None:
    """Put `text` between the markers of a page.

    Raises:
        NetworkError: the page has no markers.
    """
    content = page.read_text(encoding='utf-8')
    if BEGIN not in content or END not in content.split(BEGIN, 1)[1]:
        raise NetworkError(f'{page} has no place for the table: a line {BEGIN!r}, then {END!r}')
    before, rest = content.split(BEGIN, 1)
    after = rest.split(END, 1)[1]
    page.write_text(f'{before}{BEGIN}\n\n{text}\n{END}{after}', encoding='utf-8')
