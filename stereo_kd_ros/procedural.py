# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Procedural stereo pairs and sequences with exact truth, from NumPy and OpenCV alone.

A scene is a list of surfaces whose disparity is given in left pixels; both views sample the
same textures once (``procedural_surfaces``) and are z-tested pixel by pixel, which makes the
truth sub-pixel exact and the occlusions right.

``render_pair`` draws one random scene for training (roads, rooms, loose layers);
``render_sequence`` moves a camera through a textured three-dimensional room.
Everything is a function of the seed: the same seed gives the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.procedural_room import walk_through
from stereo_kd_ros.procedural_surfaces import Bump, Surface, View, occluded_pixels
from stereo_kd_ros.procedural_textures import (
    ATLAS_SIZE,
    BUSY,
    REPETITIVE,
    TEXTURE_KINDS,
    WEAK,
    photograph,
    synthetic_texture,
)

GENERATOR_VERSION = 8
"""Raised whenever the same seed starts to give other pictures."""

INGREDIENTS = ('streets', 'mirrors', 'weak', 'thin')
"""What scenes can be drawn without, to learn what it is good for: streets and roads; surfaces that
mirror or shine; textures of little contrast and bare walls; rods, wires, fences, nets and leaves.
"""

THIN_SHAPES = ('bars', 'fence', 'foliage', 'mesh')
STOUT_PX = 8.0
"""What is thin is no thinner than this where nothing shall be thin."""

_MAX_LEVELS = 7


class ProceduralError(ValueError):
    """A scene was asked for that cannot be drawn; the message says what to change."""


@dataclass(frozen=True)
class StereoSample:
    """A rectified pair with its truth.

    Attributes:
        left: (H, W, 3) uint8 RGB.
        right: (H, W, 3) uint8 RGB.
        disparity: (H, W) float32 px of the left view, >= 0 everywhere.
        disparity_right: (H, W) float32 px of the right view.
        occluded: (H, W) bool, left pixels that the right picture does not show.
    """

    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray
    disparity_right: np.ndarray
    occluded: np.ndarray


