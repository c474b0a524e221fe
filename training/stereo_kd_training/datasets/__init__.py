# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Stereo pairs with truth: public sets, robot bags and procedural scenes."""
