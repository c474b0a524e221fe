# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Augmentation of stereo pairs that keeps the disparity right.

What moves pixels moves the truth with it, by rules that follow from x_right = x_left - d:

* window: the same one of both views leaves d; a right window that starts s columns further
  right gives d + s;
* scale: d is multiplied by the true ratio of the widths (after rounding to whole pixels). A
  truth is never averaged over a depth edge or with an unknown neighbour;
* mirror: the eyes swap, so the truth becomes the right view's, mirrored.

What only changes how the pictures look (colour, noise, a vertical error of the rectification,
patches that hide a part of the right view, things mirrored in a surface) leaves d. Everything
random comes from the `numpy.random.Generator` that is passed in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from stereo_kd_ros.procedural_textures import blotch
from stereo_kd_training.datasets.base import DatasetError
from stereo_kd_training.datasets.reflections import mirrored_surroundings

# Neighbours whose disparities differ by less belong to one surface.
_SURFACE_STEP_PX = 1.0
# A truth of which fewer points have a known neighbour to the right and below is treated as
# isolated points (LiDAR).
_SPARSE_BELOW = 0.75


@dataclass(frozen=True)
class Window:
    """A window of a pair, brought to `height` x `width`; the same for all maps of the pair.

    Attributes:
        y, x, source_height, source_width: in the left view, in px.
        height, width: of what comes out.
        right_shift: columns by which the right view's window starts later.
    """

    y: int
    x: int
    source_height: int
    source_width: int
    height: int
    width: int
    right_shift: int = 0

    def image(self, picture: np.ndarray, right: bool = False) -> np.ndarray:
        """Of a picture (H, W, 3), of either view."""
        x = self.x + (self.right_shift if right else 0)
        part = picture[self.y : self.y + self.source_height, x : x + self.source_width]
        if self._whole:
            return part
        shrinks = self.height < self.source_height or self.width < self.source_width
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        return cv2.resize(part, (self.width, self.height), interpolation=interpolation)

    def values(self, values: np.ndarray) -> np.ndarray:
        """Of any map (H, W), nearest: an average of two surfaces is one that is not there."""
        part = self._part(values)
        if self._whole:
            return part
        return cv2.resize(part, (self.width, self.height), interpolation=cv2.INTER_NEAREST_EXACT)

    @property
    def magnification(self) -> np.float32:
        """By which disparities grow."""
        return np.float32(self.width / self.source_width)

    def disparity(self, disparity: np.ndarray) -> np.ndarray:
        """Of a disparity (H, W) px, NaN unknown; what is not positive any more becomes NaN."""
        part = self._part(disparity)
        if self.right_shift:
            part = part + np.float32(self.right_shift)
            part[~(part > 0)] = np.nan
        return part if self._whole else scale_disparity(part, (self.width, self.height))

    def hypotheses(self, hypotheses: np.ndarray) -> np.ndarray:
        """What disparities (D,) px of the whole pair are in the window."""
        return (hypotheses + np.float32(self.right_shift)) * self.magnification

    def cells(self, values: np.ndarray, factor: int) -> np.ndarray:
        """Of a map (K, h, w) over cells of `factor` pixels: for each cell of the crop the one
        that its centre lies in. (K, height / factor, width / factor)."""

        def chosen(start: int, source: int, wanted: int, count: int) -> np.ndarray:
            centres = start + (np.arange(-(-wanted // factor)) + 0.5) * factor * source / wanted
            return np.clip((centres / factor).astype(np.int64), 0, count - 1)

        rows = chosen(self.y, self.source_height, self.height, values.shape[-2])
        columns = chosen(self.x, self.source_width, self.width, values.shape[-1])
        return values[:, rows[:, None], columns]

    @property
    def _whole(self) -> bool:
        return (self.source_height, self.source_width) == (self.height, self.width)

    def _part(self, values: np.ndarray) -> np.ndarray:
        rows = slice(self.y, self.y + self.source_height)
        return values[rows, self.x : self.x + self.source_width]


@dataclass(frozen=True)
class Crop:
    """An augmented part of a pair.

    Attributes:
        left, right: (H, W, 3) uint8 RGB.
        disparity: (H, W) float32 px, NaN unknown.
        window: by which other maps of the pair follow.
    """

    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray
    window: Window


class Augmentation(BaseModel):
    """What a training does to its pairs; the probabilities are those of each crop.

    Attributes:
        scale_probability: the crop is taken from a smaller or larger window, both sides by one
            factor between min_scale and max_scale (above 1 magnifies), each in addition by up
            to `stretch` more or less (0.1 is 10 %).
        right_shift_px: the right view's window starts up to so many columns earlier or later,
            which moves the range of disparities that a network sees.
        mirror_probability: left and right swap, mirrored; not with answers on disk, which
            are of the left view.
        reflection_probability, reflection_patches, reflection_px: up to so many parts of surfaces,
            between so many pixels wide and high, mirror a piece of the picture, as paint and glass
            do; needs a dense truth, and does nothing with scattered points.
        colour_probability: gain, gamma and offset of both views, hardly different in each.
        asymmetric_probability: the right view's colours change once more, on their own.
        noise_probability, noise_sigma: Gaussian, of up to so many grey levels, in each view.
        blotch_probability, blotch_sigma, blotch_px: noise of up to so many grey levels whose
            blotches are between so many pixels wide, as what takes noise out of a camera's
            pictures, and compression, leave it; in each view its own. Of paint without texture
            it makes one, and a wrong one.
        y_jitter_probability, y_jitter_px: the right view is up to so far too high or low.
        occlusion_probability, occlusion_patches, occlusion_px: up to so many patches of these
            sizes hide the right view.
    """

    model_config = ConfigDict(extra='forbid')

    scale_probability: float = Field(0.3, ge=0, le=1)
    min_scale: float = Field(0.7, gt=0, le=1)
    max_scale: float = Field(1.5, ge=1)
    stretch: float = Field(0.0, ge=0, lt=1)
    right_shift_px: int = Field(0, ge=0)
    mirror_probability: float = Field(0.0, ge=0, le=1)
    reflection_probability: float = Field(0.0, ge=0, le=1)
    reflection_patches: int = Field(3, ge=1)
    reflection_px: tuple[int, int] = (24, 240)
    colour_probability: float = Field(0.8, ge=0, le=1)
    asymmetric_probability: float = Field(0.0, ge=0, le=1)
    noise_probability: float = Field(0.0, ge=0, le=1)
    noise_sigma: float = Field(4.0, ge=0)
    blotch_probability: float = Field(0.0, ge=0, le=1)
    blotch_sigma: float = Field(2.0, ge=0)
    blotch_px: tuple[float, float] = (0.5, 6.0)
    y_jitter_probability: float = Field(0.0, ge=0, le=1)
    y_jitter_px: float = Field(1.0, ge=0)
    occlusion_probability: float = Field(0.0, ge=0, le=1)
    occlusion_patches: int = Field(3, ge=1)
    occlusion_px: tuple[int, int] = (30, 100)

    @model_validator(mode='after')
    def _sizes_rise(self) -> Augmentation:
        if not 1 <= self.occlusion_px[0] <= self.occlusion_px[1]:
            raise ValueError(f'occlusion_px is [smallest, largest], got {self.occlusion_px}')
        for name in ('blotch_px', 'reflection_px'):
            smallest, largest = getattr(self, name)
            if not 0 < smallest <= largest:
                raise ValueError(f'{name} is [smallest, largest], got {(smallest, largest)}')
        return self

    def __call__(
        self,
        left: np.ndarray,
        right: np.ndarray,
        disparity: np.ndarray,
        height: int,
        width: int,
        rng: np.random.Generator,
        cell: int = 1,
    ) -> Crop:
        """Draw one augmented crop of a pair.

        Args:
            left, right: (H, W, 3) uint8 RGB.
            disparity: (H, W) float32 px, NaN unknown.
            height, width: of the crop.
            rng: all that is random.
            cell: windows begin at multiples of so many pixels, so that those which are not
                scaled hold whole cells.

        Raises:
            DatasetError: the pair is smaller than the crop.
        """
        if self.mirror_probability and rng.random() < self.mirror_probability:
            left, right, disparity = mirror(left, right, disparity)
        window = self.window(disparity.shape, height, width, rng, cell)
        left, right = window.image(left), window.image(right, right=True)
        truth = window.disparity(disparity)
        if self.reflection_probability and rng.random() < self.reflection_probability:
            left, right = mirrored_surroundings(
                left,
                right,
                truth,
                right_view_disparity(truth),
                rng,
                self.reflection_patches,
                self.reflection_px,
            )
        left, right = self.look(left, right, rng)
        return Crop(left, right, truth, window)

    def window(
        self,
        shape: tuple[int, int],
        height: int,
        width: int,
        rng: np.random.Generator,
        cell: int = 1,
    ) -> Window:
        """Where to crop a pair of `shape` (H, W); see the call.

        Raises:
            DatasetError: the pair is smaller than the crop.
        """
        full_height, full_width = shape
        if full_height < height or full_width < width:
            raise DatasetError(
                f'a pair of {full_width}x{full_height} is smaller than the crop '
                f'{width}x{height}; choose a smaller one (crop_width and crop_height, or --crop)'
            )
        scale_y = scale_x = 1.0
        if rng.random() < self.scale_probability:
            smallest = max(height / full_height, width / full_width, self.min_scale)
            scale_y = scale_x = math.exp(rng.uniform(math.log(smallest), math.log(self.max_scale)))
            if self.stretch:
                scale_y, scale_x = scale_y * (1 + self.stretch * rng.uniform(-1, 1, 2))
        source_height = min(full_height, round(height / scale_y))
        source_width = min(full_width, round(width / scale_x))
        y = int(rng.integers(0, full_height - source_height + 1))
        x = int(rng.integers(0, full_width - source_width + 1))
        y, x = y - y % cell, x - x % cell
        shift = 0
        if self.right_shift_px:
            shift = int(rng.integers(-self.right_shift_px, self.right_shift_px + 1))
            shift = min(max(shift, -x), full_width - source_width - x)
        return Window(y, x, source_height, source_width, height, width, shift)

    def look(
        self, left: np.ndarray, right: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Change how both views (H, W, 3) look; the disparity is the same afterwards."""
        if rng.random() < self.colour_probability:
            left, right = jitter_colour(left, right, rng)
        if self.asymmetric_probability and rng.random() < self.asymmetric_probability:
            right, _ = jitter_colour(right, right, rng)
        if self.noise_probability and rng.random() < self.noise_probability:
            left = sensor_noise(left, rng, self.noise_sigma)
            right = sensor_noise(right, rng, self.noise_sigma)
        if self.blotch_probability and rng.random() < self.blotch_probability:
            left, right = blotched(left, right, rng, self.blotch_sigma, self.blotch_px)
        if self.y_jitter_probability and rng.random() < self.y_jitter_probability:
            right = shift_rows(right, rng.uniform(-self.y_jitter_px, self.y_jitter_px))
        if self.occlusion_probability and rng.random() < self.occlusion_probability:
            right = hide_patches(right, rng, self.occlusion_patches, self.occlusion_px)
        return left, right


def mirror(
    left: np.ndarray, right: np.ndarray, disparity: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Swap the eyes: the mirrored right picture becomes the left one.

    The truth of the new left view is the old one carried over to the right view, with NaN
    where only the right camera sees.
    """
    return (
        np.ascontiguousarray(right[:, ::-1]),
        np.ascontiguousarray(left[:, ::-1]),
        np.ascontiguousarray(right_view_disparity(disparity)[:, ::-1]),
    )


def right_view_disparity(disparity: np.ndarray) -> np.ndarray:
    """Carry a left-view disparity (H, W) px over to the right view; the nearer surface wins.

    Between two neighbours of one surface the value is interpolated to the right view's whole
    columns; a point without such a neighbour goes to its nearest column.

    Returns:
        float32 (H, W), positive: x_left = x_right + d; NaN where nothing lands.
    """
    height, width = disparity.shape
    known = np.isfinite(disparity)
    position = np.arange(width, dtype=np.float32) - disparity
    with np.errstate(invalid='ignore'):
        joined = np.abs(np.diff(disparity, axis=1)) < _SURFACE_STEP_PX
    in_surface = np.zeros_like(known)
    in_surface[:, :-1] |= joined
    in_surface[:, 1:] |= joined

    rows, columns, values = [], [], []
    row, column = np.nonzero(joined)
    start, end = position[row, column], position[row, column + 1]
    near, far = disparity[row, column], disparity[row, column + 1]
    first = np.ceil(start)
    # Less than a pixel apart in disparity, the two land less than two columns apart.
    for target in (first, first + 1):
        hit = (target <= end) & (end > start)
        weight = (target[hit] - start[hit]) / (end[hit] - start[hit])
        rows.append(row[hit])
        columns.append(target[hit].astype(np.int64))
        values.append(near[hit] + weight * (far[hit] - near[hit]))
    row, column = np.nonzero(known & ~in_surface)
    rows.append(row)
    columns.append(np.rint(position[row, column]).astype(np.int64))
    values.append(disparity[row, column])
    return _splat((height, width), *map(np.concatenate, (rows, columns, values)))


def jitter_colour(
    left: np.ndarray, right: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Gain, gamma and offset per channel for both eyes, and a little more for each alone."""
    ramp = np.arange(256, dtype=np.float32) / 255.0

    def table(gamma: float, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
        curve = 255.0 * (gain[:, None] * ramp[None] ** gamma + offset[:, None])
        return np.clip(curve, 0, 255).astype(np.uint8).T.reshape(256, 1, 3)

    gamma = math.exp(rng.normal(0, 0.2))
    gain = np.exp(rng.normal(0, 0.12) + rng.normal(0, 0.06, 3)).astype(np.float32)
    offset = rng.normal(0, 0.03, 3).astype(np.float32)
    order = rng.permutation(3) if rng.random() < 0.3 else np.arange(3)
    eyes = []
    for image in (left, right):
        own_gamma = gamma * math.exp(rng.normal(0, 0.04))
        own_gain = gain * np.exp(rng.normal(0, 0.03, 3)).astype(np.float32)
        image = np.ascontiguousarray(image[..., order])
        eyes.append(cv2.LUT(image, table(own_gamma, own_gain, offset)))
    return eyes[0], eyes[1]


def sensor_noise(image: np.ndarray, rng: np.random.Generator, sigma: float = 4.0) -> np.ndarray:
    """Gaussian noise of up to `sigma` grey levels on a picture (H, W, 3) uint8."""
    noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0, sigma)
    return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)


def blotched(
    left: np.ndarray,
    right: np.ndarray,
    rng: np.random.Generator,
    sigma: float = 2.0,
    widths_px: tuple[float, float] = (0.5, 6.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose neighbours are alike, on both views (H, W, 3) uint8 of one camera model.

    Each view has noise of its own, of the same kind: of up to `sigma` grey levels, smoothed by a
    Gaussian whose standard deviation is between `widths_px`.
    """
    width_px = math.exp(rng.uniform(*map(math.log, widths_px)))
    strength = rng.uniform(0, sigma)
    return blotch(left, strength, width_px, rng), blotch(right, strength, width_px, rng)


def shift_rows(image: np.ndarray, shift_px: float) -> np.ndarray:
    """A picture (H, W, 3) moved down by any part of a pixel or more: imperfect rectification."""
    height, width = image.shape[:2]
    return cv2.warpAffine(
        image,
        np.float32([[1, 0, 0], [0, 1, shift_px]]),
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )


def hide_patches(
    image: np.ndarray,
    rng: np.random.Generator,
    max_patches: int = 3,
    sizes_px: Sequence[int] = (30, 100),
) -> np.ndarray:
    """Hide up to `max_patches` rectangles of a picture (H, W, 3) behind its mean colour.

    Of the right view the truth stays: a network learns to continue a surface that one eye
    cannot see.
    """
    hidden = image.copy()
    height, width = image.shape[:2]
    mean = image.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    for _ in range(int(rng.integers(1, max_patches + 1))):
        patch_height, patch_width = rng.integers(sizes_px[0], sizes_px[1] + 1, 2)
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        hidden[top : top + patch_height, left : left + patch_width] = mean
    return hidden


def scale_disparity(
    disparity: np.ndarray, size: tuple[int, int], sparse: bool | None = None
) -> np.ndarray:
    """Resize (H, W) px, NaN unknown, to `size` (width, height), times the ratio of the widths.

    Args:
        disparity: positive where it is known.
        size: of the result.
        sparse: whether the truth is isolated points, each carried to its nearest new pixel;
            None decides by how many points have neighbours. A dense truth is interpolated
            within a surface and taken from the nearest pixel elsewhere.
    """
    height, width = disparity.shape
    ratio = np.float32(size[0] / width)
    known = np.isfinite(disparity)
    if sparse is None:
        neighboured = known[:-1, :-1] & known[1:, :-1] & known[:-1, 1:]
        sparse = bool(neighboured.sum() < _SPARSE_BELOW * known.sum())
    if sparse:
        row, column = np.nonzero(known)
        # Pixel centres: x' + 0.5 = (x + 0.5) * ratio.
        new_row = np.floor((row + 0.5) * size[1] / height).astype(np.int64)
        new_column = np.floor((column + 0.5) * size[0] / width).astype(np.int64)
        return _splat((size[1], size[0]), new_row, new_column, disparity[known] * ratio)
    nearest = cv2.resize(disparity, size, interpolation=cv2.INTER_NEAREST_EXACT)
    smooth = cv2.resize(np.where(known, disparity, 0), size, interpolation=cv2.INTER_LINEAR)
    # Interpolate only where all that is mixed is known and of one surface.
    kernel = np.ones((3, 3), np.uint8)
    spread = cv2.dilate(np.where(known, disparity, np.inf), kernel)
    spread = spread - cv2.erode(np.where(known, disparity, -np.inf), kernel)
    uniform = (spread < 2 * _SURFACE_STEP_PX).astype(np.uint8)
    uniform = cv2.resize(uniform, size, interpolation=cv2.INTER_NEAREST_EXACT) > 0
    return np.where(uniform, smooth, nearest).astype(np.float32) * ratio


def _splat(
    shape: tuple[int, int], rows: np.ndarray, columns: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Put values at their pixels, the largest (nearest surface) last; NaN where none lands."""
    inside = (columns >= 0) & (columns < shape[1]) & (rows >= 0) & (rows < shape[0])
    rows, columns, values = rows[inside], columns[inside], values[inside]
    order = np.argsort(values, kind='stable')
    result = np.full(shape, np.nan, np.float32)
    # With repeated indices the last assignment stays.
    result[rows[order], columns[order]] = values[order]
    return result
