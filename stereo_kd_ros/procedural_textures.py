# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Textures made from nothing, and the imperfections of a camera, for procedural scenes.

``synthetic_texture`` gives one of a fixed atlas of (side, side, 3) uint8 RGB textures;
``photograph`` turns two ideal uint8 RGB views into what a pair of cameras would deliver.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import cv2
import numpy as np

ATLAS_SIZE = 160
"""Number of different synthetic textures."""

ATLAS_SIDE_PX = 320

_NOISE_LENGTH = 1 << 21
_NOISE_SIGMAS = (1.0, 1.6, 2.5, 4.0, 6.0)


def _fractal(rng: np.random.Generator, side: int, coarse: int, octaves: int, decay: float):
    """(side, side, 3) float32 noise of several octaves with zero mean, about unit deviation."""
    out = np.zeros((side, side, 3), np.float32)
    weight, cells, total = 1.0, coarse, 0.0
    for _ in range(octaves):
        cells = min(cells, side)
        layer = rng.standard_normal((cells, cells, 3), dtype=np.float32)
        # Mostly grey, as real surfaces are.
        layer = 0.75 * layer[..., :1] + 0.35 * layer
        out += weight * cv2.resize(layer, (side, side), interpolation=cv2.INTER_CUBIC)
        total += weight * weight
        weight *= decay
        cells *= 2
    return out / math.sqrt(total)


