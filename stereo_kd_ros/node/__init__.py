# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Everything that imports rclpy and message types; nothing else of the package does.

Import it before NumPy. OpenBLAS, which NumPy brings, reads how many threads it may have when it is
loaded, and those go on spinning for 25 ms and more after each product, on the very processors that
inference wants: the watch's product of binary descriptors every two seconds made a pair of 9 ms
take 30 to 90, and pairs were lost. One thread computes as quickly what the node asks of it.
"""

import os

os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')
