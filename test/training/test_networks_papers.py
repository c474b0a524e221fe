# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The papers' networks: their size, their border, their gradients, their official weights."""

from __future__ import annotations

import re

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from stereo_kd_training.complexity import complexity, networks_table  # noqa: E402
from stereo_kd_training.networks import NetworkError, create, names  # noqa: E402
from stereo_kd_training.networks.acvnet import BlockAttention  # noqa: E402
from stereo_kd_training.networks.anynet import propagate  # noqa: E402
from stereo_kd_training.networks.blocks import attention_weights  # noqa: E402
from stereo_kd_training.networks.checkpoint import load_checkpoint  # noqa: E402

STUDENTS = ('dtpnet', 'compact_stereonet', 'anynet', 'dsnet', 'dsnet_wo', 'dsnet_slied8')
TEACHERS = ('psmnet', 'gwcnet_g', 'gwcnet_gc', 'acvnet')
# a narrow range keeps the 3D networks quick; it does not change what is tested
LIGHT = {'max_disparity_px': 32}


def random_pair(height: int = 64, width: int = 96, seed: int = 0, batch: int = 1):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 3, height, width)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def on_meta(name: str, **options):
    with torch.device('meta'):
        return create(name, **options)


@pytest.mark.parametrize(
    ('name', 'stated'),
    [
        ('dtpnet', 0.64e6),  # Table I
        ('compact_stereonet', 0.042e6),  # Table 2
        ('anynet', 0.043e6),  # Compact StereoNet, Table 2
        ('psmnet', 5.22e6),
        ('dsnet', 1.86e6),
        ('dsnet_wo', 1.55e6),
        ('dsnet_slied8', 1.05e6),
    ],
)
def test_parameter_counts_are_the_stated_ones_within_two_percent(name, stated):
    assert on_meta(name).parameter_count() == pytest.approx(stated, rel=0.02)


@pytest.mark.parametrize(
    ('name', 'count'),
    [
        ('anynet', 43_269),
        ('psmnet', 5_224_768),
        ('gwcnet_g', 6_518_560),
        ('gwcnet_gc', 6_909_728),
        ('acvnet', 6_230_944),
        ('acvnet_large', 7_173_488),
        ('dsnet', 1_856_256),
    ],
)
def test_public_networks_have_exactly_their_public_size(name, count):
    assert on_meta(name).parameter_count() == count


def test_dtpnet_costs_what_its_paper_says():
    counted = complexity(on_meta('dtpnet'))
    assert counted.macs == pytest.approx(6.25e9, rel=0.02)
    # Table II, by module; the volume's row is printed with two digits
    assert counted.macs_by_module['volume'] < 0.6e9
    without = complexity(on_meta('dtpnet', hourglasses=0))
    assert counted.parameters - without.parameters == pytest.approx(0.51e6, rel=0.03)


def test_dtpnet_pooling_adds_a_hundredth_of_a_million():
    extra = on_meta('dtpnet', spp=True).parameter_count() - on_meta('dtpnet').parameter_count()
    assert extra == pytest.approx(0.01e6, rel=0.3)


@pytest.mark.parametrize(('setting', 'stated'), [(1, 2.04e6), (2, 0.95e6), (3, 0.64e6)])
def test_dtpnet_settings_are_near_their_table(setting, stated):
    assert on_meta('dtpnet', setting=setting).parameter_count() == pytest.approx(stated, rel=0.05)


def test_the_documented_table_is_what_the_code_counts(repository):
    table = {row['name']: row for row in networks_table()}
    assert set(table) == set(names())
    page = (repository / 'docs' / 'networks.md').read_text()
    row = re.compile(r'^\| `(\w+)` \| (?:student|teacher) \| ([\d,]+) \|[^|]*\| ([\d.]+) \|', re.M)
    documented = {
        name: (int(parameters.replace(',', '')), float(giga_macs))
        for name, parameters, giga_macs in row.findall(page)
    }
    assert documented == {
        name: (row['parameters'], round(row['macs_640x480'] / 1e9, 2))
        for name, row in table.items()
    }
    assert all(row['source'] for row in table.values())


