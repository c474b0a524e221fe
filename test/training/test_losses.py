# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Losses against values worked out by hand, their gradients, signs and invariances."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip('torch', reason='the training extra is not installed')

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from stereo_kd_training import losses  # noqa: E402


def logits_of(*probabilities: float):
    """(1, D, 1, 1) scores whose softmax is `probabilities`."""
    return torch.tensor(probabilities).log().view(1, -1, 1, 1)


def scores(seed: int, batch: int = 2, channels: int = 6, height: int = 3, width: int = 4):
    generator = torch.Generator().manual_seed(seed)
    return 3.0 * torch.randn(batch, channels, height, width, generator=generator)


# two_hot_cross_entropy


def test_two_hot_weighs_the_two_enclosing_hypotheses():
    logits = logits_of(0.1, 0.2, 0.3, 0.4)
    hypotheses = torch.tensor([0.0, 4.0, 8.0, 12.0])
    disparity = torch.full((1, 1, 1), 5.0)
    expected = -(0.75 * math.log(0.2) + 0.25 * math.log(0.3))
    loss = losses.two_hot_cross_entropy(logits, hypotheses, disparity)
    assert loss.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize('truth, index', [(0.0, 0), (4.0, 1), (12.0, 3)])
def test_two_hot_on_a_hypothesis_is_plain_cross_entropy(truth, index):
    logits = scores(0, 1, 4, 1, 1)
    hypotheses = torch.tensor([0.0, 4.0, 8.0, 12.0])
    loss = losses.two_hot_cross_entropy(logits, hypotheses, torch.full((1, 1, 1), truth))
    assert loss.item() == pytest.approx(-logits.log_softmax(1)[0, index, 0, 0].item(), rel=1e-5)


def test_two_hot_gradient_is_softmax_minus_target():
    logits = logits_of(0.1, 0.2, 0.3, 0.4).requires_grad_()
    losses.two_hot_cross_entropy(
        logits, torch.tensor([0.0, 1.0, 2.0, 3.0]), torch.full((1, 1, 1), 1.5)
    ).backward()
    torch.testing.assert_close(logits.grad.flatten(), torch.tensor([0.1, -0.3, -0.2, 0.4]))


def test_two_hot_is_least_where_the_expectation_is_the_truth():
    hypotheses = torch.tensor([0.0, 4.0, 8.0])
    truth = torch.full((1, 1, 1), 5.0)
    logits = torch.zeros(1, 3, 1, 1, requires_grad=True)
    optimiser = torch.optim.SGD([logits], lr=1.0)
    for _ in range(2000):
        optimiser.zero_grad()
        losses.two_hot_cross_entropy(logits, hypotheses, truth).backward()
        optimiser.step()
    answer = (logits.softmax(1) * hypotheses.view(1, -1, 1, 1)).sum().item()
    assert answer == pytest.approx(5.0, abs=0.02)


def test_two_hot_ignores_truth_that_no_hypothesis_reaches():
    logits = scores(1, 1, 4, 1, 3)
    hypotheses = torch.tensor([0.0, 1.0, 2.0, 3.0])
    reached = losses.two_hot_cross_entropy(logits[..., :1], hypotheses, torch.tensor([[[2.0]]]))
    with_outside = losses.two_hot_cross_entropy(
        logits, hypotheses, torch.tensor([[[2.0, 3.5, -0.5]]])
    )
    torch.testing.assert_close(with_outside, reached)


def test_two_hot_and_resampling_take_descending_hypotheses():
    logits, hypotheses = scores(8, 1, 5, 2, 3), torch.arange(0.0, 20, 4)
    disparity = 16.0 * torch.rand(1, 2, 3)
    torch.testing.assert_close(
        losses.two_hot_cross_entropy(logits.flip(1), hypotheses.flip(0), disparity),
        losses.two_hot_cross_entropy(logits, hypotheses, disparity),
    )
    fine = torch.arange(0.0, 17, 2)
    torch.testing.assert_close(
        losses.resample_logits(logits.flip(1), hypotheses.flip(0), fine, (4, 6)),
        losses.resample_logits(logits, hypotheses, fine, (4, 6)),
    )


