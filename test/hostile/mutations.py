# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Good and damaged camera messages, drawn from a `random.Random`.

The same code serves the long fuzz run (a seed per round) and hypothesis (whose choices shrink).
Every message goes through the wire format once, so that it is one that DDS could deliver, with the
array types that rclpy gives a callback.
"""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass
from random import Random
from typing import Any

import cv2
import numpy as np
from oracle import ENCODINGS, MOSAICS, YUV_420, YUV_422, row_bytes, rows_in_memory
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

UINT32_MAX = 2**32 - 1
STRANGE_SIZES = (0, 1, 2, 3, 5, 2**15, 2**16 + 1, 2**31 - 1, 2**31, UINT32_MAX)
STRANGE_NUMBERS = (
    math.nan,
    math.inf,
    -math.inf,
    0.0,
    -0.0,
    -1.0,
    1e-320,
    1e-30,
    1e30,
    1e300,
    -1e300,
)
STRANGE_ENCODINGS = (
    '',
    'RGB8',
    ' rgb8',
    'rgb8\n',
    'rgb9',
    '32FC1',
    '64FC4',
    '8UC99999999',
    'bayer_rggb12',
    'nv12; jpeg',
    'x' * 300,
    '深度',
)
PERIOD_NS = 33_333_333


@dataclass
class Shot:
    """What both eyes deliver at one instant; None is a message that got lost."""

    left: Any
    right: Any
    left_info: Any
    right_info: Any


def over_the_wire(message: Any) -> Any:
    """Returns the message as a subscriber gets it."""
    return deserialize_message(serialize_message(message), type(message))


def set_stamp(message: Any, stamp_ns: int) -> Any:
    """Stamps a message; any 32-bit seconds."""
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 1_000_000_000)
    return message


def shot(rng: Random, stamp_ns: int, compressed: bool) -> Shot:
    """One instant: good in four of ten cases, else with one to three damages."""
    width, height = rng.randrange(4, 25), rng.randrange(3, 19)
    encoding = rng.choice(ENCODINGS)
    if not compressed and (encoding in YUV_422 or encoding in YUV_420):
        width, height = width // 2 * 2, (height + 1) // 2 * 2
    if compressed:
        images = [compressed_image(rng, height, width) for _ in range(2)]
    else:
        second = encoding if rng.random() < 0.7 else rng.choice([*MOSAICS, 'rgb8', 'mono16'])
        images = [raw_image(rng, name, height, width) for name in (encoding, second)]
    infos = camera_infos(rng, height, width)
    messages = [set_stamp(message, stamp_ns) for message in (*images, *infos)]
    for message in messages:
        message.header.frame_id = 'optical'
    if rng.random() >= 0.4:
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            damage(rng, messages, stamp_ns)
    return Shot(*(None if message is None else over_the_wire(message) for message in messages))


def noise(rng: Random, size: int) -> bytes:
    """Random bytes from one number: hypothesis has few choices to give, and nothing to shrink."""
    return Random(rng.getrandbits(32)).randbytes(size)


def raw_image(rng: Random, encoding: str, height: int, width: int) -> Image:
    """A good image of random pixels; rows may be padded, by any number of bytes."""
    used, rows = row_bytes(encoding, width), rows_in_memory(encoding, height)
    step = used + rng.choice((0, 0, 0, 1, 2, 3, 7, 16))
    size = step * (rows - 1) + used if rng.random() < 0.1 else step * rows
    return Image(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=rng.choice((0, 0, 1, 255)),
        step=step,
        data=array('B', noise(rng, size)),
    )


def compressed_image(rng: Random, height: int, width: int) -> CompressedImage:
    """A good PNG or JPEG of random pixels."""
    pixels = np.frombuffer(noise(rng, height * width * 3), np.uint8).reshape(height, width, 3)
    kind = rng.choice(('png', 'png', 'jpeg'))
    data = cv2.imencode(f'.{kind}', pixels)[1]
    return CompressedImage(format=f'rgb8; {kind} compressed bgr8', data=array('B', data.tobytes()))


def camera_infos(rng: Random, height: int, width: int) -> tuple[CameraInfo, CameraInfo]:
    """A good calibration of images of this size, with ROI and binning in some cases."""
    binning = rng.choice((0, 1, 1, 2, 3))
    bins = max(binning, 1)
    x_offset, y_offset = rng.choice(((0, 0), (0, 0), (4, 6)))
    full = bool(x_offset) or rng.random() < 0.1
    fx, baseline_m = rng.uniform(5.0, 900.0), rng.uniform(0.01, 2.0)
    fy, cy = fx * rng.uniform(0.9, 1.1), y_offset + height * bins / 2
    cx, cx_offset = x_offset + width * bins / 2, rng.choice((0.0, 0.0, -3.5, 6.25))
    infos = []
    for tx_m, cx_eye in ((0.0, cx), (-baseline_m, cx - cx_offset)):
        info = CameraInfo(
            width=x_offset + width * bins,
            height=y_offset + height * bins,
            distortion_model='plumb_bob',
            d=[0.0] * 5,
            binning_x=binning,
            binning_y=binning,
        )
        info.k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
        info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
        info.p = [fx, 0.0, cx_eye, fx * tx_m, 0.0, fy, cy, 0.0, 0.0, 0.0, 1.0, 0.0]
        if full:
            info.roi.x_offset, info.roi.y_offset = x_offset, y_offset
            info.roi.width, info.roi.height = width * bins, height * bins
        infos.append(info)
    return infos[0], infos[1]


def damage(rng: Random, messages: list[Any], stamp_ns: int) -> None:
    """Damages one of the four messages, or both of a kind in the same way."""
    place = rng.randrange(4)
    message = messages[place]
    if message is None:
        return
    kind = rng.random()
    if kind < 0.08:
        messages[place] = None
    elif kind < 0.22:
        set_stamp(message, strange_stamp(rng, stamp_ns))
    elif kind < 0.25:
        message.header.frame_id = rng.choice(('', 'other', 'ü' * 100))
    elif isinstance(message, CameraInfo):
        partner = messages[5 - place]
        damage_info(rng, [message, partner] if partner and rng.random() < 0.3 else [message])
    elif isinstance(message, Image):
        damage_image(rng, message)
    else:
        damage_compressed(rng, message)


def strange_stamp(rng: Random, stamp_ns: int) -> int:
    """A stamp that drifts, repeats, jumps or is none."""
    if rng.random() < 0.3:
        return rng.choice((0, 1, 2**31 * 10**9 - 1, -1, -(2**31) * 10**9))
    frames = rng.choice((-1000, -20, -3, -2, -1, 1, 2, 20, 1000))
    return stamp_ns + rng.choice((frames * PERIOD_NS, frames * 1000, rng.randrange(-999, 999)))


def damage_image(rng: Random, image: Image) -> None:
    """Makes one field of an image disagree with the others, or with everything."""
    field = rng.choice(('size', 'step', 'data', 'data', 'encoding', 'endian', 'pixels'))
    if field == 'size':
        name = rng.choice(('height', 'width'))
        near = max(getattr(image, name) + rng.choice((-2, -1, 1, 2)), 0)
        setattr(image, name, rng.choice((near, near, rng.choice(STRANGE_SIZES))))
    elif field == 'step':
        near = max(image.step + rng.choice((-8, -1, 1, 2, 8)), 0)
        image.step = rng.choice((near, image.width, rng.choice(STRANGE_SIZES)))
    elif field == 'data':
        length = len(image.data)
        size = rng.choice((0, 1, length - 1, length + 1, length // 2, 2 * length, length + 4096))
        image.data = array('B', (bytes(image.data) * 2 + bytes(4096))[:size])
    elif field == 'encoding':
        image.encoding = rng.choice((rng.choice(ENCODINGS), rng.choice(STRANGE_ENCODINGS)))
    elif field == 'endian':
        image.is_bigendian = rng.randrange(256)
    else:
        image.data = array('B', bytes([rng.choice((0, 255))]) * len(image.data))


def damage_compressed(rng: Random, image: CompressedImage) -> None:
    """Cuts, lengthens, overwrites or flips bits of a compressed image."""
    data = bytearray(image.data)
    kind = rng.choice(('cut', 'flip', 'flip', 'garbage', 'longer', 'format'))
    if not data:  # by an earlier damage
        kind = 'longer'
    if kind == 'cut':
        data = data[: rng.randrange(len(data))]
    elif kind == 'flip':
        for _ in range(rng.choice((1, 1, 8))):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == 'garbage':
        data = bytearray(noise(rng, rng.choice((0, 1, 2, 50, 5000))))
    elif kind == 'longer':
        data += noise(rng, 20)
    else:
        image.format = rng.choice(('', '16UC1; compressedDepth png', '\x00', 'x' * 1000))
    image.data = array('B', bytes(data))


def damage_info(rng: Random, infos: list[CameraInfo]) -> None:
    """Damages one camera_info, or both eyes' alike."""
    field = rng.choice(('p', 'p', 'p', 'k', 'size', 'binning', 'roi', 'd', 'zero', 'swap'))
    index, number = rng.choice((0, 2, 3, 5, 6, 7)), rng.choice(STRANGE_NUMBERS)
    size, name = rng.choice(STRANGE_SIZES), rng.choice(('width', 'height'))
    offset_name = rng.choice(('width', 'height', 'x_offset', 'y_offset'))
    for info in infos:
        if field == 'p':
            info.p[index] = number
        elif field == 'k':
            info.k[rng.randrange(9)] = number
        elif field == 'size':
            setattr(info, name, size)
        elif field == 'binning':
            info.binning_x, info.binning_y = size, rng.choice((size, 1))
        elif field == 'roi':
            setattr(info.roi, offset_name, size)
        elif field == 'd':
            info.d = [number] * rng.choice((0, 4, 12, 500))
        elif field == 'zero':
            info.k, info.p = [0.0] * 9, [0.0] * 12
        else:
            info.p[3] = -info.p[3]
