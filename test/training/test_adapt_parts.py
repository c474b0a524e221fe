# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The parts of an adaptation, each against what can be worked out by hand."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the training extra is not installed')

from ros_free_pairs import shifted_pair  # noqa: E402
from tiny_adaptation import CAMERA, settings, write_drive, write_student  # noqa: E402
from tiny_models import write_block_matcher  # noqa: E402

from stereo_kd_ros.bag import StereoBag  # noqa: E402
from stereo_kd_ros.disparity_io import write_kitti_png, write_pfm  # noqa: E402
from stereo_kd_ros.engine import StereoEngine  # noqa: E402
from stereo_kd_ros.evaluation import ModelMatcher  # noqa: E402
from stereo_kd_ros.metrics import DisparityMetrics  # noqa: E402
from stereo_kd_ros.model import read_manifest, resolve_model  # noqa: E402
from stereo_kd_training import networks  # noqa: E402
from stereo_kd_training import prune as pruning  # noqa: E402
from stereo_kd_training.adapt import blend as blending  # noqa: E402
from stereo_kd_training.adapt import prune as adapt_prune  # noqa: E402
from stereo_kd_training.adapt.blend import blend  # noqa: E402
from stereo_kd_training.adapt.checks import Check, procedural_checks  # noqa: E402
from stereo_kd_training.adapt.distil import (  # noqa: E402
    CROPS_PER_PAIR,
    MOST_STEPS,
    BagPairs,
    MixedPairs,
    learnt_pairs,
    planned_steps,
    remember,
)
from stereo_kd_training.adapt.gate import robustness  # noqa: E402
from stereo_kd_training.adapt.label import trusted  # noqa: E402
from stereo_kd_training.adapt.look import PictureStatistics, picture_statistics  # noqa: E402
from stereo_kd_training.adapt.render import CameraPairs, kinds_of_scenes  # noqa: E402
from stereo_kd_training.adapt.select import (  # noqa: E402
    Scan,
    distinct_frames,
    split_by_time,
    write_chosen,
)
from stereo_kd_training.adapt.settings import AdaptError, RunFolder  # noqa: E402
from stereo_kd_training.adapt.student import Student, find_student  # noqa: E402
from stereo_kd_training.adapt.teachers import open_teacher  # noqa: E402
from stereo_kd_training.datasets.procedural import PairPool, generate_pool  # noqa: E402
from stereo_kd_training.measured_pruning import Removal, prune_measured  # noqa: E402
from stereo_kd_training.prune import count_macs, save_network  # noqa: E402
from stereo_kd_training.teachers import Prediction  # noqa: E402
from stereo_kd_training.train import between, keep_statistics, load_network  # noqa: E402

SECOND = 10**9


def scan(pictures: list[np.ndarray], sharpness: list[float]) -> Scan:
    stamps = np.arange(len(pictures), dtype=np.int64) * SECOND
    return Scan(stamps, np.array(pictures, np.float32), np.array(sharpness, np.float32))


# Selecting


def test_alike_and_blurred_frames_are_left_out() -> None:
    rng = np.random.default_rng(0)
    places = [rng.standard_normal((24, 32)) for _ in range(6)]
    still = places[2] + 0.01 * rng.standard_normal((24, 32))
    pictures = [*places[:3], still, *places[3:], places[0]]
    chosen, causes = distinct_frames(scan(pictures, [1.0] * 5 + [0.2] + [1.0] * 2))
    # 3 stands still, 5 is blurred, 7 is where 0 was.
    assert chosen == [0, 1, 2, 4, 6]
    assert causes == {'blurred': 1, 'duplicate': 2}


def test_a_stretch_that_is_nowhere_sharp_is_kept() -> None:
    rng = np.random.default_rng(0)
    pictures = [rng.standard_normal((24, 32)) for _ in range(40)]
    chosen, causes = distinct_frames(scan(pictures, [1.0] * 20 + [0.1] * 20))
    # At the border, those that are still surrounded by sharp frames may go.
    assert causes['blurred'] <= 3 and len(chosen) >= 37