def test_two_hot_refuses_hypotheses_of_another_number():
    with pytest.raises(losses.LossError, match='6 score channels against 5 hypotheses'):
        losses.two_hot_cross_entropy(scores(0), torch.arange(5.0), torch.zeros(2, 3, 4))


# smooth_l1_disparity and the grid of a volume


def test_smooth_l1_by_hand():
    pred = torch.tensor([[[1.0, 5.0, 100.0]]])
    truth = torch.tensor([[[1.5, 2.0, 0.0]]])
    valid = torch.tensor([[[True, True, False]]])
    loss = losses.smooth_l1_disparity(pred, truth, valid)
    assert loss.item() == pytest.approx((0.5 * 0.25 + 2.5) / 2)


def test_smooth_l1_refuses_another_grid():
    with pytest.raises(losses.LossError, match='same grid'):
        losses.smooth_l1_disparity(torch.zeros(1, 2, 2), torch.zeros(1, 4, 4))


def test_downsample_takes_the_median_of_the_valid_and_invents_nothing():
    disparity = torch.tensor([[[10.0, 90.0], [10.0, float('nan')]]])
    coarse, valid = losses.downsample_disparity(disparity, None, (2, 2))
    assert coarse.item() == 10.0 and valid.item()
    coarse, valid = losses.downsample_disparity(disparity, torch.zeros(1, 2, 2).bool(), (2, 2))
    assert coarse.item() == 0.0 and not valid.item()


def test_downsample_keeps_cells_apart():
    rows = torch.arange(4.0).view(1, 4, 1) // 2 * 10
    columns = torch.arange(6.0).view(1, 1, 6) // 2
    coarse, _ = losses.downsample_disparity(rows + columns, None, (2, 2))
    torch.testing.assert_close(coarse[0], torch.tensor([[0.0, 1, 2], [10, 11, 12]]))


def test_downsample_refuses_a_size_that_does_not_divide():
    with pytest.raises(losses.LossError, match='multiple of the cells, 4x4'):
        losses.downsample_disparity(torch.zeros(1, 6, 8), None, (4, 4))


# every masked loss


HYPOTHESES = torch.arange(6.0)
PIXEL_LOSSES = {
    'smooth_l1_disparity': losses.smooth_l1_disparity,
    'log_l1_v2': losses.log_l1_v2,
    'teacher_smooth_l1': losses.teacher_smooth_l1,
    'multi_stage_smooth_l1': lambda p, t, v: losses.multi_stage_smooth_l1((p,) * 4, t, v),
    'multi_stage_log_l1': lambda p, t, v: losses.multi_stage_log_l1((p,) * 3, t, v),
}
VOLUME_LOSSES = {
    'dtp_l1': losses.dtp_l1,
    'dtp_kl': losses.dtp_kl,
    'adaptive_smooth_l1': lambda s, t, v: losses.adaptive_smooth_l1(
        s, t, torch.tensor([0.5, 1.0]), v
    ),
    'stereo_focal_cross_entropy': losses.stereo_focal_cross_entropy,
    'cosine_distillation': losses.cosine_distillation,
    'soft_cross_entropy': losses.soft_cross_entropy,
}


@pytest.mark.parametrize('name', PIXEL_LOSSES)
@pytest.mark.parametrize('fill', [math.nan, math.inf])
def test_pixel_losses_survive_an_empty_mask(name, fill):
    pred = torch.rand(2, 3, 4, requires_grad=True)
    loss = PIXEL_LOSSES[name](pred, torch.full((2, 3, 4), fill), None)
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(pred.grad, torch.zeros_like(pred))


@pytest.mark.parametrize('name', PIXEL_LOSSES)
def test_pixel_losses_do_not_look_at_masked_pixels(name):
    pred = torch.rand(2, 3, 4, requires_grad=True)
    truth = torch.rand(2, 3, 4)
    valid = torch.rand(2, 3, 4) > 0.4
    spoiled = torch.where(valid, truth, torch.tensor(math.nan))
    clean, dirty = (PIXEL_LOSSES[name](pred, t, valid) for t in (truth, spoiled))
    assert clean.item() == dirty.item()
    dirty.backward()
    assert torch.isfinite(pred.grad).all()
    assert (pred.grad[~valid] == 0).all() and (pred.grad[valid] != 0).any()


