# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node's own objects from subscription callback to serialised message, and a judge over them.

    damaged messages ─▶ StereoInputs (pairing, camera_info) ─▶ Mailbox ─▶ process_pair (decode,
    infer, mask, triangulate) ─▶ StereoOutputs ─▶ CDR ─▶ read back and compared with the oracle

Only the middleware is left out: a `Desk` stands where the node creates its subscriptions and
publishers, so that messages go in and come out by function call. Whatever is not refused with the
node's own `PairDropped` must be exactly what the oracle says; an exception of any other kind, or a
numpy warning about an overflow, is a crash.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import cv2
import numpy as np
from contract_models import difference_model
from mutations import PERIOD_NS, Shot, over_the_wire, shot
from oracle import ReferenceCamera, png_is_whole, reference_camera, reference_rgb
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, RegionOfInterest

from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.node.inputs import ReceivedPair, StereoInputs
from stereo_kd_ros.node.outputs import EVERYTHING, TOPICS, StereoOutputs
from stereo_kd_ros.node.parameters import PARAMETERS, Settings
from stereo_kd_ros.node.pipeline import PairDropped, process_pair
from stereo_kd_ros.pairing import DROP_CAUSES, Mailbox

START_NS = 1_700_000_000_000_000_000
PNG_START = b'\x89PNG\r\n\x1a\n'
GAIN, CONFIDENCE_SCALE = 0.5, 1 / 100
# Float32 arithmetic in another order; and how near a threshold a pixel may fall to either side.
TOLERANCE, MARGIN = 2e-5, 1e-3
DEFAULTS = Settings(**{spec.name: spec.default for spec in PARAMETERS})


class WrongAnswer(AssertionError):
    """The node took something for right that is not, or refused what is."""


class Crash(Exception):
    """Something other than the node's own refusal came out of it."""


class Desk:
    """Stands where the node makes endpoints: messages go in and come out by function call."""

    def __init__(self) -> None:
        self.callbacks: dict[str, Callable[[Any], None]] = {}
        self.sent: dict[str, Any] = {}

    def resolve_topic_name(self, topic: str) -> str:
        """As it is."""
        return topic

    def create_subscription(
        self,
        message_type: type,
        topic: str,
        callback: Callable[[Any], None],
        *args: Any,
        raw: bool = False,
        **kw: Any,
    ) -> None:
        """Remembers the callback, which gets a message, or its bytes where it asked for them."""
        self.callbacks[topic] = (lambda m: callback(serialize_message(m))) if raw else callback

    def create_publisher(self, message_type: type, topic: str, *args: Any, **kw: Any) -> Any:
        """Returns a publisher that serialises, and keeps what a subscriber would get."""
        return _Serialiser(self.sent, topic)


class _Serialiser:
    def __init__(self, sent: dict[str, Any], topic: str) -> None:
        self._sent, self._topic = sent, topic

    def publish(self, message: Any) -> None:
        self._sent[self._topic] = over_the_wire(message)

    def get_subscription_count(self) -> int:
        return 1


def open_engine(folder: Path) -> StereoEngine:
    """Returns a real engine with a tiny model whose answer can be worked out by hand."""
    path = difference_model(
        folder / 'difference.onnx', gain=GAIN, confidence_scale=CONFIDENCE_SCALE
    )
    return StereoEngine(path, 'cpu', threads=1)


