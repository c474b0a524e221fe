# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""KITTI 2012 and 2015: streets, about 1242x375, sparse LiDAR truth as 16-bit PNG.

Geiger et al., CVPR 2012 (194 training pairs); Menze and Geiger, CVPR 2015 (200 pairs). As the
benchmark's archives unpack, in the root itself or in a folder of the archive's name:

    2012   {training,testing}/{colored_0,colored_1}/000000_10.png, disp_occ/, disp_noc/
           (or the grey image_0, image_1)
    2015   {training,testing}/{image_2,image_3}/000000_10.png, disp_occ_0/, disp_noc_0/

Only the `_10` frames have truth. `occ` has all pixels, `noc` those visible in both views. The
test pairs have no public truth: theirs is NaN everywhere. Both sets are small and their
truth is for training, so papers compare by five-fold cross-validation: `fold`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from stereo_kd_ros.disparity_io import read_kitti_png
from stereo_kd_training.datasets.base import (
    DatasetError,
    PairFiles,
    StereoDataset,
    candidate_folders,
    complete_pairs,
    not_found,
)

Split = Literal['training', 'testing']

_FOLDERS = {
    'kitti2012': ('data_stereo_flow', 'kitti2012', 'kitti_2012', 'kitti12', '2012'),
    'kitti2015': ('data_scene_flow', 'kitti2015', 'kitti_2015', 'kitti15', '2015'),
}
_VIEWS = {
    'kitti2012': (('colored_0', 'colored_1'), ('image_0', 'image_1')),
    'kitti2015': (('image_2', 'image_3'),),
}


def kitti2012(
    root: str | Path,
    split: Split = 'training',
    occluded: bool = True,
    skip_incomplete: bool = False,
) -> StereoDataset:
    """KITTI 2012; `occluded` counts the pixels that only the left camera sees, too.

    Raises:
        DatasetError: not there, or incomplete.
    """
    truth = 'disp_occ' if occluded else 'disp_noc'
    return _read('kitti2012', Path(root), split, truth, skip_incomplete)


def kitti2015(
    root: str | Path,
    split: Split = 'training',
    occluded: bool = True,
    skip_incomplete: bool = False,
) -> StereoDataset:
    """KITTI 2015; `occluded` counts the pixels that only the left camera sees, too.

    Raises:
        DatasetError: not there, or incomplete.
    """
    truth = 'disp_occ_0' if occluded else 'disp_noc_0'
    return _read('kitti2015', Path(root), split, truth, skip_incomplete)


def fold(
    dataset: StereoDataset, index: int, folds: int = 5, seed: int = 0
) -> tuple[StereoDataset, StereoDataset]:
    """Training and validation part of one fold of a cross-validation.

    The pairs are shuffled by `seed` first, as neighbours in KITTI show the same street; every
    pair is in the validation part of exactly one fold.

    Raises:
        DatasetError: no such fold, or more folds than pairs.
    """
    if not 0 <= index < folds or not 2 <= folds <= len(dataset):
        raise DatasetError(
            f'fold {index} of {folds}: index must be 0 to folds - 1, and folds 2 to the '
            f'{len(dataset)} pairs of {dataset.name}'
        )
    order = np.random.default_rng(seed).permutation(len(dataset))
    held_out = np.array_split(order, folds)[index]
    kept = np.setdiff1d(order, held_out)
    return dataset.subset(kept.tolist()), dataset.subset(sorted(held_out.tolist()))


def _read(name: str, root: Path, split: Split, truth: str, skip_incomplete: bool) -> StereoDataset:
    if split not in ('training', 'testing'):
        raise DatasetError(f"split must be 'training' or 'testing', got {split!r}")
    bases = candidate_folders(root, _FOLDERS[name])
    # A root may be the split's folder itself.
    places = [base / split for base in bases] + ([root] if root.name == split else [])
    for place in places:
        for left_name, right_name in _VIEWS[name]:
            frames = sorted((place / left_name).glob('*_10.png'))
            pairs = [
                PairFiles(
                    left.stem,
                    left,
                    place / right_name / left.name,
                    place / truth / left.name if split == 'training' else None,
                    read_kitti_png,
                )
                for left in frames
            ]
            if pairs:
                what = f'{name} {split} in {place}'
                return StereoDataset(name, complete_pairs(pairs, what, skip_incomplete))
    looked_for = [
        f'[{_FOLDERS[name][0]}/]{split}/{folder}/*_10.png'
        for views in _VIEWS[name]
        for folder in views
    ]
    if split == 'training':
        looked_for.append(f'[{_FOLDERS[name][0]}/]{split}/{truth}/*_10.png')
    raise not_found(root, f'{name} ({split})', looked_for)
