# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The trainer: exact resume, refusal to mix runs, divergence, crops that keep disparity."""

from __future__ import annotations

import itertools
import json
import os

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from accelerate.optimizer import AcceleratedOptimizer  # noqa: E402
from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from tiny_kestrel import TINY  # noqa: E402

from stereo_kd_training import precision  # noqa: E402
from stereo_kd_training.datasets.augment import Augmentation  # noqa: E402
from stereo_kd_training.datasets.base import DatasetError, StereoSample  # noqa: E402
from stereo_kd_training.networks import StereoOutput  # noqa: E402
from stereo_kd_training.networks.base import StereoNetwork  # noqa: E402
from stereo_kd_training.stages import NamedPair  # noqa: E402
from stereo_kd_training.teachers import TopK  # noqa: E402
from stereo_kd_training.train import (  # noqa: E402
    Batch,
    ConcatenatedPairs,
    Trainer,
    TrainingConfig,
    TrainingError,
    load_network,
    make_batch,
    one_cycle,
    read_checkpoint,
    update_ema,
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


def mean_disparity(output, batch, _step):
    return (output.disparity - batch.disparity).abs().mean(), {}


def test_accumulated_batches_count_as_one(tmp_path):
    pairs = ShiftedTextures()
    fields = {'steps': 2, 'frozen_statistics': True, 'clip_gradient': 1e9}
    parts = Trainer(
        config(accumulation=2, **fields), tmp_path / 'parts', pairs, loss=mean_disparity
    )
    first, second = next(parts._batches())
    assert torch.equal(first.left, make_batch(pairs, parts.config, 0).left)
    assert torch.equal(second.left, make_batch(pairs, parts.config, 1).left)
    assert not torch.equal(first.left, second.left)
    both = Batch(
        *(torch.cat((getattr(first, k), getattr(second, k))) for k in ('left', 'right')),
        torch.cat((first.disparity, second.disparity)),
    )
    whole = Trainer(config(**fields), tmp_path / 'whole', pairs, loss=mean_disparity)
    found, expected = parts._train_step([first, second]), whole._train_step([both])
    assert found['loss'] == pytest.approx(expected['loss'], rel=1e-5)
    assert found['gradient_norm'] == pytest.approx(expected['gradient_norm'], rel=1e-3)
    half = whole._train_step([first])
    assert half['gradient_norm'] != pytest.approx(expected['gradient_norm'], rel=1e-3)


def test_the_average_follows_the_weights_and_forgets_faster_while_young():
    network = torch.nn.BatchNorm1d(3)
    average = torch.nn.BatchNorm1d(3)
    torch.nn.init.constant_(network.weight, 11.0)
    network.num_batches_tracked += 7
    update_ema(average, network, decay=0.9, step=0)
    assert average.weight.tolist() == pytest.approx([10.0] * 3)  # (1 + 0) / (10 + 0) of the old
    update_ema(average, network, decay=0.9, step=1000)
    assert average.weight.tolist() == pytest.approx([10.1] * 3)
    assert int(average.num_batches_tracked) == 7


def test_bfloat16_trains_whole_weights_and_may_resume(tmp_path):
    class Killed(Exception):
        pass

    def die(step: int, _text: str) -> None:
        if step == 2:
            raise Killed

    pairs, run = ShiftedTextures(), config(steps=3, precision='bf16')
    cut = Trainer(run, tmp_path / 'cut', pairs, progress=die)
    convolution = next(m for m in cut.plain_network.modules() if isinstance(m, torch.nn.Conv2d))
    computed = set()
    convolution.register_forward_hook(lambda module, inputs, result: computed.add(result.dtype))
    with pytest.raises(Killed):
        cut.run()
    assert computed == {torch.bfloat16}
    assert {v.dtype for v in state(cut).values() if v.is_floating_point()} == {torch.float32}
    resumed = Trainer(run, tmp_path / 'cut', pairs)
    resumed.run()
    whole = Trainer(run, tmp_path / 'whole', pairs)
    whole.run()
    for name, value in state(whole).items():
        assert torch.equal(value, state(resumed)[name]), name


def test_what_is_computed_in_is_the_machines_matter_unless_it_is_named(tmp_path, monkeypatch):
    if torch.cuda.is_available():
        pytest.skip('the processor is asked where there is no GPU')
    assert TrainingConfig().precision == 'auto'
    pairs = ShiftedTextures()
    for has_bf16, pays, chosen in (
        (True, True, 'bf16'),
        (True, False, 'bf16'),  # The same machine in another mood.
        (False, None, 'no'),
    ):
        monkeypatch.setattr(precision, 'computes_bf16', lambda has=has_bf16: has)
        monkeypatch.setattr(precision, 'bf16_pays', lambda pays=pays: pays)
        run = config(steps=1, precision='auto', validate_every=9)
        # Each but the first goes on with what the one before it left.
        trainer = Trainer(run, tmp_path, pairs)
        assert trainer.accelerator.mixed_precision == chosen
        trainer.run()
    for named in ('bf16', 'no'):
        Trainer(config(steps=1, precision=named, validate_every=9), tmp_path, pairs)
        if named == 'bf16':
            with pytest.raises(TrainingError, match='another precision'):
                Trainer(config(steps=1, precision='no', validate_every=9), tmp_path, pairs)
            Trainer(run, tmp_path, pairs)


def test_the_real_measuring_of_bfloat16_leaves_the_dice_alone():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    precision.bf16_pays.cache_clear()
    pays = precision.bf16_pays()
    assert isinstance(pays, bool) and precision.bf16_pays() is pays
    assert torch.equal(torch.get_rng_state(), before)


def test_bfloat16_where_it_will_be_slow_is_told(monkeypatch, caplog):
    monkeypatch.setattr(precision, 'hardware_has_bf16', lambda: False)
    assert precision.resolved('bf16') == 'bf16'
    assert 'many times slower' in caplog.text
    caplog.clear()
    assert [precision.resolved(name) for name in ('auto', 'no', 'fp16')] == ['no', 'no', 'fp16']
    assert not caplog.text


def test_float16_needs_a_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip('there is one here')
    with pytest.raises(TrainingError, match='fp16 needs a CUDA device'):
        Trainer(config(precision='fp16'), tmp_path, ShiftedTextures())


def test_pairs_without_truth_are_drawn_and_not_counted(tmp_path):
    class PartlyKnown(ShiftedTextures):
        def __init__(self, known: int) -> None:
            super().__init__(count=3)
            self.known = known

        def __getitem__(self, index: int) -> StereoSample:
            sample = super().__getitem__(index)
            if index >= self.known:
                sample.disparity[:] = np.nan
            return sample

    run = config(steps=1, validation_pairs=3)
    found = {}
    for known in (0, 2):
        trainer = Trainer(run, tmp_path / str(known), ShiftedTextures(), PartlyKnown(known))
        found[known] = trainer.validate()
        picture = cv2.imread(str(tmp_path / str(known) / 'previews/0000000.png'))
        assert picture.std() > 10
    assert found[0] == {}
    whole = Trainer(config(steps=1, validation_pairs=2), tmp_path / 'whole', ShiftedTextures())
    whole.validation_pairs = ShiftedTextures(2)
    assert found[2] == whole.validate() and np.isfinite(found[2]['validation/epe_px'])


def test_previews_hold_pairs_of_different_sizes(tmp_path):
    pairs = [ShiftedTextures(1)[0], ShiftedTextures(1, height=70, width=151)[0]]
    trainer = Trainer(config(validation_pairs=2), tmp_path, ShiftedTextures(), pairs)
    assert trainer.validate()['validation/epe_px'] > 0
    picture = cv2.imread(str(tmp_path / 'previews/0000000.png'))
    assert picture.shape[1] >= 4 * 151 and picture.shape[0] >= 72 + 70


def test_gradients_that_overflow_when_scaled_are_tried_again_scaled_less(tmp_path):
    """What fp16 does on a GPU, by a scale at which float32 overflows."""
    pairs = ShiftedTextures()

    def scaled(folder):
        trainer = Trainer(config(steps=1), folder, pairs, loss=mean_disparity)
        scaler = torch.amp.GradScaler('cpu', init_scale=2.0**127)
        plain = trainer.optimizer.optimizer
        trainer.optimizer = AcceleratedOptimizer(plain, scaler=scaler)
        trainer.accelerator.scaler = scaler
        trainer.accelerator.unscale_gradients = lambda: scaler.unscale_(plain)
        return trainer, scaler

    trainer, scaler = scaled(tmp_path / 'run')
    trainer.run()
    assert 1.0 <= scaler.get_scale() < 2.0**127
    plain = Trainer(config(steps=1), tmp_path / 'plain', pairs, loss=mean_disparity)
    plain.run()
    for name, parameter in trainer.plain_network.named_parameters():
        torch.testing.assert_close(parameter, dict(plain.plain_network.named_parameters())[name])

    again, fresh = scaled(tmp_path / 'again')
    again.run_dir = tmp_path / 'run'
    again._load(read_checkpoint(again.checkpoint_path))
    assert fresh.get_scale() == scaler.get_scale()

    broken, scaler = scaled(tmp_path / 'broken')
    broken.loss = lambda output, batch, step: (output.disparity.mean() * 1e38 * 1e38, {})
    assert broken._train_step([make_batch(pairs, broken.config, 0)]) is None


def test_it_learns_to_match_a_shifted_texture(tmp_path):
    pairs = ShiftedTextures(count=4)
    run = config(
        steps=60,
        peak_learning_rate=5e-3,
        validate_every=60,
        checkpoint_every=60,
        augmentation={'colour_probability': 0.0},
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
    fields = config(
        batch_size=1,
        crop_width=128,
        augmentation={'scale_probability': 1.0, 'colour_probability': 0.0},
    )
    batch = make_batch([pair], fields, seed)
    left, right = (eye[0].permute(1, 2, 0).numpy() for eye in (batch.left, batch.right))
    disparity = batch.disparity[0].numpy()
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
    chain = Augmentation(scale_probability=scale_probability)
    window = chain.window(shape, 64, 96, generator, factor)
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
        chosen = {'scale_probability': scale_probability}
        fields = config(batch_size=4, augmentation=chosen)
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
            assert (chosen - inside).abs().lt(1e-3).float().mean() > 0.6
            ratios = batch.teacher_hypotheses[:, 1]
            assert len(ratios.unique()) == 4 and (ratios != 1).all()


def test_a_pair_smaller_than_the_crop_is_an_error():
    with pytest.raises(DatasetError, match='smaller than the crop'):
        make_batch(ShiftedTextures(), config(crop_height=256, crop_width=256), 0)


def test_keys_of_earlier_versions_are_understood_and_saved_as_the_new_ones(tmp_path):
    old = config(scale_probability=0.1, colour_probability=0)
    new = config(augmentation={'scale_probability': 0.1, 'colour_probability': 0})
    assert old == new and 'scale_probability' not in old.model_dump()
    assert config(augmentation=Augmentation(stretch=0.1), scale_probability=0.2).augmentation == (
        Augmentation(stretch=0.1, scale_probability=0.2)
    )
    with pytest.raises(ValueError, match=r'augmentation\.scale_probability'):
        config(scale_probability=2)
    # A run that was begun with them goes on.
    Trainer(config(steps=1), tmp_path, ShiftedTextures()).run()
    before = json.loads((tmp_path / 'config.json').read_text())
    section = before.pop('augmentation')
    for key in ('compile', 'compile_backend'):
        before.pop(key)
    before |= {key: section[key] for key in ('scale_probability', 'colour_probability')}
    (tmp_path / 'config.json').write_text(json.dumps(before))
    assert Trainer(config(steps=2), tmp_path, ShiftedTextures()).step == 1


def test_stored_answers_cannot_be_mirrored():
    class Taught(ShiftedTextures):
        def __getitem__(self, index: int):
            pair = super().__getitem__(index)
            known = np.ones_like(pair.disparity)
            return NamedPair('x', pair.left, pair.right, pair.disparity, pair.disparity, known)

    fields = config(augmentation={'mirror_probability': 0.5})
    assert make_batch(ShiftedTextures(), fields, 0).disparity.shape == (2, 64, 96)
    with pytest.raises(TrainingError, match='swaps the eyes'):
        make_batch(Taught(), fields, 0)


class FewLayers(StereoNetwork):
    """Small enough to be compiled in a test."""

    stride = 4

    def __init__(self) -> None:
        super().__init__()
        self.features = torch.nn.Conv2d(3, 8, 4, stride=4)
        self.norm = torch.nn.BatchNorm2d(8)
        self.score = torch.nn.Conv2d(16, 8, 1)

    def forward(self, left, right):
        views = [self.norm(self.features(view)).relu() for view in (left, right)]
        scores = self.score(torch.cat(views, 1))
        bins = 4 * torch.arange(8.0)
        coarse = (scores.softmax(1) * bins.view(1, -1, 1, 1)).sum(1)
        disparity = torch.nn.functional.interpolate(coarse[:, None], scale_factor=4)[:, 0]
        return StereoOutput(disparity, logits=(scores,), hypotheses=(bins,))


ON_REQUEST = pytest.mark.skipif(
    not os.environ.get('STEREO_KD_TEST_COMPILE'),
    reason='compiles for a minute; asked for by STEREO_KD_TEST_COMPILE=1',
)


@pytest.mark.parametrize('backend', ['aot_eager', pytest.param('inductor', marks=ON_REQUEST)])
def test_a_compiled_run_learns_as_an_eager_one_and_their_checkpoints_are_the_same(
    tmp_path, backend
):
    def losses(name: str, steps: int, **fields) -> list[float]:
        torch.manual_seed(5)
        chosen = config(steps=steps, schedule='steps', **fields)
        trainer = Trainer(chosen, tmp_path / name, ShiftedTextures(), network=FewLayers())
        trainer.run()
        lines = (tmp_path / name / 'log.jsonl').read_text().splitlines()
        return [json.loads(line)['train/loss'] for line in lines]

    compiled = {'compile': True, 'compile_backend': backend}
    eager = losses('eager', 4)
    assert losses('compiled', 4, **compiled) == pytest.approx(eager, rel=1e-3)
    states = [read_checkpoint(tmp_path / name / 'checkpoint.pt') for name in ('eager', 'compiled')]
    assert set(states[0]['network']) == set(states[1]['network']) == set(FewLayers().state_dict())
    # Begun by one and finished by the other.
    assert losses('mixed', 2) == pytest.approx(eager[:2], rel=1e-3)
    assert losses('mixed', 4, **compiled) == pytest.approx(eager, rel=1e-3)


def test_where_nothing_can_compile_the_run_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', str(tmp_path / 'no-compiler-here'))
    monkeypatch.setattr(torch._inductor.config.cpp, 'cxx', (str(tmp_path / 'no-compiler-here'),))
    trainer = Trainer(config(compile=True), tmp_path, ShiftedTextures(), network=FewLayers())
    with pytest.raises(TrainingError, match=r"'inductor' failed: .*set compile: false"):
        trainer.run()


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
