# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Takes a few pairs from all over a bag, with as little reading as its index allows.

Unlike `StereoBag.pairs`, which matches as the node does, this pairs each left image with the right
image nearest to it in time, however far that is: the distance is one of the things to be known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from stereo_kd_ros.bag import COMPRESSED_IMAGE, BagError, StereoBag
from stereo_kd_ros.image import decode_compressed, decode_image

# Of each eye, per place in the bag: two that follow each other, and one to see past the second.
_IMAGES_PER_PLACE = 3


@dataclass(frozen=True)
class SampledPair:
    """A pair as it was recorded.

    Attributes:
        left, right: (H, W, 3) RGB uint8.
        skew_ns: right stamp minus left stamp.
        follows: it is the next pair after the one sampled before.
    """

    left: np.ndarray
    right: np.ndarray
    skew_ns: int
    follows: bool


def sample_pairs(bag: StereoBag, count: int) -> Iterator[SampledPair]:
    """Yields up to `count` pairs in twos, evenly spread over the bag.

    Raises:
        BagError: the bag is damaged, or one eye has no image.
        ImageError: an image does not decode.
    """
    topics = bag.stereo_topics
    counts = bag.message_counts
    for topic in (topics.left_image, topics.right_image):
        if not counts[topic]:
            raise BagError(f'{bag.path}: {topic} carries no image, so there is no pair.')
    places = max(1, count // 2)
    begin_ns, span_ns = bag.reader.start_time, bag.reader.duration
    taken: set[int] = set()
    for place in range(places):
        start_ns = begin_ns + span_ns * place // places
        stop_ns = begin_ns + span_ns * (place + 1) // places + 1
        lefts, rights = _images(bag, start_ns, stop_ns)
        previous = None
        for index, (stamp_ns, message) in enumerate(lefts[:2]):
            if not rights or stamp_ns in taken:
                continue
            taken.add(stamp_ns)
            right_stamp_ns, right = min(rights, key=lambda item: abs(item[0] - stamp_ns))
            yield SampledPair(
                _decoded(message),
                _decoded(right),
                right_stamp_ns - stamp_ns,
                follows=previous is not None and previous == index - 1,
            )
            previous = index


def first_infos(bag: StereoBag) -> tuple[Any, Any]:
    """The first CameraInfo of either eye, as recorded: usable or not."""
    topics = bag.stereo_topics
    left, right = (
        next(message for _, _, message in bag.decoded([topic]))
        for topic in (topics.left_info, topics.right_info)
    )
    return left, right


def _images(
    bag: StereoBag, start_ns: int, stop_ns: int
) -> tuple[list[tuple[int, Any]], list[tuple[int, Any]]]:
    """The first images of either eye recorded in a span of time, with their stamps [ns]."""
    reader = bag.reader
    topics = bag.stereo_topics
    found: dict[str, list[tuple[int, Any]]] = {topics.left_image: [], topics.right_image: []}
    connections = [c for c in reader.connections if c.topic in found]
    try:
        for connection, _, data in reader.messages(connections, start_ns, stop_ns):
            images = found[connection.topic]
            if len(images) < _IMAGES_PER_PLACE:
                message = reader.deserialize(data, connection.msgtype)
                stamp = message.header.stamp
                images.append((stamp.sec * 10**9 + stamp.nanosec, message))
            if all(len(images) >= _IMAGES_PER_PLACE for images in found.values()):
                break
    except Exception as error:  # the reader has no common base for what a damaged bag raises
        raise BagError(f'{bag.path} is damaged: {error}') from error
    return found[topics.left_image], found[topics.right_image]


def _decoded(message: Any) -> np.ndarray:
    if message.__msgtype__ == COMPRESSED_IMAGE:
        return decode_compressed(message)
    return decode_image(message)