class Painter:
    """Picks textures for one scene: pictures when there are any, synthetic ones otherwise.

    ``without`` are the `INGREDIENTS` that the scene has not.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        textures: Sequence[np.ndarray] | None,
        difficulty: float,
        without: Collection[str] = (),
    ):
        self.rng = rng
        self.textures = textures if textures is not None and len(textures) else None
        self.difficulty = difficulty
        self.without = without

    def patch(self, side: int, weak: bool = False) -> np.ndarray:
        """(side, side, 3) uint8 texture for an object of about ``side`` px."""
        rng = self.rng
        weak = weak and 'weak' not in self.without
        choice = rng.random()
        repetitive = 0.04 + 0.08 * self.difficulty
        if choice < repetitive:
            source = synthetic_texture(self._synthetic(REPETITIVE))
        elif weak and choice < 0.55:
            source = synthetic_texture(self._synthetic(WEAK))
        elif self.textures is not None and choice < 0.92:
            source = self.textures[int(rng.integers(len(self.textures)))]
        else:
            source = synthetic_texture(self._synthetic(BUSY))
        side = max(8, side)
        reach = min(source.shape[0], source.shape[1], int(side * math.exp(rng.uniform(0, 1.1))))
        reach = max(reach, 8)
        y = int(rng.integers(source.shape[0] - reach + 1))
        x = int(rng.integers(source.shape[1] - reach + 1))
        crop = source[y : y + reach, x : x + reach]
        side = min(side, reach)
        if reach > side:
            crop = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
        if rng.random() < 0.5:
            crop = cv2.flip(crop, 1)
        return self.recolour(crop, weak)

    def figure(self, shape: str) -> str:
        """One of `SHAPES`, or a whole sheet in place of a thin one where nothing shall be thin."""
        thin = 'thin' in self.without and shape in THIN_SHAPES
        return 'rectangle' if thin else shape

    def _synthetic(self, kinds: tuple[int, ...]) -> int:
        kind = kinds[int(self.rng.integers(len(kinds)))]
        return kind + TEXTURE_KINDS * int(self.rng.integers(ATLAS_SIZE // TEXTURE_KINDS))

    def recolour(self, image: np.ndarray, weak: bool) -> np.ndarray:
        """Random contrast, brightness and cast; ``weak`` leaves a faint texture."""
        rng = self.rng
        gain = math.exp(rng.normal(-0.05, 0.3))
        if weak:
            gain *= math.exp(rng.uniform(math.log(0.15), math.log(0.7)))
        mean = float(
            image[:: max(1, image.shape[0] // 16), :: max(1, image.shape[1] // 16)].mean()
        )
        target = 0.4 * mean + 0.6 * rng.uniform(40, 210) + rng.normal(0, 12, 3)
        ramp = np.arange(256, dtype=np.float32)[:, None]
        table = np.clip((ramp - mean) * gain + target, 0, 255).astype(np.uint8)
        return cv2.LUT(np.ascontiguousarray(image), table[:, None, :])

    def pyramid(self, weak: bool) -> tuple[np.ndarray, ...]:
        """Mirror-tiled texture pyramid for a receding plane, 512 px at the finest."""
        tile = self.patch(256, weak)
        if tile.shape[0] != 256:
            tile = cv2.resize(tile, (256, 256), interpolation=cv2.INTER_CUBIC)
        return mirrored_pyramid(tile)


def mirrored_pyramid(tile: np.ndarray) -> tuple[np.ndarray, ...]:
    """Pyramid of a square tile and its mirror images, which repeats without seams."""
    row = np.concatenate([tile, tile[:, ::-1]], axis=1)
    return tile_pyramid(np.concatenate([row, row[::-1]], axis=0))


def tile_pyramid(tile: np.ndarray) -> tuple[np.ndarray, ...]:
    """A square texture and halves of it, finest first."""
    levels = [tile]
    while len(levels) < _MAX_LEVELS and levels[-1].shape[0] > 4:
        side = levels[-1].shape[0] // 2
        levels.append(cv2.resize(levels[-1], (side, side), interpolation=cv2.INTER_AREA))
    return tuple(levels)


def _points(rng: np.random.Generator, width: int, height: int, count: int, rough: float):
    angles = np.sort(rng.uniform(0, 2 * math.pi, count))
    radius = rng.uniform(1 - rough, 1, count)
    x = (0.5 + 0.5 * radius * np.cos(angles)) * (width - 3) + 1
    y = (0.5 + 0.5 * radius * np.sin(angles)) * (height - 3) + 1
    return np.stack([x, y], axis=1)


def _fill(alpha: np.ndarray, points: np.ndarray, value: int = 255) -> None:
    cv2.fillPoly(alpha, [np.round(points * 16).astype(np.int32)], value, cv2.LINE_AA, 4)


def _shape_rectangle(rng: np.random.Generator, alpha: np.ndarray) -> None:
    height, width = alpha.shape
    inset = rng.uniform(0.6, 2.0)
    lean = rng.normal(0, 0.04) * width if rng.random() < 0.4 else 0.0
    corners = np.array(
        [
            [inset + max(lean, 0), inset],
            [width - inset + min(lean, 0), inset],
            [width - inset - max(lean, 0), height - inset],
            [inset - min(lean, 0), height - inset],
        ]
    )
    _fill(alpha, corners)


def _shape_polygon(rng: np.random.Generator, alpha: np.ndarray) -> None:
    _fill(alpha, _points(rng, alpha.shape[1], alpha.shape[0], int(rng.integers(3, 9)), 0.35))


def _shape_ellipse(rng: np.random.Generator, alpha: np.ndarray) -> None:
    height, width = alpha.shape
    cv2.ellipse(
        alpha,
        (width * 8, height * 8),
        (max(width * 8 - 16, 8), max(height * 8 - 16, 8)),
        0,
        0,
        360,
        255,
        -1,
        cv2.LINE_AA,
        4,
    )


def _shape_blob(rng: np.random.Generator, alpha: np.ndarray) -> None:
    height, width = alpha.shape
    angle = np.linspace(0, 2 * math.pi, 72, endpoint=False)
    radius = np.ones_like(angle)
    for order in range(1, 7):
        radius += rng.normal(0, 0.32 / order) * np.sin(order * angle + rng.uniform(0, 6.28))
    radius = np.clip(radius, 0.15, None) / max(radius.max(), 1e-3)
    x = (0.5 + 0.5 * radius * np.cos(angle)) * (width - 3) + 1
    y = (0.5 + 0.5 * radius * np.sin(angle)) * (height - 3) + 1
    _fill(alpha, np.stack([x, y], axis=1))


def _shape_person(rng: np.random.Generator, alpha: np.ndarray) -> None:
    """A figure: head, trunk and limbs, as thick lines."""
    height, width = alpha.shape
    x = width / 2
    head = max(2.0, min(width, height / 4) * 0.3)
    cv2.circle(
        alpha, (round(x * 16), round((head + 1) * 16)), round(head * 16), 255, -1, cv2.LINE_AA, 4
    )
    trunk = np.array(
        [
            [x - width * 0.25, head * 2.1],
            [x + width * 0.25, head * 2.1],
            [x + width * 0.18, height * 0.55],
            [x - width * 0.18, height * 0.55],
        ]
    )
    _fill(alpha, trunk)
    limb = max(1, round(width * 0.16))
    ends = rng.uniform(0.05, 0.95, 4) * width
    for end, start_y, end_y in zip(ends, (2.3, 2.3, 0, 0), (0.55, 0.55, 0.98, 0.98), strict=True):
        top = head * start_y if start_y else height * 0.5
        cv2.line(
            alpha,
            (round(x), round(top)),
            (round(end), round(height * end_y)),
            255,
            limb,
            cv2.LINE_AA,
        )


def _shape_bars(rng: np.random.Generator, alpha: np.ndarray) -> None:
    """Rods and wires between random points of the border."""
    height, width = alpha.shape
    for _ in range(int(rng.integers(1, 5))):
        start = (int(rng.uniform(0, width)), 0)
        end = (int(rng.uniform(0, width)), height)
        if rng.random() < 0.4:
            start, end = (0, int(rng.uniform(0, height))), (width, int(rng.uniform(0, height)))
        thickness = int(np.clip(rng.exponential(3.0), 1, 12)) + (1 if width > 120 else 0)
        cv2.line(alpha, start, end, 255, thickness, cv2.LINE_AA)


def _shape_frame(rng: np.random.Generator, alpha: np.ndarray) -> None:
    """A sheet with one to a dozen windows cut out."""
    _shape_rectangle(rng, alpha)
    height, width = alpha.shape
    columns, rows = int(rng.integers(1, 5)), int(rng.integers(1, 4))
    border = rng.uniform(0.08, 0.3)
    for row in range(rows):
        for column in range(columns):
            x0, x1 = (column + border) / columns * width, (column + 1 - border) / columns * width
            y0, y1 = (row + border) / rows * height, (row + 1 - border) / rows * height
            _fill(alpha, np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]]), 0)


def _shape_fence(rng: np.random.Generator, alpha: np.ndarray) -> None:
    height, width = alpha.shape
    pitch = max(7.0, width / rng.uniform(4, 14))
    thick = max(1, round(pitch * rng.uniform(0.12, 0.4)))
    x = rng.uniform(0, pitch)
    while x < width:
        cv2.line(
            alpha, (round(x * 16), 16), (round(x * 16), height * 16), 255, thick, cv2.LINE_AA, 4
        )
        x += pitch
    for y in (0.12, 0.85):
        cv2.line(
            alpha, (0, round(height * y)), (width, round(height * y)), 255, thick, cv2.LINE_AA
        )


def _shape_mesh(rng: np.random.Generator, alpha: np.ndarray) -> None:
    """Wires that cross in small diamonds or squares, from a hair to two pixels thick."""
    height, width = alpha.shape
    pitch = rng.uniform(5, 13)
    across = rng.uniform(0.7, 1.4) if rng.random() < 0.7 else 0.0
    shade = int(rng.uniform(110, 255))
    thick = 1 if rng.random() < 0.7 else 2
    for start in np.arange(-height - width, width + height, pitch):
        for lean in (-across, across):
            if lean:
                ends = (start, 0.0), (start + lean * height, float(height))
            else:
                ends = (start, 0.0), (start, float(height))
            points = [(round(x * 16), round(y * 16)) for x, y in ends]
            cv2.line(alpha, *points, shade, thick, cv2.LINE_AA, 4)
        if not across:
            y = round(start * 16)
            cv2.line(alpha, (0, y), (width * 16, y), shade, thick, cv2.LINE_AA, 4)


def _shape_foliage(rng: np.random.Generator, alpha: np.ndarray) -> None:
    height, width = alpha.shape
    cells = max(3, round(min(height, width) / rng.uniform(4, 14)))
    noise = rng.standard_normal((cells, cells), dtype=np.float32)
    noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    noise += (1.5 - 2.4 * (x * x + y * y)).astype(np.float32)
    np.copyto(alpha, np.clip(noise * 160 + 128, 0, 255).astype(np.uint8))


SHAPES = {
    'rectangle': _shape_rectangle,
    'polygon': _shape_polygon,
    'ellipse': _shape_ellipse,
    'blob': _shape_blob,
    'person': _shape_person,
    'bars': _shape_bars,
    'frame': _shape_frame,
    'fence': _shape_fence,
    'foliage': _shape_foliage,
    'mesh': _shape_mesh,
}
SHAPE_NAMES = tuple(SHAPES)
_STANDING = (0.28, 0.06, 0.08, 0.12, 0.10, 0.08, 0.06, 0.05, 0.13, 0.04)
_FLOATING = (0.20, 0.20, 0.15, 0.19, 0.03, 0.08, 0.06, 0.03, 0.05, 0.01)


class _Scene:
    """Collects the surfaces of one random scene."""

    def __init__(
        self,
        rng: np.random.Generator,
        painter: Painter,
        height: int,
        width: int,
        max_disparity_px: float,
        difficulty: float,
    ):
        self.rng = rng
        self.painter = painter
        self.height = height
        self.width = width
        self.limit_px = max_disparity_px - 0.5
        self.difficulty = difficulty
        self.focal_px = width * rng.uniform(0.6, 1.4)
        top = min(190.0, self.limit_px)
        self.near_px = math.exp(rng.uniform(math.log(min(12.0, top)), math.log(top)))
        self.far_px = self.near_px * math.exp(rng.uniform(math.log(0.03), math.log(0.45)))
        self.surfaces: list[Surface] = []

    def weak(self, chance: float) -> bool:
        return bool(self.rng.random() < chance * (0.6 + 0.8 * self.difficulty))

    def backdrop(self, plane: tuple[float, float, float], weak: bool, bump: Bump | None = None):
        """A surface over the whole view whose texture is fixed to left pixels."""
        side = min(640, round(max(self.width, self.height) * 1.1))
        surface = Surface(
            plane, (self.painter.patch(side, weak),), self._tilt(0, 0, 0.9), bump=bump
        )
        self.surfaces.append(self.glossy(surface, side, 0.06))

    def sky(self) -> None:
        rng = self.rng
        low = rng.standard_normal((5, 4, 3), dtype=np.float32) * rng.uniform(1, 14)
        base = np.array([150, 175, 215]) * rng.uniform(0.6, 1.15) + rng.normal(0, 12, 3)
        image = cv2.resize(low, (96, 72), interpolation=cv2.INTER_CUBIC)
        image += base + np.linspace(-25, 25, 72)[:, None, None] * rng.uniform(-0.2, 1)
        texture = np.clip(image, 0, 255).astype(np.uint8)
        scale = np.diag([95 / (self.width * 1.3), 71 / self.height, 1.0])
        self.surfaces.append(Surface((0.0, 0.0, rng.uniform(0.0, 2.0)), (texture,), scale))

    def receding(
        self, plane: tuple[float, float, float], weak: bool, alpha: np.ndarray | None = None
    ) -> None:
        """A floor, wall or ceiling seen in perspective: its texture lies in the plane."""
        a, b, c = plane
        corners = [a * x + b * y + c for x in (0, self.width) for y in (0, self.height)]
        texel = max(max(corners), 1.0) * math.exp(self.rng.uniform(math.log(0.25), math.log(1.1)))
        focal = self.focal_px
        centre_x, centre_y = self.width / 2, self.height / 2
        across = np.array([1.0, 0.0, -centre_x]) * texel
        if abs(a) > abs(b):
            across = np.array([0.0, 1.0, -centre_y]) * texel
        away = np.array([0.0, 0.0, texel * focal])
        shift = self.rng.uniform(0, 512, 2)
        denominator = np.array([a, b, c])
        to_texture = np.stack(
            [across + shift[0] * denominator, away + shift[1] * denominator, denominator]
        )
        surface = Surface(
            plane,
            self.painter.pyramid(weak),
            to_texture,
            alpha,
            texel_disparity_px=texel,
            focal_px=focal,
        )
        self.surfaces.append(self.glossy(surface, self.width, 0.1))

    def glossy(self, surface: Surface, extent: float, chance: float) -> Surface:
        """The surface, or now and then one that mirrors what stands around it, as paint, glass
        and polished metal do.

        What a flat mirror shows lies as far behind it as things stand before it; what a bulging
        one shows lies close behind it, small and bent. The truth stays the surface's.

        Args:
            surface: as it is.
            extent: of the surface [px], which picks the size of what it mirrors.
            chance: to be glossy.
        """
        rng = self.rng
        if 'mirrors' in self.painter.without:
            return surface
        if not rng.random() < chance * (0.6 + 0.8 * self.difficulty):
            return surface
        ratio = rng.uniform(0.05, 0.95)
        a, b, c = (ratio * value for value in surface.plane)
        texel = math.exp(rng.uniform(math.log(0.5), math.log(2.0)))
        side = int(np.clip(extent * texel, 32, 512))
        bump = None
        if rng.random() < 0.6:
            turn, wave = rng.uniform(0, math.pi), rng.uniform(0.5, 2.5) * 2 * math.pi / extent
            most = min(0.15 * ratio * self.near_px, 0.3 / wave)
            scale = (wave * math.cos(turn), wave * math.sin(turn))
            bump = Bump('wave', most * rng.uniform(0.1, 1), (0.0, 0.0), scale, rng.uniform(0, 6))
        image = Surface(
            (a, b, c),
            (self.painter.patch(side),),
            self._tilt(*surface.alpha_origin, texel),
            bump=bump,
        )
        return replace(surface, mirrored=image, mirrored_share=rng.uniform(0.2, 0.8))

    def _tilt(self, x: float, y: float, texel: float) -> np.ndarray:
        """Affine map from left pixels around (x, y) to texture pixels, slightly turned."""
        rng = self.rng
        angle = rng.normal(0, 0.08) if rng.random() < 0.7 else rng.uniform(0, 2 * math.pi)
        cos, sin = math.cos(angle) * texel, math.sin(angle) * texel
        return np.array(
            [
                [cos, -sin, -cos * x + sin * y + rng.uniform(0, 1)],
                [sin, cos, -sin * x - cos * y + rng.uniform(0, 1)],
                [0.0, 0.0, 1.0],
            ]
        )

    def card(
        self,
        shape: str,
        x: float,
        y: float,
        width: float,
        height: float,
        disparity: float,
        weak: bool,
        flat: bool = False,
    ) -> None:
        """A masked sheet centred at left pixel (x, y), standing at ``disparity`` there."""
        rng = self.rng
        shape = self.painter.figure(shape)
        if 'thin' in self.painter.without:
            width, height = max(width, STOUT_PX), max(height, STOUT_PX)
        columns, rows = max(3, round(width)), max(3, round(height))
        if columns > 2 * self.width or rows > 2 * self.height:
            return
        alpha = np.zeros((rows, columns), np.uint8)
        SHAPES[shape](rng, alpha)
        a = rng.normal(0, 0.05) if rng.random() < 0.6 else rng.normal(0, 0.2)
        b = 0.0 if flat else rng.normal(0, 0.08)
        bump = None
        amplitude = 0.0
        thin = shape in THIN_SHAPES
        round_shape = shape in ('ellipse', 'blob')
        if not thin and min(columns, rows) > 16 and rng.random() < (0.7 if round_shape else 0.25):
            kinds = ('quadric',) if round_shape and rng.random() < 0.7 else ('wave', 'ridge')
            kind = kinds[int(rng.integers(len(kinds)))]
            amplitude = min(0.12 * disparity, 0.06 * columns + 0.3) * rng.uniform(0.3, 1)
            if kind == 'quadric':
                scale = (2 / columns, 2 / rows)
            else:
                turn, wave = rng.uniform(0, math.pi), rng.uniform(0.8, 2.2) * 2 * math.pi
                scale = (wave * math.cos(turn) / columns, wave * math.sin(turn) / columns)
            # Keeps d x_right / d x_left > 0: a sheet may not fold over itself.
            amplitude = min(amplitude, 0.3 / max(abs(scale[0]) * 2, 1e-6))
            bump = Bump(kind, amplitude, (x, y), scale, rng.uniform(0, 6.28))
        reach = abs(a) * columns / 2 + abs(b) * rows / 2
        allowed = max(min(0.3 * disparity, disparity - amplitude * 1.2 - 0.1), 0.0)
        shrink = min(1.0, allowed / max(reach, 1e-6), 0.6 / max(abs(a), 1e-6))
        a, b, reach = a * shrink, b * shrink, reach * shrink
        disparity = min(disparity, self.limit_px - reach - amplitude)
        if disparity <= amplitude:
            return
        left, top = x - columns / 2, y - rows / 2
        texel = rng.uniform(0.65, 1.0)
        side = min(512, round(max(columns, rows) * texel) + 6)
        surface = Surface(
            (a, b, disparity - a * x - b * y),
            (self.painter.patch(side, weak),),
            self._tilt(left, top, texel),
            alpha,
            (left, top),
            bump,
            filled=np.full_like(alpha, 255) if shape == 'mesh' else None,
        )
        if not thin:
            surface = self.glossy(surface, max(columns, rows), 0.2)
        self.surfaces.append(surface)

    def box(
        self,
        x: float,
        foot_y: float,
        width: float,
        height: float,
        disparity: float,
        ground: tuple[float, float, float],
        weak: bool,
    ) -> None:
        """A block standing on the ground: its front, and the side or top that the eye sees."""
        rng = self.rng
        horizon = foot_y - (disparity / ground[1] if ground[1] > 1e-6 else self.height)
        centre = self.width / 2
        front = np.array(
            [
                [x - width / 2, foot_y - height],
                [x + width / 2, foot_y - height],
                [x + width / 2, foot_y],
                [x - width / 2, foot_y],
            ]
        )
        recede = rng.uniform(0.45, 0.9)
        vanishing = np.array([centre, horizon])
        back = vanishing + (front - vanishing) * recede
        base = (0.0, 0.0, disparity)
        faces = [(front, base)]
        edge = (1, 2) if x + width / 2 < centre else (0, 3) if x - width / 2 > centre else None
        if edge is not None:
            near_x, far_x = front[edge[0], 0], back[edge[0], 0]
            if abs(far_x - near_x) > 2:
                a = disparity * (recede - 1) / (far_x - near_x)
                if abs(a) < 0.7:
                    corners = np.array(
                        [front[edge[0]], back[edge[0]], back[edge[1]], front[edge[1]]]
                    )
                    faces.append((corners, (a, 0.0, disparity - a * near_x)))
        if foot_y - height > horizon + 2:
            near_y, far_y = front[0, 1], back[0, 1]
            b = disparity * (recede - 1) / (far_y - near_y)
            corners = np.array([front[0], front[1], back[1], back[0]])
            faces.append((corners, (0.0, b, disparity - b * near_y)))
        for corners, plane in faces:
            self.face(corners, plane, weak)

    def face(self, corners: np.ndarray, plane: tuple[float, float, float], weak: bool) -> None:
        """A quadrilateral with its own plane; the texture is stretched over its corners."""
        low, high = np.floor(corners.min(axis=0)) - 1, np.ceil(corners.max(axis=0)) + 1
        columns, rows = (high - low).astype(int)
        if columns > 2 * self.width or rows > 3 * self.height or min(columns, rows) < 4:
            return
        alpha = np.zeros((rows, columns), np.uint8)
        _fill(alpha, corners - low - 0.5)
        side = int(np.clip(max(columns, rows) * 0.8, 16, 384))
        texture = self.painter.patch(side, weak)
        last = texture.shape[0] - 1
        target = np.array([[0, 0], [last, 0], [last, last], [0, last]], np.float32)
        to_texture = cv2.getPerspectiveTransform(corners.astype(np.float32), target)
        surface = Surface(plane, (texture,), to_texture, alpha, (float(low[0]), float(low[1])))
        self.surfaces.append(self.glossy(surface, max(columns, rows), 0.2))

    def shadow(
        self, x: float, y: float, width: float, height: float, plane: tuple[float, float, float]
    ) -> None:
        """A soft dark spot on a plane, centred at left pixel (x, y)."""
        columns, rows = max(4, round(width)), max(3, round(height))
        if columns > self.width or rows > self.height:
            return
        u, v = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
        depth = np.clip(1 - (u * u + v * v), 0, 1) * self.rng.uniform(60, 190)
        self.surfaces.append(
            Surface(
                plane,
                (),
                np.eye(3),
                depth.astype(np.uint8),
                (x - columns / 2, y - rows / 2),
                shadow=True,
            )
        )

    def _lean(self, sigma: float, nearest: float) -> float:
        """A floor's slope across the picture; no corner comes nearer than the limit."""
        most = (self.limit_px - nearest) / (self.width / 2)
        return float(np.clip(self.rng.normal(0, sigma), -most, most))

    # Layouts ---------------------------------------------------------------------------------

    def road(self) -> None:
        """Sky, a ground plane up to the horizon, facades, and things standing on the ground."""
        rng, width, height = self.rng, self.width, self.height
        horizon = height * rng.uniform(0.2, 0.55)
        nearest = min(self.near_px * rng.uniform(0.6, 1.0), self.limit_px * 0.9)
        b = nearest / (height - horizon)
        a = self._lean(0.006, nearest)
        ground = (a, b, -b * horizon - a * width / 2)
        self.sky()
        if rng.random() < 0.7:
            # A skyline of trees or houses at a small disparity hides most of the horizon.
            for _ in range(int(rng.integers(1, 5))):
                size = rng.uniform(0.15, 0.7) * width
                tall = height * rng.uniform(0.08, 0.4)
                shape = str(rng.choice(['rectangle', 'foliage', 'blob']))
                self.card(
                    shape,
                    rng.uniform(0, 1.1) * width,
                    horizon - tall * 0.3,
                    size,
                    tall,
                    rng.uniform(1.0, 4.0) + 0.03 * nearest,
                    self.weak(0.2),
                    flat=True,
                )
        self.receding(ground, self.weak(0.7))
        for sign in (-1, 1):
            if rng.random() < 0.45:
                self._facade(sign, horizon, nearest)
        self._stand(ground, horizon, int(rng.integers(7, 20)))

    def _facade(self, sign: int, horizon: float, nearest: float) -> None:
        """A wall beside the road, running to the vanishing point."""
        rng, width, height = self.rng, self.width, self.height
        vanishing = width * rng.uniform(0.35, 0.65)
        edge = nearest * rng.uniform(0.3, 0.9)
        span = vanishing if sign < 0 else width - vanishing
        a = min(edge / span, 0.45) * sign
        pad = math.ceil(edge) + 8
        alpha = np.zeros((height, width + pad), np.uint8)
        top = horizon - rng.uniform(0.3, 1.5) * horizon
        start = vanishing + sign * span * rng.uniform(0.02, 0.3)
        end = -4.0 if sign < 0 else float(width + pad)
        climb = (top - horizon) / (span * sign)
        foot = rng.uniform(0.6, 2.5) * (height - horizon) / (span * sign)
        corners = np.array(
            [
                [start, horizon + climb * (start - vanishing)],
                [end, horizon + climb * (end - vanishing)],
                [end, horizon + foot * (end - vanishing)],
                [start, horizon + foot * (start - vanishing)],
            ]
        )
        _fill(alpha, corners)
        self.receding((a, 0.0, -a * vanishing), self.weak(0.4), alpha)

    def _stand(self, ground: tuple[float, float, float], horizon: float, count: int) -> None:
        rng, width = self.rng, self.width
        low = max(self.far_px * 0.5, 1.5)
        a, b, c = ground
        # Nothing stands much nearer than the ground at the bottom of the picture.
        bottom = 1.15 * (b * self.height + a * width / 2 + c)
        high = max(min(self.near_px, bottom, self.limit_px * 0.95), low * 1.1)
        for disparity in np.sort(np.exp(rng.uniform(math.log(low), math.log(high), count))):
            x = rng.uniform(-0.05, 1.15) * width
            foot = (disparity - a * x - c) / b
            unit = foot - horizon
            tall = unit * math.exp(rng.uniform(math.log(0.2), math.log(1.9)))
            wide = tall * math.exp(rng.normal(-0.2, 0.6))
            wide = min(wide, 0.5 * width)
            if tall < 5 or wide < 3:
                continue
            weak = self.weak(0.22)
            if rng.random() < 0.6:
                self.shadow(
                    x + rng.normal(0, 0.1) * wide,
                    foot,
                    wide * 1.5,
                    max(4, unit * rng.uniform(0.08, 0.25)),
                    ground,
                )
            choice = rng.random()
            if choice < 0.3:
                self.box(x, foot, wide * 1.3, tall, disparity, ground, weak)
            elif choice < 0.42:
                pole = max(1.6, unit * rng.uniform(0.015, 0.07))
                length = unit * rng.uniform(1.0, 3.0)
                self.card(
                    'rectangle', x, foot - length / 2, pole + 2, length, disparity, weak, flat=True
                )
            else:
                shape = str(rng.choice(SHAPE_NAMES, p=_STANDING))
                if shape == 'person':
                    wide = tall * rng.uniform(0.3, 0.5)
                self.card(shape, x, foot - tall / 2, wide, tall, disparity, weak, flat=True)

    def room(self) -> None:
        """A wall, a floor or table, perhaps side walls and a ceiling, and clutter before them."""
        rng, width, height = self.rng, self.width, self.height
        wall = max(self.far_px, 0.5)
        horizon = height * rng.uniform(-0.1, 0.55)
        nearest = min(self.near_px * rng.uniform(0.5, 1.0), self.limit_px * 0.9)
        a = rng.normal(0, 0.25) * wall / width
        b = rng.normal(0, 0.1) * wall / height
        reach = abs(a) * (width * 1.2) + abs(b) * height
        wall = max(wall, reach * 0.6 + 0.3)
        self.backdrop((a, b, wall - a * width / 2 - b * height / 2), self.weak(0.5))
        slope = nearest / (height - horizon)
        roll = self._lean(0.01, nearest)
        floor = (roll, slope, -slope * horizon - roll * width / 2)
        if rng.random() < 0.8:
            self.receding(floor, self.weak(0.6))
        for sign in (-1, 1):
            if rng.random() < 0.3:
                vanishing = width * rng.uniform(0.35, 0.65)
                edge = nearest * rng.uniform(0.25, 0.8)
                span = vanishing if sign < 0 else width - vanishing
                lean = min(edge / span, 0.45) * sign
                self.receding((lean, 0.0, -lean * vanishing), self.weak(0.6))
        if horizon > 0.2 * height and rng.random() < 0.35:
            fall = -nearest * rng.uniform(0.3, 0.8) / horizon
            self.receding((0.0, fall, -fall * horizon), self.weak(0.7))
        self._stand(floor, horizon, int(rng.integers(5, 15)))
        self._float(int(rng.integers(2, 9)), wall * 1.1)

    def layers(self) -> None:
        """A slanted or curved background with loose things at all distances."""
        rng, width, height = self.rng, self.width, self.height
        far = self.far_px
        a = rng.normal(0, 0.6) * far / width
        b = rng.normal(0, 0.6) * far / height
        amplitude = 0.0
        bump = None
        if rng.random() < 0.4:
            turn, wave = rng.uniform(0, math.pi), rng.uniform(0.5, 2.5) * 2 * math.pi / width
            kind = str(rng.choice(['wave', 'ridge']))
            amplitude = min(far * rng.uniform(0.1, 0.4), 0.3 / wave)
            bump = Bump(
                kind,
                amplitude,
                (width / 2, height / 2),
                (wave * math.cos(turn), wave * math.sin(turn)),
                rng.uniform(0, 6.28),
            )
        rise = abs(a) * width / 2 + abs(b) * height / 2
        reach = rise + abs(a) * 1.2 * far
        # A narrow picture of a large range could slant beyond the limit.
        shrink = min(
            1.0,
            (self.limit_px - amplitude - far) / rise,
            (self.limit_px - 2 * amplitude - 0.3) / (reach + rise),
        )
        a, b, reach = a * shrink, b * shrink, reach * shrink
        base = max(far, reach + amplitude + 0.3)
        self.backdrop((a, b, base - a * width / 2 - b * height / 2), self.weak(0.25), bump)
        self._float(int(rng.integers(8, 25)), base * 1.05)

    def _float(self, count: int, low: float) -> None:
        rng, width, height = self.rng, self.width, self.height
        high = max(min(self.near_px, self.limit_px * 0.95), low * 1.05)
        for disparity in np.sort(np.exp(rng.uniform(math.log(low), math.log(high), count))):
            size = height * math.exp(rng.uniform(math.log(0.1), math.log(0.8)))
            size *= 0.6 + 0.4 * disparity / high
            wide, tall = size * math.exp(rng.normal(0.1, 0.35)), size
            shape = str(rng.choice(SHAPE_NAMES, p=_FLOATING))
            self.card(
                shape,
                rng.uniform(0, 1.1) * width,
                rng.uniform(0, 1) * height,
                wide,
                tall,
                disparity,
                self.weak(0.25),
            )


