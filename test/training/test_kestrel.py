# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel's parts against their definitions, and the network as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tiny_kestrel import TINY  # noqa: E402

from stereo_kd_training.complexity import complexity  # noqa: E402
from stereo_kd_training.export import export_network  # noqa: E402
from stereo_kd_training.networks import NetworkError, create  # noqa: E402
from stereo_kd_training.networks.kestrel import (  # noqa: E402
    _ConvolutionNorm,
    _Up,
    convex_upsample,
    correlation_volume,
    window_regression,
    with_cells,
)
from stereo_kd_training.prune import prune_to_ratio, save_network  # noqa: E402
from stereo_kd_training.train import (  # noqa: E402
    LossWeights,
    keep_statistics,
    load_weights,
    supervised_loss,
)


@settings(max_examples=20, deadline=None)
@given(
    width=st.integers(1, 12),
    height=st.integers(1, 3),
    channels=st.integers(1, 4),
    hypotheses=st.integers(1, 14),
    seed=st.integers(0, 1000),
)
def test_volume_is_the_inner_product_of_x_with_x_minus_d(
    width, height, channels, hypotheses, seed
):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(2, channels, height, width, generator=generator)
    right = torch.randn(2, channels, height, width, generator=generator)
    volume = correlation_volume(left, right, hypotheses)
    assert volume.shape == (2, hypotheses, height, width)
    for k in range(hypotheses):
        disparity = hypotheses - 1 - k
        for x in range(width):
            expected = torch.zeros(2, height)
            if x - disparity >= 0:
                expected = (left[..., x] * right[..., x - disparity]).sum(1)
            torch.testing.assert_close(volume[:, k, :, x], expected)


def test_a_shifted_texture_peaks_at_its_shift():
    texture = torch.nn.functional.normalize(torch.randn(1, 16, 5, 60), dim=1)
    shift, hypotheses = 7, 16
    left, right = texture[..., :40], texture[..., shift : shift + 40]
    volume = correlation_volume(left, right, hypotheses)
    best = hypotheses - 1 - volume.argmax(1)
    assert (best[..., shift:] == shift).all()


def test_window_regression_interpolates_and_ignores_the_far_mode():
    logits = torch.full((1, 10, 1, 1), -30.0)
    logits[0, 3], logits[0, 4] = 0.0, 0.0  # a surface half way between 3 and 4
    logits[0, 9] = -0.1  # another one, nearly as likely
    value, mass = window_regression(logits, torch.arange(10.0), 2)
    assert value.item() == pytest.approx(3.5, abs=1e-5)
    likelihood_far = torch.exp(torch.tensor(-0.1)).item()
    assert mass.item() == pytest.approx(2 / (2 + likelihood_far), abs=1e-5)


def test_convex_upsampling_keeps_a_constant_and_stays_between_neighbours():
    weights = torch.randn(1, 9 * 16, 4, 5) * 3
    constant = torch.full((1, 1, 4, 5), 7.25)
    torch.testing.assert_close(
        convex_upsample(constant, weights, (4, 4)), torch.full((1, 1, 16, 20), 7.25)
    )
    coarse = torch.rand(1, 1, 4, 5)
    fine = convex_upsample(coarse, weights, (4, 4))
    assert fine.min() >= coarse.min() - 1e-6 and fine.max() <= coarse.max() + 1e-6