def test_parts_follow_each_other_with_a_gap() -> None:
    asked = settings(Path('a'), Path('b'), validation=0.1, held_out=0.25)
    stamps = np.arange(200) * SECOND // 2
    parts, removed = split_by_time(stamps, asked)
    train, validation, held_out = (stamps[parts[name]] for name in parts)
    assert len(held_out) > 40 and len(validation) == 20
    assert validation[0] - train[-1] > 2 * SECOND and held_out[0] - validation[-1] > 2 * SECOND
    assert removed == 200 - sum(len(part) for part in parts.values()) > 0
    # A short bag is not eaten up by its gaps.
    short, removed = split_by_time(stamps[:20], asked)
    assert [len(part) for part in short.values()] == [13, 2, 5] and removed == 0
    assert split_by_time(stamps[:2], asked)[0]['held_out'] == []


def test_truth_that_belongs_to_no_pair_is_refused(tmp_path: Path) -> None:
    """Numbered files say nothing about the second bag, so of two bags they say nothing at all."""
    (tmp_path / 'truth').mkdir()
    write_pfm(tmp_path / 'truth/0.pfm', np.ones((CAMERA.height, CAMERA.width), np.float32))
    drive = write_drive(tmp_path / 'drive', 2)
    for bags, match in (([drive], None), ([drive, drive], 'not one of the 4 chosen pairs')):
        asked = settings(
            tmp_path, tmp_path, bags=list(map(str, bags)), truth=str(tmp_path / 'truth')
        )
        run = RunFolder(asked, tmp_path / f'run{len(bags)}')
        with pytest.raises(AdaptError, match=match) if match else contextlib.nullcontext():
            counts = write_chosen(run, [{10**9, 11 * 10**8}] * len(bags))
            assert counts == (2, 1)


# Labelling


def test_labels_are_what_both_eyes_and_all_teachers_agree_on() -> None:
    left, right = shifted_pair(5, 40, 80, 0)
    told = np.full((40, 80), 5.0, np.float32)
    told[:10] = 9.0  # the mirrored answer says otherwise
    told[10:20, 40:] = 12.0  # here both agree, but the pictures do not
    told[39] = np.nan
    confidence = np.ones((40, 80), np.float32)
    confidence[35:] = 0.1
    mirrored = np.full((40, 80), 5.0, np.float32)
    mirrored[10:20, 28:] = 12.0
    second = np.full((40, 80), 5.0, np.float32)
    second[30:33] = 7.0
    made = trusted(
        left,
        right,
        [Prediction(told, confidence), Prediction(second, np.ones_like(told))],
        mirrored,
    )
    kept = np.isfinite(made.disparity)
    assert not kept[:10].any()
    assert kept[10:20, 45:].mean() < 0.3
    assert kept[22:29, 8:].mean() > 0.9 and np.all(made.disparity[22:29][kept[22:29]] == 5.0)
    assert not kept[30:33].any() and not kept[35:].any()
    # What the left eye sees beyond the right one's rim has no partner.
    assert not kept[:, :5].any()
    assert 0 < made.rejected['edge'] < 0.2 and made.rejected['disagreement'] > 0


def test_the_sky_is_a_label() -> None:
    left, right = shifted_pair(0, 40, 80, 0)
    sky = np.zeros((40, 80), np.float32)
    made = trusted(left, right, [Prediction(sky, np.ones_like(sky))], sky)
    assert np.isfinite(made.disparity).all() and 0 < made.disparity.max() < 0.01


def test_depth_is_not_believed_where_nothing_can_be_seen() -> None:
    """An empty sky looks the same at every disparity, so a teacher may say what it likes."""
    left, right = shifted_pair(6, 60, 120, 0)
    for eye in (left, right):
        eye[:30] = 200
    told = np.full((60, 120), 6.0, np.float32)
    made = trusted(left, right, [Prediction(told, np.ones_like(told))], told)
    kept = np.isfinite(made.disparity)
    assert not kept[:24].any()
    assert kept[38:, 12:].mean() > 0.9
    assert 0.3 < made.rejected['ambiguous'] < 0.7


# Rendering


def test_the_camera_is_measured_from_its_pictures() -> None:
    rng = np.random.default_rng(0)
    pairs = []
    for index in range(4):
        left, right = shifted_pair(6, 120, 200, index)
        grey = [eye.mean(axis=2, keepdims=True).repeat(3, 2) for eye in (left, right)]
        dark = 0.7 * grey[1] + 10
        noise = [rng.normal(0, 6, (120, 200, 1)).repeat(3, 2) for _ in range(2)]
        pairs.append(
            tuple(
                np.clip(np.rint(eye + speck), 0, 255).astype(np.uint8)
                for eye, speck in zip((grey[0], dark), noise)
            )
        )
    found = picture_statistics(pairs)
    assert found.monochrome
    assert 0.5 < found.gain < 0.85
    clean = picture_statistics([shifted_pair(6, 120, 200, index) for index in range(4)])
    assert not clean.monochrome and abs(clean.gain - 1) < 0.1
    assert abs(clean.row_offset) < 0.2 and clean.row_scatter < 0.5


