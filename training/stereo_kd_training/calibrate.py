# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd-train calibrate`: out of a trained network, a file whose confidence is a probability.

It takes a run folder, a checkpoint or a shipped ONNX file; see `stereo_kd_training.calibration`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from stereo_kd_training.threads import Threads, use_threads


def calibrate_command(
    trained: Annotated[Path, typer.Argument(help='Run folder, checkpoint or shipped .onnx file.')],
    pool: Annotated[list[Path], typer.Option(help='Pool(s) made by generate; repeatable.')],
    out: Annotated[Path, typer.Option('--out', '-o', help='The .onnx file to write.')],
    pairs: Annotated[int, typer.Option(min=4, help='Pairs of each pool, the last ones.')] = 100,
    name: Annotated[str | None, typer.Option(help='Model name; the file stem without.')] = None,
    version: Annotated[str, typer.Option(help='Model version, of a run or checkpoint.')] = '0.1.0',
    threads: Threads = 2,
) -> None:
    """Make the confidence of a trained model a probability; its disparity stays as it is."""
    from rich.console import Console
    from rich.progress import track

    from stereo_kd_training.calibration import (
        RIGHT_PX,
        RIGHT_SHARE,
        PairsOf,
        calibrate,
        load_trained,
    )
    from stereo_kd_training.complexity import complexity
    from stereo_kd_training.datasets.procedural import PairPool
    from stereo_kd_training.export import build_manifest, export_network, training_sources

    use_threads(threads)
    console = Console(soft_wrap=True)
    network, manifest = load_trained(trained)
    pools = [PairPool(folder) for folder in pool]
    samples = [
        (source, len(source) - 1 - index)
        for source in pools
        for index in range(min(pairs, len(source)))
    ]
    steps = iter(track(range(len(samples)), 'pairs', console=console, transient=True))
    result = calibrate(network, PairsOf(samples), progress=lambda done, total: next(steps, None))
    sources = training_sources([source.manifest for source in pools])
    record = {
        'weights': {key: round(value, 6) for key, value in result.weights.items()},
        'pairs': len(samples),
        'means': f'P(error < max({RIGHT_PX:g} px, {RIGHT_SHARE:.0%}))',
        'held_out': {'before': asdict(result.before), 'after': asdict(result.after)},
    }
    fresh = build_manifest(
        result.network,
        name or (manifest.name if manifest else out.stem),
        version=manifest.version if manifest else version,
        licence=manifest.licence if manifest else 'Apache-2.0',
        macs_640x480=complexity(result.network).macs,
        training_data=sources,
    )
    if manifest is not None:
        kept = [entry for entry in sources if entry not in manifest.training_data]
        fresh = replace(
            manifest,
            name=fresh.name,
            network=fresh.network,
            configuration=fresh.configuration,
            parameters=fresh.parameters,
            macs_640x480=fresh.macs_640x480,
            weights_sha256=fresh.weights_sha256,
            exporter=fresh.exporter,
            opset=fresh.opset,
            training_data=[*manifest.training_data, *kept],
            # The disparity is as it was, the confidence is not.
            metrics=_without_confidence(manifest.metrics),
            extra=dict(manifest.extra),
        )
    fresh.extra['confidence'] = record
    export_network(result.network, out, fresh)
    for label, of in (('before', result.before), ('after', result.after)):
        console.print(
            f'{label}: confidence {of.mean:.3f}, right {of.right:.3f}, calibration error '
            f'{of.calibration_error:.3f}, AUSE {of.ause:.3f} ({of.pixels} pixels held out)'
        )
    console.print(f'wrote {out} ({out.stat().st_size / 1e6:.2f} MB)')


def _without_confidence(metrics: Mapping[str, Any]) -> dict[str, Any]:
    summary = dict(metrics.get('summary', {}))
    for key in ('mean_confidence_ause', 'mean_confidence_gap'):
        summary.pop(key, None)
    return {**metrics, 'summary': summary} if summary else dict(metrics)