def test_macs_of_one_convolution_are_those_of_its_formula():
    class One(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 5, 3, padding=1, stride=2)

        def forward(self, left, right):
            return self.conv(left), self.conv(right)

    assert complexity(One(), 8, 12).macs == 2 * (4 * 6) * 5 * 3 * 9


@pytest.mark.parametrize('name', STUDENTS + TEACHERS)
def test_every_network_learns_from_both_views(name):
    torch.manual_seed(0)
    network = create(name, **LIGHT).train()
    # two pairs: PSMNet's pooling leaves one value per channel and image of this size
    left, right = (image.requires_grad_() for image in random_pair(batch=2))
    output = network(left, right)
    assert output.disparity.shape == (2, 64, 96)
    assert all(stage.shape == (2, 64, 96) for stage in output.stages)
    assert output.stages[-1] is output.disparity
    assert len(output.logits) == len(output.hypotheses) == len(output.stages)
    for logits, hypotheses in zip(output.logits, output.hypotheses):
        assert (logits is None) == (hypotheses is None)
        if logits is not None:
            assert logits.shape[1] == len(hypotheses)
            assert hypotheses[0] == 0
    sum(stage.abs().mean() for stage in output.stages).backward()
    for image in (left, right):
        assert torch.isfinite(image.grad).all()
        assert image.grad.abs().sum() > 0
    idle = {key.split('.')[0] for key, p in network.named_parameters() if p.grad is None}
    # a distillation point that no loss asked for here
    assert idle <= {'projection'}


@pytest.mark.parametrize('name', STUDENTS + TEACHERS)
def test_inference_gives_one_answer_that_depends_on_which_eye_is_which(name):
    torch.manual_seed(1)
    network = create(name, **LIGHT).eval()
    left, right = random_pair(96, 80)
    with torch.no_grad():
        one = network(left, right)
        again = network(left, right)
        other = network(right, left)
    assert one.disparity.shape == (1, 96, 80)
    assert torch.isfinite(one.disparity).all()
    torch.testing.assert_close(one.disparity, again.disparity)
    assert not torch.allclose(one.disparity, other.disparity)
    assert one.confidence.shape == (1, 96, 80)
    assert one.confidence.min() >= 0
    assert one.confidence.max() <= 1 + 1e-5


@pytest.mark.parametrize('name', STUDENTS + TEACHERS)
def test_a_side_off_the_stride_is_refused_with_the_size_to_pad_to(name):
    network = create(name, **LIGHT)
    with pytest.raises(NetworkError, match=r'multiples of 16, got 70x128; pad to 80x128'):
        network(torch.zeros(1, 3, 70, 128), torch.zeros(1, 3, 70, 128))
    with pytest.raises(NetworkError, match='both must have one shape'):
        network(torch.zeros(1, 3, 64, 96), torch.zeros(1, 3, 64, 112))


@pytest.mark.parametrize(
    ('name', 'options', 'complaint'),
    [
        ('dtpnet', {'max_disparity_px': 190}, 'multiple of 4, got 190'),
        ('dtpnet', {'setting': 4}, 'setting is 1, 2 or 3'),
        ('dtpnet', {'head': 'full'}, 'head is one of'),
        ('dtpnet', {'volume': 'l1'}, 'volume is one of'),
        ('dtpnet', {'hourglasses': -1}, 'hourglasses is 0 or more'),
        ('anynet', {'exit_stage': 5}, 'exit_stage is 1 to 4'),
        ('anynet', {'spn': False, 'exit_stage': 4}, 'exit_stage is 1 to 3'),
        ('compact_stereonet', {'exit_stage': 0}, 'exit_stage is 1 to 4'),
        ('acvnet', {'attention_channels': 24}, 'attention_channels is 16 or 32'),
        ('psmnet', {'max_disparity_px': 100}, 'multiple of 16, got 100'),
        ('psmnet', {'depth': 3}, 'refused its options'),
    ],
)
def test_impossible_options_are_refused_in_words(name, options, complaint):
    with pytest.raises(NetworkError, match=complaint):
        on_meta(name, **options)


