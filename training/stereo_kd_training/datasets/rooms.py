# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rooms, corridors and streets in three dimensions, seen by a rig with exact truth.

Where layered scenes (``stereo_kd_ros.procedural``) are rich in shapes, these are right in their
geometry: walls, ceilings and roads at grazing angles whose texture fades to nothing under
shading, facades of equal windows, furniture, cars, and rods, fences and wires of a pixel's
width. Everything is a function of the seed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from stereo_kd_ros.procedural import (
    SHAPES,
    STOUT_PX,
    THIN_SHAPES,
    Painter,
    ProceduralError,
    StereoSample,
    check_scene,
    mirrored_pyramid,
    rectification_error,
    tile_pyramid,
)
from stereo_kd_ros.procedural_surfaces import occluded_pixels
from stereo_kd_ros.procedural_textures import photograph
from stereo_kd_training.datasets.faces import (
    Face,
    Outline,
    Rig,
    Sheen,
    SpaceView,
    cross,
    nearest_in_view,
    outline,
)

KINDS = ('room', 'corridor', 'street')
_KIND_SHARES = (0.4, 0.15, 0.45)
_RIGHT, _DOWN, _AHEAD = np.eye(3)
_THINNEST_PX = 1.15


@dataclass(frozen=True)
class Material:
    """A seamless texture pyramid and its density in texels per metre."""

    levels: tuple[np.ndarray, ...]
    density: float


class _Space:
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

    def bare(self, darkest: float = 40.0, lightest: float = 200.0) -> Material:
        """Paint, as `_bare`."""
        return Material(self._bare(darkest, lightest), 60.0)

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
        if 'thin' in self.painter.without and shape in THIN_SHAPES:
            shape = 'rectangle'
        SHAPES[shape](self.rng, mask)
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
            wide * _RIGHT,
            deep * _AHEAD,
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


# Rooms ---------------------------------------------------------------------------------------


def _furnish_room(space: _Space, corridor: bool, height: int, width: int) -> None:
    """Walls, floor and ceiling around the eye, and what stands, lies and hangs there."""
    rng = space.rng
    if corridor:
        wide, tall, long = rng.uniform(1.4, 2.8), rng.uniform(2.2, 3.2), rng.uniform(8, 35)
    else:
        wide, tall = math.exp(rng.uniform(0.9, 2.4)), rng.uniform(2.2, 4.0)
        long = math.exp(rng.uniform(0.9, 2.7))
    ceiling, left, right = -tall, -wide / 2, wide / 2
    back = long * rng.uniform(-0.1, 0.4)
    space.centre = np.array(
        [rng.uniform(-0.35, 0.35) * wide, -tall * rng.uniform(0.08, 0.75), back]
    )
    start, end = back - 1.0, long + max(0.6, back)
    deep = end - start
    lamps = [
        np.array(
            [rng.uniform(left, right), ceiling + rng.uniform(0.05, 0.8), rng.uniform(start, end)]
        )
        for _ in range(int(rng.integers(1, 4)))
    ]
    standing = _furniture(space, left, right, ceiling, end, corridor)
    spots = [
        ((x - left) / wide, (z - start) / deep, across / wide / 2, depth / deep / 2)
        for x, z, across, depth in standing
    ]
    wall_look = space.material(0.45, 0.3)
    shared = rng.random() < 0.6
    up, along, across = np.array([0, tall, 0.0]), deep * _AHEAD, wide * _RIGHT
    low = np.array([left, 0.0, start])
    sides = [
        (low, across, along, space.material(0.25, 0.4), spots),
        (low + _vector([0, ceiling, 0]), across, along, space.material(0.6, 0.25), ()),
        (low + _vector([0, ceiling, 0]), along, up, wall_look, ()),
        (
            low + _vector([wide, ceiling, 0]),
            along,
            up,
            wall_look if shared else space.material(0.45, 0.3),
            (),
        ),
        (
            low + _vector([0, ceiling, deep]),
            across,
            up,
            wall_look if shared else space.material(0.4, 0.3),
            (),
        ),
        (low + _vector([0, ceiling, 0]), across, up, wall_look, ()),
    ]
    for corner, edge_u, edge_v, look, dark in sides:
        face = space.quad(corner, edge_u, edge_v, look, unbounded=True)
        face = space.lit_by_lamps(face, lamps, dark)
        if rng.random() < 0.2:
            face = space.glossy(face, height, width)
        space.shell.append(face)
    for _ in range(int(rng.integers(0, 8))):
        space.objects.append([_wall_decor(space, left, right, ceiling, start, end)])
    if rng.random() < 0.4:
        # Skirting boards and pipes: long thin things along the walls.
        y, x = (
            (rng.uniform(-0.15, -0.05), left + 0.02)
            if rng.random() < 0.5
            else (ceiling + rng.uniform(0.05, 0.4), right - 0.05)
        )
        look = space.thing()
        space.objects.append(space.box((x, y, (start + end) / 2), (0.04, 0.06, deep), 0.0, look))
    for _ in range(int(rng.integers(0, 3))):
        x, z = rng.uniform(left, right), rng.uniform(back, end)
        drop = rng.uniform(0.2, 0.6) * tall
        wire = space.rod((x, ceiling, z), (x, ceiling + drop, z), 0.006, space.thing(), 0.5)
        size = rng.uniform(0.1, 0.4, 3)
        space.objects.append([wire, *space.box((x, ceiling + drop, z), size, rng.uniform(0, 3))])


