# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Images read in place from what rclpy serialises, byte for byte."""

from __future__ import annotations

import struct
from array import array

import numpy as np
import pytest

pytest.importorskip('rclpy')
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image

from stereo_kd_ros.image import decode_image
from stereo_kd_ros.node.wire import CameraInfoReader, WireError, WireImage, read_image

FIELDS = ('height', 'width', 'encoding', 'is_bigendian', 'step')
TEXT = st.text(st.characters(exclude_characters='\0', exclude_categories=('Cs',)), max_size=12)


def message(frame='camera', encoding='bgr8', data=bytes(range(24)), **fields) -> Image:
    made = Image(encoding=encoding, **{'height': 2, 'width': 4, 'step': 12, **fields})
    made.header.frame_id = frame
    made.header.stamp.sec, made.header.stamp.nanosec = -3, 999_999_999
    made.data = array('B', data)
    return made


def big_endian(image: Image) -> bytes:
    """The message as a machine of the other byte order sends it."""

    def text(value):
        encoded = value.encode() + b'\0'
        return struct.pack('>I', len(encoded)) + encoded

    out = b''
    parts = [
        struct.pack('>iI', image.header.stamp.sec, image.header.stamp.nanosec),
        text(image.header.frame_id),
        struct.pack('>II', image.height, image.width),
        text(image.encoding),
        struct.pack('>B', image.is_bigendian),
        struct.pack('>I', image.step),
        struct.pack('>I', len(image.data)),
        bytes(image.data),
    ]
    for part, aligned in zip(parts, (4, 4, 4, 4, 1, 4, 4, 1)):
        out += bytes(-len(out) % aligned) + part
    return b'\x00\x00\x00\x00' + out


@given(
    frame=TEXT,
    encoding=TEXT,
    data=st.binary(max_size=40),
    height=st.integers(0, 2**32 - 1),
    step=st.integers(0, 2**32 - 1),
    is_bigendian=st.integers(0, 255),
)
def test_every_field_is_what_was_sent(frame, encoding, data, height, step, is_bigendian):
    sent = message(frame, encoding, data, height=height, step=step, is_bigendian=is_bigendian)
    for wire in (serialize_message(sent), big_endian(sent)):
        read = read_image(wire)
        assert isinstance(read, WireImage)
        assert read.header == sent.header
        assert [getattr(read, name) for name in FIELDS] == [getattr(sent, name) for name in FIELDS]
        assert bytes(read.data) == data


def test_the_pixels_stay_where_they_came():
    wire = serialize_message(message(encoding='rgb8'))
    pixels = decode_image(read_image(wire))
    assert np.shares_memory(pixels, np.frombuffer(wire, np.uint8))
    np.testing.assert_array_equal(pixels.ravel(), np.arange(24))


@pytest.mark.parametrize('encoding', ['bgr8', 'mono8'])
def test_decoded_as_the_message_itself_is(encoding):
    sent = message(encoding=encoding)
    np.testing.assert_array_equal(
        decode_image(read_image(serialize_message(sent))), decode_image(sent)
    )


@given(st.integers(0, 70))
def test_a_message_that_was_cut_off_says_so(size):
    wire = bytes(serialize_message(message()))
    ends = len(wire) - len(wire) % 4 + 4
    with pytest.raises((WireError, RuntimeError)):
        read_image(wire[: min(size, wire.index(bytes(range(24))) + 23, ends)])


def test_text_that_is_none_is_named():
    wire = bytes(serialize_message(message(frame='camera'))).replace(b'camera', b'c\xff\xfeera')
    with pytest.raises(WireError, match='no UTF-8'):
        read_image(wire)


def test_another_form_than_plain_cdr_is_left_to_rclpy():
    wire = b'\x7f\x7f' + bytes(serialize_message(message()))[2:]
    try:
        read = read_image(wire)
    except Exception as error:  # what the middleware says of it
        assert not isinstance(error, WireError)
    else:
        assert isinstance(read, Image)


def info(seconds: int, focal_px: float = 500.0) -> CameraInfo:
    made = CameraInfo(height=480, width=640, distortion_model='plumb_bob')
    made.header.frame_id, made.header.stamp.sec = 'camera', seconds
    made.p = [focal_px, 0.0, 320.0, 0.0, 0.0, focal_px, 240.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    return made


def test_a_calibration_that_stays_is_read_once():
    reader = CameraInfoReader()
    stamp, first = reader.read(serialize_message(info(-2)))
    later, second = reader.read(serialize_message(info(7)))
    assert (stamp, later) == (-2_000_000_000, 7_000_000_000)
    assert first == info(-2) and second is first


def test_a_calibration_that_changes_is_read_again():
    reader = CameraInfoReader()
    for seconds, focal_px in enumerate((500.0, 500.1, 500.0)):
        stamp, read = reader.read(serialize_message(info(seconds, focal_px)))
        assert stamp == seconds * 10**9 and read == info(seconds, focal_px)


@pytest.mark.parametrize('wire', [b'', b'\x00\x01\x00\x00\x01'])
def test_what_is_no_camera_info_raises(wire):
    with pytest.raises(RuntimeError):
        CameraInfoReader().read(wire)