def test_dtpnet_heads_share_weights_and_agree_where_scores_are_flat():
    torch.manual_seed(2)
    network = create('dtpnet', head='paper', **LIGHT).eval()
    left, right = random_pair()
    with torch.no_grad():
        paper = network(left, right)
        network.head = 'quarter'
        quarter = network(left, right)
    assert paper.logits[0].shape == (1, 32, 64, 96)
    assert quarter.logits[0].shape == (1, 32, 16, 24)
    # untrained scores hardly vary, so interpolating before or after the softmax is the same
    assert (paper.disparity - quarter.disparity).abs().max() < 1.0


def test_dsnet_heads_share_weights_and_agree_where_scores_are_smooth():
    torch.manual_seed(2)
    network = create('dsnet_slied8', max_disparity_px=32).eval()
    left, right = random_pair()
    with torch.no_grad():
        # Soft scores: interpolating before or after the softmax is nearly the same then.
        steepest = network(left, right).features['scores'].abs().max()
        network.classif2[-1].weight.div_(steepest)
        paper = network(left, right)
        network.head = 'quarter'
        quarter = network(left, right)
        network.train()
        stages = network(left, right).stages
    assert paper.logits[0].shape == (1, 32, 64, 96)
    assert quarter.logits[0].shape == (1, 8, 16, 24)
    assert quarter.hypotheses[0].tolist() == [1.5 + 4 * index for index in range(8)]
    assert quarter.disparity.shape == paper.disparity.shape == (1, 64, 96)
    assert (paper.disparity - quarter.disparity).abs().max() < 1.0
    assert len(stages) == 3 and all(stage.shape == (1, 64, 96) for stage in stages)
    with pytest.raises(NetworkError, match='head is one of'):
        network.head = 'half'


@pytest.mark.parametrize('options', [{'spp': True}, {'volume': 'iterative'}, {'hourglasses': 0}])
def test_dtpnet_variants_run(options):
    network = create('dtpnet', **LIGHT, **options).train()
    network(*random_pair(batch=2)).disparity.mean().backward()


@pytest.mark.parametrize('shift_px', [8, 24, 40])
def test_dtpnet_may_start_as_a_matcher(shift_px):
    torch.manual_seed(5)
    options = {'volume': 'iterative', 'head': 'quarter', 'max_disparity_px': 64}
    network = create('dtpnet', **options, starts_matching=True).train()
    texture = torch.rand(1, 3, 96, 224 + shift_px)
    with torch.no_grad():
        answer = network(texture[..., :224], texture[..., shift_px:])
    # Of the cells whose counterpart lies in the picture, whatever is found.
    found = answer.logits[0].argmax(1)[..., 16:-2]
    right = ((found - shift_px).abs() <= 4).float().mean()
    assert right > 0.85
    plain, started = (
        sum(value.numel() for value in create('dtpnet', **options, **more).parameters())
        for more in ({}, {'starts_matching': True})
    )
    assert plain == started


def test_dtpnet_that_shifts_nothing_cannot_start_as_a_matcher():
    with pytest.raises(NetworkError, match="starts_matching needs volume 'iterative'"):
        create('dtpnet', starts_matching=True)


@pytest.mark.parametrize('name', ['anynet', 'compact_stereonet'])
def test_early_exits_are_the_stages_of_the_whole(name):
    torch.manual_seed(3)
    network = create(name, **LIGHT).eval()
    pair = random_pair()
    with torch.no_grad():
        whole = network(*pair)
        assert len(whole.stages) == 4
        for stage in (1, 2, 3):
            network.exit_stage = stage
            early = network(*pair)
            assert len(early.stages) == stage
            torch.testing.assert_close(early.disparity, whole.stages[stage - 1])


