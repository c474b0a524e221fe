# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Installs the runtime `stereo_kd_ros` and the training package `stereo_kd_training`.

Works through pip (`pip install .`, `pip install -e .`) and through colcon
(`colcon build`, with or without `--symlink-install`). Always install with
`-c constraints.txt`.
"""

from __future__ import annotations

import re
from glob import glob
from pathlib import Path

from setuptools import find_packages, setup

NAME = 'stereo_kd_ros'
TRAINING = 'stereo_kd_training'
VERSION = re.search(r"__version__ = '(.+)'", Path(NAME, '__init__.py').read_text())[1]

ENGINES = {
    # Each of these is a whole ONNX Runtime and excludes the others.
    'cpu': ['onnxruntime>=1.20'],
    'gpu': ['onnxruntime-gpu>=1.20'],
    'openvino': ['onnxruntime-openvino>=1.20', 'openvino'],
}


setup(
    name=NAME,
    version=VERSION,
    description='Real-time stereo depth for ROS 2: distilled, pruned, on ONNX Runtime',
    author='The stereo_kd_ros authors',
    maintainer='The stereo_kd_ros authors',
    maintainer_email='maintainers@stereo-kd-ros.example',
    license='Apache-2.0',
    python_requires='>=3.10',
    packages=[
        *find_packages(include=[NAME, f'{NAME}.*']),
        *find_packages('training', include=[TRAINING, f'{TRAINING}.*']),
    ],
    package_dir={TRAINING: f'training/{TRAINING}'},
    package_data={NAME: ['py.typed'], TRAINING: ['py.typed']},
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{NAME}']),
        (f'share/{NAME}', ['package.xml']),
        (f'share/{NAME}/launch', sorted(glob('launch/*.launch.py'))),
        (f'share/{NAME}/config', sorted(glob('config/*.*'))),
        (f'share/{NAME}/config/rigs', sorted(glob('config/rigs/*.yaml'))),
        (f'share/{NAME}/config/rviz', sorted(glob('config/rviz/*.rviz'))),
        (f'share/{NAME}/config/foxglove', sorted(glob('config/foxglove/*.json'))),
        (f'share/{NAME}/models', sorted(glob('models/*.onnx'))),
        (f'share/{NAME}/models/papers', sorted(glob('models/papers/*.onnx'))),
        (f'share/{NAME}/recipes', sorted(glob('training/recipes/*.yaml'))),
        (f'share/{NAME}/teachers', sorted(glob('training/teachers/*.yaml'))),
    ],
    zip_safe=False,
    install_requires=[
        'numpy>=1.26',
        'opencv-python-headless>=4.8',
        'rich>=13',
        'rosbags>=0.10',
        'typer>=0.12',
    ],
    extras_require={
        **ENGINES,
        'ros': [
            'ros-rclpy',
            'ros-rmw-fastrtps-cpp',
            'ros-sensor-msgs',
            'ros-stereo-msgs',
            'ros-diagnostic-msgs',
            'ros-std-srvs',
        ],
        'train': [
            'torch>=2.4',
            'torch-pruning>=1.5',
            'accelerate>=1.0',
            'onnx>=1.16',
            'pydantic>=2',
            'pyyaml>=6',
            'tensorboard>=2.16',
            'matplotlib>=3.8',
            'pillow>=10',
            'tqdm>=4.66',
        ],
        'test': [
            'pytest>=7',
            'pytest-rerunfailures>=12',
            'pytest-timeout>=2.1',
            'pytest-xdist>=3.5',
            'hypothesis>=6.100',
            'onnx>=1.16',
            'psutil>=5.9',
            'pyyaml>=6',
            'ruff>=0.6',
            # The tests build the package as a ROS 2 workspace does.
            'catkin-pkg>=1.0',
            'colcon-core>=0.17',
            'colcon-ros>=0.4',
            'colcon-bash>=0.5',
            'colcon-package-information>=0.3',
            'setuptools>=61,<80',
            'wheel',
        ],
    },
    entry_points={
        'console_scripts': [
            'stereo-kd = stereo_kd_ros.commands.main:main',
            'stereo-kd-train = stereo_kd_training.main:main',
            'stereo_node = stereo_kd_ros.node.main:main',
        ],
    },
    classifiers=[
        'Programming Language :: Python :: 3 :: Only',
        'Topic :: Scientific/Engineering :: Image Recognition',
    ],
)
