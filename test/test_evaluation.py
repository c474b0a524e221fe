# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Evaluation of a real small model on a bag: known errors, resuming, and refusals."""

from __future__ import annotations

import json
import math
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ros_free_pairs import shifted_pair
from tiny_models import write_block_matcher

from stereo_kd_ros.bag import StereoBagWriter, StereoTopics
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.disparity_io import write_pfm
from stereo_kd_ros.evaluation import (
    FIGURES,
    Answer,
    EvaluationError,
    ModelMatcher,
    Options,
    SgbmMatcher,
    drawn_figures,
    evaluate,
    open_matcher,
    read_records,
    selected_frames,
    summarise,
)
from stereo_kd_ros.onnx_peer import OnnxPeerError

WIDTH, HEIGHT, DISPARITY_PX, PAIRS = 96, 48, 6, 4
CAMERA = StereoCamera.from_intrinsics(fx=60.0, baseline_m=0.5, width=WIDTH, height=HEIGHT)
DEPTH_M = 60.0 * 0.5 / DISPARITY_PX
# What depends on the clock; everything else must be the same every time.
TIMES = ('p50_ms', 'p95_ms', 'p99_ms', 'max_ms')


class OffsetMatcher:
    """A matcher whose error against the truth is known: it is off by the same everywhere."""

    def __init__(self, off_by_px: float, fail_at: int | None = None) -> None:
        self.name = f'off_by_{off_by_px:g}'
        self.off_by_px = off_by_px
        self.calls = 0
        self.fail_at = fail_at

    def match(self, left: np.ndarray, right: np.ndarray) -> Answer:
        """The truth of every pair of the bag, plus the offset."""
        self.calls += 1
        if self.calls == self.fail_at:
            raise KeyboardInterrupt
        shape = left.shape[:2]
        disparity = np.full(shape, DISPARITY_PX + self.off_by_px, np.float32)
        return Answer(disparity, np.full(shape, 0.5, np.float32), float(self.calls))

    def describe(self) -> dict[str, Any]:
        """Its only setting."""
        return {'file': None, 'sha256': None, 'off_by_px': self.off_by_px}


@pytest.fixture(scope='module')
def drive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp('drive')
    (root / 'truth').mkdir()
    truth = np.full((HEIGHT, WIDTH), DISPARITY_PX, np.float32)
    with StereoBagWriter(root / 'bag', topics=StereoTopics.in_namespace('cam')) as bag:
        for index in range(PAIRS):
            stamp_ns = 10**9 + index * 50_000_000
            bag.write_pair(stamp_ns, *shifted_pair(DISPARITY_PX, HEIGHT, WIDTH, index), CAMERA)
            write_pfm(root / f'truth/{stamp_ns}.pfm', truth)
    return root


@pytest.fixture(scope='module')
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_block_matcher(tmp_path_factory.mktemp('models') / 'blocks.onnx', 16)


def _timeless(report: dict[str, Any]) -> dict[str, Any]:
    models = [
        {key: value for key, value in model.items() if key not in TIMES}
        for model in report['models']
    ]
    return {**report, 'models': models}


def test_known_errors_are_reported_in_pixels_and_metres(drive: Path, tmp_path: Path) -> None:
    options = Options(truth=str(drive / 'truth'))
    report = evaluate(drive / 'bag', [OffsetMatcher(0), OffsetMatcher(4)], tmp_path, options)
    right, wrong = report['models']

    assert right['pairs'] == right['pairs_with_truth'] == PAIRS
    assert (right['epe_px'], right['bad3'], right['d1'], right['depth_mae_m']) == (0, 0, 0, 0)
    assert right['photometric_error'] == pytest.approx(0, abs=1e-3)
    assert (wrong['epe_px'], wrong['bad1'], wrong['bad3']) == (4, 100, 100)
    # 10 px instead of 6 px are 3 m instead of 5 m.
    assert wrong['depth_mae_m'] == pytest.approx(2.0, abs=1e-3)
    assert wrong['depth_abs_rel'] == pytest.approx(0.4, abs=1e-3)
    (filled,) = (item for item in wrong['ranges'] if item['pixels'])
    assert filled['from_m'] <= DEPTH_M < filled['to_m']
    assert filled['pixels'] == PAIRS * WIDTH * HEIGHT
    assert filled['epe_px'] == 4
    for model in (right, wrong):
        assert model['flicker_px'] == 0 and model['plane_rms_px'] == 0
        assert model['ause_px'] == 0 and model['mean_confidence'] == 0.5
        assert set(FIGURES) <= set(model)


