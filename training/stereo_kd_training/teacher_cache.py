# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A teacher's answers kept on disk, so that students train without the teacher in memory."""

from __future__ import annotations

import io
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

import numpy as np

from stereo_kd_training.teachers import Prediction, Teacher, TeacherError, TopK, check_pair


class Pair(Protocol):
    """What a data set yields: `datasets.StereoSample` and its like."""

    name: str
    left: np.ndarray
    right: np.ndarray


class TeacherCache(Teacher):
    """Answers kept under FOLDER/FINGERPRINT/NAME.npz, computed once and written whole.

    Filling may be killed at any time and started again; a file is there completely or not at
    all. Each remembers a checksum of its images: a changed image is answered anew, or
    refused where there is no teacher to ask.

    Precision: disparity 1/256 px up to 255 px (coarser by powers of two beyond), confidence
    1/255, probabilities float16.

    Args:
        folder: shared by all teachers.
        teacher: whose answers these are.
        ask: False reads only, so the teacher need not even be able to answer.
    """

    def __init__(self, folder: str | Path, teacher: Teacher, ask: bool = True) -> None:
        self.teacher = teacher
        self.ask = ask
        self.name = teacher.name
        self.fingerprint = teacher.fingerprint
        self.folder = Path(folder) / self.fingerprint[:16]

    def path(self, name: str) -> Path:
        """Where the answer for sample `name` lies or will lie."""
        parts = [quote(part, safe='') for part in name.split('/')]
        if not name or any(part in ('', '.', '..') for part in parts):
            raise TeacherError(f'{name!r} is no name under which an answer could be kept')
        return self.folder.joinpath(*parts[:-1], f'{parts[-1]}.npz')

    def predict(self, left: np.ndarray, right: np.ndarray, name: str = '') -> Prediction:
        check_pair(left, right)
        path = self.path(name)
        if path.is_file():
            prediction, checksum = _read_prediction(path)
            if checksum == _checksum(left, right):
                return prediction
            if not self.ask:
                raise TeacherError(f'{path} answers other images than those of {name!r} now')
        elif not self.ask:
            raise TeacherError(f'{self.name} has no answer for {name!r} at {path}; cache it first')
        prediction = self.teacher.predict(left, right, name)
        _write_prediction(path, prediction, _checksum(left, right))
        # read back, so that the first epoch sees what all later ones will
        return _read_prediction(path)[0]

    def fill(
        self, pairs: Iterable[Pair], progress: Callable[[str, bool], None] | None = None
    ) -> tuple[int, int]:
        """Answer every pair that has no answer yet.

        Args:
            pairs: of a data set.
            progress: called after each with its name and whether the teacher was asked.

        Returns:
            How many were computed, how many were there.
        """
        computed = kept = 0
        for pair in pairs:
            path = self.path(pair.name)
            fresh = not (
                path.is_file() and _read_checksum(path) == _checksum(pair.left, pair.right)
            )
            if fresh:
                path.unlink(missing_ok=True)
                self.predict(pair.left, pair.right, pair.name)
            computed, kept = computed + fresh, kept + (not fresh)
            if progress is not None:
                progress(pair.name, fresh)
        return computed, kept


def _checksum(left: np.ndarray, right: np.ndarray) -> int:
    both = zlib.crc32(np.ascontiguousarray(left).tobytes())
    return zlib.crc32(np.ascontiguousarray(right).tobytes(), both)


def _write_prediction(path: Path, prediction: Prediction, checksum: int) -> None:
    known = np.isfinite(prediction.disparity)
    disparity = np.clip(np.where(known, prediction.disparity, 0.0), 0.0, None)
    largest = float(disparity.max(initial=0.0))
    scale = 256.0
    while largest * scale > 65534 and scale > 2.0**-16:
        scale /= 2.0
    arrays = {
        # 0 is kept for unknown, so a disparity of zero is 1
        'disparity': np.where(known, np.rint(disparity * scale) + 1, 0).astype(np.uint16),
        'disparity_scale': np.float64(scale),
        'confidence': np.rint(np.clip(prediction.confidence, 0, 1) * 255).astype(np.uint8),
        'checksum': np.uint32(checksum),
    }
    if prediction.distribution is not None:
        top = prediction.distribution
        arrays |= {
            'indices': top.indices,
            'probabilities': top.probabilities.astype(np.float16),
            'hypotheses': top.hypotheses.astype(np.float32),
            'factor': np.int32(top.factor),
        }
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix='.', suffix='.part')
    try:
        with os.fdopen(descriptor, 'wb') as file:
            file.write(buffer.getbuffer())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _read_checksum(path: Path) -> int | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return int(arrays['checksum'])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _read_prediction(path: Path) -> tuple[Prediction, int]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            stored = arrays['disparity']
            scale = np.float32(arrays['disparity_scale'])
            disparity = np.where(stored > 0, (stored.astype(np.float32) - 1) / scale, np.nan)
            confidence = arrays['confidence'].astype(np.float32) / 255.0
            distribution = None
            if 'indices' in arrays:
                distribution = TopK(
                    arrays['indices'],
                    arrays['probabilities'],
                    arrays['hypotheses'],
                    int(arrays['factor']),
                )
            prediction = Prediction(disparity.astype(np.float32), confidence, distribution)
            return prediction, int(arrays['checksum'])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise TeacherError(f'{path} is no cached answer ({error}); delete it') from error
