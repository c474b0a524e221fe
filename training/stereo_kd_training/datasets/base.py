# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The one interface of all data sets: a sequence of rectified pairs with their truth.

Every reader turns its files into `StereoSample`: RGB images, and a disparity of the left
view in pixels that is positive where it is known and NaN where it is not, whatever mark or
sign the files use. Nothing is read before an item is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from stereo_kd_ros.disparity_io import read_pfm

ReadDisparity = Callable[[Path], np.ndarray]


class DatasetError(ValueError):
    """A data set that is not where it was looked for, or a file of it that is broken."""


@dataclass(frozen=True)
class StereoSample:
    """One rectified pair.

    Attributes:
        left: (H, W, 3) uint8 RGB.
        right: (H, W, 3) uint8 RGB.
        disparity: (H, W) float32 px of the left view, x_right = x_left - d; NaN unknown.
        name: unique within its set.
        disparity_right: (H, W) float32 px of the right view, positive as well, where a set
            has it: x_left = x_right + d.
    """

    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray
    name: str
    disparity_right: np.ndarray | None = None

    @property
    def valid(self) -> np.ndarray:
        """(H, W) bool: where the disparity is known."""
        return np.isfinite(self.disparity)


@dataclass(frozen=True)
class PairFiles:
    """The files of one pair.

    Attributes:
        name: unique within the set.
        left, right: pictures.
        disparity: of the left view, None where the set has no truth for the pair.
        read_disparity: reads that file; a module-level function or a partial of one, so
            that worker processes can be handed the set.
    """

    name: str
    left: Path
    right: Path
    disparity: Path | None = None
    read_disparity: ReadDisparity = read_pfm


class StereoDataset(Sequence[StereoSample]):
    """Pairs on disk.

    Attributes:
        name: of the set, for tables and logs.
        pairs: the files, in the order of the items.
    """

    def __init__(self, name: str, pairs: Iterable[PairFiles]) -> None:
        self.name = name
        self.pairs = tuple(pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> StereoSample:  # type: ignore[override]
        files = self.pairs[index]
        left, right = read_rgb(files.left), read_rgb(files.right)
        if left.shape != right.shape:
            raise DatasetError(
                f'{self.name} {files.name}: the left image is {_size(left)} and the right one '
                f'{_size(right)} ({files.left}, {files.right})'
            )
        if files.disparity is None:
            disparity = np.full(left.shape[:2], np.nan, np.float32)
        else:
            disparity = positive_disparity(files.read_disparity(files.disparity))
            if disparity.shape != left.shape[:2]:
                raise DatasetError(
                    f'{self.name} {files.name}: the images are {_size(left)} and the disparity '
                    f'{_size(disparity)} ({files.disparity})'
                )
        return StereoSample(left, right, disparity, files.name)

    def __iter__(self) -> Iterator[StereoSample]:
        return (self[index] for index in range(len(self)))

    def subset(self, indices: Iterable[int]) -> StereoDataset:
        """The same set with only these pairs, in this order."""
        return StereoDataset(self.name, (self.pairs[index] for index in indices))

    @classmethod
    def joined(cls, name: str, parts: Iterable[StereoDataset]) -> StereoDataset:
        """Several sets one after the other; each pair's name gets its set's in front."""
        return cls(
            name,
            (
                replace(pair, name=f'{part.name}/{pair.name}')
                for part in parts
                for pair in part.pairs
            ),
        )


def positive_disparity(disparity: np.ndarray) -> np.ndarray:
    """Bring a left-view disparity to this package's sign and mark: positive px, NaN unknown.

    Some distributions of a set store the flow from left to right, which is -d everywhere; a
    map that is known somewhere and negative in most of its known places is such a one.
    """
    disparity = np.where(np.isfinite(disparity), disparity, np.nan).astype(np.float32)
    known = disparity[np.isfinite(disparity) & (disparity != 0)]
    if known.size and np.count_nonzero(known < 0) * 2 > known.size:
        disparity = -disparity
    disparity[~(disparity > 0)] = np.nan
    return disparity


def read_rgb(path: Path) -> np.ndarray:
    """Read any picture as (H, W, 3) uint8 RGB; grey ones are repeated over the channels.

    Raises:
        DatasetError: no such file, or not a picture.
    """
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise DatasetError(f'{path}: cannot be read: {error.strerror}') from error
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    image = cv2.imdecode(encoded, flags) if encoded.size else None
    if image is None:
        raise DatasetError(f'{path}: not a picture that OpenCV can decode')
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def candidate_folders(root: Path, names: Iterable[str]) -> list[Path]:
    """`root` itself and its sub-folders of the given names (any case) that exist."""
    wanted = {name.lower() for name in names}
    if not root.is_dir():
        return []
    below = sorted(p for p in root.iterdir() if p.is_dir() and p.name.lower() in wanted)
    return [root, *below]


def complete_pairs(
    pairs: Sequence[PairFiles], what: str, skip_incomplete: bool = False
) -> list[PairFiles]:
    """The pairs whose files are all there.

    Raises:
        DatasetError: some are not and `skip_incomplete` is False; half a download trains
            silently on half a set otherwise.
    """
    complete, missing = [], []
    for pair in pairs:
        files = [pair.left, pair.right, *([pair.disparity] if pair.disparity else [])]
        absent = [file for file in files if not file.is_file()]
        missing += absent[:1]
        if not absent:
            complete.append(pair)
    if missing and not skip_incomplete:
        raise DatasetError(
            f'{what}: {len(missing)} of {len(pairs)} pairs lack a file, the first is '
            f'{missing[0]}; finish the download, or pass skip_incomplete=True'
        )
    return complete


def not_found(root: Path, what: str, looked_for: Iterable[str]) -> DatasetError:
    """The error for a wrong root: what was expected there, what lies there instead."""
    patterns = '\n'.join(f'  {pattern}' for pattern in looked_for)
    return DatasetError(
        f'{root} does not look like {what}. Looked for:\n{patterns}\nFound there: {_listing(root)}'
    )


def _listing(root: Path, limit: int = 12) -> str:
    if not root.exists():
        parent = next((p for p in root.parents if p.exists()), None)
        nearest = f' (nearest existing folder: {parent}: {_listing(parent)})' if parent else ''
        return f'nothing, the folder does not exist{nearest}'
    if not root.is_dir():
        return 'a file, not a folder'
    names = sorted(f'{p.name}/' if p.is_dir() else p.name for p in root.iterdir())
    if not names:
        return 'nothing, the folder is empty'
    more = f' and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more


def _size(image: np.ndarray) -> str:
    return f'{image.shape[1]}x{image.shape[0]}'
