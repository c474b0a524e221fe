# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Records of Python's logging in a real ROS log, and only while they should go there."""

from __future__ import annotations

import logging

import pytest
import rclpy.logging

from stereo_kd_ros.node.logs import library_log_to


def test_records_reach_the_ros_log_with_their_severity(capfd: pytest.CaptureFixture[str]) -> None:
    log = logging.getLogger('stereo_kd_ros.upgrade')
    with library_log_to(rclpy.logging.get_logger('stereo_node')):
        for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR):
            log.log(level, 'said at %d', level)
    log.info('said too late')
    said = ''.join(capfd.readouterr()).splitlines()
    assert [(line.split(']')[0], line.split()[-1]) for line in said if 'said' in line] == [
        ('[INFO', '20'),
        ('[WARN', '30'),
        ('[ERROR', '40'),
    ], said
