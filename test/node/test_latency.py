# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node's latency, stage by stage: worked out by hand, and measured on a live node."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.commands.main import app
from stereo_kd_ros.node.latency import (
    PLACES,
    LatencyError,
    measure_node,
    node_row,
    rates_without_drops,
)
from stereo_kd_ros.node.live import LiveRun


@pytest.fixture
def kept_environ() -> object:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def live_run(**pipeline: str) -> LiveRun:
    return LiveRun(
        camera=StereoCamera.from_intrinsics(fx=100.0, baseline_m=0.1, width=64, height=48),
        rate_hz=30.0,
        recorded_stamps={stamp: stamp for stamp in range(40)},
        pairs_recorded=38,
        stamp_to_publish_ms={'p50': 20.0, 'p95': 25.0, 'p99': 30.0},
        stamp_to_receipt_ms={'p50': 21.0, 'p95': 26.0, 'p99': 31.0},
        publish_time_known=True,
        pipeline={'pairs_published': '38', **pipeline},
        model={'provider': 'cpu'},
        took_ms={stamp: 60.0 - stamp for stamp in range(40) if stamp not in (1, 39)},
    )


def test_the_shares_of_the_stages_are_those_of_the_median() -> None:
    row = node_row(
        live_run(
            wait_ms_p50='1.0',
            decode_ms_p50='0.5',
            inference_ms_p50='10.0',
            depth_ms_p50='2.0',
            publish_ms_p50='1.5',
            total_ms_p50='15.0',
            stamp_to_publish_ms_p50='20.0',
            dropped_superseded='2',
        ),
        'tiny',
        2,
    )
    assert row.stage_ms == {
        'transfer': 5.0,
        'wait': 1.0,
        'decode': 0.5,
        'inference': 10.0,
        'depth': 2.0,
        'publish': 1.5,
    }
    assert row.stage_share['inference'] == 0.5
    assert sum(row.stage_share.values()) == pytest.approx(1.0)
    assert row.allowed_ms == 13.0
    assert (row.dropped_percent, row.dropped) == (5.0, {'superseded': 2})


def test_what_finds_everything_cold_is_told_of_by_itself() -> None:
    row = node_row(live_run(), 'tiny', 2, lead_in=10)
    assert row.lead_in == {'pairs': 10, 'lost': 1, 'first_ms': 60.0, 'longest_ms': 60.0}
    assert (row.pairs_sent, row.pairs_published) == (30, 29)
    assert row.dropped_percent == pytest.approx(100 / 30, abs=0.01)
    # 22 to 50 ms: what took 51 to 60 ms came before.
    assert row.stamp_to_publish_ms['p99'] == 50.0
    assert row.stamp_to_publish_ms['p50'] == pytest.approx(36.0, abs=0.5)


def test_a_run_whose_node_told_nothing_has_no_shares() -> None:
    row = node_row(live_run(), 'tiny', 0)
    assert (row.stage_ms, row.stage_share, row.allowed_ms) == ({}, {}, None)


def test_the_rate_without_drops_is_the_highest_below_the_first_with_some() -> None:
    same = {'subject': 'net', 'provider': 'cpu', 'width': 64, 'height': 48, 'threads': 1}
    rows = [
        {**same, 'place': place, 'rate_hz': rate_hz, 'dropped_percent': dropped}
        for place, rate_hz, dropped in [
            ('processes', 30.0, 0.0),
            ('processes', 10.0, 0.0),
            ('processes', 60.0, 2.5),
            ('processes', 90.0, 0.0),
            ('one_process', 10.0, 1.0),
        ]
    ]
    assert rates_without_drops(rows) == [
        {**same, 'place': 'processes', 'rate_hz': 30.0},
        {**same, 'place': 'one_process', 'rate_hz': None},
    ]


@pytest.mark.parametrize(
    'wrong', [{'pairs': 1}, {'pairs': 301}, {'rates_hz': [10.0, 0.0]}, {'places': ['moon']}]
)
def test_what_cannot_be_measured_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(LatencyError, match='expected'):
        measure_node(Path('absent.onnx'), **wrong)


@pytest.mark.usefixtures('kept_environ')
def test_every_place_has_a_row_beside_the_engine_alone(tmp_path: Path, block_matcher: str) -> None:
    report = tmp_path / 'node.json'
    result = CliRunner().invoke(
        app,
        ['bench', '--node', '--models', block_matcher, '--sizes', '96x64', '--rates', '20',
         '--threads', '1', '--seconds', '1.6', '--json', str(report)],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    told = json.loads(report.read_text())
    assert told['machine']['load_1min'] >= 0
    assert [of['place'] for of in told['without_drops']] == list(PLACES)
    rows = told['rows']
    assert [(row['width'], row['height'], row['rate_hz'], row['place']) for row in rows] == [
        (96, 64, 20.0, place) for place in PLACES
    ]
    for row in rows:
        assert (row['provider'], row['threads'], row['pairs_sent']) == ('cpu', 1, 32)
        assert row['lead_in']['pairs'] == 20
        assert 1 <= row['pairs_published'] <= 32
        come_or_not = row['pairs_published'] + sum(row['dropped'].values())
        assert come_or_not <= 32 + row['lead_in']['lost']
        assert row['sent_hz'] > 0
        assert row['stolen_percent'] is None or 0 <= row['stolen_percent'] <= 100
        assert 0 < row['bare_ms']['p50'] <= row['bare_ms']['p95'] <= row['bare_ms']['p99']
        assert row['stamp_to_publish_ms']['p50'] > 0
        assert row['stage_ms']['inference'] > 0
        assert set(row['stage_ms']) == {
            'transfer', 'wait', 'decode', 'inference', 'depth', 'publish',
        }  # fmt: skip