def test_propagation_is_the_recurrence_of_its_docstring():
    generator = torch.Generator().manual_seed(4)
    values, *gates = (torch.randn(2, 3, 4, 5, generator=generator) * 0.4 for _ in range(4))
    out = propagate(values, *gates)
    expected = torch.zeros_like(values)
    for x in range(5):
        for y in range(4):
            total = torch.zeros(2, 3)
            kept = torch.ones(2, 3)
            for gate, dy in zip(gates, (-1, 0, 1)):
                if x >= 1 and 0 <= y + dy < 4:
                    total = total + gate[:, :, y, x] * expected[:, :, y + dy, x - 1]
                    kept = kept - gate[:, :, y, x]
            expected[:, :, y, x] = total + kept * values[:, :, y, x]
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('name', STUDENTS + TEACHERS)
def test_logits_are_the_scores_that_the_answer_was_regressed_from(name):
    torch.manual_seed(5)
    network = create(name, **LIGHT).eval()
    with torch.no_grad():
        output = network(*random_pair())
    for stage, logits, hypotheses in zip(output.stages, output.logits, output.hypotheses):
        if logits is None:
            continue
        expected = (logits.softmax(1) * hypotheses.view(1, -1, 1, 1)).sum(1, keepdim=True)
        full = torch.nn.functional.interpolate(
            expected, stage.shape[-2:], mode='bilinear', align_corners=False
        )
        torch.testing.assert_close(full[:, 0], stage, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize('name', ['dsnet', 'acvnet'])
def test_attention_hands_no_subnormal_number_to_the_convolutions(name):
    torch.manual_seed(0)
    network = create(name, **LIGHT).eval()
    # As sharp as those of a full range, some of which float32 holds as subnormal weights only.
    getattr(network, 'attention' if name == 'dsnet' else 'classif_att').register_forward_hook(
        lambda module, inputs, scores: 40.0 * scores / scores.std()
    )
    seen = []
    network.dres0.register_forward_hook(lambda module, inputs, result: seen.append(inputs[0]))
    with torch.no_grad():
        network(*random_pair())
    (volume,) = seen
    size = volume.abs()
    assert not ((size > 0) & (size < torch.finfo(torch.float32).tiny)).any()
    assert (size > 0).float().mean() > 0.3


def test_attention_is_a_softmax():
    scores = 30 * torch.randn(2, 1, 12, 5, 7, generator=torch.Generator().manual_seed(2))
    found = attention_weights(scores)
    torch.testing.assert_close(found, torch.softmax(scores, 2), atol=1e-16, rtol=1e-6)
    assert found.min() > torch.finfo(torch.float32).tiny


def attended_alone(attention, block):
    """Attention among the cells of one block (B, C, d, h, w), by its formula."""
    batch, channels = block.shape[:2]
    cells = block.flatten(2).transpose(1, 2)
    heads = (batch, cells.shape[1], 3, attention.heads, channels // attention.heads)
    query, key, value = attention.qkv_3d(cells).view(heads).permute(2, 0, 3, 1, 4)
    weights = torch.softmax(query @ key.transpose(2, 3) * attention.scale, 3)
    merged = (weights @ value).permute(0, 1, 3, 2).reshape(block.shape)
    return attention.final1x1(merged)


@pytest.mark.parametrize('extents', [(4, 8, 6), (2, 5, 8), (3, 4, 4)])
def test_block_attention_stays_within_its_blocks_and_off_its_padding(extents):
    torch.manual_seed(6)
    attention = BlockAttention(32).eval()
    volume = torch.randn(2, 32, *extents)
    with torch.no_grad():
        whole = attention(volume)
        for row in range(0, extents[1], 4):
            for column in range(0, extents[2], 4):
                window = (..., slice(row, row + 4), slice(column, column + 4))
                torch.testing.assert_close(
                    whole[window], attended_alone(attention, volume[window])
                )


class Through(torch.nn.Module):
    """A layer replaced by a function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def shifted_features(channels: int, shift: int):
    right = torch.randn(1, channels, 8, 32, generator=torch.Generator().manual_seed(shift))
    return torch.roll(right, shift, dims=3), right


def test_anynet_takes_low_costs_for_matches():
    network = create('anynet', exit_stage=1).eval()
    network.volume_postprocess[0] = Through(lambda volume: 5.0 * volume)
    left, right = shifted_features(8, 5)
    empty = torch.zeros(1, 1, 8, 32)
    with torch.no_grad():
        output = network.match(
            (left, empty, empty), (right, empty, empty), torch.zeros(1, 3, 128, 512)
        )
    assert (output.logits[0][..., 12:].argmax(1) == 5).all()
    assert (output.disparity[..., 256:] - 5 * 16).abs().max() < 0.1


def test_gwcnet_takes_high_scores_for_matches():
    network = create('gwcnet_g', max_disparity_px=48).eval()
    network.dres0 = Through(lambda volume: volume.mean(1, keepdim=True))
    network.dres1 = Through(torch.zeros_like)
    network.dres2 = network.dres3 = network.dres4 = torch.nn.Identity()
    network.classif3 = Through(lambda scores: 200.0 * scores)
    left, right = shifted_features(320, 5)
    with torch.no_grad():
        output = network.match((left, None), (right, None))
    inner = output.features['scores'][..., 12:]
    assert (inner.argmax(1) == 5).all()
    # corners not aligned: entry 5 of 12 is stretched over 20 to 23 px of 48
    assert (output.disparity[..., 64:] - 21.5).abs().max() < 1.0


def kitti_error(network, data_dir, name: str) -> float:
    """EPE in pixels over the pixels with truth."""
    folder = data_dir / 'kitti2015' / name
    images = [cv2.imread(str(folder / f'{side}.png')) for side in ('left', 'right')]
    truth = cv2.imread(str(folder / 'disp_noc.png'), cv2.IMREAD_UNCHANGED) / 256.0
    height, width = truth.shape
    # the official evaluation pads above and to the right
    pad = (0, -width % network.stride, -height % network.stride, 0)
    planes = [
        torch.from_numpy(image[:, :, ::-1].copy()).permute(2, 0, 1)[None].float()
        for image in images
    ]
    pair = [torch.nn.functional.pad(network.normalize(plane), pad) for plane in planes]
    with torch.no_grad():
        disparity = network(*pair).disparity[0, pad[2] :, :width].numpy()
    return float(np.abs(disparity - truth)[truth > 0].mean())


def official(data_dir, *parts: str):
    path = data_dir.joinpath('weights', *parts)
    if not path.is_file():
        pytest.skip(f'no official weights at {path}')
    return path


@pytest.mark.parametrize(
    ('weights', 'epe_px'), [('kitti2015', 0.8), ('kitti2012', 1.0), ('sceneflow', 3.2)]
)
def test_official_anynet_weights_load_strictly_and_match_well(data_dir, weights, epe_px):
    network = create('anynet').eval()
    load_checkpoint(network, official(data_dir, 'anynet', f'anynet_{weights}.tar'))
    assert kitti_error(network, data_dir, '000016_10') < epe_px


def test_autocast_costs_official_anynet_hardly_any_accuracy(data_dir):
    network = create('anynet').eval()
    load_checkpoint(network, official(data_dir, 'anynet', 'anynet_kitti2015.tar'))
    exact = kitti_error(network, data_dir, '000016_10')
    with torch.autocast('cpu', torch.bfloat16):
        rounded = kitti_error(network, data_dir, '000016_10')
    assert exact != rounded
    assert rounded < exact + 0.15


def test_official_anynet_weights_do_not_fit_without_spn(data_dir):
    path = official(data_dir, 'anynet', 'anynet_kitti2015.tar')
    with pytest.raises(NetworkError, match=r'unexpected, first .refine_spn'):
        load_checkpoint(create('anynet', spn=False), path)


def test_official_psmnet_weights_load_strictly(data_dir):
    path = official(data_dir, 'psmnet', 'psmnet_stackhourglass_kitti2015.tar')
    network = create('psmnet')
    before = network.dres0[0][0].weight.clone()
    load_checkpoint(network, path)
    assert not torch.equal(before, network.dres0[0][0].weight)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_official_psmnet_weights_reach_their_known_error(data_dir):
    network = create('psmnet').eval()
    load_checkpoint(network, official(data_dir, 'psmnet', 'psmnet_stackhourglass_kitti2015.tar'))
    # 0.29 px; corners not aligned would give about three times as much
    assert kitti_error(network, data_dir, '000016_10') < 0.35
