# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What scenes in space are built with: looks, quadrilaterals, boxes, rods, figures, light."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from stereo_kd_ros.procedural import (
    SHAPES,
    STOUT_PX,
    Painter,
    mirrored_pyramid,
    tile_pyramid,
)
from stereo_kd_training.datasets.faces import Face, Sheen, cross

RIGHT, DOWN, AHEAD = np.eye(3)
_THINNEST_PX = 1.15


@dataclass(frozen=True)
class Material:
    """A seamless texture pyramid and its density in texels per metre."""

    levels: tuple[np.ndarray, ...]
    density: float


class Space:
    """Collects the faces of one scene around the left eye at ``centre``."""

    def __init__(
        self,
        rng: np.random.Generator,
        painter: Painter,
        difficulty: float,
        densities: tuple[float, float],
    ):
        self.rng = rng
        self.painter = painter
        self.difficulty = difficulty
        self.densities = densities
        self.centre = np.zeros(3)
        self.pixel_m = 0.002
        self.shell: list[Face] = []
        self.objects: list[list[Face]] = []
        sun = rng.normal(0, 1, 3)
        sun[1] = -abs(sun[1]) - 0.6
        self.sun = sun / np.linalg.norm(sun)
        self.ambient = rng.uniform(0.45, 0.75)
        self._palette: list[Material] = []
        self._paints: list[Material] = []
        self._mirrored: list[np.ndarray] = []

    # Looks -----------------------------------------------------------------------------------

    def density(self) -> float:
        low, high = self.densities
        return math.exp(self.rng.uniform(math.log(low), math.log(high)))

    def material(self, bare: float = 0.2, weak: float = 0.3, small: bool = False) -> Material:
        """A fresh look; ``bare`` and ``weak`` are the shares of (nearly) textureless ones."""
        choice = self.rng.random() / (0.6 + 0.8 * self.difficulty)
        if choice < bare:
            return Material(self._bare(), self.density())
        weak_now = choice < bare + weak
        if small:
            return Material(mirrored_pyramid(self.painter.patch(128, weak_now)), self.density())
        return Material(self.painter.pyramid(weak_now), self.density())

    def thing(self) -> Material:
        """A look for an object; a scene has a dozen of them."""
        if len(self._palette) < 9 or self.rng.random() < 0.05:
            self._palette.append(self.material(0.2, 0.25, small=True))
        return self._palette[int(self.rng.integers(len(self._palette)))]

    def paint(self) -> Material:
        """One of the bare looks that a scene's cars share, a third of them nearly black."""
        if len(self._paints) < 4:
            dark = self.rng.random() < 0.35
            self._paints.append(self.bare(6, 45) if dark else self.bare())
        return self._paints[int(self.rng.integers(len(self._paints)))]

    def bare(
        self, darkest: float = 40.0, lightest: float = 200.0, density: float = 60.0
    ) -> Material:
        """Paint, as `_bare`."""
        return Material(self._bare(darkest, lightest), density)

    def _bare(self, darkest: float = 40.0, lightest: float = 200.0) -> tuple[np.ndarray, ...]:
        """Paint, plaster or plastic: one colour, and a grain that noise may drown."""
        rng = self.rng
        if 'weak' in self.painter.without:
            return mirrored_pyramid(self.painter.patch(128))
        colour = rng.uniform(darkest, lightest)
        colour = colour + rng.normal(0, rng.choice([3.0, 12.0, 30.0]), 3) * min(1, colour / 60)
        grain = rng.standard_normal((96, 96, 1), dtype=np.float32)
        stains = cv2.resize(
            rng.standard_normal((6, 6), dtype=np.float32), (96, 96), interpolation=cv2.INTER_CUBIC
        )
        tile = colour + grain * rng.uniform(0.2, 2.0) + stains[..., None] * rng.uniform(0, 3)
        return mirrored_pyramid(np.clip(tile + 0.5, 0, 255).astype(np.uint8))

    def facade(self) -> Material:
        """Rows of windows, alike to the pixel or nearly so."""
        rng = self.rng
        cells = int(rng.choice([2, 4]))
        cell = 512 // cells
        wall = self.painter.patch(256, bool(rng.random() < 0.5))
        wall = cv2.resize(wall, (256, 256), interpolation=cv2.INTER_AREA)
        wall = np.concatenate([wall, wall[:, ::-1]], axis=1)
        tile = np.concatenate([wall, wall[::-1]], axis=0)
        frame = rng.uniform(60, 240, 3)
        glass = rng.uniform(15, 110) + rng.normal(0, 10, 3)
        wide, tall = rng.uniform(0.3, 0.75), rng.uniform(0.35, 0.75)
        if rng.random() < 0.15:
            wide = 1.2
        x0, x1 = (0.5 - wide / 2) * cell, (0.5 + wide / 2) * cell
        y0, y1 = (0.5 - tall / 2) * cell, (0.5 + tall / 2) * cell
        border = max(1.5, cell * rng.uniform(0.015, 0.05))
        alike = rng.random() < 0.5
        bars = int(rng.integers(0, 3))
        for row in range(cells):
            for column in range(cells):
                left, top = column * cell, row * cell
                own = glass if alike else glass + rng.normal(0, 18)
                _rectangle(tile, left + x0, top + y0, left + x1, top + y1, frame)
                inner = (left + x0 + border, top + y0 + border, left + x1 - border)
                _rectangle(tile, *inner, top + y1 - border, own)
                for bar in range(bars):
                    x = left + x0 + (bar + 1) * (x1 - x0) / (bars + 1)
                    _rectangle(tile, x - border / 2, top + y0, x + border / 2, top + y1, frame)
                if not alike and rng.random() < 0.3:
                    blind = top + y0 + (y1 - y0) * rng.uniform(0.2, 0.9)
                    _rectangle(tile, *inner, blind, rng.uniform(120, 230, 3))
        return Material(tile_pyramid(tile), cell / rng.uniform(1.2, 3.5))

    def lit(self, outward: np.ndarray) -> float:
        """Brightness of a face by its direction."""
        return self.ambient + (1 - self.ambient) * max(0.0, float(np.dot(outward, self.sun))) * 1.3

    # Geometry --------------------------------------------------------------------------------

    def quad(
        self,
        corner: np.ndarray,
        edge_u: np.ndarray,
        edge_v: np.ndarray,
        material: Material,
        light: float = 1.0,
        **options,
    ) -> Face:
        """A face with a material at its own density, cut from a random place of it."""
        texels = tuple(math.hypot(*edge) * material.density for edge in (edge_u, edge_v))
        shift = tuple(self.rng.uniform(0, material.levels[0].shape[0], 2).tolist())
        return Face(
            np.asarray(corner, float),
            np.asarray(edge_u, float),
            np.asarray(edge_v, float),
            material.levels,
            texels,
            shift,
            light,
            **options,
        )

    def box(
        self,
        centre: Sequence[float],
        size: Sequence[float],
        yaw: float = 0.0,
        material: Material | None = None,
        axes: np.ndarray | None = None,
        shaded: bool | None = None,
    ) -> list[Face]:
        """The sides of a block that the eye sees; ``size`` is width, height and depth."""
        if axes is None:
            cos, sin = math.cos(yaw), math.sin(yaw)
            axes = np.array([[cos, 0, -sin], [0, 1, 0], [sin, 0, cos]])
        material = material or self.thing()
        middle, half = np.asarray(centre, float), np.asarray(size, float) / 2
        towards = axes @ (self.centre - middle)
        seen = {
            (axis, sign): sign * towards[axis] > half[axis]
            for axis in range(3)
            for sign in (-1, 1)
        }
        tint = self.rng.uniform(0.7, 1.25)
        shaded = self.rng.random() < 0.25 if shaded is None else shaded
        faces = []
        for (axis, sign), visible in seen.items():
            if not visible:
                continue
            u, v = {0: (2, 1), 1: (0, 2), 2: (0, 1)}[axis]
            outward = axes[axis] * sign
            corner = middle + outward * half[axis] - axes[u] * half[u] - axes[v] * half[v]
            joined = (seen[v, -1], seen[u, 1], seen[v, 1], seen[u, -1])
            faces.append(
                self.quad(
                    corner,
                    axes[u] * 2 * half[u],
                    axes[v] * 2 * half[v],
                    material,
                    tint * self.lit(outward),
                    joined=joined,
                    light_map=self.gradient() if shaded else None,
                )
            )
        return faces

    def gradient(self) -> np.ndarray:
        """Smooth light over a face that is not flatly lit: half to one and a half."""
        coarse = self.rng.standard_normal((3, 3), dtype=np.float32) * self.rng.uniform(0.05, 0.25)
        smooth = cv2.resize(coarse, (16, 16), interpolation=cv2.INTER_CUBIC)
        return np.clip(128 * (1 + smooth), 30, 250).astype(np.uint8)

    def rod(
        self,
        start: Sequence[float],
        end: Sequence[float],
        thickness_m: float,
        material: Material,
        light: float = 1.0,
    ) -> Face:
        """A strip that faces the eye, never thinner than about a pixel."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        middle = (start + end) / 2 - self.centre
        across = cross(end - start, middle)
        across /= max(float(np.linalg.norm(across)), 1e-9)
        least_px = STOUT_PX if 'thin' in self.painter.without else _THINNEST_PX
        thickness_m = max(thickness_m, least_px * self.pixel_m * float(np.linalg.norm(middle)))
        return self.quad(
            start - across * thickness_m / 2, across * thickness_m, end - start, material, light
        )

    def cylinder(
        self, x: float, z: float, top: float, foot: float, radius: float, material: Material
    ) -> list[Face]:
        """An upright column of flat staves."""
        staves = 10
        step = 2 * math.pi / staves
        wide = 2 * radius * math.tan(step / 2)
        turn = self.rng.uniform(0, step)
        faces = []
        outwards = [
            np.array([math.cos(turn + k * step), 0.0, math.sin(turn + k * step)])
            for k in range(staves)
        ]
        eye = np.array([self.centre[0] - x, 0.0, self.centre[2] - z])
        visible = [float(np.dot(out, eye)) > radius for out in outwards]
        for k, outward in enumerate(outwards):
            if not visible[k]:
                continue
            along = np.array([-outward[2], 0.0, outward[0]])
            middle = np.array([x, top, z]) + outward * radius
            joined = (False, visible[(k + 1) % staves], False, visible[k - 1])
            face = self.quad(
                middle - along * wide / 2,
                along * wide,
                np.array([0.0, foot - top, 0.0]),
                material,
                self.lit(outward),
                joined=joined,
            )
            # The texture runs around the column instead of starting anew on every stave.
            faces.append(replace(face, shift=(k * wide * material.density, 0.0)))
        return faces

    def card(
        self,
        shape: str,
        corner: Sequence[float],
        edge_u: np.ndarray,
        edge_v: np.ndarray,
        material: Material,
        light: float = 1.0,
    ) -> Face:
        """A flat figure cut out of a material."""
        aspect = float(np.linalg.norm(edge_v) / max(float(np.linalg.norm(edge_u)), 1e-6))
        columns = int(np.clip(160 / math.sqrt(aspect), 24, 320))
        rows = int(np.clip(160 * math.sqrt(aspect), 24, 320))
        mask = np.zeros((rows, columns), np.uint8)
        SHAPES[self.painter.figure(shape)](self.rng, mask)
        return self.quad(corner, edge_u, edge_v, material, light, mask=mask)

    def facing(self, x: float, z: float, wide: float) -> np.ndarray:
        """A level vector of a length, across the line of sight to (x, z), turned a little."""
        angle = math.atan2(x - self.centre[0], z - self.centre[2]) + self.rng.normal(0, 0.3)
        return wide * np.array([math.cos(angle), 0.0, -math.sin(angle)])

    def shadow(self, x: float, z: float, wide: float, deep: float, y: float = 0.0) -> Face:
        """A dark spot on the ground."""
        y_, x_ = np.ogrid[-1:1:48j, -1:1:48j]
        soft = np.clip(1.6 * (1 - (x_ * x_ + y_ * y_)), 0, 1) * 255
        return Face(
            np.array([x - wide / 2, y, z - deep / 2]),
            wide * RIGHT,
            deep * AHEAD,
            mask=soft.astype(np.uint8),
            shadow=self.rng.uniform(0.2, 0.6),
        )

    def lit_by_lamps(self, face: Face, lamps: Sequence[np.ndarray], spots=()) -> Face:
        """Light falling from lamps, and dark spots (u, v, half width, half depth), on a wall."""
        side = 64 if spots else 24
        grid = (np.arange(side, dtype=np.float32) + 0.5) / side
        points = (
            face.corner
            + grid[None, :, None] * face.edge_u[None, None]
            + grid[:, None, None] * face.edge_v[None, None]
        )
        normal = cross(face.edge_u, face.edge_v)
        normal = normal / np.linalg.norm(normal)
        light = np.full((side, side), self.ambient, np.float64)
        for lamp in lamps:
            ray = lamp - points
            reach = np.sqrt((ray**2).sum(axis=2)) + 0.15
            light += 1.4 * np.abs(ray @ normal) / reach / (0.4 + reach**2)
        light *= self.rng.uniform(0.85, 1.15) / max(float(np.median(light)), 1e-3)
        for u, v, wide, deep in spots:
            distance = np.maximum(
                np.abs(grid[None] - u) / max(wide, 0.01),
                np.abs(grid[:, None] - v) / max(deep, 0.01),
            )
            light *= 1 - 0.5 * np.clip(1.5 - distance, 0, 1)
        smooth = cv2.GaussianBlur(light.astype(np.float32), (0, 0), 1.0)
        return replace(face, light_map=np.clip(128 * smooth, 10, 255).astype(np.uint8))

    def glossy(self, face: Face, height: int, width: int) -> Face:
        """Some soft reflections of lamps in a face."""
        rng = self.rng
        if 'mirrors' in self.painter.without:
            return face
        sheens = []
        for _ in range(int(rng.integers(1, 4))):
            y, x = np.ogrid[-1:1:32j, -1:1:32j]
            fall = np.clip(1 - np.sqrt(x * x + y * y), 0, 1) ** rng.uniform(0.5, 2)
            wide, tall = width * rng.uniform(0.1, 0.8), height * rng.uniform(0.1, 0.8)
            x0, y0 = rng.uniform(-0.3, 1) * width, rng.uniform(-0.3, 1) * height
            picture = (fall * rng.uniform(20, 130)).astype(np.uint8)
            box = (x0, y0, x0 + wide, y0 + tall)
            sheens.append(Sheen(picture, box, rng.uniform(0.3, 0.9)))
        return replace(face, sheen=tuple(sheens))

    def mirroring(self, face: Face, pane: bool) -> Face:
        """The street in a polished face: another picture, at the depth of its mirror image.

        That of a plane lies as far behind it as the street is before it; what is bent outward,
        as bodies of cars are, brings it near.
        """
        rng = self.rng
        if 'mirrors' in self.painter.without:
            return face
        if len(self._mirrored) < 4:
            self._mirrored.append(self._street_picture())
        picture = self._mirrored[int(rng.integers(len(self._mirrored)))]
        middle = face.corner + (face.edge_u + face.edge_v) / 2 - self.centre
        metre_px = 1 / (self.pixel_m * max(float(np.linalg.norm(middle)), 0.3))
        wide = max(metre_px * rng.uniform(0.6, 4.0), 8.0)
        tall = max(metre_px * rng.uniform(0.5, 1.8), 8.0)
        x0, y0 = rng.uniform(-500, 500, 2)
        strength = rng.uniform(0.2, 0.8) if pane else rng.uniform(0.08, 0.6)
        sheen = Sheen(
            cv2.convertScaleAbs(picture, alpha=strength),
            (x0, y0, x0 + wide, y0 + tall),
            rng.uniform(0.05, 0.85) if pane else rng.uniform(0.3, 0.95),
            endless=True,
        )
        return replace(face, sheen=(*face.sheen, sheen))

    def _street_picture(self) -> np.ndarray:
        """(96, 96) uint8 light that a street sends: things, and mostly a bright sky above them."""
        rng = self.rng
        patch = cv2.resize(self.painter.patch(96), (96, 96), interpolation=cv2.INTER_AREA)
        light = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32)
        light = cv2.GaussianBlur(light, (0, 0), rng.uniform(0.3, 3.0))
        if rng.random() < 0.7:
            horizon = 48 + rng.uniform(-10, 10) + 5 * rng.standard_normal((1, 12))
            edge = cv2.resize(horizon.astype(np.float32), (96, 1), interpolation=cv2.INTER_CUBIC)
            sky = np.clip((edge - np.arange(96, dtype=np.float32)[:, None]) / 2 + 0.5, 0, 1)
            light = light * (1 - sky) * rng.uniform(0.3, 0.9) + sky * rng.uniform(150, 255)
        return np.clip(light, 0, 255).astype(np.uint8)


def _rectangle(image: np.ndarray, x0: float, y0: float, x1: float, y1: float, colour) -> None:
    start, end = (round(x0), round(y0)), (round(x1) - 1, round(y1) - 1)
    cv2.rectangle(image, start, end, np.clip(colour, 0, 255).tolist(), -1)


def vector(values: Sequence[float]) -> np.ndarray:
    """(3,) world metres, x right, y down, z ahead."""
    return np.asarray(values, float)


def turned(yaw: float, x: float, z: float) -> np.ndarray:
    """(3,) what lies x to the right and z ahead of something that is turned by ``yaw`` [rad]."""
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([cos * x + sin * z, 0.0, -sin * x + cos * z])


def fence(space: Space, x: float, z: float, long: float, tall: float, yaw: float) -> list[Face]:
    """Equal bars between two rails, or a mesh of crossing wires."""
    rng = space.rng
    look, light = space.thing(), rng.uniform(0.3, 1.2)
    pitch = rng.uniform(0.06, 0.2) * max(1.0, long / 3)
    thick = pitch * rng.uniform(0.08, 0.35)
    origin = np.array([x, 0.0, z])
    bars = min(int(long / pitch), 28)
    faces = []
    mesh = rng.random() < 0.3
    for bar in range(bars + 1):
        foot = origin + turned(yaw, bar * pitch - long / 2, 0)
        if mesh:
            for lean in (-tall, tall):
                end = foot + turned(yaw, lean * 0.7, 0) + [0, -tall, 0]
                faces.append(space.rod(foot, end, thick * 0.5, look, light))
        else:
            faces.append(space.rod(foot, foot + vector([0, -tall, 0]), thick, look, light))
    ends = [origin + turned(yaw, side * long, 0) for side in (-0.5, 0.5)]
    for part in (0.1, 0.95):
        rail = [end + np.array([0, -tall * part, 0]) for end in ends]
        faces.append(space.rod(*rail, thick * 1.3, look, light))
    return faces
