# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a message means, worked out a second time in plain numpy, to hold the node's answers to.

Nothing here uses OpenCV or the package: rows are cut out of the bytes one by one, mosaics and YUV
follow their definitions (bilinear; ITU-R BT.601 in OpenCV's 20-bit fixed point), and the camera is
read off K, P, ROI and binning as sensor_msgs/CameraInfo defines them. `None` means "this is no
image" or "this is no stereo camera": then the node must refuse it too.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np

# name: bytes per sample, channels, the channels' places as R, G, B.
PACKED = {
    'rgb8': (1, 3, (0, 1, 2)),
    'bgr8': (1, 3, (2, 1, 0)),
    '8UC3': (1, 3, (2, 1, 0)),
    'rgba8': (1, 4, (0, 1, 2)),
    'bgra8': (1, 4, (2, 1, 0)),
    '8UC4': (1, 4, (2, 1, 0)),
    'mono8': (1, 1, (0, 0, 0)),
    '8UC1': (1, 1, (0, 0, 0)),
    'mono16': (2, 1, (0, 0, 0)),
    '16UC1': (2, 1, (0, 0, 0)),
    'rgb16': (2, 3, (0, 1, 2)),
    'bgr16': (2, 3, (2, 1, 0)),
    '16UC3': (2, 3, (2, 1, 0)),
    'rgba16': (2, 4, (0, 1, 2)),
    'bgra16': (2, 4, (2, 1, 0)),
}
MOSAICS = {
    f'bayer_{tile}{bits}': (tile, bits // 8)
    for tile in ('rggb', 'bggr', 'gbrg', 'grbg')
    for bits in (8, 16)
}
# Places of Y0, U, Y1, V in four bytes that make two pixels.
YUV_422 = {
    'yuv422': (1, 0, 3, 2),
    'uyvy': (1, 0, 3, 2),
    'yuv422_yuy2': (0, 1, 2, 3),
    'yuyv': (0, 1, 2, 3),
}
YUV_420 = {'nv12': (0, 1), 'nv21': (1, 0)}
ENCODINGS = (*PACKED, *MOSAICS, *YUV_422, *YUV_420)


@dataclass(frozen=True)
class ReferenceCamera:
    """A stereo camera, in pixels of the delivered image."""

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    cx_offset_px: float
    baseline_m: float


def row_bytes(encoding: str, width: int) -> int:
    """Bytes that one row of an encoding takes without padding."""
    if encoding in PACKED:
        size, channels, _ = PACKED[encoding]
        return width * size * channels
    if encoding in MOSAICS:
        return width * MOSAICS[encoding][1]
    return width * (2 if encoding in YUV_422 else 1)


def rows_in_memory(encoding: str, height: int) -> int:
    """Rows of bytes of an image of this height."""
    return height * 3 // 2 if encoding in YUV_420 else height


def reference_rgb(message: Any) -> np.ndarray | None:
    """Returns the image as `(H, W, 3)` uint8 RGB, or None where the message holds none."""
    encoding, width, height = message.encoding, message.width, message.height
    if encoding not in ENCODINGS:
        return None
    least = 3 if encoding in MOSAICS else 1
    if width < least or height < least:
        return None
    if (encoding in YUV_422 or encoding in YUV_420) and width % 2:
        return None
    if encoding in YUV_420 and height % 2:
        return None
    used, step, rows = row_bytes(encoding, width), message.step, rows_in_memory(encoding, height)
    data = bytes(message.data)
    if used > step or not step * (rows - 1) + used <= len(data) <= step * rows:
        return None
    lines = [data[row * step : row * step + used] for row in range(rows)]
    if encoding in YUV_422:
        return _from_yuv_422(lines, YUV_422[encoding])
    if encoding in YUV_420:
        return _from_yuv_420(lines, height, YUV_420[encoding])
    size = PACKED[encoding][0] if encoding in PACKED else MOSAICS[encoding][1]
    order = '>' if message.is_bigendian else '<'
    samples = np.array([np.frombuffer(line, f'{order}u{size}') for line in lines]).astype(np.int64)
    if size == 2:
        samples = (samples + 128) // 257
    if encoding in MOSAICS:
        return _from_mosaic(samples, MOSAICS[encoding][0])
    channels, places = PACKED[encoding][1:]
    return samples.reshape(height, width, channels)[..., list(places)].astype(np.uint8)


def _from_mosaic(samples: np.ndarray, tile: str) -> np.ndarray:
    """Bilinear; the rim repeats the nearest inner pixel, as it has too few neighbours."""
    rgb = np.zeros((*samples.shape, 3), np.int64)
    middle = samples[1:-1, 1:-1]
    up, down, left, right = (
        samples[:-2, 1:-1],
        samples[2:, 1:-1],
        samples[1:-1, :-2],
        samples[1:-1, 2:],
    )
    cross = (up + down + left + right + 2) // 4
    corners = samples[:-2, :-2] + samples[:-2, 2:] + samples[2:, :-2] + samples[2:, 2:]
    diagonal = (corners + 2) // 4
    sideways, upright = (left + right + 1) // 2, (up + down + 1) // 2
    rows, columns = np.indices(middle.shape) + 1
    colour = np.array([[*tile[:2]], [*tile[2:]]])
    here, beside = colour[rows % 2, columns % 2], colour[rows % 2, (columns + 1) % 2]
    for channel, name in enumerate('rgb'):
        if name == 'g':
            value = np.where(here == 'g', middle, cross)
        else:
            at_green = np.where(beside == name, sideways, upright)
            value = np.where(here == name, middle, np.where(here == 'g', at_green, diagonal))
        rgb[1:-1, 1:-1, channel] = value
    rgb[:, 0], rgb[:, -1] = rgb[:, 1], rgb[:, -2]
    rgb[0], rgb[-1] = rgb[1], rgb[-2]
    return rgb.astype(np.uint8)


def _from_yuv_422(lines: list[bytes], places: tuple[int, ...]) -> np.ndarray:
    groups = np.array([np.frombuffer(line, np.uint8) for line in lines])
    groups = groups.reshape(len(lines), -1, 4).astype(np.int64)
    first, u, second, v = (groups[..., place] for place in places)
    luma = np.stack([first, second], axis=-1).reshape(len(lines), -1)
    return _yuv_to_rgb(luma, u.repeat(2, axis=1), v.repeat(2, axis=1))


def _from_yuv_420(lines: list[bytes], height: int, places: tuple[int, int]) -> np.ndarray:
    planes = np.array([np.frombuffer(line, np.uint8) for line in lines]).astype(np.int64)
    chroma = planes[height:].reshape(height // 2, -1, 2).repeat(2, axis=0).repeat(2, axis=1)
    return _yuv_to_rgb(planes[:height], chroma[..., places[0]], chroma[..., places[1]])


def _yuv_to_rgb(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """BT.601, studio swing: 1.164 (Y - 16) + {1.596 V, -0.813 V - 0.391 U, 2.018 U}."""
    luma = np.maximum(y - 16, 0) * 1220542
    u, v = u - 128, v - 128
    half = 1 << 19
    red = luma + 1673527 * v
    green = luma - 852492 * v - 409993 * u
    blue = luma + 2116026 * u
    rgb = np.stack([red, green, blue], axis=-1) + half >> 20
    return np.clip(rgb, 0, 255).astype(np.uint8)


def png_is_whole(data: bytes) -> bool:
    """Whether every chunk of a PNG has the checksum it says, up to an end that is there."""
    place = 8
    while place + 12 <= len(data):
        (size,) = struct.unpack('>I', data[place : place + 4])
        kind, end = data[place + 4 : place + 8], place + 8 + size
        checksum = data[end : end + 4]
        if zlib.crc32(data[place + 4 : end]).to_bytes(4, 'big') != checksum:
            return False
        place = end + 4
        if kind == b'IEND':
            return not data[place:].strip(b'\0')
    return False


def reference_camera(left: Any, right: Any) -> ReferenceCamera | None:
    """Returns the camera of a camera_info pair; None where it is no rectified stereo pair."""
    eyes = [_delivered(left), _delivered(right)]
    if None in eyes:
        return None
    (p_left, size_left), (p_right, size_right) = eyes
    fx, fy = p_left[0][0], p_left[1][1]
    if size_left != size_right or min(size_left) < 1:
        return None
    for axis, focal in ((0, fx), (1, fy)):
        if abs(p_right[axis][axis] - focal) > 1e-3 * max(p_right[axis][axis], focal):
            return None
    if abs(p_left[1][2] - p_right[1][2]) > 0.5:
        return None
    apart_x = p_right[0][3] / p_right[0][0] - p_left[0][3] / fx
    apart_y = p_right[1][3] / p_right[1][1] - p_left[1][3] / fy
    if abs(apart_y) > max(abs(apart_x) * 0.01, 1e-4) or not -math.inf < apart_x <= -1e-4:
        return None
    if -apart_x > 1e4 or not 1e-2 <= min(fx, fy) <= max(fx, fy) <= 1e6:
        return None
    if max(abs(p_left[0][2]), abs(p_left[1][2]), abs(p_right[0][2])) > 1e6:
        return None
    return ReferenceCamera(
        *size_left,
        fx,
        fy,
        p_left[0][2],
        p_left[1][2],
        p_left[0][2] - p_right[0][2],
        -apart_x,
    )


def _delivered(info: Any) -> tuple[list[list[float]], tuple[int, int]] | None:
    """P of the delivered image and its width and height."""
    k, p = [float(x) for x in info.k], [float(x) for x in info.p]
    if k[0] == 0 or not all(math.isfinite(x) for x in p) or p[0] <= 0 or p[5] <= 0:
        return None
    roi = info.roi
    width = roi.width or info.width - roi.x_offset
    height = roi.height or info.height - roi.y_offset
    inside = roi.x_offset + width <= info.width and roi.y_offset + height <= info.height
    if info.width < 1 or info.height < 1 or width < 1 or height < 1 or not inside:
        return None
    p[2] -= roi.x_offset
    p[6] -= roi.y_offset
    by_x, by_y = max(info.binning_x, 1), max(info.binning_y, 1)
    rows = [[x / by_x for x in p[:4]], [x / by_y for x in p[4:8]]]
    return rows, (width // by_x, height // by_y)