def test_every_second_rendered_pair_looks_like_the_cameras(tmp_path: Path) -> None:
    generate_pool(tmp_path, 4, height=64, width=96, progress=False, pairs_per_shard=2)
    pool = PairPool(tmp_path)
    look = PictureStatistics(True, 3.0, 100.0, 40.0, 0.6, 0.0, 2.0, 0.0, 0.0, 0.0)
    pairs = CameraPairs(pool, look, 96, 64, seed=1)
    assert len(pairs) == 4
    for index in (1, 3):
        np.testing.assert_array_equal(pairs[index].left, pool[index].left)
        np.testing.assert_array_equal(pairs[index].right, pool[index].right)
    for index in (0, 2):
        ours, theirs = pairs[index], pool[index]
        assert np.ptp(ours.left, axis=2).max() == 0
        np.testing.assert_array_equal(ours.disparity, theirs.disparity)
        np.testing.assert_array_equal(ours.right, pairs[index].right)


def test_a_row_error_is_given_as_it_was_measured(tmp_path: Path) -> None:
    """y_left - y_right is 3 px: what the left eye has in row 20, the right one has in row 17."""
    generate_pool(tmp_path, 1, height=64, width=96, progress=False)
    pool = PairPool(tmp_path)
    look = PictureStatistics(False, 0.0, 100.0, 40.0, 1.0, 0.0, 3.0, 0.0, 0.0, 0.0)
    moved = CameraPairs(pool, look, 96, 64)[0]
    np.testing.assert_array_equal(moved.right[:60], pool[0].right[3:63])
    assert abs(picture_rows(pool[0].right, moved.right) - 3) < 0.3


@pytest.mark.parametrize(
    ('made', 'kind'),
    [
        ([], 'layered'),
        ([{'name': 'bag'}, {'scenes': {'layered': 1.0}}], 'layered'),
        ([{'scenes': {'rooms': 1.0}}], 'rooms'),
        ([{'scenes': {'layered': 1.0}}, {'scenes': {'rooms': 1.0}}], 'mixed'),
        ([{'scenes': {'layered': 0.5, 'rooms': 0.5}}], 'mixed'),
    ],
)
def test_a_student_is_reminded_of_the_scenes_it_was_made_with(made: list, kind: str) -> None:
    assert kinds_of_scenes(Student(Path('a.onnx'), 'a', '', made, '')) == kind


def test_the_shipped_students_say_what_they_were_made_with() -> None:
    for name in ('nano', 'small', 'medium'):
        student = find_student(name)
        assert any(source.get('scenes') for source in student.training_data), name


def picture_rows(first: np.ndarray, second: np.ndarray) -> float:
    """By how many rows the second picture lies higher than the first, by trying all."""
    errors = [
        np.abs(first[shift : shift + 50].astype(float) - second[:50]).mean() for shift in range(8)
    ]
    return float(np.argmin(errors))


# Distilling


def test_sources_come_up_in_their_shares() -> None:
    mixed = MixedPairs([['a', 'b'], ['c'] * 30, ['d'] * 10], [0.5, 0.25, 0.25])
    drawn = [mixed[index] for index in range(len(mixed))]
    for name, share in (('a', 0.25), ('b', 0.25), ('c', 0.25), ('d', 0.25)):
        assert drawn.count(name) / len(drawn) == pytest.approx(share, abs=0.02)
    with pytest.raises(IndexError):
        mixed[len(mixed)]
    assert set(MixedPairs([['a'], ['b']], [1.0, 0.0])) == {'a'}


def test_minutes_take_the_place_of_steps() -> None:
    asked = settings(Path('a'), Path('b'), minutes=2.0)
    assert planned_steps(asked, {'step_seconds': 0.5}, 10) == 240
    assert planned_steps(settings(Path('a'), Path('b')), {'step_seconds': 0.5}, 10) == 4


def test_without_either_every_pair_is_shown_as_often() -> None:
    asked = settings(Path('a'), Path('b'), steps=None, batch_size=4, bag_share=0.25)
    # One crop of each step is of the bags.
    assert planned_steps(asked, {}, 7) == 7 * CROPS_PER_PAIR
    assert planned_steps(asked, {}, 100_000) == MOST_STEPS


