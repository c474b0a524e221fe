# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is traced into an exported file gives the numbers of what training runs."""

from __future__ import annotations

import pytest

torch = pytest.importorskip('torch', reason='training needs torch')
import torch.nn.functional as F  # noqa: E402

from stereo_kd_training.networks import deployed  # noqa: E402
from stereo_kd_training.networks.base import IMAGENET_MEAN  # noqa: E402
from stereo_kd_training.networks.confidence import local_range  # noqa: E402
from stereo_kd_training.networks.kestrel import (  # noqa: E402
    convex_upsample,
    correlation_volume,
    weighted_mean,
    window_regression,
)

onnx = pytest.importorskip('onnx', reason='export needs onnx')
from tiny_kestrel import TINY  # noqa: E402

from stereo_kd_training.export import export_network  # noqa: E402
from stereo_kd_training.networks import create  # noqa: E402


@pytest.fixture
def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# Narrower than the range, exactly one and two blocks, and in between.
@pytest.mark.parametrize('width', [5, 12, 24, 31])
@pytest.mark.parametrize('batch', [1, 2])
def test_the_volume_by_blocks_is_the_volume(seeded, width, batch):
    left, right = (torch.randn(batch, 7, 4, width, generator=seeded) for _ in range(2))
    torch.testing.assert_close(
        deployed.correlation_volume(left, right, 12), correlation_volume(left, right, 12)
    )


@pytest.mark.parametrize('radius', [1, 2, 16])
def test_the_regression_spelt_out_is_the_regression(seeded, radius):
    logits = 4 * torch.randn(2, 16, 9, 11, generator=seeded)
    bins = torch.arange(15, -1, -1, dtype=torch.float32)
    for found, expected in zip(
        deployed.window_regression(logits, bins, radius), window_regression(logits, bins, radius)
    ):
        torch.testing.assert_close(found, expected)


def test_the_mean_spelt_out_is_the_mean(seeded):
    logits = 90 * torch.randn(2, 12, 5, 7, generator=seeded)
    bins = torch.linspace(0, 31, 12).view(1, -1, 1, 1)
    expected = (torch.softmax(logits, 1) * bins).sum(1)
    torch.testing.assert_close(deployed.mean_of_bins(logits, bins), expected)


def test_of_channels_that_tie_the_first_is_the_best():
    logits = torch.zeros(1, 8, 1, 2)
    logits[0, [1, 6], 0, 0] = 5.0
    bins = torch.arange(7, -1, -1, dtype=torch.float32)
    expected, mass = deployed.window_regression(logits, bins, 1)
    same, of_it = window_regression(logits, bins, 1)
    torch.testing.assert_close(expected, same)
    torch.testing.assert_close(mass, of_it)
    assert expected[0, 0, 0, 0] == pytest.approx(6.0)


@pytest.mark.parametrize('factors', [(2, 2), (3, 3), (4, 4), (6, 3), (4, 5)])
@pytest.mark.parametrize('size', [(1, 1), (3, 5), (8, 2)])
def test_the_sums_are_bilinear(seeded, size, factors):
    coarse = torch.rand(2, 1, *size, generator=seeded)
    scales = tuple(float(factor) for factor in factors)
    torch.testing.assert_close(
        deployed.bilinear(coarse, factors),
        F.interpolate(coarse, scale_factor=scales, mode='bilinear', align_corners=False),
    )


