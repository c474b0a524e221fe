# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Who may import whom, read from the source: the rules that keep torch off the robot.

1. `stereo_kd_ros` never imports torch or `stereo_kd_training`.
2. Only `stereo_kd_ros/node/` and `launch/` import rclpy, message types, message_filters,
   cv_bridge or launch.
3. No circles, not even through imports inside functions.

And what is imported on a robot, `package.xml` declares or the README installs.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]

TORCH_SIDE = {
    'accelerate',
    'lightning',
    'stereo_kd_training',
    'tensorboard',
    'timm',
    'torch',
    'torch_pruning',
    'torchvision',
}
ROS_SIDE = {
    'ament_index_python',
    'builtin_interfaces',
    'cv_bridge',
    'diagnostic_msgs',
    'geometry_msgs',
    'launch',
    'launch_ros',
    'lifecycle_msgs',
    'message_filters',
    'rcl_interfaces',
    'rclpy',
    'rosbag2_py',
    'rosgraph_msgs',
    'sensor_msgs',
    'std_msgs',
    'std_srvs',
    'stereo_msgs',
}
# Not declared to rosdep: the README installs these with pip, in a virtual environment.
BY_PIP = {'onnxruntime', 'rich', 'rosbags', 'typer'}
# Imported where they are found, or with advice where they are asked for and are not.
OPTIONAL = {'matplotlib', 'onnx', 'openvino'}
KEYS = {'cv2': 'python3-opencv', 'numpy': 'python3-numpy', 'yaml': 'python3-yaml'}
"""rosdep's names of packages that are imported by another."""


