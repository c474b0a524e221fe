# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: exact resume, refusal to mix runs, divergence, crops that keep disparity."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tiny_kestrel import TINY  # noqa: E402

from stereo_kd_training.datasets.base import StereoSample  # noqa: E402
from stereo_kd_training.stages import NamedPair  # noqa: E402
from stereo_kd_training.teachers import TopK  # noqa: E402
from stereo_kd_training.train import (  # noqa: E402
    ConcatenatedPairs,
    Trainer,
    TrainingConfig,
    TrainingError,
    jitter_colour,
    load_network,
    make_batch,
    one_cycle,
    random_crop,
    random_window,
    read_checkpoint,
)


class ShiftedTextures:
    """Pair i is one random texture seen twice, 4 + i px apart: the truth needs no renderer."""

    def __init__(self, count: int = 8, height: int = 72, width: int = 140) -> None:
        self.count, self.height, self.width = count, height, width

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> StereoSample:
        generator = np.random.default_rng(index)
        shift = 4 + index
        texture = generator.integers(0, 255, (self.height, self.width + shift, 3), np.uint8)
        left, right = texture[:, : self.width], texture[:, shift:]
        disparity = np.full((self.height, self.width), shift, np.float32)
        return StereoSample(left.copy(), right.copy(), disparity, f'shift {shift}')


def config(**fields) -> TrainingConfig:
    base = {
        'options': TINY,
        'steps': 6,
        'batch_size': 2,
        'crop_height': 64,
        'crop_width': 96,
        'validate_every': 3,
        'validation_pairs': 1,
        'checkpoint_every': 1,
        'log_every': 1,
        'precision': 'no',
    }
    return TrainingConfig(**{**base, **fields})


def state(trainer: Trainer) -> dict:
    return {k: v.clone() for k, v in trainer.plain_network.state_dict().items()}


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_killed_run_resumes_to_the_very_same_weights(tmp_path):
    pairs = ShiftedTextures()
    whole = Trainer(config(), tmp_path / 'whole', pairs, pairs)
    whole.run()

    class Killed(Exception):
        pass

    def die(step: int, _text: str) -> None:
        if step == 4:
            raise Killed

    with pytest.raises(Killed):
        Trainer(config(), tmp_path / 'cut', pairs, pairs, progress=die).run()
    resumed = Trainer(config(), tmp_path / 'cut', pairs, pairs)
    assert resumed.step == 3
    resumed.run()
    assert resumed.step == 6
    for name, value in state(whole).items():
        assert torch.equal(value, state(resumed)[name]), name
    for name, value in whole.ema.state_dict().items():
        assert torch.equal(value, resumed.ema.state_dict()[name]), name


def test_another_run_in_the_same_folder_is_refused(tmp_path):
    pairs = ShiftedTextures()
    Trainer(config(steps=1), tmp_path, pairs, pairs).run()
    with pytest.raises(TrainingError, match='another peak_learning_rate'):
        Trainer(config(steps=1, peak_learning_rate=1e-5), tmp_path, pairs, pairs)


def test_stretching_a_run_is_allowed(tmp_path):
    pairs = ShiftedTextures()
    Trainer(config(steps=1), tmp_path, pairs, pairs).run()
    longer = Trainer(config(steps=3), tmp_path, pairs, pairs)
    longer.run()
    assert longer.step == 3


def test_divergence_stops_with_the_last_good_checkpoint_and_the_batch(tmp_path):
    pairs = ShiftedTextures()

    def loss(output, _batch, step):
        value = output.disparity.mean()
        return (value * float('nan') if step >= 2 else value), {}

    trainer = Trainer(config(steps=20), tmp_path, pairs, pairs, loss=loss)
    with pytest.raises(TrainingError, match='not finite for 5 steps'):
        trainer.run()
    kept = read_checkpoint(tmp_path / 'checkpoint.pt')
    assert kept['step'] == 2
    assert all(torch.isfinite(v).all() for v in kept['network'].values())
    batch = torch.load(tmp_path / 'diverged_batch.pt', weights_only=True)
    assert batch['batches'][0]['left'].shape == (2, 3, 64, 96)


