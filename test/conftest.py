# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What all tests share: where the repository and the real data lie, and calm threads.

Tests on real data take the fixture `data_dir`, which skips with a reason where the data
is absent. Tests under `node/` and `hostile/` need rclpy and those under `training/` need
torch; without them they are left out, which the report's header says.

Tests under `node/` and `hostile/` run real nodes, processes and DDS on machines that others use
too. They wait for states and assert no times, but a starved process can still lose a lease or a
message that nothing sends again. So a failing one is run again, twice at most: the summary lists
each such run as RERUN, and what is broken fails all three.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

# Before numpy, OpenCV and torch are imported: what the tests compute is small, and threads that
# wait for each other on cores that others use too take several times as long as one.
for variable in ('OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS'):
    os.environ.setdefault(variable, '1')
# A console keeps the width that it finds when it is made; tests give theirs when they run.
os.environ.pop('COLUMNS', None)
# Node tests talk to themselves only, whatever else runs on this machine.
os.environ.setdefault('ROS_DOMAIN_ID', str(os.getpid() % 100 + 1))
os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')

# What an earlier run measured on this machine must not decide what a test sees.
_CACHE = tempfile.TemporaryDirectory(prefix='stereo_kd_cache_')
os.environ['STEREO_KD_CACHE'] = _CACHE.name

import pytest
from hypothesis import HealthCheck, settings

REPOSITORY = Path(__file__).resolve().parents[1]

settings.register_profile(
    'default',
    deadline=None,
    max_examples=50,
    derandomize=True,
    # A busy machine makes it slow, whatever the test does.
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile('default')

NEEDS = {'node': 'rclpy', 'hostile': 'rclpy', 'training': 'torch'}
ABSENT = {
    folder: module for folder, module in NEEDS.items() if not importlib.util.find_spec(module)
}
collect_ignore = sorted(ABSENT)

LIVE = ('node', 'hostile')
RERUNS, RERUN_DELAY_S = 2, 2
# Per run of a test, more than ten times what the slowest of them takes on an idle machine.
LIVE_TIMEOUT_S = 600


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Gives live tests a second and third chance, and each of those its own time-out."""
    for item in items:
        if item.path.parent.name not in LIVE:
            continue
        if config.pluginmanager.hasplugin('rerunfailures'):
            item.add_marker(pytest.mark.flaky(reruns=RERUNS, reruns_delay=RERUN_DELAY_S))
        if config.pluginmanager.hasplugin('timeout') and not item.get_closest_marker('timeout'):
            # Only the function: otherwise one timer would run over all runs of a test.
            item.add_marker(pytest.mark.timeout(LIVE_TIMEOUT_S, func_only=True))


def pytest_report_header() -> list[str]:
    return [f'not collected: test/{f}, as {m} is not installed' for f, m in ABSENT.items()]


@pytest.fixture(scope='session')
def repository() -> Path:
    """The root of the source tree."""
    return REPOSITORY


@pytest.fixture(scope='session')
def data_dir() -> Path:
    """Real stereo pairs with ground truth: $STEREO_KD_DATA or ../shared/data."""
    path = Path(os.environ.get('STEREO_KD_DATA', REPOSITORY.parent / 'shared' / 'data'))
    if not path.is_dir():
        pytest.skip(f'no real data at {path} (set STEREO_KD_DATA)')
    return path


@pytest.fixture(autouse=True)
def whole_floats() -> Iterator[None]:
    """Gives the next test its denormals back: training commands flush them to zero for speed."""
    yield
    if torch := sys.modules.get('torch'):
        torch.set_flush_denormal(False)
