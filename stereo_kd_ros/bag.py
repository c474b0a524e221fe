# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Stereo pairs in and out of a bag, without ROS.

Reads rosbag2 (sqlite3 and mcap, plain or compressed) and ROS 1 bags through `rosbags`, finds the
stereo topics by itself, and hands out decoded pairs one at a time: memory does not grow with the
bag. Stamps are integers in nanoseconds; images are RGB uint8 arrays of shape (H, W, 3).

    with StereoBag('drive') as bag:
        for frame in bag.pairs():
            raw = engine.infer(frame.left, frame.right).disparity
            depth = bag.camera.disparity_to_depth(bag.camera.disparity_from_pixels(raw))
"""

from __future__ import annotations

import dataclasses
import functools
import re
import struct
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.rosbag1 import ReaderError as Rosbag1Error
from rosbags.rosbag2 import (
    CompressionFormat,
    CompressionMode,
    StoragePlugin,
    Writer,
    WriterError,
)
from rosbags.rosbag2 import ReaderError as Rosbag2Error
from rosbags.typesys import Stores, get_typestore

from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.image import decode_compressed, decode_image
from stereo_kd_ros.pairing import DROP_CAUSES, PairMatcher

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'

# Older distributions read version 8; version 9 only spells the QoS profiles differently.
_BAG_VERSION = 8

# How the two eyes are told apart in topic names: ROS convention, RealSense, EuRoC and Kalibr.
_EYES = (('left', 'right'), ('infra1', 'infra2'), ('cam0', 'cam1'), ('camera0', 'camera1'))

# Rectified pictures are wanted first; a raw one is taken only where there is nothing else.
_IMAGE_NAMES = (
    'image_rect',
    'image_rect_color',
    'image_rect_raw',
    'image_rect_gray',
    'image_rect_mono',
    'image',
    'image_color',
    'image_mono',
    'image_raw',
    'image_raw_color',
)

_EXPECTED = 'a rosbag2 folder with metadata.yaml, an .mcap or .db3 file, or a ROS 1 .bag file'
_READ_ERRORS = (AnyReaderError, Rosbag1Error, Rosbag2Error, OSError, ValueError, KeyError)


class BagError(RuntimeError):
    """A bag cannot be read or written, or does not hold what was asked of it."""


@dataclass(frozen=True)
class StereoTopics:
    """The four topics of a rectified stereo camera."""

    left_image: str
    right_image: str
    left_info: str
    right_info: str

    @classmethod
    def in_namespace(cls, namespace: str = '') -> StereoTopics:
        """The conventional names (`left/image_rect`, ...) under a namespace such as `/stereo`."""
        prefix = '/' + namespace.strip('/') if namespace.strip('/') else ''
        return cls(
            f'{prefix}/left/image_rect',
            f'{prefix}/right/image_rect',
            f'{prefix}/left/camera_info',
            f'{prefix}/right/camera_info',
        )

    @property
    def names(self) -> tuple[str, str, str, str]:
        """All four, images first."""
        return self.left_image, self.right_image, self.left_info, self.right_info


@dataclass(frozen=True)
class BagMessage:
    """One recorded message: `time_ns` is when it was recorded, `cdr` its ROS 2 serialisation."""

    topic: str
    msgtype: str
    time_ns: int
    cdr: bytes


@dataclass(frozen=True)
class StereoFrame:
    """A left/right pair with equal stamps (or within the tolerance) and its calibration.

    `left` and `right` are RGB uint8 of shape (H, W, 3); the two infos are CameraInfo objects.
    """

    stamp_ns: int
    skew_ns: int
    left: np.ndarray
    right: np.ndarray
    left_info: Any
    right_info: Any


class Bag:
    """Any bag, opened for reading.

    Args:
        path: rosbag2 folder, a single `.mcap` or `.db3` file, or a ROS 1 `.bag` file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._reader: AnyReader | None = None

    def __enter__(self) -> Bag:
        """Open the bag.

        Raises:
            BagError: Nothing there, not a bag, damaged, or without a single message.
        """
        storage = _storage_path(self.path)
        store = Stores.ROS1_NOETIC if storage.suffix == '.bag' else Stores.LATEST
        try:
            reader = AnyReader([storage], default_typestore=get_typestore(store))
            reader.open()
        except _READ_ERRORS as error:
            raise BagError(
                f'{self.path} cannot be read as a bag: {str(error).rstrip(".")}. '
                f'Expected {_EXPECTED}.'
            ) from error
        self._reader = reader
        if not reader.message_count:
            self.__exit__(None, None, None)
            raise BagError(f'{self.path} is empty: it holds no message on any topic.')
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the bag."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def reader(self) -> AnyReader:
        """The open reader.

        Raises:
            BagError: Used outside of a `with` block.
        """
        if self._reader is None:
            raise BagError(f'{self.path} is not open: use it in a `with` block.')
        return self._reader

    @property
    def topics(self) -> dict[str, str]:
        """Topic name to message type."""
        return {
            connection.topic: connection.msgtype
            for connection in sorted(self.reader.connections, key=lambda c: c.topic)
        }

    @property
    def message_counts(self) -> Counter[str]:
        """Messages by topic."""
        counts: Counter[str] = Counter()
        for connection in self.reader.connections:
            counts[connection.topic] += connection.msgcount
        return counts

    @property
    def duration_s(self) -> float:
        """Time between the first and the last message, in seconds."""
        return self.reader.duration / 1e9

    def has_header(self, msgtype: str) -> bool:
        """Whether messages of this type begin with a std_msgs/Header."""
        fields = self.reader.typestore.get_msgdef(msgtype).cls.__dataclass_fields__
        return next(iter(fields), '') == 'header'

    def messages(self, topics: Collection[str] | None = None) -> Iterator[BagMessage]:
        """Messages in the order in which they were recorded, as ROS 2 bytes.

        Args:
            topics: Only these; None for all.

        Raises:
            BagError: The bag is damaged, or a ROS 1 message has no ROS 2 counterpart.
        """
        reader = self.reader
        for topic, msgtype, time_ns, data in self._raw_messages(topics):
            if reader.is2:
                yield BagMessage(topic, msgtype, time_ns, bytes(data))
            else:
                message = reader.deserialize(data, msgtype)
                yield BagMessage(topic, msgtype, time_ns, _cdr_from_ros1(message, msgtype))

    def decoded(self, topics: Collection[str]) -> Iterator[tuple[str, int, Any]]:
        """Messages as objects: (topic, recording time in ns, message).

        Raises:
            BagError: The bag is damaged.
        """
        for topic, msgtype, time_ns, data in self._raw_messages(topics):
            yield topic, time_ns, self._deserialize(data, msgtype, topic)

    def _raw_messages(
        self, topics: Collection[str] | None
    ) -> Iterator[tuple[str, str, int, bytes]]:
        connections = [
            connection
            for connection in self.reader.connections
            if topics is None or connection.topic in topics
        ]
        if not connections:
            return
        try:
            for connection, time_ns, data in self.reader.messages(connections):
                yield connection.topic, connection.msgtype, time_ns, data
        except (AnyReaderError, Rosbag1Error, Rosbag2Error, OSError) as error:
            raise BagError(f'{self.path} is damaged: {error}') from error

    def _deserialize(self, data: bytes, msgtype: str, topic: str) -> Any:
        try:
            return self.reader.deserialize(data, msgtype)
        except Exception as error:  # the reader has no common base for malformed payloads
            raise BagError(
                f'{self.path}: a {msgtype} on {topic} does not decode: {error}'
            ) from error


