# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The runtime without torch, and the pure modules without ROS: run in processes that have neither.

A finder at the head of `sys.meta_path` makes the named packages impossible to import, as
on a robot (no torch) or a plain machine (no ROS).
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

TORCH = ['torch', 'torchvision', 'stereo_kd_training', 'tensorboard', 'accelerate', 'onnx']
ROS = [
    'rclpy',
    'sensor_msgs',
    'stereo_msgs',
    'std_msgs',
    'std_srvs',
    'diagnostic_msgs',
    'message_filters',
    'cv_bridge',
    'launch',
    'launch_ros',
]

WITHOUT = """
import sys


class Absent:
    names = {names!r}

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.partition('.')[0] in cls.names:
            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)


sys.meta_path.insert(0, Absent)
"""

PAIR_TO_DEPTH = """
import numpy as np
from stereo_kd_ros.baselines import Sgbm
from stereo_kd_ros.camera import StereoCamera
from stereo_kd_ros.metrics import disparity_metrics
from stereo_kd_ros.pairing import PairMatcher
from stereo_kd_ros.procedural import render_pair

sample = render_pair(3, height=128, width=256, max_disparity_px=32.0)
matcher = PairMatcher()
matcher.add_left(1, sample.left)
pair = matcher.add_right(1, sample.right)
disparity = Sgbm(max_disparity_px=48).dense(pair.left, pair.right)
camera = StereoCamera.from_intrinsics(fx=200.0, baseline_m=0.1, width=256, height=128)
depth = camera.disparity_to_depth(disparity)
assert depth.shape == (128, 256) and depth.dtype == np.float32
print(disparity_metrics(disparity, sample.disparity).epe_px)
"""


def run_without(absent: list[str], script: str, *arguments: object) -> str:
    """Run `script` in a Python that cannot import `absent`; return what it printed."""
    path = os.pathsep.join(
        [str(REPOSITORY), str(REPOSITORY / 'training'), os.environ.get('PYTHONPATH', '')]
    )
    done = subprocess.run(
        [sys.executable, '-c', WITHOUT.format(names=absent) + script, *map(str, arguments)],
        env={**os.environ, 'PYTHONPATH': path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def module_names(root: Path, package: str) -> list[str]:
    names = []
    for path in sorted((root / package).rglob('*.py')):
        parts = path.relative_to(root).with_suffix('').parts
        names.append('.'.join(parts[:-1] if parts[-1] == '__init__' else parts))
    return names


RUNTIME = module_names(REPOSITORY, 'stereo_kd_ros')
PURE = [name for name in RUNTIME if not name.startswith('stereo_kd_ros.node')]
IMPORT_ALL = """
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_an_absent_module_is_really_absent():
    script = """
try:
    import numpy.linalg
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert run_without(['numpy'], script).strip() == 'numpy'


def test_importing_the_package_is_light():
    script = """
import stereo_kd_ros
print([name for name in ('numpy', 'cv2', 'onnxruntime', 'rclpy', 'torch') if name in sys.modules])
"""
    assert run_without([], script).strip() == '[]'


def test_pure_modules_import_without_torch_and_ros():
    run_without(TORCH + ROS, IMPORT_ALL, *PURE)


def test_the_node_imports_without_torch():
    if not importlib.util.find_spec('rclpy'):
        pytest.skip('rclpy is not installed')
    run_without(TORCH, IMPORT_ALL, *RUNTIME)


def test_training_imports_without_ros():
    if not importlib.util.find_spec('torch'):
        pytest.skip('torch is not installed')
    run_without(ROS, IMPORT_ALL, *module_names(REPOSITORY / 'training', 'stereo_kd_training'))


def test_a_pair_becomes_depth_without_torch_and_ros():
    epe_px = float(run_without(TORCH + ROS, PAIR_TO_DEPTH))
    assert 0 < epe_px < 8


def test_the_commands_explain_themselves_without_torch_and_ros():
    listed = run_without(
        TORCH + ROS,
        """
import json
import typer
from stereo_kd_ros.commands.main import app
command = typer.main.get_command(app)
for name in command.commands:
    try:
        command.main([name, '--help'], prog_name='stereo-kd', standalone_mode=False)
    except SystemExit as end:
        assert not end.code, name
print(json.dumps(sorted(command.commands)))
""",
    )
    commands = json.loads(listed.splitlines()[-1])
    assert {'infer', 'make-bag', 'play', 'run', 'demo'} <= set(commands)
