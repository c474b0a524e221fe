# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Textured quadrilaterals in space, drawn for both eyes of a rig with exact disparity.

The disparity of a plane is affine in left pixels, d = a x + b y + c, and so is the map from the
right picture to the left one on that plane. A face is therefore one perspective warp of its
texture per eye, one affine disparity and one z-test; the truth is exact to float32. Silhouettes
are covered by area, the same way in both eyes. Axes: x right, y down, z ahead, in metres.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

_NEAR_M = 0.02
_SHADOW_TOLERANCE = 0.01
_SOLID = 127


@dataclass(frozen=True)
class Sheen:
    """A reflection in a glossy face; it moves as its mirror image does.

    Attributes:
        picture: (h, w) uint8 light to add, stretched over ``box``.
        box: (x0, y0, x1, y1) left pixels that the picture covers.
        depth_ratio: disparity of the mirror image over that of the face, 0..1.
        endless: the picture goes on, mirrored, beyond ``box``, as a street does in a car; a
            lamp's spot ends there.
    """

    picture: np.ndarray
    box: tuple[float, float, float, float]
    depth_ratio: float
    endless: bool = False


@dataclass(frozen=True)
class Face:
    """A textured parallelogram, or a whole plane.

    Attributes:
        corner: (3,) world position [m] of the texture's first corner.
        edge_u: (3,) world vector [m] along the texture's columns.
        edge_v: (3,) world vector [m] along the texture's rows.
        levels: texture pyramid that tiles without seams, uint8 RGB, finest first.
        texels: texels of the finest level along edge_u and edge_v.
        shift: texel at the corner.
        light: factor of the texture's brightness.
        light_map: (h, w) uint8 over the parallelogram, 128 leaves the texture as it is.
        mask: (h, w) uint8 shape within the parallelogram, None for all of it.
        joined: for the sides v=0, u=1, v=1, u=0: whether another face goes on there.
        unbounded: the plane has no sides; the z-test alone ends it.
        shadow: 0..1, the face only darkens what lies in its plane.
        sheen: what it mirrors.
    """

    corner: np.ndarray
    edge_u: np.ndarray
    edge_v: np.ndarray
    levels: tuple[np.ndarray, ...] = ()
    texels: tuple[float, float] = (256.0, 256.0)
    shift: tuple[float, float] = (0.0, 0.0)
    light: float = 1.0
    light_map: np.ndarray | None = None
    mask: np.ndarray | None = None
    joined: tuple[bool, bool, bool, bool] = (False, False, False, False)
    unbounded: bool = False
    shadow: float = 0.0
    sheen: tuple[Sheen, ...] = ()

    def corners(self) -> np.ndarray:
        """(4, 3) corners in the order of ``joined``'s sides."""
        far = self.corner + self.edge_u + self.edge_v
        return np.array([self.corner, self.corner + self.edge_u, far, self.corner + self.edge_v])


@dataclass(frozen=True)
class Rig:
    """A rectified pair of cameras somewhere in the scene.

    Attributes:
        matrix: (3, 3) pinhole matrix of both eyes; pixel centres are integers.
        rotation: (3, 3) from world to camera axes.
        centre: (3,) the left eye's place [m].
        baseline_m: distance to the right eye.
        height: rows.
        width: columns.
        vertical: (3,) row of the affine map from a right pixel to the left row it shows;
            (0, 1, 0) is perfect rectification.
    """

    matrix: np.ndarray
    rotation: np.ndarray
    centre: np.ndarray
    baseline_m: float
    height: int
    width: int
    vertical: tuple[float, float, float] = (0.0, 1.0, 0.0)

    @property
    def focal_baseline(self) -> float:
        """Disparity [px] of what is a metre away."""
        return float(self.matrix[0, 0]) * self.baseline_m

    def to_right(self, pixels: np.ndarray, disparity: np.ndarray) -> np.ndarray:
        """(N, 2) right pixels of (N, 2) left ones."""
        tilt, stretch, offset = self.vertical
        x = pixels[:, 0] - disparity
        return np.column_stack([x, (pixels[:, 1] - tilt * x - offset) / stretch])