@pytest.mark.parametrize('name', VOLUME_LOSSES)
def test_volume_losses_survive_an_empty_mask(name):
    student = scores(0).requires_grad_()
    loss = VOLUME_LOSSES[name](student, scores(1), torch.zeros(2, 3, 4, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(student.grad, torch.zeros_like(student))


@pytest.mark.parametrize('name', VOLUME_LOSSES)
def test_volume_losses_pull_the_student_to_the_teacher(name):
    student, teacher = scores(0).requires_grad_(), scores(1).requires_grad_()
    optimiser = torch.optim.Adam([student], lr=0.05)
    before = VOLUME_LOSSES[name](student, teacher, None).item()
    for _ in range(60):
        optimiser.zero_grad()
        VOLUME_LOSSES[name](student, teacher, None).backward()
        optimiser.step()
    after = VOLUME_LOSSES[name](student, teacher, None).item()
    floor = VOLUME_LOSSES[name](teacher, teacher, None).item()
    assert after - floor < 0.5 * (before - floor)
    assert teacher.grad is None, 'a loss must never train its teacher'


@pytest.mark.parametrize('name', VOLUME_LOSSES)
def test_volume_losses_refuse_volumes_of_another_shape(name):
    with pytest.raises(losses.LossError, match='same grid'):
        VOLUME_LOSSES[name](scores(0), scores(0, channels=7), None)


@pytest.mark.parametrize(
    'name', ['dtp_l1', 'dtp_kl', 'stereo_focal_cross_entropy', 'soft_cross_entropy']
)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), shift=st.floats(-50, 50))
def test_distribution_losses_ignore_a_constant_added_to_all_scores(name, seed, shift):
    student, teacher = scores(seed), scores(seed + 1)
    plain = VOLUME_LOSSES[name](student, teacher, None)
    moved = VOLUME_LOSSES[name](student + shift, teacher - shift, None)
    torch.testing.assert_close(plain, moved, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('name', VOLUME_LOSSES)
def test_losses_are_means_so_repeating_the_batch_changes_nothing(name):
    student, teacher = scores(3), scores(4)
    once = VOLUME_LOSSES[name](student, teacher, None)
    # [s0, s1] against weights [0.5, 1] repeated keeps the mean for every loss but the
    # per-sample weighted one, which is repeated inside a sample instead.
    twice = VOLUME_LOSSES[name](student.repeat(1, 1, 2, 1), teacher.repeat(1, 1, 2, 1), None)
    torch.testing.assert_close(once, twice)


# signs


def test_scores_from_agrees_with_both_regressions():
    volume = scores(5)
    as_score = losses.scores_from(volume, 'score').softmax(1)
    torch.testing.assert_close(as_score, volume.softmax(1))
    as_cost = losses.scores_from(volume, 'cost').softmax(1)
    torch.testing.assert_close(as_cost, (-volume).softmax(1))
    with pytest.raises(losses.LossError, match='neither'):
        losses.scores_from(volume, 'affinity')


def test_a_cost_volume_compared_unsigned_is_seen():
    """The trap: the same beliefs in GwcNet's sign and in AnyNet's are far apart unsigned."""
    teacher = scores(6)
    student_cost = -teacher
    right = losses.dtp_l1(losses.scores_from(student_cost, 'cost'), teacher)
    wrong = losses.dtp_l1(student_cost, teacher)
    assert right.item() == pytest.approx(0.0, abs=1e-6)
    assert wrong.item() > 1.0


# resample_logits


def test_resampling_is_exact_for_scores_linear_in_disparity():
    coarse, fine = torch.arange(0.0, 64, 16), torch.arange(0.0, 49, 4)
    logits = (2.0 * coarse + 1.0).view(1, -1, 1, 1).expand(1, 4, 2, 3)
    read = losses.resample_logits(logits, coarse, fine, (4, 6))
    assert read.shape == (1, 13, 4, 6)
    torch.testing.assert_close(read[0, :, 1, 2], 2.0 * fine + 1.0)


def test_resampling_keeps_the_ends_beyond_the_range():
    logits = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1)
    read = losses.resample_logits(
        logits, torch.tensor([0.0, 4.0]), torch.tensor([-8.0, 0.0, 2.0, 4.0, 40.0]), (1, 1)
    )
    assert read.flatten().tolist() == [1.0, 1.0, 1.5, 2.0, 2.0]


