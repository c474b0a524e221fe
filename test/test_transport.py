# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The Fast DDS profile is found, applied, and never put over the user's own."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from stereo_kd_ros import transport
from stereo_kd_ros.transport import PROFILE_VARIABLES, TransportError, apply_fastdds_profile

XML = {'dds': 'http://www.eprosima.com'}


@pytest.mark.parametrize(
    ('distribution', 'variable'),
    [
        ('humble', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
        ('jazzy', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
        ('kilted', 'FASTDDS_DEFAULT_PROFILES_FILE'),
        ('rolling', 'FASTDDS_DEFAULT_PROFILES_FILE'),
    ],
)
def test_the_variable_that_this_fast_dds_reads_is_set(distribution: str, variable: str) -> None:
    environ = {'ROS_DISTRO': distribution}
    assert list(apply_fastdds_profile(environ)) == [variable]
    assert Path(environ[variable]).is_file()


def test_without_a_distribution_exactly_one_is_set() -> None:
    assert len(apply_fastdds_profile({})) == 1


@pytest.mark.parametrize('variable', PROFILE_VARIABLES)
def test_the_users_own_profile_stays(variable: str) -> None:
    environ = {variable: '/home/me/fastdds.xml', 'ROS_DISTRO': 'kilted'}
    before = dict(environ)
    assert apply_fastdds_profile(environ) == {}
    assert environ == before


def test_another_middleware_is_left_alone() -> None:
    assert apply_fastdds_profile({'RMW_IMPLEMENTATION': 'rmw_zenoh_cpp'}) == {}


def test_segment_holds_many_full_hd_images() -> None:
    path = next(iter(apply_fastdds_profile({}).values()))
    shared_memory = ElementTree.parse(path).find('.//dds:transport_descriptor', XML)
    text = {child.tag.split('}')[1]: child.text for child in shared_memory}
    assert text['type'] == 'SHM'
    assert int(text['maxMessageSize']) >= 2 * 1920 * 1080 * 3
    assert int(text['segment_size']) >= 10 * 1920 * 1080 * 3


def test_a_file_that_is_missing_names_where_it_was_looked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(transport, 'share_directories', lambda environ: iter([tmp_path]))
    with pytest.raises(TransportError, match=str(tmp_path)):
        apply_fastdds_profile({})
