# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Kestrel's refinement: what it compares, what it changes, how it is trained and shipped."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tiny_kestrel import TINY  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from stereo_kd_ros.model import read_manifest  # noqa: E402
from stereo_kd_training.complexity import complexity  # noqa: E402
from stereo_kd_training.export import build_manifest, export_again, export_network  # noqa: E402
from stereo_kd_training.networks import NetworkError, build, create, deployed  # noqa: E402
from stereo_kd_training.networks.kestrel import (  # noqa: E402
    FARTHEST_NEIGHBOUR,
    REFINED_STEPS,
    local_costs,
    neighbourhood,
    with_cells,
    with_refinement,
)
from stereo_kd_training.networks.shipped import load_shipped  # noqa: E402
from stereo_kd_training.prune import find_unprunable, prune_to_ratio  # noqa: E402
from stereo_kd_training.train import (  # noqa: E402
    LossWeights,
    Trainer,
    TrainingConfig,
    TrainingError,
    supervised_loss,
)

REFINED = {**TINY, 'refined': (4, 8, 1)}
WITH_FEATURES = {**TINY, 'refined': (4, 8, 1, 6)}
STEPS = range(-REFINED_STEPS, REFINED_STEPS + 1)


def refined(**options):
    """A tiny network whose refinement says something."""
    torch.manual_seed(3)
    network = create('kestrel', **{**REFINED, **options}).eval()
    torch.nn.init.normal_(network.refinement.offset.weight, std=0.3)
    if network.refinement.features is not None:
        torch.nn.init.normal_(network.refinement.features[1].weight, std=0.3)
    return network