def test_statistics_that_are_kept_do_not_move_in_training() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).train()
    keep_statistics(network)
    before = network[1].running_mean.clone()
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    assert torch.equal(network[1].running_mean, before)
    assert network[0].training and network[1].weight.grad is not None


def test_where_there_is_no_label_the_student_is_reminded_of_its_answer(
    tmp_path: Path,
) -> None:
    """A sky above, a texture 7 px away below: labels are below only, and not everywhere there."""
    asked = settings(
        tmp_path, tmp_path, student=str(write_block_matcher(tmp_path / 'own.onnx', 48))
    )
    run = RunFolder(asked, tmp_path / 'run')
    left, right = shifted_pair(7, 64, 128, 0)
    left[:32], right[:32] = 200, 200
    pairs, labels = run.stage('select') / 'pairs', run.stage('label') / 'labels'
    for eye, image in (('left', left), ('right', right)):
        (pairs / eye).mkdir(parents=True)
        cv2.imwrite(str(pairs / eye / 'a.png'), image[..., ::-1])
    known = np.full((64, 128), np.nan, np.float32)
    known[32:, :64] = 9.0
    labels.mkdir(parents=True)
    write_kitti_png(labels / 'a.png', known)
    run.finish('select', {'train': ['a']})
    lines: list[str] = []
    run._on_line = lines.append
    remember(run)
    remember(run)
    assert len(lines) == 1 and 'as the student sees them' in lines[0], lines
    np.testing.assert_array_equal(BagPairs(run.folder, ['a'])[0].disparity, known)
    told = BagPairs(run.folder, ['a'], run.stage('distil') / 'remembered')[0].disparity
    run.settings.reminders = 0.25
    shown = learnt_pairs(run)
    filled = [np.isfinite(pair.disparity[:24]).all() for pair in shown]
    assert np.mean(filled) == 0.25, 'a quarter of it'
    run.settings.reminders = 0.0
    assert not any(np.isfinite(pair.disparity[:24]).any() for pair in learnt_pairs(run))
    assert (told[32:, :64] == 9).all(), 'a label gives way to nothing'
    assert (told[:24] < 0.01).all(), 'a sky is at 0 for this matcher'
    texture = told[44:, 72:-12]
    assert np.isfinite(texture).mean() > 0.9 and abs(np.nanmedian(texture) - 7) < 0.1


# How far to go


def blended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgetting: float, drift: float = 0.0
) -> dict:
    """From a student whose first weights are 0 to one where they are 1, which costs so much on
    procedural scenes, and so many points of the mirrored pairs."""
    network = load_network(write_student(tmp_path / 'tiny.pt'))
    first = next(iter(network.parameters()))
    run = RunFolder(settings(Path('a'), tmp_path, tolerance=0.05), tmp_path / 'run')
    for name, value in (('start', 0.0), ('trained', 1.0)):
        first.data.fill_(value)
        save_network(network, run.stage('distil') / f'{name}.pt')
    measured: list[float] = []

    def errors(network, run) -> list[dict]:
        share = float(next(iter(network.parameters())).data.mean())
        measured.append(round(share, 3))
        epe_px = 1 + forgetting * share**2
        return [dataclasses.asdict(DisparityMetrics(1000, epe_px, *[5.0] * 4))] * 3

    def apart(network, run) -> float:
        return 17.0 + drift * float(next(iter(network.parameters())).data.mean())

    monkeypatch.setattr(blending, '_errors', errors)
    monkeypatch.setattr(blending, '_apart', apart)
    folder = run.stage('distil')
    facts = blend(run, folder / 'start.pt', folder / 'trained.pt')
    again = blend(run, folder / 'start.pt', folder / 'trained.pt')
    assert again == facts and len(measured) == len(set(measured)), 'measured twice'
    reached = load_network(run.folder / facts['checkpoint'])
    assert float(next(iter(reached.parameters())).data.mean()) == pytest.approx(facts['share'])
    return facts


