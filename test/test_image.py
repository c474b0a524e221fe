# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Decoding against a reference written from the definition of each encoding, in plain numpy."""

from __future__ import annotations

import sys
from array import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_kd_ros.image import (
    ENCODINGS,
    ImageError,
    decode_compressed,
    decode_image,
    encode_image,
    image_bytes,
)

CONTAINERS = {
    'bytes': bytes,
    'array': lambda data: array('B', data),
    'ndarray': lambda data: np.frombuffer(data, dtype=np.uint8),
    'list': list,
}


def message(
    samples: np.ndarray,
    encoding: str,
    *,
    padding: int = 0,
    big_endian: bool = False,
    container: str = 'array',
    last_padding: bool = True,
    height: int | None = None,
) -> SimpleNamespace:
    """A sensor_msgs/Image of samples (rows, W) or (rows, W, C), padded with 0xA5."""
    rows = samples.shape[0]
    ordered = samples.astype(samples.dtype.newbyteorder('>' if big_endian else '<'))
    packed = np.frombuffer(ordered.tobytes(), np.uint8).reshape(rows, -1)
    padded = np.pad(packed, ((0, 0), (0, padding)), constant_values=0xA5)
    data = padded.tobytes()
    return SimpleNamespace(
        height=rows if height is None else height,
        width=samples.shape[1],
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=padded.shape[1],
        data=CONTAINERS[container](data if last_padding or not padding else data[:-padding]),
    )


def eight_bits(samples: np.ndarray) -> np.ndarray:
    """16 bits to 8 over the full range, rounded."""
    return np.rint(samples / 257.0).astype(np.uint8) if samples.dtype == np.uint16 else samples


# Encodings that only order samples: the positions of red, green and blue.
ORDERED = {
    'rgb8': (np.uint8, (0, 1, 2)),
    'bgr8': (np.uint8, (2, 1, 0)),
    '8UC3': (np.uint8, (2, 1, 0)),
    'rgba8': (np.uint8, (0, 1, 2, None)),
    'bgra8': (np.uint8, (2, 1, 0, None)),
    '8UC4': (np.uint8, (2, 1, 0, None)),
    'mono8': (np.uint8, (0,)),
    '8UC1': (np.uint8, (0,)),
    'mono16': (np.uint16, (0,)),
    '16UC1': (np.uint16, (0,)),
    'rgb16': (np.uint16, (0, 1, 2)),
    'bgr16': (np.uint16, (2, 1, 0)),
    '16UC3': (np.uint16, (2, 1, 0)),
    'rgba16': (np.uint16, (0, 1, 2, None)),
    'bgra16': (np.uint16, (2, 1, 0, None)),
}
PACKED_YUV = {'yuv422': (1, 0), 'uyvy': (1, 0), 'yuv422_yuy2': (0, 1), 'yuyv': (0, 1)}
PLANAR_YUV = {'nv12': (0, 1), 'nv21': (1, 0)}
BAYER = [
    f'bayer_{mosaic}{bits}' for mosaic in ('rggb', 'bggr', 'gbrg', 'grbg') for bits in (8, 16)
]

layouts = st.fixed_dictionaries(
    {
        'padding': st.integers(0, 13),
        'big_endian': st.booleans(),
        'container': st.sampled_from(sorted(CONTAINERS)),
        'last_padding': st.booleans(),
    }
)


def test_every_encoding_has_a_reference_here():
    assert set(ENCODINGS) == {*ORDERED, *PACKED_YUV, *PLANAR_YUV, *BAYER}


def check_shape(decoded: np.ndarray, height: int, width: int) -> None:
    assert decoded.shape == (height, width, 3)
    assert decoded.dtype == np.uint8
    assert decoded.flags.c_contiguous


@pytest.mark.parametrize('encoding', ORDERED)
@given(st.integers(1, 9), st.integers(1, 9), layouts, st.integers(0, 2**32 - 1))
def test_ordered_samples(encoding, height, width, layout, seed):
    dtype, order = ORDERED[encoding]
    rng = np.random.default_rng(seed)
    shape = (height, width) if len(order) == 1 else (height, width, len(order))
    samples = rng.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    decoded = decode_image(message(samples, encoding, **layout))
    check_shape(decoded, height, width)
    channels = samples[..., np.newaxis] if samples.ndim == 2 else samples
    expected = channels[..., list(order[:3]) if len(order) > 1 else [0, 0, 0]]
    np.testing.assert_array_equal(decoded, eight_bits(expected))


