# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Where a bag's ground truth comes from: files beside it, or a topic in it.

Every source answers `disparity(stamp_ns, index)` with the raw disparity x_left - x_right of the
left image, float32 (H, W) in pixels, NaN where it is unknown, or None for a frame without truth.

=============================== ==================================================================
files `<stamp>` or `<index>`    .pfm disparity in pixels, or KITTI's 16-bit .png (1/256 px)
stereo_msgs/DisparityImage      another model, or a simulator
sensor_msgs/Image, 32FC1/16UC1  depth in metres or millimetres, in the left image's geometry
sensor_msgs/CompressedImage     the same, as image_transport's compressedDepth writes it
sensor_msgs/PointCloud2         LiDAR, through the bag's /tf_static and /tf, or a file of
                                extrinsics, into the left optical frame
=============================== ==================================================================
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np

from stereo_kd_ros.bag import COMPRESSED_IMAGE, IMAGE, Bag, StereoBag
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.disparity_io import read_kitti_png, read_pfm

DISPARITY_IMAGE = 'stereo_msgs/msg/DisparityImage'
POINT_CLOUD = 'sensor_msgs/msg/PointCloud2'

# A LiDAR turns on its own time; its scan counts for the frame it is nearest to.
_CLOUD_TOLERANCE_NS = 60_000_000

# int32 format and two float32 parameters before the picture of a compressedDepth message.
_COMPRESSED_DEPTH_HEADER = struct.Struct('<iff')

# By how much a rotation of extrinsics may miss being one: such files carry six digits.
_ROTATION_TOLERANCE = 1e-3

_POINT_FIELDS = {1: 'i1', 2: 'u1', 3: 'i2', 4: 'u2', 5: 'i4', 6: 'u4', 7: 'f4', 8: 'f8'}


class TruthError(ValueError):
    """Ground truth that is not there, or cannot be brought into the left image."""


class TruthSource(Protocol):
    """Anything that knows the true disparity of some frames."""

    def disparity(self, stamp_ns: int, index: int) -> np.ndarray | None:
        """The raw disparity of a frame, or None. Frames are asked for in time order."""


@contextmanager
def open_truth(
    bag: StereoBag, truth: str | None, extrinsics: str | Path | None = None
) -> Iterator[TruthSource | None]:
    """The truth of an open bag: a topic of it or a folder of files; None where none is named.

    Args:
        bag: The open bag.
        truth: Topic or folder.
        extrinsics: Where its LiDAR is, as `read_extrinsics` takes it; the bag's tf without.

    Raises:
        TruthError: As `TruthTopic` and `TruthFiles` do.
    """
    if truth is None:
        yield None
    elif truth in bag.topics:
        with TruthTopic(bag, truth, extrinsics) as topic:
            yield topic
    else:
        yield TruthFiles(Path(truth), bag.camera)


class TruthFiles:
    """One file per frame, named by its stamp in ns or by its number from 0.

    Args:
        folder: Of the files.
        camera: Whose left image they must be as large as.

    Raises:
        TruthError: The folder holds no .pfm and no .png.
    """

    def __init__(self, folder: Path, camera: StereoCamera) -> None:
        self._camera = camera
        self._by_stem: dict[str, Path] = {}
        if folder.is_dir():
            files = sorted([*folder.glob('*.pfm'), *folder.glob('*.png')])
            self._by_stem = {file.stem.lstrip('0') or '0': file for file in files}
        if not self._by_stem:
            raise TruthError(
                f'{folder} is no topic of the bag and, as a folder, holds no truth: expected '
                '<stamp in ns>.pfm or .png, or 000000.png.'
            )

    def disparity(self, stamp_ns: int, index: int) -> np.ndarray | None:
        """Read the file of this frame, if there is one.

        Raises:
            TruthError: It has another size than the left image.
            DisparityFileError: It cannot be read.
        """
        file = self._by_stem.get(str(stamp_ns)) or self._by_stem.get(str(index))
        if file is None:
            return None
        values = read_pfm(file) if file.suffix == '.pfm' else read_kitti_png(file)
        _require_size(values, self._camera, str(file))
        return np.where(np.isfinite(values) & (values > 0), values, np.nan).astype(np.float32)