def _furniture(
    space: _Space, left: float, right: float, ceiling: float, end: float, corridor: bool
) -> list[tuple[float, float, float, float]]:
    """Fill a room; returns the ground (x, z, width, depth) that things stand on."""
    rng = space.rng
    standing = []
    wide = right - left
    for _ in range(int(rng.integers(1, 8)) if corridor else int(rng.integers(4, 18))):
        z = space.centre[2] + (end - space.centre[2]) * math.sqrt(rng.uniform(0.02, 1))
        x = rng.uniform(left, right)
        if corridor or rng.random() < 0.3:
            x = (left + 0.2) if rng.random() < 0.5 else (right - 0.2)
        scale = min(1.0, wide / 3)
        size = scale * np.exp(rng.uniform(math.log(0.15), math.log(1.3), 3))
        size[1] = min(size[1] * rng.uniform(0.6, 1.8), -ceiling * 0.95)
        yaw = float(rng.choice([0.0, rng.uniform(-0.8, 0.8)]))
        choice = rng.random()
        if choice < 0.34:
            faces = space.box((x, -size[1] / 2, z), size, yaw)
            top = -size[1]
        elif choice < 0.5:
            faces, top = _table(space, x, z, size, yaw)
        elif choice < 0.6:
            faces, top = _shelf(space, x, z, size, yaw, ceiling), 0.0
        elif choice < 0.68:
            faces, top = _chair(space, x, z, yaw + rng.uniform(-2, 2)), 0.0
        elif choice < 0.74:
            faces, top = (
                _fence(space, x, z, rng.uniform(0.5, 2.0), rng.uniform(0.5, 1.2), yaw),
                0.0,
            )
        elif choice < 0.8:
            radius = rng.uniform(0.03, 0.25)
            tall = -ceiling if rng.random() < 0.5 else rng.uniform(0.3, 1.5)
            faces, top = space.cylinder(x, z, -tall, 0.0, radius, space.thing()), 0.0
        elif choice < 0.9:
            faces, top = _plant(space, x, z), 0.0
        else:
            faces, top = _stand(space, x, z), 0.0
        if top:
            for _ in range(int(rng.integers(0, 5))):
                small = size * rng.uniform(0.1, 0.45, 3)
                place = (
                    x + rng.uniform(-0.3, 0.3) * size[0],
                    top - small[1] / 2,
                    z + rng.uniform(-0.3, 0.3) * size[2],
                )
                faces = faces + space.box(place, small, rng.uniform(-1, 1))
        space.objects.append(faces)
        standing.append((x, z, size[0], size[2]))
    return standing


def _vector(values: Sequence[float]) -> np.ndarray:
    return np.asarray(values, float)


def _turned(yaw: float, x: float, z: float) -> np.ndarray:
    cos, sin = math.cos(yaw), math.sin(yaw)
    return np.array([cos * x + sin * z, 0.0, -sin * x + cos * z])


def _table(space: _Space, x: float, z: float, size: np.ndarray, yaw: float):
    rng = space.rng
    wide, deep, tall = max(size[0], 0.4), max(size[2], 0.4), rng.uniform(0.4, 0.95)
    look, legs = space.thing(), space.thing()
    faces = space.box((x, -tall, z), (wide, 0.04, deep), yaw, look)
    leg = rng.uniform(0.015, 0.07)
    for side_x in (-0.45, 0.45):
        for side_z in (-0.45, 0.45):
            foot = np.array([x, -tall / 2, z]) + _turned(yaw, side_x * wide, side_z * deep)
            faces += space.box(foot, (leg, tall, leg), yaw, legs, shaded=False)
    return faces, -tall - 0.02


def _chair(space: _Space, x: float, z: float, yaw: float) -> list[Face]:
    rng = space.rng
    look, bars = space.thing(), space.thing()
    faces = space.box((x, -0.45, z), (0.42, 0.04, 0.42), yaw, look)
    thick = rng.uniform(0.015, 0.04)
    for side_x in (-0.19, 0.19):
        for side_z, top in ((-0.19, -0.45), (0.19, -0.95)):
            foot = np.array([x, 0.0, z]) + _turned(yaw, side_x, side_z)
            faces.append(space.rod(foot, foot + _vector([0, top, 0]), thick, bars, 0.8))
    for y in np.linspace(-0.6, -0.92, int(rng.integers(1, 5))):
        ends = [np.array([x, y, z]) + _turned(yaw, side, 0.19) for side in (-0.19, 0.19)]
        faces.append(space.rod(*ends, thick * rng.uniform(0.6, 2), bars, 0.9))
    return faces


