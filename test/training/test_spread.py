# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Answers that spread: from whom a cell takes one, when, and that files do as networks do."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tiny_kestrel import TINY  # noqa: E402

from stereo_kd_ros.model import read_manifest  # noqa: E402
from stereo_kd_training.complexity import complexity  # noqa: E402
from stereo_kd_training.export import build_manifest, export_again, export_network  # noqa: E402
from stereo_kd_training.networks import NetworkError, create  # noqa: E402
from stereo_kd_training.networks.kestrel import (  # noqa: E402
    SPREAD_LEVELS,
    SPREAD_REACHES,
    answers_of,
    surest_alike,
    with_refinement,
)
from stereo_kd_training.networks.shipped import load_shipped  # noqa: E402
from stereo_kd_training.prune import find_unprunable  # noqa: E402

REFINED = {**TINY, 'refined': (4, 8, 1), 'refined_passes': 3}
AROUND = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if y or x]


def network_that_spreads(**options):
    torch.manual_seed(3)
    network = create('kestrel', **{**REFINED, 'refined_spread': 1, **options}).eval()
    torch.nn.init.normal_(network.refinement.offset.weight, std=0.3)
    return network


def one_step(sure: np.ndarray, colours: np.ndarray, row: int, column: int) -> tuple[int, int]:
    """Whose answer is best for one cell, by the definition."""
    height, width = sure.shape
    best, place = float(sure[row, column]), (row, column)
    for reach in SPREAD_REACHES:
        for y, x in AROUND:
            there = (
                min(max(row + reach * y, 0), height - 1),
                min(max(column + reach * x, 0), width - 1),
            )
            unlike = np.abs(colours[:, there[0], there[1]] - colours[:, row, column]).mean()
            offered = float(sure[there]) * math.exp(-float(unlike) / SPREAD_LEVELS)
            if offered > best * (1 + 1e-5):
                best, place = offered, there
    return place


@settings(deadline=None)
@given(
    st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), st.booleans()
)
def test_a_cell_goes_on_with_the_surest_answer_that_looks_like_it(
    seed, batch, height, width, alike
):
    generator = torch.Generator().manual_seed(seed)
    sure = 0.01 + 0.99 * torch.rand(batch, 1, height, width, generator=generator)
    contrast = 5.0 if alike else 120.0
    colours = contrast * torch.rand(batch, 3, height, width, generator=generator)
    cells = torch.arange(batch * height * width).view(batch, 1, height, width)
    found = answers_of(surest_alike(sure, colours), cells).numpy()
    for pair in range(batch):
        maps = sure[pair, 0].numpy(), colours[pair].numpy()
        for row in range(height):
            for column in range(width):
                # Two steps: whom a cell asks has asked as well.
                there = one_step(*maps, *one_step(*maps, row, column))
                assert found[pair, 0, row, column] == cells[pair, 0, there[0], there[1]]


def test_an_answer_spreads_over_its_surface_and_not_over_the_edge_beside_it():
    """A grey wall with a patch that is lost, beside a white thing nearer by."""
    sure = torch.full((1, 1, 12, 16), 0.9)
    sure[..., 3:9, 4:7] = 0.1
    answer = torch.full((1, 1, 12, 16), 10.0)
    answer[..., 8:] = 40.0
    answer[..., 3:9, 4:7] = torch.rand(6, 3) * 60
    colours = torch.full((1, 3, 12, 16), 90.0)
    colours[..., 8:] = 220.0
    healed = answers_of(surest_alike(sure, colours), answer)
    assert torch.all(healed[..., :8] == 10.0)
    assert torch.all(healed[..., 8:] == 40.0)


def test_who_is_as_sure_as_all_keeps_its_own():
    answer = torch.rand(2, 1, 6, 7)
    source = surest_alike(torch.full((2, 1, 6, 7), 0.5), torch.zeros(2, 3, 6, 7))
    assert torch.equal(answers_of(source, answer), answer)


@pytest.mark.parametrize(
    ('passes', 'spread', 'times'), [(1, 1, 0), (3, 1, 2), (4, 2, 1), (6, 2, 2), (3, 0, 0)]
)
def test_it_spreads_between_passes_and_the_last_word_is_the_refinements(
    passes, spread, times, monkeypatch
):
    from stereo_kd_training.networks import kestrel

    taken = []
    monkeypatch.setattr(
        kestrel, 'answers_of', lambda source, answers: taken.append(source) or answers
    )
    network = network_that_spreads(refined_passes=passes, refined_spread=spread)
    with torch.no_grad():
        network(*torch.rand(2, 1, 3, 64, 96))
    # What is whole and what is left of it.
    assert len(taken) == 2 * times


