# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rooms and corridors: walls under lamps, furniture, plants, and what hangs on walls."""

from __future__ import annotations

import math

import numpy as np

from stereo_kd_training.datasets.faces import Face
from stereo_kd_training.datasets.space import (
    AHEAD,
    RIGHT,
    Space,
    fence,
    turned,
    vector,
)


def furnish_room(space: Space, corridor: bool, height: int, width: int) -> None:
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
    up, along, across = np.array([0, tall, 0.0]), deep * AHEAD, wide * RIGHT
    low = np.array([left, 0.0, start])
    sides = [
        (low, across, along, space.material(0.25, 0.4), spots),
        (low + vector([0, ceiling, 0]), across, along, space.material(0.6, 0.25), ()),
        (low + vector([0, ceiling, 0]), along, up, wall_look, ()),
        (
            low + vector([wide, ceiling, 0]),
            along,
            up,
            wall_look if shared else space.material(0.45, 0.3),
            (),
        ),
        (
            low + vector([0, ceiling, deep]),
            across,
            up,
            wall_look if shared else space.material(0.4, 0.3),
            (),
        ),
        (low + vector([0, ceiling, 0]), across, up, wall_look, ()),
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
    space: Space, left: float, right: float, ceiling: float, end: float, corridor: bool
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
                fence(space, x, z, rng.uniform(0.5, 2.0), rng.uniform(0.5, 1.2), yaw),
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


def _table(space: Space, x: float, z: float, size: np.ndarray, yaw: float):
    rng = space.rng
    wide, deep, tall = max(size[0], 0.4), max(size[2], 0.4), rng.uniform(0.4, 0.95)
    look, legs = space.thing(), space.thing()
    faces = space.box((x, -tall, z), (wide, 0.04, deep), yaw, look)
    leg = rng.uniform(0.015, 0.07)
    for side_x in (-0.45, 0.45):
        for side_z in (-0.45, 0.45):
            foot = np.array([x, -tall / 2, z]) + turned(yaw, side_x * wide, side_z * deep)
            faces += space.box(foot, (leg, tall, leg), yaw, legs, shaded=False)
    return faces, -tall - 0.02


def _chair(space: Space, x: float, z: float, yaw: float) -> list[Face]:
    rng = space.rng
    look, bars = space.thing(), space.thing()
    faces = space.box((x, -0.45, z), (0.42, 0.04, 0.42), yaw, look)
    thick = rng.uniform(0.015, 0.04)
    for side_x in (-0.19, 0.19):
        for side_z, top in ((-0.19, -0.45), (0.19, -0.95)):
            foot = np.array([x, 0.0, z]) + turned(yaw, side_x, side_z)
            faces.append(space.rod(foot, foot + vector([0, top, 0]), thick, bars, 0.8))
    for y in np.linspace(-0.6, -0.92, int(rng.integers(1, 5))):
        ends = [np.array([x, y, z]) + turned(yaw, side, 0.19) for side in (-0.19, 0.19)]
        faces.append(space.rod(*ends, thick * rng.uniform(0.6, 2), bars, 0.9))
    return faces


def _shelf(
    space: Space, x: float, z: float, size: np.ndarray, yaw: float, ceiling: float
) -> list[Face]:
    rng = space.rng
    wide, deep, tall = max(size[0], 0.5), rng.uniform(0.2, 0.4), rng.uniform(0.5, 0.8) * -ceiling
    look = space.thing()
    faces = []
    back = np.array([x, -tall / 2, z]) + turned(yaw, 0, deep / 2)
    if rng.random() < 0.5:
        faces += space.box(back, (wide, tall, 0.02), yaw, look)
    for side in (-0.5, 0.5):
        middle = np.array([x, -tall / 2, z]) + turned(yaw, side * wide, 0)
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
            place = np.array([x, y - book[1] / 2 - 0.012, z]) + turned(yaw, at + book[0] / 2, 0)
            faces += space.box(place, book, yaw, shaded=False)
            at += book[0] + float(rng.choice([0.002, 0.002, 0.1]))
    return faces


def _plant(space: Space, x: float, z: float) -> list[Face]:
    rng = space.rng
    tall, look = rng.uniform(0.3, 1.6), space.thing()
    pot = rng.uniform(0.08, 0.2)
    faces = space.cylinder(x, z, -2 * pot, 0.0, pot, space.thing())
    for _ in range(int(rng.integers(2, 6))):
        wide = tall * rng.uniform(0.4, 0.9)
        along = space.facing(x, z, wide) + rng.normal(0, 0.3) * wide * AHEAD
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


def _stand(space: Space, x: float, z: float) -> list[Face]:
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
            faces.append(space.rod(foot, foot + vector([0, -tall, lean]), thick, look, light))
        for rung in range(1, rungs):
            part = rung / rungs
            middle = np.array([x, -tall * part, z + lean * part])
            faces.append(space.rod(middle - across / 2, middle + across / 2, thick, look, light))
    return faces


def _wall_decor(
    space: Space, left: float, right: float, ceiling: float, start: float, end: float
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
        return space.quad(corner, wide * RIGHT, up, look, light, light_map=gradient)
    x = left + 0.01 if side else right - 0.01
    corner = np.array([x, y, rng.uniform(start, end - 0.2)])
    return space.quad(corner, wide * AHEAD, up, look, light, light_map=gradient)
