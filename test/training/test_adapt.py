# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Adaptation from end to end at a size for a test: delivered, refused, killed in every stage."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='the training extra is not installed')

from ros_free_pairs import shifted_pair  # noqa: E402
from tiny_adaptation import CAMERA, PAIRS, settings, write_assets, write_drive  # noqa: E402
from tiny_models import write_block_matcher  # noqa: E402
from two_processes import run_in_two_processes  # noqa: E402

from stereo_kd_ros.bag import StereoBagWriter  # noqa: E402
from stereo_kd_ros.camera import StereoCamera, calibration_record  # noqa: E402
from stereo_kd_ros.engine import StereoEngine  # noqa: E402
from stereo_kd_ros.evaluation import ModelMatcher  # noqa: E402
from stereo_kd_ros.metrics import disparity_metrics  # noqa: E402
from stereo_kd_ros.model import read_manifest, resolve_model  # noqa: E402
from stereo_kd_ros.procedural import render_pair  # noqa: E402
from stereo_kd_training.adapt.run import adapt, plan  # noqa: E402
from stereo_kd_training.adapt.settings import STAGES, AdaptError, RunFolder  # noqa: E402
from stereo_kd_training.datasets.procedural import PairPool  # noqa: E402
from stereo_kd_training.joined import (  # noqa: E402
    first_alone,
    is_joined,
    join,
    joined_with,
    second_alone,
)
from stereo_kd_training.train import load_network  # noqa: E402

# What depends on the clock of the machine, at any depth of a report.
TIMES = {
    'seconds',
    'training_seconds',
    'student_ms',
    'latency_scale',
    'second_ms',
    'step_seconds',
    'latency_ms',
}


@pytest.fixture(scope='module')
def assets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_assets(tmp_path_factory.mktemp('assets'))


class Killed(Exception):
    """Stands for a power cut: nothing of the run's own cleaning up is relied upon."""


def timeless(value: Any) -> Any:
    """A report without what depends on the clock."""
    if isinstance(value, dict):
        if value.get('name') == 'latency':
            return 'latency'
        return {key: timeless(inner) for key, inner in value.items() if key not in TIMES}
    if isinstance(value, list):
        # A busy machine may find a pruned network slower, in one run and not in the other.
        return [timeless(inner) for inner in value if inner != 'latency']
    return value


