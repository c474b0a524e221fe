# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sheets of pictures to look at: what a pool holds, and where a model is best and worst."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import cv2
import numpy as np
import typer

from stereo_kd_ros.metrics import disparity_metrics
from stereo_kd_ros.visualize import colorize_disparity, colorize_error, picture_strip

JPEG_QUALITY = 85


class SheetError(ValueError):
    """A sheet without pictures, or a file name of no kind of picture."""


def pool_sheet(
    pool: Sequence[Any], indices: Sequence[int], width_px: int = 288, pairs_per_row: int = 2
) -> np.ndarray:
    """Left, right and disparity of some pairs, (H, W, 3) uint8 RGB.

    Args:
        pool: of pairs with `left`, `right` and `disparity`.
        indices: which of them.
        width_px: of each picture.
        pairs_per_row: three pictures each.

    Raises:
        SheetError: no index.
    """
    if not len(indices):
        raise SheetError('a sheet needs at least one pair')
    pictures = []
    for index in indices:
        pair = pool[index]
        for picture in (pair.left, pair.right, colorize_disparity(pair.disparity)):
            height = round(picture.shape[0] * width_px / picture.shape[1])
            pictures.append(cv2.resize(picture, (width_px, height), interpolation=cv2.INTER_AREA))
    return picture_strip(pictures, columns=3 * pairs_per_row)


def write_picture(path: str | Path, picture: np.ndarray) -> None:
    """Write an RGB picture as PNG or JPEG by the file's ending.

    Raises:
        SheetError: the ending is neither.
        OSError: the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in ('.png', '.jpg', '.jpeg'):
        raise SheetError(f'{path} ends in neither .png nor .jpg')
    options = [] if path.suffix.lower() == '.png' else [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY]
    _, stream = cv2.imencode(path.suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), options)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.tobytes())


@dataclass(frozen=True)
class _Seen:
    name: str
    epe_px: float
    pictures: tuple[np.ndarray, ...]


class Extremes:
    """Keeps the pictures of the pairs that a method answered best and worst, and no others."""

    def __init__(self, count: int = 4):
        self.count = count
        self._best: list[tuple[float, int, _Seen]] = []
        self._worst: list[tuple[float, int, _Seen]] = []
        self._number = 0

    def see(self, name: str, left: np.ndarray, truth: np.ndarray, answer: np.ndarray) -> None:
        """Take note of an answer (H, W) px to a pair whose truth is (H, W) px."""
        epe = disparity_metrics(answer, truth).epe_px
        if not np.isfinite(epe):
            return
        top = float(np.nanpercentile(np.where(np.isfinite(truth), truth, np.nan), 99))
        pictures = (
            left,
            colorize_disparity(truth, top),
            colorize_disparity(answer, top),
            colorize_error(answer, truth),
        )
        seen = _Seen(name, epe, pictures)
        self._number += 1
        for heap, rank in ((self._best, -epe), (self._worst, epe)):
            entry = (rank, self._number, seen)
            if len(heap) < self.count:
                heapq.heappush(heap, entry)
            else:
                heapq.heappushpop(heap, entry)

    def best(self) -> list[tuple[str, float]]:
        """Names and EPE [px], the smallest error first."""
        return [(seen.name, seen.epe_px) for _, _, seen in sorted(self._best, reverse=True)]

    def worst(self) -> list[tuple[str, float]]:
        """Names and EPE [px], the largest error first."""
        return [(seen.name, seen.epe_px) for _, _, seen in sorted(self._worst, reverse=True)]

    def sheet(self, width_px: int = 320) -> np.ndarray:
        """Rows of left, truth, answer and error: the worst, then the best.

        Raises:
            SheetError: nothing with truth was seen.
        """
        if not self._worst:
            raise SheetError('no pair with truth was seen')
        pictures, labels = [], []
        height = None
        for title, heap in (('worst', self._worst), ('best', self._best)):
            for _, _, seen in sorted(heap, reverse=True):
                if height is None:
                    rows, columns = seen.pictures[0].shape[:2]
                    height = round(rows * width_px / columns)
                for picture in seen.pictures:
                    small = cv2.resize(picture, (width_px, height), interpolation=cv2.INTER_AREA)
                    pictures.append(small)
                labels += [f'{title}: {seen.name}', 'truth', f'EPE {seen.epe_px:.2f} px', 'error']
        return picture_strip(pictures, labels, columns=4)


def sheet_command(
    pool: Annotated[Path, typer.Argument(help='Pool made by generate.')],
    out: Annotated[Path, typer.Option('--out', '-o', help='The .png or .jpg to write.')],
    count: Annotated[int, typer.Option(min=1, help='Pairs.')] = 12,
    first: Annotated[int, typer.Option(min=0, help='Number of the first pair.')] = 0,
    width: Annotated[int, typer.Option(min=32, help='Pixels of each picture.')] = 288,
) -> None:
    """Draw left, right and disparity of some pairs of a pool, to look at."""
    from stereo_kd_training.datasets.procedural import PairPool

    pairs = PairPool(pool)
    last = min(first + count, len(pairs))
    if first >= last:
        raise SheetError(f'{pool} holds {len(pairs)} pairs, none from number {first} on')
    write_picture(out, pool_sheet(pairs, range(first, last), width))
    typer.echo(f'wrote {out} ({out.stat().st_size / 1e3:.0f} kB)')
