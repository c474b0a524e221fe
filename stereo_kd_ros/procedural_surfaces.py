# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Textured sheets given by their disparity, and the two views that draw them.

A sheet's disparity is a function of the left pixel, d(x, y) = a x + b y + c + bump(x, y) [px],
and its texture a homography of the left pixel. The left view samples the texture at (x, y);
the right one solves x_left - d(x_left, y) = x_right, in closed form for planes and by Newton
for bumps, and samples the same texture there. Both are one interpolation of one texture, so
the truth is sub-pixel exact and neither eye is blurrier than the other.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class Bump:
    """Curvature added to a plane's disparity.

    ``wave`` is ``A sin(k s + phase)`` along a direction, ``ridge`` a smooth crest across it and
    ``quadric`` a paraboloid ``A (1 - r^2)``; r is measured in units of the radii.
    """

    kind: str
    amplitude_px: float
    centre: tuple[float, float]
    scale: tuple[float, float]
    phase: float = 0.0

    def value_and_slope(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Value [px] and its derivative by x at left pixels ``x``, ``y`` (broadcast)."""
        amplitude = np.float32(self.amplitude_px)
        scale_x, scale_y = np.float32(self.scale[0]), np.float32(self.scale[1])
        along_x = (x - np.float32(self.centre[0])) * scale_x
        along_y = (y - np.float32(self.centre[1])) * scale_y
        if self.kind == 'wave':
            angle = along_x + along_y + np.float32(self.phase)
            return amplitude * np.sin(angle), amplitude * scale_x * np.cos(angle)
        if self.kind == 'ridge':
            across = along_x + along_y
            height = amplitude / (1 + across * across)
            return height, -2 * across * scale_x * height * height / amplitude
        radius2 = np.minimum(along_x * along_x + along_y * along_y, np.float32(1.5))
        inside = radius2 < 1.5
        return amplitude * (1 - radius2), -2 * amplitude * along_x * scale_x * inside


@dataclass(frozen=True)
class Surface:
    """One textured sheet of a scene, in left pixels.

    Attributes:
        plane: (a, b, c) of d = a x + b y + c [px].
        levels: texture pyramid, uint8 RGB, finest first.
        to_texture: (3, 3) homography from left pixels to finest texture pixels.
        alpha: (h, w) uint8 coverage, or None where the surface fills the view.
        alpha_origin: left pixel (x, y) of the coverage's first pixel.
        bump: curvature added to the plane.
        texel_disparity_px: disparity at which a texel is a pixel wide; picks the pyramid level.
        focal_px: focal length used to judge foreshortening of receding planes.
        shadow: the surface only darkens what lies at its own disparity.
        mirrored: what the sheet mirrors: the virtual image, a surface of its own (farther) plane,
            bump and texture that is never seen but in this sheet.
        mirrored_share: of the light that is the mirror image's, 0..1.
        filled: (h, w) uint8 coverage that has the sheet's disparity, where that is more than
            `alpha` paints: a mesh is an obstacle, its holes included. Any hole shows what is
            behind it.
    """

    plane: tuple[float, float, float]
    levels: tuple[np.ndarray, ...]
    to_texture: np.ndarray
    alpha: np.ndarray | None = None
    alpha_origin: tuple[float, float] = (0.0, 0.0)
    bump: Bump | None = None
    texel_disparity_px: float = 0.0
    focal_px: float = 0.0
    shadow: bool = False
    mirrored: Surface | None = None
    mirrored_share: float = 0.0
    filled: np.ndarray | None = None


class View:
    """One eye's picture and its z-buffer while a scene is being drawn."""

    def __init__(self, height: int, width: int, vertical: tuple[float, float, float] | None):
        self.image = np.zeros((height, width, 3), np.uint8)
        self.disparity = np.full((height, width), -1.0, np.float32)
        # Row of the affine map from this view's pixel to the left picture's y; None is the left.
        self.vertical = vertical

    def to_left(self, plane: tuple[float, float, float]) -> np.ndarray:
        """(3, 3) affine map from this view's pixels to the left pixels of a plane."""
        if self.vertical is None:
            return np.eye(3)
        a, b, c = plane
        vertical = np.asarray(self.vertical)
        horizontal = (np.array([1.0, 0.0, c]) + b * vertical) / (1.0 - a)
        return np.stack([horizontal, vertical, [0.0, 0.0, 1.0]])

    def region(self, surface: Surface) -> tuple[int, int, int, int] | None:
        """Bounding box (x0, y0, x1, y1) of the surface in this view, None if outside."""
        height, width = self.disparity.shape
        if surface.alpha is None:
            return 0, 0, width, height
        left, top = surface.alpha_origin
        rows, columns = surface.alpha.shape
        corners_x = np.array([left, left + columns, left, left + columns])
        corners_y = np.array([top, top, top + rows, top + rows])
        slack = 2.0
        if self.vertical is not None:
            a, b, c = surface.plane
            corners_x = corners_x - (a * corners_x + b * corners_y + c)
            slack += abs(surface.bump.amplitude_px) * 1.5 if surface.bump else 0.0
        x0 = max(0, math.floor(corners_x.min() - slack))
        x1 = min(width, math.ceil(corners_x.max() + slack))
        y0 = max(0, math.floor(top - 3))
        y1 = min(height, math.ceil(top + rows + 3))
        return None if x0 >= x1 or y0 >= y1 else (x0, y0, x1, y1)

    def paint(self, surface: Surface) -> None:
        """Draw a surface into the picture, pixel by pixel nearer than what is there."""
        region = self.region(surface)
        if region is None:
            return
        x0, y0, x1, y1 = region
        size = (x1 - x0, y1 - y0)
        offset = np.array([[1.0, 0.0, x0], [0.0, 1.0, y0], [0.0, 0.0, 1.0]])
        to_left, disparity, coordinates = self._lie(surface, offset, size)
        behind = self.disparity[y0:y1, x0:x1]
        if surface.shadow:
            visible = (np.abs(disparity - behind) < 0.3).view(np.uint8) * np.uint8(255)
        else:
            visible = cv2.compare(disparity, behind, cv2.CMP_GT)
        nearest = visible
        if surface.alpha is not None:
            alpha = _coverage(surface, surface.alpha, to_left, size, coordinates)
            visible = cv2.bitwise_and(alpha, nearest)
        picture = self.image[y0:y1, x0:x1]
        if surface.shadow:
            cv2.multiply(
                picture, cv2.merge([cv2.bitwise_not(visible)] * 3), dst=picture, scale=1 / 255
            )
            return
        if not visible.any():
            return
        texture = self._texture(surface, to_left, size, coordinates, disparity)
        if surface.mirrored is not None:
            to_image, depth, image = self._lie(surface.mirrored, offset, size)
            image = self._texture(surface.mirrored, to_image, size, image, depth)
            share = surface.mirrored_share
            texture = cv2.addWeighted(texture, 1 - share, image, share, 0)
        if surface.alpha is not None:
            self._blend_edges(picture, texture, visible)
            if surface.filled is not None:
                filled = _coverage(surface, surface.filled, to_left, size, coordinates)
                visible = cv2.bitwise_and(filled, nearest)
            visible = cv2.compare(visible, 127, cv2.CMP_GT)
        else:
            cv2.copyTo(texture, visible, picture)
        cv2.copyTo(disparity, visible, behind)

    def _lie(
        self, surface: Surface, offset: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, tuple[np.ndarray, ...] | None]:
        """Map to left pixels, disparity and, for bumps, left pixels of every pixel of a region."""
        to_left = self.to_left(surface.plane) @ offset
        if surface.bump is None:
            row = self._disparity_row(surface.plane, to_left, offset)
            return to_left, _affine_grid(row, size), None
        coordinates = self._bumped_left(surface, to_left, offset, size)
        return to_left, coordinates[2], coordinates

    def _disparity_row(
        self, plane: tuple[float, float, float], to_left: np.ndarray, offset: np.ndarray
    ) -> np.ndarray:
        if self.vertical is None:
            return np.asarray(plane) @ offset
        return to_left[0] - offset[0]

    def _bumped_left(
        self, surface: Surface, to_left: np.ndarray, offset: np.ndarray, size: tuple[int, int]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Left x, left y and disparity of a bumped surface at every pixel of a region."""
        a, b, c = (np.float32(value) for value in surface.plane)
        x_left = _affine_grid(to_left[0], size)
        y_left = _affine_grid(to_left[1], size)
        if self.vertical is None:
            value, _ = surface.bump.value_and_slope(x_left, y_left)
            return x_left, y_left, a * x_left + b * y_left + c + value
        x_here = np.arange(size[0], dtype=np.float32) + np.float32(offset[0, 2])
        constant = b * y_left + c
        for _ in range(4):
            value, slope = surface.bump.value_and_slope(x_left, y_left)
            residual = x_left - (a * x_left + constant + value) - x_here
            x_left = x_left - residual / (1 - a - slope)
        return x_left, y_left, x_left - x_here

    @staticmethod
    def _blend_edges(picture: np.ndarray, texture: np.ndarray, alpha: np.ndarray) -> None:
        cv2.copyTo(texture, cv2.compare(alpha, 250, cv2.CMP_GT), picture)
        rows, columns = np.nonzero((alpha > 5) & (alpha <= 250))
        if rows.size:
            weight = alpha[rows, columns].astype(np.float32)[:, None] / 255
            under = picture[rows, columns].astype(np.float32)
            over = texture[rows, columns].astype(np.float32)
            picture[rows, columns] = (under + weight * (over - under) + 0.5).astype(np.uint8)

    @staticmethod
    def _texture(
        surface: Surface,
        to_left: np.ndarray,
        size: tuple[int, int],
        coordinates: tuple[np.ndarray, ...] | None,
        disparity: np.ndarray,
    ) -> np.ndarray:
        to_texture = surface.to_texture @ to_left
        if len(surface.levels) == 1:
            affine = surface.to_texture[2, 0] == 0 and surface.to_texture[2, 1] == 0
            # Near a vanishing line texels lie so far out that mirroring them takes seconds.
            border = cv2.BORDER_REFLECT_101 if affine else cv2.BORDER_REPLICATE
            return _warp(
                surface.levels[0],
                to_texture,
                size,
                coordinates,
                surface.to_texture,
                border,
            )
        return _sample_pyramid(surface, to_texture, size, disparity)


def _affine_grid(row: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) float32 of row . (x, y, 1)."""
    columns = (row[0] * np.arange(size[0]) + row[2]).astype(np.float32)
    rows = (row[1] * np.arange(size[1])).astype(np.float32)
    return rows[:, None] + columns[None, :]


def _coverage(
    surface: Surface,
    alpha: np.ndarray,
    to_left: np.ndarray,
    size: tuple[int, int],
    coordinates: tuple[np.ndarray, ...] | None,
) -> np.ndarray:
    """(h, w) uint8 coverage of a surface over a region."""
    left, top = surface.alpha_origin
    shift = np.array([[1.0, 0.0, -left], [0.0, 1.0, -top], [0.0, 0.0, 1.0]])
    return _warp(alpha, shift @ to_left, size, coordinates, shift, cv2.BORDER_CONSTANT)


def _warp(
    source: np.ndarray,
    matrix: np.ndarray,
    size: tuple[int, int],
    coordinates: tuple[np.ndarray, ...] | None,
    from_left: np.ndarray,
    border: int,
) -> np.ndarray:
    """Sample ``source`` over a region, by a matrix or, for bumps, by per-pixel left pixels."""
    if coordinates is not None:
        x_left, y_left = coordinates[:2]
        h = from_left.astype(np.float32)
        map_x = h[0, 0] * x_left + h[0, 1] * y_left + h[0, 2]
        map_y = h[1, 0] * x_left + h[1, 1] * y_left + h[1, 2]
        return cv2.remap(source, map_x, map_y, cv2.INTER_LINEAR, borderMode=border)
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if matrix[2, 0] == 0 and matrix[2, 1] == 0:
        return cv2.warpAffine(source, matrix[:2], size, flags=flags, borderMode=border)
    return cv2.warpPerspective(source, matrix, size, flags=flags, borderMode=border)


def _sample_pyramid(
    surface: Surface, to_texture: np.ndarray, size: tuple[int, int], disparity: np.ndarray
) -> np.ndarray:
    """Sample a receding plane, each pixel from the pyramid level that fits its distance.

    The level is a function of disparity alone, and a surface point has one disparity: both
    eyes read it from the same level.
    """
    slope = math.hypot(surface.plane[0], surface.plane[1]) * surface.focal_px
    safe = np.maximum(disparity, np.float32(0.05))
    # Foreshortening shrinks texels once more along the slope; half of it is filtered.
    scale = surface.texel_disparity_px / safe
    scale *= np.sqrt(np.maximum(slope / safe, 1))
    limits = [2.0 ** (level + 0.5) for level in range(len(surface.levels) - 1)]
    out = np.empty((size[1], size[0], 3), np.uint8)
    # Planes change level mostly along one axis, so a level's box is a narrow band.
    row_low, row_high = scale.min(axis=1), scale.max(axis=1)
    column_low, column_high = scale.min(axis=0), scale.max(axis=0)
    low = 0.0
    for level, high in enumerate([*limits, math.inf]):
        rows = np.flatnonzero((row_high >= low) & (row_low < high))
        columns = np.flatnonzero((column_high >= low) & (column_low < high))
        if rows.size and columns.size:
            y0, y1 = int(rows[0]), int(rows[-1]) + 1
            x0, x1 = int(columns[0]), int(columns[-1]) + 1
            shrink = 0.5**level
            # Pixel centres: coarse = (fine + 0.5) / 2^level - 0.5.
            to_level = np.array(
                [[shrink, 0, 0.5 * shrink - 0.5], [0, shrink, 0.5 * shrink - 0.5], [0, 0, 1.0]]
            )
            shift = np.array([[1.0, 0, x0], [0, 1.0, y0], [0, 0, 1.0]])
            sampled = cv2.warpPerspective(
                surface.levels[level],
                to_level @ to_texture @ shift,
                (x1 - x0, y1 - y0),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_WRAP,
            )
            here = cv2.inRange(scale[y0:y1, x0:x1], low, np.nextafter(np.float32(high), 0).item())
            cv2.copyTo(sampled, here, out[y0:y1, x0:x1])
        low = high
    return out


def occluded_pixels(
    disparity: np.ndarray, disparity_right: np.ndarray, vertical: np.ndarray
) -> np.ndarray:
    """(H, W) bool: the match lies outside the right picture or behind something nearer."""
    height, width = disparity.shape
    x = np.arange(width, dtype=np.float32)[None] - disparity
    # The right row that shows left row y, to first order in the tiny rectification error.
    y = (2 * np.arange(height) - vertical[1] * np.arange(height) - vertical[2])[:, None]
    y = (y - vertical[0] * x).astype(np.float32)
    y = np.clip(y, 0, height - 1)
    seen = cv2.remap(disparity_right, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return (x < -0.5) | (seen > disparity + 1.0)
