# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd models` lists what there is and prints what a model says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_models import write_block_matcher
from typer.testing import CliRunner

from stereo_kd_ros.commands.console import console
from stereo_kd_ros.commands.main import app
from stereo_kd_ros.model import list_models


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_block_matcher(tmp_path / 'matcher_nano.onnx', max_disparity_px=24)
    write_block_matcher(tmp_path / 'silent.onnx', with_manifest=False)
    monkeypatch.setenv('STEREO_KD_MODELS', str(tmp_path))
    return tmp_path


def test_lists_models_with_and_without_manifest(folder: Path) -> None:
    result = CliRunner().invoke(app, ['models'], env={'COLUMNS': '160'})

    assert result.exit_code == 0, result.output
    assert 'matcher_nano' in result.output
    assert '0 .. 24' in result.output
    assert 'no manifest' in result.output


def test_prints_the_manifest_of_one(folder: Path) -> None:
    result = CliRunner().invoke(app, ['models', 'matcher_nano'])

    assert result.exit_code == 0, result.output
    assert json.loads(result.output)['max_disparity_px'] == 24


def test_an_unknown_model_lists_what_there_is(folder: Path) -> None:
    result = CliRunner().invoke(app, ['models', 'huge'])

    assert result.exit_code == 1
    assert 'matcher_nano' in result.output


@pytest.mark.parametrize('rig', [[], ['--rig', '60']])
def test_a_narrow_terminal_cuts_no_name(monkeypatch, rig):
    monkeypatch.setattr(console, 'width', 60)
    result = CliRunner().invoke(app, ['models', *rig])
    for path in list_models():
        assert f' {Path(path).stem} ' in result.output