class TruthTopic:
    """A topic of the bag itself, read beside the images.

    Args:
        bag: The open bag; it is opened a second time for the topic.
        topic: Of one of the types that the module lists.
        extrinsics: Of a PointCloud2, as `read_extrinsics` takes it; the bag's tf without.

    Raises:
        TruthError: No such topic, of another type, or a LiDAR without a transform to the camera.
    """

    def __init__(self, bag: StereoBag, topic: str, extrinsics: str | Path | None = None) -> None:
        msgtype = bag.topics.get(topic)
        readers = {
            DISPARITY_IMAGE: (self._from_disparity, 0),
            IMAGE: (self._from_depth, 0),
            COMPRESSED_IMAGE: (self._from_depth, 0),
            POINT_CLOUD: (self._from_cloud, _CLOUD_TOLERANCE_NS),
        }
        if msgtype not in readers:
            has = ', '.join(name for name, kind in bag.topics.items() if kind in readers)
            raise TruthError(
                f'{topic} is {msgtype or "not in the bag"}: expected a DisparityImage, a depth '
                f'Image or a PointCloud2. The bag has {has}.'
            )
        self._camera = bag.camera
        self._topic = topic
        self._convert, self._tolerance_ns = readers[msgtype]
        self._bag = Bag(bag.path)
        self._messages: Iterator[tuple[int, Any, np.ndarray | None]] | None = None
        self._waiting: list[tuple[int, Any, np.ndarray | None]] = []
        self._frames: _Frames | None = None
        self._mounted: np.ndarray | None = None
        if msgtype == POINT_CLOUD and extrinsics is not None:
            self._mounted = read_extrinsics(extrinsics)
        elif msgtype == POINT_CLOUD:
            self._frames = _Frames(
                bag,
                _first(bag, topic).header.frame_id,
                _first(bag, bag.stereo_topics.left_image).header.frame_id,
            )

    def __enter__(self) -> TruthTopic:
        """Open the bag a second time."""
        self._bag.__enter__()
        self._messages = self._with_transforms()
        return self

    def __exit__(self, *exc: object) -> None:
        """Close it."""
        self._bag.__exit__(None, None, None)

    def disparity(self, stamp_ns: int, index: int) -> np.ndarray | None:
        """The message nearest to the stamp, as a disparity; None when none is near enough.

        Raises:
            TruthError: It is not of the left image's size, or of an unknown encoding.
        """
        assert self._messages is not None
        while not self._waiting or self._waiting[-1][0] <= stamp_ns + self._tolerance_ns:
            following = next(self._messages, None)
            if following is None:
                break
            self._waiting.append(following)
        self._waiting = [
            item for item in self._waiting if item[0] >= stamp_ns - self._tolerance_ns
        ]
        nearest = min(self._waiting, key=lambda item: abs(item[0] - stamp_ns), default=None)
        if nearest is None or abs(nearest[0] - stamp_ns) > self._tolerance_ns:
            return None
        return self._convert(nearest[1], nearest[2])

    def _with_transforms(self) -> Iterator[tuple[int, Any, np.ndarray | None]]:
        """The topic's messages with their stamps and, of a LiDAR, its transform at that time."""
        frames = self._frames
        followed = [self._topic] if frames is None else [self._topic, *frames.moving]
        for topic, _, message in self._bag.decoded(followed):
            if topic == self._topic:
                to_camera = self._mounted if frames is None else frames.to_camera
                yield header_stamp_ns(message.header), message, to_camera
            elif frames is not None:
                frames.update(message)

    def _from_disparity(self, message: Any, _: np.ndarray | None) -> np.ndarray:
        disparity = raw_disparity(message)
        _require_size(disparity, self._camera, self._topic)
        return disparity + np.float32(self._camera.cx_offset_px)

    def _from_depth(self, message: Any, _: np.ndarray | None) -> np.ndarray:
        depth = depth_m(message)
        _require_size(depth, self._camera, self._topic)
        return self._raw(depth)

    def _from_cloud(self, message: Any, to_camera: np.ndarray | None) -> np.ndarray:
        assert to_camera is not None
        points = cloud_xyz(message) @ to_camera[:3, :3].T + to_camera[:3, 3]
        return self._raw(project_depth(points, self._camera))

    def _raw(self, depth: np.ndarray) -> np.ndarray:
        disparity = self._camera.depth_to_disparity(depth)
        disparity[disparity <= 0] = np.nan
        return disparity + np.float32(self._camera.cx_offset_px)


def raw_disparity(message: Any) -> np.ndarray:
    """The (H, W) float32 pixels of a stereo_msgs/DisparityImage, NaN below its min_disparity."""
    disparity = _pixels(message.image, 'f4').astype(np.float32)
    disparity[~(disparity >= message.min_disparity)] = np.nan
    return disparity


