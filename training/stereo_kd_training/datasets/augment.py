# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Augmentation of stereo pairs that keeps the disparity right.

What moves pixels moves the truth with it, by rules that follow from x_right = x_left - d:

* crop: both views by the same window leave d; a right window that starts s columns further
  right gives d + s;
* scale: d is multiplied by the true ratio of the widths (after rounding to whole pixels). A
  truth is never averaged over a depth edge or with an unknown neighbour;
* mirror: the eyes swap, so the truth becomes the right view's, mirrored.

What only changes how the pictures look (colour, noise, a vertical error of the rectification,
patches that hide a part of the right view) leaves d. Everything random comes from the
`numpy.random.Generator` that is passed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from stereo_kd_training.datasets.base import DatasetError, StereoSample

# Neighbours whose disparities differ by less belong to one surface.
_SURFACE_STEP_PX = 1.0
# A truth of which fewer points have a known neighbour to the right and below is treated as
# isolated points (LiDAR).
_SPARSE_BELOW = 0.75


def crop(
    sample: StereoSample, top: int, left: int, height: int, width: int, right_shift: int = 0
) -> StereoSample:
    """Cut a window out of both views; the right one may start `right_shift` columns later.

    Where the shifted disparity is not positive it becomes NaN. Both windows must lie inside.

    Raises:
        DatasetError: a window leaves the picture.
    """
    full_height, full_width = sample.disparity.shape
    right_left = left + right_shift
    if not (
        0 <= top <= full_height - height
        and 0 <= left <= full_width - width
        and 0 <= right_left <= full_width - width
    ):
        raise DatasetError(
            f'{sample.name}: a {width}x{height} window at ({left}, {top}), on the right at '
            f'({right_left}, {top}), leaves the {full_width}x{full_height} picture'
        )
    rows = slice(top, top + height)
    window = (rows, slice(left, left + width))
    right_window = (rows, slice(right_left, right_left + width))
    other = sample.disparity_right
    return replace(
        sample,
        left=sample.left[window],
        right=sample.right[right_window],
        disparity=_shifted(sample.disparity[window], right_shift),
        disparity_right=None if other is None else _shifted(other[right_window], right_shift),
    )


def pad_to(sample: StereoSample, height: int, width: int) -> StereoSample:
    """Extend to at least (height, width) at the bottom and right: edges repeated, truth NaN."""
    full_height, full_width = sample.disparity.shape
    down, across = max(height - full_height, 0), max(width - full_width, 0)
    if not down and not across:
        return sample

    def unknown(disparity: np.ndarray) -> np.ndarray:
        return np.pad(disparity, ((0, down), (0, across)), constant_values=np.nan)

    left, right = (
        cv2.copyMakeBorder(image, 0, down, 0, across, cv2.BORDER_REPLICATE)
        for image in (sample.left, sample.right)
    )
    other = sample.disparity_right
    return replace(
        sample,
        left=left,
        right=right,
        disparity=unknown(sample.disparity),
        disparity_right=None if other is None else unknown(other),
    )


def random_crop(
    sample: StereoSample,
    rng: np.random.Generator,
    height: int,
    width: int,
    max_right_shift: int = 0,
) -> StereoSample:
    """Cut a window at a random place, padding first where the picture is too small.

    `max_right_shift` draws a shift of the right window from -max to max, which moves the
    range of disparities that a network sees.
    """
    sample = pad_to(sample, height, width)
    full_height, full_width = sample.disparity.shape
    top = int(rng.integers(0, full_height - height + 1))
    left = int(rng.integers(0, full_width - width + 1))
    shift = int(rng.integers(-max_right_shift, max_right_shift + 1))
    shift = int(np.clip(shift, -left, full_width - width - left))
    return crop(sample, top, left, height, width, shift)