def _shelf(
    space: _Space, x: float, z: float, size: np.ndarray, yaw: float, ceiling: float
) -> list[Face]:
    rng = space.rng
    wide, deep, tall = max(size[0], 0.5), rng.uniform(0.2, 0.4), rng.uniform(0.5, 0.8) * -ceiling
    look = space.thing()
    faces = []
    back = np.array([x, -tall / 2, z]) + _turned(yaw, 0, deep / 2)
    if rng.random() < 0.5:
        faces += space.box(back, (wide, tall, 0.02), yaw, look)
    for side in (-0.5, 0.5):
        middle = np.array([x, -tall / 2, z]) + _turned(yaw, side * wide, 0)
        faces += space.box(middle, (0.025, tall, deep), yaw, look)
    boards = int(rng.integers(2, 6))
    for board in range(boards + 1):
        y = -tall * board / boards
        faces += space.box((x, y, z), (wide, 0.025, deep), yaw, look, shaded=False)
        at = -0.45 * wide
        while board < boards and at < 0.4 * wide and rng.random() < 0.93:
            book = np.array(
                [
                    rng.uniform(0.02, 0.16),
                    tall / boards * rng.uniform(0.4, 0.9),
                    deep * rng.uniform(0.4, 0.95),
                ]
            )
            place = np.array([x, y - book[1] / 2 - 0.012, z]) + _turned(yaw, at + book[0] / 2, 0)
            faces += space.box(place, book, yaw, shaded=False)
            at += book[0] + float(rng.choice([0.002, 0.002, 0.1]))
    return faces


def _plant(space: _Space, x: float, z: float) -> list[Face]:
    rng = space.rng
    tall, look = rng.uniform(0.3, 1.6), space.thing()
    pot = rng.uniform(0.08, 0.2)
    faces = space.cylinder(x, z, -2 * pot, 0.0, pot, space.thing())
    for _ in range(int(rng.integers(2, 6))):
        wide = tall * rng.uniform(0.4, 0.9)
        along = space.facing(x, z, wide) + rng.normal(0, 0.3) * wide * _AHEAD
        place = np.array([x, -2 * pot - tall * rng.uniform(0.7, 1.0), z]) + rng.normal(0, 0.1, 3)
        shape = str(rng.choice(['foliage', 'foliage', 'blob']))
        faces.append(
            space.card(
                shape,
                place - along / 2,
                along,
                np.array([0, tall, 0.0]),
                look,
                rng.uniform(0.6, 1.1),
            )
        )
    return faces


def _stand(space: _Space, x: float, z: float) -> list[Face]:
    """A tripod, coat stand or ladder: rods in all directions."""
    rng = space.rng
    look, tall = space.thing(), rng.uniform(0.8, 2.1)
    thick = math.exp(rng.uniform(math.log(0.006), math.log(0.05)))
    top = np.array([x, -tall, z])
    light = rng.uniform(0.4, 1.1)
    faces = []
    if rng.random() < 0.5:
        for angle in rng.uniform(0, 6.28) + np.array([0.0, 2.1, 4.2]):
            foot = np.array([x + 0.3 * math.cos(angle), 0.0, z + 0.3 * math.sin(angle)])
            faces.append(space.rod(top, foot, thick, look, light))
        faces += space.box(top, rng.uniform(0.05, 0.3, 3), rng.uniform(0, 3))
    else:
        lean = rng.uniform(0, 0.5)
        across = space.facing(x, z, rng.uniform(0.3, 0.6))
        rungs = int(rng.integers(3, 10))
        for side in (-0.5, 0.5):
            foot = np.array([x, 0.0, z]) + across * side
            faces.append(space.rod(foot, foot + _vector([0, -tall, lean]), thick, look, light))
        for rung in range(1, rungs):
            part = rung / rungs
            middle = np.array([x, -tall * part, z + lean * part])
            faces.append(space.rod(middle - across / 2, middle + across / 2, thick, look, light))
    return faces


def _fence(space: _Space, x: float, z: float, long: float, tall: float, yaw: float) -> list[Face]:
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
        foot = origin + _turned(yaw, bar * pitch - long / 2, 0)
        if mesh:
            for lean in (-tall, tall):
                end = foot + _turned(yaw, lean * 0.7, 0) + [0, -tall, 0]
                faces.append(space.rod(foot, end, thick * 0.5, look, light))
        else:
            faces.append(space.rod(foot, foot + _vector([0, -tall, 0]), thick, look, light))
    ends = [origin + _turned(yaw, side * long, 0) for side in (-0.5, 0.5)]
    for part in (0.1, 0.95):
        rail = [end + np.array([0, -tall * part, 0]) for end in ends]
        faces.append(space.rod(*rail, thick * 1.3, look, light))
    return faces


