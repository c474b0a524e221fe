# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures for eyes: disparity and error as colour, and strips of pictures side by side.

All pictures are RGB (H, W, 3) uint8. What has no value is black.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

LABEL_HEIGHT_PX = 28
GAP_PX = 4
# Upper ends [px] of the error steps and their colours, from good (blue) to bad (red).
ERROR_STEPS_PX = (0.5, 1.0, 2.0, 3.0, 5.0, 10.0)
ERROR_COLOURS = (
    (49, 54, 149),
    (69, 117, 180),
    (171, 217, 233),
    (254, 224, 144),
    (253, 174, 97),
    (244, 109, 67),
    (165, 0, 38),
)


class PictureError(ValueError):
    """Pictures that cannot be drawn."""


def colorize_disparity(
    disparity: NDArray[np.floating], max_px: float | None = None
) -> NDArray[np.uint8]:
    """Colour a disparity map (H, W) [px]: turbo, near is red, invalid is black.

    Args:
        disparity: NaN, Inf and what is not above 0 are invalid.
        max_px: Disparity of the reddest colour; the map's 99th percentile by default. Give one
            value to compare pictures.
    """
    valid = np.isfinite(disparity) & (disparity > 0)
    if max_px is None:
        max_px = float(np.percentile(disparity[valid], 99)) if valid.any() else 1.0
    shade = np.where(valid, disparity, 0.0) * (255.0 / max(max_px, 1e-6))
    return _turbo(np.clip(shade, 0, 255).astype(np.uint8), valid)


def colorize_depth(
    depth: NDArray[np.floating], min_depth_m: float = 0.5, max_depth_m: float = 20.0
) -> NDArray[np.uint8]:
    """Colour a depth map (H, W) [m] by 1/Z, so that near is red as in a disparity picture."""
    valid = np.isfinite(depth) & (depth > 0)
    nearness = np.where(valid, 1.0 / np.where(valid, depth, 1.0), 0.0)
    span = 1.0 / min_depth_m - 1.0 / max_depth_m
    shade = (nearness - 1.0 / max_depth_m) * (255.0 / span)
    return _turbo(np.clip(shade, 0, 255).astype(np.uint8), valid)


def _turbo(shade: NDArray[np.uint8], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
    picture = cv2.cvtColor(cv2.applyColorMap(shade, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    picture[~valid] = 0
    return picture


def colorize_error(
    predicted: NDArray[np.floating], truth: NDArray[np.floating]
) -> NDArray[np.uint8]:
    """Colour |predicted - truth| (H, W) [px] in steps from blue (below 0.5) to red (10 and more).

    Pixels without truth are black; those without a prediction have the worst colour.

    Raises:
        PictureError: The shapes differ.
    """
    if predicted.shape != truth.shape:
        raise PictureError(f'the prediction has the shape {predicted.shape}, truth {truth.shape}')
    known = np.isfinite(truth) & (truth > 0)
    with np.errstate(invalid='ignore'):
        error = np.abs(predicted - truth)
    # NaN sorts behind every step, so a missing prediction has the worst colour.
    steps = np.digitize(error, ERROR_STEPS_PX)
    picture = np.array(ERROR_COLOURS, dtype=np.uint8)[steps]
    picture[~known] = 0
    return picture


def picture_strip(
    images: Sequence[NDArray[np.uint8]],
    labels: Sequence[str] | None = None,
    columns: int | None = None,
) -> NDArray[np.uint8]:
    """Set pictures side by side under their labels, each scaled to the first one's size.

    Args:
        images: RGB (H, W, 3) or grey (H, W), uint8.
        labels: One per picture.
        columns: Pictures per row; all in one row by default.

    Raises:
        PictureError: No picture, or not one label per picture.
    """
    if not images:
        raise PictureError('a strip needs at least one picture')
    if labels is not None and len(labels) != len(images):
        raise PictureError(f'{len(images)} pictures but {len(labels)} labels')
    height, width = images[0].shape[:2]
    columns = columns or len(images)
    label_height = LABEL_HEIGHT_PX if labels is not None else 0
    rows = -(-len(images) // columns)
    cell_height, cell_width = height + label_height + GAP_PX, width + GAP_PX
    strip = np.full(
        (rows * cell_height - GAP_PX, columns * cell_width - GAP_PX, 3), 255, dtype=np.uint8
    )
    for index, image in enumerate(images):
        top, left = (index // columns) * cell_height, (index % columns) * cell_width
        picture = image if image.ndim == 3 else cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
        if picture.shape[:2] != (height, width):
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_NEAREST)
        strip[top + label_height : top + label_height + height, left : left + width] = picture
        if labels is not None:
            _write_label(strip[top : top + label_height, left : left + width], labels[index])
    return strip


def _write_label(area: NDArray[np.uint8], text: str) -> None:
    """Write `text` into `area` in place, as small as its width demands."""
    scale = 0.55
    (text_width, _), _ = cv2.getTextSize(text, cv2.FONT_HERSHEY_SIMPLEX, scale, 1)
    scale *= min(1.0, (area.shape[1] - 8) / max(text_width, 1))
    canvas = np.ascontiguousarray(area)
    cv2.putText(
        canvas,
        text,
        (4, area.shape[0] - 9),
        cv2.FONT_HERSHEY_SIMPLEX,
        max(scale, 0.2),
        (0, 0, 0),
        1,
        cv2.LINE_AA,
    )
    area[:] = canvas