def _palette(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 3) float32 colours, mostly muted, 0..255."""
    grey = rng.uniform(25, 235, (count, 1))
    return np.clip(grey + rng.normal(0, rng.choice([8, 30, 60]), (count, 3)), 5, 250).astype(
        np.float32
    )


def _texture_noise(rng: np.random.Generator, side: int) -> np.ndarray:
    noise = _fractal(
        rng, side, int(rng.integers(2, 24)), int(rng.integers(3, 7)), rng.uniform(0.5, 0.95)
    )
    return _palette(rng, 1)[0] + noise * rng.uniform(15, 50)


def _texture_grain(rng: np.random.Generator, side: int) -> np.ndarray:
    """Nearly textureless paint: a slow gradient under a fine, faint grain."""
    noise = _fractal(rng, side, 2, 2, 0.5) * rng.uniform(2, 14)
    grain = _fractal(rng, side, side // 2, 2, 0.8) * rng.uniform(0.6, 4.0)
    return _palette(rng, 1)[0] + noise + grain


def _texture_asphalt(rng: np.random.Generator, side: int) -> np.ndarray:
    grain = _fractal(rng, side, side // int(rng.integers(2, 6)), 2, 0.9) * rng.uniform(3, 14)
    stains = _fractal(rng, side, 4, 4, 0.6) * rng.uniform(2, 10)
    image = rng.uniform(50, 150) + grain + stains
    for _ in range(int(rng.integers(0, 4))):
        x = int(rng.integers(0, side))
        cv2.line(
            image,
            (x, 0),
            (x + int(rng.integers(-6, 6)), side),
            [rng.uniform(150, 240)] * 3,
            int(rng.integers(2, 9)),
            cv2.LINE_AA,
        )
    return image


def _texture_bricks(rng: np.random.Generator, side: int) -> np.ndarray:
    brick, mortar = _palette(rng, 2)
    rows = int(rng.integers(5, 22))
    columns = max(2, int(rows * rng.uniform(0.3, 1.0)))
    joint = int(rng.integers(1, 4))
    image = np.empty((side, side, 3), np.float32)
    image[:] = mortar
    spread, stagger = rng.choice([0.0, 4.0, 14.0]), rng.choice([0.0, 0.5])
    for row in range(rows):
        for column in range(-1, columns + 1):
            x0 = int((column + stagger * (row % 2)) * side / columns)
            x1 = int((column + 1 + stagger * (row % 2)) * side / columns) - joint
            y0, y1 = row * side // rows, (row + 1) * side // rows - joint
            image[max(y0, 0) : y1, max(x0, 0) : max(x1, 0)] = brick + rng.normal(0, spread + 0.1)
    return image + _fractal(rng, side, 32, 3, 0.8) * rng.uniform(1, 9)


def _texture_stripes(rng: np.random.Generator, side: int) -> np.ndarray:
    first, second = _palette(rng, 2)
    period = rng.uniform(8, 48)
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    angle = rng.choice([0.0, math.pi / 2, rng.uniform(0, math.pi)])
    wave = np.sin((x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period))
    mix = np.clip(wave * rng.choice([1.0, 6.0]) * 0.5 + 0.5, 0, 1)[..., None].astype(np.float32)
    return first * mix + second * (1 - mix) + _fractal(rng, side, 16, 4, 0.8) * rng.uniform(0.5, 9)


def _texture_checker(rng: np.random.Generator, side: int) -> np.ndarray:
    first, second = _palette(rng, 2)
    period = int(rng.integers(8, 48))
    x, y = np.meshgrid(np.arange(side) // period, np.arange(side) // period)
    mix = ((x + y) % 2).astype(np.float32)
    mix = cv2.GaussianBlur(mix, (0, 0), 0.7)[..., None]
    return first * mix + second * (1 - mix) + _fractal(rng, side, 16, 4, 0.8) * rng.uniform(0.5, 9)


def _texture_speckle(rng: np.random.Generator, side: int) -> np.ndarray:
    cells = int(side / rng.uniform(1.0, 3.5))
    dots = (rng.random((cells, cells)) < rng.uniform(0.02, 0.5)).astype(np.float32)
    mix = cv2.resize(dots, (side, side), interpolation=cv2.INTER_LINEAR)[..., None]
    first, second = _palette(rng, 2)
    return first * mix + second * (1 - mix)


def _texture_blobs(rng: np.random.Generator, side: int) -> np.ndarray:
    image = np.empty((side, side, 3), np.float32)
    colours = _palette(rng, 6)
    image[:] = colours[0]
    for _ in range(int(rng.integers(20, 160))):
        centre = rng.integers(0, side, 2).tolist()
        radius = int(rng.exponential(side / 24)) + 2
        colour = colours[rng.integers(0, 6)].tolist()
        axes = (radius, max(1, int(radius * rng.uniform(0.3, 1))))
        cv2.ellipse(image, centre, axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
    return image + _fractal(rng, side, 24, 3, 0.8) * rng.uniform(0.5, 8)


def _texture_strokes(rng: np.random.Generator, side: int) -> np.ndarray:
    paper, ink = _palette(rng, 2)
    image = np.empty((side, side, 3), np.float32)
    image[:] = paper
    line, y = rng.uniform(8, 26), 4.0
    page = np.zeros((side, side), np.uint8)
    # Glyph-like marks, for OpenCV's own fonts differ from version to version.
    while y < side + line:
        x, size = rng.uniform(-4, 8), line * 0.6
        while x < side:
            if rng.random() < 0.85:
                corners = rng.integers(0, 3, (int(rng.integers(2, 5)), 2)) * (size / 2)
                corners[:, 0] *= 0.6
                glyph = np.round((corners + np.array([x, y])) * 16).astype(np.int32)
                cv2.polylines(page, [glyph], False, 255, max(1, int(line / 14)), cv2.LINE_AA, 4)
            x += size * 0.8
        y += line * rng.uniform(1.0, 1.6)
    mix = page[..., None].astype(np.float32) / 255
    image = image * (1 - mix) + ink * mix
    return image + _fractal(rng, side, 8, 4, 0.7) * rng.uniform(0.5, 6)


def _texture_wood(rng: np.random.Generator, side: int) -> np.ndarray:
    fibres = cv2.resize(
        rng.standard_normal((int(side * rng.uniform(0.2, 1)), 6), dtype=np.float32),
        (side, side),
        interpolation=cv2.INTER_CUBIC,
    )
    image = _palette(rng, 1)[0] + fibres[..., None] * rng.uniform(4, 22)
    return image + _fractal(rng, side, 4, 5, 0.6) * rng.uniform(2, 12)


_TEXTURES: tuple[Callable[[np.random.Generator, int], np.ndarray], ...] = (
    _texture_noise,
    _texture_grain,
    _texture_asphalt,
    _texture_bricks,
    _texture_stripes,
    _texture_checker,
    _texture_speckle,
    _texture_blobs,
    _texture_strokes,
    _texture_wood,
)
TEXTURE_KINDS = len(_TEXTURES)
"""Texture ``i`` of the atlas is of kind ``i % TEXTURE_KINDS``."""

REPETITIVE = (3, 4, 5)
WEAK = (1, 2)
BUSY = (0, 6, 7, 8, 9)


@functools.lru_cache(maxsize=2 * ATLAS_SIZE)
def synthetic_texture(index: int, side: int = ATLAS_SIDE_PX) -> np.ndarray:
    """Synthetic texture number ``index``, (side, side, 3) uint8 RGB, read-only.

    The kind is ``index % 10``: noise, grain, asphalt, bricks, stripes, checker, speckle, blobs,
    strokes, wood.
    """
    rng = np.random.default_rng([index, side])
    image = np.clip(_TEXTURES[index % len(_TEXTURES)](rng, side), 0, 255).astype(np.uint8)
    image.setflags(write=False)
    return image


@functools.lru_cache(maxsize=len(_NOISE_SIGMAS))
def _noise(sigma_index: int) -> np.ndarray:
    rng = np.random.default_rng([20260, sigma_index])
    noise = rng.normal(0, _NOISE_SIGMAS[sigma_index], _NOISE_LENGTH)
    return np.round(noise).astype(np.int16)


def photograph(
    rng: np.random.Generator, left: np.ndarray, right: np.ndarray, difficulty: float
) -> tuple[np.ndarray, np.ndarray]:
    """Expose both pictures as two real cameras would: alike, yet never quite."""
    strength = 0.3 + 1.4 * difficulty
    grey = rng.random() < 0.12
    unequal = rng.random() < 0.7
    gamma = math.exp(rng.normal(0, 0.18))
    gain = math.exp(rng.normal(0, 0.15))
    # Standard deviations 0, 1, 1.6, 2.5, 4: real sensors in daylight have one or two grey values.
    noise_level = int(rng.choice(5, p=(0.3, 0.32, 0.22, 0.11, 0.05))) - 1
    noise_level += int(noise_level >= 0 and difficulty > 0.75)
    jpeg = int(rng.integers(55, 96)) if rng.random() < 0.2 else 0
    vignette = rng.uniform(0.1, 0.4) if rng.random() < 0.2 else 0.0
    soften = rng.uniform(0.3, 0.9) if rng.random() < 0.3 else 0.0
    out = []
    for image in (left, right):
        own = strength if unequal else 0.1
        table = np.linspace(0, 1, 256)[:, None] ** (gamma * math.exp(rng.normal(0, 0.06 * own)))
        cast = np.exp(rng.normal(0, 0.03 * own, 3) + rng.normal(0, 0.06 * own))
        table = np.clip(table * gain * cast * 255 + rng.normal(0, 3 * own), 0, 255)
        blur = soften + (abs(rng.normal(0, 0.35)) * own if rng.random() < 0.25 else 0.0)
        if blur > 0.25:
            image = cv2.GaussianBlur(image, (0, 0), blur)
        image = cv2.LUT(image, np.round(table).astype(np.uint8)[:, None, :])
        if vignette:
            image = _darken_corners(image, vignette)
        if grey:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if noise_level >= 0:
            image = add_noise(image, noise_level, rng, grey)
        out.append(image)
    if rng.random() < 0.35:
        width_px = math.exp(rng.uniform(math.log(0.6), math.log(6.0)))
        deviation = math.exp(rng.uniform(math.log(0.5), math.log(2.5)))
        out = [blotch(image, deviation, width_px, rng) for image in out]
    if jpeg:
        for eye, image in enumerate(out):
            _, stream = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, jpeg])
            out[eye] = cv2.imdecode(stream, cv2.IMREAD_COLOR)
    return np.ascontiguousarray(out[0]), np.ascontiguousarray(out[1])


def _darken_corners(image: np.ndarray, strength: float) -> np.ndarray:
    height, width = image.shape[:2]
    y, x = np.ogrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    shade = (255 * (1 - strength * 0.5 * (x * x + y * y))).astype(np.uint8)
    return cv2.multiply(image, cv2.merge([shade] * 3), scale=1 / 255)


def add_noise(
    image: np.ndarray, level: int, rng: np.random.Generator, grey: bool = False
) -> np.ndarray:
    """Sensor noise of a standard deviation of 1, 1.6, 2.5, 4 or 6 grey values (level 0 to 4)."""
    shape = image.shape[:2] if grey else image.shape
    # A random window of one buffer: drawing fresh normals would cost more than the scene.
    offset = int(rng.integers(_NOISE_LENGTH))
    noise = np.resize(_noise(level)[offset : offset + math.prod(shape)], shape)
    if grey:
        noise = cv2.merge([noise] * 3)
    return cv2.add(image, noise, dtype=cv2.CV_8U)


def blotch(
    image: np.ndarray, deviation: float, width_px: float, rng: np.random.Generator
) -> np.ndarray:
    """A picture (H, W, 3) uint8 with noise whose neighbours are alike.

    It is what is left of a sensor's noise once a camera has smoothed it. Paint without texture
    looks textured then, otherwise in each eye.

    Args:
        image: what the noise is added to.
        deviation: its standard deviation, in grey values, the same in all channels.
        width_px: standard deviation of the Gaussian that white noise was smoothed by.
        rng: the noise.
    """
    noise = rng.standard_normal(image.shape[:2], dtype=np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), width_px, borderType=cv2.BORDER_REFLECT)
    # By what was measured: of a kernel of about a pixel the deviation left is not the Gaussian's.
    noise *= np.float32(deviation / max(float(noise.std()), 1e-6))
    return cv2.add(image, cv2.merge([np.rint(noise).astype(np.int16)] * 3), dtype=cv2.CV_8U)
