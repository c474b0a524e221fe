# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Teachers brought to students, and objectives made of the right terms with the right weights."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the training extra is not installed')

from stereo_kd_training import losses, networks  # noqa: E402
from stereo_kd_training.distill import (  # noqa: E402
    Distillation,
    DistillError,
    NetworkTeacher,
    Objective,
    StoredTeacher,
    TeacherAnswer,
    as_logits,
    finest_distribution,
    sample_trust,
    stored_distribution,
    teacher_distribution,
)
from stereo_kd_training.networks import StereoOutput  # noqa: E402
from stereo_kd_training.teachers import TopK, TorchTeacher  # noqa: E402
from stereo_kd_training.train import Batch  # noqa: E402

BINS = torch.arange(0.0, 16.0, 4.0)


def batch(height: int = 4, width: int = 8, truth: float = 6.0, **teacher) -> Batch:
    images = torch.randint(0, 256, (2, 3, height, width), dtype=torch.uint8)
    return Batch(images, images.clone(), torch.full((2, height, width), truth), **teacher)


def student_output(seed: int = 0, height: int = 4, width: int = 8) -> StereoOutput:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 4, height // 4, width // 4, generator=generator).requires_grad_()
    disparity = torch.rand(2, height, width, generator=generator).requires_grad_()
    return StereoOutput(disparity, logits=(logits,), hypotheses=(BINS,))


class FixedTeacher:
    """Says the same of every batch."""

    def __init__(self, answer: TeacherAnswer) -> None:
        self.answer = answer

    def __call__(self, batch: Batch) -> TeacherAnswer:
        return self.answer


def full_answer(seed: int = 1) -> TeacherAnswer:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 16, 4, 8, generator=generator)
    bins = torch.arange(16.0)
    disparity = (logits.softmax(1) * bins.view(1, -1, 1, 1)).sum(1)
    return TeacherAnswer(disparity, torch.rand(2, 4, 8, generator=generator), logits, bins)


# Bringing a teacher to a student


def test_a_finer_teacher_keeps_its_mean_on_the_students_grid():
    answer = full_answer()
    probabilities, known = teacher_distribution(answer, BINS, (1, 2))
    assert probabilities.shape == (2, 4, 1, 2) and known.all()
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 1, 2))
    inside = TeacherAnswer(answer.disparity, None, answer.logits[:, :13], torch.arange(13.0))
    probabilities, _ = teacher_distribution(inside, BINS, (1, 2))
    mean = (probabilities * BINS.view(1, -1, 1, 1)).sum(1)
    full = (inside.logits.softmax(1) * torch.arange(13.0).view(1, -1, 1, 1)).sum(1)
    torch.testing.assert_close(mean, torch.nn.functional.avg_pool2d(full, 4))


@pytest.mark.parametrize('size', [(4, 2), (1, 8), (2, 16), (8, 2), (8, 8)])
def test_cells_of_teacher_and_student_may_differ_in_one_direction(size):
    answer = full_answer()
    probabilities, _ = teacher_distribution(answer, torch.arange(16.0), size)
    assert probabilities.shape == (2, 16, *size)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, *size))
    # A distribution that is the same in each row, or column, stays so.
    rows = answer.logits[:, :, :1].expand_as(answer.logits)
    columns = answer.logits[..., :1].expand_as(answer.logits)
    for logits, across in ((rows, 2), (columns, 3)):
        alike = TeacherAnswer(answer.disparity, None, logits, answer.hypotheses)
        seen, _ = teacher_distribution(alike, torch.arange(16.0), size)
        torch.testing.assert_close(seen, seen.narrow(across, 0, 1).expand_as(seen))


def test_the_same_grid_changes_nothing():
    answer = full_answer()
    probabilities, _ = teacher_distribution(answer, torch.arange(16.0), (4, 8))
    torch.testing.assert_close(probabilities, answer.logits.softmax(1))
    torch.testing.assert_close(as_logits(probabilities).softmax(1), probabilities)


