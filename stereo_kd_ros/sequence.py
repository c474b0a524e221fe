# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Rectified stereo sequences and calibration files as public data sets lay them out.

`read_camera` understands a calibration file by its content:

=================== ==========================================================================
KITTI               text, rows of 12 numbers: P0..P3, P_rect_00.., or two bare rows P_left, P_right
Middlebury          text, `cam0=[f 0 cx; 0 f cy; 0 0 1]`, `cam1=[..]`, `baseline=` in millimetres
JSON                `P_left` and `P_right` (3x4), or `fx` and `baseline_m` (or `baseline_meters`)
                    with `cx` (or `cx0` and `cx1`) and `cy`
=================== ==========================================================================

`ImageSequence` pairs the files of two folders by name and gives each pair its stamp: the file name
where that is a stamp in nanoseconds (EuRoC), else KITTI's times.txt, else a fixed rate.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from stereo_kd_ros.camera import StereoCamera

_IMAGE_SUFFIXES = frozenset({'.png', '.jpg', '.jpeg', '.bmp', '.pgm', '.ppm', '.tif', '.tiff'})

# A sequence without absolute time begins here: stamp 0 means "no time" in ROS.
_FIRST_STAMP_NS = 10**9

# Nanoseconds since 1970 have 19 digits; frame numbers never have as many as 16.
_STAMP_NAME = re.compile(r'\d{16,19}$')

_NUMBER = r'[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?'


class SequenceError(ValueError):
    """A folder of frames or a calibration file is not what it should be."""


@dataclass(frozen=True)
class SequenceFrame:
    """One pair of image files and its stamp."""

    stamp_ns: int
    left: Path
    right: Path