def _wall_decor(
    space: _Space, left: float, right: float, ceiling: float, start: float, end: float
) -> Face:
    """A picture, window, door or whiteboard on one of the walls."""
    rng = space.rng
    wide, tall = rng.uniform(0.3, 1.6), rng.uniform(0.3, 1.2)
    look, light = space.material(0.3, 0.1), rng.uniform(0.6, 1.5)
    y = ceiling * rng.uniform(0.35, 0.9)
    if rng.random() < 0.25:
        tall, wide, y = 0.85 * -ceiling, rng.uniform(0.7, 1.1), 0.85 * ceiling
    tall = min(tall, -y)
    up = np.array([0, tall, 0.0])
    gradient = space.gradient() if rng.random() < 0.4 else None
    side = int(rng.integers(3))
    if side == 2:
        corner = np.array([rng.uniform(left, right - 0.2), y, end - 0.01])
        return space.quad(corner, wide * _RIGHT, up, look, light, light_map=gradient)
    x = left + 0.01 if side else right - 0.01
    corner = np.array([x, y, rng.uniform(start, end - 0.2)])
    return space.quad(corner, wide * _AHEAD, up, look, light, light_map=gradient)


# Streets -------------------------------------------------------------------------------------


def _build_street(space: _Space, height: int, width: int, axis: np.ndarray) -> None:
    """Ground, sky, facades on both sides and the furniture of a road."""
    rng = space.rng
    space.centre = np.array([rng.normal(0, 1.2), -rng.uniform(0.4, 2.2), 0.0])
    far = 4000.0
    sky = _sky(space)
    span = far * 2.0
    across = cross(_DOWN, axis)
    across /= np.linalg.norm(across)
    down = cross(axis, across)
    corner = space.centre + far * axis - (across + down) * span / 2
    space.shell.append(
        Face(
            corner, across * span, down * span, sky.levels, (300.0, 300.0), (0, 0), unbounded=True
        )
    )
    ground = space.quad(
        np.array([-40.0, 0.0, -5.0]),
        80 * _RIGHT,
        160 * _AHEAD,
        space.material(0.25, 0.5),
        rng.uniform(0.6, 1.1),
        unbounded=True,
    )
    if rng.random() < 0.15:
        ground = space.glossy(ground, height, width)
    space.shell.append(ground)
    half = rng.uniform(2.2, 6.0)
    if rng.random() < 0.7:
        _markings(space, half)
    for side in (-1, 1):
        kerb = half + rng.uniform(0.2, 3.0)
        walk = rng.uniform(1.0, 4.0)
        if rng.random() < 0.7:
            rise = rng.uniform(0.06, 0.2)
            look = space.material(0.2, 0.5)
            middle = (side * (kerb + walk / 2), -rise / 2, 45.0)
            space.objects.append(space.box(middle, (walk, rise, 100.0), 0.0, look, shaded=False))
        if rng.random() < 0.75:
            _facades(space, side, kerb + walk)
        if rng.random() < 0.35:
            _roadside_fence(space, side * (kerb + rng.uniform(0.2, 1.0) * walk))
        if rng.random() < 0.5:
            _parked(space, side * (half - 0.2), side)
        if rng.random() < 0.7:
            _poles(space, side * (kerb + 0.3))
        _walkers(space, side, kerb, walk)
    distance = rng.uniform(40, 150)
    for _ in range(int(rng.integers(1, 6))):
        x, tall = rng.normal(0, 0.5) * distance, rng.uniform(4, 25)
        wide = rng.uniform(0.6, 2.5) * tall
        if rng.random() < 0.5:
            middle = (x, -tall / 2, distance + rng.uniform(0, 60))
            space.objects.append(
                space.box(middle, (wide, tall, 10), rng.normal(0, 0.3), space.facade())
            )
        else:
            space.objects.append(_tree(space, x, distance, tall))
    for _ in range(int(rng.integers(0, 4))):
        z = math.exp(rng.uniform(math.log(6), math.log(60)))
        _car(space, rng.uniform(-0.7, 0.7) * half, z, 0.0)
    for _ in range(int(rng.integers(0, 6))):
        size = np.exp(rng.uniform(math.log(0.2), math.log(1.5), 3))
        x, z = rng.uniform(-1.6, 1.6) * half, math.exp(rng.uniform(math.log(2.5), math.log(40)))
        shade = space.shadow(x, z, 1.5 * size[0], 1.5 * size[2])
        space.objects.append([shade])
        space.objects.append(space.box((x, -size[1] / 2, z), size, rng.uniform(-1, 1)))