@pytest.mark.parametrize('wrong_by', [-1, 0, 2])
def test_costs_vanish_at_the_shift_of_a_texture(wrong_by):
    texture = torch.rand(2, 3, 8, 90)
    shift = 12
    left, right = texture[..., :60], texture[..., shift : shift + 60]
    costs = local_costs(left, right, torch.full((2, 1, 4, 30), float(shift + wrong_by)))
    by_step = costs.view(2, len(STEPS), 3, 4, 30)[..., shift // 2 + 2 :].sum((0, 2, 3, 4))
    assert [step for step, cost in zip(STEPS, by_step) if cost == 0] == [-wrong_by]


def test_a_cost_is_the_difference_at_two_by_two_pixels_and_the_border_goes_on():
    torch.manual_seed(0)
    left, right = torch.rand(2, 1, 2, 4, 6)
    costs = local_costs(left, right, torch.tensor([[3.0, 0, 9], [1, 2, 0]]).view(1, 1, 2, 3))
    for row, column, whole in ((0, 0, 3), (1, 2, 0), (0, 2, 9), (1, 0, 1)):
        for index, step in enumerate(STEPS):
            for channel in range(2):
                expected = sum(
                    abs(left[0, channel, y, x] - right[0, channel, y, min(max(at, 0), 5)])
                    for y in (2 * row, 2 * row + 1)
                    for x in (2 * column, 2 * column + 1)
                    for at in [x - whole - step]
                )
                assert costs[0, 2 * index + channel, row, column] == pytest.approx(expected.item())


@settings(max_examples=30, deadline=None)
@given(
    batch=st.integers(1, 2),
    channels=st.integers(1, 5),
    rows=st.integers(1, 4),
    columns=st.integers(1, 9),
    seed=st.integers(0, 1000),
)
def test_the_deployed_costs_are_the_same(batch, channels, rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.rand(2, batch, channels, 2 * rows, 2 * columns, generator=generator)
    size = (batch, 1, rows, columns)
    whole = torch.randint(-4, 2 * columns + 9, size, generator=generator).float()
    weights = deployed.stacked_weights(torch.eye(channels)[..., None, None], torch.zeros(channels))
    own, seen = (deployed.in_rows(F.conv2d(view, *weights, (2, 1))) for view in (left, right))
    costs = deployed.local_costs(own, deployed.beside_next(seen), whole, REFINED_STEPS)
    summed = costs.view(batch, len(STEPS), 2, channels, rows, columns).sum(2).flatten(1, 2)
    torch.testing.assert_close(summed, local_costs(left, right, whole))


@pytest.mark.parametrize('kernel', [1, 3])
def test_stacked_weights_answer_at_a_row_and_below_it(kernel):
    torch.manual_seed(2)
    convolution = torch.nn.Conv2d(3, 5, kernel, padding=kernel // 2)
    x = torch.rand(2, 3, 6, 7)
    both = F.conv2d(x, *deployed.stacked_weights(*convolution.parameters()), (2, 1), kernel // 2)
    rows = convolution(x)
    torch.testing.assert_close(both, torch.cat((rows[:, :, ::2], rows[:, :, 1::2]), 1))


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 5), columns=st.integers(1, 6), seed=st.integers(0, 1000))
def test_the_deployed_neighbourhood_is_the_same(rows, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(0, 20, (2, 1, rows, columns), generator=generator).float()
    rest = torch.rand(whole.shape, generator=generator) - 0.5
    torch.testing.assert_close(deployed.neighbourhood(whole, rest), neighbourhood(whole, rest))


def test_neighbours_of_a_plane_are_a_slope_away():
    y, x = torch.meshgrid(torch.arange(5.0), torch.arange(7.0), indexing='ij')
    plane = (40 + 0.3 * x - 0.2 * y)[None, None]
    steps = neighbourhood(plane.round(), plane - plane.round())[0, :, 2, 3]
    slopes = [0.3 * dx - 0.2 * dy for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dx or dy]
    torch.testing.assert_close(steps, torch.tensor(slopes), atol=1e-5, rtol=0)
    edge = torch.where(x > 3, 90.0, 10.0)[None, None]
    steps = neighbourhood(edge, torch.zeros_like(edge))[0, :, 2, 3]
    assert steps.tolist() == [0, 0, 80, 0, 80, 0, 0, 80]


def test_a_refinement_sees_no_farther_than_four_pixels_to_a_neighbour():
    network = refined()
    seen = []
    network.refinement.enter.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs))
    size = (1, 1, 8, 12)
    answer = torch.where(torch.arange(12) > 5, 90.0, 10.0).expand(size)
    stems = torch.rand(2, network.encoder.stem[0].out_channels, 16, 24)
    context = torch.rand(1, network.upsampling[0][0].in_channels, *size[2:])
    with torch.no_grad():
        network.refinement(stems, context, answer, torch.ones(size))
    assert seen[0][0][:, -8:].unique().tolist() == [-FARTHEST_NEIGHBOUR, 0, FARTHEST_NEIGHBOUR]


def _that_moves(where: int):
    """A tiny network whose refinement takes the answer of one neighbour, and adds nothing."""
    torch.manual_seed(3)
    network = create('kestrel', **REFINED, refined_moves=True).eval()
    with torch.no_grad():
        network.refinement.move.bias[where] = 10.0
    return network


@pytest.mark.parametrize(('where', 'rows', 'columns'), [(1, 1, 0), (3, 0, 1), (7, -1, -1)])
def test_a_cell_takes_the_answer_of_its_neighbour(where, rows, columns):
    network = _that_moves(where)
    generator = torch.Generator().manual_seed(where)
    answer = 60 * torch.rand(1, 1, 5, 7, generator=generator)
    stems = torch.rand(2, network.encoder.stem[0].out_channels, 10, 14, generator=generator)
    context = torch.rand(1, network.upsampling[0][0].in_channels, 5, 7, generator=generator)
    with torch.no_grad():
        once = network.refinement(stems, context, answer, torch.ones_like(answer))
        thrice = network.refinement(stems, context, answer, torch.ones_like(answer), 3)
    inside = (..., slice(1, -1), slice(1, -1))
    expected = torch.roll(answer, (rows, columns), (2, 3))
    torch.testing.assert_close(once[inside], expected[inside], atol=0.05, rtol=0)
    assert thrice[0, 0, 2, 3] != pytest.approx(float(once[0, 0, 2, 3]), abs=0.1)


def test_moves_without_a_refinement_are_refused():
    with pytest.raises(NetworkError, match='give refined too'):
        create('kestrel', **TINY, refined_moves=True)


def test_moves_are_added_to_a_refinement_that_goes_on_as_it_was():
    network = refined()
    more = create('kestrel', **REFINED, refined_moves=True).eval()
    more.load_state_dict(more.fitted(network.state_dict()))
    images = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        before, after = network(*images).disparity, more(*images).disparity
    assert (after - before).abs().max() < 0.1
    assert with_refinement(network, more).refinement.move is not None
    assert with_refinement(more, network).refinement.move is None


@pytest.mark.parametrize('options', [REFINED, WITH_FEATURES], ids=['stems', 'features'])
def test_a_new_refinement_changes_nothing_and_takes_the_weights_of_a_network_without(options):
    torch.manual_seed(1)
    plain = create('kestrel', **TINY).eval()
    network = create('kestrel', **options).eval()
    network.load_state_dict(network.fitted(plain.state_dict()))
    images = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        before, after = plain(*images), network(*images)
        torch.nn.init.constant_(network.refinement.offset.bias, 0.5)
        moved = network(*images)
    assert torch.equal(before.disparity, after.disparity)
    assert torch.equal(moved.features['unrefined'], before.features['coarse'])
    # Half a pixel of the stem, which has two pixels of the image.
    torch.testing.assert_close(moved.disparity, before.disparity + 1.0)


def test_features_are_added_to_a_refinement_that_goes_on_as_it_was():
    network = refined()
    more = create('kestrel', **WITH_FEATURES).eval()
    more.load_state_dict(more.fitted(network.state_dict()))
    images = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(more(*images).disparity, network(*images).disparity)
        torch.nn.init.normal_(more.refinement.features[1].weight, std=0.3)
        assert not torch.equal(more(*images).disparity, network(*images).disparity)


@pytest.mark.parametrize('wrong', [(8, 48), (8, 48, 3, 16, 1), (0, 48, 3), (8, 48, -1)])
def test_a_refinement_of_other_numbers_is_refused(wrong):
    with pytest.raises(NetworkError, match=r'expected \[channels, width, blocks\]'):
        create('kestrel', **{**TINY, 'refined': wrong})


def test_a_second_pass_looks_where_the_first_has_arrived():
    network = refined()
    torch.nn.init.constant_(network.refinement.offset.bias, 1.3)
    twice = with_refinement(network, network, 2)
    seen = []
    network.refinement.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs))
    images = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        first, second = (one(*images).features['coarse'] for one in (network, twice))
        stems, context, answer, mass, passes, *_ = seen[0]
        arrived = twice.refinement(stems, context, answer, mass)
        expected = twice.refinement(stems, context, arrived, mass)
    assert passes == 1
    # A cell of four pixels has two of the stems.
    torch.testing.assert_close(first, 2 * arrived)
    torch.testing.assert_close(second, 2 * expected)
    with pytest.raises(NetworkError, match='refined_passes is 0'):
        create('kestrel', **REFINED, refined_passes=0)


