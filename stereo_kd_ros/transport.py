# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Finds the files installed beside the package and hands Fast DDS the profile for camera images.

With its defaults Fast DDS loses most best-effort images above half a megabyte between two
processes. `config/fastdds.xml` mends that, and Fast DDS reads it from an environment variable when
a process makes its first participant: call `apply_fastdds_profile` before `rclpy.init`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, MutableMapping
from importlib import metadata
from pathlib import Path

# Fast DDS 3 (Kilted on) reads the first, Fast DDS 2 (Humble, Jazzy) the second.
PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
FAST_DDS_2_DISTRIBUTIONS = ('humble', 'iron', 'jazzy')
FIRST_RMW_ON_FAST_DDS_3 = 9


class TransportError(RuntimeError):
    """A file that is installed with the package cannot be found."""


def share_directories(environ: Mapping[str, str] | None = None) -> Iterator[Path]:
    """Yields where `config/` and `launch/` may lie: a source checkout, then installed trees."""
    environ = os.environ if environ is None else environ
    package = Path(__file__).resolve().parent
    yield package.parent
    prefixes = [parent for parent in package.parents if (parent / 'share').is_dir()]
    prefixes += [Path(p) for p in environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    prefixes.append(Path(sys.prefix))
    for prefix in prefixes:
        yield prefix / 'share' / 'stereo_kd_ros'


def share_file(relative: str, environ: Mapping[str, str] | None = None) -> Path:
    """Returns the path of a file that ships with the package, such as `config/stereo.yaml`.

    Raises:
        TransportError: no source checkout and no installed tree has it.
    """
    searched = list(dict.fromkeys(share_directories(environ)))
    for directory in searched:
        if (directory / relative).is_file():
            return directory / relative
    places = ', '.join(str(directory) for directory in searched)
    raise TransportError(
        f'{relative} of stereo_kd_ros was not found in any of: {places}; '
        'reinstall the package, or source the workspace it was built in'
    )


def profile_variable(environ: Mapping[str, str]) -> str:
    """Returns the variable that this machine's Fast DDS reads.

    Setting the other one too would do no harm but for a warning on every start.
    """
    fast_dds_3, fast_dds_2 = PROFILE_VARIABLES
    distribution = environ.get('ROS_DISTRO')
    if distribution:
        return fast_dds_2 if distribution in FAST_DDS_2_DISTRIBUTIONS else fast_dds_3
    try:
        major = int(metadata.version('ros-rmw-fastrtps-cpp').split('.')[0])
    except (metadata.PackageNotFoundError, ValueError):
        return fast_dds_3
    return fast_dds_3 if major >= FIRST_RMW_ON_FAST_DDS_3 else fast_dds_2


def apply_fastdds_profile(environ: MutableMapping[str, str] | None = None) -> dict[str, str]:
    """Points Fast DDS at the profile for images unless the user chose a profile of their own.

    Args:
        environ: the environment to change; `os.environ` by default.

    Returns:
        The variables that were set; empty when the user had set one, or the RMW is not Fast DDS.

    Raises:
        TransportError: the profile is not installed.
    """
    environ = os.environ if environ is None else environ
    other_rmw = 'fastrtps' not in environ.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp')
    if other_rmw or any(environ.get(variable) for variable in PROFILE_VARIABLES):
        return {}
    profile = str(share_file('config/fastdds.xml', environ))
    chosen = {profile_variable(environ): profile}
    environ.update(chosen)
    return chosen
