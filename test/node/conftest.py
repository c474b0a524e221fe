# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the node tests share: one small real model per session."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_models import write_block_matcher


@pytest.fixture(scope='session')
def block_matcher(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A contract model that matches blocks at 0..16 px."""
    path = tmp_path_factory.mktemp('models') / 'tiny_block_matcher.onnx'
    return str(write_block_matcher(Path(path)))