def test_without_truth_its_figures_are_null_and_the_others_stand(
    drive: Path, tmp_path: Path, model: Path
) -> None:
    report = evaluate(drive / 'bag', [ModelMatcher(model, 'cpu'), SgbmMatcher()], tmp_path)
    blocks, sgbm = report['models']

    for name in ('epe_px', 'bad3', 'd1', 'edge_epe_px', 'ause_px', 'depth_mae_m'):
        assert blocks[name] is None and sgbm[name] is None
    assert blocks['pairs'] == PAIRS and blocks['pairs_with_truth'] == 0
    assert blocks['valid_fraction'] > 0.8
    # Both find the plane, except at the border that only one eye sees.
    assert blocks['sgbm_difference_px'] < 1.0
    assert sgbm['sgbm_difference_px'] is None
    assert blocks['left_right_percent'] < 15
    assert blocks['provider'] == 'cpu' and len(blocks['sha256']) == 64
    assert 0 < blocks['p50_ms'] <= blocks['p95_ms'] <= blocks['p99_ms'] <= blocks['max_ms']
    json.dumps(report, allow_nan=False)


def test_two_runs_give_the_same_report(drive: Path, tmp_path: Path, model: Path) -> None:
    reports = [
        evaluate(drive / 'bag', [ModelMatcher(model, 'cpu')], tmp_path / name)
        for name in ('one', 'two')
    ]
    assert _timeless(reports[0]) == _timeless(reports[1])


@pytest.mark.parametrize('fail_at', range(1, 2 * PAIRS + 1))
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    drive: Path, tmp_path: Path, fail_at: int
) -> None:
    options = Options(truth=str(drive / 'truth'))
    whole = evaluate(drive / 'bag', [OffsetMatcher(1)], tmp_path / 'whole', options)
    folder = tmp_path / 'resumed'
    with pytest.raises(KeyboardInterrupt):
        evaluate(drive / 'bag', [OffsetMatcher(1, fail_at)], folder, options)
    # A kill may also cut a line in half.
    with (folder / 'off_by_1.jsonl').open('a') as lines:
        lines.write('{"index": 99, "stamp')

    second = OffsetMatcher(1)
    resumed = evaluate(drive / 'bag', [second], folder, options)

    assert _timeless(resumed) == _timeless(whole)
    assert second.calls <= 2 * PAIRS + 1
    third = OffsetMatcher(1)
    assert _timeless(evaluate(drive / 'bag', [third], folder, options)) == _timeless(whole)
    assert third.calls == 0


def test_agreement_with_a_teacher(drive: Path, tmp_path: Path) -> None:
    report = evaluate(
        drive / 'bag', [OffsetMatcher(1), OffsetMatcher(5)], tmp_path, teacher=OffsetMatcher(0)
    )
    near, far = report['models']
    assert report['teacher']['name'] == 'off_by_0'
    assert (near['teacher_difference_px'], near['teacher_bad3']) == (1, 0)
    assert (far['teacher_difference_px'], far['teacher_bad3']) == (5, 100)
    assert near['epe_px'] is None
    with pytest.raises(EvaluationError, match='another teacher'):
        evaluate(drive / 'bag', [OffsetMatcher(1)], tmp_path)


def test_a_foreign_network_teaches_by_its_adapter(drive: Path, tmp_path: Path) -> None:
    """One of two inputs that answers left - right: white minus black is a disparity."""
    onnx = pytest.importorskip('onnx', reason='builds its network with onnx')
    pytest.importorskip('yaml', reason='reads its adapter with PyYAML')
    shape = [1, 3, None, None]
    pair = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name in ('l', 'r', 'd')
    ]
    red = onnx.helper.make_tensor('red', onnx.TensorProto.INT64, [1], [0])
    nodes = [
        onnx.helper.make_node('Constant', [], ['red'], value=red),
        onnx.helper.make_node('Sub', ['l', 'r'], ['all']),
        onnx.helper.make_node('Gather', ['all', 'red'], ['d'], axis=1),
    ]
    model = onnx.helper.make_model(
        onnx.helper.make_graph(nodes, 'difference', pair[:2], pair[2:]),
        opset_imports=[onnx.helper.make_opsetid('', 17)],
    )
    model.ir_version = 8
    onnx.save(model, tmp_path / 'difference.onnx')
    adapter = tmp_path / 'adapter.yaml'
    adapter.write_text('scale: 1.0\noutput_scale: 0.1\n')
    matcher = open_matcher(f'difference={tmp_path}/difference.onnx@{adapter}', 'cpu')
    right = np.zeros((40, 50, 3), np.uint8)
    answer = matcher.match(np.full_like(right, 60), right)
    assert answer.disparity.shape == (40, 50) and answer.confidence is None
    np.testing.assert_allclose(answer.disparity, 6.0)
    assert np.isnan(matcher.match(right, np.full_like(right, 60)).disparity).all()

    report = evaluate(drive / 'bag', [OffsetMatcher(0)], tmp_path / 'out', teacher=matcher)
    assert report['teacher']['name'] == 'difference'
    assert len(report['teacher']['sha256']) == 64
    assert report['models'][0]['teacher_difference_px'] is not None
    with pytest.raises(OnnxPeerError, match='no known adapter'):
        open_matcher(f'other={tmp_path}/difference.onnx', 'cpu')