def test_it_changes_answers_and_has_no_weights():
    network = network_that_spreads()
    plain = create('kestrel', **REFINED).eval()
    plain.load_state_dict(network.state_dict())
    images = torch.rand(2, 1, 3, 64, 96)
    with torch.no_grad():
        assert not torch.equal(network(*images).disparity, plain(*images).disparity)
    # Of a cell: its colours, and of each reach eight steps of three colours, their means and who.
    of_a_cell = 3 * 16 + 3 * (24 * 9 + 8 * 24 + 8 * 9)
    assert complexity(network).macs - complexity(plain).macs == 160 * 120 * of_a_cell
    assert network.parameter_count() == plain.parameter_count()
    assert find_unprunable(network) == find_unprunable(plain)


def test_it_learns_through_whom_it_takes_answers_of():
    network = network_that_spreads().train()
    network(*torch.rand(2, 1, 3, 64, 96)).disparity.mean().backward()
    assert float(network.refinement.offset.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize(
    'options', [{'refined_spread': -1}, {'refined_spread': 1, 'refined': None}]
)
def test_what_cannot_spread_is_refused(options):
    with pytest.raises(NetworkError, match='refined_spread'):
        create('kestrel', **{**REFINED, **options})


@pytest.mark.parametrize('cells', [(4, 4), (3, 4), (6, 8), (2, 3)])
def test_colours_are_means_of_cells_in_grey_levels(cells):
    width, height = cells
    network = network_that_spreads(cell_px=width, cell_height_px=height, max_disparity_px=48)
    image = torch.zeros(1, 8 * height, 8 * width, 3, dtype=torch.uint8)
    image[:, :, 4 * width :] = torch.tensor([90, 30, 0], dtype=torch.uint8)
    planes = network.normalize(image.permute(0, 3, 1, 2).float())
    scaled = torch.nn.functional.interpolate(
        planes, scale_factor=(4 / height, 4 / width), mode='bilinear'
    )
    seen = network._colours(scaled)
    assert seen.shape == (1, 3, 8, 8)
    steps = (seen[..., -1] - seen[..., 0]).mean(2)[0]
    torch.testing.assert_close(steps, torch.tensor([90.0, 30.0, 0.0]), atol=0.01, rtol=0)


@pytest.mark.parametrize('cells', [(4, 4), (3, 6), (6, 8)])
def test_a_file_spreads_as_the_network_does_and_is_read_again(tmp_path, cells):
    width, height = cells
    network = network_that_spreads(cell_px=width, cell_height_px=height, max_disparity_px=48)
    path, plain, back = (tmp_path / f'{name}.onnx' for name in ('spread', 'plain', 'back'))
    manifest = build_manifest(
        network, 'kestrel_tiny', version='0.1.0', licence='Apache-2.0', training_data=[]
    )
    parities = export_network(network, path, manifest)
    assert parities
    read = load_shipped(path)
    assert read.refined_spread == 1
    for name, value in network.refinement.state_dict().items():
        if 'running' not in name and 'norm' not in name and name.startswith('offset'):
            torch.testing.assert_close(read.refinement.state_dict()[name], value)
    export_again(path, plain, spread=0)
    assert read_manifest(plain).configuration['options']['refined_spread'] == 0
    export_again(plain, back, spread=1)
    images = torch.randint(0, 256, (2, 1, 96, 144, 3), dtype=torch.uint8).numpy()
    import onnxruntime

    def answer(file):
        session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
        return session.run(['disparity'], {'left': images[0], 'right': images[1]})[0]

    # Two that are as sure to rounding may fall either way.
    assert (np.abs(answer(back) - answer(path)) > 0.02).mean() < 0.02
    assert np.abs(answer(plain) - answer(path)).max() > 0.1


def test_a_refinement_that_is_taken_over_keeps_how_its_network_spreads():
    network, other = network_that_spreads(), network_that_spreads(refined_spread=0)
    assert with_refinement(network, other).refined_spread == 1
    assert with_refinement(network, other, spread=2).refined_spread == 2


@pytest.mark.parametrize('spread', [3, 4])
def test_after_the_last_pass_nothing_spreads_and_that_is_said(spread):
    network = network_that_spreads()
    with pytest.raises(NetworkError, match=f'after {spread} of 3 passes'):
        with_refinement(network, network, spread=spread)
