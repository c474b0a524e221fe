# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Paint, glass and wet floors for pairs that have none: what a surface mirrors, in both eyes.

What a mirror shows lies behind it and has a smaller disparity than the mirror (a bulging one
shows it close behind itself, bent). A matcher that finds the mirrored thing is right about the
light and wrong about the surface: a robot drives into the windscreen. Pictures that mirror, with
the truth of their surface, teach a network to trust a surface's rim where its inside misleads.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# Neighbours of one surface differ by less.
_SURFACE_STEP_PX = 1.0
# A part smaller than this would show nothing.
_FEWEST_PIXELS = 100
# Of so many points the one on the smallest surface, for half of the parts: where walls and floors
# fill a picture, things would hardly ever mirror.
_POINTS = 6
# What a surface near infinity mirrors is where it is itself.
_SMALLEST_DISPARITY_PX = 2.0
_UNKNOWN = -1e6


@dataclass(frozen=True)
class _Mirrored:
    """The virtual image behind a surface, and how bright it is.

    Attributes:
        picture: (H, W, 3) uint8 that it is taken from.
        x, y: the middle of the surface's part in the left view.
        plane: its disparity: at the middle, and its slope across and down.
        wave: amplitude [px], frequency [1/px] across and down, phase of a bend.
        zoom: (across, down), source pixels per pixel; negative across mirrors.
        source_x, source_y: what the middle shows.
        share: of the light that is the virtual image's, 0..1.
        gain, contrast: of the virtual image.
        dim: of the surface's own light.
    """

    picture: np.ndarray
    x: float
    y: float
    plane: tuple[float, float, float]
    wave: tuple[float, float, float, float]
    zoom: tuple[float, float]
    source_x: float
    source_y: float
    share: float
    gain: float
    contrast: float
    dim: float

    @classmethod
    def drawn(
        cls,
        picture: np.ndarray,
        x: int,
        y: int,
        disparity: float,
        extent: float,
        rng: np.random.Generator,
    ) -> _Mirrored:
        """Of a surface with this disparity [px] in the middle, so many pixels large."""
        height, width = picture.shape[:2]
        behind = disparity * rng.uniform(0, 0.95)
        # Neither slope nor bend takes the image before its surface or folds it.
        slope_x, slope_y = rng.uniform(-1, 1, 2) * min(0.3, 0.5 * (disparity - behind) / extent)
        turn = rng.uniform(0, 2 * math.pi)
        frequency = rng.uniform(0.5, 2.5) * 2 * math.pi / extent
        amplitude = 0.0
        if rng.random() < 0.6:
            amplitude = rng.uniform(0, 1) * min(0.4 * (disparity - behind), 0.3 / frequency)
        zoom = math.exp(rng.uniform(math.log(0.4), math.log(1.2)))
        return cls(
            picture,
            x,
            y,
            (behind, slope_x, slope_y),
            (
                amplitude,
                frequency * math.cos(turn),
                frequency * math.sin(turn),
                rng.uniform(0, 6.28),
            ),
            (-zoom, zoom * math.exp(rng.normal(0, 0.3))),
            rng.uniform(0, width),
            rng.uniform(0, height),
            rng.uniform(0.2, 0.95),
            rng.uniform(0.5, 1.8),
            rng.uniform(0.8, 2.5),
            rng.uniform(0.2, 1.0),
        )

    def disparity(self, across: np.ndarray, down: np.ndarray) -> np.ndarray:
        """Of the virtual image [px], `across` and `down` from the middle."""
        behind, slope_x, slope_y = self.plane
        amplitude, wave_x, wave_y, phase = self.wave
        bend = amplitude * np.sin(wave_x * across + wave_y * down + phase)
        return behind + slope_x * across + slope_y * down + bend

    def on(
        self, view: np.ndarray, weight: np.ndarray, seen_x: np.ndarray, right: bool
    ) -> np.ndarray:
        """The view (H, W, 3) with the image on it, where `weight` (H, W) is.

        Args:
            view: left or right.
            weight: 0..1, how much of a pixel is the surface's part.
            seen_x: (H, W) left column of the surface that a pixel shows.
            right: whether it is the right view.
        """
        touched = np.nonzero(weight > 0)
        if not touched[0].size:
            return view
        box = tuple(slice(int(axis.min()), int(axis.max()) + 1) for axis in touched)
        rows, columns = np.mgrid[box].astype(np.float32)
        across = np.where(weight[box] > 0, seen_x[box] - self.x, 0)
        down = rows - self.y
        if right:
            across = columns - self.x + self.disparity(across, down)
        image = cv2.remap(
            self.picture,
            (self.source_x + self.zoom[0] * across).astype(np.float32),
            (self.source_y + self.zoom[1] * down).astype(np.float32),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        grey = self.picture.mean()
        image = self.gain * grey + self.contrast * (image - grey)
        part = weight[box][..., None]
        light = self.dim * (1 - self.share) * view[box] + self.share * np.clip(image, 0, 400)
        changed = view.copy()
        changed[box] = np.clip((1 - part) * view[box] + part * light + 0.5, 0, 255)
        return changed


def mirrored_surroundings(
    left: np.ndarray,
    right: np.ndarray,
    disparity: np.ndarray,
    right_disparity: np.ndarray,
    rng: np.random.Generator,
    patches: int = 3,
    sizes_px: Sequence[int] = (24, 240),
) -> tuple[np.ndarray, np.ndarray]:
    """Let up to `patches` parts of surfaces mirror what stands around them.

    A part is what an ellipse or a quadrilateral holds of one surface, up to its depth edges. What
    it mirrors is a piece of the left picture, flat or bent, with 0 to 0.95 of its disparity.

    Args:
        left, right: (H, W, 3) uint8.
        disparity: (H, W) px of the left view, NaN unknown; the surface's, and stays so.
        right_disparity: (H, W) px of the right view, NaN unknown.
        rng: all that is random.
        patches: at most.
        sizes_px: smallest and largest width and height of a part.

    Returns:
        both views, as changed copies where there was a surface to change.
    """
    known = np.where(np.isfinite(disparity), disparity, np.float32(_UNKNOWN))
    columns = np.broadcast_to(np.arange(left.shape[1], dtype=np.float32), disparity.shape)
    rows = np.broadcast_to(
        np.arange(left.shape[0], dtype=np.float32)[:, None], disparity.shape
    ).copy()
    seen_x = np.where(np.isfinite(right_disparity), columns + right_disparity, _UNKNOWN).astype(
        np.float32
    )
    source = left
    for _ in range(int(rng.integers(1, patches + 1))):
        chosen = _surface(known, rng)
        if chosen is None:
            continue
        surface, x, y = chosen
        size = np.exp(rng.uniform(*np.log(sizes_px), 2))
        part = surface & _figure(known.shape, x, y, size, rng)
        if np.count_nonzero(part) < _FEWEST_PIXELS:
            continue
        image = _Mirrored.drawn(source, x, y, float(known[y, x]), float(size.max()), rng)
        weight = cv2.GaussianBlur(part.astype(np.float32), (0, 0), 0.7)
        # The right view shows of the surface what it sees of the same part.
        right_weight = cv2.remap(weight, seen_x, rows, cv2.INTER_LINEAR)
        left = image.on(left, weight, columns, right=False)
        right = image.on(right, right_weight, seen_x, right=True)
    return left, right


def _surface(known: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int, int] | None:
    """A surface (H, W) uint8 up to its depth edges, and a point (x, y) on it; None: there is none
    where it was looked for.
    """
    best = None
    for _ in range(_POINTS if rng.random() < 0.5 else 1):
        x, y = int(rng.integers(known.shape[1])), int(rng.integers(known.shape[0]))
        if known[y, x] < _SMALLEST_DISPARITY_PX:
            continue
        reached = np.zeros((known.shape[0] + 2, known.shape[1] + 2), np.uint8)
        step = (_SURFACE_STEP_PX,)
        flags = 4 | cv2.FLOODFILL_MASK_ONLY | (1 << 8)
        count = cv2.floodFill(known, reached, (x, y), (0,), step, step, flags)[0]
        if count >= _FEWEST_PIXELS and (best is None or count < best[0]):
            best = count, reached[1:-1, 1:-1], x, y
    return best and best[1:]


def _figure(
    shape: tuple[int, int], x: int, y: int, size: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """(H, W) uint8, 1 in an ellipse or a quadrilateral of `size` (w, h) around (x, y)."""
    figure = np.zeros(shape, np.uint8)
    if rng.random() < 0.5:
        axes = tuple(int(side / 2) for side in size)
        cv2.ellipse(figure, (x, y), axes, rng.uniform(0, 180), 0, 360, 1, -1)
    else:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * rng.uniform(0.3, 1.0, (4, 2))
        cv2.fillConvexPoly(figure, np.int32(corners * size / 2 + (x, y)), 1)
    return figure
