# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Result files: percentiles, hashes, and JSON that is valid and whole."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import pytest

from stereo_kd_ros.results import machine, path_sha256, percentiles, rounded, write_json


def test_percentiles_are_nearest_rank_and_absent_without_values() -> None:
    assert percentiles([float(n) for n in range(1, 101)]) == {'p50': 50, 'p95': 95, 'p99': 99}
    assert percentiles([7.0]) == {'p50': 7, 'p95': 7, 'p99': 7}
    assert percentiles([]) == {'p50': None, 'p95': None, 'p99': None}


@pytest.mark.parametrize(
    ('value', 'figure'), [(1.23456, 1.2346), (math.nan, None), (math.inf, None), (None, None)]
)
def test_what_is_not_known_is_none(value: float | None, figure: float | None) -> None:
    assert rounded(value) == figure


def test_the_hash_of_a_folder_depends_on_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / 'a').mkdir()
    (tmp_path / 'a/one').write_bytes(b'x')
    first = path_sha256(tmp_path / 'a')
    assert path_sha256(tmp_path / 'a/one') == hashlib.sha256(b'x').hexdigest()
    (tmp_path / 'a/one').rename(tmp_path / 'a/two')
    assert path_sha256(tmp_path / 'a') != first
    (tmp_path / 'a/two').rename(tmp_path / 'a/one')
    assert path_sha256(tmp_path / 'a') == first


def test_a_result_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / 'result.json'
    write_json(path, {'epe_px': 1.5, 'bad3': None, 'machine': machine()})
    assert json.loads(path.read_text())['epe_px'] == 1.5
    with pytest.raises(ValueError, match='Out of range'):
        write_json(path, {'epe_px': math.nan})
    assert json.loads(path.read_text())['epe_px'] == 1.5
    assert [item.name for item in tmp_path.iterdir()] == ['result.json']
