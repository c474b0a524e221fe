# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Scene Flow: FlyingThings3D, Monkaa and Driving, rendered pairs of 960x540 with dense truth.

Mayer et al., "A Large Dataset to Train Convolutional Networks for Disparity, Optical Flow, and
Scene Flow Estimation Networks", CVPR 2016. The layouts that are found below a root, where
PASS is `frames_cleanpass` or `frames_finalpass` (also with `_webp` after it) and DISPARITY is
`disparity` or `frames_disparity`:

    FlyingThings3D  PASS/{TRAIN,TEST}/{A,B,C}/0000/{left,right}/0006.png
                    DISPARITY/{TRAIN,TEST}/{A,B,C}/0000/left/0006.pfm
    its subset      {train,val}/{image_clean,image_final}/{left,right}/0000000.png
                    {train,val}/disparity/left/0000000.pfm       (negative there)
    Monkaa          PASS/<scene>/{left,right}/0000.png
    Driving         PASS/{15,35}mm_focallength/scene_*/{fast,slow}/{left,right}/0001.png

each directly in the root, in a folder of the set's name, or with the set's name before PASS
and DISPARITY (`monkaa_frames_cleanpass`), as different papers' code expects.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from stereo_kd_training.datasets.base import (
    DatasetError,
    PairFiles,
    StereoDataset,
    candidate_folders,
    complete_pairs,
    not_found,
)

Render = Literal['clean', 'final']
Split = Literal['train', 'test']

# Everything in FlyingThings3D's TEST folder: what papers call "Scene Flow test".
OFFICIAL_TEST_PAIRS = 4370

_PICTURES = ('.png', '.webp')


def scene_flow(
    root: str | Path,
    split: Split = 'train',
    render: Render = 'clean',
    skip_incomplete: bool = False,
) -> StereoDataset:
    """The whole data set as papers use it: train on all three, test on FlyingThings3D.

    Raises:
        DatasetError: one of the three is not there, or incomplete.
    """
    parts = [flying_things(root, split, render, skip_incomplete=skip_incomplete)]
    if split == 'train':
        parts += [
            monkaa(root, render, skip_incomplete=skip_incomplete),
            driving(root, render, skip_incomplete=skip_incomplete),
        ]
    return StereoDataset.joined(f'sceneflow-{split}', parts)


def flying_things(
    root: str | Path,
    split: Split = 'train',
    render: Render = 'clean',
    unused: Path | None = None,
    official: bool = False,
    skip_incomplete: bool = False,
) -> StereoDataset:
    """FlyingThings3D, the full set or its smaller subset, whichever lies there.

    Args:
        root: see the module.
        split: 'test' is TEST of the full set and val of the subset.
        render: clean or final pass.
        unused: a text file of frames to leave out, such as the authors'
            `all_unused_files.txt`: one `TRAIN/A/0004/left/0008.png` a line.
        official: demand the 4,370 pairs of the published test.
        skip_incomplete: pass over pairs of which a file is missing.

    Raises:
        DatasetError: not there, incomplete, or not the official test.
    """
    root = Path(root)
    _check(split, render)
    names = ('flyingthings3d', 'flyingthings3d_subset', 'flyingthings')
    upper = split.upper()
    found = _frames(root, names, render, f'{upper}/*/*/left')
    if not found:
        found = _subset_frames(root, names, 'train' if split == 'train' else 'val', render)
    if not found:
        raise not_found(
            root,
            f'FlyingThings3D ({split}, {render} pass)',
            [
                f'[FlyingThings3D/]frames_{render}pass/{upper}/*/*/left/*.png',
                f'[FlyingThings3D/]disparity/{upper}/*/*/left/*.pfm',
                f'{"train" if split == "train" else "val"}/image_{render}/left/*.png (subset)',
            ],
        )
    if unused is not None:
        left_out = {
            line.strip().removesuffix('.png')
            for line in unused.read_text(encoding='utf-8').splitlines()
        }
        found = [pair for pair in found if pair.name not in left_out]
    pairs = complete_pairs(found, f'FlyingThings3D {split} in {root}', skip_incomplete)
    if official and len(pairs) != OFFICIAL_TEST_PAIRS:
        raise DatasetError(
            f'{root}: the published Scene Flow test has {OFFICIAL_TEST_PAIRS} pairs, all of '
            f'FlyingThings3D TEST; {len(pairs)} were found'
        )
    return StereoDataset('flyingthings3d', pairs)


