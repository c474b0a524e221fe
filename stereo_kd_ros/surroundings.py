# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What the node will find on this machine: ROS, its transport, providers, models and their rates.

Nothing of ROS is imported: what is installed is read from package metadata and the environment.
Rates are measured with the node's own engine on a generated pair.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import statistics
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

from stereo_kd_ros.doctor import DisparityRange, Severity
from stereo_kd_ros.transport import (
    PROFILE_VARIABLES,
    TransportError,
    profile_variable,
    share_file,
)

_RMEM_MAX = Path('/proc/sys/net/core/rmem_max')
_SHARED_MEMORY = Path('/dev/shm')
# A 720p colour image; UDP has to take its fragments in one burst.
_BURST_BYTES = 2_700_000
_DEFAULT_SEGMENT_BYTES = 512 * 1024
_MODEL_BUDGET_S = 0.8
_MOST_RUNS = 20


@dataclass(frozen=True)
class Fact:
    """Something about this machine, whether it is in order, and what to do when it is not."""

    name: str
    severity: Severity
    value: str
    remedy: str = ''


@dataclass(frozen=True)
class ModelRate:
    """What a model does here at 640x480; `error` says why it does not run."""

    model: str
    provider: str
    milliseconds: float
    error: str = ''

    @property
    def rate_hz(self) -> float:
        """Pairs per second when nothing else runs."""
        return 1000 / self.milliseconds if self.milliseconds > 0 else 0.0


def installed_facts(environ: Mapping[str, str] | None = None) -> list[Fact]:
    """Python, libraries, ROS and the RMW."""
    environ = os.environ if environ is None else environ
    facts = [Fact('python', 'ok', f'{platform.python_version()} on {platform.machine()}')]
    for package in ('numpy', 'opencv-python-headless', 'onnxruntime'):
        names = {
            'opencv-python-headless': ('opencv-python-headless', 'opencv-python'),
            'onnxruntime': ('onnxruntime', 'onnxruntime-gpu', 'onnxruntime-openvino'),
        }.get(package, (package,))
        found = [(name, version) for name in names if (version := _version(name))]
        if found:
            facts.append(Fact(package, 'ok', ', '.join(f'{name} {v}' for name, v in found)))
        elif package == 'onnxruntime':
            remedy = 'pip install onnxruntime, or onnxruntime-gpu, or onnxruntime-openvino'
            facts.append(Fact(package, 'error', 'not installed', remedy))
    facts.append(_ros_fact(environ))
    return facts


def transport_facts(environ: Mapping[str, str] | None = None) -> list[Fact]:
    """How large images travel between processes with this RMW, and what would lose them."""
    environ = os.environ if environ is None else environ
    rmw = environ.get('RMW_IMPLEMENTATION') or 'rmw_fastrtps_cpp'
    source = 'RMW_IMPLEMENTATION' if environ.get('RMW_IMPLEMENTATION') else 'the default'
    facts = [Fact('rmw', 'ok', f'{rmw} ({source})')]
    if 'fastrtps' in rmw:
        facts += _fast_dds_facts(environ)
    facts.append(_receive_buffer_fact(rmw))
    return facts


def provider_facts(model: Path) -> list[Fact]:
    """Which providers really load a model, and why the others do not.

    TensorRT is only reported by `auto`: building its engine takes minutes.

    Args:
        model: the file to try, best a small one.
    """
    from stereo_kd_ros.engine import EngineError, StereoEngine

    facts: dict[str, Fact] = {}
    engine = StereoEngine(model, provider='auto')
    try:
        for attempt in engine.provider_report:
            facts[attempt.name] = _provider_fact(attempt.name, attempt.ok, attempt.reason)
    finally:
        engine.close()
    for name in ('cuda', 'openvino', 'cpu'):
        if name in facts:
            continue
        try:
            StereoEngine(model, provider=name).close()
        except EngineError as error:
            facts[name] = _provider_fact(name, False, str(error))
        else:
            facts[name] = _provider_fact(name, True, 'it loads')
    return list(facts.values())


