# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A robot's own pictures as training pairs: a bag unpacked once into a plain folder.

A bag can only be read in order, while training asks for any pair at any time, so the pairs are
written as OUT/left/STAMP.png and OUT/right/STAMP.png, with the calibration beside them. They
come without truth: a teacher writes OUT/disparity/STAMP.pfm, and from then on the folder is a
data set like any other (`stereo_kd_training.datasets.folder`). In a recipe, whose teacher is to
answer them:

    - {name: bag, root: drive, options: {out: drive_pairs, min_interval_s: 0.5}}
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np

from stereo_kd_ros.bag import BagError, StereoBag, StereoTopics
from stereo_kd_training.datasets.base import DatasetError, StereoDataset, not_found
from stereo_kd_training.datasets.folder import stereo_folder


def robot_bag(
    root: str | Path,
    out: str | Path | None = None,
    min_interval_s: float = 0.0,
    max_pairs: int | None = None,
) -> StereoDataset:
    """The pairs of one bag, which are unpacked when it is opened for the first time.

    Args:
        root: the bag.
        out: folder to unpack it into; beside the bag, as NAME_pairs, without.
        min_interval_s, max_pairs: as of `unpack_bag`.

    Raises:
        DatasetError: no readable bag, no stereo topics or pairs in it, or `out` holds other pairs.
    """
    root = Path(root)
    out = root.with_name(f'{root.name}_pairs') if out is None else Path(out)
    asked = {'bag': root.name, 'min_interval_s': min_interval_s, 'max_pairs': max_pairs}
    finished = out / 'unpacked.json'
    if finished.is_file():
        before = json.loads(finished.read_text(encoding='utf-8'))
        if before != asked:
            raise DatasetError(
                f'{out} holds pairs that were unpacked otherwise, {before}; asked for {asked}. '
                'Give another folder as out, or delete this one'
            )
        return stereo_folder(out)
    try:
        pairs = unpack_bag(root, out, None, min_interval_s, max_pairs)
    except BagError as error:
        looked_for = ['metadata.yaml and *.mcap or *.db3 (ROS 2)', '*.bag (ROS 1)']
        raise not_found(root, f'a bag of stereo pictures ({error})', looked_for) from error
    finished.write_text(json.dumps(asked) + '\n', encoding='utf-8')
    return pairs


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
    # Processes that train together unpack the same bag at the same time.
    partial = path.with_suffix(f'.{os.getpid()}.partial')
    partial.write_bytes(content.tobytes())
    partial.replace(path)
