# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""NumPy's threads spin for longer than a pair takes, so in a node it gets one, from each door."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

TOLD = """
import os, sys
class Told:
    def find_spec(self, name, path=None, target=None):
        if name == 'numpy':
            print('NumPy found', os.environ.get('OPENBLAS_NUM_THREADS'))
            sys.meta_path.remove(self)
sys.meta_path.insert(0, Told())
"""
DOORS = {
    'stereo_node': 'import stereo_kd_ros.node.main',
    'run': """
sys.argv = ['stereo-kd', 'run', '--model', 'absent.onnx']
from stereo_kd_ros.commands.main import main
main()
""",
    'one_process': 'import stereo_kd_ros.node.one_process',
    'player': 'import stereo_kd_ros.node.player',
}


def said(code: str, **variables: str) -> str:
    environ = {**os.environ, **variables}
    if not variables:
        environ.pop('OPENBLAS_NUM_THREADS', None)
    command = [sys.executable, '-c', code]
    return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=200).stdout


@pytest.mark.parametrize('door', DOORS)
def test_it_is_settled_before_numpy_is_loaded(door: str) -> None:
    assert 'NumPy found 1\n' in said(TOLD + DOORS[door])


def test_who_wants_more_gets_more() -> None:
    assert 'NumPy found 2\n' in said(TOLD + DOORS['stereo_node'], OPENBLAS_NUM_THREADS='2')


@pytest.mark.skipif(sys.platform != 'linux', reason='counts the threads that Linux lists')
def test_no_thread_is_left_to_spin() -> None:
    products = 'import numpy; a = numpy.ones((400, 400)); a @ a; import os; '
    threads = "print(len(os.listdir('/proc/self/task')))"
    assert said(f'import stereo_kd_ros.node; {products}{threads}') == '1\n'