def check_scene(
    height: int,
    width: int,
    max_disparity_px: float,
    difficulty: float,
    without: Collection[str] = (),
) -> None:
    """Refuse what no scene can be drawn for.

    Raises:
        ProceduralError: names the value and what it may be.
    """
    if height < 32 or width < 32:
        raise ProceduralError(f'a scene of {width}x{height} px is too small; use 32x32 or more')
    if not max_disparity_px >= 4:
        raise ProceduralError(f'max_disparity_px is {max_disparity_px}; it must be 4 or more')
    if not 0 <= difficulty <= 1:
        raise ProceduralError(f'difficulty is {difficulty}; it must lie in 0..1')
    unknown = sorted(set(without) - set(INGREDIENTS))
    if unknown:
        raise ProceduralError(
            f'scenes cannot be drawn without {unknown[0]!r}; use one of {", ".join(INGREDIENTS)}'
        )


def rectification_error(
    rng: np.random.Generator, height: int, width: int
) -> tuple[float, float, float]:
    """Perfect rectification in half of the draws, else some tilt, stretch and shift of rows.

    Returns:
        The row of the affine map from a right pixel to the left row that it shows.
    """
    if not rng.random() < 0.5:
        return 0.0, 1.0, 0.0
    tilt, stretch = rng.normal(0, 0.0006, 2)
    shift = float(np.clip(rng.normal(0, 0.3), -1, 1))
    return tilt, 1 + stretch, shift - tilt * width / 2 - stretch * height / 2