def depth_m(message: Any) -> np.ndarray:
    """The (H, W) float32 metres of a depth image, NaN where there is none.

    Raises:
        TruthError: Neither 32FC1 (metres) nor 16UC1 (millimetres), or a compressed one that is
            not PNG within compressedDepth.
    """
    if message.__msgtype__ == COMPRESSED_IMAGE:
        depth = _compressed_depth_m(message)
    elif message.encoding == '32FC1':
        depth = _pixels(message, 'f4').astype(np.float32)
    elif message.encoding in ('16UC1', 'mono16'):
        depth = _pixels(message, 'u2').astype(np.float32) / np.float32(1000)
    else:
        raise TruthError(
            f'A depth image in {message.encoding}: expected 32FC1 (metres) or 16UC1 (millimetres).'
        )
    return np.where(np.isfinite(depth) & (depth > 0), depth, np.nan).astype(np.float32)


def _compressed_depth_m(message: Any) -> np.ndarray:
    """The (H, W) float32 metres of what image_transport's compressed_depth plugin wrote.

    16UC1 is a PNG of millimetres. 32FC1 is a PNG of inverse depth q = A / Z + B, whose A and B
    stand before it.
    """
    content = bytes(message.data)
    size = _COMPRESSED_DEPTH_HEADER.size
    encoding = message.format.partition(';')[0].strip()
    if 'compressedDepth' not in message.format or encoding not in ('16UC1', '32FC1'):
        raise TruthError(
            f'A compressed image in {message.format!r} is no depth: expected 16UC1 or 32FC1 as '
            'compressedDepth.'
        )
    picture = np.frombuffer(content[size:], np.uint8)
    stored = cv2.imdecode(picture, cv2.IMREAD_UNCHANGED) if picture.size else None
    if stored is None or stored.dtype != np.uint16 or stored.ndim != 2:
        raise TruthError(
            f'A depth image in {message.format!r} holds no 16-bit PNG: record it with the png '
            'format of compressedDepth, or uncompressed.'
        )
    values = stored.astype(np.float32)
    if encoding == '16UC1':
        return values / np.float32(1000)
    _, quantum_a, quantum_b = _COMPRESSED_DEPTH_HEADER.unpack(content[:size])
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(stored > 0, np.float32(quantum_a) / (values - np.float32(quantum_b)), 0)


def read_extrinsics(path: str | Path) -> np.ndarray:
    """The (4, 4) matrix of a file that takes points [m] of a LiDAR into the left optical frame.

    The rectified one. The file holds the 12 or 16 numbers of a 3x4 or 4x4 matrix, row by row, or
    a line `Tr: ` with them, as KITTI's calib.txt does.

    Raises:
        TruthError: It cannot be read, or holds something else.
    """
    expected = 'expected the 12 or 16 numbers of a matrix [R t], or a line "Tr: " with 12'
    try:
        content = Path(path).read_text(encoding='utf-8')
        lines = [line.partition(':')[2] for line in content.splitlines() if line[:2] == 'Tr']
        numbers = np.array((lines[0] if lines else content).replace(',', ' ').split(), float)
    except (OSError, ValueError) as error:
        raise TruthError(f'{path} holds no extrinsics ({error}): {expected}.') from error
    if numbers.size not in (12, 16):
        raise TruthError(f'{path} holds {numbers.size} numbers: {expected}.')
    matrix = np.eye(4)
    matrix[:3] = numbers[:12].reshape(3, 4)
    rotation = matrix[:3, :3]
    apart = np.abs(rotation @ rotation.T - np.eye(3)).max()
    if not (apart < _ROTATION_TOLERANCE and np.linalg.det(rotation) > 0):
        raise TruthError(f'{path}: the first three columns are no rotation: {expected}.')
    return matrix


def cloud_xyz(message: Any) -> np.ndarray:
    """The finite points of a PointCloud2, float64 (N, 3) in metres.

    Raises:
        TruthError: It has no x, y and z.
    """
    fields = {field.name: field for field in message.fields}
    missing = [name for name in 'xyz' if name not in fields]
    if missing:
        raise TruthError(f'The point cloud has no {", ".join(missing)}; it has {sorted(fields)}.')
    order = '>' if message.is_bigendian else '<'
    layout = np.dtype(
        {
            'names': list('xyz'),
            'formats': [order + _POINT_FIELDS[fields[name].datatype] for name in 'xyz'],
            'offsets': [fields[name].offset for name in 'xyz'],
            'itemsize': message.point_step,
        }
    )
    count = message.width * message.height
    points = np.frombuffer(bytes(message.data), layout, count)
    xyz = np.stack([points[name].astype(np.float64) for name in 'xyz'], axis=1)
    return xyz[np.isfinite(xyz).all(axis=1)]


