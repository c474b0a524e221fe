# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Cost volumes against their definition: entry d compares left x with right x - d."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from stereo_kd_training.networks import cost_volume as cv  # noqa: E402

sizes = {
    'width': st.integers(1, 9),
    'height': st.integers(1, 3),
    'channels': st.integers(1, 3),
    'disparities': st.integers(1, 12),
    'seed': st.integers(0, 10_000),
}


def random_pair(channels: int, height: int, width: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    shape = (2, channels, height, width)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


@settings(max_examples=30)
@given(**sizes)
def test_group_correlation_is_the_mean_product_within_a_group(
    width, height, channels, disparities, seed
):
    left, right = random_pair(2 * channels, height, width, seed)
    volume = cv.group_correlation_volume(left, right, disparities, groups=2)
    assert volume.shape == (2, 2, disparities, height, width)
    expected = torch.zeros_like(volume)
    for d in range(disparities):
        for x in range(d, width):
            product = left[..., x] * right[..., x - d]
            expected[:, 0, d, :, x] = product[:, :channels].mean(1)
            expected[:, 1, d, :, x] = product[:, channels:].mean(1)
    torch.testing.assert_close(volume, expected)


@settings(max_examples=30)
@given(**sizes)
def test_concatenation_pairs_x_with_x_minus_d_and_is_zero_out_of_view(
    width, height, channels, disparities, seed
):
    left, right = random_pair(channels, height, width, seed)
    volume = cv.concat_volume(left, right, disparities)
    expected = torch.zeros(2, 2 * channels, disparities, height, width)
    for d in range(disparities):
        for x in range(d, width):
            expected[:, :channels, d, :, x] = left[..., x]
            expected[:, channels:, d, :, x] = right[..., x - d]
    torch.testing.assert_close(volume, expected)


@settings(max_examples=30)
@given(**sizes)
def test_l1_volume_compares_with_nothing_out_of_view(width, height, channels, disparities, seed):
    left, right = random_pair(channels, height, width, seed)
    volume = cv.l1_volume(left, right, disparities)
    expected = torch.zeros(2, disparities, height, width)
    for d in range(disparities):
        for x in range(width):
            other = right[..., x - d] if x >= d else torch.zeros_like(right[..., 0])
            expected[:, d, :, x] = (left[..., x] - other).abs().sum(1)
    torch.testing.assert_close(volume, expected)


@pytest.mark.parametrize('shift', [0, 1, 5, 11])
def test_a_shifted_random_image_peaks_at_its_shift(shift):
    right = torch.randn(1, 16, 8, 40, generator=torch.Generator().manual_seed(shift))
    left = torch.roll(right, shift, dims=3)  # left x shows what right x - shift shows
    inner = slice(12, None)  # all 12 hypotheses in view
    correlation = cv.group_correlation_volume(left, right, 12, groups=1)[:, 0, ..., inner]
    distance = cv.l1_volume(left, right, 12)[..., inner]
    # correlation scores: high is a match; L1 costs: low is a match
    assert (correlation.argmax(1) == shift).float().mean() > 0.95
    assert (distance.argmin(1) == shift).all()
    assert distance[:, shift].abs().max() == 0.0


@pytest.mark.parametrize('disparity', [0.0, 3.0, 2.25])
def test_warping_reads_the_right_view_at_x_minus_disparity(disparity):
    width = 16
    ramp = torch.arange(width, dtype=torch.float32).view(1, 1, 1, -1).repeat(2, 1, 4, 1)
    warped = cv.warp_to_left(ramp + 100.0, torch.full((2, 4, width), disparity))
    inside = slice(int(disparity) + 1, None)
    expected = ramp[..., inside] - disparity + 100.0
    torch.testing.assert_close(warped[..., inside], expected, atol=1e-3, rtol=0.0)
    if disparity >= 1:
        assert warped[..., 0].abs().max() == 0.0


def test_residual_volume_is_zero_at_the_offset_that_completes_the_disparity():
    right = torch.randn(1, 8, 6, 48, generator=torch.Generator().manual_seed(7))
    left = torch.roll(right, 6, dims=3)
    known = torch.full((1, 6, 48), 5.0)
    volume = cv.residual_l1_volume(left, right, known, offsets=(-2, -1, 0, 1, 2))
    inner = volume[..., 10:]
    assert (inner.argmin(1) == 3).all()  # 5 + offset 1
    assert inner[:, 3].max() < 1e-3


def test_interlacing_alternates_views_channel_by_channel():
    left = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    right = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1)
    assert cv.interlaced(left, right).flatten().tolist() == [1.0, 10.0, 2.0, 20.0]