def test_it_learns_to_match_a_shifted_texture(tmp_path):
    pairs = ShiftedTextures(count=4)
    run = config(
        steps=60,
        peak_learning_rate=5e-3,
        validate_every=60,
        checkpoint_every=60,
        colour_probability=0.0,
        ema_decay=0.5,
    )
    Trainer(run, tmp_path, pairs, pairs).run()
    lines = [json.loads(line) for line in (tmp_path / 'log.jsonl').read_text().splitlines()]
    losses = [line['train/cross_entropy'] for line in lines if 'train/cross_entropy' in line]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    assert (tmp_path / 'previews' / '0000060.png').stat().st_size > 0
    assert load_network(tmp_path).parameter_count() > 0


@pytest.mark.parametrize(
    'name, options',
    [
        ('compact_stereonet', {}),
        ('anynet', {}),
        ('dsnet_slied8', {}),
        ('dtpnet', {'volume': 'iterative', 'head': 'quarter'}),
    ],
)
def test_networks_with_3d_convolutions_train(tmp_path, name, options):
    fields = config(
        network=name,
        options={'max_disparity_px': 64, **options},
        steps=1,
        crop_height=64,
        crop_width=64,
    )
    trainer = Trainer(fields, tmp_path, ShiftedTextures(2))
    before = [parameter.detach().clone() for parameter in trainer.plain_network.parameters()]
    trainer.run()
    after = trainer.plain_network.parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after))
    assert load_network(tmp_path).parameter_count() > 0


def test_a_file_that_is_no_checkpoint_is_named(tmp_path):
    path = tmp_path / 'checkpoint.pt'
    path.write_bytes(b'not a checkpoint')
    with pytest.raises(TrainingError, match='not a checkpoint that can be loaded'):
        read_checkpoint(path)
    torch.save({'weights': torch.zeros(1)}, path)
    with pytest.raises(TrainingError, match='no checkpoint of this trainer'):
        read_checkpoint(path)
    with pytest.raises(TrainingError, match='there is no checkpoint'):
        read_checkpoint(tmp_path / 'absent.pt')


def test_batches_are_a_function_of_seed_and_step_and_processes_share_them():
    pairs = ShiftedTextures()
    run = config(batch_size=4)
    whole = make_batch(pairs, run, step=5)
    again = make_batch(pairs, run, step=5)
    assert torch.equal(whole.left, again.left)
    assert not torch.equal(whole.left, make_batch(pairs, run, step=6).left)
    shares = [make_batch(pairs, run, step=5, rank=rank, ranks=2) for rank in range(2)]
    assert torch.equal(whole.left[0::2], shares[0].left)
    assert torch.equal(whole.disparity[1::2], shares[1].disparity)
    with pytest.raises(TrainingError, match='does not divide'):
        make_batch(pairs, run, step=0, rank=0, ranks=3)


@pytest.mark.parametrize('seed', range(8))
def test_crops_and_scales_keep_pixels_matched(seed):
    generator = np.random.default_rng(seed)
    width, height, shift = 300, 120, 12
    x = np.arange(width + shift, dtype=np.float32)
    row = 127 + 60 * np.sin(x / 9.0) + 50 * np.sin(x / 23.0 + seed)
    texture = np.repeat(np.repeat(row[None, :, None], height, 0), 3, 2).astype(np.uint8)
    pair = StereoSample(
        texture[:, :width].copy(),
        texture[:, shift:].copy(),
        np.full((height, width), shift, np.float32),
        'waves',
    )
    left, right, disparity = random_crop(pair, 64, 128, generator, scale_probability=1.0)
    assert left.shape == right.shape == (64, 128, 3) and disparity.shape == (64, 128)
    columns = np.arange(40, 120)
    matched = np.interp(columns - disparity[30, 40:120], np.arange(128), right[30, :, 0])
    assert np.abs(matched - left[30, 40:120, 0]).max() < 6.0


