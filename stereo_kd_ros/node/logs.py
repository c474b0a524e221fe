# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the runtime tells Python's logging, in the node's own log.

The runtime knows no ROS. It says there that an engine is being built, or that a cache cannot be
used, and on a robot the node's log and /rosout are where anyone would look for it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rclpy.impl.rcutils_logger import RcutilsLogger

LIBRARY = 'stereo_kd_ros'


class NodeLog(logging.Handler):
    """Hands log records to a ROS logger."""

    def __init__(self, logger: RcutilsLogger) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        # rclpy wants one severity for each line of code that logs.
        text = record.getMessage()
        if record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        else:
            self._logger.info(text)


@contextmanager
def library_log_to(logger: RcutilsLogger) -> Iterator[None]:
    """Have the runtime's records go to a ROS logger for as long as this lasts."""
    library = logging.getLogger(LIBRARY)
    handler, level = NodeLog(logger), library.level
    library.addHandler(handler)
    library.setLevel(logging.INFO)
    try:
        yield
    finally:
        library.removeHandler(handler)
        library.setLevel(level)
