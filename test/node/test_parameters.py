# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parameters: one table, the same in code, YAML and settings; bad values are refused with a
reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import rclpy
import yaml
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter
from ros_rig import Rig

from stereo_kd_ros.node.parameters import (
    PARAMETERS,
    SPECS,
    ParameterError,
    Settings,
    declare_parameters,
)


@pytest.fixture
def context() -> Iterator[Context]:
    context = Context()
    rclpy.init(args=[], context=context)
    yield context
    rclpy.shutdown(context=context)


def declared(context: Context, **overrides: Any) -> Settings:
    node = Node(
        'node',
        context=context,
        parameter_overrides=[Parameter(name, value=value) for name, value in overrides.items()],
    )
    try:
        return declare_parameters(node)
    finally:
        node.destroy_node()


def test_settings_hold_exactly_the_table() -> None:
    assert [field.name for field in fields(Settings)] == [spec.name for spec in PARAMETERS]


def test_yaml_holds_exactly_the_table_at_its_defaults(repository: Path) -> None:
    text = (repository / 'config/stereo.yaml').read_text()
    values = yaml.safe_load(text)['/**']['ros__parameters']
    assert values == {spec.name: spec.default for spec in PARAMETERS}
    for name, value in values.items():
        assert type(value) is type(SPECS[name].default), name


def test_yaml_marks_what_is_dynamic(repository: Path) -> None:
    """The mark that follows the comment above a key, up to the next mark, is the key's."""
    mark = ''
    for line in (
        (repository / 'config/stereo.yaml').read_text().split('ros__parameters:')[1].split('\n')
    ):
        for candidate in ('[dynamic]', '[at configure]'):
            if line.strip().startswith('#') and line.endswith(candidate):
                mark = candidate
        name = line.split(':')[0].strip()
        if name in SPECS:
            assert mark == ('[dynamic]' if SPECS[name].dynamic else '[at configure]'), name


def test_descriptors_carry_unit_range_and_mark() -> None:
    descriptor = SPECS['max_age'].descriptor()
    assert descriptor.description.endswith('[s] [dynamic]')
    (span,) = descriptor.floating_point_range
    assert (span.from_value, span.to_value) == (0.0, 60.0)
    assert 'cuda' in SPECS['provider'].descriptor().additional_constraints
    (span,) = SPECS['queue_size'].descriptor().integer_range
    assert (span.from_value, span.to_value) == (1, 1000)


def test_defaults_are_accepted(context: Context) -> None:
    settings = declared(context)
    assert settings.max_depth == math.inf
    assert settings.tolerance_ns == 0


def test_tolerance_counts_only_with_approximate_sync(context: Context) -> None:
    settings = declared(context, approximate_sync=True, approximate_sync_tolerance_seconds=0.005)
    assert settings.tolerance_ns == 5_000_000


@pytest.mark.parametrize(
    ('overrides', 'said'),
    [
        ({'queue_size': 0}, 'queue_size'),
        ({'provider': 'npu'}, 'expected one of auto, tensorrt'),
        ({'precision': 'int8'}, 'expected one of auto, fp32'),
        ({'spinning': 'on'}, 'expected one of auto, always, never'),
        ({'depth_encoding': 'mono16'}, 'expected one of 32FC1'),
        ({'max_depth': 1.0, 'min_depth': 2.0}, 'greater than min_depth'),
        ({'max_disparity': 5.0, 'min_disparity': 9.0}, 'greater than min_disparity'),
        ({'max_depth': 'far'}, 'max_depth'),
        ({'max_depth': math.nan}, 'max_depth'),
        ({'model': ''}, 'model is empty'),
    ],
)
def test_bad_values_are_refused_at_start(
    context: Context, overrides: dict[str, Any], said: str
) -> None:
    with pytest.raises(ParameterError, match=said):
        declared(context, **overrides)


@pytest.mark.parametrize(('spinning', 'spins'), [('always', True), ('never', False)])
def test_the_engine_is_opened_as_the_parameters_say(
    block_matcher: str, spinning: str, spins: bool
) -> None:
    with Rig(model=block_matcher, spinning=spinning, precision='fp32', threads=1) as rig:
        engine = rig.node.models.current().engine
        assert (engine.spinning, engine.precision, engine.threads) == (spins, 'fp32', 1)


def test_a_precision_the_provider_lacks_stops_the_start(block_matcher: str) -> None:
    with Rig(start=False, model=block_matcher, precision='bf16') as rig:
        assert not rig.node.start()
        assert 'bf16 needs the provider openvino' in rig.node.start_error


def test_changes_while_running(block_matcher: str) -> None:
    with Rig(model=block_matcher) as rig:

        def change(name: str, value: Any) -> Any:
            (result,) = rig.node.set_parameters([Parameter(name, value=value)])
            return result

        assert change('max_depth', 8.0).successful
        assert rig.node.settings.max_depth == 8.0

        refused = change('queue_size', 3)
        assert not refused.successful
        assert 'takes effect at configure' in refused.reason
        assert change('queue_size', 10).successful, 'setting what it is already is no change'

        refused = change('min_depth', 9.0)
        assert not refused.successful
        assert 'greater than min_depth' in refused.reason
        assert not change('confidence_threshold', 1.5).successful
        assert (rig.node.settings.min_depth, rig.node.settings.confidence_threshold) == (0.0, 0.0)