def scale(
    sample: StereoSample, factor_x: float, factor_y: float, sparse: bool | None = None
) -> StereoSample:
    """Resize both views and the truth.

    Args:
        sample: the pair.
        factor_x, factor_y: new size over old size; rounded to whole pixels.
        sparse: whether the truth is isolated points, each carried to its nearest new pixel;
            None decides by how many points have neighbours. A dense truth is interpolated
            within a surface and taken from the nearest pixel elsewhere.

    Raises:
        DatasetError: a factor that leaves no pixels.
    """
    height, width = sample.disparity.shape
    new_width, new_height = round(width * factor_x), round(height * factor_y)
    if new_width < 1 or new_height < 1:
        raise DatasetError(
            f'{sample.name}: {width}x{height} scaled by {factor_x} and {factor_y} is empty'
        )
    size = (new_width, new_height)
    if size == (width, height):
        return sample
    shrinks = new_width < width or new_height < height
    interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    left, right = (
        cv2.resize(image, size, interpolation=interpolation)
        for image in (sample.left, sample.right)
    )
    other = sample.disparity_right
    return replace(
        sample,
        left=left,
        right=right,
        disparity=_scaled(sample.disparity, size, sparse),
        disparity_right=None if other is None else _scaled(other, size, sparse),
    )


def mirror(sample: StereoSample) -> StereoSample:
    """Flip left and right: the mirrored right picture becomes the left one.

    The truth of the new left view is that of the old right view: the set's own where it has
    one, otherwise the old truth carried over, with NaN where only the right camera sees.
    """
    other = sample.disparity_right
    if other is None:
        other = right_view_disparity(sample.disparity)
    return replace(
        sample,
        left=np.ascontiguousarray(sample.right[:, ::-1]),
        right=np.ascontiguousarray(sample.left[:, ::-1]),
        disparity=np.ascontiguousarray(other[:, ::-1]),
        disparity_right=np.ascontiguousarray(sample.disparity[:, ::-1]),
    )


def flip_vertical(sample: StereoSample) -> StereoSample:
    """Turn both views upside down."""
    other = sample.disparity_right
    return replace(
        sample,
        left=np.ascontiguousarray(sample.left[::-1]),
        right=np.ascontiguousarray(sample.right[::-1]),
        disparity=np.ascontiguousarray(sample.disparity[::-1]),
        disparity_right=None if other is None else np.ascontiguousarray(other[::-1]),
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


def colour_jitter(
    image: np.ndarray,
    rng: np.random.Generator,
    brightness: float = 0.3,
    contrast: float = 0.3,
    saturation: float = 0.4,
    gamma: float = 0.25,
) -> np.ndarray:
    """Change the look of one picture (H, W, 3) uint8 by random amounts up to those given."""
    values = image.astype(np.float32) / 255.0
    values = values ** np.float32(np.exp(rng.uniform(-gamma, gamma)))
    grey = values @ np.float32([0.299, 0.587, 0.114])
    colourful = np.float32(1 + rng.uniform(-saturation, saturation))
    values = grey[..., None] + colourful * (values - grey[..., None])
    middle = np.float32(grey.mean())
    values = middle + np.float32(1 + rng.uniform(-contrast, contrast)) * (values - middle)
    values = values * np.float32(1 + rng.uniform(-brightness, brightness))
    return np.clip(values * 255.0 + 0.5, 0, 255).astype(np.uint8)


def colour(
    sample: StereoSample, rng: np.random.Generator, asymmetric_probability: float = 0.2
) -> StereoSample:
    """Jitter the colours: mostly alike in both views, sometimes each in its own way."""
    if rng.random() < asymmetric_probability:
        return replace(
            sample,
            left=colour_jitter(sample.left, rng),
            right=colour_jitter(sample.right, rng),
        )
    both = colour_jitter(np.concatenate((sample.left, sample.right), axis=1), rng)
    width = sample.left.shape[1]
    return replace(
        sample,
        left=np.ascontiguousarray(both[:, :width]),
        right=np.ascontiguousarray(both[:, width:]),
    )


def sensor_noise(
    sample: StereoSample, rng: np.random.Generator, sigma: float = 4.0
) -> StereoSample:
    """Add independent Gaussian noise of up to `sigma` grey levels to each view."""

    def noisy(image: np.ndarray) -> np.ndarray:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * rng.uniform(0, sigma)
        return np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)

    return replace(sample, left=noisy(sample.left), right=noisy(sample.right))