class FuzzTarget:
    """One life of the pipeline; counts what became of the messages in `outcomes`."""

    def __init__(self, engine: StereoEngine, compressed: bool = False, approximate: bool = False):
        self._engine, self._compressed = engine, compressed
        self._settings = replace(
            DEFAULTS,
            image_transport='compressed' if compressed else 'raw',
            approximate_sync=approximate,
            approximate_sync_tolerance_seconds=0.005,
        )
        self._desk = Desk()
        self._mailbox: Mailbox[ReceivedPair] = Mailbox()
        self._unexpected: list[str] = []
        self._inputs = StereoInputs(
            self._desk, self._settings, self._mailbox.put, self._unexpected.append
        )
        self._outputs = StereoOutputs(self._desk)
        self._stamp_ns = START_NS
        self._images = 0
        self.messages = 0
        self.outcomes: Counter[str] = Counter()

    def round(self, rng: Random) -> None:
        """Throws one instant at the pipeline.

        Raises:
            WrongAnswer: It gave a wrong answer.
            Crash: It failed in a way that the node does not know.
        """
        self._stamp_ns += PERIOD_NS
        if rng.random() < 0.01:
            self._stamp_ns = START_NS  # a bag that loops
        self.throw(
            shot(rng, self._stamp_ns, self._compressed), random_settings(rng, self._settings)
        )

    def throw(self, thrown: Shot, settings: Settings) -> None:
        """Delivers one instant, and judges what comes of it; raises as `round`."""
        for name, message in (
            ('left_camera_info', thrown.left_info),
            ('right_camera_info', thrown.right_info),
            ('left_image', thrown.left),
            ('right_image', thrown.right),
        ):
            if message is None:
                continue
            self.messages += 1
            self._images += name.endswith('image')
            self._desk.callbacks[self._inputs.topics[name]](message)
            if self._unexpected:
                raise Crash(self._unexpected.pop())
            received = self._mailbox.take(timeout=0)
            if received is not None:
                self._answer(received, settings)
        self._require_every_image_accounted_for()

    def _answer(self, received: ReceivedPair, settings: Settings) -> None:
        pair = received.pair
        stamps = tuple(
            m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in (pair.left, pair.right)
        )
        _require(stamps == (pair.left_stamp_ns, pair.right_stamp_ns), 'a pair of other stamps')
        _require(abs(pair.skew_ns) <= settings.tolerance_ns, f'a pair {pair.skew_ns} ns apart')
        infos = received.left_info, received.right_info
        self._desk.sent.clear()
        try:
            with np.errstate(over='raise', divide='raise', invalid='raise'):
                frame = process_pair(pair.left, pair.right, *infos, self._engine, settings)
                self._outputs.publish(
                    frame, pair.left.header, received.left_info, settings, EVERYTHING
                )
        except PairDropped as dropped:
            _require(str(dropped) != '', 'refused without a reason')
            self.outcomes[dropped.cause] += 1
            verdict = dropped.cause
        except Exception as error:
            raise Crash(f'{type(error).__name__}: {error}') from error
        else:
            self.outcomes['published'] += 1
            verdict = 'published'
        expected = expected_outcome(pair.left, pair.right, infos)
        _require(expected in (None, verdict), f'{verdict}, expected {expected}')
        if verdict == 'published':
            images = [image_reference(message) for message in (pair.left, pair.right)]
            camera = reference_camera(*infos)
            judge(self._desk.sent, pair.left.header, received.left_info, images, camera, settings)

    def _require_every_image_accounted_for(self) -> None:
        counts = self._inputs.pairing_counts
        waiting = self._images - 2 * counts['pairs'] - sum(counts[name] for name in DROP_CAUSES)
        _require(
            0 <= waiting <= 2 * self._settings.queue_size, f'{waiting} images unaccounted for'
        )


def random_settings(rng: Random, settings: Settings) -> Settings:
    """Changes some of what may change between two pairs."""
    if rng.random() < 0.6:
        return settings
    return replace(
        settings,
        min_depth=rng.choice((0.0, 1.0)),
        max_depth=rng.choice((float('inf'), 2.0, 20.0)),
        min_disparity=rng.choice((0.0, 3.0)),
        max_disparity=rng.choice((0.0, 40.0)),
        confidence_threshold=rng.choice((0.0, 0.2)),
        speckle_size=rng.choice((0, 0, 0, 4)),
        depth_encoding=rng.choice(('32FC1', '16UC1')),
    )


def image_reference(message: Any) -> np.ndarray | None:
    """What an image message holds; compressed ones as OpenCV reads the same bytes."""
    if isinstance(message, CompressedImage):
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        picture = cv2.imdecode(np.frombuffer(message.data, np.uint8), flags)
        return None if picture is None else picture[..., ::-1]
    return reference_rgb(message)


