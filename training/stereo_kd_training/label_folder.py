# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Truth in place of truth: pairs without any, and what a teacher that agrees with itself says.

A robot's own pictures have no ground truth, yet a bare wall in them tells more than another
benchmark. A strong network is asked about each pair and about its mirror image; where both
answers agree its disparity is written, elsewhere nothing is known. What comes out is a benchmark
folder that `evaluate` reads, and figures on it are distances to the teacher, not errors.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stereo_kd_ros.disparity_io import read_pfm, write_pfm
from stereo_kd_training.adapt.settings import write_json
from stereo_kd_training.adapt.teachers import open_teacher
from stereo_kd_training.bars import console, stage_bars
from stereo_kd_training.datasets.base import DatasetError, PairFiles, StereoDataset, not_found
from stereo_kd_training.teachers import Teacher, asked_twice

DISPARITY_FILE = 'disp.pfm'
ABOUT_FILE = 'labelled_by.json'


@dataclass(frozen=True)
class LabelledFolder:
    """What was labelled.

    Attributes:
        pairs: number of them, those of an earlier run included.
        kept: share of the pixels, over all pairs, that got a disparity.
    """

    pairs: int
    kept: float


def unlabelled_pairs(root: str | Path) -> list[PairFiles]:
    """SET/SCENE below `root` with left.png and right.png and no disp*, sorted by that name.

    Raises:
        DatasetError: there is none.
    """
    root = Path(root)
    found = []
    for left in sorted(root.glob('*/*/left.png')):
        scene = left.parent
        right = scene / 'right.png'
        if right.is_file() and not any(scene.glob('disp*')):
            found.append(PairFiles(str(scene.relative_to(root)), left, right, None))
    if not found:
        wanted = ['<set>/<scene>/left.png', '<set>/<scene>/right.png', 'and no disp* beside them']
        raise not_found(root, 'a folder of pairs without truth', wanted)
    return found


def self_consistent(
    teacher: Teacher, left: np.ndarray, right: np.ndarray, tolerance_px: float
) -> np.ndarray:
    """A teacher's disparity (H, W) float32 px, NaN where its answer to the mirrored pair differs
    by `tolerance_px` or more, or leads out of the right picture.

    Args:
        teacher: any that may be asked about a pair it has not seen.
        left, right: (H, W, 3) uint8 RGB.
        tolerance_px: above 0.
    """
    answer, agreement = asked_twice(teacher, left, right, tolerance_px)
    # exp(-1) is a difference of just the tolerance.
    return np.where(agreement > np.exp(-1), answer.disparity, np.nan).astype(np.float32)


def label_folder(
    data: str | Path,
    out: str | Path,
    teacher: Teacher,
    tolerance_px: float = 1.0,
    on_pair: Callable[[str, int, int], None] = lambda name, number, count: None,
) -> LabelledFolder:
    """Copy pairs without truth to `out`, each with the disparity of a teacher.

    Pairs that `out` has are not asked about again, so an interrupted run goes on.

    Args:
        data: SET/SCENE/{left.png, right.png}.
        out: the same with disp.pfm, and `labelled_by.json`.
        teacher: who answers.
        tolerance_px: see `self_consistent`.
        on_pair: told the name of each pair done, its number from 1, and how many there are.

    Raises:
        DatasetError: no such pairs, views of two sizes, or `out` is `data` or holds answers of
            another teacher or tolerance.
    """
    data, out = Path(data), Path(out)
    pairs = unlabelled_pairs(data)
    if out.resolve() == data.resolve():
        raise DatasetError(f'{out}: the labelled copy needs a folder of its own')
    _claim(out, {'teacher': teacher.name, 'sha256': teacher.fingerprint, 'px': tolerance_px})
    kept = 0.0
    for number, pair in enumerate(pairs, 1):
        target = out / pair.name
        labels = target / DISPARITY_FILE
        if not labels.is_file():
            sample = StereoDataset(str(data), [pair])[0]
            disparity = self_consistent(teacher, sample.left, sample.right, tolerance_px)
            target.mkdir(parents=True, exist_ok=True)
            for eye in (pair.left, pair.right):
                shutil.copyfile(eye, target / eye.name)
            partial = labels.with_suffix('.partial')
            write_pfm(partial, disparity)
            os.replace(partial, labels)
        kept += float(np.isfinite(read_pfm(labels)).mean())
        on_pair(pair.name, number, len(pairs))
    return LabelledFolder(len(pairs), kept / len(pairs))


def _claim(out: Path, about: dict[str, object]) -> None:
    path = out / ABOUT_FILE
    if path.is_file():
        found = json.loads(path.read_text())
        if found != about:
            raise DatasetError(
                f'{out} holds answers of {found.get("teacher")} within {found.get("px")} px, not '
                f'of this teacher and tolerance; name another folder'
            )
    else:
        write_json(path, about)


def label_command(
    data: Annotated[
        Path, typer.Argument(help='Pairs without truth: <set>/<scene>/{left.png, right.png}.')
    ],
    out: Annotated[
        Path, typer.Option('--out', '-o', help='Folder to write, for `evaluate --data`.')
    ],
    teacher: Annotated[
        str,
        typer.Option(help='hitnet=FILE.onnx, NAME=FILE.onnx@YAML, a model, ensemble=large, ...'),
    ],
    tolerance: Annotated[
        float, typer.Option(min=0.01, help='Pixels that its two answers may differ by.')
    ] = 1.0,
    threads: Annotated[int, typer.Option(min=1, help='Threads of the teacher.')] = 2,
) -> None:
    """Label pairs without truth by a teacher, where it agrees with itself (resumable)."""
    named = open_teacher(teacher, threads=threads)
    with stage_bars() as report:
        made = label_folder(
            data,
            out,
            named.teacher,
            tolerance,
            lambda name, number, count: report('label', number, count, name),
        )
    console.print(
        f'wrote {out}: {made.pairs} pairs, {made.kept:.0%} of their pixels; '
        f'labels: {named.licence}',
        soft_wrap=True,
    )
