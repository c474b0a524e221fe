# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Says what this machine lacks before `make` builds an environment, and how to mend it.

Run by the Makefile with the Python that the environment will be made from, which may be
an old one: this file keeps to the language of Python 3.6.

    preflight.py check [--sourced-ros]   exit 0, or 1 with one line per problem
    preflight.py ros-constraints         pip constraints that keep a sourced ROS 2 working
"""

import importlib.util
import os
import platform
import shutil
import sys

OLDEST = (3, 10)
NEWEST_TRIED = (3, 14)


def dotted(version):
    return '.'.join(str(part) for part in version)


def version_problem():
    """A too old Python, with the name of a newer one where the machine has it."""
    if sys.version_info[:2] >= OLDEST:
        return None
    message = (
        f'Python {dotted(OLDEST)} or newer is needed, '
        f'{sys.executable} is {dotted(sys.version_info[:2])}'
    )
    for minor in range(NEWEST_TRIED[1], OLDEST[1] - 1, -1):
        if shutil.which(f'python3.{minor}'):
            return f'{message}; this machine has a newer one: make PYTHON=python3.{minor} …'
    return (
        f'{message}; install one (Debian 12+, Ubuntu 22.04+: '
        'sudo apt-get install python3 python3-venv) and name it: make PYTHON=python3.12 …'
    )


def venv_problem():
    """Debian and Ubuntu ship Python without the parts that make an environment."""
    missing = [name for name in ('venv', 'ensurepip') if not importlib.util.find_spec(name)]
    if not missing:
        return None
    return (
        f'{sys.executable} lacks {" and ".join(missing)}: '
        f'sudo apt-get install python{dotted(sys.version_info[:2])}-venv'
    )


def ros_problem(sourced):
    """ROS 2 is half there, or it is not and no wheel of it exists for this machine."""
    distribution = os.environ.get('ROS_DISTRO')
    if sourced:
        return None
    if distribution:
        return (
            f'ROS_DISTRO={distribution} is set but {sys.executable} cannot import rclpy: use the '
            'Python that ROS 2 was built for (make PYTHON=/usr/bin/python3 …), or a shell that '
            'has not sourced ROS'
        )
    if sys.platform != 'linux' or platform.machine() != 'x86_64':
        return (
            'without a sourced ROS 2, rclpy comes from PyPI, which has it for Linux on x86-64 '
            f'only (this is {sys.platform} on {platform.machine()}): install ROS 2, then source '
            '/opt/ros/<distribution>/setup.bash'
        )
    return None


def ros_constraints():
    """Pip constraints for an environment on top of a sourced ROS 2.

    The distribution's message packages are compiled against its NumPy: a newer major
    version would break their import. Its launch_testing breaks pytest 9.
    """
    lines = ['pytest<9']
    try:
        import numpy
    except ImportError:
        pass
    else:
        major = int(numpy.__version__.split('.')[0])
        lines.append(f'numpy<{major + 1}')
    return lines


def main(arguments):
    if arguments[:1] == ['ros-constraints']:
        print('\n'.join(ros_constraints()))
        return 0
    sourced = '--sourced-ros' in arguments
    problems = [version_problem()]
    if problems == [None]:
        problems = [venv_problem(), ros_problem(sourced)]
    problems = [problem for problem in problems if problem]
    for problem in problems:
        sys.stderr.write(f'This machine is not ready: {problem}\n')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
