# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""One thread for PyTorch: networks of tests are so small that threads only wait for each other."""

from __future__ import annotations

import torch

torch.set_num_threads(1)