@pytest.mark.parametrize('rows', [2, 3, 4, 5, 6])
@pytest.mark.parametrize('columns', [2, 3, 4, 5, 6])
def test_a_resize_of_bytes_is_bilinear_between_pixel_centres(seeded, rows, columns):
    cell = (rows, columns)
    network = create('kestrel', **{**TINY, 'max_disparity_px': 12 * columns}, **cells(cell))
    height, width = (2 * stride for stride in network.strides)
    image = torch.randint(0, 256, (2, height - 1, width - 3, 3), generator=seeded)
    pad = [0, 3, 0, 1]
    found = deployed.normalised(image, pad, *network.normalisation, network.resizes)
    planes = F.pad(image.permute(0, 3, 1, 2).float(), pad, mode='replicate')
    scales = tuple(4.0 / size for size in cell)
    expected = F.interpolate(
        network.normalize(planes), scale_factor=scales, mode='bilinear', align_corners=False
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def cells(cell: tuple[int, int]) -> dict[str, int]:
    return {'cell_px': cell[1], 'cell_height_px': cell[0]}


def test_parts_of_a_cell_lie_row_by_row():
    parts = torch.arange(12.0).view(1, 6, 1, 2)
    # two cells of 3 rows and 2 columns, of which part k holds 2 k and 2 k + 1
    expected = torch.tensor([[0.0, 2, 1, 3], [4, 6, 5, 7], [8, 10, 9, 11]])
    assert torch.equal(deployed.shuffled(parts, (3, 2))[0, 0], expected)
    square = torch.arange(8.0).view(1, 4, 1, 2)
    assert torch.equal(deployed.shuffled(square, (2, 2)), F.pixel_shuffle(square, 2))
    wide = torch.arange(2 * 12 * 3 * 5.0).view(2, 12, 3, 5)
    assert torch.equal(deployed.shuffled_rows(wide, (3, 4)), deployed.shuffled(wide, (3, 4)))


def test_unit_vectors_have_a_length_of_one_or_none(seeded):
    features = torch.randn(2, 7, 3, 5, generator=seeded)
    features[0, :, 1, 2] = 0
    torch.testing.assert_close(deployed.unit_vectors(features), F.normalize(features, dim=1))


@pytest.mark.parametrize('cells', [1, 2, 8])
@pytest.mark.parametrize('read', [(3, 2), (2, 3), (3, 3), (4, 2), (2, 4), (4, 3)])
def test_a_stem_resizes_and_convolves(seeded, cells, read):
    image = torch.randn(2, 3, *(2 * cells * pixels for pixels in read), generator=seeded)
    weight = torch.randn(4, 3, 3, 3, generator=seeded)
    small = F.interpolate(image, (4 * cells, 4 * cells), mode='bilinear', align_corners=False)
    both = weight
    for axis, pixels in enumerate(read):
        both = deployed.resizing_weights(both, axis, pixels)
    found = F.conv2d(image, both, stride=read, padding=[1 if p == 2 else 2 for p in read])
    torch.testing.assert_close(found, F.conv2d(small, weight, stride=2, padding=1))


@pytest.mark.parametrize('cell', [(6, 4), (6, 3), (6, 6), (4, 6), (8, 6), (8, 4)])
def test_a_file_whose_stem_resizes_gives_its_weights_back(tmp_path, cell):
    from stereo_kd_training.networks.shipped import load_shipped

    torch.manual_seed(1)
    options = {**TINY, 'max_disparity_px': 12 * cell[1]}
    network = create('kestrel', **options, cell_px=cell[1], cell_height_px=cell[0]).eval()
    path, size = tmp_path / 'stem.onnx', tuple(2 * stride for stride in network.strides)
    export_network(network, path, sizes=(size, (size[0] - 5, size[1] - 3)))
    names = {node.name for node in onnx.load(path).graph.node}
    assert '/network/encoder/level_stem/Conv' in names
    assert not any('/encoder/stem/' in name for name in names)
    found = load_shipped(path)
    images = torch.rand(2, 1, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(
            found(*images).disparity, network(*images).disparity, atol=1e-3, rtol=0
        )
    with deployed.without('stem', 'levels'):
        export_network(network, path, sizes=(size,))
    assert '/network/encoder/stem/stem.0/Conv' in {n.name for n in onnx.load(path).graph.node}


@pytest.mark.parametrize(('cell', 'stem'), [((6, 4), 'tall_stem'), ((4, 4), 'stem/stem.0')])
def test_a_file_of_before_whose_zero_was_no_whole_level(tmp_path, seeded, cell, stem):
    from stereo_kd_training.networks.shipped import load_shipped

    torch.manual_seed(1)
    options = {**TINY, 'max_disparity_px': 12 * cell[1], **cells(cell)}
    network = create('kestrel', **options).eval()
    network.mean.copy_(torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
    path = tmp_path / 'before.onnx'
    with deployed.without('levels'):
        export_network(network, path, sizes=(tuple(2 * stride for stride in network.strides),))
    assert f'/network/encoder/{stem}/Conv' in {n.name for n in onnx.load(path).graph.node}
    # It is found to answer as the file, and then brought to the zero of today.
    now = load_shipped(path)
    assert not torch.equal(now.mean, network.mean)
    image = torch.randint(0, 256, (1, 3, 24, 32), generator=seeded).float()
    with torch.no_grad():
        before, found = (of.encoder.stem(of.normalize(image)) for of in (network, now))
    # The first row and column look beyond the image.
    inside = (..., slice(1, None), slice(1, None))
    torch.testing.assert_close(found[inside], before[inside], atol=1e-4, rtol=1e-4)


def test_bytes_are_normalised_and_padded_alike(seeded):
    image = torch.randint(0, 256, (2, 5, 7, 3), generator=seeded, dtype=torch.uint8)
    network = create('kestrel', **TINY)
    pad = [0, 9, 0, 3]
    expected = network.normalize(F.pad(image.permute(0, 3, 1, 2).float(), pad, mode='replicate'))
    found = deployed.normalised(image, pad, *network.normalisation)
    assert found.shape == (2, 3, 8, 16)
    torch.testing.assert_close(found, expected)
    # by hand: what continues a picture is its last pixel
    red = (image[1, 4, 6, 0].item() - 124) / 255 / 0.229
    assert found[1, 0, 7, 15].item() == pytest.approx(red, abs=1e-5)


def test_bf16_holds_every_byte_as_a_graph_reads_it():
    network = create('kestrel', **TINY)
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(-1, -1, -1, 3)
    whole = deployed.whole_levels(*network.normalisation)
    levels = deployed.normalised(image, [0, 0, 0, 0], *whole)
    assert torch.equal(levels.bfloat16().float(), levels)
    # Normalised as in training, bright ones are off by nearly half a level.
    scale, offset = network.normalisation
    trained_on = deployed.normalised(image, [0, 0, 0, 0], scale, offset)
    off = (trained_on.bfloat16().float() - trained_on).abs() / scale.view(1, 3, 1, 1)
    assert 0.3 < off.max() < 0.5


@pytest.mark.parametrize('rows', [3, 5])
def test_a_convolution_of_whole_levels_answers_as_that_of_normalised_images(seeded, rows):
    network = create('kestrel', **TINY)
    image = torch.randint(0, 256, (2, 9, 11, 3), generator=seeded, dtype=torch.uint8)
    weight = torch.randn(4, 3, rows, 3, generator=seeded)
    scale, offset = network.normalisation
    made = deployed.of_levels(weight, scale)
    pad = [0, 0, 0, 0]
    levels = deployed.normalised(image, pad, *deployed.whole_levels(scale, offset))
    normalised = deployed.normalised(image, pad, scale, offset)
    # beyond the image as well
    found, expected = F.conv2d(levels, made, padding=2), F.conv2d(normalised, weight, padding=2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('size', [(1, 1), (1, 6), (2, 2), (5, 7)])
def test_the_range_round_a_cell_is_that_of_pooling(seeded, size):
    values = 100 * torch.rand(2, 1, *size, generator=seeded)
    torch.testing.assert_close(deployed.local_range(values), local_range(values))


def test_a_volume_is_scaled_channel_by_channel(seeded):
    volume = torch.randn(2, 6, 3, 4, generator=seeded)
    torch.testing.assert_close(deployed.scaled(volume, torch.tensor(2.5), 6), 2.5 * volume)


@pytest.mark.parametrize('factors', [(2, 2), (3, 3), (4, 4), (6, 3), (4, 5)])
def test_upsampling_by_nine_convolutions_is_that_by_one(seeded, factors):
    area = factors[0] * factors[1]
    features = torch.randn(2, 5, 3, 4, generator=seeded)
    # beyond the limit of 10 as well
    weight = 20 * torch.randn(9 * area, 5, 1, 1, generator=seeded)
    bias = torch.randn(9 * area, generator=seeded)
    coarse = 100 * torch.rand(2, 1, 3, 4, generator=seeded)
    parts = deployed.in_parts(features, weight, bias, 9)
    assert [part.shape[1] for part in parts] == 9 * [area]
    torch.testing.assert_close(
        convex_upsample(coarse, parts, factors),
        convex_upsample(coarse, F.conv2d(features, weight, bias), factors),
    )


@pytest.mark.parametrize('count', [1, 2, 3, 4, 8, 9, 10])
def test_a_mean_by_twos_and_threes_is_the_mean(seeded, count):
    shares = [torch.rand(2, 6, 3, 4, generator=seeded) + 0.1 for _ in range(count)]
    values = [100 * torch.rand(2, 1, 3, 4, generator=seeded) for _ in range(count)]
    every = torch.stack(shares)
    expected = (every * torch.stack(values)).sum(0) / every.sum(0)
    torch.testing.assert_close(deployed.weighted_mean(shares, values), expected)
    torch.testing.assert_close(weighted_mean(shares, values), expected)


@pytest.mark.parametrize('factors', [(4, 4), (6, 6), (6, 3)])
@pytest.mark.parametrize('less', [(0, 0), (1, 0), (0, 2), (3, 2)])
def test_what_was_filled_up_is_cut_off_again(seeded, factors, less):
    coarse = 100 * torch.rand(2, 1, 3, 4, generator=seeded) - 20
    weights = torch.randn(2, 9 * factors[0] * factors[1], 3, 4, generator=seeded)
    height, width = 3 * factors[0] - less[0], 4 * factors[1] - less[1]
    whole = convex_upsample(coarse, weights, factors)
    assert whole.min() < 0
    torch.testing.assert_close(
        convex_upsample(coarse, weights, factors, (height, width)),
        whole[:, :, :height, :width].clamp(min=0.0),
    )
    torch.testing.assert_close(
        deployed.bilinear(coarse, factors, (height, width)),
        deployed.bilinear(coarse, factors)[:, :, :height, :width],
    )


@pytest.mark.parametrize('calibrated', [False, True])
def test_a_network_answers_in_the_size_it_is_asked_for(calibrated):
    torch.manual_seed(1)
    network = create('kestrel', **TINY, calibrated=calibrated).eval()
    left, right = torch.randn(2, 1, 3, 64, 96)
    with torch.no_grad():
        whole, part = network(left, right), network(left, right, (61, 93))
    torch.testing.assert_close(part.disparity, whole.disparity[:, :61, :93].clamp(min=0.0))
    torch.testing.assert_close(part.confidence, whole.confidence[:, :61, :93])
    assert part.confidence.min() >= 0 and part.confidence.max() <= 1


def operators(network, path) -> set[str]:
    export_network(network, path, sizes=((64, 96),))
    return {node.op_type for node in onnx.load(path).graph.node}


def test_forms_are_traced_unless_left_out(tmp_path):
    torch.manual_seed(1)
    network = create('kestrel', **TINY).eval()
    replaced = {'ArgMax', 'Where', 'Resize'}
    # Nearest upsampling between levels is a Resize as well.
    with deployed.without('regression'):
        assert 'ArgMax' in operators(network, tmp_path / 'without.onnx')
    assert not deployed.deployed('regression')
    assert operators(network, tmp_path / 'with.onnx') & replaced == {'Resize'}


def graph(network, path):
    export_network(network, path, sizes=((64, 96),))
    return onnx.load(path).graph


def test_no_map_is_turned_before_it_is_normalised(tmp_path):
    torch.manual_seed(1)
    network = create('kestrel', **TINY).eval()

    def turned(path) -> int:
        """How many operators turn bytes, or bytes as numbers."""
        nodes = graph(network, path).node
        bytes_of = {'left', 'right'}
        bytes_of |= {n.output[0] for n in nodes if n.op_type == 'Cast' and n.input[0] in bytes_of}
        return sum(n.op_type == 'Transpose' and n.input[0] in bytes_of for n in nodes)

    assert turned(tmp_path / 'with.onnx') == 0
    with deployed.without('input'):
        assert turned(tmp_path / 'without.onnx') == 2


def test_an_upsampling_is_written_in_nine_and_read_back_as_one(tmp_path):
    from stereo_kd_training.networks.shipped import load_shipped

    torch.manual_seed(1)
    network = create('kestrel', **TINY).eval()
    path = tmp_path / 'nine.onnx'
    nodes = [n.name for n in graph(network, path).node if n.op_type == 'Conv']
    assert sum('/upsampling/upsampling.1/' in name for name in nodes) == 9
    assert sum('/scaling/' in name for name in nodes) == 1
    found, expected = load_shipped(path).state_dict(), network.state_dict()
    for name in ('upsampling.1.weight', 'upsampling.1.bias', 'correlation_scale'):
        torch.testing.assert_close(found[name], expected[name])


def test_views_are_put_together_behind_their_stems(tmp_path):
    from stereo_kd_training.networks.shipped import load_shipped

    torch.manual_seed(1)
    network = create('kestrel', **TINY, refined=[4, 8, 1, 4]).eval()

    def stems(path) -> int:
        names = [n.name for n in graph(network, path).node if n.op_type == 'Conv']
        return sum('level_stem' in name for name in names)

    with deployed.without('views'):
        assert stems(tmp_path / 'without.onnx') == 1
    path = tmp_path / 'with.onnx'
    assert stems(path) == 2
    found = load_shipped(path).eval()
    left, right = torch.randn(2, 1, 3, 64, 96)
    with torch.no_grad():
        expected = network(left, right).disparity
        torch.testing.assert_close(found(left, right).disparity, expected, atol=1e-3, rtol=1e-4)


def test_a_papers_regression_is_traced_without_softmax(tmp_path):
    torch.manual_seed(1)
    network = create('dtpnet', max_disparity_px=32).eval()
    with deployed.without('regression'):
        assert 'Softmax' in operators(network, tmp_path / 'without.onnx')
    assert 'Softmax' not in operators(network, tmp_path / 'with.onnx')


def test_a_form_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match='no form'), deployed.without('magic'):
        pass