def render_pair(
    seed: int | Sequence[int],
    height: int = 256,
    width: int = 512,
    max_disparity_px: float = 192.0,
    textures: Sequence[np.ndarray] | None = None,
    difficulty: float = 0.5,
    cameras: bool = True,
    without: Collection[str] = (),
) -> StereoSample:
    """Draw one random scene.

    Args:
        seed: the scene; the same arguments and seed give the same bytes.
        height: rows, at least 32.
        width: columns, at least 32.
        max_disparity_px: no left disparity reaches this.
        textures: uint8 RGB pictures to paint with; None paints with synthetic textures only.
        difficulty: 0 (well textured, equal eyes) to 1 (weak texture, unequal noisy eyes).
        cameras: photographed by two cameras with their faults, and not quite rectified; False
            leaves the pictures as they were drawn.
        without: `INGREDIENTS` that the scene shall not have; it is another one then.

    Raises:
        ProceduralError: when a size or range cannot be drawn, or an ingredient is unknown.
    """
    check_scene(height, width, max_disparity_px, difficulty, without)
    rng = np.random.default_rng(seed)
    painter = Painter(rng, textures, difficulty, without)
    scene = _Scene(rng, painter, height, width, max_disparity_px, difficulty)
    layout = rng.random()
    if layout < 0.36 and 'streets' not in without:
        scene.road()
    elif layout < 0.72:
        scene.room()
    else:
        scene.layers()
    vertical = rectification_error(rng, height, width) if cameras else (0.0, 1.0, 0.0)
    left, right = View(height, width, None), View(height, width, vertical)
    for surface in scene.surfaces:
        left.paint(surface)
        right.paint(surface)
    occluded = occluded_pixels(left.disparity, right.disparity, np.asarray(vertical))
    images = left.image, right.image
    if cameras:
        images = photograph(rng, *images, difficulty)
    return StereoSample(*images, left.disparity, right.disparity, occluded)


def render_sequence(seed: int, frames: int, camera: StereoCamera) -> Iterator[StereoSample]:
    """A camera moving through a furnished hall, scaled to the rig's focal length and baseline.

    Args:
        seed: the hall and its noise; the walk is always the same.
        frames: how many pairs.
        camera: the rig; disparities are pixel offsets, x_left - x_right.
    """
    level = np.array([0.0, 1.0, 0.0])
    for left, right, disparity, disparity_right in walk_through(seed, frames, camera):
        occluded = occluded_pixels(disparity, disparity_right, level)
        yield StereoSample(left, right, disparity, disparity_right, occluded)