def expected_outcome(left: Any, right: Any, infos: tuple[CameraInfo, CameraInfo]) -> str | None:
    """What must become of a pair; None for JPEG, which has no checksum to tell damage by."""
    camera = reference_camera(*infos)
    if camera is None:
        return 'calibration'
    if isinstance(left, CompressedImage):
        data = [bytes(message.data) for message in (left, right)]
        pngs = [each for each in data if each.startswith(PNG_START)]
        return None if all(png_is_whole(each) for each in pngs) else 'image'
    images = reference_rgb(left), reference_rgb(right)
    if images[0] is None or images[1] is None:
        return 'image'
    if images[0].shape != images[1].shape:
        return 'size_mismatch'
    fits = images[0].shape[:2] == (camera.height, camera.width)
    return 'published' if fits else 'size_mismatch'


def judge(
    sent: dict[str, Any],
    header: Any,
    left_info: CameraInfo,
    images: list[np.ndarray],
    camera: ReferenceCamera,
    settings: Settings,
) -> None:
    """Holds everything that was published to what the pair of images must give.

    Raises:
        WrongAnswer: Something differs.
    """
    _require(set(sent) == {output.topic for output in TOPICS.values()}, 'an output is missing')
    height, width = camera.height, camera.width
    for topic, message in sent.items():
        _require(message.header == header, f'{topic}: another header')
        if topic != 'disparity' and topic != 'depth/camera_info':
            _require((message.height, message.width) == (height, width), f'{topic}: another size')
    left, right = (image.astype(np.float32) for image in images)
    raw = np.abs((left - right).sum(axis=2) / np.float32(3)) * np.float32(GAIN)
    trust = np.clip(raw * np.float32(CONFIDENCE_SCALE), 0, 1)
    _close(pixels(sent['confidence'], '32FC1'), trust, 'confidence')
    disparity = raw - np.float32(camera.cx_offset_px)
    limit = settings.max_disparity or np.inf
    valid = (raw > 0) & (disparity > 0) & (disparity >= settings.min_disparity)
    valid &= (disparity <= limit) & (trust >= settings.confidence_threshold)
    doubtful = np.zeros_like(valid)
    for value, threshold in (
        (disparity, 0.0),
        (disparity, settings.min_disparity),
        (disparity, limit),
        (trust, settings.confidence_threshold),
    ):
        if threshold or value is disparity:
            doubtful |= np.abs(value - np.float32(threshold)) < MARGIN
    answered = _judge_disparity(sent['disparity'], header, camera, settings)
    given = ~np.isnan(answered)
    _require(not (given & ~valid & ~doubtful).any(), 'disparity where there is none')
    if not settings.speckle_size:
        _require(not (~given & valid & ~doubtful).any(), 'no disparity where there is one')
    _close(answered[given], disparity[given], 'disparity')
    _judge_depth(sent, answered, left_info, images[0], camera, settings)


def _judge_disparity(
    message: Any, header: Any, camera: ReferenceCamera, settings: Settings
) -> np.ndarray:
    """Checks the DisparityImage's own fields; returns its map, NaN invalid."""
    _require(message.image.header == header, 'disparity.image: another header')
    _require(message.f == np.float32(camera.fx), f'f {message.f}, expected {camera.fx}')
    _close(np.float32(message.t), np.float32(camera.baseline_m), 't')
    whole = RegionOfInterest(width=camera.width, height=camera.height)
    _require(message.valid_window == whole, 'another valid_window')
    _require(message.delta_d > 0, 'delta_d is not positive')
    disparity = pixels(message.image, '32FC1').copy()
    _require(disparity.shape == (camera.height, camera.width), 'disparity: another size')
    _require(np.isfinite(disparity).all(), 'disparity holds NaN or Inf')
    disparity[disparity < message.min_disparity] = np.nan
    _require(message.min_disparity == settings.min_disparity, 'another min_disparity')
    return disparity