@dataclass(frozen=True)
class ImageSequence:
    """The pairs of a left and a right folder, in time order."""

    frames: tuple[SequenceFrame, ...]
    times_from: str

    @classmethod
    def from_folders(
        cls, left: str | Path, right: str | Path, rate_hz: float | None = None
    ) -> ImageSequence:
        """Pair two folders.

        Args:
            left: Folder of left images.
            right: Folder of right images, under the same file names.
            rate_hz: Ignore what the files say of time and use this rate; 10 Hz where they say
                nothing.

        Raises:
            SequenceError: A folder is missing, holds no image, or lacks the other's files.
        """
        names_left, names_right = _images_by_stem(Path(left)), _images_by_stem(Path(right))
        alone = sorted(names_left.keys() ^ names_right.keys())
        if alone:
            side = 'right' if alone[0] in names_left else 'left'
            raise SequenceError(
                f'{len(alone)} of the frames exist for one eye only; the first is {alone[0]}, '
                f'missing on the {side}. The two folders must hold the same file names.'
            )
        stems = sorted(names_left)
        stamps, times_from = _stamps(stems, Path(left), rate_hz)
        return cls(
            tuple(
                SequenceFrame(stamp_ns, names_left[stem], names_right[stem])
                for stamp_ns, stem in sorted(zip(stamps, stems))
            ),
            times_from,
        )

    def __len__(self) -> int:
        """How many pairs there are."""
        return len(self.frames)

    def images(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Stamps in ns with the two images, read one pair at a time.

        Raises:
            SequenceError: A file is not a picture.
        """
        for frame in self.frames:
            yield frame.stamp_ns, read_picture(frame.left), read_picture(frame.right)


def read_picture(path: str | Path, *, colour: bool = False) -> np.ndarray:
    """Read a picture as uint8, (H, W, 3) RGB or, for a grey file, (H, W).

    Args:
        path: Any file that OpenCV reads; 16-bit ones are brought to 8 bits.
        colour: Give grey files three channels too.

    Raises:
        SequenceError: No such file, or not a picture.
    """
    path = Path(path)
    if not path.is_file():
        wrong = 'a folder, expected a picture' if path.is_dir() else 'no such file; check the path'
        raise SequenceError(f'{path}: {wrong}.')
    flags = cv2.IMREAD_COLOR if colour else cv2.IMREAD_ANYCOLOR
    encoded = np.frombuffer(path.read_bytes(), np.uint8)
    picture = cv2.imdecode(encoded, flags) if encoded.size else None
    if picture is None:
        raise SequenceError(
            f'{path}: not a picture that OpenCV can decode; expected PNG, JPEG, PGM, TIFF or the '
            'like, and the whole of it.'
        )
    return picture if picture.ndim == 2 else cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def read_camera(
    path: str | Path, width: int, height: int, *, kitti_cameras: tuple[int, int] = (0, 1)
) -> StereoCamera:
    """Read the calibration of a rectified pair.

    Args:
        path: One of the forms that the module lists.
        width: Width of the images in pixels.
        height: Height of the images in pixels.
        kitti_cameras: Which of KITTI's P0..P3 are left and right: (0, 1) grey, (2, 3) colour.

    Raises:
        SequenceError: No such file, an unknown form, or for images of another size.
        CalibrationError: The numbers are not those of a rectified pair.
    """
    path = Path(path)
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SequenceError(f'{path}: cannot be read as a calibration file: {error}') from error
    if text.lstrip().startswith('{'):
        camera = _camera_from_json(path, text, width, height)
    elif 'cam0=' in text:
        camera = _camera_from_middlebury(path, text, width, height)
    else:
        camera = _camera_from_rows(path, text, width, height, kitti_cameras)
    return camera


def _camera_from_json(path: Path, text: str, width: int, height: int) -> StereoCamera:
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise SequenceError(f'{path}: not valid JSON: {error}') from error
    _check_size(path, values.get('width', width), values.get('height', height), width, height)
    if 'P_left' in values and 'P_right' in values:
        return StereoCamera.from_projection(
            np.array(values['P_left'], float).reshape(3, 4),
            np.array(values['P_right'], float).reshape(3, 4),
            width,
            height,
        )
    baseline_m = values.get('baseline_m', values.get('baseline_meters'))
    if 'fx' not in values or baseline_m is None:
        raise SequenceError(
            f'{path}: expected P_left and P_right, or fx and baseline_m; found {sorted(values)}.'
        )
    fx = float(values['fx'])
    fy = float(values.get('fy', fx))
    cx_left = float(values.get('cx0', values.get('cx', (width - 1) / 2)))
    cx_right = float(values.get('cx1', cx_left))
    cy = float(values.get('cy', (height - 1) / 2))
    return _camera(fx, fy, cx_left, cx_right, cy, float(baseline_m), width, height)


def _camera_from_middlebury(path: Path, text: str, width: int, height: int) -> StereoCamera:
    entries = dict(line.split('=', 1) for line in text.splitlines() if '=' in line)
    missing = [key for key in ('cam0', 'cam1', 'baseline') if key not in entries]
    if missing:
        raise SequenceError(f'{path}: a Middlebury calibration without {", ".join(missing)}.')
    _check_size(path, entries.get('width', width), entries.get('height', height), width, height)
    left, right = (
        [float(number) for number in re.findall(_NUMBER, entries[key])] for key in ('cam0', 'cam1')
    )
    if len(left) != 9 or len(right) != 9:
        raise SequenceError(f'{path}: cam0 and cam1 must be 3x3 matrices.')
    baseline_m = float(entries['baseline']) / 1000.0
    return _camera(left[0], left[4], left[2], right[2], left[5], baseline_m, width, height)


def _camera_from_rows(
    path: Path, text: str, width: int, height: int, kitti_cameras: tuple[int, int]
) -> StereoCamera:
    bare: list[np.ndarray] = []
    named: dict[int, np.ndarray] = {}
    for line in text.splitlines():
        label, _, rest = line.rpartition(':')
        numbers = [float(number) for number in re.findall(_NUMBER, rest)]
        if len(numbers) != 12:
            continue
        projection = np.array(numbers).reshape(3, 4)
        camera_number = re.fullmatch(r'P(?:_rect_0)?(\d)', label.strip())
        if camera_number:
            named[int(camera_number[1])] = projection
        elif not label:
            bare.append(projection)
    if all(number in named for number in kitti_cameras):
        pair = [named[number] for number in kitti_cameras]
    elif len(bare) == 2:
        pair = bare
    else:
        raise SequenceError(
            f'{path}: no calibration in it that is known: expected JSON, a Middlebury calib.txt, '
            'or KITTI rows of 12 numbers (P0: and P1:, or two bare rows for left and right).'
        )
    return StereoCamera.from_projection(pair[0], pair[1], width, height)


def _camera(
    fx: float,
    fy: float,
    cx_left: float,
    cx_right: float,
    cy: float,
    baseline_m: float,
    width: int,
    height: int,
) -> StereoCamera:
    left = np.array([[fx, 0, cx_left, 0], [0, fy, cy, 0], [0, 0, 1, 0]], float)
    right = np.array([[fx, 0, cx_right, -fx * baseline_m], [0, fy, cy, 0], [0, 0, 1, 0]], float)
    return StereoCamera.from_projection(left, right, width, height)


def _check_size(
    path: Path, found_width: float, found_height: float, width: int, height: int
) -> None:
    if (int(found_width), int(found_height)) != (width, height):
        raise SequenceError(
            f'{path} is the calibration of {int(found_width)}x{int(found_height)} images, '
            f'but these are {width}x{height}.'
        )


def _images_by_stem(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise SequenceError(f'{folder}: no such folder.')
    images = {
        path.stem: path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in _IMAGE_SUFFIXES
    }
    if not images:
        raise SequenceError(
            f'{folder}: no picture in it; expected files such as 000000.png '
            'or 1403715273262142976.png.'
        )
    return images


def _stamps(stems: list[str], left: Path, rate_hz: float | None) -> tuple[list[int], str]:
    if rate_hz is not None and not rate_hz > 0:
        raise SequenceError(f'A rate of {rate_hz} Hz: expected a positive number.')
    if rate_hz is None and all(_STAMP_NAME.match(stem) for stem in stems):
        return [int(stem) for stem in stems], 'file names'
    times = None if rate_hz else _times_file(left)
    if times is not None:
        seconds = [float(line) for line in times.read_text().split()]
        if len(seconds) < len(stems):
            raise SequenceError(
                f'{times} has {len(seconds)} times for {len(stems)} frames: give a rate instead.'
            )
        return [
            _FIRST_STAMP_NS + round(second * 1e9) for second in seconds[: len(stems)]
        ], times.name
    period_ns = round(1e9 / (rate_hz or 10.0))
    return [
        _FIRST_STAMP_NS + index * period_ns for index in range(len(stems))
    ], f'{rate_hz or 10.0:g} Hz'


def _times_file(left: Path) -> Path | None:
    for folder in (left, left.parent):
        if (folder / 'times.txt').is_file():
            return folder / 'times.txt'
    return None
