# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Real-time stereo depth for ROS 2: a distilled and pruned student behind ONNX Runtime."""

__version__ = '0.1.0'