@pytest.mark.parametrize(
    ('forgetting', 'drift', 'share', 'passed'),
    [
        (0.04, 1.0, 1.0, True),
        (0.10, 0.0, 0.7, True),  # of the 4 % that are allowed, and 0.01 px
        (0.04, 1.4, 0.7, True),  # of 1 point
        (9.00, 0.0, 0.5, False),  # the gate's to refuse
        (0.00, 9.0, 0.5, False),
    ],
)
def test_the_student_goes_as_far_as_procedural_scenes_allow(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    forgetting: float,
    drift: float,
    share: float,
    passed: bool,
) -> None:
    facts = blended(tmp_path, monkeypatch, forgetting, drift)
    assert facts['share'] == share
    assert facts['checkpoint'].endswith('trained.pt') is (share == 1.0)
    assert [check['name'] for check in facts['watched']][-1] == 'mirror'
    assert all(check['passed'] for check in facts['watched']) is passed


def test_weights_in_between_leave_both_ends_as_they_were(tmp_path: Path) -> None:
    ends = [load_network(write_student(tmp_path / 'tiny.pt')) for _ in range(2)]
    for value in ends[1].state_dict().values():
        if value.is_floating_point():
            value.add_(1.0)
    before = [{key: value.clone() for key, value in end.state_dict().items()} for end in ends]
    weights = between(*ends, 0.25).state_dict()
    for key, first in before[0].items():
        if first.is_floating_point():
            torch.testing.assert_close(weights[key], first + 0.25)
        for end, kept in zip(ends, before):
            assert torch.equal(end.state_dict()[key], kept[key])


# The gate


def test_a_block_matcher_survives_mirror_and_shift_and_notices_no_swap(tmp_path: Path) -> None:
    matcher = ModelMatcher(write_block_matcher(tmp_path / 'blocks.onnx', 40), 'cpu')
    figures = robustness(matcher, *shifted_pair(6, 64, 160, 0))
    assert figures['mirror'] < 10
    assert figures['shift_px'] == 0 and figures['off'] < 15
    # It calls everything certain, whichever way the eyes are: no student may be like that.
    assert figures['swap'] > 0.9


def test_a_model_that_says_the_same_everywhere_fails_the_shift(tmp_path: Path) -> None:
    matcher = ModelMatcher(
        write_block_matcher(tmp_path / 'blind.onnx', 0, with_manifest=False), 'cpu'
    )
    figures = robustness(matcher, *shifted_pair(6, 64, 160, 0))
    assert figures['shift_px'] >= 4 and figures['off'] == 100


@pytest.mark.parametrize(
    ('measured', 'passed'), [(1.0, True), (0.5, True), (1.1, False), (math.nan, False)]
)
def test_a_check_passes_up_to_its_limit(measured: float, passed: bool) -> None:
    check = Check('teacher', measured, 1.0, 'px', before=2.0)
    assert check.passed is passed
    assert check.to_dict()['passed'] is passed
    assert ('NOT passed' in str(check)) is not passed


# Teachers


def scene(before: tuple[float, float], after: tuple[float, float]) -> dict:
    """A scene's figures; each pair is EPE px and bad-3 %."""
    return {
        name: {'truth': dataclasses.asdict(DisparityMetrics(1000, epe, *[bad] * 4))}
        for name, (epe, bad) in (('before', before), ('after', after))
    }


@pytest.mark.parametrize(
    ('usual', 'lost', 'passed'),
    [
        ((1.0, 9.0), (36.0, 50.0), [True, True]),  # farther off where all was lost before
        ((1.0, 9.0), (18.0, 80.0), [True, False]),  # more is lost
        ((1.2, 9.0), (9.0, 50.0), [False, True]),  # every other scene is worse
    ],
)
def test_no_single_scene_decides_about_the_procedural_ones(usual, lost, passed) -> None:
    records = [scene((1.0, 9.0), usual)] * 20 + [scene((18.0, 50.0), lost)]
    assert [check.passed for check in procedural_checks(records, 0.05)] == passed


def test_a_model_of_our_contract_teaches(tmp_path: Path) -> None:
    path = write_block_matcher(tmp_path / 'blocks.onnx', 16)
    named = open_teacher(str(path))
    left, right = shifted_pair(6, 40, 80, 0)
    answer = named.teacher.predict(left, right)
    expected = StereoEngine(path, provider='cpu').infer(left, right)
    np.testing.assert_array_equal(answer.disparity, expected.disparity)
    assert named.name == 'blocks' and named.licence.startswith('unknown')
    assert open_teacher(str(path), 'MIT').licence == 'MIT'
    ours = open_teacher(f'ours={path}', threads=1)
    assert ours.name == 'ours'
    # The same file has the same answers, so they are cached under one key.
    assert ours.teacher.fingerprint == named.teacher.fingerprint
    np.testing.assert_array_equal(ours.teacher.predict(left, right).disparity, answer.disparity)


