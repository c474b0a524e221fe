# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Data sets by name, so that a recipe can say which ones it wants.

- {name: kitti2015, root: /data/kitti, occluded: false}
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stereo_kd_training.datasets.base import DatasetError, StereoDataset
from stereo_kd_training.datasets.eth3d import eth3d
from stereo_kd_training.datasets.folder import stereo_folder
from stereo_kd_training.datasets.kitti import kitti2012, kitti2015
from stereo_kd_training.datasets.middlebury import middlebury, middlebury_eval3
from stereo_kd_training.datasets.robot_bag import robot_bag
from stereo_kd_training.datasets.scene_flow import driving, flying_things, monkaa, scene_flow

OPENERS: dict[str, Callable[..., StereoDataset]] = {
    'bag': robot_bag,
    'driving': driving,
    'eth3d': eth3d,
    'flyingthings3d': flying_things,
    'folder': stereo_folder,
    'kitti2012': kitti2012,
    'kitti2015': kitti2015,
    'middlebury': middlebury,
    'middlebury-eval3': middlebury_eval3,
    'monkaa': monkaa,
    'sceneflow': scene_flow,
}


def open_dataset(name: str, root: str | Path, **options: Any) -> StereoDataset:
    """Open the set `name` below `root`; `options` are those of its function in `OPENERS`.

    Raises:
        DatasetError: unknown name or option, naming the nearest known one, or a wrong root.
    """
    if name not in OPENERS:
        raise DatasetError(f'unknown data set {name!r}{_hint(name, list(OPENERS))}')
    opener = OPENERS[name]
    known = [key for key in inspect.signature(opener).parameters if key != 'root']
    for key in options:
        if key not in known:
            raise DatasetError(f'data set {name!r} has no option {key!r}{_hint(key, known)}')
    try:
        return opener(root, **options)
    except TypeError as error:
        raise DatasetError(f'data set {name!r}: {error}; its options: {known}') from error


def _hint(word: str, known: list[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f', did you mean {near[0]!r}?' if near else f'; known: {", ".join(known)}'
