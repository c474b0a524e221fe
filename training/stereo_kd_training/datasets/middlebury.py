# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Middlebury: indoor scenes with dense structured-light truth, 2001 to 2021 and its benchmark.

Scharstein et al., IJCV 2002, CVPR 2003, CVPR 2007, GCPR 2014. One folder per scene:

    2001   im2.ppm, im6.ppm, disp2.pgm (8 steps per pixel)
           tsukuba: scene1.row3.col3.ppm, .col4.ppm, truedisp.row3.col3.pgm (16)
           map: im0.pgm, im1.pgm, disp0.pgm (8)
    2003   im2, im6, disp2 as png or ppm/pgm; 4 steps per pixel at 450 px width, 2 at 900,
           1 at 1800
    2005, 2006  view1.png, view5.png, disp1.png; 3 steps per pixel at third size, 2 at half,
           1 at full, told apart by the height of 370, 555 or 1110; the seven-view archives
           have their pictures in Illum1/Exp1
    2014, 2021  im0.png, im1.png, disp0.pfm
    eval3  {trainingQ,trainingH,trainingF}/<scene>/{im0.png, im1.png, disp0GT.pfm,
           mask0nocc.png}, testQ... without truth

8-bit maps mark an unknown pixel with 0, PFM ones with inf.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import cv2
import numpy as np

from stereo_kd_ros.disparity_io import read_pfm, read_scaled_png
from stereo_kd_training.datasets.base import (
    DatasetError,
    PairFiles,
    ReadDisparity,
    StereoDataset,
    candidate_folders,
    not_found,
)

Year = Literal['2001', '2003', '2005', '2006', '2014', '2021']


def read_2003(path: Path) -> np.ndarray:
    """A map of 2003, whose scale follows from its width: float32 (H, W) px.

    Raises:
        DisparityFileError: not an 8-bit map.
    """
    steps = read_scaled_png(path, 1.0)
    return steps / np.float32(1800 / steps.shape[1])


def read_2005(path: Path) -> np.ndarray:
    """A map of 2005 or 2006, whose scale follows from its height: float32 (H, W) px.

    Raises:
        DisparityFileError: not an 8-bit map.
    """
    steps = read_scaled_png(path, 1.0)
    return steps / np.float32(round(1110 / steps.shape[0]))


# Left, right and truth of one scene, and how the truth is read.
_FILES: dict[str, list[tuple[str, str, str, ReadDisparity]]] = {
    '2001': [
        ('im2.ppm', 'im6.ppm', 'disp2.pgm', partial(read_scaled_png, steps_per_px=8.0)),
        (
            'scene1.row3.col3.ppm',
            'scene1.row3.col4.ppm',
            'truedisp.row3.col3.pgm',
            partial(read_scaled_png, steps_per_px=16.0),
        ),
        ('im0.pgm', 'im1.pgm', 'disp0.pgm', partial(read_scaled_png, steps_per_px=8.0)),
    ],
    '2003': [
        ('im2.png', 'im6.png', 'disp2.png', read_2003),
        ('im2.ppm', 'im6.ppm', 'disp2.pgm', read_2003),
    ],
    '2005': [
        ('view1.png', 'view5.png', 'disp1.png', read_2005),
        ('Illum1/Exp1/view1.png', 'Illum1/Exp1/view5.png', 'disp1.png', read_2005),
    ],
    '2014': [('im0.png', 'im1.png', 'disp0.pfm', read_pfm)],
}
_FILES['2006'] = _FILES['2005']
_FILES['2021'] = _FILES['2014']


def middlebury(root: str | Path, year: Year) -> StereoDataset:
    """The scenes of one year, in the root, in a folder of the year or in `middlebury<year>`.

    Raises:
        DatasetError: no scene of that year's layout there, or no such year.
    """
    root = Path(root)
    year = str(year)  # type: ignore[assignment]
    if year not in _FILES:
        raise DatasetError(f'unknown Middlebury year {year!r}; known: {sorted(_FILES)}, eval3')
    folders = (year, f'middlebury{year}', f'middlebury_{year}', f'scenes{year}')
    for base in candidate_folders(root, folders):
        pairs = [
            pair
            for scene in sorted(p for p in base.iterdir() if p.is_dir())
            if (pair := _scene(scene, year)) is not None
        ]
        if pairs:
            return StereoDataset(f'middlebury{year}', pairs)
    raise not_found(
        root,
        f'Middlebury {year}',
        [f'[{year}/]<scene>/{{{left}, {right}, {disp}}}' for left, right, disp, _ in _FILES[year]],
    )


def middlebury_eval3(
    root: str | Path,
    resolution: Literal['Q', 'H', 'F'] = 'Q',
    split: Literal['training', 'test'] = 'training',
    non_occluded: bool = False,
) -> StereoDataset:
    """The benchmark's pairs at quarter, half or full resolution.

    Args:
        root: the folder that holds `trainingQ` and so on, or MiddEval3 in it.
        resolution: Q, H or F.
        split: the test pairs come without truth.
        non_occluded: keep the truth only where both cameras see (`mask0nocc.png`).

    Raises:
        DatasetError: not there.
    """
    root = Path(root)
    folder = f'{split}{resolution}'
    reader = read_non_occluded if non_occluded else read_pfm
    for base in candidate_folders(root, ('MiddEval3', 'middlebury', 'eval3')):
        pairs = []
        for left in sorted((base / folder).glob('*/im0.png')):
            truth = left.with_name('disp0GT.pfm')
            if left.with_name('im1.png').is_file():
                pairs.append(
                    PairFiles(
                        left.parent.name,
                        left,
                        left.with_name('im1.png'),
                        truth if truth.is_file() else None,
                        reader,
                    )
                )
        if pairs:
            return StereoDataset(f'middlebury-eval3-{folder}', pairs)
    raise not_found(
        root,
        f'Middlebury eval3 {folder}',
        [f'[MiddEval3/]{folder}/<scene>/{{im0.png, im1.png, disp0GT.pfm, mask0nocc.png}}'],
    )


def read_non_occluded(path: Path) -> np.ndarray:
    """A PFM, NaN where the `mask0nocc.png` beside it is not 255 (128 is occluded, 0 unknown).

    Raises:
        DatasetError: no such mask, or of another size.
    """
    disparity = read_pfm(path)
    mask_file = path.with_name('mask0nocc.png')
    mask = cv2.imread(str(mask_file), cv2.IMREAD_GRAYSCALE) if mask_file.is_file() else None
    if mask is None or mask.shape != disparity.shape:
        found = 'none' if mask is None else f'one of shape {mask.shape}'
        raise DatasetError(f'{mask_file}: expected a mask of {disparity.shape}, found {found}')
    return np.where(mask == 255, disparity, np.float32(np.nan))


def _scene(scene: Path, year: str) -> PairFiles | None:
    for left, right, disparity, reader in _FILES[year]:
        if all((scene / file).is_file() for file in (left, right, disparity)):
            return PairFiles(scene.name, scene / left, scene / right, scene / disparity, reader)
    return None