@dataclass(frozen=True)
class Outline:
    """What a rig's left eye knows of a face before it is drawn.

    Attributes:
        face: the face.
        to_unit: (3, 3) from left pixels to (u, v, 1) / Z.
        polygon: (N, 2) left pixels of its visible side, clipped before the eye; empty when
            unbounded.
        inverse_depth: (N,) 1 / Z [1/m] of the polygon's corners.
        soft: (N,) whether the side after each corner is a silhouette.
    """

    face: Face
    to_unit: np.ndarray
    polygon: np.ndarray = field(repr=False)
    inverse_depth: np.ndarray = field(repr=False)
    soft: np.ndarray = field(repr=False)


def outline(face: Face, rig: Rig) -> Outline | None:
    """Project a face into the left eye; None when it is edge-on or behind."""
    projection = rig.matrix @ rig.rotation
    edges = np.array([face.edge_u, face.edge_v, face.corner - rig.centre]).T
    normal = cross(face.edge_u, face.edge_v)
    distance = abs(float(normal @ edges[:, 2]))
    if distance < 1e-5 * math.sqrt(float(normal @ normal)):
        return None
    to_unit = np.linalg.inv(projection @ edges)
    if face.unbounded:
        return Outline(face, to_unit, np.empty((0, 2)), np.empty(0), np.empty(0, bool))
    homogeneous = (face.corners() - rig.centre) @ projection.T
    soft = ~np.asarray(face.joined)
    if homogeneous[:, 2].max() <= _NEAR_M:
        return None
    if homogeneous[:, 2].min() <= _NEAR_M:
        homogeneous, soft = _before_near_plane(homogeneous, soft)
    inverse_depth = 1 / homogeneous[:, 2]
    return Outline(face, to_unit, homogeneous[:, :2] * inverse_depth[:, None], inverse_depth, soft)