def measure_rate(model: Path, height: int = 480, width: int = 640) -> ModelRate:
    """Times a model as the node would run it, for a second or two."""
    from stereo_kd_ros.engine import EngineError, StereoEngine
    from stereo_kd_ros.model import ModelError
    from stereo_kd_ros.procedural import render_pair

    pair = render_pair(1, height, width)
    try:
        engine = StereoEngine(model)
        try:
            engine.warm_up(height, width, runs=1)
            times_ms = []
            until_s = time.perf_counter() + _MODEL_BUDGET_S
            while len(times_ms) < _MOST_RUNS:
                times_ms.append(engine.infer(pair.left, pair.right).inference_ms)
                if time.perf_counter() >= until_s:
                    break
            return ModelRate(model.stem, engine.provider, statistics.median(times_ms))
        finally:
            engine.close()
    except (EngineError, ModelError) as error:
        return ModelRate(model.stem, '', math.nan, str(error))


def suggested_parameters(
    rates: list[ModelRate],
    wanted_hz: float = 10.0,
    span: DisparityRange | None = None,
    largest_skew_ms: float = 0.0,
    image_size: tuple[int, int] | None = None,
) -> dict[str, str | float | int | bool]:
    """Parameters of the node that fit what was measured; the others stay at their defaults.

    The slowest model that still reaches the wanted rate is taken: it is the most accurate one.

    Args:
        rates: of the shipped models on this machine.
        wanted_hz: the camera's rate.
        span: of the observed disparities.
        largest_skew_ms: by how much the stamps of a pair differ.
        image_size: width and height of the camera's images.
    """
    parameters: dict[str, str | float | int | bool] = {}
    running = sorted((r for r in rates if not r.error), key=lambda r: r.milliseconds)
    if running:
        quick = [rate for rate in running if rate.rate_hz >= wanted_hz]
        parameters['model'] = (quick[-1] if quick else running[0]).model
        if quick and quick[-1] != running[0]:
            parameters['auto_model'] = running[0].model
        parameters['provider'] = 'auto'
        parameters['expected_frequency'] = float(
            wanted_hz if quick else math.floor(running[0].rate_hz * 10) / 10
        )
    if image_size is not None:
        parameters['warm_up_width'], parameters['warm_up_height'] = image_size
    if largest_skew_ms:
        parameters['approximate_sync'] = True
        parameters['approximate_sync_tolerance_seconds'] = round(
            min(abs(largest_skew_ms) * 1.5, 10_000.0) / 1000, 4
        )
    if span is not None:
        parameters['min_disparity'] = span.min_disparity
        parameters['max_disparity'] = span.max_disparity
    return parameters


def parameter_file(parameters: Mapping[str, str | float | int | bool]) -> str:
    """The parameters as the YAML that `--params-file` takes."""
    lines = ['/**:', '  ros__parameters:']
    for name, value in parameters.items():
        if isinstance(value, bool):
            text = 'true' if value else 'false'
        elif isinstance(value, float):
            text = repr(value)  # keeps the decimal point that ROS insists on
        else:
            text = str(value)
        lines.append(f'    {name}: {text}')
    return '\n'.join(lines)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ''


def _ros_fact(environ: Mapping[str, str]) -> Fact:
    wheel, sourced = _version('ros-rclpy'), environ.get('ROS_DISTRO', '')
    if sourced:
        version = _version('rclpy')
        if version:
            return Fact('ros', 'ok', f'{sourced}, rclpy {version}')
        return Fact(
            'ros',
            'error',
            f'{sourced} is sourced, but this Python ({sys.executable}) does not see its rclpy',
            "Use the distribution's Python, or a virtual environment with --system-site-packages.",
        )
    if wheel:
        return Fact('ros', 'ok', f'rclpy {wheel} from wheels, no distribution sourced')
    return Fact(
        'ros',
        'warn',
        'not installed: bags and pictures work, the node does not',
        'Source a ROS 2 distribution, or run `make env` in the repository for one from wheels.',
    )


