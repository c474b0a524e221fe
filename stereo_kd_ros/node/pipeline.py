# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One pair of messages to one depth frame: decode, check, infer, mask, triangulate.

No node, no topic, no clock: whatever is wrong with a pair ends in `PairDropped`, which names the
cause that is counted and the reason that is logged.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from stereo_kd_ros.camera import CalibrationError, StereoCamera
from stereo_kd_ros.engine import EngineError, StereoEngine
from stereo_kd_ros.image import ImageError, decode_compressed, decode_image
from stereo_kd_ros.node.parameters import Settings


class PairDropped(RuntimeError):
    """A pair from which no depth can be made."""

    def __init__(self, cause: str, reason: str) -> None:
        super().__init__(reason)
        self.cause = cause


@dataclass(frozen=True)
class DepthFrame:
    """What one pair gives; all maps have the size of the left image."""

    camera: StereoCamera
    left_rgb: np.ndarray  # (H, W, 3) uint8
    right_rgb: np.ndarray  # the same
    disparity_px: np.ndarray  # (H, W) float32, cx offset taken out, NaN invalid
    confidence: np.ndarray  # (H, W) float32 in [0, 1]
    depth_m: np.ndarray | None  # (H, W) float32, REP 117; None when nobody wants it
    max_disparity_px: float
    valid_fraction: float
    decode_ms: float
    inference_ms: float
    depth_ms: float


def decode(message: Any, side: str) -> np.ndarray:
    """Returns an Image or CompressedImage as `(H, W, 3)` uint8 RGB.

    Raises:
        PairDropped: the message does not hold the image it announces.
    """
    compressed = hasattr(message, 'format')
    try:
        return decode_compressed(message) if compressed else decode_image(message)
    except ImageError as error:
        raise PairDropped('image', f'{side} image: {error}') from error


def stereo_camera(left_info: Any, right_info: Any) -> StereoCamera:
    """Returns the calibration of two camera_info messages.

    Raises:
        PairDropped: they do not describe a rectified stereo pair.
    """
    try:
        return StereoCamera.from_camera_info(left_info, right_info)
    except CalibrationError as error:
        raise PairDropped('calibration', f'camera_info: {error}') from error


def check_sizes(left: np.ndarray, right: np.ndarray, camera: StereoCamera) -> None:
    """Raises PairDropped unless both images have the size that camera_info describes."""
    (height, width), (right_height, right_width) = left.shape[:2], right.shape[:2]
    if (height, width) != (right_height, right_width):
        raise PairDropped(
            'size_mismatch',
            f'left image is {width}x{height} but right image is {right_width}x{right_height}; '
            'both eyes must deliver the same size',
        )
    try:
        camera.require_size(width, height, 'the left image')
    except CalibrationError as error:
        raise PairDropped('size_mismatch', str(error)) from error


def mask_disparity(
    raw_px: np.ndarray, confidence: np.ndarray, camera: StereoCamera, settings: Settings
) -> np.ndarray:
    """Returns the `(H, W)` disparity without the cx offset, NaN where it is not to be used."""
    disparity = camera.disparity_from_pixels(raw_px)
    valid = (disparity > 0) & (disparity >= settings.min_disparity)
    if settings.max_disparity:
        valid &= disparity <= settings.max_disparity
    if settings.confidence_threshold:
        valid &= confidence >= settings.confidence_threshold
    if not valid.all():
        # A store under a mask takes NumPy several times as long.
        kept = np.full_like(disparity, np.nan)
        disparity = cv2.copyTo(disparity, valid.view(np.uint8), kept)
    if settings.speckle_size:
        disparity = without_speckles(disparity, settings.speckle_size, settings.speckle_range)
    return disparity


def without_speckles(disparity_px: np.ndarray, size_px: int, range_px: float) -> np.ndarray:
    """Returns the disparity with NaN on connected patches of at most `size_px` pixels."""
    steps_per_px = 16
    fixed = np.nan_to_num(disparity_px * steps_per_px, nan=-steps_per_px, posinf=0, neginf=0)
    fixed = np.clip(fixed, -steps_per_px, np.iinfo(np.int16).max).astype(np.int16)
    cv2.filterSpeckles(fixed, -steps_per_px, size_px, range_px * steps_per_px)
    return np.where(fixed < 0, np.float32(np.nan), disparity_px)


def process_pair(
    left_message: Any,
    right_message: Any,
    left_info: Any,
    right_info: Any,
    engine: StereoEngine,
    settings: Settings,
    with_depth: bool = True,
) -> DepthFrame:
    """Turns a matched pair into a depth frame.

    Raises:
        PairDropped: with the cause and the reason, whatever was wrong.
    """
    started = time.perf_counter()
    camera = stereo_camera(left_info, right_info)
    left, right = decode(left_message, 'left'), decode(right_message, 'right')
    check_sizes(left, right, camera)
    decoded = time.perf_counter()
    try:
        result = engine.infer(left, right)
    except EngineError as error:
        raise PairDropped('inference', f'inference: {error}') from error
    inferred = time.perf_counter()
    disparity = mask_disparity(result.disparity, result.confidence, camera, settings)
    depth = None
    if with_depth:
        depth = camera.disparity_to_depth(disparity, settings.min_depth, settings.max_depth)
    finished = time.perf_counter()
    return DepthFrame(
        camera=camera,
        left_rgb=left,
        right_rgb=right,
        disparity_px=disparity,
        confidence=result.confidence,
        depth_m=depth,
        max_disparity_px=_max_disparity(engine, camera, settings),
        valid_fraction=1.0 - float(np.count_nonzero(np.isnan(disparity))) / disparity.size,
        decode_ms=(decoded - started) * 1e3,
        inference_ms=(inferred - decoded) * 1e3,
        depth_ms=(finished - inferred) * 1e3,
    )


def _max_disparity(engine: StereoEngine, camera: StereoCamera, settings: Settings) -> float:
    """The largest disparity of this frame: by setting, else by model, else the image width."""
    if settings.max_disparity:
        return settings.max_disparity
    manifest = engine.manifest
    range_px = manifest.max_disparity_px if manifest is not None else camera.width
    return range_px - camera.cx_offset_px