def test_a_finished_part_can_be_extended(drive: Path, tmp_path: Path) -> None:
    evaluate(drive / 'bag', [OffsetMatcher(1)], tmp_path / 'a', Options(max_pairs=2))
    more = evaluate(drive / 'bag', [OffsetMatcher(1)], tmp_path / 'a')
    whole = evaluate(drive / 'bag', [OffsetMatcher(1)], tmp_path / 'b')
    assert _timeless(more) == _timeless(whole)


def test_every_second_pair(drive: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    options = Options(every=2)
    report = evaluate(
        drive / 'bag', [OffsetMatcher(1)], tmp_path, options, lambda *done: seen.append(done)
    )
    assert report['models'][0]['pairs'] == 2
    assert seen == [(1, 2), (2, 2)]


def test_results_of_something_else_are_not_continued(drive: Path, tmp_path: Path) -> None:
    first = OffsetMatcher(1)
    evaluate(drive / 'bag', [first], tmp_path)
    other = OffsetMatcher(2)
    other.name = first.name
    with pytest.raises(EvaluationError, match='another model'):
        evaluate(drive / 'bag', [other], tmp_path)
    with pytest.raises(EvaluationError, match='another options'):
        evaluate(drive / 'bag', [first], tmp_path, Options(left_right=False))


def test_models_of_one_name_are_refused_and_can_be_given_another(
    drive: Path, tmp_path: Path, model: Path
) -> None:
    with pytest.raises(EvaluationError, match=r'share a name.*NAME=FILE\.onnx'):
        evaluate(drive / 'bag', [OffsetMatcher(1), OffsetMatcher(1)], tmp_path)
    matchers = [open_matcher(text, 'cpu') for text in (str(model), f'again={model}')]
    assert [matcher.name for matcher in matchers] == ['blocks', 'again']
    first, second = matchers
    assert first.describe() == second.describe()
    with pytest.raises(OnnxPeerError, match=r'absent\.onnx.*no known adapter \(known: hitnet'):
        open_matcher('ours=absent.onnx', 'cpu')


def test_sparsification_is_pooled_over_the_pairs(drive: Path, tmp_path: Path) -> None:
    """A confidence that is the same everywhere sorts nothing: both curves stay at the error."""
    options = Options(truth=str(drive / 'truth'))
    report = evaluate(drive / 'bag', [OffsetMatcher(4)], tmp_path, options)
    curves = report['models'][0]['sparsification']
    assert curves == {'epe_px': [4.0] * 20, 'oracle_px': [4.0] * 20}
    drawn = drawn_figures(tmp_path / 'off_by_4.jsonl')
    assert drawn['epe_px'].tolist() == [[float(index), 4.0] for index in range(PAIRS)]
    assert drawn['teacher_difference_px'].shape == (0, 2)


def test_a_pair_leaves_nothing_but_numbers_in_memory(drive: Path, tmp_path: Path) -> None:
    """Five minutes at 10 Hz: its records would be 10 MB as they are, its times are 24 kB."""
    evaluate(drive / 'bag', [OffsetMatcher(1)], tmp_path, Options(truth=str(drive / 'truth')))
    (line, *_) = (json.dumps(record) for record in read_records(tmp_path / 'off_by_1.jsonl'))

    def long_drive() -> Iterator[dict[str, Any]]:
        for index in range(3_000):
            yield json.loads(line) | {'index': index}

    tracemalloc.start()
    try:
        figures = summarise(long_drive())
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert figures['pairs'] == 3_000 and figures['epe_px'] == 1
    assert most < 500_000


def test_a_bag_without_a_single_pair_is_refused(tmp_path: Path) -> None:
    left, right = shifted_pair(DISPARITY_PX, HEIGHT, WIDTH, 0)
    topics = StereoTopics.in_namespace()
    with StereoBagWriter(tmp_path / 'bag') as bag:
        bag.write_camera_infos(10**9, CAMERA)
        bag.write(topics.left_image, 10**9, bag._image(10**9, left))
        bag.write(topics.right_image, 10**9, bag._image(10**9 + 5, right))
    with pytest.raises(EvaluationError, match='holds no pair'):
        evaluate(tmp_path / 'bag', [OffsetMatcher(1)], tmp_path / 'out')


def test_single_frames_can_be_fetched_with_their_truth(drive: Path) -> None:
    options = Options(truth=str(drive / 'truth'))
    fetched = list(selected_frames(drive / 'bag', [3, 1], options))

    assert [index for index, _, _ in fetched] == [1, 3]
    for index, frame, truth in fetched:
        np.testing.assert_array_equal(
            frame.left, shifted_pair(DISPARITY_PX, HEIGHT, WIDTH, index)[0]
        )
        assert truth is not None and not math.isnan(truth[0, 0])
