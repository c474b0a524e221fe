# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The error definitions against values worked out by hand and slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from stereo_kd_ros.metrics import (
    DisparityMetrics,
    MetricsError,
    depth_metrics,
    disparity_edges,
    disparity_metrics,
    edge_epe,
    fill_holes_row_background,
    geometric_mean,
    sparsification_auc,
)

NAN, INF = math.nan, math.inf


def row(*values: float) -> np.ndarray:
    return np.array([values], dtype=np.float32)


def test_errors_worked_out_by_hand():
    """Errors 0.5, 1.5, 2.5, 3.5, 4 px; 3.5 px is above 5 % of 50, 4 px is not of 100."""
    truth = row(10, 10, 10, 50, 100)
    predicted = row(10.5, 8.5, 12.5, 53.5, 96)
    metrics = disparity_metrics(predicted, truth)
    assert metrics.pixels == 5
    assert metrics.epe_px == pytest.approx(12 / 5)
    assert (metrics.bad1, metrics.bad2, metrics.bad3) == (80.0, 60.0, 40.0)
    assert metrics.d1 == 20.0


def test_an_error_on_the_threshold_is_not_bad():
    metrics = disparity_metrics(row(11, 12, 13), row(10, 10, 10))
    assert metrics.bad1 == pytest.approx(200 / 3)
    assert metrics.bad2 == pytest.approx(100 / 3)
    assert metrics.bad3 == metrics.d1 == 0


def test_only_truth_within_the_range_counts():
    truth = row(0, -1, NAN, INF, -INF, 192, 191.5, 1)
    assert disparity_metrics(np.zeros_like(truth), truth).pixels == 2
    assert disparity_metrics(np.zeros_like(truth), truth, max_disparity_px=2).pixels == 1


@pytest.mark.parametrize('hole', [NAN, INF, -INF])
def test_a_hole_is_wrong_by_the_whole_truth(hole):
    metrics = disparity_metrics(row(hole, 20), row(30, 20))
    assert metrics.epe_px == 15.0
    assert metrics.bad3 == metrics.d1 == 50.0


def test_without_truth_there_is_no_error():
    metrics = disparity_metrics(row(1, 2), row(NAN, 0))
    assert metrics.pixels == 0
    assert math.isnan(metrics.epe_px)
    assert math.isnan(metrics.d1)


def test_a_mask_leaves_pixels_out():
    mask = np.array([[True, False]])
    assert disparity_metrics(row(10, 99), row(10, 10), mask=mask).epe_px == 0


def test_shapes_must_agree():
    with pytest.raises(MetricsError, match=r'\(1, 2\).*\(1, 3\)'):
        disparity_metrics(row(1, 2), row(1, 2, 3))
    with pytest.raises(MetricsError, match='mask'):
        disparity_metrics(row(1), row(1), mask=np.ones((2, 2), bool))
    with pytest.raises(MetricsError, match='shape'):
        depth_metrics(row(1, 2), row(1))


def test_large_maps_do_not_lose_digits():
    truth = np.full((3000, 3000), 100.0, dtype=np.float32)
    assert disparity_metrics(truth + np.float32(0.125), truth).epe_px == 0.125


maps = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=12),
    elements=st.floats(-5, 250, width=32) | st.sampled_from([NAN, INF, -INF]),
)


@given(maps, st.integers(0, 2**32 - 1))
def test_metrics_equal_a_loop_over_pixels(truth, seed):
    predicted = np.random.default_rng(seed).permutation(truth.ravel()).reshape(truth.shape)
    errors, d1 = [], []
    for wanted, given_px in zip(truth.ravel().tolist(), predicted.ravel().tolist()):
        if math.isfinite(wanted) and 0 < wanted < 192:
            error = abs((given_px if math.isfinite(given_px) else 0.0) - wanted)
            errors.append(error)
            d1.append(error > 3 and error > 0.05 * wanted)
    metrics = disparity_metrics(predicted, truth)
    assert metrics.pixels == len(errors)
    if errors:
        assert metrics.epe_px == pytest.approx(sum(errors) / len(errors))
        assert metrics.bad2 == pytest.approx(100 * sum(e > 2 for e in errors) / len(errors))
        assert metrics.d1 == pytest.approx(100 * sum(d1) / len(d1))


@given(st.lists(maps, min_size=1, max_size=4))
def test_pooling_images_equals_one_long_image(truths):
    """Pooled metrics must not depend on how the pixels are cut into images."""
    parts = [disparity_metrics(truth * np.float32(1.03), truth) for truth in truths]
    flat = np.concatenate([truth.ravel() for truth in truths])[np.newaxis]
    whole = disparity_metrics(flat * np.float32(1.03), flat)
    pooled = DisparityMetrics.pooled(parts)
    for name, value in vars(whole).items():
        assert getattr(pooled, name) == pytest.approx(value, nan_ok=True), name


def test_the_mean_over_images_gives_each_the_same_weight():
    small = disparity_metrics(row(11), row(10))
    large = disparity_metrics(row(14, 14, 14), row(10, 10, 10))
    nothing = disparity_metrics(row(1), row(NAN))
    mean = DisparityMetrics.per_image_mean([small, large, nothing])
    assert mean.epe_px == 2.5
    assert mean.bad3 == 50.0
    assert mean.pixels == 4
    assert DisparityMetrics.pooled([small, large, nothing]).epe_px == pytest.approx(13 / 4)
    assert DisparityMetrics.pooled([nothing]).pixels == 0


