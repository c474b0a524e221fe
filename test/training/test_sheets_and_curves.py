# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Sheets show the pairs they are asked for; curves draw what the log says."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from stereo_kd_ros.visualize import GAP_PX, colorize_disparity
from stereo_kd_training.curves import CurvesError, plot_curves, read_log, running_mean
from stereo_kd_training.datasets.procedural import PairPool, generate_pool
from stereo_kd_training.evaluate import Method, run_evaluation
from stereo_kd_training.main import app
from stereo_kd_training.sheets import Extremes, SheetError, pool_sheet, write_picture


def write_log(run: Path, lines: list[dict]) -> Path:
    run.mkdir()
    (run / 'log.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = [{'step': step, 'train/loss': 10.0 / step} for step in range(1, 40)]
    lines += [{'step': step, 'validation/epe_px': 50.0 / step} for step in (10, 20, 39)]
    return write_log(tmp_path / 'first', lines)


def test_log_is_read_by_name_and_step(run: Path):
    log = read_log(run)
    assert log['validation/epe_px'] == [(10, 5.0), (20, 2.5), (39, pytest.approx(50 / 39))]
    assert len(log['train/loss']) == 39
    assert read_log(run / 'log.jsonl') == log


def test_steps_logged_again_after_a_resume_count_once(tmp_path: Path):
    lines = [{'step': 1, 'train/loss': 5.0}, {'step': 2, 'train/loss': 4.0}]
    lines += [{'step': 2, 'train/loss': 3.0}, {'step': 3, 'train/loss': float('nan')}]
    assert read_log(write_log(tmp_path / 'run', lines)) == {'train/loss': [(1, 5.0), (2, 3.0)]}


def test_half_a_last_line_is_forgiven_and_one_in_the_middle_is_not(run: Path):
    log = run / 'log.jsonl'
    text = log.read_text()
    log.write_text(text + '{"step": 40, "tra')
    assert len(read_log(run)['train/loss']) == 39
    log.write_text('{"step": 40, "tra\n' + text)
    with pytest.raises(CurvesError, match=r'log\.jsonl:1'):
        read_log(run)


def test_missing_and_empty_logs_are_named(tmp_path: Path):
    with pytest.raises(CurvesError, match='does not exist'):
        read_log(tmp_path)
    with pytest.raises(CurvesError, match='no scalars'):
        read_log(write_log(tmp_path / 'empty', [{'step': 1}]))
    other = write_log(tmp_path / 'other', [{'step': 1, 'something': 2.0}])
    with pytest.raises(CurvesError, match='none of the logs'):
        plot_curves([other], tmp_path / 'x.png')


def test_running_mean_is_the_mean_of_a_constant_and_follows_a_step():
    assert running_mean([3.0] * 5) == pytest.approx([3.0] * 5)
    after = running_mean([0.0, 1.0], 0.5)
    assert after == pytest.approx([0.0, 2 / 3])


def test_curves_command_draws_a_panel_per_scalar(tmp_path: Path, run: Path):
    second = write_log(tmp_path / 'second', [{'step': 5, 'validation/bad3': 7.0}])
    out = tmp_path / 'plots' / 'curves.png'
    result = CliRunner().invoke(app, ['curves', str(run), str(second), '-o', str(out)])
    assert result.exit_code == 0, result.output
    assert 'first: 39 steps, second: 5 steps' in result.output
    alone = tmp_path / 'alone.png'
    plot_curves([run], alone)
    # Three panels with both runs, two without the one that has a bad-3.
    assert cv2.imread(str(out)).shape[0] > 1.3 * cv2.imread(str(alone)).shape[0]


def test_a_run_has_one_colour_in_all_panels_and_its_name_whatever_it_logged(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
):
    without = write_log(tmp_path / 'not validated', [{'step': s, 'train/loss': 5} for s in (1, 9)])
    drawn = []
    monkeypatch.setattr('matplotlib.pyplot.close', drawn.append)
    plot_curves([without, run], tmp_path / 'x.png')
    monkeypatch.undo()
    (figure,) = drawn
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.texts] == ['not validated', 'first']
    validation, loss = figure.axes
    colours = [line.get_color() for line in legend.get_lines()]
    assert [line.get_color() for line in validation.lines] == colours[1:]
    assert [line.get_color() for line in loss.lines] == colours
    # A single value is to be seen, too.
    once = write_log(tmp_path / 'once', [{'step': 5, 'validation/bad3': 7.0}])
    monkeypatch.setattr('matplotlib.pyplot.close', drawn.append)
    plot_curves([once], tmp_path / 'y.png')
    assert drawn[1].axes[0].lines[0].get_marker() == 'o'


