# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd` itself: light to start, and its errors are one line with the right code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from stereo_kd_ros.commands.console import readable_errors
from stereo_kd_ros.commands.main import app
from stereo_kd_ros.sequence import SequenceError

HEAVY = ('cv2', 'numpy', 'onnxruntime', 'rclpy', 'rosbags')


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(app, ['--help'])

    assert result.exit_code == 0
    for command in ('infer', 'make-bag', 'play', 'run', 'demo', 'models'):
        assert command in result.output


def test_starting_loads_nothing_heavy() -> None:
    program = (
        'import sys, stereo_kd_ros.commands.main; '
        f'print([name for name in {HEAVY!r} if name in sys.modules])'
    )
    output = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, check=True, timeout=400
    )
    assert output.stdout.strip() == '[]'


@pytest.mark.parametrize(
    'arguments',
    [
        ['infer'],
        ['no-such-command'],
        ['play', 'bag', '--rate', '-1'],
        ['play', 'bag', '--qos', 'perfect'],
        ['demo', '--rate', '0'],
        ['make-bag', '--left', 'l', '--right', 'r', '--calib', 'c', '-o', 'b', '--storage', 'db'],
        ['run', '--params-file', 'absent.yaml'],
    ],
)
def test_misuse_has_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(app, arguments).exit_code == 2


def test_own_errors_are_readable_and_bugs_keep_their_traceback(
    capsys: pytest.CaptureFixture[str],
) -> None:
    @readable_errors
    def fail(error: Exception) -> None:
        raise error

    with pytest.raises(typer.Exit) as leaving:
        fail(SequenceError('the [left] folder is empty'))
    assert leaving.value.exit_code == 1
    assert 'error: the [left] folder is empty' in capsys.readouterr().err
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())


@pytest.mark.parametrize(('command', 'options'), [('evaluate', ['-o', 'report']), ('doctor', [])])
@pytest.mark.parametrize(
    ('bag', 'said'),
    [
        (
            'absent',
            'absent does not exist. Expected a rosbag2 folder with metadata.yaml, an .mcap',
        ),
        ('text.db3', 'text.db3 cannot be read as a bag'),
        ('empty', 'empty is no bag: it has no metadata.yaml'),
    ],
)
def test_a_bag_that_is_none_is_told_with_what_would_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command, options, bag, said
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'text.db3').write_text('no bag')
    (tmp_path / 'empty').mkdir()
    result = CliRunner().invoke(app, [command, bag, *options])
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert said in ' '.join(result.output.split())
    assert '..' not in result.output.replace('...', '')


def test_what_the_system_refuses_is_told_with_path_and_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / 'file').touch()

    @readable_errors
    def read(name: str) -> None:
        (tmp_path / name).read_text()

    for name, said in (
        ('absent.json', 'there is no such file or folder; check the path.'),
        ('file/within.json', 'a part of this path is a file where a folder is needed'),
        ('.', 'is a folder where a file is expected'),
    ):
        with pytest.raises(typer.Exit):
            read(name)
        told = capsys.readouterr().err
        assert f'{tmp_path / name}: {said}' in told
        assert 'Errno' not in told


def test_a_report_to_compare_with_is_read_before_anything_is_measured(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ['bench', '--check', str(tmp_path / 'absent.json')])
    assert result.exit_code == 1
    assert 'cannot be read as a benchmark report' in ' '.join(result.output.split())
    assert 'subject' not in result.output