def _judge_depth(
    sent: dict[str, Any],
    disparity: np.ndarray,
    left_info: CameraInfo,
    left: np.ndarray,
    camera: ReferenceCamera,
    settings: Settings,
) -> None:
    """Checks that f B / d = Z in every output that follows from the depth."""
    given = ~np.isnan(disparity)
    focal_baseline = camera.fx * camera.baseline_m
    with np.errstate(all='ignore'):
        exact = (focal_baseline / disparity.astype(np.float64)).astype(np.float32)
    depth = exact.copy()
    near_limit = np.isclose(exact, settings.min_depth, rtol=1e-5) | np.isclose(
        exact, settings.max_depth, rtol=1e-5
    )
    depth[exact < settings.min_depth], depth[exact > settings.max_depth] = -np.inf, np.inf
    depth[~given] = np.nan
    finite = np.isfinite(depth)
    millimetres_exact = np.where(finite, exact, 0).astype(np.float64) * 1e3
    _require(not given.any() or exact[given].min() > 0, 'a depth of 0 m')
    if settings.depth_encoding == '16UC1':
        millimetres = pixels(sent['depth/image'], '16UC1').astype(np.float64)
        fits = (millimetres_exact < 65535) & (millimetres_exact > 0.5)
        expected = np.where(fits, millimetres_exact, 0)
        edge = near_limit | (np.abs(millimetres_exact - 65535) < 2)
        edge |= np.abs(millimetres_exact - 0.5) < 0.1
        apart = np.abs(millimetres - expected)
        _require((apart[~edge] <= 0.51 + 1e-6 * expected[~edge]).all(), 'other millimetres')
    else:
        _close(pixels(sent['depth/image'], '32FC1'), depth, 'depth', near_limit)
    with np.errstate(all='ignore'):
        sigma = np.where(finite, depth, np.nan).astype(np.float64) ** 2
        sigma = (sigma / focal_baseline * settings.disparity_sigma).astype(np.float32)
    _close(pixels(sent['depth/sigma'], '32FC1'), sigma, 'sigma', near_limit)
    info = sent['depth/camera_info']
    for name in ('k', 'p', 'r', 'd'):
        same = np.array_equal(getattr(info, name), getattr(left_info, name), equal_nan=True)
        _require(same, f'depth/camera_info: another {name}')
    cloud = np.frombuffer(sent['points'].data, np.float32).reshape(*depth.shape, 4)
    column, row = np.meshgrid(np.arange(camera.width), np.arange(camera.height))
    z = np.where(finite, depth, np.nan).astype(np.float64)
    x, y = (column - camera.cx) / camera.fx * z, (row - camera.cy) / camera.fy * z
    _close(cloud[..., :3], np.stack([x, y, z], axis=-1).astype(np.float32), 'points', near_limit)
    colours = np.ascontiguousarray(cloud).view(np.uint8).reshape(*depth.shape, 16)[..., 12:15]
    _require(np.array_equal(colours[..., ::-1], left), 'points: other colours')
    coloured = pixels(sent['disparity/color'], 'rgb8')
    _require(not coloured[~given].any(), 'disparity/color: an invalid pixel is not black')


def pixels(message: Image, encoding: str) -> np.ndarray:
    """Returns what an image the node published holds, `(H, W)` or `(H, W, 3)`."""
    _require(message.encoding == encoding, f'{message.encoding}, expected {encoding}')
    kind, channels = {'32FC1': ('f4', 1), '16UC1': ('u2', 1), 'rgb8': ('u1', 3)}[encoding]
    size = np.dtype(kind).itemsize * channels
    _require(message.step == message.width * size, f'a step of {message.step}')
    _require(len(message.data) == message.step * message.height, 'data of another length')
    order = '>' if message.is_bigendian else '<'
    shape = (message.height, message.width, channels)[: 3 if channels > 1 else 2]
    return np.frombuffer(message.data, order + kind).reshape(shape)


def _close(
    given: np.ndarray, expected: np.ndarray, name: str, doubtful: np.ndarray | None = None
) -> None:
    with np.errstate(all='ignore'):
        same = np.isclose(given, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    if doubtful is not None:
        same |= doubtful[..., np.newaxis] if same.ndim == 3 else doubtful
    if not same.all():
        place = tuple(np.argwhere(~same)[0]) if same.ndim else ()
        raise WrongAnswer(
            f'{name} at {tuple(map(int, place))}: {given[place]}, expected {expected[place]}'
        )


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise WrongAnswer(what)