def _sky(space: _Space) -> Material:
    rng = space.rng
    low = rng.standard_normal((7, 7, 3), dtype=np.float32) * rng.uniform(0.5, 16)
    base = np.array([150, 175, 215]) * rng.uniform(0.6, 1.15) + rng.normal(0, 14, 3)
    clouds = cv2.resize(low, (128, 128), interpolation=cv2.INTER_CUBIC) + base
    return Material(mirrored_pyramid(np.clip(clouds, 0, 255).astype(np.uint8)), 1.0)


def _markings(space: _Space, half: float) -> None:
    rng = space.rng
    look = Material(space._bare(), 40.0)
    light = rng.uniform(1.0, 2.5)
    dash, gap = rng.uniform(1.5, 5), rng.uniform(1.5, 6)
    wide = rng.uniform(0.1, 0.25)
    for x in (-half * 0.92, 0.0, half * 0.92):
        if rng.random() < 0.3:
            continue
        if x:
            corner = np.array([x - wide / 2, -0.001, 0.5])
            faces = [space.quad(corner, wide * _RIGHT, 90 * _AHEAD, look, light)]
        else:
            faces = [
                space.quad(
                    np.array([x - wide / 2, -0.001, z]), wide * _RIGHT, dash * _AHEAD, look, light
                )
                for z in np.arange(rng.uniform(1, 6), 60, dash + gap)
            ]
        space.objects.append(faces)


def _facades(space: _Space, side: int, edge: float) -> None:
    rng = space.rng
    z, looks = rng.uniform(-8, 4), [space.facade(), space.facade(), space.material(0.4, 0.3)]
    while z < 70:
        long, tall, deep = rng.uniform(5, 30), rng.uniform(3, 18), 8.0
        look = looks[int(rng.integers(3))]
        x = side * (edge + deep / 2 + rng.uniform(0, 0.8))
        space.objects.append(
            space.box((x, -tall / 2, z + long / 2), (deep, tall, long), 0.0, look)
        )
        front = x - side * deep / 2
        for _ in range(int(rng.integers(0, 4)) if z < 40 else 0):
            out, at = rng.uniform(0.05, 0.9), z + rng.uniform(0.1, 0.9) * long
            size = (out, rng.uniform(0.1, 1.2), rng.uniform(0.3, 3.0))
            y = -tall * rng.uniform(0.1, 0.9)
            space.objects.append(space.box((front - side * out / 2, y, at), size))
        z += long + float(rng.choice([0.0, 0.0, rng.uniform(1, 15)]))


def _roadside_fence(space: _Space, x: float) -> None:
    rng = space.rng
    z, tall = rng.uniform(2, 15), rng.uniform(0.6, 2.0)
    for _ in range(int(rng.integers(1, 3))):
        long = rng.uniform(2, 8)
        fence = _fence(space, x, z + long / 2, long, tall, math.pi / 2 + rng.normal(0, 0.05))
        space.objects.append(fence)
        z += long + rng.uniform(0, 3)


def _parked(space: _Space, x: float, side: int) -> None:
    rng = space.rng
    z = rng.uniform(3, 12)
    for _ in range(int(rng.integers(1, 7))):
        _car(space, x - side * rng.uniform(0.9, 1.2), z, rng.normal(0, 0.04))
        z += rng.uniform(4.8, 12)


def _car(space: _Space, x: float, z: float, yaw: float) -> None:
    """Body and cabin, cut along their outlines, with panes, wheels and lamps.

    Both are smooth, shaded, and mirror a street, which is most of what is seen of a dark one.
    """
    rng = space.rng
    if rng.random() < 0.5:
        yaw += math.pi
    long, wide, tall = rng.uniform(3.5, 5.0), rng.uniform(1.6, 1.95), rng.uniform(1.35, 1.9)
    sill, belt = rng.uniform(0.18, 0.32), rng.uniform(0.82, 1.05)
    # Across to the right, height and ahead, from the ground below the middle.
    frame = np.array([_turned(yaw, 1, 0), -_DOWN, _turned(yaw, 0, 1)])
    ground = np.array([x, 0.0, z])
    bonnet, boot = rng.uniform(0.6, 1.35), rng.choice([0.1, rng.uniform(0.6, 1.1)])
    front, back = long / 2, -long / 2
    body = np.array(
        [
            (front, sill),
            (front - 0.04, 0.7 * belt),
            (front - rng.uniform(0.1, 0.4), belt - rng.uniform(0.05, 0.2)),
            (front - bonnet, belt),
            (back + rng.uniform(0.02, 0.15), belt),
            (back, sill),
        ]
    )
    cabin = np.array(
        [
            (front - bonnet - 0.05, belt),
            (front - bonnet - rng.uniform(0.4, 0.95), tall),
            (back + boot + rng.uniform(0.1, 0.6), tall),
            (back + boot, belt),
        ]
    )
    paint, glass, tyre = space.paint(), space.bare(8, 45), space.bare(15, 50)
    space.objects.append([space.shadow(x, z, wide * 1.25, long * 1.1)])
    near = z < 30
    faces = _hull(space, ground, frame, wide / 2, body, paint, 0.75)
    faces += _hull(space, ground, frame, 0.43 * wide, cabin, paint, 0.75)
    if near:
        faces += _hull(space, ground, frame, 0.435 * wide, _panes(cabin, belt), glass, 0.9, True)
    radius = rng.uniform(0.28, 0.36)
    for ahead in (front - 0.8, back + 0.75):
        for side in (-1, 1):
            for part, look in ((1.0, tyre), (0.6, space.thing())) if near else ((1.0, tyre),):
                hub = (
                    ground
                    + np.array([side * (0.504 + 0.004 / part) * wide, radius, ahead]) @ frame
                )
                across, down = 2 * part * radius * frame[2], -2 * part * radius * frame[1]
                faces.append(
                    space.card('ellipse', hub - (across + down) / 2, across, down, look, 0.8)
                )
    # Lamps and a number plate at both ends.
    for end in (front + 0.01, back - 0.01) if near else ():
        for middle, breadth in ((-0.36, 0.25), (0.36, 0.25), (0.0, 0.5)):
            corner = ground + np.array([middle * wide - breadth / 2, 0.65 * belt, end]) @ frame
            light = rng.uniform(0.6, 2.0)
            faces.append(
                space.quad(corner, breadth * frame[0], 0.13 * _DOWN, space.thing(), light)
            )
    space.objects.append(faces)


