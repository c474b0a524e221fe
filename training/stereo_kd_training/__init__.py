# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""From a strong teacher to a tiny student: data, distillation, pruning, export."""