def test_the_loss_is_of_what_a_refinement_can_mend():
    network = refined().train()
    output = network(*torch.rand(2, 1, 3, 64, 96))
    weights = LossWeights(cross_entropy=0, disparity=0, coarse=0, confidence=0, refined=1)
    before = output.features['unrefined'].detach()[:, 0] + 0.5
    near = before.repeat_interleave(4, 1).repeat_interleave(4, 2)
    far = torch.where(torch.arange(96) < 48, near, near + 40)
    loss, terms = supervised_loss(output, near, weights)
    assert set(terms) == {'refined'} and loss > 0
    only_far, _ = supervised_loss(output, near + 40, weights)
    assert only_far == 0
    half, _ = supervised_loss(output, far, weights)
    assert 0 < half < 3 * loss
    loss.backward()
    assert network.refinement.project.weight.grad.abs().sum() > 0


def test_the_loss_is_of_what_a_neighbour_can_mend_too_but_not_by_its_size():
    network = refined().train()
    output = network(*torch.rand(2, 1, 3, 64, 96))
    fields = {'cross_entropy': 0, 'disparity': 0, 'coarse': 0, 'confidence': 0, 'refined': 1}
    answer = torch.full_like(output.features['unrefined'], 20.0)
    answer[..., 10:] = 60.0
    refined_answer = answer.clone()
    output.features.update(unrefined=answer, coarse=refined_answer.requires_grad_())
    truth = torch.full((1, 64, 96), 20.0)

    def of(reach, edge):
        output.disparity = truth
        target = truth.clone()
        target[..., 4 * edge :] = 60.0
        return supervised_loss(output, target, LossWeights(**fields, refined_reach=reach))[0]

    # The answers begin two cells before the truth does: within reach of one there is one such.
    assert of(0, 10) == of(0, 12) == 0
    log = 4 + 4 * np.log((40 - 0.125) / 4)
    found = of(1, 12)
    found.backward()
    cells = 16 * 23
    torch.testing.assert_close(float(found.detach()), 16 * log / cells / 2, rtol=1e-4, atol=0)
    assert float(refined_answer.grad[..., 10].sum()) == pytest.approx(
        16 * 4 / (40 - 0.125) / cells / 2, rel=1e-4
    )
    assert of(2, 12) > 1.9 * found