def test_holes_take_the_background_beside_them():
    assert fill_holes_row_background(row(NAN, 5, NAN, NAN, 3, NAN, 9, NAN)).tolist() == [
        [5, 5, 3, 3, 3, 3, 9, 9]
    ]


def test_a_row_without_any_value_becomes_zero():
    disparity = np.array([[NAN, NAN], [4, NAN]], dtype=np.float32)
    assert fill_holes_row_background(disparity).tolist() == [[0, 0], [4, 4]]


@given(maps)
def test_filling_equals_a_walk_to_either_side(disparity):
    filled = fill_holes_row_background(disparity)
    for values, result in zip(disparity.tolist(), filled.tolist()):
        for column, value in enumerate(values):
            if not math.isfinite(value):
                left = [v for v in values[:column] if math.isfinite(v)][-1:]
                right = [v for v in values[column:] if math.isfinite(v)][:1]
                value = min(left + right, default=0.0)
            assert result[column] == value


def test_edges_lie_beside_the_jump():
    truth = np.full((9, 30), 10.0, dtype=np.float32)
    truth[:, 15:] = 20.0
    columns = np.flatnonzero(disparity_edges(truth, step_px=2.0, radius_px=5).any(axis=0))
    assert (columns.min(), columns.max()) == (14 - 5, 15 + 5)
    assert not disparity_edges(truth, step_px=11.0).any()


def test_edges_reach_in_all_directions_and_stop_at_the_border():
    truth = np.full((7, 7), 5.0, dtype=np.float32)
    truth[0, 0] = 50.0
    expected = np.zeros((7, 7), dtype=bool)
    expected[:3, :3] = True
    expected[2, 2] = False
    edges = disparity_edges(truth, radius_px=1)
    # The jump marks (0, 0), (0, 1) and (1, 0); one pixel round them is all but one corner.
    np.testing.assert_array_equal(edges, expected)


def test_missing_truth_makes_no_edge():
    truth = np.full((5, 9), 10.0, dtype=np.float32)
    truth[:, 4] = NAN
    truth[2] = 0
    assert not disparity_edges(truth).any()


def test_edge_epe_sees_only_the_edges():
    truth = np.full((6, 60), 10.0, dtype=np.float32)
    truth[:, 30:] = 40.0
    predicted = truth.copy()
    predicted[:, :10] += 7
    assert edge_epe(predicted, truth) == 0.0
    predicted[:, 30] -= 12
    assert edge_epe(predicted, truth) == pytest.approx(12 / 12)
    assert math.isnan(edge_epe(predicted, np.full_like(truth, 10.0)))


def test_depth_errors_worked_out_by_hand():
    truth = row(1.0, 2.0, 4.0, 8.0, NAN, INF)
    predicted = row(1.1, 2.0, 6.0, NAN, 3.0, 3.0)
    metrics = depth_metrics(predicted, truth)
    assert (metrics.pixels, metrics.coverage) == (3, 75.0)
    assert metrics.mae_m == pytest.approx(2.1 / 3)
    assert metrics.rmse_m == pytest.approx(math.sqrt((0.01 + 4) / 3))
    assert metrics.abs_rel == pytest.approx((0.1 + 0.5) / 3)
    assert metrics.delta1 == pytest.approx(200 / 3)


def test_depth_out_of_range_is_no_measurement():
    metrics = depth_metrics(row(INF, -INF, 0.0), row(5.0, 5.0, 5.0))
    assert (metrics.pixels, metrics.coverage) == (0, 0.0)
    assert math.isnan(metrics.mae_m)


def test_a_confidence_that_sorts_the_errors_is_as_good_as_the_oracle():
    error = np.array([4.0, 1.0, 3.0, 2.0])
    sorted_well = sparsification_auc(error, -error, steps=4)
    # Mean of what remains after removing none, 1, 2 and 3: 2.5, 2, 1.5, 1.
    assert sorted_well.auc == sorted_well.oracle == pytest.approx(7 / 4)
    assert sorted_well.ause == 0
    assert sorted_well.random == 2.5
    assert sparsification_auc(error, error, steps=4).auc == pytest.approx((2.5 + 3 + 3.5 + 4) / 4)


@given(
    hnp.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 100)),
    st.integers(0, 2**32 - 1),
)
def test_no_confidence_beats_the_oracle(error, seed):
    confidence = np.random.default_rng(seed).random(error.shape)
    result = sparsification_auc(error, confidence)
    assert result.oracle <= result.auc + 1e-9


def test_no_confidence_is_the_least():
    error = np.array([1.0, 9.0])
    assert sparsification_auc(error, np.array([0.1, NAN]), steps=2).ause == 0
    with pytest.raises(MetricsError, match='not be empty'):
        sparsification_auc(np.array([]), np.array([]))


def test_the_geometric_mean_of_ratios():
    assert geometric_mean([1, 100]) == pytest.approx(10)
    for wrong in ([], [1, 0], [1, NAN]):
        with pytest.raises(MetricsError, match='positive'):
            geometric_mean(wrong)
