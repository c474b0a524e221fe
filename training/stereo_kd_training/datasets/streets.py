# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Streets: facades, parked cars that mirror, trees, poles, wires, fences and walkers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import cv2
import numpy as np

from stereo_kd_ros.procedural import mirrored_pyramid
from stereo_kd_training.datasets.faces import Face, cross
from stereo_kd_training.datasets.space import (
    AHEAD,
    DOWN,
    RIGHT,
    Material,
    Space,
    fence,
    turned,
)


def build_street(space: Space, height: int, width: int, axis: np.ndarray) -> None:
    """Ground, sky, facades on both sides and the furniture of a road."""
    rng = space.rng
    space.centre = np.array([rng.normal(0, 1.2), -rng.uniform(0.4, 2.2), 0.0])
    far = 4000.0
    sky = _sky(space)
    span = far * 2.0
    across = cross(DOWN, axis)
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
        80 * RIGHT,
        160 * AHEAD,
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


def _sky(space: Space) -> Material:
    rng = space.rng
    low = rng.standard_normal((7, 7, 3), dtype=np.float32) * rng.uniform(0.5, 16)
    base = np.array([150, 175, 215]) * rng.uniform(0.6, 1.15) + rng.normal(0, 14, 3)
    clouds = cv2.resize(low, (128, 128), interpolation=cv2.INTER_CUBIC) + base
    return Material(mirrored_pyramid(np.clip(clouds, 0, 255).astype(np.uint8)), 1.0)


def _markings(space: Space, half: float) -> None:
    rng = space.rng
    look = space.bare(density=40.0)
    light = rng.uniform(1.0, 2.5)
    dash, gap = rng.uniform(1.5, 5), rng.uniform(1.5, 6)
    wide = rng.uniform(0.1, 0.25)
    for x in (-half * 0.92, 0.0, half * 0.92):
        if rng.random() < 0.3:
            continue
        if x:
            corner = np.array([x - wide / 2, -0.001, 0.5])
            faces = [space.quad(corner, wide * RIGHT, 90 * AHEAD, look, light)]
        else:
            faces = [
                space.quad(
                    np.array([x - wide / 2, -0.001, z]), wide * RIGHT, dash * AHEAD, look, light
                )
                for z in np.arange(rng.uniform(1, 6), 60, dash + gap)
            ]
        space.objects.append(faces)


def _facades(space: Space, side: int, edge: float) -> None:
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


def _roadside_fence(space: Space, x: float) -> None:
    rng = space.rng
    z, tall = rng.uniform(2, 15), rng.uniform(0.6, 2.0)
    for _ in range(int(rng.integers(1, 3))):
        long = rng.uniform(2, 8)
        yaw = math.pi / 2 + rng.normal(0, 0.05)
        space.objects.append(fence(space, x, z + long / 2, long, tall, yaw))
        z += long + rng.uniform(0, 3)


def _parked(space: Space, x: float, side: int) -> None:
    rng = space.rng
    z = rng.uniform(3, 12)
    for _ in range(int(rng.integers(1, 7))):
        _car(space, x - side * rng.uniform(0.9, 1.2), z, rng.normal(0, 0.04))
        z += rng.uniform(4.8, 12)


def _car(space: Space, x: float, z: float, yaw: float) -> None:
    """Body and cabin, cut along their outlines, with panes, wheels and lamps.

    Both are smooth, shaded, and mirror a street, which is most of what is seen of a dark one.
    """
    rng = space.rng
    if rng.random() < 0.5:
        yaw += math.pi
    long, wide, tall = rng.uniform(3.5, 5.0), rng.uniform(1.6, 1.95), rng.uniform(1.35, 1.9)
    sill, belt = rng.uniform(0.18, 0.32), rng.uniform(0.82, 1.05)
    # Across to the right, height and ahead, from the ground below the middle.
    frame = np.array([turned(yaw, 1, 0), -DOWN, turned(yaw, 0, 1)])
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
            faces.append(space.quad(corner, breadth * frame[0], 0.13 * DOWN, space.thing(), light))
    space.objects.append(faces)


def _panes(cabin: np.ndarray, belt: float) -> np.ndarray:
    """The outline of a car's windows within that of its cabin."""
    middle = cabin.mean(axis=0)
    panes = middle + (cabin - middle) * (0.92, 0.78)
    panes[[0, 3], 1] = belt + 0.04
    return panes


def _hull(
    space: Space,
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


def _tree(space: Space, x: float, z: float, tall: float) -> list[Face]:
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


def _poles(space: Space, x: float) -> None:
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
    space: Space, start: np.ndarray, end: np.ndarray, sag: float, look: Material
) -> list[Face]:
    parts = np.linspace(0, 1, 6)
    points = [start + (end - start) * part + [0, 4 * sag * part * (1 - part), 0] for part in parts]
    return [
        space.rod(first, second, 0.012, look, 0.35) for first, second in itertools.pairwise(points)
    ]


def _walkers(space: Space, side: int, kerb: float, walk: float) -> None:
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