def _panes(cabin: np.ndarray, belt: float) -> np.ndarray:
    """The outline of a car's windows within that of its cabin."""
    middle = cabin.mean(axis=0)
    panes = middle + (cabin - middle) * (0.92, 0.78)
    panes[[0, 3], 1] = belt + 0.04
    return panes


def _hull(
    space: _Space,
    ground: np.ndarray,
    frame: np.ndarray,
    half: float,
    outline_m: np.ndarray,
    look: Material,
    mirrors: float,
    panes: bool = False,
) -> list[Face]:
    """What the eye sees of an outline (ahead, height) drawn out to both sides by ``half``.

    Args:
        space, ground, frame: of the car.
        half: half of the width, in metres.
        outline_m: (N, 2) corners, from the front below over the top to the back.
        look: of all of it.
        mirrors: how probably its faces mirror.
        panes: they are let into what is drawn out, and there is none in the roof.
    """
    rng = space.rng

    def at(across: float, corner: Sequence[float]) -> np.ndarray:
        return ground + np.array([across, corner[1], corner[0]]) @ frame

    faces = []
    centre = outline_m.mean(axis=0)
    mirror = rng.random() < mirrors
    out = 0.015 if panes else 0.0
    for index, (first, last) in enumerate(itertools.pairwise(outline_m)):
        if panes and index == 1:
            continue
        along = last - first
        outward = np.array([along[1], -along[0]]) / np.hypot(*along)
        if outward @ (first - centre) < 0:
            outward = -outward
        normal = np.array([0, outward[1], outward[0]]) @ frame
        breadth = half * (0.88 if panes else 1.0)
        lift = 0.06 if panes else 0.0
        corner = at(-breadth, first + lift * outward) + out * normal
        if (space.centre - corner) @ normal <= 0:
            continue
        upward = at(0, last) - at(0, first)
        face = space.quad(
            corner,
            2 * breadth * frame[0],
            upward,
            look,
            space.lit(normal),
            light_map=space.gradient(),
        )
        faces.append(space.mirroring(face, panes) if mirror else face)
    low, high = outline_m.min(axis=0), outline_m.max(axis=0)
    size = high - low
    mask = np.zeros(np.maximum(np.round(size[::-1] * 100), 8).astype(int), np.uint8)
    corners = (outline_m - low) / size
    corners[:, 1] = 1 - corners[:, 1]
    scaled = np.round(corners * (np.array(mask.shape)[::-1] - 1)).astype(np.int32)
    cv2.fillPoly(mask, [scaled], 255)
    if panes:
        # The pillar between the doors.
        pillar = round(rng.uniform(0.35, 0.6) * mask.shape[1])
        mask[:, pillar : pillar + max(2, round(rng.uniform(0.05, 0.12) * 100))] = 0
    for side in (-1, 1):
        normal = side * frame[0]
        corner = at(side * (half + out), (low[0], high[1]))
        if (space.centre - corner) @ normal <= 0:
            continue
        face = space.quad(
            corner,
            size[0] * frame[2],
            -size[1] * frame[1],
            look,
            space.lit(normal),
            light_map=space.gradient(),
            mask=mask,
        )
        faces.append(space.mirroring(face, panes) if mirror else face)
    return faces


