# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd models`: which models ship with the package, and what each says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stereo_kd_ros.commands.console import console, readable_errors, table_of

if TYPE_CHECKING:
    from stereo_kd_ros.model import Manifest


@readable_errors
def models(
    model: Annotated[
        str | None, typer.Argument(help='Print the whole manifest of this file or shipped model.')
    ] = None,
    rig: Annotated[
        float | None,
        typer.Option(
            min=1e-6,
            help='Focal length in px times baseline in m: tells from which depth to which each '
            'model is of use.',
        ),
    ] = None,
) -> None:
    """List the shipped models, or print the manifest of one."""
    from stereo_kd_ros.model import list_models, model_directories, read_manifest, resolve_model

    if model is not None:
        path = resolve_model(model)
        manifest = read_manifest(path)
        if manifest is None:
            console.print(f'{path} carries no manifest.', soft_wrap=True)
        else:
            console.print_json(manifest.to_json())
        return

    paths = [Path(path) for path in list_models()]
    if not paths:
        searched = ', '.join(str(folder) for folder in model_directories())
        console.print(f'No model found. Searched: {searched}', soft_wrap=True)
        raise typer.Exit(1)
    columns = ['model', 'network', 'parameters', 'GMACs 640x480', 'range px', 'licence', 'MB']
    depth = 'useful depth m'
    table = table_of(*columns, *([] if rig is None else [depth]), whole=(depth,))
    for path in paths:
        manifest = read_manifest(path)
        size_mb = f'{path.stat().st_size / 1e6:.1f}'
        if manifest is None:
            table.add_row(path.stem, 'no manifest', '–', '–', '–', '–', size_mb)
            continue
        table.add_row(
            path.stem,
            manifest.network,
            f'{manifest.parameters / 1e6:.2f} M',
            f'{manifest.macs_640x480 / 1e9:.1f}',
            f'{manifest.min_disparity_px:g} .. {manifest.max_disparity_px:g}',
            manifest.licence,
            size_mb,
            *([] if rig is None else [_useful_depth(manifest, rig)]),
        )
    console.print(table)
    console.print(f'in {paths[0].parent}', soft_wrap=True)


def _useful_depth(manifest: Manifest, focal_baseline: float) -> str:
    from stereo_kd_ros.metrics import useful_depth_m

    error_px = manifest.metrics.get('summary', {}).get('geometric_mean_epe_px')
    known = isinstance(error_px, int | float) and error_px > 0
    near, far = useful_depth_m(
        focal_baseline, manifest.max_disparity_px, error_px if known else None
    )
    return f'{near:.2f} .. {far:.1f}' if known else f'{near:.2f} .. ?'
