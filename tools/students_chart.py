# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Draws docs/img/students.svg: error against operations of every version that was ever shipped.

python tools/students_chart.py       in a clone with its history; needs git and matplotlib

What it draws stands in models/zoo.json of each commit that changed it.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib

matplotlib.use('svg')
# The same figures give the same file.
matplotlib.rcParams['svg.hashsalt'] = 'students'
from matplotlib import pyplot  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
ZOO = 'models/zoo.json'
CHART = ROOT / 'docs' / 'img' / 'students.svg'
PEERS = {'hitnet': 'HITNet', 'sgbm-3way': 'SGBM 3WAY'}


class Version(NamedTuple):
    size: str
    version: str
    gmac: float
    epe_px: float


def git(*words: str) -> str:
    command = ['git', '-C', str(ROOT), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def every_version() -> Iterator[Version]:
    """Oldest first, each once, as it was first measured; what is not committed yet comes last."""
    seen = set()
    commits = git('log', '--reverse', '--format=%h', '--', ZOO).split()
    zoos = [git('show', f'{commit}:{ZOO}') for commit in commits]
    for text in [*zoos, (ROOT / ZOO).read_text()]:
        for model in json.loads(text)['models']:
            found = model['name'].removeprefix('kestrel_'), model['version']
            summary = model.get('accuracy', {}).get('summary', {})
            epe_px = summary.get('geometric_mean_epe_px')
            if model['name'].startswith('kestrel_') and epe_px and found not in seen:
                seen.add(found)
                yield Version(*found, model['macs_640x480'] / 1e9, epe_px)


def draw(versions: list[Version], peers: dict[str, float]) -> None:
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name, epe_px in peers.items():
        axes.axhline(epe_px, color='0.6', linestyle=':')
        axes.text(0.995, epe_px, f'{name} {epe_px:.2f} ', color='0.4', ha='right', va='bottom',
                  transform=axes.get_yaxis_transform())  # fmt: skip
    for size in dict.fromkeys(version.size for version in versions):
        line = [version for version in versions if version.size == size]
        x, y = ([getattr(each, name) for each in line] for name in ('gmac', 'epe_px'))
        (drawn,) = axes.plot(x, y, '.-', alpha=0.6)
        axes.plot(x[-1:], y[-1:], 'o', color=drawn.get_color())
        ends = {0: line[0].version, len(line) - 1: f'{size} {line[-1].version}'}
        for end, label in ends.items():
            above = end < len(line) - 1
            axes.annotate(
                label, (x[end], y[end]), (0, 6 if above else -6), textcoords='offset points',
                color=drawn.get_color(), ha='center', va='bottom' if above else 'top',
                fontsize=7 if above else 9,
            )  # fmt: skip
    axes.set_xscale('log')
    axes.set_xticks([1, 2, 4, 8], ['1', '2', '4', '8'])
    # Room for the name of the smallest.
    axes.set_xlim(left=0.75 * min(version.gmac for version in versions))
    axes.minorticks_off()
    axes.set_xlabel('GMAC of a 640x480 pair')
    axes.set_ylabel('EPE [px], geometric mean over the labelled sets')
    axes.spines[['top', 'right']].set_visible(False)
    figure.tight_layout()
    figure.savefig(CHART, metadata={'Date': None})


def main() -> None:
    versions = list(every_version())
    peers = json.loads((ROOT / ZOO).read_text())['peers']
    lines = {}
    for key, name in PEERS.items():
        peer = peers[key]
        summary = peer.get('summary') or peer['accuracy']['summary']
        lines[name] = summary['geometric_mean_epe_px']
    draw(versions, lines)
    print(f'{CHART.relative_to(ROOT)}: {len(versions)} versions')


if __name__ == '__main__':
    main()