def test_resampling_to_the_own_grid_is_the_identity():
    logits = scores(7)
    assert torch.equal(losses.resample_logits(logits, HYPOTHESES, HYPOTHESES, (3, 4)), logits)


# DTP


def test_dtp_l1_by_hand():
    loss = losses.dtp_l1(logits_of(0.5, 0.3, 0.2), logits_of(0.1, 0.3, 0.6))
    assert loss.item() == pytest.approx(0.8, rel=1e-5)


def test_dtp_l1_with_temperature_by_hand():
    # softmax(log p / 0.5) is p^2, normalised.
    loss = losses.dtp_l1(logits_of(0.5, 0.5), logits_of(0.2, 0.8), temperature=0.5)
    assert loss.item() == pytest.approx(2 * (0.5 - 0.04 / 0.68), rel=1e-5)


def test_dtp_l1_stays_within_its_bounds():
    far = losses.dtp_l1(logits_of(1.0, 1e-9), logits_of(1e-9, 1.0))
    assert far.item() == pytest.approx(2.0, rel=1e-5)


def test_dtp_kl_by_hand():
    loss = losses.dtp_kl(logits_of(0.5, 0.5), logits_of(0.25, 0.75))
    expected = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_dtp_temperature_is_linear_and_clamped():
    assert [losses.dtp_temperature(p) for p in (-1, 0, 0.5, 1, 2)] == [0.5, 0.5, 0.75, 1.0, 1.0]


def test_temperature_below_one_sharpens():
    peaked = logits_of(0.2, 0.5, 0.3)
    uniform = torch.zeros_like(peaked)
    sharp = losses.dtp_l1(uniform, peaked, temperature=0.5)
    soft = losses.dtp_l1(uniform, peaked, temperature=2.0)
    assert sharp > soft


def test_signal_weights():
    assert losses.signal_weights('ground_truth') == (1.0, 0.0)
    assert losses.signal_weights('both') == (1.0, 1.0)
    assert losses.signal_weights('teacher') == (0.0, 1.0)
    with pytest.raises(losses.LossError, match='ground_truth, both, teacher'):
        losses.signal_weights('gt')


# Compact StereoNet


def test_min_max_weights_by_hand():
    weights = losses.adaptive_weights_min_max(torch.tensor([1.0, 2.0, 5.0]))
    torch.testing.assert_close(weights, torch.tensor([1.0, 0.75, 0.0]))


def test_one_outlier_collapses_the_printed_form_but_not_the_percentile_form():
    errors = torch.cat([torch.linspace(0.5, 2.0, 99), torch.tensor([500.0])])
    printed = losses.adaptive_weights_min_max(errors)[:99]
    robust = losses.adaptive_weights_percentile(errors)[:99]
    assert printed.max() - printed.min() < 0.01
    assert robust.max() - robust.min() > 0.9


def test_equal_teacher_errors_are_all_trusted():
    for form in (losses.adaptive_weights_min_max, losses.adaptive_weights_percentile):
        assert form(torch.full((5,), 0.7)).tolist() == [1.0] * 5


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=30))
def test_trust_falls_as_the_teachers_error_rises(errors):
    errors = torch.tensor(errors)
    for form in (losses.adaptive_weights_min_max, losses.adaptive_weights_percentile):
        trust = form(errors)[errors.argsort()]
        assert ((trust >= 0) & (trust <= 1)).all()
        assert (trust.diff() <= 1e-6).all()