class StereoBag(Bag):
    """A bag that holds a rectified stereo camera.

    Args:
        path: As for `Bag`.
        topics: The four topics; found by their names when left out.
        namespace: Look only at topics below this one, for bags with several stereo cameras.
        tolerance_ns: How far apart the stamps of a pair may lie.

    After a run over `pairs()`, `unpaired` says how many images found no partner, by cause.
    """

    def __init__(
        self,
        path: str | Path,
        topics: StereoTopics | None = None,
        *,
        namespace: str | None = None,
        tolerance_ns: int = 0,
    ) -> None:
        super().__init__(path)
        self._wanted_topics = topics
        self._namespace = namespace
        self._tolerance_ns = tolerance_ns
        self.unpaired: Counter[str] = Counter()

    def __enter__(self) -> StereoBag:
        """Open the bag and find the camera.

        Raises:
            BagError: As `Bag`; and when the stereo topics or their messages are not there.
        """
        super().__enter__()
        try:
            self.stereo_topics = self._resolve_topics()
            infos = {self.stereo_topics.left_info: None, self.stereo_topics.right_info: None}
            for topic in infos:
                infos[topic] = next((m for _, _, m in self.decoded([topic])), None)
                if infos[topic] is None:
                    raise BagError(
                        f'{self.path}: {topic} carries no message, so the camera is unknown. '
                        'Record camera_info too.'
                    )
            self._first_infos = (
                infos[self.stereo_topics.left_info],
                infos[self.stereo_topics.right_info],
            )
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    @property
    def camera(self) -> StereoCamera:
        """The camera of the bag's first camera_info pair.

        Raises:
            CalibrationError: The recorded camera_info is not that of a rectified pair.
        """
        return StereoCamera.from_camera_info(*self._first_infos)

    @property
    def pair_count(self) -> int:
        """How many pairs there are at most: images of the eye that has fewer."""
        counts = self.message_counts
        return min(counts[self.stereo_topics.left_image], counts[self.stereo_topics.right_image])

    @property
    def looks_rectified(self) -> bool:
        """False when the best image topic there was is a raw one."""
        return 'raw' not in _image_name(self.stereo_topics.left_image).replace('rect_raw', '')

    def pairs(self) -> Iterator[StereoFrame]:
        """Decoded pairs in time order, matched as the node matches them.

        Raises:
            BagError: The bag is damaged.
            ImageError: An image does not decode.
        """
        topics = self.stereo_topics
        matcher = PairMatcher(tolerance_ns=self._tolerance_ns)
        left_info, right_info = self._first_infos
        for topic, _, message in self.decoded(topics.names):
            if topic == topics.left_info:
                left_info = message
            elif topic == topics.right_info:
                right_info = message
            else:
                stamp_ns = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
                add = matcher.add_left if topic == topics.left_image else matcher.add_right
                pair = add(stamp_ns, message)
                if pair is not None:
                    yield StereoFrame(
                        stamp_ns=pair.left_stamp_ns,
                        skew_ns=pair.skew_ns,
                        left=_decode(pair.left),
                        right=_decode(pair.right),
                        left_info=left_info,
                        right_info=right_info,
                    )
        self.unpaired = Counter({cause: matcher.counts[cause] for cause in DROP_CAUSES})
        self.unpaired['unmatched_left'] += matcher.pending_left
        self.unpaired['unmatched_right'] += matcher.pending_right

    def _resolve_topics(self) -> StereoTopics:
        if self._wanted_topics is None:
            return find_stereo_topics(self.topics, namespace=self._namespace)
        missing = [name for name in self._wanted_topics.names if name not in self.topics]
        if missing:
            raise BagError(
                f'{self.path} has no topic {", ".join(missing)}. {_describe(self.topics)}'
            )
        return self._wanted_topics


