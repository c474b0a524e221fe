# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Anybody's pairs: one folder of left pictures, one of right ones, perhaps one of disparities.

    ROOT/left/0001.png   ROOT/right/0001.png   [ROOT/disparity/0001.{pfm,png,npy}]

Files belong together by their name without the ending. A disparity is of the left view: a PFM
or .npy in pixels, a 16-bit PNG in KITTI's 256 steps per pixel, or an 8-bit one of
`steps_per_px`. Without disparities the pairs serve a teacher, not a comparison.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np

from stereo_kd_ros.disparity_io import read_kitti_png, read_pfm, read_scaled_png
from stereo_kd_training.datasets.base import (
    DatasetError,
    PairFiles,
    ReadDisparity,
    StereoDataset,
    not_found,
)

_PICTURES = ('.png', '.jpg', '.jpeg', '.ppm', '.pgm', '.bmp', '.tif', '.tiff', '.webp')
_DISPARITIES = ('.pfm', '.npy', '.png')


def stereo_folder(
    root: str | Path,
    left: str = 'left',
    right: str = 'right',
    disparity: str | None = None,
    steps_per_px: float | None = None,
) -> StereoDataset:
    """Pairs from plain folders.

    Args:
        root: the folder that holds the others.
        left, right: names of the picture folders in it.
        disparity: name of the disparity folder; None takes `disparity` if there is one.
        steps_per_px: scale of 8-bit disparity pictures.

    Raises:
        DatasetError: a folder is missing, or pictures have no counterpart.
    """
    root = Path(root)
    lefts, rights = (_by_stem(root / name, _PICTURES) for name in (left, right))
    if not lefts or not rights:
        raise not_found(root, 'a folder of stereo pairs', [f'{left}/*.png', f'{right}/*.png'])
    if lefts.keys() != rights.keys():
        lone = sorted(lefts.keys() ^ rights.keys())
        raise DatasetError(
            f'{root}: {len(lefts)} pictures in {left}/ and {len(rights)} in {right}/; without '
            f'a counterpart: {", ".join(lone[:5])}{" ..." if len(lone) > 5 else ""}'
        )
    truths = _by_stem(root / (disparity or 'disparity'), _DISPARITIES)
    if disparity is not None or truths:
        missing = sorted(lefts.keys() - truths.keys())
        if missing:
            raise DatasetError(
                f'{root / (disparity or "disparity")}: no disparity for {len(missing)} of '
                f'{len(lefts)} pairs, the first is {missing[0]}; looked for '
                f'{missing[0]}{{{", ".join(_DISPARITIES)}}}'
            )
    pairs = [
        PairFiles(
            stem,
            lefts[stem],
            rights[stem],
            truths.get(stem),
            _reader(truths[stem], steps_per_px) if stem in truths else read_pfm,
        )
        for stem in sorted(lefts)
    ]
    return StereoDataset(root.name, pairs)


def read_npy(path: Path) -> np.ndarray:
    """A disparity saved by numpy.save: float32 (H, W) px.

    Raises:
        DatasetError: not a 2-D array of numbers.
    """
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DatasetError(f'{path}: not a NumPy array file: {error}') from error
    if values.ndim != 2 or not np.issubdtype(values.dtype, np.number):
        raise DatasetError(
            f'{path}: expected (H, W) disparities, found {values.dtype} of shape {values.shape}'
        )
    return values.astype(np.float32)


def _by_stem(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    if not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix.lower() in endings}


def _reader(path: Path, steps_per_px: float | None) -> ReadDisparity:
    if path.suffix.lower() == '.pfm':
        return read_pfm
    if path.suffix.lower() == '.npy':
        return read_npy
    if steps_per_px is not None:
        return partial(read_scaled_png, steps_per_px=steps_per_px)
    return read_kitti_png