def run_killing_at(asked, folder: Path, moments: list[tuple[str, int]]) -> None:
    """Run to the end, dying once at each (stage, step)."""
    left = list(moments)

    def die(stage: str, step: int, _steps: int, _text: str) -> None:
        if left and (stage, step) == left[0]:
            left.pop(0)
            raise Killed

    while True:
        try:
            adapt(asked, folder, die)
            break
        except Killed:
            continue
    assert not left, f'never came to {left}'


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_every_stage_it_ends_as_if_it_had_not_been(assets: Path, tmp_path: Path) -> None:
    asked = settings(assets, tmp_path, prune_steps=1, truth=str(assets / 'truth'))
    # A ratio that is known already takes the place of one that depends on the clock.
    for name in ('whole', 'killed'):
        ratio = tmp_path / name / 'prune' / 'ratio.json'
        ratio.parent.mkdir(parents=True)
        ratio.write_text(json.dumps({'ratio': 0.5, 'latency_ms': None}))
    assert not adapt(asked, tmp_path / 'whole')
    moments = [
        ('look', 1),
        ('select', 5),
        ('label', 3),
        ('render', 1),
        ('distil', 2),
        ('trials', 1),
        ('prune', 1),
        ('gate', 1),
    ]
    run_killing_at(asked, tmp_path / 'killed', moments)
    whole, killed = (RunFolder(asked, tmp_path / name) for name in ('whole', 'killed'))
    for stage in ('distil', 'prune'):
        ours, theirs = (
            load_network(run.folder / run.facts(stage)['checkpoint']).state_dict()
            for run in (whole, killed)
        )
        assert all(torch.equal(value, theirs[key]) for key, value in ours.items()), stage
    reports = [
        timeless(json.loads((run.folder / 'report.json').read_text())) for run in (whole, killed)
    ]
    assert reports[0] == reports[1]
    assert reports[0]['stages']['gate']['parameters'] < sum(
        p.numel() for p in load_network(whole.folder / 'distil/start.pt').parameters()
    )
    distil = reports[0]['stages']['distil']
    assert 0.5 <= distil['share'] <= 1 and len(distil['watched']) == 3
    label = reports[0]['stages']['label']
    assert label['pairs_with_truth'] == label['pairs']
    checks = reports[0]['stages']['gate']['checks']
    assert 'truth' in [check['name'] for check in checks if check != 'latency']
    # A student that has learnt four steps is no stereo matcher, and the gate says so.
    assert not reports[0]['passed'] and 'shift' in reports[0]['fell_short']
    assert not (tmp_path / 'robot').exists()
    page = (tmp_path / 'killed/report.html').read_text()
    assert 'Not delivered' in page and 'shift' in page and page.count('<img') >= 4


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_shipped_student_is_adapted_and_delivered(assets: Path, tmp_path: Path) -> None:
    """Two tiny steps change next to nothing, so a margin below zero lets every check pass."""
    drive = Path(shutil.copytree(assets / 'drive', tmp_path / 'drive'))
    asked = settings(
        assets,
        tmp_path,
        bags=[str(drive)],
        student='kestrel_small',
        steps=2,
        learning_rate=1e-6,
        margin=-0.5,
        tolerance=0.5,
        bag_licence='MIT',
    )
    lines: list[str] = []
    delivered = adapt(asked, tmp_path / 'work', on_line=lines.append)
    assert delivered, '\n'.join(lines)
    model = resolve_model(tmp_path / 'robot')
    assert model == tmp_path / 'robot/robot.onnx'
    manifest = read_manifest(model)
    assert manifest.calibration == calibration_record(CAMERA)
    assert manifest.teacher == 'blocks'
    assert manifest.licence == 'unknown: ask the authors of the teacher'
    named = {source['name']: source['licence'] for source in manifest.training_data}
    assert named['bag drive'] == 'MIT'
    assert named['labels by blocks'] == 'unknown: ask the authors of the teacher'
    assert named['procedural scenes'] == 'Apache-2.0'
    shipped = read_manifest(resolve_model('kestrel_small'))
    assert manifest.parameters == shipped.parameters
    assert manifest.weights_sha256 != shipped.weights_sha256
    assert str(tmp_path) not in manifest.to_json()
    beside = {path.name for path in (tmp_path / 'robot').iterdir()}
    assert beside == {'robot.onnx', 'manifest.json', 'report.html', 'report.json'}
    report = json.loads((tmp_path / 'robot/report.json').read_text())
    assert report['passed'] and list(report['stages']) == list(STAGES[:-1])
    assert all(check['passed'] for check in report['stages']['gate']['checks'])

    # Cut off between the folder and its mark, it delivers the same again; then it rests.
    before = model.read_bytes()
    (tmp_path / 'work/deliver/done.json').unlink()
    assert adapt(asked, tmp_path / 'work')
    assert model.read_bytes() == before
    assert adapt(asked, tmp_path / 'work')
    with pytest.raises(AdaptError, match='steps 2, now 3'):
        adapt(asked.model_copy(update={'steps': 3, 'out': str(tmp_path / 'b')}), tmp_path / 'work')
    with pytest.raises(AdaptError, match='drive changed since the adaptation'):
        (drive / 'more').write_text('recorded on')
        adapt(asked, tmp_path / 'work')
    with pytest.raises(AdaptError, match='exists already and is not overwritten'):
        adapt(asked.model_copy(update={'steps': 3}), tmp_path / 'other')


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_of_a_joined_student_the_first_is_adapted_and_joined_again(
    assets: Path, tmp_path: Path
) -> None:
    """And what is judged and compared is the whole, before and after."""
    both = tmp_path / 'both.onnx'
    parts = [resolve_model(f'kestrel_{name}') for name in ('nano', 'pico')]
    join(*parts, both, name='two')
    asked = settings(
        assets, tmp_path, student=str(both), steps=2, learning_rate=1e-6, margin=-0.5,
        tolerance=0.5,
    )  # fmt: skip
    lines: list[str] = []
    assert adapt(asked, tmp_path / 'work', on_line=lines.append), '\n'.join(lines)
    assert any('both is two models in one: the second stays' in line for line in lines)
    model = resolve_model(tmp_path / 'robot')
    told, first, second = (read_manifest(path) for path in (model, *parts))
    assert is_joined(told) and joined_with(told) == joined_with(read_manifest(both))
    assert told.name == 'robot' and told.parameters == first.parameters + second.parameters
    assert told.calibration == calibration_record(CAMERA) and 'adaptation' in told.extra
    scene = render_pair(3, CAMERA.height, CAMERA.width, 40.0)
    with second_alone(model) as kept, first_alone(model) as adapted:
        assert read_manifest(kept) == second
        asked_of = [StereoEngine(path, 'cpu').infer(scene.left, scene.right).disparity.copy()
                    for path in (kept, parts[1], adapted, parts[0])]  # fmt: skip
        assert read_manifest(adapted).weights_sha256 != first.weights_sha256
    np.testing.assert_array_equal(asked_of[0], asked_of[1])
    assert np.median(np.abs(asked_of[2] - asked_of[3])) < 0.05
    run = RunFolder(asked, tmp_path / 'work')
    look, gate = run.facts('look'), run.facts('gate')
    assert 0 < look['second_ms'] < look['student_ms']
    assert min(gate['latency_ms'][when] for when in ('before', 'after')) > look['second_ms']
    # What is called before is the shipped file, not its first part.
    scenes = PairPool(run.stage('render') / 'validation')
    measured = json.loads((run.stage('gate') / 'measured_procedural.json').read_text())
    matcher = ModelMatcher(both, 'cpu', 'shipped')
    for scene, record in zip(scenes, measured, strict=True):
        answer = matcher.match(scene.left, scene.right).dense
        expected = disparity_metrics(answer, scene.disparity, 256.0)
        assert record['before']['truth']['epe_px'] == pytest.approx(expected.epe_px, rel=1e-3)


