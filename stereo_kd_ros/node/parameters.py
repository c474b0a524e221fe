# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The node's parameters: a table with unit, range and meaning, and `Settings`, their values.

A parameter marked [dynamic] may be changed at any time and takes effect on the next pair. The
others take effect when the node is configured, and a change in any later state is refused with
that reason.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter


class ParameterError(ValueError):
    """A parameter value the node cannot work with."""


@dataclass(frozen=True)
class ParameterSpec:
    """One parameter, as `ros2 param describe`, config/stereo.yaml and docs/node.md tell it."""

    name: str
    default: bool | int | float | str
    description: str
    unit: str = ''
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    dynamic: bool = False

    def descriptor(self) -> ParameterDescriptor:
        """Returns the ROS descriptor, with the range that rclpy enforces."""
        unit = f' [{self.unit}]' if self.unit else ''
        mark = '[dynamic]' if self.dynamic else '[at configure]'
        descriptor = ParameterDescriptor(description=f'{self.description}{unit} {mark}')
        if self.choices:
            descriptor.additional_constraints = 'one of: ' + ', '.join(self.choices)
        if self.minimum is not None and self.maximum is not None:
            if isinstance(self.default, float):
                span = FloatingPointRange(from_value=self.minimum, to_value=self.maximum)
                descriptor.floating_point_range = [span]
            else:
                span = IntegerRange(
                    from_value=int(self.minimum), to_value=int(self.maximum), step=1
                )
                descriptor.integer_range = [span]
        return descriptor


PARAMETERS = (
    ParameterSpec(
        'model',
        'small',
        'Model file, or the name or size of a model that ships with the package',
        dynamic=True,
    ),
    ParameterSpec(
        'provider',
        'auto',
        'ONNX Runtime execution provider; auto takes the first that loads and agrees with the CPU',
        choices=('auto', 'tensorrt', 'cuda', 'openvino', 'cpu'),
    ),
    ParameterSpec(
        'threads', 0, 'Threads of the CPU provider; 0 = one per core', minimum=0, maximum=256
    ),
    ParameterSpec(
        'precision',
        'auto',
        'What the model is computed in: bf16 by openvino, fp16 by tensorrt; auto takes the '
        'quickest that the hardware has and that agrees with the CPU',
        choices=('auto', 'fp32', 'bf16', 'fp16'),
    ),
    ParameterSpec(
        'spinning',
        'auto',
        'Whether idle threads of the CPU provider spin while a pair is computed: always for cores '
        'of our own, never for shared ones; auto measures it with provider auto, else always',
        choices=('auto', 'always', 'never'),
    ),
    ParameterSpec(
        'warm_up_width', 640, 'Width of the image the model is warmed up with', 'px', 32, 8192
    ),
    ParameterSpec(
        'warm_up_height', 480, 'Height of the image the model is warmed up with', 'px', 32, 8192
    ),
    ParameterSpec(
        'autostart',
        True,
        'Configure and activate at start; false leaves both to a lifecycle manager',
    ),
    ParameterSpec(
        'image_transport',
        'raw',
        'Subscribe to Image (raw) or to CompressedImage on <topic>/compressed',
        choices=('raw', 'compressed'),
    ),
    ParameterSpec(
        'sync_backend',
        'builtin',
        'What pairs the images; message_filters only where a ROS distribution has it',
        choices=('builtin', 'message_filters'),
    ),
    ParameterSpec(
        'approximate_sync',
        False,
        'Pair images whose stamps differ by up to approximate_sync_tolerance_seconds',
    ),
    ParameterSpec(
        'approximate_sync_tolerance_seconds',
        0.01,
        'Largest stamp difference of a pair when approximate_sync is true',
        's',
        0.0,
        10.0,
    ),
    ParameterSpec(
        'queue_size', 10, 'Images of one eye that wait for the other eye', minimum=1, maximum=1000
    ),
    ParameterSpec(
        'max_age',
        0.0,
        'Skip pairs whose stamp is older than this when inference could begin; 0 = never',
        's',
        0.0,
        60.0,
        dynamic=True,
    ),
    ParameterSpec(
        'min_depth', 0.0, 'Depth below this is -Inf (too close)', 'm', 0.0, 1e6, dynamic=True
    ),
    ParameterSpec(
        'max_depth',
        math.inf,
        'Depth above this is +Inf (beyond range)',
        'm',
        0.0,
        math.inf,
        dynamic=True,
    ),
    ParameterSpec(
        'min_disparity',
        0.0,
        'Disparities below this are invalid; `min_disparity` of DisparityImage',
        'px',
        0.0,
        4096.0,
        dynamic=True,
    ),
    ParameterSpec(
        'max_disparity',
        0.0,
        "Disparities above this are invalid; 0 = no limit but the model's own",
        'px',
        0.0,
        4096.0,
        dynamic=True,
    ),
    ParameterSpec(
        'confidence_threshold',
        0.0,
        'Pixels with a lower confidence are invalid',
        '0..1',
        0.0,
        1.0,
        dynamic=True,
    ),
    ParameterSpec(
        'speckle_size',
        0,
        'Connected patches of at most this many pixels are invalid; 0 = keep all',
        'px',
        0,
        100000,
        dynamic=True,
    ),
    ParameterSpec(
        'speckle_range',
        1.0,
        'Neighbours whose disparities differ by more belong to different patches',
        'px',
        0.0,
        100.0,
        dynamic=True,
    ),
    ParameterSpec(
        'depth_encoding',
        '32FC1',
        '32FC1 = metres, NaN invalid; 16UC1 = millimetres, 0 invalid',
        choices=('32FC1', '16UC1'),
        dynamic=True,
    ),
    ParameterSpec(
        'disparity_sigma',
        0.5,
        'Standard deviation of the disparity, from which depth/sigma follows',
        'px',
        0.0,
        100.0,
        dynamic=True,
    ),
    ParameterSpec(
        'lazy',
        True,
        'Compute only what somebody subscribes to; false computes and publishes everything',
        dynamic=True,
    ),
    ParameterSpec(
        'silence_timeout',
        5.0,
        'After this long without output the node says why',
        's',
        0.5,
        3600.0,
        dynamic=True,
    ),
    ParameterSpec(
        'expected_frequency',
        0.0,
        'Diagnostics warn when the output is slower than 90 % of this; 0 = no expectation',
        'Hz',
        0.0,
        1000.0,
        dynamic=True,
    ),
    ParameterSpec(
        'calibration_check',
        True,
        'Look at a pair every two seconds for swapped eyes, rows that do not line up, different '
        'exposure and covered lenses',
        dynamic=True,
    ),
    ParameterSpec(
        'auto_model',
        '',
        'A smaller model to step to while the model is slower than the cameras; empty = never',
    ),
)

