# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that imports rclpy and message types; nothing else of the package does."""