def test_a_disparity_becomes_a_distribution_round_it():
    disparity = torch.full((2, 4, 8), 6.0)
    disparity[0] = math.nan
    probabilities, known = teacher_distribution(TeacherAnswer(disparity), BINS, (1, 2), 0.01)
    assert not known[0].any() and known[1].all()
    torch.testing.assert_close(
        probabilities[1, :, 0, 0], torch.tensor([0.0, 0.5, 0.5, 0.0]), atol=1e-2, rtol=0
    )


def test_temperature_sharpens_before_the_grids_are_matched():
    answer = full_answer()
    sharp, _ = teacher_distribution(answer, torch.arange(16.0), (4, 8), temperature=0.5)
    torch.testing.assert_close(sharp, (answer.logits / 0.5).softmax(1))


def test_a_network_teacher_answers_crops_that_are_no_multiple_of_its_stride():
    network = networks.create('gwcnet_g', max_disparity_px=32)
    teacher = NetworkTeacher(network)
    answer = teacher(batch(24, 40))
    assert answer.disparity.shape == (2, 24, 40)
    assert answer.logits.shape == (2, 32, 24, 40)
    assert answer.volume.shape == (2, 8, 6, 10)
    # Eight bins over 32 px, each in the middle of the four that it stands for.
    torch.testing.assert_close(answer.volume_hypotheses, torch.arange(8) * 4.0 + 1.5)
    assert not any(p.requires_grad for p in network.parameters())
    assert not answer.logits.requires_grad


def test_stored_answers_that_are_not_there_are_told():
    with pytest.raises(DistillError, match='fill the cache'):
        StoredTeacher()(batch())
    stored = batch(teacher_disparity=torch.ones(2, 4, 8), teacher_confidence=torch.ones(2, 4, 8))
    assert StoredTeacher()(stored).disparity.mean() == 1.0


def stored_batch(top: list[TopK], magnified: tuple[float, ...] = (1.0, 1.0)) -> Batch:
    """Two pairs of 4x8 px with these answers, the second magnified by as much."""
    return batch(
        teacher_disparity=torch.ones(2, 4, 8),
        teacher_confidence=torch.ones(2, 4, 8),
        teacher_indices=torch.from_numpy(np.stack([t.indices for t in top]).astype(np.int32)),
        teacher_probabilities=torch.from_numpy(np.stack([t.probabilities for t in top])),
        teacher_hypotheses=torch.stack(
            [torch.from_numpy(t.hypotheses * np.float32(m)) for t, m in zip(top, magnified)]
        ),
    )


def most_probable(seed: int, k: int, bins: int = 8) -> TopK:
    """The k most probable of random distributions over 0, 2, 4... px on 4x8 cells."""
    scores = torch.randn(bins, 4, 8, generator=torch.Generator().manual_seed(seed)) * 3
    kept, indices = scores.softmax(0).topk(k, 0)
    return TopK(
        indices.numpy().astype(np.uint8),
        kept.numpy().astype(np.float16),
        2 * np.arange(bins, dtype=np.float32),
    )


@pytest.mark.parametrize('k', [1, 3, 8])
def test_what_was_kept_of_a_distribution_becomes_scores_again(k):
    top = [most_probable(seed, k) for seed in (0, 1)]
    answer = StoredTeacher()(stored_batch(top))
    expected = np.stack([t.dense() for t in top])
    np.testing.assert_allclose(answer.logits.softmax(1), expected, atol=1e-6)
    assert answer.hypotheses.tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_a_magnified_pair_has_magnified_disparities():
    top = [most_probable(seed, 8) for seed in (0, 1)]
    probabilities, hypotheses = stored_distribution(stored_batch(top, (1.0, 1.25)))
    assert hypotheses.tolist() == [2.5 * i for i in range(8)]
    means = (probabilities * hypotheses.view(1, -1, 1, 1)).sum(1)
    expected = [(t.dense() * t.hypotheses[:, None, None]).sum(0) for t in top]
    np.testing.assert_allclose(means[0], expected[0], atol=1e-3)
    np.testing.assert_allclose(means[1], 1.25 * expected[1], atol=1e-3)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(2, 4, 8))