def _fast_dds_facts(environ: Mapping[str, str]) -> list[Fact]:
    own = next((v for v in PROFILE_VARIABLES if environ.get(v)), None)
    try:
        profile = share_file('config/fastdds.xml', environ)
    except TransportError as error:
        return [Fact('fast dds profile', 'warn', str(error), 'Install the package again.')]
    variable = profile_variable(environ)
    segment_bytes = profile_segment_bytes(profile)
    if own is None:
        facts = [
            Fact(
                'fast dds profile',
                'warn',
                f'not set in this shell: writers keep a segment of '
                f'{_DEFAULT_SEGMENT_BYTES // 1024} KiB and lose most best-effort images above '
                "half a megabyte. The node sets it for itself; the camera's driver does not",
                f'export {variable}={profile}   (before the driver starts)',
            )
        ]
    elif not Path(environ[own].removeprefix('file://')).is_file():
        facts = [
            Fact(
                'fast dds profile',
                'error',
                f'{own} names {environ[own]}, which does not exist',
                f'export {own}={profile}',
            )
        ]
    else:
        chosen = Path(environ[own].removeprefix('file://'))
        room = profile_segment_bytes(chosen)
        described = f'{chosen}, a segment of {(room or _DEFAULT_SEGMENT_BYTES) / 2**20:.1f} MiB'
        if room and room >= segment_bytes:
            facts = [Fact('fast dds profile', 'ok', described)]
        else:
            facts = [
                Fact(
                    'fast dds profile',
                    'warn',
                    f'{described}: large best-effort images may be lost',
                    f'Raise its segment_size, or use {profile}',
                )
            ]
    return [*facts, _shared_memory_fact(segment_bytes)]


def profile_segment_bytes(profile: Path) -> int:
    """The largest shared-memory segment that a Fast DDS profile asks for; 0 when none."""
    try:
        root = ElementTree.parse(profile).getroot()
    except (ElementTree.ParseError, OSError):
        return 0
    sizes = [e.text or '' for e in root.iter() if e.tag.rpartition('}')[2] == 'segment_size']
    return max((int(size) for size in sizes if size.strip().isdigit()), default=0)


def _shared_memory_fact(segment_bytes: int) -> Fact:
    if not _SHARED_MEMORY.is_dir():
        return Fact('shared memory', 'unknown', f'no {_SHARED_MEMORY} on this system')
    free = shutil.disk_usage(_SHARED_MEMORY).free
    text = f'{free / 2**20:.0f} MiB free in {_SHARED_MEMORY}'
    # The driver, the node and a viewer each make a segment of their own.
    if free >= 3 * segment_bytes:
        return Fact('shared memory', 'ok', text)
    return Fact(
        'shared memory',
        'warn',
        f'{text}, {segment_bytes / 2**20:.0f} MiB wanted per process',
        'Give the container more (docker run --shm-size 1g, or --ipc host).',
    )


def _receive_buffer_fact(rmw: str) -> Fact:
    try:
        largest = int(_RMEM_MAX.read_text())
    except (OSError, ValueError):
        return Fact('udp receive buffer', 'unknown', f'{_RMEM_MAX} cannot be read')
    text = f'at most {largest / 2**20:.1f} MiB'
    if largest >= _BURST_BYTES:
        return Fact('udp receive buffer', 'ok', text)
    local = 'between machines' if 'fastrtps' in rmw else 'between processes'
    return Fact(
        'udp receive buffer',
        'warn',
        f'{text}: large images {local} lose fragments',
        'sudo sysctl -w net.core.rmem_max=16777216',
    )


def _provider_fact(name: str, ok: bool, reason: str) -> Fact:
    # A machine without a GPU is in order; one on which not even the CPU works is not.
    severity: Severity = 'error' if name == 'cpu' and not ok else 'ok'
    return Fact(name, severity, reason if ok else f'not used: {reason}')
