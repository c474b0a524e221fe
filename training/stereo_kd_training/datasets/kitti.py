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

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Benchmark:
    """One of the two sets, opened by a call: `kitti2015(root, occluded=False)`.

    Attributes:
        name: of the set.
        folders: that its archive's content may lie in, below the root; the usual one first.
        views: folders of left and right pictures, those to prefer first.
        truth: folders of the truth of all pixels, and of those visible in both views.
    """

    name: str
    folders: tuple[str, ...]
    views: tuple[tuple[str, str], ...]
    truth: tuple[str, str]

    def __call__(
        self,
        root: str | Path,
        split: Split = 'training',
        occluded: bool = True,
        skip_incomplete: bool = False,
    ) -> StereoDataset:
        """Its pairs; `occluded` counts the pixels that only the left camera sees, too.

        Raises:
            DatasetError: not there, or incomplete.
        """
        if split not in ('training', 'testing'):
            raise DatasetError(f"split must be 'training' or 'testing', got {split!r}")
        root = Path(root)
        truth = self.truth[0] if occluded else self.truth[1]
        bases = candidate_folders(root, self.folders)
        # A root may be the split's folder itself.
        places = [base / split for base in bases] + ([root] if root.name == split else [])
        for place in places:
            for left_name, right_name in self.views:
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
                    what = f'{self.name} {split} in {place}'
                    complete = complete_pairs(pairs, what, skip_incomplete)
                    return StereoDataset(self.name, complete)
        folders = [folder for views in self.views for folder in views]
        if split == 'training':
            folders.append(truth)
        looked_for = [f'[{self.folders[0]}/]{split}/{folder}/*_10.png' for folder in folders]
        raise not_found(root, f'{self.name} ({split})', looked_for)


kitti2012 = Benchmark(
    'kitti2012',
    folders=('data_stereo_flow', 'kitti2012', 'kitti_2012', 'kitti12', '2012'),
    views=(('colored_0', 'colored_1'), ('image_0', 'image_1')),
    truth=('disp_occ', 'disp_noc'),
)
kitti2015 = Benchmark(
    'kitti2015',
    folders=('data_scene_flow', 'kitti2015', 'kitti_2015', 'kitti15', '2015'),
    views=(('image_2', 'image_3'),),
    truth=('disp_occ_0', 'disp_noc_0'),
)


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