def test_sheet_command_draws_the_pairs_of_a_pool(tmp_path: Path):
    generate_pool(tmp_path / 'pool', 3, 32, 64, seed=2, progress=False, scenes='mixed')
    out = tmp_path / 'sheet.png'
    arguments = ['sheet', str(tmp_path / 'pool'), '-o', str(out), '--width', '64', '--first', '1']
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    picture = cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB)
    assert picture.shape == (32, 6 * 64 + 5 * GAP_PX, 3)
    pair = PairPool(tmp_path / 'pool')[2]
    start = 3 * (64 + GAP_PX)
    assert np.array_equal(picture[:, start : start + 64], pair.left)
    disparity = picture[:, start + 2 * (64 + GAP_PX) :]
    assert np.array_equal(disparity, colorize_disparity(pair.disparity))
    beyond = CliRunner().invoke(app, [*arguments[:-1], '3'])
    assert beyond.exit_code == 1
    assert '3 pairs' in beyond.output


def test_sheet_refuses_no_pair_and_no_picture(tmp_path: Path):
    with pytest.raises(SheetError, match='at least one'):
        pool_sheet([], [])
    with pytest.raises(SheetError, match=r'\.gif'):
        write_picture(tmp_path / 'x.gif', np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(SheetError, match='no pair'):
        Extremes().sheet()


def test_extremes_keep_the_worst_and_best_answers():
    seen = Extremes(count=2)
    truth = np.full((20, 30), 10.0, np.float32)
    left = np.zeros((20, 30, 3), np.uint8)
    for error in (3.0, 1.0, 5.0, 2.0, 4.0):
        seen.see(f'pair{error:g}', left, truth, truth + np.float32(error))
    seen.see('blind', left, np.full_like(truth, np.nan), truth)
    assert seen.worst() == [('pair5', 5.0), ('pair4', 4.0)]
    assert seen.best() == [('pair1', 1.0), ('pair2', 2.0)]
    assert seen.sheet(60).shape[1] == 4 * 60 + 3 * GAP_PX


def test_evaluation_writes_the_extremes_of_its_first_method(tmp_path: Path):
    from stereo_kd_ros.disparity_io import write_pfm

    for number, disparity in enumerate((4.0, 9.0)):
        scene = tmp_path / 'sets' / 'near' / f's{number}'
        scene.mkdir(parents=True)
        for eye in ('left', 'right'):
            cv2.imwrite(str(scene / f'{eye}.png'), np.full((20, 40, 3), 90, np.uint8))
        write_pfm(scene / 'disp.pfm', np.full((20, 40), disparity, np.float32))
    method = Method('four', lambda left, right: np.full(left.shape[:2], 4.0, np.float32))
    out = tmp_path / 'extremes.png'
    run_evaluation([method], tmp_path / 'sets', latency=False, extremes=out)
    picture = cv2.cvtColor(cv2.imread(str(out)), cv2.COLOR_BGR2RGB)
    # Worst first: rows of 5, 0, then best first: 0, 5 px. Five is warm, nothing cold.
    rows = picture.shape[0] // 4
    warm = [bool(picture[k * rows + rows - 12, -10, 0] > 150) for k in range(4)]
    assert warm == [True, False, False, True]


@pytest.mark.parametrize(
    'command', [['curves', 'run', '-o'], ['evaluate', '--data', 'nowhere', '--plot']]
)
def test_a_chart_that_cannot_be_drawn_is_refused_before_anything_is_read(command):
    result = CliRunner().invoke(app, [*command, 'chart.txt'])
    assert result.exit_code == 1
    assert 'expected .png, .svg, .pdf' in ' '.join(result.output.split())