@pytest.mark.parametrize('method', ['dtp', 'compact'])
def test_a_student_learns_from_the_cache_what_it_would_from_the_network(method):
    """All hypotheses kept, no colours: only float16 lies between the two."""
    network = networks.create('anynet', max_disparity_px=64, exit_stage=1)
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (2, 1, 3, 64, 96), generator=generator, dtype=torch.uint8)
    asked = Batch(images[0], images[1], torch.full((1, 64, 96), 6.0))
    arrays = [image[0].permute(1, 2, 0).numpy() for image in images]
    answer = TorchTeacher(network, top_k=4).predict(*arrays)
    top = answer.distribution
    stored = replace(
        asked,
        teacher_disparity=torch.from_numpy(answer.disparity)[None],
        teacher_confidence=torch.from_numpy(answer.confidence)[None],
        teacher_indices=torch.from_numpy(top.indices.astype(np.int32))[None],
        teacher_probabilities=torch.from_numpy(top.probabilities)[None],
        teacher_hypotheses=torch.from_numpy(top.hypotheses)[None],
    )
    logits = torch.randn(1, 4, 4, 6, generator=generator)
    output = StereoOutput(
        torch.zeros(1, 64, 96), logits=(logits,), hypotheses=(torch.from_numpy(top.hypotheses),)
    )
    settings = Distillation(method=method, signal='teacher')
    in_memory, terms = Objective(settings, NetworkTeacher(network), 10)(output, asked, 0)
    from_disk, stored_terms = Objective(settings, StoredTeacher(), 10)(output, stored, 0)
    for name in terms:
        if name == 'volume':
            continue  # scores of a network have a constant that its distribution lacks
        torch.testing.assert_close(stored_terms[name], terms[name], atol=3e-3, rtol=3e-3)
    if method == 'dtp':
        torch.testing.assert_close(from_disk, in_memory, atol=3e-3, rtol=3e-3)
    else:
        output.logits = (logits + 5.0,)
        moved, _ = Objective(settings, StoredTeacher(), 10)(output, stored, 0)
        torch.testing.assert_close(moved, from_disk, atol=1e-4, rtol=1e-4)


def test_the_finest_stage_with_a_distribution_is_taken():
    first, third = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    output = StereoOutput(
        torch.zeros(1, 4, 4),
        logits=(first, third, None),
        hypotheses=(BINS[:2], BINS[:2], None),
    )
    assert finest_distribution(output)[0] is third
    assert finest_distribution(StereoOutput(torch.zeros(1, 4, 4))) == (None, None)


# Objectives


def parts(settings: Distillation, step: int = 0, steps: int = 11, answer=None):
    output = student_output()
    objective = Objective(settings, FixedTeacher(answer or full_answer()), steps)
    total, terms = objective(output, batch(), step)
    total.backward()
    return output, total.detach(), {k: v.detach() for k, v in terms.items()}


def test_dtp_is_equation_4_at_the_temperature_of_the_step():
    for step, temperature in ((0, 0.5), (5, 0.75), (10, 1.0)):
        output, total, terms = parts(Distillation(), step)
        teacher, _ = teacher_distribution(full_answer(), BINS, (1, 2), temperature=temperature)
        student = (output.logits[0] / temperature).softmax(1)
        expected = (student - teacher).abs().sum(1).mean()
        torch.testing.assert_close(total, expected.detach())
        assert set(terms) == {'dtp_l1'}
        assert output.disparity.grad is None, 'the signal is the teacher alone'