class _Shifted:
    """Textures four pixels apart."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        from types import SimpleNamespace

        texture = np.random.default_rng(index).integers(0, 256, (64, 140, 3), np.uint8)
        truth = np.full((64, 128), 4, np.float32)
        return SimpleNamespace(left=texture[:, :128], right=texture[:, 4:132], disparity=truth)


def test_only_the_named_parts_learn(tmp_path):
    fields = {'crop_height': 64, 'crop_width': 96, 'batch_size': 2, 'steps': 3}
    fields |= {'network': 'kestrel', 'options': REFINED, 'precision': 'no'}
    fields |= {'peak_learning_rate': 0.05, 'loss': LossWeights(disparity=1.0)}
    config = TrainingConfig(**fields, trained=['refinement'])
    trainer = Trainer(config, tmp_path / 'run', _Shifted())
    before = {k: v.clone() for k, v in trainer.plain_network.state_dict().items()}
    trainer.run()
    changed = {
        name.split('.')[0]
        for name, value in trainer.plain_network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {'refinement'}
    # Statistics may be frozen besides.
    still = Trainer(
        config.model_copy(update={'frozen_statistics': True}), tmp_path / 'still', _Shifted()
    )
    before = {k: v.clone() for k, v in still.plain_network.state_dict().items()}
    still.run()
    after = still.plain_network.state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items() if 'running' in k)
    assert any(not torch.equal(after[k], v) for k, v in before.items() if 'refinement' in k)
    with pytest.raises(TrainingError, match="'refine_ment'; it has aggregation"):
        Trainer(TrainingConfig(**fields, trained=['refine_ment']), tmp_path / 'no', _Shifted())


@pytest.mark.parametrize('cell', [(4, 4), (6, 3), (8, 6)])
@pytest.mark.parametrize(
    ('numbers', 'moves'), [((4, 8, 1), False), ((4, 8, 1, 6), False), ((4, 8, 1, 6), True)]
)
def test_a_file_answers_alike_and_gives_its_weights_back(tmp_path, cell, numbers, moves):
    options = {'max_disparity_px': 12 * cell[1], 'cell_px': cell[1], 'cell_height_px': cell[0]}
    network = refined(refined=numbers, refined_moves=moves, **options)
    if moves:
        torch.nn.init.normal_(network.refinement.move.weight, std=3.0)
    size = tuple(2 * stride for stride in network.strides)
    (parity,) = export_network(network, tmp_path / 'x.onnx', tolerance_px=0.01, sizes=(size,))
    assert parity.off_fraction < 0.01
    again = load_shipped(tmp_path / 'x.onnx')
    assert again.configuration['options']['refined'] == list(numbers)
    assert (again.refinement.move is not None) is moves
    images = torch.rand(2, 1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(
            again(*images).disparity, network(*images).disparity, atol=1e-3, rtol=0
        )
    other = with_cells(again, cell[1], 4)
    assert torch.equal(other.refinement.offset.weight, again.refinement.offset.weight), (
        'it looks at cells of the resized images, whatever they are in pixels'
    )


def test_files_of_before_have_each_answer_four_times_and_give_their_weights_back():
    """Below and right of a place, too: those that older files were written with."""
    refinement = refined(refined=(4, 8, 1, 6)).refinement
    state = refinement.state_dict()
    channels, steps = refinement.project.out_channels, len(STEPS)

    def four_times(name):
        weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
        places = [F.pad(weight, (x, 1 - x, y, 1 - y)) for x in (0, 1) for y in (0, 1)]
        return torch.cat(places), bias.repeat(4)

    enter = state['enter.0.weight']
    costs = enter[:, : steps * channels].view(len(enter), steps, 1, channels)
    bias = torch.rand(len(enter))
    context = slice(steps * channels, enter.shape[1] - 10)
    found = refinement.recovered(
        {
            'of_stems': four_times('project'),
            'of_features': four_times('features.1'),
            'of_costs': (costs.repeat(1, 1, 4, 1).reshape(len(enter), -1, 1, 1), None),
            'of_context': (enter[:, context], bias),
            'of_answer': (enter[:, -10:], None),
        }
    )
    for name in ('project', 'features.1'):
        for part in ('weight', 'bias'):
            assert torch.equal(found[f'{name}.{part}'], state[f'{name}.{part}'])
    assert torch.equal(found['enter.0.weight'], enter)
    assert torch.equal(found['enter.1.bias'], bias)


def test_passes_share_weights_and_no_bias(tmp_path):
    """OpenVINO fuses no bias that two convolutions have, and makes one of equal ones."""
    onnx = pytest.importorskip('onnx')
    network = refined(refined=(4, 8, 1, 6), refined_passes=3)
    export_network(network, tmp_path / 'x.onnx', sizes=((64, 96),))
    graph = onnx.load(tmp_path / 'x.onnx').graph
    values = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    read = {'weight': {}, 'bias': {}}
    for node in (node for node in graph.node if '/refinement/' in node.name):
        if node.op_type == 'Conv':
            for kind, name in zip(read, node.input[1:]):
                read[kind].setdefault(values[name].tobytes(), []).append(name)
    assert all(len(names) == 1 for names in read['bias'].values())
    assert all(len(set(names)) == 1 for names in read['weight'].values())
    # the three convolutions of its block, what enters it but the context, and the offset
    assert sum(len(names) == 3 for names in read['weight'].values()) == 3 + 2 + 1 + 1
    assert len(values) == len({name for node in graph.node for name in node.input} & set(values))


def test_a_file_takes_the_refinement_of_another(tmp_path):
    torch.manual_seed(5)
    plain, other = create('kestrel', **TINY).eval(), refined()
    manifest = build_manifest(plain, 'plain', version='0.3.0', training_data=[{'source': 'a'}])
    size = ((64, 96),)
    export_network(plain, tmp_path / 'plain.onnx', manifest, sizes=size)
    manifest = build_manifest(other, 'other', version='0.2.0', training_data=[{'source': 'b'}])
    export_network(other, tmp_path / 'other.onnx', manifest, sizes=size)
    export_again(
        tmp_path / 'plain.onnx',
        tmp_path / 'both.onnx',
        version='0.4.0',
        refined_by=tmp_path / 'other.onnx',
    )
    both = load_shipped(tmp_path / 'both.onnx')
    found = read_manifest(tmp_path / 'both.onnx')
    assert (found.name, found.version, found.extra['refined_by']) == (
        'plain',
        '0.4.0',
        'other 0.2.0',
    )
    assert [entry['source'] for entry in found.training_data] == ['a', 'b']
    assert found.macs_640x480 == complexity(both).macs
    images = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        answer, before = both(*images), plain(*images)
    torch.testing.assert_close(answer.features['unrefined'], before.features['coarse'])
    assert (answer.disparity - before.disparity).abs().max() > 0.01


def test_a_wider_network_is_refined_as_the_one_that_it_was_made_of():
    narrow = refined()
    plain = create('kestrel', **TINY).eval()
    weights = {k: v for k, v in narrow.state_dict().items() if not k.startswith('refinement.')}
    plain.load_state_dict(weights)
    wide = create('kestrel', **{**TINY, 'aggregation': (24, 16, 16, 16)}).eval()
    wide.load_state_dict(wide.fitted(plain.state_dict()))
    images = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(
            with_refinement(wide, narrow)(*images).disparity, narrow(*images).disparity
        )


def test_a_refinement_that_is_not_there_or_does_not_fit_is_refused():
    plain = create('kestrel', **TINY)
    with pytest.raises(NetworkError, match='has no refinement'):
        with_refinement(plain, create('kestrel', **TINY))
    with pytest.raises(NetworkError, match='another stem'):
        with_refinement(create('kestrel', **{**TINY, 'stem': 16}), refined())
    without_stem = refined()
    prune_to_ratio(without_stem, 0.5, round_to=4)
    assert without_stem.configuration['widths']['encoder.stem.0'][1] == 4
    with pytest.raises(NetworkError, match='another stem'):
        with_refinement(without_stem, refined())
    assert with_refinement(without_stem, without_stem, 2).refined_passes == 2
    with pytest.raises(NetworkError, match='only a Kestrel'):
        with_refinement(create('anynet', max_disparity_px=64), refined())


def test_fewer_channels_of_a_pruned_one_are_not_taken_for_the_first_of_another():
    other, network = refined(), refined()
    stem = {'encoder.stem.0': 'the refinement reads it', **find_unprunable(other)}
    prune_to_ratio(other, 0.5, round_to=4, frozen=stem)
    read = with_refinement(network, other).refinement.enter[0].weight
    known = network.upsampling[0][0].in_channels
    assert known > other.upsampling[0][0].in_channels
    assert not read[:, -10 - known : -10].any() and read[:, : -10 - known].any()


@pytest.mark.parametrize('ratio', [0.0, 0.5])
def test_a_pruned_network_learns_anew_what_of_its_cells_is_read(ratio):
    torch.manual_seed(1)
    other = refined()
    pruned = create('kestrel', **TINY)
    stem = {'encoder.stem.0': 'the refinement reads it', **find_unprunable(pruned)}
    prune_to_ratio(pruned, 0.5, round_to=4, frozen=stem)
    if ratio:
        prune_to_ratio(other, ratio, round_to=4, frozen={**find_unprunable(other), **stem})
    network = with_refinement(pruned, other)
    read = network.refinement.enter[0].weight
    known = pruned.upsampling[0][0].in_channels
    assert known < create('kestrel', **TINY).upsampling[0][0].in_channels
    others = other.refinement.enter[0].weight
    if ratio:
        # Of as many channels as its own: pruned alike.
        torch.testing.assert_close(read, others)
    else:
        nothing = read[:, -10 - known : -10]
        torch.testing.assert_close(nothing, torch.zeros_like(nothing))
        torch.testing.assert_close(read[:, -10:], others[:, -10:])
        compared = read.shape[1] - 10 - known
        torch.testing.assert_close(read[:, :compared], others[:, :compared])
    images = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        answer, before = network(*images), pruned.eval()(*images)
    torch.testing.assert_close(answer.features['unrefined'], before.features['coarse'])
    assert (answer.disparity - before.disparity).abs().max() > 0
    rebuilt = build(network.configuration)
    rebuilt.load_state_dict(network.state_dict())


@pytest.mark.parametrize(
    ('numbers', 'moves'), [((4, 8, 1), False), ((4, 8, 1, 6), False), ((4, 8, 1, 6), True)]
)
def test_it_is_counted_and_can_be_pruned(numbers, moves):
    plain = complexity(create('kestrel', **TINY), 64, 96)
    network = refined(refined=numbers, refined_moves=moves)
    with_it = complexity(network, 64, 96)
    assert plain.macs < with_it.macs and plain.parameters < with_it.parameters
    report = prune_to_ratio(network, 0.5, round_to=4)
    assert 'refinement' in {name.split('.')[0] for name in report.groups}
    assert network.refinement.move is None or network.refinement.move.out_channels == 8
    with torch.no_grad():
        answer = network(*torch.rand(2, 1, 3, 64, 96))
    assert torch.isfinite(answer.disparity).all()
    assert complexity(network, 64, 96).macs < with_it.macs
