# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A benchmark folder: one sub-folder per set, one folder per scene in it.

    ROOT/kitti2015/000002_10/{left.png, right.png, disp_noc.png}
    ROOT/middlebury2003/Cones/{left.png, right.png, disp.png}
    ROOT/sceneflow/TEST_A_0000_0006/{left.png, right.png, disp.pfm}

Pictures from many sources side by side, each scene small enough to copy: what a model is
measured on. The set's name says how its 8-bit maps are scaled; 16-bit PNG (KITTI's) and PFM
say it themselves, so a set of any name may use those. Scenes without a disparity, and
folders without scenes, are no part of the benchmark and are passed over.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from stereo_kd_ros.disparity_io import read_kitti_png, read_pfm, read_scaled_png
from stereo_kd_training.datasets.base import (
    DatasetError,
    PairFiles,
    ReadDisparity,
    StereoDataset,
    not_found,
)

# Steps per pixel of the sets that come with 8-bit maps. The 2005 and 2006 pictures are the
# third-size ones.
STEPS_PER_PX = {
    'middlebury2001': 8.0,
    'middlebury2003': 4.0,
    'middlebury2005': 3.0,
    'middlebury2006': 3.0,
}

# All pixels with truth before the non-occluded ones only.
_DISPARITY_FILES = ('disp_occ.png', 'disp.pfm', 'disp.png', 'disp_noc.png')


def labelled_sets(root: str | Path, names: list[str] | None = None) -> dict[str, StereoDataset]:
    """The sets below `root` by name, sorted; only those in `names` where it is given.

    Raises:
        DatasetError: no set found, or one of `names` is not there.
    """
    root = Path(root)
    found = {}
    if root.is_dir():
        for folder in sorted(p for p in root.iterdir() if p.is_dir()):
            pairs = _scenes(folder)
            if pairs:
                found[folder.name] = StereoDataset(folder.name, pairs)
    if not found:
        raise not_found(
            root,
            'a benchmark folder',
            [
                '<set>/<scene>/left.png',
                '<set>/<scene>/right.png',
                f'<set>/<scene>/{{{", ".join(_DISPARITY_FILES)}}}',
            ],
        )
    if names is None:
        return found
    missing = [name for name in names if name not in found]
    if missing:
        raise DatasetError(f'{root} has no set {missing}; it has {sorted(found)}')
    return {name: found[name] for name in names}


def _scenes(folder: Path) -> list[PairFiles]:
    pairs = []
    for scene in sorted(p for p in folder.iterdir() if p.is_dir()):
        left, right = scene / 'left.png', scene / 'right.png'
        truth = [scene / name for name in _DISPARITY_FILES if (scene / name).is_file()]
        if truth and left.is_file() and right.is_file():
            reader = _reader(folder.name, truth[0])
            pairs.append(PairFiles(scene.name, left, right, truth[0], reader))
    return pairs


def _reader(set_name: str, truth: Path) -> ReadDisparity:
    if truth.suffix == '.pfm':
        return read_pfm
    if set_name in STEPS_PER_PX:
        return partial(read_scaled_png, steps_per_px=STEPS_PER_PX[set_name])
    return read_kitti_png
