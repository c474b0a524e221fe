# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd` itself: light to start, and its errors are one line with the right code."""

from __future__ import annotations

import subprocess
import sys

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