def test_trust_refuses_nan_and_bad_quantiles():
    with pytest.raises(losses.LossError, match='NaN'):
        losses.adaptive_weights_min_max(torch.tensor([1.0, math.nan]))
    with pytest.raises(losses.LossError, match='quantiles'):
        losses.adaptive_weights_percentile(torch.ones(3), 0.9, 0.1)


def test_confidence_weights():
    confidence = torch.tensor([[[0.0, 0.5, 0.75, 1.0, math.nan]]])
    weights = losses.adaptive_weights_confidence(confidence, floor=0.5)
    torch.testing.assert_close(weights, torch.tensor([[[0.0, 0.0, 0.5, 1.0, 0.0]]]))


def test_adaptive_smooth_l1_by_hand():
    student = torch.zeros(2, 2, 1, 1)
    teacher = torch.tensor([[0.5, 3.0], [0.0, 2.0]]).view(2, 2, 1, 1)
    plain = losses.adaptive_smooth_l1(student, teacher)
    first, second = (0.125 + 2.5) / 2, 1.5 / 2
    assert plain.item() == pytest.approx((first + second) / 2)
    trusted = losses.adaptive_smooth_l1(student, teacher, torch.tensor([1.0, 0.2]))
    assert trusted.item() == pytest.approx((first + 0.2 * second) / 2)
    per_pixel = losses.adaptive_smooth_l1(student, teacher, torch.tensor([[[0.0]], [[1.0]]]))
    assert per_pixel.item() == pytest.approx(second / 2)


def test_adaptive_l2_by_hand():
    student = torch.zeros(2, 2, 1, 1)
    teacher = torch.tensor([[0.5, 3.0], [0.0, 2.0]]).view(2, 2, 1, 1)
    first, second = (0.25 + 9.0) / 2, 4.0 / 2
    assert losses.adaptive_l2(student, teacher).item() == pytest.approx((first + second) / 2)
    trusted = losses.adaptive_l2(student, teacher, torch.tensor([1.0, 0.2]))
    assert trusted.item() == pytest.approx((first + 0.2 * second) / 2)
    with pytest.raises(losses.LossError, match='trust must be'):
        losses.adaptive_l2(scores(0), scores(1), torch.ones(3))


def test_adaptive_smooth_l1_refuses_trust_of_another_shape():
    with pytest.raises(losses.LossError, match='trust must be'):
        losses.adaptive_smooth_l1(scores(0), scores(1), torch.ones(3))


def test_focal_by_hand():
    student, teacher = logits_of(0.5, 0.5), logits_of(0.75, 0.25)
    expected = (0.75 / 0.25**2 + 0.25 / 0.75**2) * math.log(2)
    loss = losses.stereo_focal_cross_entropy(student, teacher)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_focal_without_gamma_is_the_soft_cross_entropy():
    focal = losses.stereo_focal_cross_entropy(scores(0), scores(1), gamma=0.0)
    torch.testing.assert_close(focal, losses.soft_cross_entropy(scores(0), scores(1)))


def test_focal_of_a_certain_teacher_is_finite():
    certain = torch.tensor([200.0, 0.0, 0.0]).view(1, 3, 1, 1)
    student = torch.zeros(1, 3, 1, 1, requires_grad=True)
    loss = losses.stereo_focal_cross_entropy(student, certain, gamma=5.0)
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(student.grad).all()


def test_equation_6_as_printed_cannot_teach():
    student, teacher = torch.zeros(1, 3, 1, 1, requires_grad=True), logits_of(0.2, 0.7, 0.1)
    losses.stereo_focal_as_printed(student, teacher, gamma=0.0).backward()
    assert (student.grad == 0).all(), 'its cross-entropy has no gradient through the student'

    # Two rival hypotheses and one that the teacher rules out.
    teacher = logits_of(0.45, 0.549, 0.001)
    ruled_out = {}
    for form in (losses.stereo_focal_as_printed, losses.stereo_focal_cross_entropy):
        student = torch.zeros(1, 3, 1, 1, requires_grad=True)
        form(student, teacher, gamma=2.0).backward()
        ruled_out[form] = (student - 0.1 * student.grad).softmax(1)[0, 2].item() - 1 / 3
    assert ruled_out[losses.stereo_focal_as_printed] > 0.0, 'a step leads away from the teacher'
    assert ruled_out[losses.stereo_focal_cross_entropy] < 0.0


