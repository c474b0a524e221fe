# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Stereo pairs of one whole disparity, for tests that run without ROS."""

from __future__ import annotations

import numpy as np


def shifted_pair(
    disparity_px: int, height: int, width: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """RGB (H, W, 3) views of a fronto-parallel random texture."""
    scene = np.random.default_rng(seed).integers(
        0, 256, (height, width + disparity_px, 3), np.uint8
    )
    return scene[:, :width].copy(), scene[:, disparity_px:].copy()