TWO_PROCESSES = """
import json, sys
import torch
torch.set_num_threads(1)
from stereo_kd_training.adapt.run import adapt
from stereo_kd_training.adapt.settings import AdaptSettings
assert not adapt(AdaptSettings(**json.loads(sys.argv[1])), sys.argv[2])
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_under_a_launcher_the_first_process_does_what_is_done_once(
    assets: Path, tmp_path: Path
) -> None:
    asked = settings(assets, tmp_path, steps=2)
    run_in_two_processes(TWO_PROCESSES, asked.model_dump_json(), str(tmp_path / 'work'))
    run = RunFolder(asked, tmp_path / 'work')
    for stage in STAGES[:-1]:
        assert run.is_done(stage), stage
    said = (run.folder / 'log.txt').read_text().splitlines()
    assert len([line for line in said if ' select ' in line]) == 1
    logged = (run.stage('distil') / 'log.jsonl').read_text().splitlines()
    losses = [line for line in map(json.loads, logged) if 'train/loss' in line]
    assert [line['step'] for line in losses] == [1, 2]
    # A student of two steps is refused, by both; in one process there is nothing left to do.
    before = {path: path.stat().st_mtime_ns for path in run.folder.rglob('*.pt')}
    assert not adapt(asked, run.folder)
    assert before == {path: path.stat().st_mtime_ns for path in run.folder.rglob('*.pt')}


# What cannot work is refused before anything is spent on it


def refused(asked, tmp_path: Path, match: str) -> None:
    with pytest.raises(Exception, match=match) as caught:
        adapt(asked, tmp_path / 'work')
    # Something that a person can act upon, from one of our own error classes.
    assert type(caught.value).__module__.startswith(('stereo_kd_training', 'stereo_kd_ros'))
    assert not (tmp_path / 'robot').exists()


def test_a_bag_of_one_pair_is_refused(assets: Path, tmp_path: Path) -> None:
    from stereo_kd_ros.bag import StereoBagWriter

    with StereoBagWriter(tmp_path / 'flat') as bag:
        image = np.zeros((CAMERA.height, CAMERA.width, 3), np.uint8)
        bag.write_pair(10**9, image, image, CAMERA)
    asked = settings(assets, tmp_path, bags=[str(tmp_path / 'flat')])
    refused(asked, tmp_path, "1 pairs leave 1 for the part 'train'|flat cannot be used to adapt")


def test_a_short_bag_is_refused(assets: Path, tmp_path: Path) -> None:
    write_drive(tmp_path / 'short', 5)
    asked = settings(assets, tmp_path, bags=[str(tmp_path / 'short')])
    refused(asked, tmp_path, r"5 pairs leave \d for the part 'train', expected at least 4")


def test_swapped_eyes_are_refused_with_their_remedy(assets: Path, tmp_path: Path) -> None:
    from stereo_kd_ros.bag import StereoBag, StereoBagWriter

    with (
        StereoBag(assets / 'drive') as bag,
        StereoBagWriter(tmp_path / 'swapped') as writer,
    ):
        for frame in bag.pairs():
            writer.write_pair(frame.stamp_ns, frame.right, frame.left, CAMERA)
    asked = settings(assets, tmp_path, bags=[str(tmp_path / 'swapped')])
    refused(asked, tmp_path, 'disparity_sign: the eyes are swapped')


def test_two_cameras_are_refused(assets: Path, tmp_path: Path) -> None:
    other = StereoCamera.from_intrinsics(131.0, 0.2, CAMERA.width, CAMERA.height)
    write_drive(tmp_path / 'other', PAIRS, other)
    asked = settings(assets, tmp_path, bags=[str(assets / 'drive'), str(tmp_path / 'other')])
    refused(asked, tmp_path, 'is of another camera')


def test_a_latency_out_of_reach_is_refused(assets: Path, tmp_path: Path) -> None:
    refused(
        settings(assets, tmp_path, latency_ms=1e-3),
        tmp_path,
        r'0.001 ms at 192x128 is out of reach',
    )


@pytest.mark.parametrize(
    ('teacher', 'match'),
    [
        ('nowhere.onnx', "teacher 'nowhere.onnx' cannot be used.*does not exist"),
        ('strange=net.onnx', "'strange=net.onnx' cannot be used.*does not exist.*hitnet"),
        ('strange=net.onnx@no.yaml', 'no.yaml'),
        ('hitnet=net.onnx', 'no ONNX teacher at net.onnx'),
    ],
)
def test_an_absent_teacher_is_refused(
    assets: Path, tmp_path: Path, teacher: str, match: str
) -> None:
    refused(settings(assets, tmp_path, teachers=[teacher]), tmp_path, match)


def test_a_teacher_that_answers_something_else_is_refused(assets: Path, tmp_path: Path) -> None:
    """It sees 2 px at most, of 12: an adapter with a wrong scale looks like that."""
    with StereoBagWriter(tmp_path / 'shifted') as bag:
        for index in range(PAIRS):
            views = shifted_pair(12, CAMERA.height, CAMERA.width, index)
            soft = (cv2.GaussianBlur(view, (0, 0), 2) for view in views)
            bag.write_pair(10**9 + index * 100_000_000, *soft, CAMERA)
    blind = write_block_matcher(tmp_path / 'blind.onnx', 2)
    asked = settings(assets, tmp_path, bags=[str(tmp_path / 'shifted')], teachers=[str(blind)])
    refused(asked, tmp_path, 'teacher blind differs by .* px from half of the corners')


def test_a_check_that_does_not_exist_cannot_be_accepted(assets: Path, tmp_path: Path) -> None:
    refused(settings(assets, tmp_path, accept=['rows']), tmp_path, 'no such check; known: ')


def test_two_at_once_are_refused(assets: Path, tmp_path: Path) -> None:
    asked = settings(assets, tmp_path)
    first = RunFolder(asked, tmp_path / 'work')
    first.open()
    refused(asked, tmp_path, 'another adaptation is at work')
    first.close()


def test_what_was_asked_for_may_change_until_the_first_stage_is_done(
    assets: Path, tmp_path: Path
) -> None:
    work = tmp_path / 'work'
    refused(settings(assets, tmp_path, teachers=['nowhere']), tmp_path, "'nowhere' cannot be used")
    begun = work / 'look' / 'of-another.onnx'
    begun.parent.mkdir(exist_ok=True)
    begun.touch()
    run = RunFolder(settings(assets, tmp_path), work)
    run.open()
    assert not begun.exists()
    run.finish('look', {})
    run.close()
    with pytest.raises(AdaptError, match='holds an adaptation with another teachers'):
        RunFolder(settings(assets, tmp_path, teachers=['nowhere']), work).open()


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(
    assets: Path, tmp_path: Path
) -> None:
    asked = settings(assets, tmp_path)
    before = sorted(tmp_path.rglob('*'))
    text = '\n'.join(plan(asked))
    assert sorted(tmp_path.rglob('*')) == before
    assert f'{PAIRS} pairs in the bags' in text and '4 steps of 2 crops' in text
    assert 'in all' in text and 'MB of disk' in text


def test_the_command_tells_its_errors_in_a_line(assets: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from stereo_kd_training.main import app

    asked = settings(assets, tmp_path)
    words = ['adapt', *asked.bags, '--teacher', 'nowhere', '-o', asked.out, '--threads', '1']
    done = CliRunner().invoke(app, [*words, '--student', asked.student])
    assert done.exit_code == 1
    assert "the teacher 'nowhere' cannot be used" in done.output
    done = CliRunner().invoke(app, [*words, '--student', asked.student, '--margin', '2'])
    assert done.exit_code == 1 and 'margin' in done.output