def _tree(space: _Space, x: float, z: float, tall: float) -> list[Face]:
    rng = space.rng
    trunk = tall * rng.uniform(0.2, 0.5)
    radius, bark = tall * rng.uniform(0.015, 0.05), space.thing()
    if z < 15:
        faces = space.cylinder(x, z, -trunk * 1.3, 0.0, radius, bark)
    else:
        faces = [space.rod((x, 0, z), (x, -trunk * 1.3, z), 2 * radius, bark)]
    look = space.material(0.0, 0.3)
    for _ in range(int(rng.integers(2, 6))):
        wide, high = tall * rng.uniform(0.4, 0.8), (tall - trunk) * rng.uniform(0.7, 1.1)
        along = space.facing(x, z, wide)
        place = np.array([x, -trunk - high, z]) - along / 2
        place += rng.normal(0, 0.12, 3) * tall * np.array([1, 0.5, 1])
        place[1] = min(place[1], -high - 0.3)
        shade = rng.uniform(0.5, 1.0)
        faces.append(space.card('foliage', place, along, np.array([0, high, 0.0]), look, shade))
    return faces


def _poles(space: _Space, x: float) -> None:
    """Lamp posts, signs and trees in a row, perhaps with wires between the posts."""
    rng = space.rng
    look, thick = space.thing(), math.exp(rng.uniform(math.log(0.03), math.log(0.25)))
    tall, pitch = rng.uniform(2.5, 8), rng.uniform(6, 20)
    kind, light = rng.random(), rng.uniform(0.3, 1.1)
    tops = []
    for z in np.arange(rng.uniform(2, 12), 60, pitch):
        if kind < 0.3:
            space.objects.append(_tree(space, x, z, tall))
            continue
        faces = [space.rod((x, 0, z), (x, -tall, z), thick, look, light)]
        if thick > 0.12 and z < 20:
            faces = space.cylinder(x, z, -tall, 0.0, thick / 2, look)
        tops.append(np.array([x, -tall, z]))
        if kind < 0.6:
            reach = -math.copysign(rng.uniform(0.5, 2), x)
            end = np.array([x + reach, -tall - 0.3, z])
            faces.append(space.rod(tops[-1], end, thick * 0.6, look, light))
            if z < 30:
                faces += space.box(end, (0.5, 0.12, 0.25), 0.0)
        else:
            wide = rng.uniform(0.4, 1.0)
            shape = str(rng.choice(['rectangle', 'ellipse', 'polygon']))
            along = space.facing(x, z, wide)
            corner = np.array([x, -tall * rng.uniform(0.75, 1), z - thick]) - along / 2
            up = np.array([0, wide * rng.uniform(0.6, 1.4), 0.0])
            faces.append(
                space.card(shape, corner, along, up, space.thing(), rng.uniform(0.7, 1.6))
            )
        space.objects.append(faces)
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 4))):
            lift = np.array([rng.uniform(-0.6, 0.6), rng.uniform(-0.5, 0.8), 0])
            sag = rng.uniform(0.05, 0.6)
            for first, second in itertools.pairwise(tops[:4]):
                space.objects.append(_wire(space, first + lift, second + lift, sag, look))
    if rng.random() < 0.4 and tops:
        for post in tops[:3]:
            other = post * [-1, 1, 1] + [0, rng.normal(0, 0.5), rng.normal(0, 2)]
            space.objects.append(_wire(space, post, other, rng.uniform(0.1, 0.8), look))


def _wire(
    space: _Space, start: np.ndarray, end: np.ndarray, sag: float, look: Material
) -> list[Face]:
    parts = np.linspace(0, 1, 6)
    points = [start + (end - start) * part + [0, 4 * sag * part * (1 - part), 0] for part in parts]
    return [
        space.rod(first, second, 0.012, look, 0.35) for first, second in itertools.pairwise(points)
    ]


def _walkers(space: _Space, side: int, kerb: float, walk: float) -> None:
    rng = space.rng
    for _ in range(int(rng.integers(0, 5))):
        x = side * (kerb + rng.uniform(-0.5, 1) * walk)
        z = math.exp(rng.uniform(math.log(2.5), math.log(30)))
        tall = rng.uniform(1.2, 1.9)
        along = space.facing(x, z, tall * rng.uniform(0.3, 0.5))
        corner = np.array([x, -tall, z]) - along / 2
        figure = space.card('person', corner, along, np.array([0, tall, 0.0]), space.thing())
        space.objects.append([space.shadow(x, z, 0.9, 0.6)])
        space.objects.append([figure])


# The whole -----------------------------------------------------------------------------------


def _rotation(yaw: float, pitch: float, roll: float) -> np.ndarray:
    """From world to camera axes; positive pitch looks down."""
    cy, sy, cp, sp, cr, sr = (
        f(angle) for angle in (yaw, pitch, roll) for f in (math.cos, math.sin)
    )
    about_y = np.array([[cy, 0, -sy], [0, 1, 0], [sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cp, -sp], [0, sp, cp]])
    about_z = np.array([[cr, sr, 0], [-sr, cr, 0], [0, 0, 1]])
    return about_z @ about_x @ about_y