class StereoBagWriter:
    """Writes a stereo camera (and anything else) as a new rosbag2.

    Args:
        path: Folder to be made; must not exist.
        storage: 'sqlite3' or 'mcap'.
        topics: Names of the camera's topics.
        frame_id: Optical frame of the left camera; a rectified pair shares it.
        compressed: Compress with zstd: file-wise for sqlite3, chunk-wise for mcap.
    """

    def __init__(
        self,
        path: str | Path,
        storage: Literal['sqlite3', 'mcap'] = 'sqlite3',
        *,
        topics: StereoTopics | None = None,
        frame_id: str = 'left_camera_optical_frame',
        compressed: bool = False,
    ) -> None:
        plugins = {'sqlite3': StoragePlugin.SQLITE3, 'mcap': StoragePlugin.MCAP}
        if storage not in plugins:
            raise BagError(f'Unknown storage {storage!r}: expected one of {sorted(plugins)}.')
        self.path = Path(path)
        self.topics = topics or StereoTopics.in_namespace()
        self.frame_id = frame_id
        self._store = _ros2_store()
        self._connections: dict[str, Any] = {}
        try:
            self._writer = Writer(self.path, version=_BAG_VERSION, storage_plugin=plugins[storage])
        except WriterError as error:
            raise BagError(
                f'{self.path} exists already and is not overwritten: '
                'remove it or choose another name.'
            ) from error
        if compressed:
            mode = CompressionMode.STORAGE if storage == 'mcap' else CompressionMode.FILE
            self._writer.set_compression(mode, CompressionFormat.ZSTD)

    def __enter__(self) -> StereoBagWriter:
        """Make the folder and open the file in it."""
        try:
            self._writer.open()
        except (WriterError, OSError) as error:
            raise BagError(f'{self.path} cannot be written: {error}') from error
        return self

    def __exit__(self, *exc: object) -> None:
        """Write the metadata and close, also after an error: what was recorded stays readable."""
        self._writer.close()

    def write_pair(
        self, stamp_ns: int, left: np.ndarray, right: np.ndarray, camera: StereoCamera
    ) -> None:
        """Write two images and their two camera_infos under one stamp.

        Args:
            stamp_ns: Header stamp and recording time.
            left: (H, W, 3) RGB or (H, W) grey uint8.
            right: Like left.
            camera: Its width and height must be those of the images.

        Raises:
            BagError: Sizes differ between the eyes or from the camera.
        """
        expected = (camera.height, camera.width)
        if left.shape[:2] != expected or right.shape[:2] != expected:
            raise BagError(
                f'The pair at {stamp_ns} ns is {_size(left)} (left) and {_size(right)} (right) '
                f'but the calibration is for {camera.width}x{camera.height}: all three must agree.'
            )
        self.write_camera_infos(stamp_ns, camera)
        self.write(self.topics.left_image, stamp_ns, self._image(stamp_ns, left))
        self.write(self.topics.right_image, stamp_ns, self._image(stamp_ns, right))

    def write_camera_infos(self, stamp_ns: int, camera: StereoCamera) -> None:
        """Write the camera_info of both eyes."""
        for topic, projection in (
            (self.topics.left_info, camera.projection_left),
            (self.topics.right_info, camera.projection_right),
        ):
            self.write(topic, stamp_ns, self._camera_info(stamp_ns, camera, projection))

    def write(self, topic: str, time_ns: int, message: Any) -> None:
        """Write a message object of `rosbags`' own types."""
        cdr = self._store.serialize_cdr(message, message.__msgtype__)
        self.write_cdr(topic, message.__msgtype__, time_ns, cdr)

    def write_cdr(self, topic: str, msgtype: str, time_ns: int, cdr: bytes | memoryview) -> None:
        """Write a message that is serialised already."""
        if topic not in self._connections:
            self._connections[topic] = self._writer.add_connection(
                topic, msgtype, typestore=self._store
            )
        self._writer.write(self._connections[topic], time_ns, cdr)

    def _header(self, stamp_ns: int) -> Any:
        types = self._store.types
        stamp = types['builtin_interfaces/msg/Time'](*divmod(stamp_ns, 10**9))
        return types['std_msgs/msg/Header'](stamp, self.frame_id)

    def _image(self, stamp_ns: int, pixels: np.ndarray) -> Any:
        height, width = pixels.shape[:2]
        channels = 1 if pixels.ndim == 2 else pixels.shape[2]
        return self._store.types[IMAGE](
            header=self._header(stamp_ns),
            height=height,
            width=width,
            encoding='mono8' if channels == 1 else 'rgb8',
            is_bigendian=0,
            step=width * channels,
            data=np.ascontiguousarray(pixels).reshape(-1),
        )

    def _camera_info(self, stamp_ns: int, camera: StereoCamera, projection: np.ndarray) -> Any:
        types = self._store.types
        return types[CAMERA_INFO](
            header=self._header(stamp_ns),
            height=camera.height,
            width=camera.width,
            distortion_model='plumb_bob',
            d=np.zeros(5),
            k=projection[:, :3].reshape(-1).copy(),
            r=np.eye(3).reshape(-1),
            p=projection.reshape(-1).copy(),
            binning_x=0,
            binning_y=0,
            roi=types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False),
        )