def test_convex_upsampling_puts_each_fine_pixel_in_its_own_cell():
    coarse = torch.arange(12.0).view(1, 1, 3, 4)
    weights = torch.full((1, 9, 16, 3, 4), -10.0)
    weights[:, 4] = 10.0  # the middle of the 3x3 neighbourhood takes all
    fine = convex_upsample(coarse, weights.flatten(1, 2), (4, 4))
    expected = coarse.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(fine, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize('size', [(64, 96), (32, 160)])
def test_output_has_the_size_of_the_input_and_both_eyes_matter(size):
    torch.manual_seed(0)
    network = create('kestrel', **TINY).eval()
    left, right = torch.randn(2, 3, *size), torch.randn(2, 3, *size)
    with torch.no_grad():
        output = network(left, right)
        other = network(left, torch.roll(right, 9, -1))
    assert output.disparity.shape == output.confidence.shape == (2, *size)
    assert output.disparity.min() >= 0 and output.disparity.max() <= 60
    assert ((output.confidence >= 0) & (output.confidence <= 1)).all()
    assert (output.disparity - other.disparity).abs().max() > 0.1


def test_the_small_kestrel_has_the_size_it_is_described_with():
    assert create('kestrel').parameter_count() == 473_698


def test_kept_statistics_are_folded_in_training_to_the_same_answers_and_gradients(monkeypatch):
    torch.manual_seed(3)
    network = create('kestrel', **TINY).double()
    norms = [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
        torch.nn.init.normal_(norm.bias)
    network.train()
    keep_statistics(network)
    images = [torch.randint(0, 256, (2, 3, 64, 96)).double() for _ in range(2)]
    asked = []
    plain = torch.nn.BatchNorm2d.forward
    monkeypatch.setattr(
        torch.nn.BatchNorm2d, 'forward', lambda norm, x: asked.append(norm) or plain(norm, x)
    )

    def learnt() -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        asked.clear()
        network.zero_grad()
        answer = network(*images)
        (answer.disparity.square().mean() + answer.logits[0].square().mean()).backward()
        learning = [(n, p.grad) for n, p in network.named_parameters() if p.grad is not None]
        gradients = {name: gradient.clone() for name, gradient in learning}
        return answer.disparity.detach(), gradients

    disparity, gradients = learnt()
    assert not asked
    monkeypatch.setattr(_ConvolutionNorm, 'forward', torch.nn.Sequential.forward)
    expected, of_both = learnt()
    assert set(asked) == set(norms)
    assert len(gradients) > len(norms)
    torch.testing.assert_close(disparity, expected)
    torch.testing.assert_close(gradients, of_both)
    # Who listens to a layer hears it.
    monkeypatch.undo()
    heard = []
    norms[0].register_forward_hook(lambda *_: heard.append(1))
    network(*images)
    assert heard


def test_statistics_that_are_learnt_are_learnt():
    network = create('kestrel', **TINY).train()
    norm = next(m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d))
    before = norm.running_mean.clone()
    network(*(torch.rand(2, 2, 3, 64, 96) * 255))
    assert not torch.equal(norm.running_mean, before)


def test_a_range_that_is_no_multiple_of_four_is_refused():
    with pytest.raises(NetworkError, match='multiple of 4'):
        create('kestrel', max_disparity_px=190)


@pytest.mark.parametrize(
    'rows, cell', [(2, 2), (3, 3), (5, 5), (6, 6), (6, 3), (4, 3), (3, 4), (8, 6)]
)
def test_finer_cells_are_the_same_network_on_larger_images(rows, cell):
    """From weights of the coarse one, the coarse answer on enlarged images, in smaller pixels."""
    torch.manual_seed(0)
    coarse = create('kestrel', **{**TINY, 'max_disparity_px': 48}).eval()
    options = {**TINY, 'max_disparity_px': 12 * cell, 'cell_px': cell, 'cell_height_px': rows}
    fine = create('kestrel', **options).eval()
    fine.load_state_dict(fine.fitted(coarse.state_dict()))
    height, width = 16 * rows, 32 * cell
    left, right = torch.randn(2, 1, 3, height, width)
    large = [torch.nn.functional.interpolate(x, (64, 128), mode='bilinear') for x in (left, right)]
    with torch.no_grad():
        expected, output = coarse(*large), fine(left, right)
    assert output.disparity.shape == output.confidence.shape == (1, height, width)
    torch.testing.assert_close(
        output.features['coarse'] / cell, expected.features['coarse'] / 4, atol=1e-4, rtol=1e-4
    )
    assert output.disparity.max() <= 12 * cell


@pytest.mark.parametrize('before, after', [(32, 48), (48, 32)])
def test_weights_of_another_range_are_a_start(before, after):
    torch.manual_seed(0)
    first = create('kestrel', **{**TINY, 'max_disparity_px': before}).eval()
    second = create('kestrel', **{**TINY, 'max_disparity_px': after}).eval()
    second.load_state_dict(second.fitted(first.state_dict()))
    left, right = torch.randn(2, 1, 3, 64, 96)
    with torch.no_grad():
        (one,), (two,) = first(left, right).logits, second(left, right).logits
    common = min(before, after) // 4
    if after > before:  # what the new hypotheses match is not seen yet
        torch.testing.assert_close(one[:, -common:], two[:, -common:], atol=1e-4, rtol=1e-4)
    assert two.shape[1] == after // 4


WIDER = {'encoder': (24, 32, 40), 'aggregation': (24, 40, 48, 56), 'context': 24}


@pytest.mark.parametrize(
    'more', [{}, WIDER, {'blocks': (2, 3, 3, 2)}, {**WIDER, 'blocks': (2, 3, 2, 3)}]
)
def test_a_larger_network_starts_with_what_a_smaller_one_knows(more):
    torch.manual_seed(0)
    small = create('kestrel', **TINY)
    small.train()
    for _ in range(2):  # norms with statistics of their own
        small(*torch.randn(2, 2, 3, 64, 96))
    large = create('kestrel', **{**TINY, **more})
    large.load_state_dict(large.fitted(small.state_dict()))
    left, right = torch.randn(2, 1, 3, 64, 96)
    with torch.no_grad():
        expected, output = small.eval()(left, right), large.eval()(left, right)
    torch.testing.assert_close(output.disparity, expected.disparity, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output.confidence, expected.confidence, atol=1e-4, rtol=1e-4)
    # and learns in all of what is new: the readers first, then what they read
    large.train()
    optimizer = torch.optim.SGD(large.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        large(left, right).logits[0].square().mean().backward()
        optimizer.step()
    not_of_logits = ('guide', 'upsampling', 'aggregation.confidence')
    for name, parameter in large.named_parameters():
        assert name.startswith(not_of_logits) or parameter.grad.any(), name


def test_cells_of_a_trained_network_may_be_changed():
    """A texture shifted by whole pixels lies as far apart whatever the cells."""
    torch.manual_seed(0)
    network = create('kestrel', **{**TINY, 'max_disparity_px': 48}).eval()
    finer = with_cells(network, 3)
    assert (finer.cell_px, finer.hypotheses, finer.max_disparity_px) == (3, 16, 48.0)
    assert finer.configuration['options']['cell_px'] == 3 and network.cell_px == 4
    twice = with_cells(finer, 4)
    left, right = torch.randn(2, 1, 3, 96, 192)
    with torch.no_grad():
        expected, output = network(left, right), twice(left, right)
    torch.testing.assert_close(output.logits[0][:, -12:], expected.logits[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    'first, second',
    [
        ((3, 6), (3, None)),
        ((3, 4), (3, 6)),
        ((4, 6), (4, 3)),
        ((4, 6), (3, 6)),
        ((6, 4), (4, None)),
        ((6, 8), (6, None)),
    ],
)
def test_cells_need_not_be_square(first, second):
    """Weights between two shapes of cells keep their logits: matching sees the same picture."""
    torch.manual_seed(0)
    options = {**TINY, 'max_disparity_px': 48}
    one = create('kestrel', **options, cell_px=first[0], cell_height_px=first[1]).eval()
    other = with_cells(one, *second)
    assert other.cell == (second[1] or second[0], second[0])
    cells_high, cells_wide = 8, 16
    logits = []
    for network in (one, other):
        size = (cells_high * network.cell[0], cells_wide * network.cell[1])
        left, right = (torch.ones(1, 3, *size) * shade for shade in (0.3, -0.2))
        with torch.no_grad():
            output = network(left, right)
        assert output.disparity.shape[1:] == output.confidence.shape[1:] == size
        logits.append(output.logits[0])
    common = one.hypotheses
    assert logits[0].shape[2:] == logits[1].shape[2:] == (cells_high, cells_wide)
    torch.testing.assert_close(
        logits[0][:, -common:], logits[1][:, -common:], atol=1e-3, rtol=1e-3
    )


def test_a_plane_at_a_known_disparity_trains_tall_cells():
    """The truth of a cell is that in its middle, whatever its shape."""
    torch.manual_seed(0)
    network = create('kestrel', **{**TINY, 'max_disparity_px': 36}, cell_px=3, cell_height_px=6)
    output = network(*torch.randn(2, 1, 3, 48, 72))
    rows = torch.arange(48.0).view(1, 48, 1).expand(1, 48, 72) / 6
    perfect = replace(
        output,
        features={**output.features, 'coarse': rows[:, None, 3::6, 1::3].clone()},
        logits=(),
        hypotheses=(),
        stages=(rows,),
    )
    _, terms = supervised_loss(perfect, rows, LossWeights())
    assert terms['coarse'] == 0.0 and terms['disparity'] == 0.0


def test_cells_of_what_has_none_are_refused():
    with pytest.raises(NetworkError, match='this is AnyNet'):
        with_cells(create('anynet'), 3)
    with pytest.raises(NetworkError, match='multiple of 5'):
        with_cells(create('kestrel', **{**TINY, 'max_disparity_px': 48}), 5)


def test_a_pruned_network_keeps_its_widths_in_other_cells(tmp_path):
    torch.manual_seed(0)
    pruned = create('kestrel', **TINY)
    prune_to_ratio(pruned, 0.5, round_to=4)
    images = torch.rand(2, 1, 3, 96, 192)
    tall = with_cells(pruned, 4, 6)
    again = with_cells(tall, 4)
    assert again.configuration['widths'] == pruned.configuration['widths']
    with torch.no_grad():
        assert tall(*images).disparity.shape == (1, 96, 192)
        answer = pruned(*images)
        # Convex weights are interpolated on the way; what lies before them is the same.
        torch.testing.assert_close(again(*images).features['coarse'], answer.features['coarse'])
    coarse = with_cells(pruned, 2)
    assert coarse.aggregation.logits.out_channels == coarse.hypotheses == 2 * pruned.hypotheses
    for name, parameter in coarse.named_parameters():
        if not name.startswith(('upsampling.1.', 'aggregation.logits.', 'aggregation.enter.0.')):
            torch.testing.assert_close(parameter, pruned.state_dict()[name])

    save_network(pruned, tmp_path / 'pruned.pt')
    started = create('kestrel', **{**TINY, 'cell_px': 2})
    load_weights(started, tmp_path / 'pruned.pt')
    assert started.configuration == coarse.configuration
    torch.testing.assert_close(started.state_dict(), coarse.state_dict())


def test_a_smaller_network_is_not_started_from_a_larger_one():
    torch.manual_seed(0)
    small, large = create('kestrel', **TINY), create('kestrel', **{**TINY, **WIDER})
    with pytest.raises(RuntimeError, match='size mismatch'):
        small.load_state_dict(small.fitted(large.state_dict()))


@pytest.mark.parametrize(
    'rows, cell', [(2, 2), (3, 3), (5, 5), (6, 6), (6, 3), (4, 3), (6, 4), (8, 6)]
)
def test_finer_cells_are_exported(rows, cell, tmp_path):
    torch.manual_seed(0)
    options = {**TINY, 'max_disparity_px': 12 * cell, 'cell_px': cell, 'cell_height_px': rows}
    network = create('kestrel', **options).eval()
    # Of columns as many as four products of a resize read; those of six are the stem's own.
    assert network.strides == (rows, {2: 4, 3: 12, 4: 4, 5: 20, 6: 6}[cell])
    assert network.stride % (8 * rows) == network.stride % (8 * cell) == 0
    export_network(network, tmp_path / 'fine.onnx', sizes=((48 * rows, 96), (50, 83)))


def test_a_size_between_the_strides_is_counted_as_it_is_padded():
    network = create('kestrel', **{**TINY, 'max_disparity_px': 48, 'cell_px': 3})
    assert complexity(network, 97, 640).macs == complexity(network, 99, 648).macs > 0


@pytest.mark.parametrize('rows, columns', [(11, 13), (8, 9), (1, 1), (9, 16)])
def test_any_number_of_cells_goes_through_all_levels(rows, columns):
    network = create('kestrel', **{**TINY, 'max_disparity_px': 48, 'cell_px': 6}).eval()
    with torch.no_grad():
        found = network(*torch.rand(2, 1, 3, 6 * rows, 6 * columns))
    assert found.features['coarse'].shape == (1, 1, rows, columns)
    assert found.disparity.shape == (1, 6 * rows, 6 * columns)
    assert torch.isfinite(found.disparity).all()


def test_an_odd_side_is_enlarged_without_a_shift():
    up = _Up(2, 2, 1, 1).eval()
    up.lateral, up.refine = torch.nn.Identity(), torch.nn.Identity()
    coarse = torch.arange(12.0).view(1, 2, 2, 3)
    found = up(coarse, torch.zeros(1, 2, 3, 5))
    expected = coarse.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :3, :5]
    torch.testing.assert_close(found, expected)


def test_cells_of_another_size_are_refused():
    with pytest.raises(NetworkError, match='cell_px is 8'):
        create('kestrel', cell_px=8)
    with pytest.raises(NetworkError, match='cell_height_px is 7'):
        create('kestrel', cell_px=3, cell_height_px=7)


def test_unknown_names_and_options_are_explained():
    with pytest.raises(NetworkError, match="did you mean 'kestrel'"):
        create('kestral')
    with pytest.raises(NetworkError, match='wings'):
        create('kestrel', wings=2)


def test_a_temperature_softens_the_distribution_and_nothing_else():
    torch.manual_seed(3)
    network = create('kestrel', **TINY).eval()
    left, right = (torch.randn(1, 3, 32, 64) for _ in range(2))
    with torch.no_grad():
        before = network(left, right)
        network.temper(2.0)
        after = network(left, right)
    torch.testing.assert_close(after.logits[0], before.logits[0] / 2)
    torch.testing.assert_close(after.features['volume'], before.features['volume'])
    with pytest.raises(NetworkError, match='expected more than 0'):
        network.temper(0.0)
    with pytest.raises(NetworkError, match='anynet has no temperature'):
        create('anynet').temper(2.0)
