# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: a generated drive with exact truth, and how a recording compares with it.

Nothing here needs ROS: the drive is a rosbag2 with one PFM of truth per stamp beside it, and the
recording is a rosbag2 of what the node published. `stereo_kd_ros.commands.demo` lies between them.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from stereo_kd_ros.bag import Bag, StereoBag, StereoBagWriter, StereoTopics
from stereo_kd_ros.baselines import Sgbm
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.disparity_io import read_pfm, write_pfm
from stereo_kd_ros.metrics import (
    DisparityMetrics,
    disparity_metrics,
    fill_holes_row_background,
)
from stereo_kd_ros.procedural import render_sequence
from stereo_kd_ros.truth import header_stamp_ns, raw_disparity
from stereo_kd_ros.visualize import colorize_disparity, picture_strip

DEMO_CAMERA = StereoCamera.from_intrinsics(fx=450.0, baseline_m=0.12, width=640, height=480)
DEMO_TOPICS = StereoTopics.in_namespace('/stereo')
SCHEMA = 'stereo_kd_ros/demo/1'

_FIRST_STAMP_NS = 10**9
_PICTURED_FRAMES = 3


@dataclass(frozen=True)
class ComparedFrame:
    """One frame that came back: RGB uint8 (H, W, 3) and raw disparities (H, W) in pixels.

    `truth` is None for a bag without ground truth; `sgbm` keeps its holes as NaN.
    """

    index: int
    left: np.ndarray
    truth: np.ndarray | None
    ours: np.ndarray
    sgbm: np.ndarray
    sgbm_dense: np.ndarray
    sgbm_ms: float


@dataclass
class Score:
    """Errors of two matchers over all frames that came back, pooled over pixels."""

    ours: list[DisparityMetrics] = field(default_factory=list)
    sgbm: list[DisparityMetrics] = field(default_factory=list)
    agreement: list[DisparityMetrics] = field(default_factory=list)
    sgbm_ms: list[float] = field(default_factory=list)
    valid_fraction: list[float] = field(default_factory=list)

    def add(self, frame: ComparedFrame) -> None:
        """Count one frame."""
        if frame.truth is not None:
            self.ours.append(disparity_metrics(frame.ours, frame.truth))
            self.sgbm.append(disparity_metrics(frame.sgbm_dense, frame.truth))
        self.agreement.append(disparity_metrics(frame.ours, frame.sgbm))
        self.sgbm_ms.append(frame.sgbm_ms)
        self.valid_fraction.append(float(np.isfinite(frame.ours).mean()))


def write_sequence(
    folder: Path,
    frames: int,
    rate_hz: float,
    *,
    seed: int = 7,
    camera: StereoCamera = DEMO_CAMERA,
    storage: str = 'sqlite3',
) -> Iterator[int]:
    """Write a procedural drive as `folder/bag` and its truth as `folder/truth/<stamp>.pfm`.

    Yields:
        The stamp in ns of each frame when it is written.
    """
    truth = folder / 'truth'
    truth.mkdir(parents=True, exist_ok=True)
    with StereoBagWriter(folder / 'bag', storage, topics=DEMO_TOPICS) as bag:
        for index, sample in enumerate(render_sequence(seed, frames, camera)):
            stamp_ns = _FIRST_STAMP_NS + round(index * 1e9 / rate_hz)
            bag.write_pair(stamp_ns, sample.left, sample.right, camera)
            write_pfm(truth / f'{stamp_ns}.pfm', sample.disparity)
            yield stamp_ns


def compare(
    bag_path: Path,
    recording_path: Path,
    disparity_topic: str,
    recorded_stamps: Mapping[int, int],
    truth_folder: Path | None = None,
) -> Iterator[ComparedFrame]:
    """Go through the recorded disparities beside the images they were computed from.

    Args:
        bag_path: What was played.
        recording_path: What came back.
        disparity_topic: Topic of the stereo_msgs/DisparityImage messages in the recording.
        recorded_stamps: From the stamp a frame was published with to its stamp in the bag.
        truth_folder: Holds `<stamp>.pfm` for the frames whose truth is known.

    Raises:
        BagError: One of the bags cannot be read.
    """
    sgbm = Sgbm()
    with StereoBag(bag_path) as bag, Bag(recording_path) as recording:
        cx_offset_px = bag.camera.cx_offset_px
        frames = enumerate(bag.pairs())
        for _, _, message in recording.decoded([disparity_topic]):
            stamp_ns = recorded_stamps.get(header_stamp_ns(message.header))
            if stamp_ns is None:
                continue
            index, frame = next(item for item in frames if item[1].stamp_ns == stamp_ns)
            truth_file = truth_folder / f'{stamp_ns}.pfm' if truth_folder else None
            started = time.perf_counter()
            matched = sgbm.compute(frame.left, frame.right)
            sgbm_ms = (time.perf_counter() - started) * 1e3
            yield ComparedFrame(
                index=index,
                left=frame.left,
                truth=read_pfm(truth_file) if truth_file and truth_file.exists() else None,
                ours=raw_disparity(message) + np.float32(cx_offset_px),
                sgbm=matched,
                sgbm_dense=fill_holes_row_background(matched),
                sgbm_ms=sgbm_ms,
            )


def pictured(count: int) -> list[int]:
    """Which of `count` returned frames go into the strip: first, middle, last."""
    return sorted({round(place) for place in np.linspace(0, count - 1, _PICTURED_FRAMES)})


def strip_row(frame: ComparedFrame, model_name: str) -> np.ndarray:
    """Left picture, truth, SGBM and ours, labelled, as (H, W, 3) RGB uint8."""
    reference = frame.truth if frame.truth is not None else frame.sgbm
    known = reference[np.isfinite(reference) & (reference > 0)]
    max_px = float(np.percentile(known, 99)) if known.size else 64.0
    pictures, labels = [frame.left], [f'left, frame {frame.index}']
    if frame.truth is not None:
        pictures.append(colorize_disparity(frame.truth, max_px))
        labels.append(f'ground truth, 0 to {max_px:.0f} px')
    for name, disparity, dense in (
        ('SGBM 3WAY', frame.sgbm, frame.sgbm_dense),
        (model_name, frame.ours, frame.ours),
    ):
        pictures.append(colorize_disparity(disparity, max_px))
        if frame.truth is not None:
            error = disparity_metrics(dense, frame.truth)
            labels.append(f'{name}: EPE {error.epe_px:.2f} px, bad-3 {error.bad3:.1f} %')
        else:
            labels.append(f'{name}, 0 to {max_px:.0f} px')
    return picture_strip(pictures, labels)


def write_strip(path: Path, rows: list[np.ndarray]) -> None:
    """Write rows of pictures below each other as a PNG."""
    picture = cv2.cvtColor(np.concatenate(rows, axis=0), cv2.COLOR_RGB2BGR)
    path.write_bytes(cv2.imencode('.png', picture)[1].tobytes())


def pooled(parts: list[DisparityMetrics]) -> dict[str, float] | None:
    """EPE and bad-3 over all pixels of all frames; None without any."""
    if not any(part.pixels for part in parts):
        return None
    metrics = DisparityMetrics.pooled(parts)
    return {
        'epe_px': round(metrics.epe_px, 4),
        'bad3': round(metrics.bad3, 3),
        'd1': round(metrics.d1, 3),
    }
