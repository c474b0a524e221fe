# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd-train prune`: fewer channels for a trained network, chosen by measuring.

What comes out is a checkpoint to train on from (`initial_weights`), or to export as it is. See
`stereo_kd_training.measured_pruning` for how channels are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from stereo_kd_ros.benchmark import check_plot
from stereo_kd_ros.commands.console import image_size
from stereo_kd_training.adapt.settings import write_json
from stereo_kd_training.bars import console, stage_bars
from stereo_kd_training.threads import Threads, use_threads


def prune_command(
    trained: Annotated[Path, typer.Argument(help='Run folder, checkpoint or shipped .onnx file.')],
    pool: Annotated[list[Path], typer.Option(help='Pool(s) made by generate; repeatable.')],
    out: Annotated[Path, typer.Option('--out', '-o', help='The checkpoint (.pt) to write.')],
    share: Annotated[
        float, typer.Option(min=0.05, max=0.999, help='Of the multiply-accumulates, to be left.')
    ] = 0.7,
    crops: Annotated[int, typer.Option(min=2, help='To judge by, and to learn from.')] = 24,
    crop: Annotated[str, typer.Option(help='WIDTHxHEIGHT of a crop.')] = '576x288',
    block: Annotated[int, typer.Option(min=1, help='Channels that go at once.')] = 8,
    only: Annotated[
        list[str] | None,
        typer.Option(help='Beginning of the names of parts that may lose channels; repeatable.'),
    ] = None,
    seed: Annotated[int, typer.Option(help='Of the crops.')] = 0,
    plot: Annotated[
        Path | None, typer.Option(help='Error over operations, as a chart (.svg, .png, .pdf).')
    ] = None,
    threads: Threads = 2,
) -> None:
    """Remove the channels that a trained network misses least, each removal measured.

    OUT is written after every removal, so what is stopped can be used as it is; begun anew from
    OUT, its share is of what OUT has left.
    """
    from stereo_kd_training.calibration import load_trained
    from stereo_kd_training.datasets.procedural import PairPool
    from stereo_kd_training.measured_pruning import prune_on_pairs
    from stereo_kd_training.prune import PruneError, count_macs, save_network
    from stereo_kd_training.train import ConcatenatedPairs

    use_threads(threads)
    if plot is not None:
        check_plot(plot)
    if out.suffix != '.pt':
        raise PruneError(f'{out} is to be a checkpoint; name it .pt, and export that')
    network, _ = load_trained(trained)
    width, height = image_size(crop)
    pairs = ConcatenatedPairs([PairPool(folder) for folder in pool])
    before = count_macs(network)
    rows = [{'share': 1.0, 'macs': before, 'error': 0.0, 'group': None, 'channels': None}]
    with stage_bars() as report:
        removals = prune_on_pairs(
            network,
            pairs,
            crops=crops,
            crop=(height, width),
            seed=seed,
            block=block,
            only=tuple(only or ()),
            progress=lambda tried, groups: report('groups tried', tried, groups, ''),
        )
        saved = round(100 * (1 - share))
        for removal in removals:
            save_network(removal.network, out)
            rows.append(
                {
                    'share': removal.share,
                    'macs': removal.macs,
                    'error': removal.error,
                    'group': removal.group,
                    'channels': removal.channels,
                }
            )
            write_json(out.with_suffix('.json'), rows)
            done = min(saved, round(100 * (1 - removal.share)))
            report('% of the operations', done, saved, f'error {percent(removal.error)}')
            if removal.share <= share:
                break
    if len(rows) == 1:
        raise PruneError(
            f'{trained} has no group of channels that can lose {block} and is worth it; '
            'try a smaller --block'
        )
    for row in rows[1:]:
        console.print(
            f'{row["macs"] / 1e9:.3f} GMAC ({row["share"]:.3f})  {row["group"]}: '
            f'{row["channels"]} channels left, error {percent(row["error"])}',
            highlight=False,
            soft_wrap=True,
        )
    if rows[-1]['share'] > share:
        console.print(f'no group has {2 * block} channels left: {share} is out of reach')
    if plot is not None:
        plot_frontier(rows, plot)
    console.print(f'wrote {out}; train on from it (initial_weights) before you judge it')


def percent(error: float) -> str:
    """Two errors' mean ratio, from the sum of their logarithms, as a change in per cent."""
    return f'{100 * math.expm1(error / 2):+.1f} %'


def plot_frontier(rows: Sequence[dict], path: Path) -> None:
    """Error over what is left of the operations, with the group that each larger step took."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout='constrained')
    axes = figure.subplots()
    left = [100 * row['share'] for row in rows]
    errors = [100 * math.expm1(row['error'] / 2) for row in rows]
    axes.plot(left, errors, marker='.', color='tab:blue')
    for index in range(1, len(rows)):
        if left[index - 1] - left[index] > 1.5:
            axes.annotate(
                f'{rows[index]["group"]}: {rows[index]["channels"]}',
                (left[index], errors[index]),
                textcoords='offset points',
                xytext=(4, -9),
                fontsize=7,
            )
    axes.invert_xaxis()
    axes.set_xlabel('multiply-accumulates left, %')
    axes.set_ylabel('error, % more before training on')
    axes.grid(alpha=0.3)
    figure.savefig(path)