def imported_names(source: str, module: str, is_package: bool = False) -> set[str]:
    """Dotted names that `source` imports at run time, anywhere in it.

    Imports under `if TYPE_CHECKING:` never run and do not count. `from a import b` yields
    both `a` and `a.b`, since b may be a module.
    """
    names: set[str] = set()
    for node in _running_nodes(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parts = module.split('.')
                kept = len(parts) - node.level + (1 if is_package else 0)
                base = '.'.join([*parts[:kept], *([node.module] if node.module else [])])
            names.add(base)
            names.update(f'{base}.{alias.name}' for alias in node.names)
        elif _is_import_module_call(node):
            names.add(node.args[0].value)
    return names


def _running_nodes(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and 'TYPE_CHECKING' in ast.unparse(child.test):
            continue
        yield from _running_nodes(child)


def _is_import_module_call(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and ast.unparse(node.func).endswith('import_module')
        and bool(node.args)
        and isinstance(node.args[0], ast.Constant)
        and isinstance(node.args[0].value, str)
    )


def modules_of(root: Path, package: str) -> dict[str, Path]:
    """Dotted module names of `package` under `root`, with their files."""
    found = {}
    for path in sorted((root / package).rglob('*.py')):
        parts = path.relative_to(root).with_suffix('').parts
        found['.'.join(parts[:-1] if parts[-1] == '__init__' else parts)] = path
    return found


def imports_of(modules: dict[str, Path]) -> dict[str, set[str]]:
    return {
        name: imported_names(path.read_text(), name, path.name == '__init__.py')
        for name, path in modules.items()
    }


def offenders(imports: dict[str, set[str]], forbidden: set[str]) -> list[str]:
    """One line per module that imports something of `forbidden`."""
    return [
        f'{module} imports {name}'
        for module, names in imports.items()
        for name in sorted(names)
        if name.split('.')[0] in forbidden
    ]


def circles(imports: dict[str, set[str]]) -> list[list[str]]:
    """Import circles among the given modules, each once, as the path that closes it.

    A package's own `__init__` is run by every import below it; only what a module names
    itself counts.
    """
    graph = {
        module: sorted(name for name in names if name in imports and name != module)
        for module, names in imports.items()
    }
    found: dict[frozenset[str], list[str]] = {}
    finished: set[str] = set()

    def visit(module: str, path: list[str]) -> None:
        if module in path:
            circle = path[path.index(module) :]
            found.setdefault(frozenset(circle), [*circle, module])
        elif module not in finished:
            for name in graph[module]:
                visit(name, [*path, module])
            finished.add(module)

    for module in graph:
        visit(module, [])
    return list(found.values())


RUNTIME = imports_of(modules_of(REPOSITORY, 'stereo_kd_ros'))
TRAINING = imports_of(modules_of(REPOSITORY / 'training', 'stereo_kd_training'))


def test_the_sources_are_found():
    assert 'stereo_kd_ros.camera' in RUNTIME
    assert 'stereo_kd_training.networks.base' in TRAINING
    assert 'torch' in TRAINING['stereo_kd_training.networks.base']


def test_the_runtime_imports_no_torch():
    assert offenders(RUNTIME, TORCH_SIDE) == []


def test_only_the_node_imports_ros():
    elsewhere = {
        module: names
        for module, names in RUNTIME.items()
        if module != 'stereo_kd_ros.node' and not module.startswith('stereo_kd_ros.node.')
    }
    assert offenders({**elsewhere, **TRAINING}, ROS_SIDE) == []


def test_launch_files_import_no_torch():
    files = {str(path): path for path in sorted((REPOSITORY / 'launch').glob('*.py'))}
    assert offenders(imports_of(files), TORCH_SIDE) == []


def test_what_is_imported_on_a_robot_is_declared_or_installed_by_the_readme():
    launch = imports_of({str(path): path for path in (REPOSITORY / 'launch').glob('*.py')})
    imported = {
        name.split('.')[0] for names in {**RUNTIME, **launch}.values() for name in names if name
    }
    needed = imported - sys.stdlib_module_names - {'stereo_kd_ros'} - OPTIONAL
    package = (REPOSITORY / 'package.xml').read_text()
    declared = re.findall('<exec_depend>(.+)</exec_depend>', package)
    assert {KEYS.get(name, name) for name in needed - BY_PIP} - set(declared) == set()
    assert needed >= {*BY_PIP, *KEYS, 'rclpy', 'launch'}
    readme = (REPOSITORY / 'README.md').read_text()
    (installed,) = re.findall('^pip install -c src/.+', readme, re.MULTILINE)
    assert set(installed.split()) >= BY_PIP


def test_pure_modules_do_not_depend_on_the_node_or_the_commands():
    inner = {
        module: names
        for module, names in RUNTIME.items()
        if module.count('.') == 1 and module.split('.')[1] not in ('node', 'commands')
    }
    outward = [
        f'{module} imports {name}'
        for module, names in inner.items()
        for name in sorted(names)
        if name.startswith(('stereo_kd_ros.node', 'stereo_kd_ros.commands'))
    ]
    assert outward == []


def test_no_circles():
    assert circles({**RUNTIME, **TRAINING}) == []


def test_an_import_inside_a_function_counts():
    source = 'def f():\n    import torch.nn\n    from rclpy.node import Node\n'
    names = imported_names(source, 'stereo_kd_ros.planted')
    assert offenders({'planted': names}, {'torch'}) == ['planted imports torch.nn']
    assert offenders({'planted': names}, {'rclpy'}) != []


def test_an_import_for_type_checking_does_not_count():
    source = 'from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch\n'
    assert offenders({'planted': imported_names(source, 'planted')}, {'torch'}) == []


@pytest.mark.parametrize(
    ('source', 'module', 'is_package', 'expected'),
    [
        ('from . import b', 'p.a', False, 'p.b'),
        ('from .b import c', 'p.a', False, 'p.b'),
        ('from .b import c', 'p', True, 'p.b'),
        ('from ..q import c', 'p.a.x', False, 'p.q'),
        ("import importlib\nimportlib.import_module('p.b')", 'p.a', False, 'p.b'),
    ],
)
def test_relative_and_computed_imports_are_resolved(source, module, is_package, expected):
    assert expected in imported_names(source, module, is_package)


def test_a_planted_circle_is_found_once():
    imports = {'a': {'b'}, 'b': {'c', 'numpy'}, 'c': {'a'}, 'd': {'a'}}
    assert circles(imports) == [['a', 'b', 'c', 'a']]
