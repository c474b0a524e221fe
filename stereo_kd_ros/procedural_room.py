# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A furnished three-dimensional hall, ray-cast for two eyes with exact depth.

The hall is a list of textured parallelograms. A pixel's ray meets a panel's plane where a
homography says, 1 / Z is linear in the pixel, and a z-buffer of 1 / Z decides what is seen.
Pictures are drawn at twice the size with trilinear texture pyramids and then averaged, so a
texture looks the same from both eyes; the truth is computed at the pixel centres themselves.
World axes: x right, y down, z ahead, in metres; the floor lies below y = 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.procedural_textures import TEXTURE_KINDS, add_noise, synthetic_texture

_NEAR_PLANE = 0.05
_SUPERSAMPLING = 2
_TEXTURE_SIDE_PX = 512
_TEXTURES_PER_KIND = 5
# The hall is built for this product of focal length [px] and baseline; others scale the hall,
# so that every rig sees it over the same range of disparities.
_NOMINAL_FOCAL_BASELINE = 56.0
_NOISE, _GRAIN, _ASPHALT, _BRICKS, _STRIPES, _CHECKER, _SPECKLE, _BLOBS, _STROKES, _WOOD = range(
    TEXTURE_KINDS
)


@dataclass(frozen=True)
class Panel:
    """A textured parallelogram.

    Attributes:
        corner: (3,) world position of the texture's first corner.
        edge_u: (3,) world vector along the texture's columns.
        edge_v: (3,) world vector along the texture's rows.
        levels: texture pyramid, uint8 RGB, finest first.
        coverage: (h, w) uint8 mask of the finest level, or None where it is solid.
        one_sided: drawn only when seen from the side that ``edge_v x edge_u`` points to.
    """

    corner: np.ndarray
    edge_u: np.ndarray
    edge_v: np.ndarray
    levels: tuple[np.ndarray, ...]
    coverage: np.ndarray | None = None
    one_sided: bool = False
    corners: np.ndarray = field(init=False, repr=False)
    normal: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        corner, far = self.corner, self.corner + self.edge_u + self.edge_v
        corners = np.stack([corner, corner + self.edge_u, far, corner + self.edge_v])
        normal = np.cross(self.edge_v, self.edge_u)
        object.__setattr__(self, 'corners', corners)
        object.__setattr__(self, 'normal', normal / np.linalg.norm(normal))


@dataclass(frozen=True)
class Pose:
    """A camera's centre (3,) and rotation (3, 3) from world to camera axes."""

    centre: np.ndarray
    rotation: np.ndarray


