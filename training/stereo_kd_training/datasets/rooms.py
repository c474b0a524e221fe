# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rooms, corridors and streets in three dimensions, seen by a rig with exact truth.

Where layered scenes (``stereo_kd_ros.procedural``) are rich in shapes, these are right in their
geometry: walls, ceilings and roads at grazing angles whose texture fades to nothing under
shading, facades of equal windows, furniture, cars, and rods, fences and wires of a pixel's
width. Everything is a function of the seed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from stereo_kd_ros.procedural import (
    Painter,
    ProceduralError,
    StereoSample,
    check_scene,
    rectification_error,
)
from stereo_kd_ros.procedural_surfaces import occluded_pixels
from stereo_kd_ros.procedural_textures import photograph
from stereo_kd_training.datasets.faces import (
    Outline,
    Rig,
    SpaceView,
    nearest_in_view,
    outline,
)
from stereo_kd_training.datasets.indoors import furnish_room
from stereo_kd_training.datasets.space import Space
from stereo_kd_training.datasets.streets import build_street

KINDS = ('room', 'corridor', 'street')
_KIND_SHARES = (0.4, 0.15, 0.45)


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
    space = Space(rng, painter, difficulty, (15.0, 90.0) if street else (60.0, 400.0))
    space.pixel_m = 1 / focal
    if street:
        build_street(space, height, width, rotation[2])
    else:
        furnish_room(space, kind == 'corridor', height, width)
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
    space: Space, rig: Rig, closest_m: float
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