def find_stereo_topics(topics: Mapping[str, str], *, namespace: str | None = None) -> StereoTopics:
    """Find the four topics of a stereo camera among a bag's topics.

    Args:
        topics: Topic name to message type.
        namespace: Consider only topics below this one.

    Raises:
        BagError: There is no stereo camera, its camera_info is missing, or there are several.
    """
    if namespace:
        prefix = '/' + namespace.strip('/') + '/'
        inside = {name: kind for name, kind in topics.items() if name.startswith(prefix)}
        if not inside:
            raise BagError(f'No topic lies below {prefix}. {_describe(topics)}')
    else:
        inside = dict(topics)
    images = {name for name, kind in inside.items() if kind in (IMAGE, COMPRESSED_IMAGE)}
    infos = {name for name, kind in inside.items() if kind == CAMERA_INFO}

    pairs = [(left, right) for left in images if (right := _other_eye(left, images))]
    if not pairs:
        raise BagError(
            'No left and right image topics that belong together (such as left/image_rect and '
            f'right/image_rect). {_describe(topics)} '
            'Topics of other names can be given explicitly.'
        )
    complete: list[tuple[int, StereoTopics]] = []
    for left, right in pairs:
        left_info, right_info = _info_topic(left, infos), _info_topic(right, infos)
        if left_info and right_info:
            complete.append(
                (_rank(left, topics), StereoTopics(left, right, left_info, right_info))
            )
    if not complete:
        left, right = sorted(pairs)[0]
        raise BagError(
            f'The camera_info of {left} and {right} is missing: expected '
            f'{_parent(left)}/camera_info and {_parent(right)}/camera_info. {_describe(topics)}'
        )
    best = min(rank for rank, _ in complete)
    chosen = sorted((found for rank, found in complete if rank == best), key=lambda t: t.names)
    if len(chosen) > 1:
        raise BagError(
            'Several stereo cameras: '
            + ', '.join(found.left_image for found in chosen)
            + '. Choose one by its namespace.'
        )
    return chosen[0]