def test_signals():
    truth = losses.smooth_l1_disparity(student_output().disparity, torch.full((2, 4, 8), 6.0))
    _, ground_truth, terms = parts(Distillation(signal='ground_truth'))
    torch.testing.assert_close(ground_truth, truth.detach())
    assert set(terms) == {'ground_truth'}
    _, teacher, _ = parts(Distillation(signal='teacher'))
    _, both, _ = parts(Distillation(signal='both'))
    torch.testing.assert_close(both, ground_truth + teacher)


def test_compact_weighs_its_terms_as_the_paper():
    settings = Distillation(method='compact', signal='both', trust='confidence')
    _, total, terms = parts(settings)
    expected = terms['ground_truth'] + 0.2 * terms['volume'] + 0.3 * terms['focal']
    torch.testing.assert_close(total, expected)
    _, _, unweighted = parts(Distillation(method='compact', signal='both'))
    assert terms['volume'] < unweighted['volume'], 'K of the confidence is below 1'
    _, _, squared = parts(Distillation(method='compact', signal='both', volume_distance='l2'))
    assert squared['volume'] > unweighted['volume'], 'no distance is as large as its square here'


def test_dsnet_fades_its_soft_term():
    settings = Distillation(method='dsnet', signal='both', steps_per_epoch=10)
    for step, fade in ((0, 1.0), (10, 0.1), (25, 0.01)):
        _, total, terms = parts(settings, step)
        expected = terms['ground_truth'] + 0.2 * fade * terms['soft']
        torch.testing.assert_close(total, expected + 0.1 * terms['teacher_pixels'])


def test_dsnet_compares_features_where_both_have_them():
    answer = full_answer()
    answer.features['volume'] = torch.randn(2, 3, 4, 1, 2)
    output = student_output()
    output.features['volume'] = torch.randn(2, 3, 4, 1, 2, requires_grad=True)
    settings = Distillation(method='dsnet', signal='both')
    _, terms = Objective(settings, FixedTeacher(answer), 10)(output, batch(), 0)
    expected = 5.0 * losses.cosine_distillation(
        output.features['volume'], answer.features['volume']
    )
    torch.testing.assert_close(terms['features'], expected)
    output.features['volume'] = torch.randn(2, 7, 4, 1, 2)
    with pytest.raises(DistillError, match='ACVNet'):
        Objective(settings, FixedTeacher(answer), 10)(output, batch(), 0)


def test_trust_falls_with_the_teachers_own_error():
    truth = torch.zeros(3, 2, 2)
    teacher = torch.stack([torch.full((2, 2), e) for e in (1.0, 2.0, 9.0)])
    valid = torch.ones(3, 2, 2, dtype=torch.bool)
    trust = sample_trust(teacher, truth, valid, (1.0, 3.0))
    torch.testing.assert_close(trust, torch.tensor([1.0, 0.5, 0.0]))
    unknown = sample_trust(teacher, truth, torch.zeros_like(valid), (1.0, 3.0))
    assert unknown.tolist() == [1.0, 1.0, 1.0]


def test_what_an_objective_lacks_is_told():
    with pytest.raises(DistillError, match='needs a teacher'):
        Objective(Distillation(signal='both'), None, 10)
    with pytest.raises(DistillError, match='trust_bounds_px'):
        Objective(Distillation(method='compact', trust='min_max'), FixedTeacher(full_answer()), 10)
    objective = Objective(Distillation(), FixedTeacher(full_answer()), 10)
    with pytest.raises(DistillError, match='no distribution'):
        objective(StereoOutput(torch.zeros(2, 4, 8)), batch(), 0)


def test_without_truth_the_teacher_still_teaches():
    output = student_output()
    settings = Distillation(method='dsnet', signal='both')
    total, terms = Objective(settings, FixedTeacher(full_answer()), 10)(
        output, batch(truth=math.nan), 0
    )
    total.backward()
    assert terms['ground_truth'] == 0 and terms['teacher_pixels'] > 0
    assert torch.isfinite(output.disparity.grad).all()
