# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""OpenCV's stereo matchers, set up the way every comparison of this project uses them.

`compute(left, right)` gives the matcher's own answer with NaN where it has none;
`dense(left, right)` fills those holes with the smaller of the row's two nearest answers (a
hole is mostly an occlusion, and what is occluded is the background), so that a matcher can
be measured on the same pixels as a network. Images are uint8 (H, W, 3) RGB or (H, W) grey,
rectified; disparities are float32 (H, W) in pixels of the left image.

OpenCV leaves the leftmost `max_disparity_px` columns unmatched. `padded=True`, the default,
extends both images to the left by that much, so those columns are matched too, at the cost
of the extra columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from stereo_kd_ros.metrics import fill_holes_row_background

SgbmMode = Literal['sgbm', '3way', 'hh', 'hh4']

_SGBM_MODES: dict[str, int] = {
    'sgbm': cv2.STEREO_SGBM_MODE_SGBM,
    '3way': cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    'hh': cv2.STEREO_SGBM_MODE_HH,
    'hh4': cv2.STEREO_SGBM_MODE_HH4,
}
# Gradients beyond this are cut. OpenCV's default of 0 becomes 15, which loses contrast: on
# public scenes 63, the most that it takes, lowers the mean error.
_SGBM_GRADIENT_CAP = 63
# OpenCV answers in sixteenths of a pixel.
_STEPS_PER_PX = 16.0


class BaselineError(ValueError):
    """A matcher that cannot be set up, or images it cannot take."""


@dataclass(frozen=True)
class Sgbm:
    """Semi-global block matching.

    Attributes:
        max_disparity_px: disparities searched: 0 to one less than this; a multiple of 16.
        mode: '3way' is the fastest (three scan directions), 'hh' the full eight-direction
            one, 'hh4' four directions, 'sgbm' five.
        block_size: side of the matched block in pixels, odd. The smoothness penalties follow
            OpenCV's advice: 8 and 32 times 3 channels times the block's area.
        padded: match the leftmost columns too, see above.
    """

    max_disparity_px: int = 192
    mode: SgbmMode = '3way'
    block_size: int = 5
    padded: bool = True

    def __post_init__(self) -> None:
        _check_range(self.max_disparity_px, self.block_size)
        if self.mode not in _SGBM_MODES:
            raise BaselineError(f'unknown SGBM mode {self.mode!r}; known: {sorted(_SGBM_MODES)}')

    @property
    def name(self) -> str:
        """Short name for tables, such as 'sgbm-3way'."""
        return 'sgbm' if self.mode == 'sgbm' else f'sgbm-{self.mode}'

    def compute(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Match a pair: (H, W) float32 px, NaN where no match passed the checks.

        Raises:
            BaselineError: images not uint8, or of different or unusable shapes.
        """
        _check_pair(left, right)
        block_area = self.block_size**2
        matcher = cv2.StereoSGBM_create(
            minDisparity=0,
            numDisparities=self.max_disparity_px,
            blockSize=self.block_size,
            P1=8 * 3 * block_area,
            P2=32 * 3 * block_area,
            disp12MaxDiff=1,
            preFilterCap=_SGBM_GRADIENT_CAP,
            uniquenessRatio=10,
            speckleWindowSize=100,
            speckleRange=2,
            mode=_SGBM_MODES[self.mode],
        )
        return _match(matcher, left, right, self.max_disparity_px if self.padded else 0)

    def dense(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Match a pair and fill the holes: (H, W) float32 px, every pixel finite."""
        return fill_holes_row_background(self.compute(left, right))


@dataclass(frozen=True)
class BlockMatcher:
    """Plain block matching, the cheapest dense stereo that robots run.

    Attributes:
        max_disparity_px: disparities searched: 0 to one less than this; a multiple of 16.
        block_size: side of the matched block in pixels, odd.
        padded: match the leftmost columns too, see above.
    """

    max_disparity_px: int = 192
    block_size: int = 15
    padded: bool = True

    name = 'bm'

    def __post_init__(self) -> None:
        _check_range(self.max_disparity_px, self.block_size)
        if self.block_size < 5:
            raise BaselineError(f'block_size must be at least 5, got {self.block_size}')

    def compute(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Match a pair: (H, W) float32 px, NaN where no match passed the checks.

        Raises:
            BaselineError: images not uint8, or of different or unusable shapes.
        """
        _check_pair(left, right)
        if left.ndim == 3:
            left, right = (cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in (left, right))
        matcher = cv2.StereoBM_create(self.max_disparity_px, self.block_size)
        matcher.setTextureThreshold(10)
        matcher.setUniquenessRatio(10)
        matcher.setSpeckleWindowSize(100)
        matcher.setSpeckleRange(2)
        matcher.setDisp12MaxDiff(1)
        return _match(matcher, left, right, self.max_disparity_px if self.padded else 0)

    def dense(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Match a pair and fill the holes: (H, W) float32 px, every pixel finite."""
        return fill_holes_row_background(self.compute(left, right))


def _match(
    matcher: cv2.StereoMatcher, left: np.ndarray, right: np.ndarray, padding_px: int
) -> np.ndarray:
    if padding_px:
        left, right = (
            cv2.copyMakeBorder(image, 0, 0, padding_px, 0, cv2.BORDER_REPLICATE)
            for image in (left, right)
        )
    steps = matcher.compute(left, right)[:, padding_px:]
    disparity = steps.astype(np.float32) / _STEPS_PER_PX
    disparity[steps < 0] = np.nan
    return disparity


def _check_range(max_disparity_px: int, block_size: int) -> None:
    if max_disparity_px <= 0 or max_disparity_px % 16:
        raise BaselineError(
            f'max_disparity_px must be a positive multiple of 16, got {max_disparity_px}'
        )
    if block_size < 1 or block_size % 2 == 0:
        raise BaselineError(f'block_size must be odd and positive, got {block_size}')


def _check_pair(left: np.ndarray, right: np.ndarray) -> None:
    for side, image in (('left', left), ('right', right)):
        if image.dtype != np.uint8:
            raise BaselineError(f'the {side} image must be uint8, got {image.dtype}')
        if image.ndim != 2 and not (image.ndim == 3 and image.shape[2] == 3):
            raise BaselineError(f'the {side} image must be (H, W) or (H, W, 3), got {image.shape}')
    if left.shape != right.shape:
        raise BaselineError(
            f'the two images must have one size, got left {left.shape}, right {right.shape}'
        )