def y_jitter(
    sample: StereoSample, rng: np.random.Generator, max_shift_px: float = 1.5
) -> StereoSample:
    """Shift the right view vertically by a part of a pixel or more: imperfect rectification."""
    shift = rng.uniform(-max_shift_px, max_shift_px)
    height, width = sample.right.shape[:2]
    moved = cv2.warpAffine(
        sample.right,
        np.float32([[1, 0, 0], [0, 1, shift]]),
        (width, height),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    return replace(sample, right=moved)


def occlusion_patches(
    sample: StereoSample,
    rng: np.random.Generator,
    max_patches: int = 3,
    sizes_px: Sequence[int] = (30, 100),
) -> StereoSample:
    """Hide up to `max_patches` rectangles of the right view behind its mean colour.

    The truth stays: a network learns to continue a surface that one eye cannot see.
    """
    right = sample.right.copy()
    height, width = right.shape[:2]
    mean = right.reshape(-1, 3).mean(axis=0).astype(np.uint8)
    for _ in range(int(rng.integers(1, max_patches + 1))):
        patch_height, patch_width = rng.integers(sizes_px[0], sizes_px[1] + 1, 2)
        top, left = int(rng.integers(0, height)), int(rng.integers(0, width))
        right[top : top + patch_height, left : left + patch_width] = mean
    return replace(sample, right=right)


@dataclass(frozen=True)
class Augmentation:
    """A chain of all of the above; call it with a sample and a generator.

    Attributes:
        height, width: of the crop in pixels.
        min_log2_scale, max_log2_scale: range of the scale as a power of two; (0, 0) is none.
        stretch_probability: how often height and width get slightly different factors.
        max_right_shift: see `random_crop`.
        mirror_probability, flip_probability: left-right with swapped eyes, and upside down.
        colour_probability, asymmetric_probability: see `colour`.
        noise_probability, y_jitter_probability, occlusion_probability: how often.
        y_jitter_px: largest vertical error.
    """

    height: int
    width: int
    min_log2_scale: float = -0.2
    max_log2_scale: float = 0.4
    stretch_probability: float = 0.5
    max_right_shift: int = 0
    mirror_probability: float = 0.0
    flip_probability: float = 0.0
    colour_probability: float = 0.8
    asymmetric_probability: float = 0.2
    noise_probability: float = 0.2
    y_jitter_probability: float = 0.5
    y_jitter_px: float = 1.0
    occlusion_probability: float = 0.5

    def __call__(self, sample: StereoSample, rng: np.random.Generator) -> StereoSample:
        """Draw one augmented crop of (height, width)."""
        sample = scale(sample, *self._factors(sample, rng))
        sample = random_crop(sample, rng, self.height, self.width, self.max_right_shift)
        if rng.random() < self.mirror_probability:
            sample = mirror(sample)
        if rng.random() < self.flip_probability:
            sample = flip_vertical(sample)
        if rng.random() < self.colour_probability:
            sample = colour(sample, rng, self.asymmetric_probability)
        if rng.random() < self.noise_probability:
            sample = sensor_noise(sample, rng)
        if rng.random() < self.y_jitter_probability:
            sample = y_jitter(sample, rng, self.y_jitter_px)
        if rng.random() < self.occlusion_probability:
            sample = occlusion_patches(sample, rng)
        return sample

    def _factors(self, sample: StereoSample, rng: np.random.Generator) -> tuple[float, float]:
        factor = 2.0 ** rng.uniform(self.min_log2_scale, self.max_log2_scale)
        factors = np.array([factor, factor])
        if rng.random() < self.stretch_probability:
            factors *= 2.0 ** rng.uniform(-0.1, 0.1, 2)
        # A crop that the shrunk picture cannot fill would be padding, which teaches nothing.
        rows, columns = sample.disparity.shape
        least = np.minimum(1.0, [self.width / columns, self.height / rows])
        factor_x, factor_y = np.maximum(factors, least)
        return float(factor_x), float(factor_y)


class AugmentedDataset(Sequence[StereoSample]):
    """A set whose items are augmented anew in every epoch, the same for the same seed.

    An item depends on (seed, epoch, index) alone, not on who asks for it or when, so that any
    number of worker processes gives the same samples and a resumed run goes on as it would
    have.
    """

    def __init__(
        self, dataset: Sequence[StereoSample], augmentation: Augmentation, seed: int = 0
    ) -> None:
        self.dataset = dataset
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose which of the endless variations the next items are."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> StereoSample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, self.epoch, index))
        return self.augmentation(self.dataset[index], rng)


def _shifted(disparity: np.ndarray, shift: int) -> np.ndarray:
    if not shift:
        return disparity
    moved = disparity + np.float32(shift)
    moved[~(moved > 0)] = np.nan
    return moved


def _scaled(disparity: np.ndarray, size: tuple[int, int], sparse: bool | None) -> np.ndarray:
    """Resize to (width, height) and multiply by the ratio of the widths."""
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
