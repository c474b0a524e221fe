# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot's own pictures as training pairs: a bag unpacked once into a plain folder.

A bag can only be read in order, while training asks for any pair at any time, so the pairs are
written as OUT/left/STAMP.png and OUT/right/STAMP.png, with the calibration beside them. They
come without truth: a teacher writes OUT/disparity/STAMP.pfm, and from then on the folder is a
data set like any other (`stereo_kd_training.datasets.folder`).
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from stereo_kd_ros.bag import StereoBag, StereoTopics
from stereo_kd_training.datasets.base import DatasetError, StereoDataset
from stereo_kd_training.datasets.folder import stereo_folder


def unpack_bag(
    bag: str | Path,
    out: str | Path,
    topics: StereoTopics | None = None,
    min_interval_s: float = 0.0,
    max_pairs: int | None = None,
) -> StereoDataset:
    """Write the bag's rectified pairs into `out` and open them as a set without truth.

    Pairs that are there already stay, so an interrupted unpacking goes on where it ended.

    Args:
        bag: a ROS 1 or ROS 2 bag.
        out: folder to write to.
        topics: found by their types and names where not given.
        min_interval_s: skip pairs that follow the last one sooner; a robot that stands
            still gives thousands of the same picture.
        max_pairs: stop after so many.

    Raises:
        BagError: no readable bag, or no stereo topics in it.
        DatasetError: no pairs in it.
    """
    out = Path(out)
    last_ns: int | None = None
    count = 0
    with StereoBag(bag, topics) as opened:
        for side in ('left', 'right'):
            (out / side).mkdir(parents=True, exist_ok=True)
        calibration = json.dumps(asdict(opened.camera), indent=1)
        (out / 'camera.json').write_text(calibration + '\n', encoding='utf-8')
        for frame in opened.pairs():
            if last_ns is not None and 0 <= frame.stamp_ns - last_ns < min_interval_s * 1e9:
                continue
            last_ns = frame.stamp_ns
            for side, image in (('left', frame.left), ('right', frame.right)):
                write_once(out / side / f'{frame.stamp_ns:019d}.png', image)
            count += 1
            if max_pairs is not None and count >= max_pairs:
                break
    if not count:
        raise DatasetError(f'{bag}: no stereo pair in it')
    return stereo_folder(out)


def write_once(path: Path, image: np.ndarray) -> None:
    """Write an RGB picture (H, W, 3) as PNG, whole, unless the file is there already."""
    if path.exists():
        return
    _, content = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    partial = path.with_suffix('.partial')
    partial.write_bytes(content.tobytes())
    partial.replace(path)
