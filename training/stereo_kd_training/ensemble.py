# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One model asked several times: a slow teacher that is better than the model it consists of.

A pair is shown in several sizes, each upright and upside down: all are stereo pairs of other
cameras, and the model errs otherwise in each. Large ones bring detail, small ones what a wide wall
or a near thing needs. The answer of a pixel is the median of all, each weighted by its own
confidence; its confidence is what the members who agree with that bring in. (Many answers to one
image as a teacher: Radosavovic et al., Data Distillation, CVPR 2018.)

Where the disparity is beyond what the model can say of an enlarged pair, that one has no voice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import cv2
import numpy as np

from stereo_kd_training.teachers import FolderTeacher, Prediction, Teacher, TeacherError

SCALES = (0.7, 1.0, 1.4, 2.0)
# A voice is worth this power of its confidence.
TRUST = 4.0
# Of the model's range; nearer to its end a model is drawn back.
_REACH_SHARE = 0.9
# An answer agrees that is within this of the median.
AGREES_PX, AGREES_SHARE = 1.0, 0.05


class Ensemble(Teacher):
    """A teacher asked about a pair in several sizes, upright and upside down.

    Args:
        teacher: not one that looks answers up by name. Its `max_disparity_px`, where it has one,
            says where enlarged pairs are beyond it.
        scales: of the sizes, one of them at most 1.

    Raises:
        TeacherError: a teacher that cannot be asked so, or no scale at most 1.
    """

    def __init__(self, teacher: Teacher, scales: Sequence[float] = SCALES) -> None:
        if isinstance(teacher, FolderTeacher):
            raise TeacherError('a folder of disparities cannot be asked about resized images')
        if isinstance(teacher, Ensemble):
            raise TeacherError(
                f'{teacher.name} is an ensemble already; give the model that it consists of'
            )
        self.scales = tuple(sorted(float(scale) for scale in scales))
        if not self.scales or not 0 < self.scales[0] <= 1:
            raise TeacherError(
                f'scales are {self.scales}, expected numbers above 0, the least at most 1'
            )
        self.teacher = teacher
        self.max_disparity_px = teacher.max_disparity_px
        self.name = f'{teacher.name} x{2 * len(self.scales)}'
        described = f'ensemble 1 {self.scales} {TRUST} {teacher.fingerprint}'
        self.fingerprint = hashlib.sha256(described.encode()).hexdigest()

    def predict(self, left: np.ndarray, right: np.ndarray, name: str = '') -> Prediction:
        reach = self.teacher.max_disparity_px
        answers: list[np.ndarray] = []
        voices: list[np.ndarray] = []
        for scale in self.scales:
            # Up to here all members are nearly of the pair's own size or smaller.
            so_far = _median(answers, voices) if reach and scale > 1 else None
            for upside_down in (False, True):
                disparity, confidence = self._member(left, right, scale, upside_down, name)
                voice = np.where(np.isfinite(disparity), confidence, 0.0).astype(np.float32)
                if so_far is not None:
                    voice[so_far > _REACH_SHARE * reach / scale] = 0.0
                answers.append(np.nan_to_num(disparity))
                voices.append(voice)
        found = _median(answers, voices)
        near = np.maximum(AGREES_PX, AGREES_SHARE * found)
        agreeing = [
            np.where(np.abs(answer - found) <= near, voice, 0.0)
            for answer, voice in zip(answers, voices)
        ]
        counted = np.maximum(sum((voice > 0).astype(np.float32) for voice in voices), 1.0)
        known = np.any([voice > 0 for voice in voices], axis=0)
        return Prediction(
            np.where(known, found, np.nan).astype(np.float32),
            (sum(agreeing) / counted).astype(np.float32),
        )

    def _member(
        self, left: np.ndarray, right: np.ndarray, scale: float, upside_down: bool, name: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Disparity and confidence at the size of the pair, (H, W) each."""
        height, width = left.shape[:2]
        size = max(1, round(width * scale)), max(1, round(height * scale))
        how = cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA
        views = [
            eye if scale == 1 else cv2.resize(eye, size, interpolation=how)
            for eye in (left, right)
        ]
        if upside_down:
            views = [view[::-1] for view in views]
        answer = self.teacher.predict(*(np.ascontiguousarray(view) for view in views), name)
        maps = [answer.disparity * (width / size[0]), answer.confidence]
        if upside_down:
            maps = [each[::-1] for each in maps]
        if scale != 1:
            # Over an edge an interpolated disparity is of neither side; the median forgives it.
            maps = [
                cv2.resize(
                    np.ascontiguousarray(each), (width, height), interpolation=cv2.INTER_LINEAR
                )
                for each in maps
            ]
        return maps[0], maps[1]


def _median(answers: Sequence[np.ndarray], voices: Sequence[np.ndarray]) -> np.ndarray:
    weights = np.stack(voices).astype(np.float32) ** TRUST
    # Where nobody is sure of anything all count alike.
    return weighted_median(np.stack(answers), weights + 1e-6)


def weighted_median(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The least value that half of the weight does not exceed, over the first axis.

    Args:
        values: (N, ...).
        weights: (N, ...), none below 0, not all 0.
    """
    order = np.argsort(values, axis=0, kind='stable')
    ordered = np.take_along_axis(values, order, 0)
    reached = np.cumsum(np.take_along_axis(weights, order, 0), axis=0)
    middle = (reached >= 0.5 * reached[-1]).argmax(0)
    return np.take_along_axis(ordered, middle[None], 0)[0]