@given(seed=st.integers(0, 2**32 - 1), scale_probability=st.sampled_from([0.0, 1.0]))
@settings(max_examples=30, deadline=None)
def test_cells_of_a_crop_are_those_under_it(seed, scale_probability):
    """A map over cells of 4 px that names each cell's place, read through a window."""
    factor, shape = 4, (71, 139)
    rows, columns = np.mgrid[: -(-shape[0] // factor), : -(-shape[1] // factor)]
    generator = np.random.default_rng(seed)
    window = random_window(shape, 64, 96, generator, scale_probability, factor)
    assert window.y % factor == window.x % factor == 0
    chosen = window.cells(np.stack((rows, columns)), factor)
    assert chosen.shape == (2, 16, 24)
    if window.source_width == window.width and window.source_height == window.height:
        top, left = window.y // factor, window.x // factor
        np.testing.assert_array_equal(chosen[0, :, 0], np.arange(top, top + 16))
        np.testing.assert_array_equal(chosen[1, 0], np.arange(left, left + 24))
    # The centre of a crop's cell, carried back to the picture, lies in the chosen cell.
    for axis, start, source, size in (
        (0, window.y, window.source_height, window.height),
        (1, window.x, window.source_width, window.width),
    ):
        along = chosen[axis][:, 0] if axis == 0 else chosen[axis][0]
        centres = start + (np.arange(len(along)) + 0.5) * factor * source / size
        assert (np.abs(centres - (along + 0.5) * factor) <= factor / 2 + 1e-6).all()


def test_a_batch_carries_the_kept_distribution_of_its_very_crop():
    class Taught:
        """One pair whose teacher is sure of another hypothesis in each cell."""

        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int):
            values = np.arange(18 * 35) % 50
            top = TopK(
                values.reshape(1, 18, 35).astype(np.uint8),
                np.ones((1, 18, 35), np.float16),
                np.arange(50, dtype=np.float32),
                4,
            )
            disparity = top.hypotheses[top.indices[0]].repeat(4, 0).repeat(4, 1)
            texture = np.zeros((72, 140, 3), np.uint8)
            confidence = np.ones((72, 140), np.float32)
            return NamedPair('one', texture, texture, disparity, disparity, confidence, top)

    for scale_probability in (0.0, 1.0):
        fields = config(batch_size=4, scale_probability=scale_probability)
        batch = make_batch(Taught(), fields, 3)
        assert batch.teacher_indices.shape == (4, 1, 16, 24)
        assert batch.teacher_probabilities.dtype == torch.float16
        chosen = batch.teacher_hypotheses.gather(1, batch.teacher_indices.long().flatten(1)).view(
            4, 16, 24
        )
        inside = batch.teacher_disparity[:, 2::4, 2::4]
        if scale_probability == 0:
            torch.testing.assert_close(chosen, inside)
        else:
            # Disparities and hypotheses grow alike; a border pixel may fall into a neighbour.
            assert (chosen - inside).abs().lt(1e-3).float().mean() > 0.8
            ratios = batch.teacher_hypotheses[:, 1]
            assert len(ratios.unique()) == 4 and (ratios != 1).all()


def test_a_pair_smaller_than_the_crop_is_an_error():
    with pytest.raises(TrainingError, match='smaller than the crop'):
        random_crop(ShiftedTextures()[0], 256, 256, np.random.default_rng(0))


def test_colour_jitter_keeps_shape_and_type_and_both_eyes_close():
    left = ShiftedTextures()[0].left
    one, two = jitter_colour(left, left, np.random.default_rng(3))
    assert one.shape == left.shape and one.dtype == np.uint8
    assert not np.array_equal(one, left)
    assert np.abs(one.astype(int) - two).mean() < 25


def test_the_learning_rate_rises_then_falls_to_its_final_share():
    run = config(steps=1000, warmup_fraction=0.1, final_fraction=0.01)
    rates = [one_cycle(step, run) for step in range(1000)]
    assert max(rates) == pytest.approx(1.0, abs=0.02)
    assert int(np.argmax(rates)) in range(95, 105)
    assert rates[-1] == pytest.approx(0.01, abs=1e-3)
    assert all(a >= b for a, b in itertools.pairwise(rates[105:]))


def test_concatenated_pairs_split_without_leak():
    pairs = ConcatenatedPairs([ShiftedTextures(3), ShiftedTextures(5)])
    learn, measure = pairs.split(2)
    assert (len(pairs), len(learn), len(measure)) == (8, 6, 2)
    assert learn[3].disparity[0, 0] == 4  # the first of the second source
    assert measure[1].disparity[0, 0] == 4 + 4
    with pytest.raises(TrainingError, match='cannot spare'):
        pairs.split(8)