class Eye:
    """A pinhole camera that looks at panels from a pose."""

    def __init__(self, matrix: np.ndarray, width: int, height: int, pose: Pose):
        self.matrix = matrix
        self.width = width
        self.height = height
        self.pose = pose
        self.projection = matrix @ pose.rotation
        self.inverse_depth = np.full((height, width), 1e-6, np.float32)
        self.nearest = np.full((height, width), -1, np.int16)
        self._boxes: dict[int, tuple[int, int, int, int]] = {}

    def see(self, panels: Sequence[Panel]) -> None:
        """Fill ``inverse_depth`` [1/m] and ``nearest``, the index of the panel seen."""
        for index, panel in enumerate(panels):
            box = self._box(panel)
            to_unit = None if box is None else self.to_unit(panel)
            if to_unit is None:
                continue
            x0, y0, x1, y1 = box
            x = np.arange(x0, x1)
            y = np.arange(y0, y1)[:, None]
            inverse_depth = _linear(to_unit[2], x, y)
            seen = inverse_depth > self.inverse_depth[y0:y1, x0:x1]
            # 0 <= u <= 1 and 0 <= v <= 1, both multiplied by 1 / Z > 0.
            for row in (0, 1):
                seen &= _not_negative(to_unit[row], x, y)
                seen &= _not_negative(to_unit[2] - to_unit[row], x, y)
            if panel.coverage is not None and seen.any():
                seen &= self._covered(panel, to_unit, box)
            if not seen.any():
                continue
            mask = seen.view(np.uint8)
            cv2.copyTo(inverse_depth, mask, self.inverse_depth[y0:y1, x0:x1])
            self.nearest[y0:y1, x0:x1][seen] = index
            self._boxes[index] = box

    def picture(self, panels: Sequence[Panel]) -> np.ndarray:
        """(H, W, 3) uint8 RGB of what ``see`` found."""
        image = np.zeros((self.height, self.width, 3), np.uint8)
        for index, (left, top, right, bottom) in self._boxes.items():
            seen = cv2.inRange(self.nearest[top:bottom, left:right], index, index)
            x, y, columns, rows = cv2.boundingRect(seen)
            if columns == 0:
                continue
            seen = seen[y : y + rows, x : x + columns]
            x0, y0 = left + x, top + y
            window = np.s_[y0 : y0 + rows, x0 : x0 + columns]
            texture = self._texture(panels[index], (x0, y0), self.inverse_depth[window], seen)
            cv2.copyTo(texture, seen, image[window])
        return image

    def to_unit(self, panel: Panel) -> np.ndarray | None:
        """(3, 3) map from pixels to (u, v, 1) / Z of a panel, None when seen edge-on or behind."""
        distance = float(panel.normal @ (panel.corner - self.pose.centre))
        if abs(distance) < 1e-5 or (panel.one_sided and distance > 0):
            return None
        edges = np.stack([panel.edge_u, panel.edge_v, panel.corner - self.pose.centre], axis=1)
        return np.linalg.inv(self.projection @ edges)

    def _box(self, panel: Panel) -> tuple[int, int, int, int] | None:
        """Pixel bounding box of the part of a panel before the near plane."""
        # The third homogeneous coordinate is the depth Z.
        projected = (panel.corners - self.pose.centre) @ self.projection.T
        if (projected[:, 2] <= _NEAR_PLANE).any():
            projected = _before_near_plane(projected)
            if not len(projected):
                return None
        pixels = projected[:, :2] / projected[:, 2:]
        x0, y0 = np.floor(pixels.min(axis=0)).tolist()
        x1, y1 = np.ceil(pixels.max(axis=0)).tolist()
        box = (
            max(0, int(x0)),
            max(0, int(y0)),
            min(self.width, int(x1) + 1),
            min(self.height, int(y1) + 1),
        )
        return None if box[0] >= box[2] or box[1] >= box[3] else box

    @staticmethod
    def _covered(panel: Panel, to_unit: np.ndarray, box: tuple[int, int, int, int]) -> np.ndarray:
        x0, y0, x1, y1 = box
        matrix = _to_texels(panel.coverage) @ to_unit @ _shift(x0, y0)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        return cv2.warpPerspective(panel.coverage, matrix, (x1 - x0, y1 - y0), flags=flags) > 127

    def _texture(
        self, panel: Panel, origin: tuple[int, int], inverse_depth: np.ndarray, seen: np.ndarray
    ) -> np.ndarray:
        """Trilinear samples of a panel over a window of the picture, where it is seen."""
        to_unit = self.to_unit(panel)
        focal = self.matrix[0, 0]
        texels_per_m = panel.levels[0].shape[1] / np.linalg.norm(panel.edge_u)
        nearness = np.maximum(inverse_depth, np.float32(1e-4))
        scale = np.float32(texels_per_m / focal) / nearness
        # Foreshortening shrinks texels once more along the slope; half of it is filtered.
        slope = np.float32(focal * math.hypot(to_unit[2, 0], to_unit[2, 1]))
        scale *= np.sqrt(np.maximum(slope / nearness, 1))
        last = len(panel.levels) - 1
        level = np.clip(np.log2(scale), 0, last)
        out = np.empty((*inverse_depth.shape, 3), np.uint8)
        for fine in range(last + 1):
            here = cv2.inRange(level, float(fine), float(np.nextafter(np.float32(fine + 1), 0)))
            here &= seen
            x, y, columns, rows = cv2.boundingRect(here)
            if columns == 0:
                continue
            window = np.s_[y : y + rows, x : x + columns]
            pixels = to_unit @ _shift(origin[0] + x, origin[1] + y)
            sampled = self._sample(panel.levels[fine], pixels, (columns, rows))
            if fine < last:
                coarse = self._sample(panel.levels[fine + 1], pixels, (columns, rows))
                weight = np.clip(level[window] - np.float32(fine), 0, 1)
                sampled = cv2.blendLinear(sampled, coarse, 1 - weight, weight)
            cv2.copyTo(sampled, here[window], out[window])
        return out

    @staticmethod
    def _sample(texture: np.ndarray, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return cv2.warpPerspective(
            texture,
            _to_texels(texture) @ pixels,
            size,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )


def _before_near_plane(points: np.ndarray) -> np.ndarray:
    """Clip a polygon of homogeneous pixels (N, 3) to depths beyond the near plane."""
    kept = []
    for first, second in zip(points, np.roll(points, -1, axis=0), strict=True):
        if first[2] > _NEAR_PLANE:
            kept.append(first)
        if (first[2] > _NEAR_PLANE) != (second[2] > _NEAR_PLANE):
            part = (_NEAR_PLANE - first[2]) / (second[2] - first[2])
            kept.append(first + part * (second - first))
    return np.array(kept).reshape(-1, 3)


def _linear(row: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (row[0] * x + row[2]).astype(np.float32) + (row[1] * y).astype(np.float32)


def _not_negative(row: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (row[0] * x + row[2]).astype(np.float32) >= (-row[1] * y).astype(np.float32)


def _shift(x: int, y: int) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _to_texels(texture: np.ndarray) -> np.ndarray:
    """Unit coordinates to texel indices, whose centres are the integers."""
    rows, columns = texture.shape[:2]
    return np.array([[columns, 0.0, -0.5], [0.0, rows, -0.5], [0.0, 0.0, 1.0]])


def _pyramid(texture: np.ndarray) -> tuple[np.ndarray, ...]:
    levels = [texture]
    while min(levels[-1].shape[:2]) >= 4:
        rows, columns = levels[-1].shape[:2]
        size = ((columns + 1) // 2, (rows + 1) // 2)
        levels.append(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA))
    return tuple(levels)


class Hall:
    """The hall and what stands in it, drawn from a seed."""

    def __init__(self, seed: int, scale: float = 1.0):
        self.rng = np.random.default_rng([seed, 7])
        self.scale = scale
        self.panels: list[Panel] = []
        self._footprints: list[tuple[float, float, float, float]] = []
        self._furnish()
        self._shell()

    def texture(
        self,
        kind: int,
        width: float,
        height: float,
        colour: Sequence[float],
        tile: float = 1.5,
        contrast: float = 0.6,
        texels_per_unit: float = 170.0,
    ) -> np.ndarray:
        """Mirror-tiled synthetic texture of a panel of width x height units."""
        index = kind + TEXTURE_KINDS * int(self.rng.integers(_TEXTURES_PER_KIND))
        base = synthetic_texture(index, _TEXTURE_SIDE_PX)
        side = max(8, round(tile * texels_per_unit))
        if side < _TEXTURE_SIDE_PX:
            base = cv2.resize(base, (side, side), interpolation=cv2.INTER_AREA)
        elif side > _TEXTURE_SIDE_PX:
            base = cv2.resize(base, (side, side), interpolation=cv2.INTER_CUBIC)
        columns = max(4, round(width * texels_per_unit))
        rows = max(4, round(height * texels_per_unit))
        image = cv2.copyMakeBorder(
            base, 0, max(0, rows - side), 0, max(0, columns - side), cv2.BORDER_REFLECT
        )
        image = image[:rows, :columns].astype(np.float32)
        mean = image.mean(axis=(0, 1))
        # Keep a third of the texture's own hues; all of them would look like confetti.
        grey = image.mean(axis=2, keepdims=True) - mean.mean()
        detail = grey + 0.33 * (image - mean - grey)
        deviation = max(float(detail.std()), 1.0)
        image = np.asarray(colour, np.float32) + detail * min(contrast, contrast * 45 / deviation)
        return image

    def panel(
        self,
        corner: Sequence[float],
        edge_u: Sequence[float],
        edge_v: Sequence[float],
        image: np.ndarray,
        light: float = 1.0,
        coverage: np.ndarray | None = None,
        one_sided: bool = False,
    ) -> None:
        """Add a panel; ``image`` is float RGB, ``light`` scales it."""
        texture = np.clip(image * light, 0, 255).astype(np.uint8)
        self.panels.append(
            Panel(
                np.asarray(corner, float) * self.scale,
                np.asarray(edge_u, float) * self.scale,
                np.asarray(edge_v, float) * self.scale,
                _pyramid(texture),
                coverage,
                one_sided,
            )
        )

    def box(
        self,
        centre: Sequence[float],
        size: Sequence[float],
        yaw: float,
        kind: int,
        colour: Sequence[float],
        contrast: float = 0.6,
        tile: float = 0.8,
        on_floor: bool = False,
    ) -> None:
        """A block about ``centre`` (x, y, z) of ``size`` (width, height, depth)."""
        width, height, depth = size
        cos, sin = math.cos(yaw), math.sin(yaw)
        right = np.array([cos, 0.0, -sin])
        ahead = np.array([sin, 0.0, cos])
        down = np.array([0.0, 1.0, 0.0])
        middle = np.asarray(centre, float)
        density = 170.0 if max(size) > 0.3 else 400.0
        sides = [
            (right, ahead, width, depth),
            (ahead, -right, depth, width),
            (-right, -ahead, width, depth),
            (-ahead, right, depth, width),
        ]
        for along, outward, length, thickness in sides:
            # The face whose outward normal is -outward, seen from outside with y down.
            corner = middle - outward * thickness / 2 - along * length / 2 - down * height / 2
            image = self.texture(kind, length, height, colour, tile, contrast, density)
            light = 0.78 + 0.22 * float(np.dot(-outward, [0.5, 0.0, -0.86]))
            self.panel(corner, along * length, down * height, image, light, one_sided=True)
        for sign, light in ((-1, 1.08), (1, 0.5)):
            corner = middle + down * (sign * height / 2) - right * (width / 2)
            corner = corner - ahead * (sign * depth / 2)
            image = self.texture(kind, width, depth, colour, tile, contrast, density)
            self.panel(corner, right * width, sign * ahead * depth, image, light, one_sided=True)
        if on_floor:
            self._footprints.append((middle[0], middle[2], width, depth))

    def _shell(self) -> None:
        """Floor, walls and ceiling; the floor last, for its shadows need the furniture."""
        rng = self.rng
        left, right, top, floor, back, front = -3.4, 3.4, -1.9, 1.3, -4.0, 13.0
        length, width, height = front - back, right - left, floor - top
        image = self.texture(
            [_WOOD, _BRICKS, _CHECKER][int(rng.integers(3))],
            width,
            length,
            rng.uniform(95, 150) * np.array([1.05, 0.95, 0.85]),
            1.6,
            0.5,
            130.0,
        )
        shade = np.ones(image.shape[:2], np.float32)
        for x, z, wide, deep in self._footprints:
            reach = 1.1
            x0, x1 = ((x - left + side * wide * reach / 2) * 130 for side in (-1, 1))
            z0, z1 = ((z - back + side * deep * reach / 2) * 130 for side in (-1, 1))
            cv2.rectangle(shade, (round(x0), round(z0)), (round(x1), round(z1)), 0.45, -1)
        shade = cv2.GaussianBlur(shade, (0, 0), 18)
        self.panel((left, floor, back), (width, 0, 0), (0, 0, length), image * shade[..., None])
        plaster = rng.uniform(150, 200) * np.array([1.0, 0.98, 0.92])
        bricks = rng.uniform(100, 140) * np.array([1.25, 0.9, 0.8])
        for corner, along, span, kind, colour, tile, light in (
            ((left, top, back), (0, 0, 1.0), length, _BRICKS, bricks, 1.4, 0.95),
            ((right, top, back), (0, 0, 1.0), length, _GRAIN, plaster, 2.5, 0.9),
            ((left, top, front), (1.0, 0, 0), width, _NOISE, plaster * 0.85, 2.0, 0.85),
            ((left, top, back), (1.0, 0, 0), width, _GRAIN, plaster, 2.5, 0.85),
        ):
            wall = self.texture(kind, span, height, colour, tile, 0.5, 130.0)
            # Walls darken towards the floor and the corner with the ceiling.
            fall = np.linspace(0, 1, wall.shape[0], dtype=np.float32)[:, None, None]
            wall *= 1 - 0.25 * fall**4 - 0.15 * (1 - fall) ** 6
            self.panel(corner, np.array(along) * span, (0, height, 0), wall, light)
        ceiling = self.texture(_GRAIN, width, length, (205, 205, 200), 2.0, 0.35, 100.0)
        self.panel((left, top, back), (width, 0, 0), (0, 0, length), ceiling, 0.9)
        for z in np.arange(0.5, 12.5, 2.6):
            lamp = self.texture(_GRAIN, 1.4, 0.35, (246, 246, 238), 1.0, 0.2)
            self.panel((-0.7, top + 0.02, z), (1.4, 0, 0), (0, 0, 0.35), lamp)

    def _furnish(self) -> None:
        rng = self.rng
        for number in range(7):
            size = rng.uniform(0.5, 1.0)
            side = -1 if number % 2 else 1
            x = side * rng.uniform(1.5, 2.7)
            z = 2.6 + 1.35 * number + rng.uniform(-0.3, 0.3)
            yaw = rng.uniform(-0.6, 0.6)
            colour = rng.uniform(95, 150) * np.array([1.15, 0.95, 0.72])
            kind = [_WOOD, _STROKES, _SPECKLE, _BLOBS][int(rng.integers(4))]
            self.box(
                (x, 1.3 - size / 2, z), (size, size, size), yaw, kind, colour, 0.7, on_floor=True
            )
            if rng.random() < 0.6:
                small = size * rng.uniform(0.4, 0.7)
                self.box(
                    (x, 1.3 - size - small / 2, z),
                    (small, small, small),
                    yaw + rng.uniform(-0.5, 0.5),
                    _STROKES,
                    rng.uniform(90, 180, 3),
                    0.7,
                )
        self._table(rng.uniform(-0.9, -0.4), rng.uniform(5.2, 6.0))
        self._table(rng.uniform(0.4, 0.9), rng.uniform(9.0, 10.0))
        for x in (-2.6, 2.6):
            for z in (4.6, 8.4):
                self._column(x + rng.uniform(-0.1, 0.1), z)
        self._ladder(2.9, rng.uniform(5.8, 6.6))
        for x, z in ((-2.7, 3.6), (1.2, 7.4)):
            self._plant(x, z)
        for z in (3.5, 6.4, 9.3):
            self._lamp(rng.uniform(-1.2, 1.2), z)
        for x in (-3.37, 3.37):
            for z in np.arange(1.5, 12, 2.2):
                if rng.random() < 0.75:
                    wide, tall = rng.uniform(0.7, 1.5), rng.uniform(0.6, 1.1)
                    kind = [_BLOBS, _STROKES, _NOISE, _STRIPES][int(rng.integers(4))]
                    image = self.texture(kind, wide, tall, rng.uniform(80, 200, 3), 1.0, 0.9, 250)
                    self.panel(
                        (x, rng.uniform(-1.2, -0.4), z), (0, 0, wide), (0, tall, 0), image, 0.95
                    )
        door = self.texture(_WOOD, 1.1, 2.1, (96, 70, 52), 1.2, 0.5)
        self.panel((-0.4, -0.8, 12.97), (1.1, 0, 0), (0, 2.1, 0), door)

    def _table(self, x: float, z: float) -> None:
        colour = self.rng.uniform(100, 150) * np.array([1.1, 0.9, 0.7])
        self.box((x, 0.55, z), (1.3, 0.06, 0.8), 0.0, _WOOD, colour, 0.6)
        for side_x in (-0.58, 0.58):
            for side_z in (-0.33, 0.33):
                self.box(
                    (x + side_x, 0.94, z + side_z),
                    (0.05, 0.72, 0.05),
                    0.0,
                    _GRAIN,
                    (70, 70, 74),
                    0.6,
                )
        self._footprints.append((x, z, 1.1, 0.6))
        for _ in range(4):
            size = self.rng.uniform(0.1, 0.3, 3)
            self.box(
                (
                    x + self.rng.uniform(-0.5, 0.5),
                    0.52 - size[1] / 2,
                    z + self.rng.uniform(-0.25, 0.25),
                ),
                size,
                self.rng.uniform(-1, 1),
                [_STROKES, _NOISE, _STRIPES][int(self.rng.integers(3))],
                self.rng.uniform(60, 210, 3),
                0.8,
                0.5,
            )

    def _column(self, x: float, z: float, radius: float = 0.2, faces: int = 12) -> None:
        """A round column of narrow faces, lit from one side."""
        colour = self.rng.uniform(140, 190) * np.array([1.0, 0.98, 0.94])
        step = 2 * math.pi / faces
        width = 2 * radius * math.tan(step / 2)
        around = self.texture(_ASPHALT, width * faces, 3.2, colour, 1.2, 0.5)
        columns = around.shape[1] / faces
        for face in range(faces):
            angle = face * step
            outward = np.array([math.cos(angle), 0.0, math.sin(angle)])
            # With y down and the eye outside, a column's texture runs along z x outward.
            along = np.array([math.sin(angle), 0.0, -math.cos(angle)]) * -1
            corner = np.array([x, -1.9, z]) + outward * radius - along * width / 2
            strip = around[:, round(face * columns) : round((face + 1) * columns)]
            light = 0.75 + 0.3 * float(np.dot(outward, [-0.5, 0.0, -0.86]))
            self.panel(corner, along * width, (0, 3.2, 0), strip, light)
        self._footprints.append((x, z, 0.45, 0.45))

    def _ladder(self, x: float, z: float) -> None:
        for side in (0.0, 0.5):
            self.box((x, 0.1, z + side), (0.05, 2.4, 0.06), 0.0, _GRAIN, (170, 150, 60), 0.6)
        for rung in range(7):
            self.box(
                (x, 1.0 - 0.32 * rung, z + 0.25),
                (0.03, 0.035, 0.5),
                0.0,
                _GRAIN,
                (180, 160, 70),
                0.6,
            )

    def _lamp(self, x: float, z: float) -> None:
        self.box((x, -1.35, z), (0.02, 1.1, 0.02), 0.0, _GRAIN, (40, 40, 40), 0.4)
        self.box((x, -0.7, z), (0.32, 0.22, 0.32), 0.4, _STRIPES, (200, 170, 90), 0.5, 0.4)

    def _plant(self, x: float, z: float) -> None:
        self.box((x, 1.08, z), (0.4, 0.44, 0.4), 0.3, _NOISE, (150, 95, 70), 0.5, on_floor=True)
        for turn in (0.2, 1.3, 2.35):
            leaves = self.texture(_BLOBS, 1.1, 1.2, (60, 110, 55), 0.5, 0.8)
            rows, columns = leaves.shape[:2]
            noise = self.rng.standard_normal((13, 12), dtype=np.float32)
            noise = cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_CUBIC)
            v, u = np.ogrid[-1 : 1 : rows * 1j, -1 : 1 : columns * 1j]
            noise += (1.1 - 2.2 * (u * u + v * v)).astype(np.float32)
            coverage = np.clip(noise * 200 + 128, 0, 255).astype(np.uint8)
            along = np.array([math.cos(turn), 0.0, math.sin(turn)])
            self.panel(
                np.array([x, -0.2, z]) - along * 0.55,
                along * 1.1,
                (0, 1.2, 0),
                leaves,
                coverage=coverage,
            )

    def pose(self, time: float) -> Pose:
        """Where the camera is at a frame: strolling to and fro, looking about."""
        centre = np.array(
            [
                0.75 * math.sin(2 * math.pi * time / 170),
                0.03 * math.sin(2 * math.pi * time / 23),
                1.2 - 1.8 * math.cos(2 * math.pi * time / 240),
            ]
        )
        yaw = 0.16 * math.sin(2 * math.pi * time / 130)
        pitch = 0.06 + 0.03 * math.sin(2 * math.pi * time / 90)
        about_y = np.array(
            [[math.cos(yaw), 0, -math.sin(yaw)], [0, 1, 0], [math.sin(yaw), 0, math.cos(yaw)]]
        )
        about_x = np.array(
            [
                [1, 0, 0],
                [0, math.cos(pitch), -math.sin(pitch)],
                [0, math.sin(pitch), math.cos(pitch)],
            ]
        )
        return Pose(centre * self.scale, about_x @ about_y)


def _camera_matrix(camera: StereoCamera, cx: float, scale: int) -> np.ndarray:
    """Pinhole matrix of a picture ``scale`` times as large; pixel centres are integers."""
    half = (scale - 1) / 2
    return np.array(
        [
            [camera.fx * scale, 0.0, cx * scale + half],
            [0.0, camera.fy * scale, camera.cy * scale + half],
            [0.0, 0.0, 1.0],
        ]
    )


def walk_through(
    seed: int, frames: int, camera: StereoCamera
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Frames of a walk: left, right (H, W, 3) uint8 and both disparities (H, W) float32 px."""
    hall = Hall(seed, camera.fx * camera.baseline_m / _NOMINAL_FOCAL_BASELINE)
    rng = np.random.default_rng([seed, 8])
    gains = np.exp(rng.normal(0, 0.015, (2, 3)))
    for frame in range(frames):
        pose = hall.pose(frame)
        pictures, disparities = [], []
        for eye, cx in enumerate((camera.cx_left, camera.cx_right)):
            offset = pose.rotation.T @ np.array([eye * camera.baseline_m, 0.0, 0.0])
            here = Pose(pose.centre + offset, pose.rotation)
            exact = Eye(_camera_matrix(camera, cx, 1), camera.width, camera.height, here)
            exact.see(hall.panels)
            disparities.append(
                exact.inverse_depth * np.float32(camera.fx * camera.baseline_m)
                + np.float32(camera.cx_offset_px)
            )
            fine = Eye(
                _camera_matrix(camera, cx, _SUPERSAMPLING),
                camera.width * _SUPERSAMPLING,
                camera.height * _SUPERSAMPLING,
                here,
            )
            fine.see(hall.panels)
            picture = cv2.resize(
                fine.picture(hall.panels),
                (camera.width, camera.height),
                interpolation=cv2.INTER_AREA,
            )
            picture = np.clip(picture * gains[eye], 0, 255).astype(np.uint8)
            noise = np.random.default_rng([seed, 9, frame, eye])
            pictures.append(add_noise(picture, 0, noise))
        yield pictures[0], pictures[1], disparities[0], disparities[1]