def project_depth(points_m: np.ndarray, camera: StereoCamera) -> np.ndarray:
    """Depth of points (N, 3) in the left optical frame, float32 (H, W) m, the nearest one wins."""
    points = points_m[points_m[:, 2] > 0.1]
    columns = np.rint(camera.fx * points[:, 0] / points[:, 2] + camera.cx_left).astype(int)
    rows = np.rint(camera.fy * points[:, 1] / points[:, 2] + camera.cy).astype(int)
    seen = (columns >= 0) & (columns < camera.width) & (rows >= 0) & (rows < camera.height)
    depth = np.full((camera.height, camera.width), np.inf, np.float32)
    np.minimum.at(depth, (rows[seen], columns[seen]), points[seen, 2].astype(np.float32))
    depth[np.isinf(depth)] = np.nan
    return depth


def header_stamp_ns(header: Any) -> int:
    """Nanoseconds of a message header."""
    return header.stamp.sec * 10**9 + header.stamp.nanosec


def _pixels(image: Any, dtype: str) -> np.ndarray:
    samples = np.dtype(f'{">" if image.is_bigendian else "<"}{dtype}')
    rows = np.frombuffer(bytes(image.data), np.uint8).reshape(image.height, image.step)
    return rows[:, : image.width * samples.itemsize].copy().view(samples)


def _first(bag: Bag, topic: str) -> Any:
    return next(message for _, _, message in bag.decoded([topic]))


class _Frames:
    """How the frame of a LiDAR lies to the camera's, from a bag's /tf_static and, if need be, /tf.

    Args:
        bag: The open bag.
        source, target: Frames of the LiDAR and of the camera.

    Attributes:
        moving: Topics whose messages `update` wants; none where /tf_static says it all.
        to_camera: (4, 4), takes points of the LiDAR into the camera's frame at this time; before
            the first update as the bag's first transforms say.

    Raises:
        TruthError: Neither topic connects them.
    """

    def __init__(self, bag: Bag, source: str, target: str) -> None:
        self._source, self._target = source.strip('/'), target.strip('/')
        self._edges: dict[str, dict[str, np.ndarray]] = {}
        self.moving: tuple[str, ...] = ()
        for _, _, message in bag.decoded(['/tf_static']):
            self._add(message)
        found = self._path()
        if found is None:
            self.moving = ('/tf',)
            for _, _, message in bag.decoded(self.moving):
                self._add(message)
                if (found := self._path()) is not None:
                    break
        if found is None:
            raise TruthError(
                f'Neither /tf_static nor /tf connects {source} to {target}; they know '
                f'{sorted(self._edges)}. Record them, or give a file of extrinsics.'
            )
        self.to_camera = found

    def update(self, message: Any) -> None:
        """Take the transforms of one more message of /tf."""
        self._add(message)
        found = self._path()
        assert found is not None, 'frames that were connected once stay so'
        self.to_camera = found

    def _add(self, message: Any) -> None:
        for link in message.transforms:
            parent, child = link.header.frame_id.strip('/'), link.child_frame_id.strip('/')
            to_parent = _matrix(link.transform)
            self._edges.setdefault(child, {})[parent] = to_parent
            self._edges.setdefault(parent, {})[child] = np.linalg.inv(to_parent)

    def _path(self) -> np.ndarray | None:
        found = {self._source: np.eye(4)}
        frontier = [self._source]
        while frontier:
            frame = frontier.pop()
            for neighbour, step in self._edges.get(frame, {}).items():
                if neighbour not in found:
                    found[neighbour] = step @ found[frame]
                    frontier.append(neighbour)
        return found.get(self._target)


def _require_size(values: np.ndarray, camera: StereoCamera, where: str) -> None:
    expected = (camera.height, camera.width)
    if values.shape != expected:
        raise TruthError(
            f'{where} is {values.shape[1]}x{values.shape[0]} and the left image '
            f'{expected[1]}x{expected[0]}: truth must be in the geometry of the left image.'
        )


def _matrix(transform: Any) -> np.ndarray:
    q, t = transform.rotation, transform.translation
    x, y, z, w = np.array([q.x, q.y, q.z, q.w]) / np.linalg.norm([q.x, q.y, q.z, q.w])
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = [t.x, t.y, t.z]
    return matrix
