# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The package really installs: built by pip and by colcon from a copy of this source tree.

Nothing is downloaded: setuptools and colcon come with the `test` extra (or with ROS 2),
and dependencies are not resolved.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import stereo_kd_ros
from stereo_kd_ros.model import resolve_model

REPOSITORY = Path(__file__).resolve().parents[1]
SOURCES = (
    *('package.xml', 'setup.py', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'),
    *('stereo_kd_ros', 'training', 'resource', 'launch', 'config', 'models'),
)
PACKAGES = ('stereo_kd_ros', 'stereo_kd_training')
NEEDED_KEYS = {
    'rclpy',
    'sensor_msgs',
    'stereo_msgs',
    'diagnostic_msgs',
    'message_filters',
    'cv_bridge',
    'launch',
    'launch_ros',
    'python3-numpy',
    'python3-opencv',
}
MISSING = [name for name in ('setuptools', 'wheel') if not importlib.util.find_spec(name)]
CANNOT_BUILD = f'{" and ".join(MISSING)} not installed' if MISSING else ''
COLCON = shutil.which('colcon', path=f'{Path(sys.executable).parent}{os.pathsep}{os.defpath}')


def run(*command: object, cwd: Path, **variables: str) -> str:
    """Run `command` with neither of our packages on its path; return what it printed."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ('MAKEFLAGS', 'MAKELEVEL', 'MFLAGS')
    }
    environment['PYTHONPATH'] = os.pathsep.join(
        entry
        for entry in os.environ.get('PYTHONPATH', '').split(os.pathsep)
        if entry and not any(Path(entry, package).exists() for package in PACKAGES)
    )
    environment['PATH'] = f'{Path(sys.executable).parent}{os.pathsep}{environment["PATH"]}'
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**environment, **variables},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, f'{command}:\n{done.stdout[-4000:]}'
    return done.stdout


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A copy of the sources alone: builds leave their droppings in it."""
    copy = tmp_path / 'workspace' / 'src' / 'stereo_kd_ros'
    copy.mkdir(parents=True)
    for path in (REPOSITORY / name for name in SOURCES):
        if path.is_dir():
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns('__pycache__'))
        else:
            shutil.copy(path, copy)
    return copy


def modules_in_source() -> set[str]:
    """Files of both packages as an installation should hold them."""
    roots = (REPOSITORY, REPOSITORY / 'training')
    return {
        path.relative_to(root).as_posix()
        for root, package in zip(roots, PACKAGES)
        for path in (root / package).rglob('*.py')
    }


def shared_files() -> set[str]:
    """What a launch file or a command looks for beside the code, relative to the share folder."""
    patterns = ('launch/*.launch.py', 'config/**/*.*', 'models/*.onnx')
    return {
        path.relative_to(REPOSITORY).as_posix()
        for pattern in patterns
        for path in REPOSITORY.glob(pattern)
    }


def test_versions_agree():
    xml = (REPOSITORY / 'package.xml').read_text()
    assert re.search('<version>(.+)</version>', xml)[1] == stereo_kd_ros.__version__


def test_package_xml_is_valid_and_names_its_dependencies():
    package = pytest.importorskip('catkin_pkg.package')
    parsed = package.parse_package(str(REPOSITORY / 'package.xml'))
    assert parsed.get_build_type() == 'ament_python'
    assert parsed.package_format == 3
    assert {dependency.name for dependency in parsed.exec_depends} >= NEEDED_KEYS


def test_torch_is_constrained_to_one_version():
    lines = (REPOSITORY / 'constraints.txt').read_text().splitlines()
    assert [line for line in lines if re.match(r'torch *[=<>~]', line)] == ['torch==2.13.0']


def test_the_model_that_everything_starts_with_is_shipped():
    settings = (REPOSITORY / 'config' / 'stereo.yaml').read_text()
    model = re.search(r'^ *model: *(\S+)', settings, re.MULTILINE)[1]
    assert resolve_model(model).parent == REPOSITORY / 'models'
    assert f'MODEL ?= {model}\n' in (REPOSITORY / 'Makefile').read_text()


def test_the_licence_is_apache_2_in_full():
    text = (REPOSITORY / 'LICENSE').read_text()
    assert 'Apache License' in text
    assert 'END OF TERMS AND CONDITIONS' in text