def cross(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cross product of two (3,) vectors; ``numpy.cross`` takes ten times as long."""
    (ax, ay, az), (bx, by, bz) = first.tolist(), second.tolist()
    return np.array([ay * bz - az * by, az * bx - ax * bz, ax * by - ay * bx])


def _before_near_plane(points: np.ndarray, soft: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    kept, sides = [], []
    for index, first in enumerate(points):
        second = points[(index + 1) % len(points)]
        inside, next_inside = first[2] > _NEAR_M, second[2] > _NEAR_M
        part = (_NEAR_M - first[2]) / (second[2] - first[2]) if inside != next_inside else 0.0
        if inside:
            kept.append(first)
            sides.append(soft[index])
        if inside != next_inside:
            kept.append(first + part * (second - first))
            # The side along the near plane lies far outside the picture.
            sides.append(False if inside else soft[index])
    return np.array(kept), np.array(sides)


def nearest_in_view(shape: Outline, rig: Rig) -> float:
    """Largest 1 / Z [1/m] of a face within the left picture; 0 when it is not in it."""
    right, bottom = rig.width - 1.0, rig.height - 1.0
    if shape.face.unbounded:
        corners = np.array([[0, 0, 1], [right, 0, 1], [0, bottom, 1], [right, bottom, 1.0]])
        return max(float((corners @ shape.to_unit[2]).max()), 0.0)
    points = shape.polygon
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    if x1 < 0 or y1 < 0 or x0 > right or y0 > bottom:
        return 0.0
    if x0 >= 0 and y0 >= 0 and x1 <= right and y1 <= bottom:
        return float(shape.inverse_depth.max())
    for axis, sign, bound in ((0, 1, 0.0), (0, -1, -right), (1, 1, 0.0), (1, -1, -bottom)):
        distance = sign * points[:, axis] - bound
        clipped = []
        for index, first in enumerate(points):
            here, there = distance[index], distance[(index + 1) % len(points)]
            if here >= 0:
                clipped.append(first)
            if (here >= 0) != (there >= 0):
                second = points[(index + 1) % len(points)]
                clipped.append(first + here / (here - there) * (second - first))
        if not clipped:
            return 0.0
        points = np.array(clipped)
    return float((points @ shape.to_unit[2, :2] + shape.to_unit[2, 2]).max())


class SpaceView:
    """One eye's picture and z-buffer while faces are being drawn, the farthest first.

    Args:
        rig: both eyes.
        right: whether this is the right one.
        limit_px: no bounded face is drawn with a larger disparity. The plane of a face seen
            nearly edge-on is so steep that it may have left its own range at the middle of a
            pixel which the face only touches.
    """

    def __init__(self, rig: Rig, right: bool, limit_px: float = math.inf):
        self.rig = rig
        self.right = right
        self.limit_px = np.float32(limit_px)
        self.image = np.zeros((rig.height, rig.width, 3), np.uint8)
        self.disparity = np.full((rig.height, rig.width), -1.0, np.float32)

    def to_left(self, plane: np.ndarray) -> np.ndarray:
        """(3, 3) affine map from this eye's pixels to the left pixels of a plane."""
        if not self.right:
            return np.eye(3)
        a, b, c = plane.tolist()
        tilt, stretch, offset = self.rig.vertical
        horizontal = ((1 + b * tilt) / (1 - a), b * stretch / (1 - a), (c + b * offset) / (1 - a))
        return np.array([horizontal, self.rig.vertical, (0.0, 0.0, 1.0)])

    def backdrop(self, shapes: Sequence[Outline]) -> None:
        """Whole planes around the eye; each pixel is painted once, by the nearest."""
        size = (self.rig.width, self.rig.height)
        owner = np.full(self.disparity.shape, 255, np.uint8)
        planes = []
        for index, shape in enumerate(shapes):
            plane = shape.to_unit[2] * self.rig.focal_baseline
            to_left = self.to_left(plane)
            disparity = _affine_grid(plane @ to_left, size)
            nearer = cv2.compare(disparity, self.disparity, cv2.CMP_GT)
            cv2.copyTo(disparity, nearer, self.disparity)
            owner[nearer > 0] = index
            planes.append((plane, to_left))
        for index, (shape, (plane, to_left)) in enumerate(zip(shapes, planes, strict=True)):
            seen = cv2.inRange(owner, index, index)
            x, y, columns, rows = cv2.boundingRect(seen)
            if columns:
                window = np.s_[y : y + rows, x : x + columns]
                texture = self._shade(shape, to_left, plane, (x, y), self.disparity[window])
                cv2.copyTo(texture, np.ascontiguousarray(seen[window]), self.image[window])

    def paint(self, shape: Outline) -> None:
        """Draw a bounded face wherever it is nearer than what is there."""
        face = shape.face
        plane = shape.to_unit[2] * self.rig.focal_baseline
        if plane[0] > 0.95:
            return
        polygon = shape.polygon
        if self.right:
            polygon = self.rig.to_right(polygon, polygon @ plane[:2] + plane[2])
        low = np.floor(polygon.min(axis=0) - 0.5)
        high = np.ceil(polygon.max(axis=0) + 0.5)
        x0, y0 = max(0, int(max(low[0], 0))), max(0, int(max(low[1], 0)))
        x1 = int(min(high[0] + 1, self.rig.width))
        y1 = int(min(high[1] + 1, self.rig.height))
        if x0 >= x1 or y0 >= y1:
            return
        size = (x1 - x0, y1 - y0)
        to_left = self.to_left(plane)
        here = to_left @ _shift(x0, y0)
        disparity = np.minimum(_affine_grid(plane @ here, size), self.limit_px)
        behind = self.disparity[y0:y1, x0:x1]
        if face.shadow:
            slack = np.float32(_SHADOW_TOLERANCE) * disparity + np.float32(0.02)
            visible = cv2.compare(cv2.absdiff(disparity, behind), slack, cv2.CMP_LT)
        else:
            visible = cv2.compare(disparity, behind, cv2.CMP_GT)
        if not cv2.hasNonZero(visible):
            return
        alpha = _coverage(polygon, shape.soft, x0, y0, size)
        if alpha is not None:
            visible = cv2.bitwise_and(alpha, visible)
        if face.mask is not None:
            matrix = _to_texels(face.mask.shape[:2]) @ shape.to_unit @ here
            flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
            mask = cv2.warpPerspective(face.mask, matrix, size, flags=flags)
            visible = cv2.min(mask, visible)
        x, y, columns, rows = cv2.boundingRect(visible)
        if not columns:
            return
        window = np.s_[y : y + rows, x : x + columns]
        visible = np.ascontiguousarray(visible[window])
        picture = self.image[y0:y1, x0:x1][window]
        if face.shadow:
            keep = cv2.convertScaleAbs(visible, alpha=-face.shadow, beta=0)
            cv2.multiply(
                picture, cv2.merge([cv2.bitwise_not(keep)] * 3), dst=picture, scale=1 / 255
            )
            return
        disparity = np.ascontiguousarray(disparity[window])
        texture = self._shade(shape, to_left, plane, (x0 + x, y0 + y), disparity)
        if alpha is None and face.mask is None:
            cv2.copyTo(texture, visible, picture)
        else:
            weight = visible.astype(np.float32) * np.float32(1 / 255)
            cv2.copyTo(cv2.blendLinear(texture, picture, weight, 1 - weight), visible, picture)
            visible = cv2.threshold(visible, _SOLID, 255, cv2.THRESH_BINARY)[1]
        cv2.copyTo(disparity, visible, behind[window])

    def _shade(
        self,
        shape: Outline,
        to_left: np.ndarray,
        plane: np.ndarray,
        origin: tuple[int, int],
        disparity: np.ndarray,
    ) -> np.ndarray:
        """(h, w, 3) uint8 look of a face over a window of this eye's picture."""
        face = shape.face
        rows, columns = disparity.shape
        here = to_left @ _shift(*origin)
        pixels = shape.to_unit @ here
        texture = self._sample(face, pixels, plane, disparity)
        if face.light != 1.0:
            texture = cv2.convertScaleAbs(texture, alpha=face.light)
        if face.light_map is not None:
            light = cv2.warpPerspective(
                face.light_map,
                _to_texels(face.light_map.shape[:2]) @ pixels,
                (columns, rows),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            texture = cv2.multiply(texture, cv2.merge([light] * 3), scale=1 / 128)
        for sheen in face.sheen:
            from_box = _to_texels(sheen.picture.shape[:2]) @ _from_box(sheen.box)
            matrix = from_box @ self.to_left(plane * sheen.depth_ratio) @ _shift(*origin)
            light = cv2.warpAffine(
                sheen.picture,
                matrix[:2],
                (columns, rows),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT if sheen.endless else cv2.BORDER_CONSTANT,
            )
            texture = cv2.add(texture, cv2.merge([light] * 3))
        return texture

    def _sample(
        self, face: Face, pixels: np.ndarray, plane: np.ndarray, disparity: np.ndarray
    ) -> np.ndarray:
        """Texture, each pixel from the pyramid level that fits its distance.

        The level follows from disparity alone, and a point has one disparity: both eyes read
        it from the same level.
        """
        focal = float(self.rig.matrix[0, 0])
        per_m = math.sqrt(
            face.texels[0] * face.texels[1] / (math.hypot(*face.edge_u) * math.hypot(*face.edge_v))
        )
        slope = math.hypot(plane[0], plane[1]) * focal

        def scale_at(value: float) -> float:
            value = max(value, 0.02)
            stretch = math.sqrt(max(slope / value, 1.0))
            return per_m * self.rig.baseline_m / value * stretch

        low, high, _, _ = cv2.minMaxLoc(disparity)
        last = len(face.levels) - 1
        finest = _level(scale_at(high), last)
        coarsest = _level(scale_at(low), last)
        texels = np.array(
            [[face.texels[0], 0, face.shift[0]], [0, face.texels[1], face.shift[1]], [0, 0, 1.0]]
        )
        to_texture = texels @ pixels
        rows, columns = disparity.shape
        if disparity.size < 4000:
            finest = coarsest = (finest + coarsest) // 2
        if finest == coarsest:
            return _warp_tile(face.levels[finest], finest, to_texture, (columns, rows))
        out = np.empty((rows, columns, 3), np.uint8)
        texel_disparity = per_m * self.rig.baseline_m
        between = [
            _disparity_at(2.0 ** (level + 0.5), texel_disparity, slope)
            for level in range(finest, coarsest)
        ]
        bounds = [math.inf, *between, -math.inf]
        row_low, row_high = disparity.min(axis=1), disparity.max(axis=1)
        column_low, column_high = disparity.min(axis=0), disparity.max(axis=0)
        for offset, level in enumerate(range(finest, coarsest + 1)):
            most, least = bounds[offset], bounds[offset + 1]
            ys = np.flatnonzero((row_high > least) & (row_low <= most))
            xs = np.flatnonzero((column_high > least) & (column_low <= most))
            if not (ys.size and xs.size):
                continue
            y0, y1, x0, x1 = int(ys[0]), int(ys[-1]) + 1, int(xs[0]), int(xs[-1]) + 1
            sampled = _warp_tile(
                face.levels[level], level, to_texture @ _shift(x0, y0), (x1 - x0, y1 - y0)
            )
            # From fine to coarse: what lies beyond a level's range is painted over.
            if offset == 0:
                out[y0:y1, x0:x1] = sampled
            else:
                farther = (disparity[y0:y1, x0:x1] <= most).view(np.uint8)
                cv2.copyTo(sampled, farther, out[y0:y1, x0:x1])
        return out


def _level(scale: float, last: int) -> int:
    return int(min(max(round(math.log2(max(scale, 1e-6))), 0), last))


def _disparity_at(scale: float, texel_disparity: float, slope: float) -> float:
    """Disparity at which ``texel_disparity / d * sqrt(max(slope / d, 1))`` is ``scale``."""
    value = texel_disparity / scale
    if slope > value:
        value = (texel_disparity * math.sqrt(slope) / scale) ** (2 / 3)
    return value


def _warp_tile(
    tile: np.ndarray, level: int, to_texture: np.ndarray, size: tuple[int, int]
) -> np.ndarray:
    shrink = 0.5**level
    # Pixel centres: coarse = (fine + 0.5) / 2^level - 0.5.
    to_level = np.array(
        [[shrink, 0, 0.5 * shrink - 0.5], [0, shrink, 0.5 * shrink - 0.5], [0, 0, 1.0]]
    )
    return cv2.warpPerspective(
        tile,
        to_level @ to_texture,
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP,
    )


def _coverage(
    polygon: np.ndarray, soft: np.ndarray, x0: int, y0: int, size: tuple[int, int]
) -> np.ndarray | None:
    """(h, w) uint8 share of each pixel inside a convex polygon; None when all of it is.

    Of a pixel that several sides cut, the uncovered shares add up: exact for straight sides
    and for strips thinner than a pixel, near enough at corners.
    """
    points = polygon.tolist()
    following = points[1:] + points[:1]
    area = sum(xa * yb - ya * xb for (xa, ya), (xb, yb) in zip(points, following, strict=True))
    uncovered: np.ndarray | None = None
    for (xa, ya), (xb, yb), is_soft in zip(points, following, soft.tolist(), strict=True):
        length = math.hypot(xb - xa, yb - ya)
        if length < 1e-9:
            continue
        sign = math.copysign(1.0, area) / length
        # Distance to the inside, positive there.
        a, b = (ya - yb) * sign, (xb - xa) * sign
        c = a * (x0 - xa) + b * (y0 - ya) + 0.5
        if c + min(a * (size[0] - 1), 0) + min(b * (size[1] - 1), 0) >= 1:
            continue
        distance = _affine_grid((-a, -b, 1 - c), size)
        if is_soft:
            cut = np.minimum(np.maximum(distance, 0), 1)
        else:
            # Where another face goes on, both cover the shared pixels in full.
            cut = (distance > 1).astype(np.float32)
        uncovered = cut if uncovered is None else uncovered + cut
    if uncovered is None:
        return None
    return cv2.convertScaleAbs(np.maximum(1 - uncovered, 0), alpha=255)


_COUNT = np.arange(8192, dtype=np.float64)


def _affine_grid(row: Sequence[float] | np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(h, w) float32 of row . (x, y, 1)."""
    columns = (_COUNT[: size[0]] * row[0] + row[2]).astype(np.float32)
    rows = (_COUNT[: size[1]] * row[1]).astype(np.float32)
    return rows[:, None] + columns


def _shift(x: int, y: int) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def _to_texels(shape: tuple[int, int]) -> np.ndarray:
    """Unit coordinates to texel indices, whose centres are the integers."""
    rows, columns = shape
    return np.array([[columns, 0.0, -0.5], [0.0, rows, -0.5], [0.0, 0.0, 1.0]])


def _from_box(box: tuple[float, float, float, float]) -> np.ndarray:
    x0, y0, x1, y1 = box
    wide, tall = x1 - x0, y1 - y0
    return np.array([[1 / wide, 0, -x0 / wide], [0, 1 / tall, -y0 / tall], [0, 0, 1.0]])
