# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is said of the machine follows from the environment and the files that it names."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tiny_models import write_block_matcher

from stereo_kd_ros import surroundings
from stereo_kd_ros.doctor import DisparityRange
from stereo_kd_ros.surroundings import (
    Fact,
    ModelRate,
    installed_facts,
    measure_rate,
    parameter_file,
    profile_segment_bytes,
    provider_facts,
    suggested_parameters,
    transport_facts,
)


def named(facts: list[Fact], name: str) -> Fact:
    return next(fact for fact in facts if fact.name == name)


def test_the_shipped_profile_has_room_for_images(repository: Path) -> None:
    assert profile_segment_bytes(repository / 'config/fastdds.xml') == 64 * 2**20


def test_without_a_profile_the_line_to_type_is_given() -> None:
    fact = named(transport_facts({'ROS_DISTRO': 'humble'}), 'fast dds profile')

    assert fact.severity == 'warn'
    assert 'half a megabyte' in fact.value
    assert fact.remedy.startswith('export FASTRTPS_DEFAULT_PROFILES_FILE=/')


def test_a_profile_of_images_is_fine(repository: Path) -> None:
    profile = str(repository / 'config/fastdds.xml')
    facts = transport_facts({'FASTDDS_DEFAULT_PROFILES_FILE': profile})
    assert named(facts, 'fast dds profile').severity == 'ok'


@pytest.mark.parametrize(
    ('content', 'severity'),
    [
        (None, 'error'),
        ('<dds><segment_size>1000</segment_size></dds>', 'warn'),
        ('<dds/>', 'warn'),
        ('not xml', 'warn'),
    ],
)
def test_a_profile_that_does_not_help_is_named(
    tmp_path: Path, content: str | None, severity: str
) -> None:
    profile = tmp_path / 'own.xml'
    if content is not None:
        profile.write_text(content)
    facts = transport_facts({'FASTDDS_DEFAULT_PROFILES_FILE': str(profile)})

    assert named(facts, 'fast dds profile').severity == severity
    assert 'own.xml' in named(facts, 'fast dds profile').value


def test_another_rmw_needs_no_fast_dds_profile() -> None:
    facts = transport_facts({'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'})

    assert 'rmw_cyclonedds_cpp' in named(facts, 'rmw').value
    assert [fact.name for fact in facts] == ['rmw', 'udp receive buffer']


@pytest.mark.parametrize(('text', 'severity'), [('212992\n', 'warn'), ('16777216\n', 'ok')])
def test_the_receive_buffer_is_held_against_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, severity: str
) -> None:
    file = tmp_path / 'rmem_max'
    file.write_text(text)
    monkeypatch.setattr(surroundings, '_RMEM_MAX', file)
    facts = transport_facts({'RMW_IMPLEMENTATION': 'rmw_cyclonedds_cpp'})
    assert named(facts, 'udp receive buffer').severity == severity


def test_python_and_libraries_are_named() -> None:
    facts = installed_facts({})
    assert {'python', 'numpy', 'onnxruntime', 'ros'} <= {fact.name for fact in facts}


def test_providers_are_really_opened(tmp_path: Path) -> None:
    model = tmp_path / 'matcher.onnx'
    write_block_matcher(model, max_disparity_px=24)
    facts = provider_facts(model)

    assert named(facts, 'cpu').severity == 'ok'
    assert {fact.name for fact in facts} == {'tensorrt', 'cuda', 'openvino', 'cpu'}
    for fact in facts:
        assert fact.value


def test_a_model_is_timed_and_a_broken_one_says_why(tmp_path: Path) -> None:
    good, bad = tmp_path / 'good.onnx', tmp_path / 'bad.onnx'
    write_block_matcher(good, max_disparity_px=24)
    bad.write_bytes(b'nothing')

    rate = measure_rate(good, 64, 96)
    assert rate.model == 'good'
    assert rate.milliseconds > 0
    assert rate.rate_hz == pytest.approx(1000 / rate.milliseconds)
    assert 'bad.onnx' in measure_rate(bad, 64, 96).error


RATES = [
    ModelRate('kestrel_large', 'cpu', 400.0),
    ModelRate('kestrel_nano', 'cpu', 20.0),
    ModelRate('kestrel_small', 'cpu', 80.0),
    ModelRate('broken', '', math.nan, 'damaged'),
]


@pytest.mark.parametrize(
    ('wanted_hz', 'model', 'smaller'),
    [
        (2.0, 'kestrel_large', 'kestrel_nano'),
        (10.0, 'kestrel_small', 'kestrel_nano'),
        (30.0, 'kestrel_nano', None),
        (100.0, 'kestrel_nano', None),
    ],
)
def test_the_best_model_that_keeps_up_is_suggested(
    wanted_hz: float, model: str, smaller: str | None
) -> None:
    parameters = suggested_parameters(RATES, wanted_hz)

    assert parameters['model'] == model
    assert parameters.get('auto_model') == smaller
    assert parameters['expected_frequency'] == min(wanted_hz, 50.0)


def test_what_the_bag_showed_becomes_parameters() -> None:
    span = DisparityRange(2.0, 50.0, 0.0, 80.0, 0.6, 15.0)
    parameters = suggested_parameters([], 10.0, span, -4.0, (752, 480))

    assert parameters == {
        'warm_up_width': 752,
        'warm_up_height': 480,
        'approximate_sync': True,
        'approximate_sync_tolerance_seconds': 0.006,
        'min_disparity': 0.0,
        'max_disparity': 80.0,
    }


def test_the_parameter_file_is_yaml_with_decimal_points() -> None:
    text = parameter_file({'model': 'small', 'max_disparity': 80.0, 'lazy': True, 'threads': 2})

    assert text.splitlines() == [
        '/**:',
        '  ros__parameters:',
        '    model: small',
        '    max_disparity: 80.0',
        '    lazy: true',
        '    threads: 2',
    ]


def test_suggested_names_are_parameters_of_the_node(repository: Path) -> None:
    span = DisparityRange(2.0, 50.0, 0.0, 80.0, 0.6, 15.0)
    known = (repository / 'config/stereo.yaml').read_text()
    for name in suggested_parameters(RATES, 10.0, span, 4.0, (640, 480)):
        assert f'\n    {name}: ' in known