def rgb_of_yuv(y: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """ITU-R BT.601, limited range (Y 16..235, U and V 16..240)."""
    y = 255 / 219 * (y.astype(float) - 16)
    u, v = (255 / 224 * (chroma.astype(float) - 128) for chroma in (u, v))
    red = y + 1.402 * v
    green = y - 0.114 / 0.587 * 1.772 * u - 0.299 / 0.587 * 1.402 * v
    blue = y + 1.772 * u
    return np.clip(np.stack([red, green, blue], axis=-1), 0, 255)


@pytest.mark.parametrize('encoding', PACKED_YUV)
@given(st.integers(1, 7), st.integers(1, 5), layouts, st.integers(0, 2**32 - 1))
def test_packed_yuv(encoding, height, half_width, layout, seed):
    luma_at, chroma_at = PACKED_YUV[encoding]
    width = 2 * half_width
    rng = np.random.default_rng(seed)
    y = rng.integers(16, 236, (height, width), dtype=np.uint8)
    u, v = rng.integers(16, 241, (2, height, half_width), dtype=np.uint8)
    samples = np.empty((height, width, 2), np.uint8)
    samples[..., luma_at] = y
    samples[:, 0::2, chroma_at] = u
    samples[:, 1::2, chroma_at] = v
    decoded = decode_image(message(samples, encoding, **layout))
    check_shape(decoded, height, width)
    expected = rgb_of_yuv(y, u.repeat(2, axis=1), v.repeat(2, axis=1))
    np.testing.assert_allclose(decoded, expected, atol=2)


@pytest.mark.parametrize('encoding', PLANAR_YUV)
@given(st.integers(1, 4), st.integers(1, 5), layouts, st.integers(0, 2**32 - 1))
def test_planar_yuv(encoding, half_height, half_width, layout, seed):
    u_at, v_at = PLANAR_YUV[encoding]
    height, width = 2 * half_height, 2 * half_width
    rng = np.random.default_rng(seed)
    y = rng.integers(16, 236, (height, width), dtype=np.uint8)
    u, v = rng.integers(16, 241, (2, half_height, half_width), dtype=np.uint8)
    samples = np.empty((height + half_height, width), np.uint8)
    samples[:height] = y
    samples[height:, u_at::2] = u
    samples[height:, v_at::2] = v
    decoded = decode_image(message(samples, encoding, height=height, **layout))
    check_shape(decoded, height, width)
    u, v = (chroma.repeat(2, axis=0).repeat(2, axis=1) for chroma in (u, v))
    np.testing.assert_allclose(decoded, rgb_of_yuv(y, u, v), atol=2)


def mosaic_channels(encoding: str, height: int, width: int) -> np.ndarray:
    """Which of red, green, blue (0, 1, 2) each pixel of a mosaic carries, (H, W)."""
    letters = encoding.split('_')[1][:4]
    cell = np.array(['rgb'.index(letter) for letter in letters]).reshape(2, 2)
    return np.tile(cell, (height // 2 + 1, width // 2 + 1))[:height, :width]


@pytest.mark.parametrize('encoding', BAYER)
@given(st.integers(3, 12), st.integers(3, 12), layouts, st.integers(0, 2**32 - 1))
def test_bayer_keeps_what_each_pixel_measured(encoding, height, width, layout, seed):
    dtype = np.uint8 if encoding.endswith('8') else np.uint16
    samples = np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max, (height, width), dtype=dtype, endpoint=True
    )
    decoded = decode_image(message(samples, encoding, **layout))
    check_shape(decoded, height, width)
    carried = mosaic_channels(encoding, height, width)
    measured = np.take_along_axis(decoded, carried[..., np.newaxis], axis=2)[..., 0]
    inner = np.s_[1:-1, 1:-1]
    np.testing.assert_array_equal(measured[inner], eight_bits(samples)[inner])


@pytest.mark.parametrize(('height', 'width'), [(8, 10), (3, 3), (5, 8), (4, 7)])
@pytest.mark.parametrize('encoding', BAYER)
def test_bayer_of_one_colour_is_that_colour_everywhere(encoding, height, width):
    colour = np.array([200, 90, 20], dtype=np.uint8 if encoding.endswith('8') else np.uint16)
    if colour.dtype == np.uint16:
        colour *= 257
    samples = colour[mosaic_channels(encoding, height, width)]
    decoded = decode_image(message(samples, encoding))
    np.testing.assert_array_equal(decoded, np.broadcast_to([200, 90, 20], (height, width, 3)))


def test_rgb8_is_not_copied():
    data = array('B', bytes(range(24)))
    msg = SimpleNamespace(height=2, width=4, encoding='rgb8', is_bigendian=0, step=12, data=data)
    assert np.shares_memory(decode_image(msg), np.frombuffer(data, dtype=np.uint8))


def good(**changes: object) -> SimpleNamespace:
    fields = {
        'height': 4,
        'width': 6,
        'encoding': 'bgr8',
        'is_bigendian': 0,
        'step': 18,
        'data': bytes(72),
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize(
    ('changes', 'message_parts'),
    [
        ({'encoding': 'rgb9'}, ["'rgb9'", 'bgr8, ']),
        ({'encoding': ''}, ["encoding ''"]),
        ({'encoding': '32FC1'}, ["'32FC1'"]),
        ({'height': 0}, ['6x0']),
        ({'width': 0}, ['0x4']),
        ({'step': 17}, ['step is 17', '18']),
        ({'step': 0}, ['step is 0']),
        ({'data': bytes(71)}, ['71 bytes', 'expected 72']),
        ({'data': b''}, ['0 bytes', 'expected 72']),
        ({'data': bytes(73)}, ['73 bytes', 'expected 72']),
        ({'height': 2**32 - 1}, ['72 bytes']),
        ({'width': 2**32 - 1}, ['step is 18']),
        ({'encoding': 'yuv422', 'width': 5}, ['multiple of 2', '5x4']),
        ({'encoding': 'nv12', 'height': 3}, ['multiple of 2', '6x3']),
        ({'encoding': 'nv12', 'step': 6}, ['72 bytes', 'expected 36']),
        ({'encoding': 'bayer_rggb8', 'width': 2}, ['2x4', 'at least 3x3']),
        ({'data': None}, ['data']),
        ({'data': [300] * 72}, ['data']),
        ({'data': ['a'] * 72}, ['data']),
    ],
)
def test_a_bad_image_is_refused_with_the_field_at_fault(changes, message_parts):
    with pytest.raises(ImageError) as caught:
        decode_image(good(**changes))
    for part in message_parts:
        assert part in str(caught.value)


@given(
    st.builds(
        good,
        height=st.integers(0, 9) | st.integers(0, 2**32 - 1),
        width=st.integers(0, 9) | st.integers(0, 2**32 - 1),
        encoding=st.sampled_from(ENCODINGS) | st.text(max_size=8),
        is_bigendian=st.integers(0, 255),
        step=st.integers(0, 80) | st.integers(0, 2**32 - 1),
        data=st.binary(max_size=300),
    )
)
def test_a_mutated_message_is_an_image_or_an_image_error(msg):
    try:
        decoded = decode_image(msg)
    except ImageError:
        return
    check_shape(decoded, msg.height, msg.width)


def picture(height: int = 40, width: int = 60) -> np.ndarray:
    """A smooth colourful RGB picture, which JPEG keeps well."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack(
        [255 * columns / width, 255 * rows / height, 255 * (1 - columns / width)], axis=-1
    ).astype(np.uint8)


def compressed(extension: str, described: str, pixels: np.ndarray | None = None, **data: bytes):
    pixels = picture()[..., ::-1] if pixels is None else pixels
    encoded = cv2.imencode(extension, np.ascontiguousarray(pixels))[1].tobytes()
    return SimpleNamespace(**{'format': described, 'data': encoded, **data})


def test_png_comes_back_exactly():
    decoded = decode_compressed(compressed('.png', 'rgb8; png compressed bgr8'))
    np.testing.assert_array_equal(decoded, picture())


def test_jpeg_comes_back_nearly():
    decoded = decode_compressed(compressed('.jpg', 'rgb8; jpeg compressed bgr8'))
    check_shape(decoded, 40, 60)
    assert np.abs(decoded.astype(int) - picture()).mean() < 3


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_grey_pictures_become_rgb(extension):
    decoded = decode_compressed(compressed(extension, 'mono8', np.full((8, 8), 77, np.uint8)))
    np.testing.assert_array_equal(decoded, np.full((8, 8, 3), 77))


def test_16_bit_png_is_scaled_like_mono16():
    ramp = (np.arange(64, dtype=np.uint16) * 1000).reshape(8, 8)
    decoded = decode_compressed(compressed('.png', 'mono16; png compressed', ramp))
    np.testing.assert_array_equal(decoded[..., 1], np.rint(ramp / 257.0))


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
@pytest.mark.parametrize('kept', [0.3, 0.7, 0.99])
def test_a_cut_off_picture_is_refused(extension, kept):
    msg = compressed(extension, 'bgr8')
    msg.data = msg.data[: int(len(msg.data) * kept)]
    with pytest.raises(ImageError, match='cut off'):
        decode_compressed(msg)


def test_the_end_of_a_thumbnail_is_not_that_of_the_picture():
    msg = compressed('.jpg', 'bgr8')
    thumbnail = b'\xff\xe1\x00\x06\xff\xd8\xff\xd9'
    whole = msg.data[:2] + thumbnail + msg.data[2:]
    assert decode_compressed(SimpleNamespace(format='bgr8', data=whole)).shape == (40, 60, 3)
    with pytest.raises(ImageError, match='cut off'):
        decode_compressed(SimpleNamespace(format='bgr8', data=whole[:-200]))


def test_zeros_after_a_jpeg_are_what_some_cameras_send():
    msg = compressed('.jpg', 'bgr8')
    whole = decode_compressed(msg)
    msg.data = msg.data + bytes(100)
    np.testing.assert_array_equal(decode_compressed(msg), whole)


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'data': b''}, 'is empty'),
        ({'data': b'no picture at all'}, 'no picture that OpenCV reads'),
        ({'described': '16UC1; compressedDepth png'}, 'depth image'),
    ],
)
def test_what_is_no_picture_is_refused(changes, message):
    arguments = {'extension': '.png', 'described': 'bgr8', **changes}
    with pytest.raises(ImageError, match=message):
        decode_compressed(compressed(**arguments))


@given(st.binary(max_size=200), st.integers(0, 3000), st.binary(max_size=8))
def test_damaged_pictures_are_pictures_or_image_errors(noise, position, replacement):
    intact = compressed('.jpg', 'bgr8').data
    cut = position % len(intact)
    for data in (noise, intact[:cut] + replacement + intact[cut + len(replacement) :]):
        try:
            decoded = decode_compressed(SimpleNamespace(format='bgr8', data=data))
        except ImageError:
            continue
        assert decoded.dtype == np.uint8
        assert decoded.shape[2] == 3


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.float32])
def test_image_bytes_are_those_of_the_array(dtype):
    pixels = np.arange(60, dtype=dtype).reshape(3, 4, 5)
    for view in (pixels, pixels[:, ::-1], pixels[1:, :, ::2]):
        data = image_bytes(view)
        assert isinstance(data, array)
        assert data.typecode == 'B'
        assert data.tobytes() == view.tobytes()


@pytest.mark.parametrize(
    ('shape', 'dtype', 'encoding', 'step'),
    [
        ((3, 5), np.float32, '32FC1', 20),
        ((3, 5), np.uint16, '16UC1', 10),
        ((3, 5, 3), np.uint8, 'rgb8', 15),
    ],
)
def test_encoded_fields_describe_the_array(shape, dtype, encoding, step):
    pixels = np.arange(np.prod(shape), dtype=dtype).reshape(shape)
    fields = encode_image(pixels, encoding)
    assert (fields['height'], fields['width']) == (3, 5)
    assert (fields['encoding'], fields['step']) == (encoding, step)
    assert fields['is_bigendian'] == (sys.byteorder == 'big')
    back = np.frombuffer(fields['data'], dtype=dtype).reshape(shape)
    np.testing.assert_array_equal(back, pixels)


def test_encoding_and_decoding_are_inverse():
    np.testing.assert_array_equal(
        decode_image(SimpleNamespace(**encode_image(picture(), 'rgb8'))), picture()
    )