def test_multi_stage_weights_by_hand():
    truth = torch.zeros(1, 1, 1)
    stages = tuple(torch.full((1, 1, 1), e) for e in (1.5, 2.5, 3.5, 4.5))
    loss = losses.multi_stage_smooth_l1(stages, truth)
    assert loss.item() == pytest.approx(0.5 * 1 + 0.5 * 2 + 3 + 4)
    without_last = losses.multi_stage_smooth_l1(stages, truth, weights=(0.5, 0.5, 1.0, 0.0))
    assert without_last.item() == pytest.approx(0.5 * 1 + 0.5 * 2 + 3)


def test_multi_stage_refuses_other_numbers():
    with pytest.raises(losses.LossError, match='1 stages but 4 weights'):
        losses.multi_stage_smooth_l1((torch.zeros(1, 1, 1),), torch.zeros(1, 1, 1))
    with pytest.raises(losses.LossError, match='every stage weight is 0'):
        losses.multi_stage_smooth_l1((torch.zeros(1, 1, 1),), torch.zeros(1, 1, 1), None, (0.0,))


# DSNet


def test_log_l1_by_hand():
    pred = torch.tensor([[[0.0, 3.5]]])
    loss = losses.log_l1_v2(pred, torch.zeros(1, 1, 2))
    assert loss.item() == pytest.approx((math.log(0.5) + math.log(4.0)) / 2)


def test_cosine_by_hand_and_scale_free():
    student = torch.tensor([[1.0, 1.0], [0.0, 1.0]]).view(1, 2, 1, 2)
    teacher = torch.tensor([[2.0, 0.0], [0.0, 3.0]]).view(1, 2, 1, 2)
    loss = losses.cosine_distillation(student, teacher)
    assert loss.item() == pytest.approx((0.0 + 1.0 - math.sqrt(0.5)) / 2, rel=1e-5)
    scaled = losses.cosine_distillation(7.0 * student, teacher)
    torch.testing.assert_close(loss, scaled)


def test_cosine_takes_volumes_and_zero_vectors():
    student = torch.zeros(1, 4, 3, 2, 2, requires_grad=True)
    loss = losses.cosine_distillation(student, torch.rand(1, 4, 3, 2, 2))
    loss.backward()
    assert loss.item() == pytest.approx(1.0) and torch.isfinite(student.grad).all()


def test_soft_cross_entropy_by_hand_and_free_of_the_batch():
    student, teacher = logits_of(0.5, 0.5), logits_of(0.9, 0.1)
    loss = losses.soft_cross_entropy(student, teacher)
    assert loss.item() == pytest.approx(math.log(2), rel=1e-5)
    batch = losses.soft_cross_entropy(student.repeat(8, 1, 1, 1), teacher.repeat(8, 1, 1, 1))
    torch.testing.assert_close(loss, batch)


def test_dsnet_schedule():
    assert losses.dsnet_weights(0) == pytest.approx(
        {'ground_truth': 1.0, 'features': 1.0, 'soft': 0.2, 'teacher_pixels': 0.1}
    )
    features = [losses.dsnet_weights(epoch)['features'] for epoch in range(6)]
    assert features == pytest.approx([1.0, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert losses.dsnet_weights(5)['teacher_pixels'] == 0.1


def test_losses_stay_float32_under_bfloat16():
    student, teacher = scores(0).bfloat16(), scores(1).bfloat16()
    for name, loss in VOLUME_LOSSES.items():
        assert loss(student, teacher, None).dtype == torch.float32, name
    assert (
        losses.smooth_l1_disparity(torch.zeros(1, 1, 1).bfloat16(), torch.ones(1, 1, 1)).dtype
        == torch.float32
    )
