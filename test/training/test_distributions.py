# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Mass and mean of distributions: kept exactly, whatever the grids."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from stereo_kd_training.distributions import (  # noqa: E402
    DistributionError,
    laplace_distribution,
    rebin,
    rebinning_matrix,
)

bins = st.lists(
    st.floats(0, 256, width=32), min_size=2, max_size=24, unique_by=lambda x: round(x, 2)
).map(lambda values: torch.tensor(values))


def random_distribution(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    logits = 4.0 * torch.randn(1, count, 2, 3, generator=generator, dtype=torch.float64)
    return logits.softmax(1)


def mean_of(probabilities: torch.Tensor, hypotheses: torch.Tensor) -> torch.Tensor:
    return (probabilities * hypotheses.double().view(1, -1, 1, 1)).sum(1)


@given(source=bins, target=bins, seed=st.integers(0, 1000))
def test_rebinning_keeps_all_mass(source, target, seed):
    moved = rebin(random_distribution(len(source), seed), source, target)
    assert moved.shape == (1, len(target), 2, 3)
    assert (moved >= 0).all()
    torch.testing.assert_close(moved.sum(1), torch.ones(1, 2, 3, dtype=torch.float64))


@given(source=bins, target=bins, seed=st.integers(0, 1000))
def test_rebinning_keeps_the_mean_of_all_that_the_target_can_hold(source, target, seed):
    # a target that spans the source
    target = torch.cat((target, torch.tensor([-1.0, 300.0])))
    before = random_distribution(len(source), seed)
    moved = rebin(before, source, target)
    torch.testing.assert_close(mean_of(moved, target), mean_of(before, source))


def test_mass_beyond_the_range_goes_to_its_ends():
    source, target = torch.tensor([0.0, 50.0, 100.0]), torch.tensor([20.0, 40.0])
    weights = rebinning_matrix(source, target)
    assert weights.tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]


def test_equal_bins_change_nothing():
    probabilities = random_distribution(5, 0)
    hypotheses = torch.arange(5.0)
    assert rebin(probabilities, hypotheses, hypotheses.clone()) is probabilities
    assert torch.equal(rebinning_matrix(hypotheses, hypotheses), torch.eye(5).double())


def test_reversed_bins_reverse_the_distribution():
    probabilities = random_distribution(6, 1)
    hypotheses = torch.arange(6.0) * 4
    moved = rebin(probabilities, hypotheses, hypotheses.flip(0))
    torch.testing.assert_close(moved, probabilities.flip(1))


def test_halving_the_resolution_splits_odd_bins_evenly():
    weights = rebinning_matrix(torch.arange(5.0), torch.tensor([0.0, 2.0, 4.0]))
    assert weights.tolist() == [
        [1.0, 0.0, 0.0],
        [0.5, 0.5, 0.0],
        [0.0, 1.0, 0.0],
        [0.0, 0.5, 0.5],
        [0.0, 0.0, 1.0],
    ]


def test_a_finer_target_has_no_gaps():
    coarse, fine = torch.arange(0.0, 193.0, 16.0), torch.arange(0.0, 193.0)
    weights = rebinning_matrix(coarse, fine)
    inner = weights[6]
    around = slice(96 - 14, 96 + 15)
    assert (inner[around] > 0).all()
    assert inner.argmax() == 96
    torch.testing.assert_close(inner[around], inner[around].flip(0))


@given(
    disparity=st.floats(40, 150),
    scale=st.floats(0, 4),
    step=st.sampled_from([0.5, 1.0, 4.0, 16.0]),
    descending=st.booleans(),
)
def test_laplace_sums_to_one_and_keeps_the_disparity(disparity, scale, step, descending):
    hypotheses = torch.arange(0, 193 / step, dtype=torch.float64) * step
    if descending:
        hypotheses = hypotheses.flip(0)
    target = torch.full((1, 1, 1), disparity, dtype=torch.float64)
    mass = laplace_distribution(target, hypotheses, scale)
    assert mass.min() >= 0
    assert mass.sum().item() == pytest.approx(1.0)
    # four scales from either end the clipped tails weigh less than exp(-10) px
    assert mean_of(mass, hypotheses).item() == pytest.approx(disparity, abs=1e-3)


def test_laplace_is_the_density_where_bins_are_fine():
    hypotheses = torch.arange(0, 4000, dtype=torch.float64) * 0.05
    mass = laplace_distribution(torch.full((1, 1, 1), 100.0).double(), hypotheses, 2.0)
    density = torch.exp(-(hypotheses - 100.0).abs() / 2.0) / 4.0
    torch.testing.assert_close(mass[0, :, 0, 0], density * 0.05, atol=1e-4, rtol=1e-2)


def test_a_sure_laplace_is_two_neighbours():
    mass = laplace_distribution(torch.full((1, 1, 1), 5.25), torch.arange(10.0), 0.0)
    expected = torch.zeros(10)
    expected[5], expected[6] = 0.75, 0.25
    torch.testing.assert_close(mass.flatten(), expected)


def test_an_unknown_disparity_has_no_mass_and_scales_may_vary():
    disparity = torch.tensor([[[math.nan, 4.0, 4.0]]])
    mass = laplace_distribution(disparity, torch.arange(9.0), torch.tensor([[[1.0, 0.1, 2.0]]]))
    assert mass[0, :, 0, 0].tolist() == [0.0] * 9
    assert mass[0, 4, 0, 1] > mass[0, 4, 0, 2]


@pytest.mark.parametrize('hypotheses', [torch.zeros(1), torch.zeros(2, 2)])
def test_hypotheses_that_are_none_are_refused(hypotheses):
    with pytest.raises(DistributionError, match='at least two hypotheses'):
        laplace_distribution(torch.zeros(1, 1, 1), hypotheses)