def render_space(
    seed: int | Sequence[int],
    height: int = 288,
    width: int = 576,
    max_disparity_px: float = 192.0,
    textures: Sequence[np.ndarray] | None = None,
    difficulty: float = 0.5,
    kind: str | None = None,
    cameras: bool = True,
    without: Collection[str] = (),
) -> StereoSample:
    """Draw one three-dimensional scene.

    Args:
        seed: the scene; the same arguments and seed give the same bytes.
        height: rows, at least 32.
        width: columns, at least 32.
        max_disparity_px: no left disparity reaches this.
        textures: uint8 RGB pictures to paint with; None paints with synthetic textures only.
        difficulty: 0 (well textured, equal eyes) to 1 (bare walls, unequal noisy eyes).
        kind: 'room', 'corridor' or 'street'; drawn from the seed when None.
        cameras, without: as of `render_pair`.

    Raises:
        ProceduralError: when a size, range or kind cannot be drawn, or an ingredient is unknown.
    """
    check_scene(height, width, max_disparity_px, difficulty, without)
    if kind is not None and kind not in KINDS:
        raise ProceduralError(f'there is no scene of kind {kind!r}; use one of {", ".join(KINDS)}')
    rng = np.random.default_rng(seed)
    painter = Painter(rng, textures, difficulty, without)
    if kind is None:
        kind = _drawn_kind(rng, without)
    street = kind == 'street'
    focal = width * math.exp(rng.uniform(math.log(0.5), math.log(1.4)))
    rotation = _rotation(
        rng.normal(0, 0.12 if street else 0.4),
        rng.normal(0.02 if street else 0.08, 0.06 if street else 0.18),
        rng.normal(0, 0.02),
    )
    space = _Space(rng, painter, difficulty, (15.0, 90.0) if street else (60.0, 400.0))
    space.pixel_m = 1 / focal
    if street:
        _build_street(space, height, width, rotation[2])
    else:
        _furnish_room(space, kind == 'corridor', height, width)
    matrix = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1.0]])
    vertical = rectification_error(rng, height, width) if cameras else (0.0, 1.0, 0.0)
    rig = Rig(matrix, rotation, space.centre, 1.0, height, width, vertical)
    shell, things, nearest = _in_view(space, rig, rng.uniform(2.0, 5.0) if street else 0.5)
    limit = max_disparity_px - 0.5
    top = min(190.0, 0.99 * limit)
    near_px = math.exp(rng.uniform(math.log(min(14.0, top)), math.log(top)))
    rig = replace(rig, baseline_m=near_px / (nearest * focal))
    left, right = (SpaceView(rig, right=eye, limit_px=limit) for eye in (False, True))
    for view in (left, right):
        view.backdrop(shell)
        for shape in things:
            view.paint(shape)
        np.maximum(view.disparity, 0, out=view.disparity)
    occluded = occluded_pixels(left.disparity, right.disparity, np.asarray(vertical))
    images = left.image, right.image
    if cameras:
        images = photograph(rng, *images, difficulty)
    return StereoSample(*images, left.disparity, right.disparity, occluded)


def _drawn_kind(rng: np.random.Generator, without: Collection[str]) -> str:
    shares = np.array(_KIND_SHARES)
    if 'streets' in without:
        shares[KINDS.index('street')] = 0
    return KINDS[int(rng.choice(len(KINDS), p=shares / shares.sum()))]


def _drawable(shape: Outline, rig: Rig) -> bool:
    """Whether either eye may see a face, and as more than a speck."""
    (x0, y0), (x1, y1) = shape.polygon.min(axis=0).tolist(), shape.polygon.max(axis=0).tolist()
    # The right eye shows what lies up to 190 px beyond the left picture's right border.
    inside = x1 > -1 and y1 > -1 and x0 < rig.width + 200 and y0 < rig.height + 1
    return inside and max(x1 - x0, y1 - y0) > 2 and min(x1 - x0, y1 - y0) > 0.3


def _in_view(
    space: _Space, rig: Rig, closest_m: float
) -> tuple[list[Outline], list[Outline], float]:
    """Outlines of the shell and of the things, farthest first, and the largest 1 / Z seen.

    A thing with a part nearer than ``closest_m`` is taken out of the scene.
    """
    shell = [shape for face in space.shell if (shape := outline(face, rig)) is not None]
    nearest = max(nearest_in_view(shape, rig) for shape in shell)
    bound = max(1 / closest_m, nearest)
    things: list[Outline] = []
    for faces in space.objects:
        shapes = [shape for face in faces if (shape := outline(face, rig)) is not None]
        reach = max((nearest_in_view(shape, rig) for shape in shapes), default=0.0)
        if reach > bound:
            continue
        nearest = max(nearest, reach)
        things.extend(shape for shape in shapes if _drawable(shape, rig))
    things.sort(key=lambda shape: float(shape.inverse_depth.mean()))
    return shell, things, nearest
