# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""ETH3D two-view: small grey indoor and outdoor pairs with laser-scanned truth.

Schoeps et al., CVPR 2017. As the archives unpack:

    two_view_training/<scene>/{im0.png, im1.png}
    two_view_training_gt/<scene>/{disp0GT.pfm, mask0nocc.png}   (or beside the pictures)
    two_view_test/<scene>/{im0.png, im1.png}                    (no public truth)

A pixel without truth is inf.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from stereo_kd_ros.disparity_io import read_pfm
from stereo_kd_training.datasets.base import (
    PairFiles,
    StereoDataset,
    candidate_folders,
    complete_pairs,
    not_found,
)
from stereo_kd_training.datasets.middlebury import read_non_occluded


def eth3d(
    root: str | Path,
    split: Literal['training', 'test'] = 'training',
    non_occluded: bool = False,
    skip_incomplete: bool = False,
) -> StereoDataset:
    """The two-view pairs; `non_occluded` keeps the truth only where both cameras see.

    Raises:
        DatasetError: not there, or training scenes without truth.
    """
    root = Path(root)
    folder = f'two_view_{split}'
    for base in candidate_folders(root, ('eth3d', 'two_view')):
        pairs = []
        for left in sorted((base / folder).glob('*/im0.png')):
            scene = left.parent
            beside = scene / 'disp0GT.pfm'
            apart = base / f'{folder}_gt' / scene.name / 'disp0GT.pfm'
            truth = beside if beside.is_file() else apart
            pairs.append(
                PairFiles(
                    scene.name,
                    left,
                    scene / 'im1.png',
                    truth if split == 'training' else None,
                    read_non_occluded if non_occluded else read_pfm,
                )
            )
        if pairs:
            what = f'ETH3D {split} in {base}'
            return StereoDataset('eth3d', complete_pairs(pairs, what, skip_incomplete))
    looked_for = [f'[eth3d/]{folder}/<scene>/{{im0.png, im1.png}}']
    if split == 'training':
        looked_for.append(f'[eth3d/]{folder}_gt/<scene>/disp0GT.pfm')
    raise not_found(root, f'ETH3D two-view ({split})', looked_for)