def test_a_shipped_model_teaches_under_its_own_licence() -> None:
    shipped = resolve_model('medium')
    for text in ('medium', f'ours={shipped}'):
        named = open_teacher(text, threads=1)
        assert named.licence == read_manifest(shipped).licence == 'Apache-2.0'
        answer = named.teacher.predict(*shifted_pair(6, 64, 128, 0))
        assert answer.disparity.shape == answer.confidence.shape == (64, 128)


def test_the_drive_of_these_tests_is_what_it_says(tmp_path: Path) -> None:
    write_drive(tmp_path / 'drive', 3)
    with StereoBag(tmp_path / 'drive') as bag:
        assert bag.camera == CAMERA
        assert sum(1 for _ in bag.pairs()) == 3


# Pruning

SIZE = (CAMERA.height, CAMERA.width)


@pytest.fixture(scope='module')
def shrinking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Removal]]:
    """A student, and removals of a tenth of its channels each and of one block at the end."""
    student = tmp_path_factory.mktemp('shrinking') / 'student.pt'
    torch.manual_seed(0)
    save_network(networks.create('kestrel', max_disparity_px=64), student)
    smaller = []
    for ratio in (0.1, 0.2, 0.3):
        smaller.append(load_network(student))
        pruning.prune_to_ratio(smaller[-1], ratio)
    group = 'encoder.eighth.1.depthwise.0'
    channels = len(pruning.build_graph(smaller[-1]).groups[group][0].idxs)
    importance = {group: torch.arange(float(channels))}
    last = next(
        prune_measured(smaller[-1], lambda _network: 0.0, importance, only=(group,), size=SIZE)
    )
    networks_left = [*smaller, last.network]
    return student, [Removal(left, '', 0, count_macs(left, *SIZE), 0, 0) for left in networks_left]


@pytest.fixture
def prunable(shrinking, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What makes a run that comes to its pruning, its student, and operations after each removal.

    An operation takes a nanosecond.
    """
    student, removals = shrinking
    macs = [removal.macs for removal in removals]
    whole = count_macs(load_network(student), *SIZE)
    monkeypatch.setattr(adapt_prune, '_removals', lambda *_: iter(removals))
    monkeypatch.setattr(
        pruning, 'measure_latency_ms', lambda found, *size: count_macs(found, *size[:2]) / 1e6
    )

    def run(macs: float, name: str = 'run', **changes) -> RunFolder:
        latency_ms = macs / 1e6 / adapt_prune.HEADROOM
        made = RunFolder(
            settings(tmp_path, tmp_path, latency_ms=latency_ms, **changes), tmp_path / name
        )
        look = {'camera': dataclasses.asdict(CAMERA), 'latency_scale': 1.0}
        made.finish('look', {**look, 'student_ms': whole / 1e6})
        return made

    return run, student, macs, whole


def test_the_first_pruning_starts_from_what_was_tried_for_the_latency(prunable) -> None:
    run, student, macs, whole = prunable
    asked = run(macs[2], prune_steps=2)
    folder = asked.stage('prune')
    ratio = adapt_prune._ratio(asked, folder, student)
    assert round((1 - ratio) * whole) == macs[2]
    half = (1 - ratio / 2) * whole
    started = count_macs(load_network(folder / 'step_0/start.pt'), *SIZE)
    assert started == next(left for left in macs if left <= half) > macs[2]
    assert adapt_prune._ratio(asked, folder, student) == ratio, 'asked once'
    assert count_macs(adapt_prune._pruned(asked, load_network(student), macs[2]), *SIZE) == macs[2]


def test_a_latency_that_only_the_last_removal_meets_is_met(prunable) -> None:
    run, student, macs, whole = prunable
    assert macs[2] > macs[3] > 0.98 * macs[2], 'the clock would be asked anyway'
    asked = run(macs[3], prune_steps=1)
    ratio = adapt_prune._ratio(asked, asked.stage('prune'), student)
    assert round((1 - ratio) * whole) == macs[3]
    started = load_network(asked.stage('prune') / 'step_0/start.pt')
    assert count_macs(started, *SIZE) == macs[3]
    less = run(0.99 * macs[3], 'less')
    with pytest.raises(pruning.PruneError, match='no group has two blocks'):
        adapt_prune._ratio(less, less.stage('prune'), student)
