# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Plain sessions leave the cores to others between their runs."""

from __future__ import annotations

import pytest

pytest.importorskip('onnx', reason='builds its model with onnx')
from tiny_models import write_block_matcher

from stereo_kd_ros.sessions import quiet_session


def test_idle_threads_sleep_between_runs(tmp_path):
    """Spinning on, those of a large network took half of a core from whoever was timed next."""
    session = quiet_session(write_block_matcher(tmp_path / 'peer.onnx', 4), threads=2)
    options = session.get_session_options()
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry('session.force_spinning_stop') == '1'
