# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Disparity and depth files: PFM, KITTI's 16-bit PNG, 8-bit scaled PNG, depth PNG in millimetres.

In memory a disparity is float32 (H, W) in pixels and a depth is float32 (H, W) in metres;
NaN marks a pixel without a value. Each file format has its own mark for that, which is
translated here and nowhere else:

=================== ======================== ===============================
file                value                    no value
=================== ======================== ===============================
PFM                 pixels, float32          inf or NaN
KITTI PNG           256 per pixel, uint16    0
scaled PNG or PGM   `steps_per_px`, uint8    0
depth PNG (REP 118) millimetres, uint16      0
=================== ======================== ===============================
"""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

KITTI_STEPS_PER_PX = 256.0

_PFM_HEADER = re.compile(rb'(P[Ff])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)[ \t\r]*\n')


class DisparityFileError(ValueError):
    """A disparity or depth file that cannot be read or written; the message names it."""


def read_pfm(path: str | Path) -> np.ndarray:
    """Read a PFM file as float32, first row on top: (H, W), or (H, W, 3) for a colour one.

    The file stores the bottom row first, and the sign of its scale gives the byte order. The
    scale's magnitude is not applied: Middlebury writes 0.003922 there with disparities that
    are already in pixels. Infinities and signs are returned as stored.

    Raises:
        DisparityFileError: no such file, not a PFM, or shorter than its header says.
    """
    path = Path(path)
    content = _read_bytes(path)
    header = _PFM_HEADER.match(content)
    if header is None:
        raise DisparityFileError(
            f"{path}: not a PFM file: expected 'Pf' or 'PF', width, height and scale, "
            f'found {content[:20]!r}'
        )
    kind, width, height, scale = header.groups()
    channels = 3 if kind == b'PF' else 1
    width_px, height_px = int(width), int(height)
    try:
        little_endian = float(scale) < 0
    except ValueError:
        raise DisparityFileError(f'{path}: PFM scale {scale!r} is not a number') from None
    count = width_px * height_px * channels
    found = len(content) - header.end()
    if found < 4 * count:
        raise DisparityFileError(
            f'{path}: truncated: {width_px}x{height_px}x{channels} needs {4 * count} bytes '
            f'after the header, found {found}'
        )
    values = np.frombuffer(content, '<f4' if little_endian else '>f4', count, header.end())
    shape = (height_px, width_px) if channels == 1 else (height_px, width_px, 3)
    return np.ascontiguousarray(values.reshape(shape)[::-1], dtype=np.float32)


def write_pfm(path: str | Path, values: np.ndarray) -> None:
    """Write (H, W) or (H, W, 3) as a little-endian PFM; NaN and infinities stay as they are.

    Raises:
        DisparityFileError: another shape.
    """
    if not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] == 3)):
        raise DisparityFileError(
            f'{path}: a PFM holds (H, W) or (H, W, 3), this array is {values.shape}'
        )
    kind = 'Pf' if values.ndim == 2 else 'PF'
    height, width = values.shape[:2]
    header = f'{kind}\n{width} {height}\n-1.0\n'.encode()
    Path(path).write_bytes(header + np.ascontiguousarray(values[::-1], dtype='<f4').tobytes())


def read_kitti_png(path: str | Path) -> np.ndarray:
    """Read KITTI's uint16 disparity PNG: float32 (H, W) px, NaN where the file has 0.

    Raises:
        DisparityFileError: no such file, not an image, or not 16 bits deep.
    """
    values = _read_single_channel(Path(path), np.uint16, 'KITTI disparities are 16-bit grey PNG')
    return _from_steps(values, KITTI_STEPS_PER_PX)


def write_kitti_png(path: str | Path, disparity: np.ndarray) -> None:
    """Write a disparity (H, W) px as KITTI's uint16 PNG; not finite or d <= 0 becomes 0.

    A valid disparity below one step is written as one step, so that it stays valid.

    Raises:
        DisparityFileError: a disparity over 255.99 px, which the format cannot hold.
    """
    valid = np.isfinite(disparity) & (disparity > 0)
    steps = np.rint(np.where(valid, disparity, 0.0).astype(np.float64) * KITTI_STEPS_PER_PX)
    if steps.size and steps.max() > np.iinfo(np.uint16).max:
        raise DisparityFileError(
            f'{path}: disparity {steps.max() / KITTI_STEPS_PER_PX:.2f} px does not fit a KITTI '
            'PNG (at most 255.99 px); write a PFM'
        )
    _write_png(Path(path), np.where(valid, np.maximum(steps, 1), 0).astype(np.uint16))


def read_scaled_png(path: str | Path, steps_per_px: float) -> np.ndarray:
    """Read an 8-bit disparity image: float32 (H, W) px = value / steps_per_px, NaN at 0.

    Middlebury's older sets: 8 steps per pixel in 2001, 4 in 2003, 3 in the third-size
    pictures of 2005 and 2006.

    Raises:
        DisparityFileError: no such file, not an image, or not 8 bits deep.
    """
    values = _read_single_channel(Path(path), np.uint8, 'scaled disparities are 8-bit grey')
    return _from_steps(values, steps_per_px)


def read_depth_png(path: str | Path) -> np.ndarray:
    """Read a 16UC1 depth PNG: float32 (H, W) metres, NaN where the file has 0.

    Raises:
        DisparityFileError: no such file, not an image, or not 16 bits deep.
    """
    values = _read_single_channel(Path(path), np.uint16, 'depth is a 16-bit grey PNG in mm')
    return _from_steps(values, 1000.0)


def write_depth_png(path: str | Path, depth_m: np.ndarray) -> None:
    """Write a depth (H, W) in metres as 16UC1 millimetres.

    What the format cannot hold (not finite, not positive, beyond 65.535 m) becomes 0, "no
    depth", rather than a wrong distance.
    """
    with np.errstate(invalid='ignore', over='ignore'):
        millimetres = np.rint(np.asarray(depth_m, dtype=np.float64) * 1000.0)
        valid = (millimetres >= 1) & (millimetres <= np.iinfo(np.uint16).max)
    _write_png(Path(path), np.where(valid, millimetres, 0).astype(np.uint16))


def _from_steps(values: np.ndarray, steps_per_unit: float) -> np.ndarray:
    scaled = values.astype(np.float32) / np.float32(steps_per_unit)
    scaled[values == 0] = np.nan
    return scaled


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DisparityFileError(f'{path}: cannot be read: {error.strerror}') from error


def _read_single_channel(path: Path, dtype: type[np.generic], expected: str) -> np.ndarray:
    encoded = np.frombuffer(_read_bytes(path), np.uint8)
    values = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED) if encoded.size else None
    if values is None:
        raise DisparityFileError(f'{path}: not an image that OpenCV can decode; {expected}')
    # Some copies of the Middlebury maps were saved as grey in RGB.
    if dtype == np.uint8 and values.ndim == 3 and (values[..., :3] == values[..., :1]).all():
        values = values[..., 0]
    if values.ndim != 2 or values.dtype != dtype:
        raise DisparityFileError(
            f'{path}: {expected}, this one is {values.dtype} of shape {values.shape}'
        )
    return values


def _write_png(path: Path, values: np.ndarray) -> None:
    encoded, content = cv2.imencode('.png', values)
    if not encoded:
        raise DisparityFileError(f'{path}: OpenCV could not encode {values.shape} as PNG')
    path.write_bytes(content.tobytes())