@pytest.mark.skipif(bool(CANNOT_BUILD), reason=CANNOT_BUILD)
def test_a_wheel_holds_both_packages_and_the_shared_files(source: Path, tmp_path: Path):
    run(
        *(sys.executable, '-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '.'),
        *('--wheel-dir', tmp_path),
        cwd=source,
    )
    (wheel,) = tmp_path.glob('stereo_kd_ros-*.whl')
    names = zipfile.ZipFile(wheel).namelist()
    assert {name for name in names if name.endswith('.py') and '.data/' not in name} == (
        modules_in_source()
    )
    shared = {name.split('.data/data/')[1] for name in names if '.data/data/' in name}
    expected = {f'share/stereo_kd_ros/{name}' for name in {'package.xml', *shared_files()}}
    assert shared >= expected | {'share/ament_index/resource_index/packages/stereo_kd_ros'}
    assert {f'{package}/py.typed' for package in PACKAGES} <= set(names)


@pytest.mark.skipif(bool(CANNOT_BUILD), reason=CANNOT_BUILD)
def test_an_editable_install_follows_the_source(source: Path, tmp_path: Path):
    prefix = tmp_path / 'prefix'
    run(
        *(sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-build-isolation'),
        *('--ignore-installed', '--prefix', prefix, '-e', '.'),
        cwd=source,
    )
    (site,) = prefix.rglob('*.dist-info')
    # -I -S: without PYTHONPATH and site-packages, which may hold another install.
    where = run(
        *(sys.executable, '-I', '-S', '-c'),
        f'import site; site.addsitedir({str(site.parent)!r})\n'
        'import stereo_kd_ros, stereo_kd_training\n'
        'print(stereo_kd_ros.__file__, stereo_kd_training.__file__)',
        cwd=tmp_path,
    )
    assert where.split() == [
        str(source / 'stereo_kd_ros' / '__init__.py'),
        str(source / 'training' / 'stereo_kd_training' / '__init__.py'),
    ]
    assert {'stereo-kd', 'stereo-kd-train', 'stereo_node'} <= {
        path.name for path in (prefix / 'bin').iterdir()
    }


@pytest.mark.skipif(COLCON is None, reason='colcon is not installed')
def test_colcon_sees_a_ros_package(source: Path):
    assert '(ros.ament_python)' in run(COLCON, 'list', cwd=source.parents[1])


@pytest.mark.skipif(COLCON is None, reason='colcon is not installed')
@pytest.mark.parametrize('options', [[], ['--symlink-install']], ids=['copied', 'symlinked'])
def test_colcon_builds_a_workspace(source: Path, options: list[str]):
    workspace = source.parents[1]
    run(COLCON, 'build', *options, cwd=workspace)
    installed = workspace / 'install' / 'stereo_kd_ros'
    where = run(
        *('bash', '-c'),
        f'source {workspace}/install/setup.bash && exec {sys.executable} -c "'
        'import os, stereo_kd_ros, stereo_kd_training; '
        'print(stereo_kd_ros.__file__, stereo_kd_training.__file__, '
        "os.environ['AMENT_PREFIX_PATH'])\"",
        cwd=workspace.parent,
    )
    *files, prefixes = where.splitlines()[-1].split()
    assert all(Path(file).is_relative_to(workspace) for file in files), files
    if options:
        assert Path(files[0]).resolve() == source / 'stereo_kd_ros' / '__init__.py'
    assert str(installed) in prefixes.split(os.pathsep)
    # What `ros2 run` and `ros2 launch` look for.
    assert os.access(installed / 'lib' / 'stereo_kd_ros' / 'stereo_node', os.X_OK)
    share = installed / 'share'
    assert (share / 'ament_index/resource_index/packages/stereo_kd_ros').is_file()
    missing = {name for name in shared_files() if not (share / 'stereo_kd_ros' / name).is_file()}
    assert not missing


@pytest.mark.skipif(COLCON is None, reason='colcon is not installed')
def test_colcon_test_runs_the_tests(source: Path):
    (source / 'test').mkdir()
    (source / 'test' / 'test_one.py').write_text(
        'import stereo_kd_ros\n\n\ndef test_one():\n    assert stereo_kd_ros.__version__\n'
    )
    workspace = source.parents[1]
    run(COLCON, 'build', cwd=workspace)
    run(COLCON, 'test', '--return-code-on-test-failure', cwd=workspace)
    assert 'Summary: 1 test, 0 errors, 0 failures' in run(COLCON, 'test-result', cwd=workspace)


@pytest.mark.skipif(shutil.which('make') is None, reason='make is not installed')
class TestMakefile:
    """The two commands of the README, as far as they go without building an environment."""

    def test_the_demo_environment_is_made_without_the_training_extra(self, tmp_path: Path):
        plan = run('make', '-n', 'demo', f'VENV={tmp_path}/venv', cwd=REPOSITORY, ROS_DISTRO='')
        assert "-e '.[ros,cpu]'" in plan
        assert ',train' not in plan

    def test_every_target_is_planned(self, tmp_path: Path):
        for target in ('env', 'demo', 'test', 'lint', 'accuracy', 'fuzz', 'soak', 'help'):
            run('make', '-n', target, f'VENV={tmp_path}/venv', cwd=REPOSITORY, ROS_DISTRO='')

    @pytest.mark.parametrize(
        ('target', 'more', 'said'),
        [
            ('bench', ',sgbm-hh', '--json bench.json'),
            ('bench-check', '', '--check benchmarks/baselines'),
        ],
    )
    def test_benchmarks_need_no_torch_and_take_the_engines_providers(
        self, tmp_path: Path, target: str, more: str, said: str
    ):
        hitnet = tmp_path / 'weights' / 'hitnet' / 'hitnet_eth3d.onnx'
        hitnet.parent.mkdir(parents=True)
        hitnet.touch()
        for engine, providers in (('cpu', 'cpu'), ('gpu', 'tensorrt,cuda,cpu')):
            plan = run(
                *('make', '-n', target, f'VENV={tmp_path}/venv', f'ENGINE={engine}'),
                f'STEREO_KD_DATA={tmp_path}',
                cwd=REPOSITORY,
                ROS_DISTRO='',
            )
            peers = f'sgbm-3way,bm,hitnet={hitnet}{more}'
            assert f'bench --providers {providers} --peers {peers} ' in plan
            assert said in plan
            assert ',train' not in plan

    def test_live_tests_have_the_machine_to_themselves(self, tmp_path: Path):
        options = ('make', '-n', 'test', f'VENV={tmp_path}/venv')
        plan = run(*options, cwd=REPOSITORY, ROS_DISTRO='')
        live = plan.index('-m pytest test/node test/hostile;')
        assert live < plan.index('-m pytest -n 2 ')
        assert '--ignore=test/node --ignore=test/hostile test;' in plan
        plan = run(*options, 'PYTEST_ARGS=test/test_camera.py', cwd=REPOSITORY, ROS_DISTRO='')
        assert '-m pytest test/test_camera.py;' in plan and '-n 2' not in plan

    def test_jazzy_has_its_own_constraints(self, tmp_path: Path):
        plan = run(
            *('make', '-n', 'env', 'ROS_SET=jazzy', f'VENV={tmp_path}/venv'),
            cwd=REPOSITORY,
            ROS_DISTRO='',
        )
        assert '-c constraints-jazzy.txt' in plan

    def test_a_missing_python_is_named_with_its_cure(self, tmp_path: Path):
        done = subprocess.run(
            ['make', 'env', 'PYTHON=no-such-python', f'VENV={tmp_path}/venv'],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
        )
        assert done.returncode != 0
        assert 'no no-such-python' in done.stderr
        assert 'apt-get install python3' in done.stderr


class TestPreflight:
    """What the machine lacks is named together with the command that mends it."""

    @pytest.fixture
    def preflight(self):
        path = REPOSITORY / 'tools' / 'preflight.py'
        spec = importlib.util.spec_from_file_location('preflight', path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def test_an_old_python_can_read_it(self):
        source = (REPOSITORY / 'tools' / 'preflight.py').read_text()
        ast.parse(source, feature_version=(3, 6))

    def test_an_old_python_is_refused(self, preflight, monkeypatch, capsys):
        monkeypatch.setattr(preflight.sys, 'version_info', (3, 8, 10))
        monkeypatch.setattr(preflight.shutil, 'which', lambda name: None)
        assert preflight.main(['check']) == 1
        message = capsys.readouterr().err
        assert 'Python 3.10 or newer is needed' in message
        assert 'apt-get install' in message

    def test_a_newer_python_on_the_machine_is_suggested(self, preflight, monkeypatch):
        monkeypatch.setattr(preflight.sys, 'version_info', (3, 8, 10))
        monkeypatch.setattr(
            preflight.shutil, 'which', lambda name: name if name == 'python3.11' else None
        )
        assert 'make PYTHON=python3.11' in preflight.version_problem()

    def test_debians_missing_venv_is_named(self, preflight, monkeypatch, capsys):
        monkeypatch.setattr(
            preflight.importlib.util, 'find_spec', lambda name: None if name == 'ensurepip' else 1
        )
        assert preflight.main(['check']) == 1
        version = f'{sys.version_info[0]}.{sys.version_info[1]}'
        assert f'sudo apt-get install python{version}-venv' in capsys.readouterr().err

    def test_a_half_sourced_ros_is_named(self, preflight, monkeypatch):
        monkeypatch.setenv('ROS_DISTRO', 'jazzy')
        assert 'cannot import rclpy' in preflight.ros_problem(sourced=False)
        assert preflight.ros_problem(sourced=True) is None

    def test_a_machine_without_wheels_is_named(self, preflight, monkeypatch):
        monkeypatch.delenv('ROS_DISTRO', raising=False)
        monkeypatch.setattr(preflight.platform, 'machine', lambda: 'aarch64')
        assert 'install ROS 2' in preflight.ros_problem(sourced=False)

    def test_numpy_keeps_the_major_version_that_ros_was_built_for(self, preflight, monkeypatch):
        numpy = pytest.importorskip('numpy')
        monkeypatch.setattr(numpy, '__version__', '1.26.4')
        assert 'numpy<2' in preflight.ros_constraints()