def read_stamp(cdr: bytes) -> int:
    """Header stamp in ns of a serialised message that begins with a std_msgs/Header."""
    sec, nanosec = struct.unpack_from(_stamp_format(cdr), cdr, 4)
    return sec * 10**9 + nanosec


def restamp(cdr: bytes, stamp_ns: int) -> bytes:
    """The same serialised message under another header stamp.

    Only eight bytes change, so that a player need not decode and encode megabytes for it, and the
    rest is copied once.
    """
    stamp = struct.pack(_stamp_format(cdr), *divmod(stamp_ns, 10**9))
    return b''.join((cdr[:4], stamp, memoryview(cdr)[4 + len(stamp) :]))


def _stamp_format(cdr: bytes) -> str:
    # The second byte of the encapsulation header says little (1) or big (0) endian.
    return '<iI' if cdr[1] & 1 else '>iI'


def _storage_path(path: Path) -> Path:
    if not path.exists():
        raise BagError(f'{path} does not exist. Expected {_EXPECTED}.')
    if path.is_dir() and not (path / 'metadata.yaml').exists():
        files = sorted([*path.glob('*.mcap'), *path.glob('*.db3'), *path.glob('*.bag')])
        if len(files) != 1:
            raise BagError(
                f'{path} is no bag: it has no metadata.yaml and {len(files)} bag files. '
                'Name the .mcap, .db3 or .bag file itself.'
            )
        return files[0]
    return path


@functools.lru_cache(maxsize=1)
def _ros2_store() -> Any:
    return get_typestore(Stores.LATEST)


def _cdr_from_ros1(message: Any, msgtype: str) -> bytes:
    """Serialise a ROS 1 message as its ROS 2 namesake (no header.seq, lower-case K, R, P)."""
    store = _ros2_store()
    if msgtype not in store.types:
        raise BagError(f'{msgtype} is unknown to ROS 2: leave its topic out.')
    return bytes(store.serialize_cdr(_ros2_message(store, message, msgtype), msgtype))


def _ros2_message(store: Any, message: Any, msgtype: str) -> Any:
    def convert(value: Any) -> Any:
        if hasattr(value, '__msgtype__'):
            return _ros2_message(store, value, value.__msgtype__)
        if isinstance(value, list):
            return [convert(item) for item in value]
        return value

    fields = {}
    for field in dataclasses.fields(store.types[msgtype]):
        if field.name.startswith('__'):
            continue
        name = field.name if hasattr(message, field.name) else field.name.upper()
        if not hasattr(message, name):
            raise BagError(f'{msgtype} of ROS 1 has no {field.name}: leave its topic out.')
        fields[field.name] = convert(getattr(message, name))
    return store.types[msgtype](**fields)


def _decode(message: Any) -> np.ndarray:
    if message.__msgtype__ == COMPRESSED_IMAGE:
        return decode_compressed(message)
    return decode_image(message)


def _other_eye(topic: str, images: Collection[str]) -> str | None:
    for left, right in _EYES:
        swapped = re.sub(left, right, topic)
        if swapped != topic and swapped in images:
            return swapped
    return None


def _base(topic: str) -> str:
    """The image topic that an image_transport topic belongs to."""
    return re.sub(r'/(compressed|theora|compressedDepth)$', '', topic)


def _image_name(topic: str) -> str:
    return _base(topic).rsplit('/', 1)[-1]


def _parent(topic: str) -> str:
    return _base(topic).rsplit('/', 1)[0]


def _info_topic(image: str, infos: Collection[str]) -> str | None:
    for candidate in (f'{_parent(image)}/camera_info', f'{_base(image)}/camera_info'):
        if candidate in infos:
            return candidate
    return None


def _rank(image: str, topics: Mapping[str, str]) -> int:
    name = _image_name(image)
    order = _IMAGE_NAMES.index(name) if name in _IMAGE_NAMES else len(_IMAGE_NAMES)
    return 2 * order + (topics[image] == COMPRESSED_IMAGE)


def _describe(topics: Mapping[str, str]) -> str:
    listed = ', '.join(f'{name} ({kind.rsplit("/", 1)[-1]})' for name, kind in topics.items())
    return f'The bag has: {listed}.'


def _size(image: np.ndarray) -> str:
    return f'{image.shape[1]}x{image.shape[0]}'