SPECS = {spec.name: spec for spec in PARAMETERS}


@dataclass(frozen=True)
class Settings:
    """The values of all parameters at one moment; attribute names are parameter names."""

    model: str
    provider: str
    threads: int
    precision: str
    spinning: str
    warm_up_width: int
    warm_up_height: int
    autostart: bool
    image_transport: str
    sync_backend: str
    approximate_sync: bool
    approximate_sync_tolerance_seconds: float
    queue_size: int
    max_age: float
    min_depth: float
    max_depth: float
    min_disparity: float
    max_disparity: float
    confidence_threshold: float
    speckle_size: int
    speckle_range: float
    depth_encoding: str
    disparity_sigma: float
    lazy: bool
    silence_timeout: float
    expected_frequency: float
    calibration_check: bool
    auto_model: str

    def __post_init__(self) -> None:
        """Raises ParameterError for values that a range alone cannot rule out."""
        for field in fields(self):
            spec, value = SPECS[field.name], getattr(self, field.name)
            if spec.choices and value not in spec.choices:
                raise ParameterError(
                    f'{spec.name} is {value!r}; expected one of {", ".join(spec.choices)}'
                )
            if isinstance(value, float) and math.isnan(value):
                raise ParameterError(f'{spec.name} is NaN; expected a number')
        if not self.model:
            raise ParameterError('model is empty; name a model file or a model of the package')
        if self.max_depth <= self.min_depth:
            raise ParameterError(
                f'max_depth {self.max_depth} m must be greater than min_depth {self.min_depth} m'
            )
        if self.max_disparity and self.max_disparity <= self.min_disparity:
            raise ParameterError(
                f'max_disparity {self.max_disparity} px must be greater than min_disparity '
                f'{self.min_disparity} px, or 0 for no limit'
            )

    @property
    def threads_spin(self) -> bool | None:
        """Whether idle threads spin while a pair is computed; None leaves it to the engine."""
        return {'auto': None, 'always': True, 'never': False}[self.spinning]

    @property
    def tolerance_ns(self) -> int:
        """The largest stamp difference of a pair; 0 unless `approximate_sync` is true."""
        if not self.approximate_sync:
            return 0
        return round(self.approximate_sync_tolerance_seconds * 1e9)

    def changed(self, parameters: Iterable[Parameter], configured: bool) -> Settings:
        """Returns the settings after a change; parameters of other owners are passed over.

        Raises:
            ParameterError: a value is unusable, or the parameter cannot change once configured.
        """
        changes: dict[str, Any] = {}
        for parameter in parameters:
            spec = SPECS.get(parameter.name)
            if spec is None:
                continue
            if configured and not spec.dynamic and parameter.value != getattr(self, spec.name):
                raise ParameterError(
                    f'{spec.name} takes effect at configure: deactivate and clean up the node, '
                    'set it, then configure it again'
                )
            changes[spec.name] = parameter.value
        return replace(self, **changes)


def declare_parameters(node: Node) -> Settings:
    """Declares every parameter on the node and returns the values it was started with.

    Raises:
        ParameterError: an override has the wrong type, is out of range or contradicts another one.
    """
    for spec in PARAMETERS:
        try:
            node.declare_parameter(spec.name, spec.default, spec.descriptor())
        except (
            Exception
        ) as error:  # rclpy has one exception class per reason, without a common base
            raise ParameterError(f'parameter {spec.name}: {error}') from error
    return Settings(**{spec.name: node.get_parameter(spec.name).value for spec in PARAMETERS})
