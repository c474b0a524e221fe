# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is pruned by measuring: what nobody needs goes first, and costs what it is said to."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the training extra is not installed')
pytest.importorskip('torch_pruning', reason='the training extra is not installed')

from typer.testing import CliRunner  # noqa: E402

from stereo_kd_ros.model import read_manifest  # noqa: E402
from stereo_kd_training import networks  # noqa: E402
from stereo_kd_training.main import app  # noqa: E402
from stereo_kd_training.measured_pruning import (  # noqa: E402
    channel_importance,
    prune_measured,
    prune_until,
    relative_error,
)
from stereo_kd_training.networks.base import StereoOutput  # noqa: E402
from stereo_kd_training.prune import PruneError, count_macs, save_network  # noqa: E402
from stereo_kd_training.train import Batch, load_network  # noqa: E402

STEM = 'encoder.stem.0'
SIZE = (96, 128)


def kestrel(seed: int = 0, **options):
    torch.manual_seed(seed)
    network = networks.create('kestrel', max_disparity_px=64, **options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
    return network.eval()


def batches(count: int = 2, seed: int = 0) -> list[Batch]:
    """A texture and the same texture eight columns further left: disparity 8 px everywhere."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        picture = torch.from_numpy(rng.integers(0, 256, (2, 3, SIZE[0], SIZE[1] + 8)))
        left, right = picture[..., :-8], picture[..., 8:]
        made.append(Batch(left, right, torch.full((2, *SIZE), 8.0)))
    return made


def answer(network, batch: Batch):
    with torch.no_grad():
        return network(
            network.normalize(batch.left.float()), network.normalize(batch.right.float())
        ).disparity


def without_readers(network, dead: list[int]) -> None:
    """Make channels of the stem mean nothing: no convolution that takes them in heeds them."""
    with torch.no_grad():
        network.encoder.quarter[0][0].weight[:, dead] = 0
        network.guide[0].weight[:, dead] = 0


def test_channels_that_nobody_reads_have_no_importance():
    network = kestrel()
    dead = [1, 2, 4, 7, 8, 11, 12, 15]
    without_readers(network, dead)
    importance = channel_importance(network, batches(1))
    assert set(np.flatnonzero(importance[STEM].numpy() < 1e-12)) == set(dead)
    assert not any(parameter.grad is not None for parameter in network.parameters())


def test_the_kept_channels_are_those_that_are_read():
    network = kestrel()
    dead = [0, 3, 5, 6, 9, 10, 13, 14]
    without_readers(network, dead)
    kept = [channel for channel in range(16) if channel not in dead]
    weight = network.encoder.stem[0].weight[kept].clone()
    before = answer(network, batches()[0])

    def judge(smaller) -> float:
        """Only the stem may go: everything else is dear."""
        widths = [
            layer.out_channels
            for name, layer in smaller.named_modules()
            if isinstance(layer, torch.nn.Conv2d) and name != STEM
        ]
        return -float(sum(widths))

    importance = channel_importance(network, batches(1))
    only = (STEM, 'guide', 'upsampling')
    found = next(prune_measured(network, judge, importance, only=only, size=SIZE))
    assert (found.group, found.channels, found.error) == (STEM, 8, 0.0)
    assert torch.equal(found.network.encoder.stem[0].weight, weight)
    torch.testing.assert_close(answer(found.network, batches()[0]), before, atol=1e-3, rtol=0)
    assert network.encoder.stem[0].out_channels == 16


def test_a_removal_says_what_is_left_and_what_it_cost(tmp_path):
    network = kestrel(refined=[8, 16, 1], refined_passes=1)
    judge = relative_error(batches(1, seed=2))
    importance = channel_importance(network, batches(1))
    first, error = count_macs(network, *SIZE), judge(network)
    shares = []
    only = ('refinement.body', 'guide', STEM)
    removals = prune_measured(network, judge, importance, only=only, size=SIZE)
    for removal in itertools.islice(removals, 3):
        assert removal.group.startswith(only)
        assert removal.macs == count_macs(removal.network, *SIZE)
        assert removal.share == removal.macs / first
        assert removal.error == pytest.approx(judge(removal.network) - error, abs=1e-6)
        shares.append(removal.share)
    assert sorted(shares, reverse=True) == shares
    save_network(removal.network, tmp_path / 'pruned.pt')
    rebuilt = load_network(tmp_path / 'pruned.pt')
    batch = batches()[0]
    assert torch.equal(answer(rebuilt, batch), answer(removal.network, batch))


def test_goes_on_to_one_block_per_group_and_no_further():
    network = kestrel()
    importance = channel_importance(network, batches(1))
    only = (STEM, 'guide')
    removals = list(
        prune_measured(network, lambda _: 0.0, importance, block=5, only=only, size=SIZE)
    )
    # 16 and 32 channels become multiples of five first.
    assert [r.channels for r in removals if r.group == STEM] == [15, 10, 5]
    assert [r.channels for r in removals if r.group == 'guide.0'] == [30, 25, 20, 15, 10, 5]


@pytest.mark.parametrize('name', ['dtpnet', 'compact_stereonet', 'anynet'])
def test_networks_of_the_papers_are_pruned_by_measure_too(name):
    torch.manual_seed(0)
    network = networks.create(name, max_disparity_px=64)
    judge = relative_error(batches(1, seed=3))
    importance = channel_importance(network, batches(1))
    assert all(torch.isfinite(values).all() for values in importance.values())
    assert sum(float(values.sum()) for values in importance.values()) > 0
    # The first and the last of its groups, in the order of the trace.
    only = (next(iter(importance)), list(importance)[-1])
    removal = next(prune_measured(network, judge, importance, block=2, only=only, size=SIZE))
    assert removal.macs < count_macs(network, *SIZE)
    assert torch.isfinite(answer(removal.network, batches(1)[0])).all()


@pytest.mark.parametrize(('worse', 'expected'), [(1.0, 0.0), (2.0, 2 * math.log(2))])
def test_the_judge_says_the_ratio_of_errors(worse, expected):
    class Says(torch.nn.Module):
        def __init__(self, off: float) -> None:
            super().__init__()
            self.off = off

        def normalize(self, image):
            return image

        def forward(self, left, right):
            values = torch.full((len(left), *SIZE), 8.0 + self.off)
            return StereoOutput(values, values)

    judge = relative_error(batches(3))
    assert judge(Says(0.25 * worse)) - judge(Says(0.25)) == pytest.approx(expected, abs=1e-5)


def test_a_pair_without_truth_has_no_say():
    both, network = batches(1)[0], kestrel()
    both.disparity[1] = torch.nan
    one = dataclasses.replace(
        both, left=both.left[:1], right=both.right[:1], disparity=both.disparity[:1]
    )
    assert relative_error([both])(network) == pytest.approx(relative_error([one])(network))


def test_what_is_enough_is_the_first_that_is():
    network = kestrel()
    judge, few = relative_error(batches(1, seed=3)), ('encoder.eighth',)
    importance = channel_importance(network, batches(1), only=few)

    def removals():
        return prune_measured(network, judge, importance, only=few, size=SIZE)

    assert prune_until(network, removals(), lambda _: True) is network
    macs = count_macs(network)
    found = prune_until(network, removals(), lambda smaller: count_macs(smaller) < 0.98 * macs)
    assert 0.9 * macs < count_macs(found) < 0.98 * macs
    with pytest.raises(PruneError, match=r'\d\.\d+ GMAC are left .* smaller blocks'):
        prune_until(network, removals(), lambda _: False)


def test_bad_input_says_what_is_wrong():
    network = kestrel()
    importance = channel_importance(network, batches(1))
    with pytest.raises(PruneError, match='block is 0'):
        next(prune_measured(network, lambda _: 0.0, importance, block=0, size=SIZE))
    with pytest.raises(PruneError, match='no group of channels begins with stem'):
        next(prune_measured(network, lambda _: 0.0, importance, only=('stem',), size=SIZE))
    with pytest.raises(PruneError, match=r'importance is of another network: .*encoder\.stem'):
        importance[STEM] = importance[STEM][:4]
        next(prune_measured(network, lambda _: 0.0, importance, size=SIZE))
    unknown = batches(1)[0]
    unknown.disparity[:] = torch.nan
    with pytest.raises(PruneError, match='known disparity'):
        relative_error([unknown])


def test_the_command_writes_a_checkpoint_a_log_and_a_chart(tmp_path):
    save_network(kestrel(), tmp_path / 'trained.pt')
    run = CliRunner().invoke
    pool = str(tmp_path / 'pool')
    made = run(
        app,
        [
            'generate',
            '-o',
            pool,
            '--pairs',
            '4',
            '--width',
            '192',
            '--height',
            '96',
            '--seed',
            '3',
        ],
    )
    assert made.exit_code == 0, made.output
    words = ['prune', str(tmp_path / 'trained.pt'), '--pool', pool, '--crops', '2']
    words += ['--crop', '128x64', '--threads', '1', '--share', '0.97', '--only', STEM]
    words += ['--only', 'aggregation.down4']
    out, chart = tmp_path / 'smaller.pt', tmp_path / 'frontier.svg'
    result = run(app, [*words, '-o', str(out), '--plot', str(chart)])
    assert result.exit_code == 0, result.output
    rows = json.loads(out.with_suffix('.json').read_text())
    assert rows[0]['share'] == 1.0 and rows[-1]['share'] <= 0.97 < rows[-2]['share']
    assert count_macs(load_network(out)) == rows[-1]['macs']
    assert rows[-1]['group'] in result.output.replace('\n', '')
    assert '<svg' in chart.read_text()

    whole, less = tmp_path / 'whole.onnx', tmp_path / 'less.onnx'
    assert run(app, ['export', str(tmp_path / 'trained.pt'), '-o', str(whole)]).exit_code == 0
    for source, pruned in ((out, True), (tmp_path / 'trained.pt', False)):
        told = run(app, ['export', str(source), '-o', str(less), '--after', str(whole)])
        assert told.exit_code == 0, told.output
        manifest = read_manifest(less)
        entry = {'parameters': manifest.parameters, 'macs_640x480': manifest.macs_640x480}
        assert manifest.pruning == ([entry] if pruned else [])

    wrong = run(app, [*words, '-o', str(tmp_path / 'smaller.onnx')])
    assert wrong.exit_code != 0 and 'name it .pt' in wrong.output.replace('\n', ' ')
