# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An adaptation of seconds: a rendered drive, a block matcher that teaches, a tiny student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tiny_kestrel import TINY
from tiny_models import write_block_matcher

from stereo_kd_ros.bag import StereoBagWriter
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.disparity_io import write_pfm
from stereo_kd_ros.procedural import render_pair
from stereo_kd_training.adapt.settings import AdaptSettings
from stereo_kd_training.networks import create
from stereo_kd_training.prune import save_network

# Far enough away for a tiny network, which answers up to 64 px.
CAMERA = StereoCamera.from_intrinsics(fx=130.0, baseline_m=0.2, width=192, height=128)
PAIRS = 14


def write_drive(
    path: Path, pairs: int = PAIRS, camera: StereoCamera = CAMERA, truth: Path | None = None
) -> Path:
    """A bag of a camera that sees another scene in every pair, ten a second; its truth beside."""
    if truth is not None:
        truth.mkdir()
    with StereoBagWriter(path) as bag:
        for index in range(pairs):
            scene = render_pair((5, index), camera.height, camera.width, 40.0, difficulty=0.1)
            stamp_ns = 10**9 + index * 100_000_000
            bag.write_pair(stamp_ns, scene.left, scene.right, camera)
            if truth is not None:
                write_pfm(truth / f'{stamp_ns}.pfm', scene.disparity)
    return path


def write_student(path: Path) -> Path:
    """A tiny network that has learnt nothing yet."""
    torch.manual_seed(0)
    save_network(create('kestrel', **TINY), path)
    return path


def write_assets(root: Path) -> Path:
    """Bag, its truth, teacher and student in one folder."""
    write_drive(root / 'drive', truth=root / 'truth')
    write_block_matcher(root / 'blocks.onnx', 48)
    write_student(root / 'tiny.pt')
    return root


def settings(assets: Path, out: Path, **changes: Any) -> AdaptSettings:
    """What they are adapted with: a few steps, and a model folder `robot` in `out`."""
    return AdaptSettings(
        **{
            'bags': [str(assets / 'drive')],
            'teachers': [str(assets / 'blocks.onnx')],
            'out': str(out / 'robot'),
            'name': 'robot',
            'student': str(assets / 'tiny.pt'),
            'latency_threads': 1,
            'steps': 4,
            'batch_size': 2,
            'crop_height': 64,
            'crop_width': 96,
            'procedural_pairs': 4,
            'procedural_validation': 2,
            'procedural_watched': 2,
            'procedural_height': 96,
            'procedural_width': 128,
            'precision': 'no',
            **changes,
        }
    )
