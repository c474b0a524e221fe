# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every renderer of scenes promises, whatever it draws."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stereo_kd_ros.procedural import StereoSample

any_scene = given(
    seed=st.integers(0, 2**32 - 1),
    height=st.integers(32, 130),
    width=st.integers(32, 260),
    limit=st.floats(4, 200),
    difficulty=st.floats(0, 1),
)


def require_promises(sample: StereoSample, height: int, width: int, limit: float) -> None:
    """Sizes and types, and a truth that is finite everywhere and within its range."""
    assert sample.left.shape == sample.right.shape == (height, width, 3)
    assert sample.left.dtype == sample.right.dtype == np.uint8
    assert sample.disparity.shape == sample.disparity_right.shape == (height, width)
    assert sample.disparity.dtype == sample.disparity_right.dtype == np.float32
    assert sample.occluded.dtype == bool
    assert np.isfinite(sample.disparity).all()
    assert sample.disparity.min() >= 0
    assert sample.disparity.max() < limit
    assert np.isfinite(sample.disparity_right).all()


def require_same_bytes_of_same_seed(render: Callable[[int], StereoSample]) -> None:
    """The same seed gives the same bytes, another seed another scene."""
    first, again, other = render(5), render(5), render(6)
    for name in ('left', 'right', 'disparity', 'disparity_right', 'occluded'):
        assert getattr(first, name).tobytes() == getattr(again, name).tobytes()
    assert not np.array_equal(first.disparity, other.disparity)
