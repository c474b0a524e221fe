# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pruned networks still run, rebuild exactly, export, and compute what they should."""

from __future__ import annotations

import copy

import pytest

torch = pytest.importorskip('torch', reason='the training extra is not installed')
pytest.importorskip('torch_pruning', reason='the training extra is not installed')

from hypothesis import given  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.modules.batchnorm import _BatchNorm  # noqa: E402
from torch.nn.modules.conv import _ConvNd  # noqa: E402

from stereo_kd_training import networks, prune  # noqa: E402
from stereo_kd_training.networks.channels import apply_widths, channel_widths  # noqa: E402
from stereo_kd_training.networks.contract import ContractModel  # noqa: E402
from stereo_kd_training.train import load_network  # noqa: E402

STUDENTS = ('kestrel', 'dtpnet', 'compact_stereonet', 'anynet')
LARGER = tuple(name for name in networks.names() if name not in STUDENTS)


def make(name: str, seed: int = 0):
    """A small-range network whose batch norms have statistics as after training."""
    torch.manual_seed(seed)
    network = networks.create(name, max_disparity_px=64)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0.0, 0.1)
            module.running_mean.normal_(0.0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


def pair_of(height: int, width: int, batch: int = 1):
    generator = torch.Generator().manual_seed(height * width)
    return [
        torch.randint(0, 256, (batch, height, width, 3), generator=generator, dtype=torch.uint8)
        for _ in range(2)
    ]


@pytest.mark.parametrize('ratio', [0.2, 0.5, 0.7])
@pytest.mark.parametrize('name', STUDENTS)
def test_prunes_runs_at_odd_sizes_rebuilds_bit_exact_and_exports(name, ratio, tmp_path):
    network = make(name)
    before = network.parameter_count()
    report = prune.prune_to_ratio(network, ratio, round_to=2)
    assert report.parameters_before == before
    assert report.parameters_after == network.parameter_count() < before
    assert any(after < channels for channels, after in report.groups.values())
    assert all(after % 2 == 0 or after == channels for channels, after in report.groups.values())

    images = pair_of(67, 131)
    with torch.no_grad():
        expected = ContractModel(network)(*images)
    assert expected[0].shape == (1, 67, 131)
    assert all(torch.isfinite(value).all() for value in expected)

    prune.save_network(network, tmp_path / 'pruned.pt')
    rebuilt = load_network(tmp_path / 'pruned.pt')
    assert channel_widths(rebuilt) == channel_widths(network)
    assert rebuilt.configuration == network.configuration
    with torch.no_grad():
        for ours, theirs in zip(expected, ContractModel(rebuilt)(*images), strict=True):
            assert torch.equal(ours, theirs)
    assert exported_off_fraction(rebuilt, tmp_path) < 1e-3


def exported_off_fraction(network, folder) -> float:
    """Share of pixels in which the ONNX file differs by more than 0.05 px at an odd size.

    Untrained scores tie in places, and rounding decides there.
    """
    from stereo_kd_training.export import export_network

    limit = float(network.max_disparity_px)
    report = export_network(network, folder / 'x.onnx', sizes=((67, 99),), tolerance_px=limit)
    return report[0].off_fraction


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize('name', LARGER)
def test_larger_networks_prune_run_rebuild_and_export(name, tmp_path):
    network = make(name)
    prune.prune_to_ratio(network, 0.5, round_to=1)
    images = pair_of(67, 99)
    with torch.no_grad():
        disparity, _ = ContractModel(network)(*images)
    assert torch.isfinite(disparity).all()
    prune.save_network(network, tmp_path / 'pruned.pt')
    rebuilt = load_network(tmp_path / 'pruned.pt')
    with torch.no_grad():
        assert torch.equal(disparity, ContractModel(rebuilt)(*images)[0])
    if name != 'psmnet':  # its pyramid pools 256 px at once, and a graph cannot clamp that
        assert exported_off_fraction(rebuilt, tmp_path) < 5e-3


@pytest.mark.parametrize('name', STUDENTS)
def test_a_pruned_network_trains(name):
    """Heads that only training uses lost the same channels, and gradients reach all layers."""
    network = make(name)
    prune.prune_to_ratio(network, 0.4, round_to=1)
    network.train()
    height, width = prune.trace_size(network)
    output = network(torch.randn(2, 3, height, width), torch.randn(2, 3, height, width))
    (sum(stage.mean() for stage in output.stages) + output.confidence.mean()).backward()
    assert all(p.grad is None or p.grad.shape == p.shape for p in network.parameters())
    assert sum(p.grad is not None for p in network.parameters()) > 10


def zero_channels(graph: prune.StereoGraph, root: str, channels: list[int]) -> None:
    """Make the layers of a group give zero in `channels`, without removing them."""
    group = graph.groups[root]
    dependency_graph = group._DG
    handle = group[0].dep
    part = dependency_graph.get_pruning_group(handle.target.module, handle.handler, channels)
    with torch.no_grad():
        for dependency, indices in part:
            layer = dependency.target.module
            if not dependency_graph.is_out_channel_pruning_fn(dependency.handler):
                continue
            if isinstance(layer, _ConvNd) and layer.transposed:
                layer.weight[:, indices] = 0
            elif isinstance(layer, _ConvNd | _BatchNorm | nn.Linear):
                layer.weight[indices] = 0
            else:
                continue
            if layer.bias is not None:
                layer.bias[indices] = 0


@pytest.mark.parametrize('name', STUDENTS)
def test_removing_channels_equals_zeroing_them(name):
    """The proof that every group couples the right channels, through concatenations too."""
    zeroed, removed = make(name), make(name)
    generator = torch.Generator().manual_seed(1)
    zeroed_graph, removed_graph = prune.build_graph(zeroed), prune.build_graph(removed)
    for root, group in removed_graph.groups.items():
        count = len(group[0].idxs)
        drop = sorted(torch.randperm(count, generator=generator)[: max(1, count // 3)].tolist())
        zero_channels(zeroed_graph, root, drop)
        group.prune(drop)
    assert removed.parameter_count() < zeroed.parameter_count()
    images = [torch.randn(1, 3, *prune.trace_size(zeroed)) for _ in range(2)]
    with torch.no_grad():
        expected, got = zeroed(*images), removed(*images)
    assert expected.disparity.std() > 0.01
    assert (expected.disparity - got.disparity).abs().max() < 0.02


def test_the_least_important_channels_go():
    network = make('kestrel')
    layer = network.encoder.stem[0]
    with torch.no_grad():
        for index in (3, 5, 7, 11):
            layer.weight[index] *= 1e-4
            network.encoder.stem[1].weight[index] *= 1e-4
    kept = layer.weight[[i for i in range(16) if i not in (3, 5, 7, 11)]].clone()
    graph = prune.build_graph(network)
    assert 'encoder.stem.0' in graph.groups
    prune.prune_to_ratio(network, 0.25, round_to=4)
    torch.testing.assert_close(network.encoder.stem[0].weight, kept)


def test_both_views_lose_the_same_channels():
    network = make('dtpnet')
    prune.prune_to_ratio(network, 0.5, round_to=1)
    first = next(m for m in network.volume.modules() if isinstance(m, nn.Conv2d))
    assert network.extract(torch.zeros(1, 3, 64, 64)).shape[1] * 2 == first.in_channels


@pytest.mark.parametrize('name', STUDENTS)
def test_disparity_hypotheses_are_never_pruned(name):
    network = make(name)
    height, width = prune.trace_size(network)
    images = [torch.randn(1, 3, height, width) for _ in range(2)]
    with torch.no_grad():
        before = [z.shape for z in network(*images).logits if z is not None]
        prune.prune_to_ratio(network, 0.8, round_to=1)
        after = [z.shape for z in network(*images).logits if z is not None]
    assert before == after


def test_distillation_points_can_be_kept():
    network = make('kestrel')
    images = [torch.randn(1, 3, *prune.trace_size(network)) for _ in range(2)]
    free, kept = copy.deepcopy(network), copy.deepcopy(network)
    prune.prune_to_ratio(free, 0.5)
    prune.prune_to_ratio(kept, 0.5, keep=('left',))
    with torch.no_grad():
        channels = [n(*images).features['left'].shape[1] for n in (network, free, kept)]
    assert channels == [32, 16, 32]
    with pytest.raises(prune.PruneError, match='features scroes'):
        prune.prune_to_ratio(network, 0.5, keep=('scroes',))


def test_a_ratio_counts_from_the_unpruned_network():
    at_once, in_steps = make('kestrel'), make('kestrel')
    prune.prune_to_ratio(at_once, 0.5)
    seen = []
    reports = prune.prune_iteratively(
        in_steps, 0.5, 2, lambda network, step: seen.append((step, network.parameter_count()))
    )
    assert channel_widths(at_once) == channel_widths(in_steps)
    assert [step for step, _ in seen] == [0, 1] and seen[0][1] > seen[1][1]
    assert reports[0].parameters_after == seen[0][1]

    resumed = make('kestrel')
    prune.prune_to_ratio(resumed, 0.25)
    prune.prune_iteratively(resumed, 0.5, 2, lambda network, step: None, first_step=1)
    assert channel_widths(resumed) == channel_widths(at_once)


def test_pruning_keeps_frozen_parameters_frozen():
    network = make('kestrel')
    network.encoder.requires_grad_(False)
    prune.prune_to_ratio(network, 0.25)
    assert not any(p.requires_grad for p in network.encoder.parameters())
    assert all(p.requires_grad for p in network.aggregation.parameters())


@given(st.integers(1, 512), st.floats(0, 0.999), st.sampled_from([1, 2, 4, 8, 16]))
def test_target_width(original, ratio, round_to):
    width = prune.target_width(original, ratio, round_to)
    assert 1 <= width <= original
    assert width % round_to == 0 or width in (original, 2)
    assert abs(width - original * (1 - ratio)) <= max(round_to, 2)


def test_targets_in_parameters_and_macs():
    network = make('kestrel')
    images = prune.trace_size(network)
    for target, measure in (
        ('parameters', lambda n: n.parameter_count()),
        ('macs', lambda n: prune.count_macs(n, *images)),
    ):
        ratio = prune.find_ratio(
            network, target, 0.5, height=images[0], width=images[1], tolerance=0.05
        )
        met, missed = copy.deepcopy(network), copy.deepcopy(network)
        prune.prune_to_ratio(met, ratio)
        assert measure(met) <= 0.5 * measure(network)
        prune.prune_to_ratio(missed, max(0.0, ratio - 0.1))
        assert measure(missed) > 0.5 * measure(network)


def test_target_in_milliseconds_takes_the_devices_own_measure():
    network = make('kestrel')

    def device(candidate) -> float:
        return 100.0 * candidate.parameter_count() / network.parameter_count()

    ratio = prune.find_ratio(network, 'latency_ms', 60.0, measure=device, tolerance=0.05)
    prune.prune_to_ratio(network, ratio)
    assert network.parameter_count() <= 0.6 * make('kestrel').parameter_count()
    with pytest.raises(prune.PruneError, match='out of reach'):
        prune.find_ratio(make('kestrel'), 'latency_ms', 0.01, measure=device, largest=0.5)


def test_latency_of_this_machine_is_measured_on_the_exported_network():
    assert prune.measure_latency_ms(make('kestrel'), 64, 96, threads=1, runs=1) > 0.0


def test_a_tie_of_macs_between_small_and_odd_sizes():
    network = make('kestrel')
    assert prune.count_macs(network, 50, 70) == prune.count_macs(network, 52, 72)


def test_mistakes_are_told():
    with pytest.raises(prune.PruneError, match='outside'):
        prune.prune_to_ratio(make('kestrel'), 1.0)
    with pytest.raises(prune.PruneError, match='parameters, macs, latency_ms'):
        prune.find_ratio(make('kestrel'), 'flops', 0.5)
    nameless = make('kestrel')
    nameless.configuration = {}
    with pytest.raises(prune.PruneError, match='no configuration'):
        prune.prune_to_ratio(nameless, 0.5)


class Untraceable(networks.StereoNetwork):
    """Correlates without telling that channels end there."""

    stride = 8
    max_disparity_px = 8.0

    def __init__(self):
        super().__init__()
        self.extract = nn.Conv2d(3, 8, 3, padding=1)
        self.score = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, left, right):
        left, right = self.extract(left), self.extract(right)
        volume = torch.stack([(left * right.roll(d, 3)).mean(1) for d in range(4)], 1)
        logits = self.score(volume)
        return networks.StereoOutput(logits.softmax(1).sum(1), logits=(logits,))


def test_a_network_that_hides_its_volume_is_left_alone_and_says_why():
    frozen = prune.find_unprunable(Untraceable())
    assert set(frozen) == {'extract', 'score'}
    assert 'breaks the network' in frozen['extract'] and 'output' in frozen['score']


def test_widths_of_another_network_are_refused():
    network = make('kestrel')
    with pytest.raises(networks.NetworkError, match="'head' does not exist"):
        apply_widths(network, {'head': [3, 4, 1]})
    with pytest.raises(networks.NetworkError, match='do not describe'):
        apply_widths(network, {'encoder.stem.0': [3]})


@pytest.mark.timeout(120)
def test_a_refinement_asked_several_times_is_followed_once():
    """Followed through each pass, groups take for ever to be found where answers move."""
    options = {'max_disparity_px': 64, 'refined': [8, 16, 1, 8], 'refined_moves': True}
    once, thrice = (
        networks.create('kestrel', **options, refined_passes=passes) for passes in (1, 3)
    )
    assert list(prune.build_graph(thrice).groups) == list(prune.build_graph(once).groups)
    assert thrice.refined_passes == 3
    prune.prune_to_ratio(thrice, 0.5)
    with torch.no_grad():
        disparity, _ = ContractModel(thrice.eval())(*pair_of(67, 131))
    assert disparity.shape == (1, 67, 131) and torch.isfinite(disparity).all()