def monkaa(
    root: str | Path, render: Render = 'clean', skip_incomplete: bool = False
) -> StereoDataset:
    """Monkaa.

    Raises:
        DatasetError: not there, or incomplete.
    """
    return _training_only('monkaa', Path(root), render, '*/left', skip_incomplete)


def driving(
    root: str | Path, render: Render = 'clean', skip_incomplete: bool = False
) -> StereoDataset:
    """Driving, both focal lengths, directions and speeds.

    Raises:
        DatasetError: not there, or incomplete.
    """
    return _training_only(
        'driving', Path(root), render, '*mm_focallength/scene_*/*/left', skip_incomplete
    )


def _training_only(
    name: str, root: Path, render: Render, pattern: str, skip_incomplete: bool
) -> StereoDataset:
    _check('train', render)
    found = _frames(root, (name,), render, pattern)
    if not found:
        raise not_found(
            root,
            f'{name.capitalize()} ({render} pass)',
            [
                f'[{name}/]frames_{render}pass/{pattern}/*.png',
                f'[{name}/]disparity/{pattern}/*.pfm',
            ],
        )
    return StereoDataset(name, complete_pairs(found, f'{name} in {root}', skip_incomplete))


def _frames(root: Path, names: Iterable[str], render: Render, pattern: str) -> list[PairFiles]:
    """Pairs of the first place that has frames under `pattern`; files not checked yet."""
    names = tuple(names)
    prefixes = ('', *(f'{name}_' for name in names))
    for base in candidate_folders(root, names):
        for prefix in prefixes:
            disparities = _first_folder(
                base,
                # Of the same prefix first: another set may use the bare name beside it.
                [f'{p}{d}' for p in (prefix, '') for d in ('disparity', 'frames_disparity')],
            )
            for ending in ('', '_webp'):
                frames = _child(base, f'{prefix}frames_{render}pass{ending}')
                if frames is None:
                    continue
                # The pattern's depth differs between the three sets, so that it finds
                # pictures of its own set alone.
                pairs = [
                    _pair(frames, left, disparities or base / 'disparity')
                    for folder in sorted(frames.glob(pattern))
                    for left in sorted(folder.iterdir())
                    if left.suffix in _PICTURES
                ]
                if pairs:
                    return pairs
    return []


def _subset_frames(
    root: Path, names: Iterable[str], split: str, render: Render
) -> list[PairFiles]:
    for base in candidate_folders(root, names):
        frames = base / split / f'image_{render}' / 'left'
        if frames.is_dir():
            return [
                PairFiles(
                    f'{split}/{left.stem}',
                    left,
                    frames.parent / 'right' / left.name,
                    base / split / 'disparity' / 'left' / f'{left.stem}.pfm',
                )
                for left in sorted(frames.iterdir())
                if left.suffix in _PICTURES
            ]
    return []


def _pair(frames: Path, left: Path, disparities: Path) -> PairFiles:
    relative = left.relative_to(frames)
    return PairFiles(
        relative.with_suffix('').as_posix(),
        left,
        left.parent.parent / 'right' / left.name,
        disparities / relative.with_suffix('.pfm'),
    )


def _child(folder: Path, name: str) -> Path | None:
    exact = folder / name
    if exact.is_dir():
        return exact
    return next((p for p in folder.iterdir() if p.is_dir() and p.name.lower() == name), None)


def _first_folder(base: Path, names: Iterable[str]) -> Path | None:
    return next((found for name in names if (found := _child(base, name)) is not None), None)


def _check(split: str, render: str) -> None:
    if split not in ('train', 'test'):
        raise DatasetError(f"split must be 'train' or 'test', got {split!r}")
    if render not in ('clean', 'final'):
        raise DatasetError(f"render must be 'clean' or 'final', got {render!r}")
