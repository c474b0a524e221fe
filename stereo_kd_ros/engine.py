# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A contract model in ONNX Runtime: two RGB images in, disparity and confidence out.

`StereoEngine` opens a model with the first execution provider that really runs it. What
onnxruntime lists as available is only what it was built with; a provider whose libraries or
hardware are missing is replaced by the CPU without an exception. So each one is tried, asked
which one it became, and compared with the CPU on a generated pair before it is believed.

Which of the ways of running on a CPU is the quickest is measured (`choice`). With TensorRT and
CUDA both there, `auto` serves on CUDA and has TensorRT build an engine for the
camera's size meanwhile; it takes over once its numbers agree with the CPU's. No GPU has run
this code yet: it is tested as far as a CPU goes.

On a CPU nothing is copied: the images are bound in place and the graph writes into the maps that
are returned. What is left above the graph is looking once over both maps for what is no disparity
or confidence, 0.07 ms at 640x480 (two reads of each map, the floor being one copy, 0.03 ms).
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from .binding import DeviceBinding, HostBinding
from .cache import (
    CacheError,
    EngineCache,
    EngineKey,
    file_sha256,
    gpu_and_driver,
    tensorrt_version,
)
from .choice import (
    Candidate,
    ChoiceKey,
    measure,
    quickest,
    recall,
    remember,
)
from .model import (
    METADATA_KEY,
    Manifest,
    ModelError,
    check_contract,
    resolve_model,
)
from .processor import computes_bf16, processor_name, vector_unit
from .providers import (
    EXECUTION_PROVIDERS,
    EXTRAS,
    ON_GPU,
    PRECISIONS,
    GpuOptions,
    ProviderOptionError,
    SizeProfile,
    cuda_options,
    openvino_options,
    precisions,
    provider_names,
    tensorrt_options,
    usual_profile,
)
from .upgrade import Upgrade, progress_lines

_log = logging.getLogger(__name__)

# onnxruntime's levels of logging; warnings are its default.
WARNINGS, FATAL_ONLY = 2, 4

# Reduced precision may flip single pixels between two surfaces, never a whole picture.
PROBE_SHAPE = (128, 192)
PROBE_SHIFT_PX = 8
PARITY_MEDIAN_PX = 0.25
PARITY_P90_PX = 1.0

# OpenVINO knows every buffer's size and layout beforehand when the image size is fixed: a quarter
# less time per pair. ONNX Runtime's own kernels win nothing by it.
FITTED_PROVIDERS = frozenset({'openvino'})

# What opening other ways of running may add to the first start on a machine.
OPENING_BUDGET_S = 3.0


class EngineError(RuntimeError):
    """A model, provider or input with which no disparity can be computed."""


@dataclass(frozen=True)
class ProviderAttempt:
    """One provider that was tried, and what came of it."""

    name: str
    ok: bool
    reason: str


@dataclass(frozen=True)
class StereoResult:
    """What the model says about one pair.

    Attributes:
        disparity: (H, W) float32, x_left - x_right [px] at input resolution. NaN where the
            model gave something that is no disparity.
        confidence: (H, W) float32 in [0, 1].
        inference_ms: Time in the model.
    """

    disparity: NDArray[np.float32]
    confidence: NDArray[np.float32]
    inference_ms: float


@dataclass(frozen=True)
class InputLimits:
    """Which image sizes a model takes, both ends included [px]."""

    min_height: int = 1
    max_height: int | None = None
    min_width: int = 1
    max_width: int | None = None

    def within(self, profile: SizeProfile | None) -> InputLimits:
        """These limits, and those of a TensorRT engine that was built for a profile."""
        if profile is None:
            return self
        (low_height, low_width), (high_height, high_width) = profile.smallest, profile.largest
        return InputLimits(
            max(self.min_height, low_height),
            min(self.max_height or high_height, high_height),
            max(self.min_width, low_width),
            min(self.max_width or high_width, high_width),
        )

    def check(self, height: int, width: int) -> None:
        """Check a size.

        Raises:
            EngineError: The model does not take it.
        """
        for name, value, low, high in (
            ('height', height, self.min_height, self.max_height),
            ('width', width, self.min_width, self.max_width),
        ):
            if value < low or (high is not None and value > high):
                raise EngineError(
                    f'the images are {width}x{height}, but the model takes a {name} of '
                    f'{low} to {high if high is not None else "any"} px; resize them, or use a '
                    'model for this size'
                )


@dataclass(frozen=True)
class _Running:
    """A model on one provider, ready to be run."""

    provider: str
    precision: str
    binding: HostBinding | DeviceBinding
    profile: SizeProfile | None = None
    spinning: bool = True

    @property
    def session(self) -> Any:
        return self.binding.session


class StereoEngine:
    """A model that is loaded and ready.

    Args:
        model: A path, a shipped model's name, or a size (`resolve_model`).
        provider: `auto`, one of `EXECUTION_PROVIDERS`, or several of them in order. `auto`
            takes the first that loads and agrees with the CPU; one by name is used or refused.
        threads: Of the CPU; None takes one per core that this process may use.
        precision: `fp32`, `bf16` (OpenVINO), `fp16` (TensorRT) or `auto`: the quickest that the
            hardware computes in and that agrees with the CPU. What is quickest on a CPU is
            measured by `warm_up`: not every processor with instructions for BF16 gains by it.
        spinning: Whether idle threads of the CPU provider wait by spinning while a pair is
            computed. It is quickest when the cores are ours alone; on cores shared with other
            busy processes it took up to twice as long. Between pairs they always sleep. None
            has `warm_up` measure it with provider `auto`, and spins with others.
        gpu: For `cuda` and `tensorrt`.

    Raises:
        EngineError: No provider of those asked for runs the model.
        ModelError: The file is missing, damaged or breaks the contract.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        provider: str | Sequence[str] = 'auto',
        threads: int | None = None,
        precision: str = 'auto',
        spinning: bool | None = None,
        gpu: GpuOptions | None = None,
    ) -> None:
        if precision not in PRECISIONS:
            raise EngineError(f'precision is {precision!r}, expected one of {PRECISIONS}')
        if threads is not None and threads < 1:
            raise EngineError(f'threads is {threads}, expected 1 or more')
        self.path: Path = resolve_model(model)
        self.threads = threads or usable_cores()
        self._asked = (provider, precision, spinning)
        self.gpu = gpu or GpuOptions()
        self.provider_report: tuple[ProviderAttempt, ...] = ()
        self._upgrade: Upgrade[_Running] | None = None
        self._closed = False
        self._serving = self._running = self._open(provider, precision)
        self.manifest = _session_manifest(self._session, self.path)
        self.limits = _limits(self._session, self.manifest).within(self._serving.profile)

    @property
    def provider(self) -> str:
        """Short name of the provider that ran the last pair, or will run the first."""
        return self._running.provider

    @property
    def precision(self) -> str:
        """What that provider computes in."""
        return self._running.precision

    @property
    def spinning(self) -> bool:
        """Whether threads of the CPU provider spin while a pair is computed."""
        return self._serving.spinning

    @property
    def _session(self) -> Any:
        return self._serving.session

    def _open(self, provider: str | Sequence[str], precision: str) -> _Running:
        """Try the providers in order and return the first good one.

        Raises:
            EngineError: There is none.
        """
        try:
            names = provider_names(provider)
        except ProviderOptionError as error:
            raise EngineError(str(error)) from error
        built_in = onnxruntime.get_available_providers()
        # What takes minutes to build must not hold up a robot's start.
        later = provider == 'auto' and all(
            EXECUTION_PROVIDERS[name] in built_in for name in ON_GPU
        )
        attempts: list[ProviderAttempt] = []
        for name in names[1:] if later else names:
            try:
                candidates = _precisions(name, precision)
            except EngineError as error:
                attempts.append(ProviderAttempt(name, False, str(error)))
                continue
            for candidate in candidates:
                try:
                    running = self._open_one(name, candidate)
                except EngineError as error:
                    attempts.append(ProviderAttempt(name, False, f'in {candidate}, {error}'))
                    continue
                verdict = 'it loads' if name == 'cpu' else 'it loads and agrees with the CPU'
                attempts.append(ProviderAttempt(name, True, f'in {candidate}, {verdict}'))
                if later:
                    attempts.insert(0, self._postpone_tensorrt(name, precision, attempts[0]))
                self.provider_report = tuple(attempts)
                return running
        reasons = '; '.join(f'{attempt.name}: {attempt.reason}' for attempt in attempts)
        raise EngineError(f'{self.path} runs on none of the providers asked for. {reasons}')

    def _open_one(self, name: str, precision: str, spinning: bool | None = None) -> _Running:
        """Open the model on one provider, and compare it with the CPU.

        Raises:
            EngineError: It does not run there, or gives other numbers.
        """
        if name == 'tensorrt':
            return self._open_tensorrt(precision, self.gpu.profile)
        if spinning is None:
            spinning = self._asked[2] is not False
        session = _create_session(self.path, name, self.threads, precision, spinning, self.gpu)
        binding = _bind(session, name, self.gpu)
        if name != 'cpu':
            _require_parity(binding, self.path, self.threads)
        return _Running(name, precision, binding, spinning=spinning)

    def _open_tensorrt(self, precision: str, profile: SizeProfile | None) -> _Running:
        """Build a TensorRT engine, or take it from the cache.

        Raises:
            EngineError: It cannot be built, or gives other numbers.
        """
        if profile is None:
            reference = _create_session(self.path, 'cpu', self.threads, 'fp32')
            limits = _limits(reference, _session_manifest(reference, self.path))
            profile = usual_profile(
                limits.min_height, limits.min_width, limits.max_height, limits.max_width
            )
        cache = _engine_cache(self.path, profile, precision, self.gpu)
        try:
            was_filled = cache is not None and cache.is_filled
            try:
                binding = self._build_tensorrt(precision, profile, cache)
            except EngineError as error:
                if cache is None or not was_filled:
                    raise
                _log.warning('the engine in %s is built anew: %s', cache.directory, error)
                cache.empty()
                binding = self._build_tensorrt(precision, profile, cache)
            if cache is not None:
                try:
                    cache.mark_filled()
                except CacheError as error:
                    _log.warning('the TensorRT engine is not kept: %s', error)
        finally:
            if cache is not None:
                cache.release()
        return _Running('tensorrt', precision, binding, profile)

    def _build_tensorrt(
        self, precision: str, profile: SizeProfile, cache: EngineCache | None
    ) -> HostBinding | DeviceBinding:
        with progress_lines(f'building the TensorRT engine in {precision}, {profile}'):
            session = _create_session(
                self.path,
                'tensorrt',
                self.threads,
                precision,
                True,
                self.gpu,
                profile,
                cache,
            )
            binding = _bind(session, 'tensorrt', self.gpu)
            # The first run of a size may still build; so it belongs to the build.
            _require_parity(binding, self.path, self.threads, profile)
        return binding

    def _postpone_tensorrt(
        self, name: str, precision: str, first: ProviderAttempt
    ) -> ProviderAttempt:
        """Have TensorRT built for the camera's size when CUDA serves; say what becomes of it."""
        if name != 'cuda':
            return ProviderAttempt('tensorrt', False, f'it needs cuda, and {first.reason}')

        def build(height: int, width: int) -> _Running:
            reasons = []
            for candidate in _precisions('tensorrt', precision):
                try:
                    return self._open_tensorrt(candidate, SizeProfile.fixed(height, width))
                except EngineError as error:
                    reasons.append(f'in {candidate}, {error}')
            raise EngineError('; '.join(reasons))

        self._upgrade = Upgrade('TensorRT', build, self._upgrade_ended)
        return ProviderAttempt(
            'tensorrt', False, 'it takes over once it has an engine for the size in use'
        )

    def _upgrade_ended(self, running: _Running | None, reason: str) -> None:
        if running is None:
            attempt = ProviderAttempt('tensorrt', False, reason)
        else:
            verdict = f'in {running.precision}, it is built and agrees with the CPU'
            attempt = ProviderAttempt('tensorrt', True, verdict)
            _log.info('TensorRT takes over in %s', running.precision)
        others = [old for old in self.provider_report if old.name != 'tensorrt']
        self.provider_report = (attempt, *others)

    def infer(self, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> StereoResult:
        """Compute disparity and confidence of a rectified pair.

        Args:
            left: RGB (H, W, 3) uint8.
            right: RGB (H, W, 3) uint8 of the same size.

        Raises:
            EngineError: The images do not fit each other or the model, or the model failed.
                The engine can be used again.
        """
        if self._closed:
            raise EngineError('the engine is closed')
        self._check_images(left, right)
        running = self._serving
        if self._upgrade is not None:
            running = self._upgrade.runner_for(left.shape[0], left.shape[1]) or running
        self._running = running
        started_ns = time.perf_counter_ns()
        disparity, confidence = _run(running.binding, left, right)
        inference_ms = (time.perf_counter_ns() - started_ns) * 1e-6
        return StereoResult(
            _sound_disparity(disparity), _sound_confidence(confidence), inference_ms
        )

    @property
    def takes_batches(self) -> bool:
        """Whether several pairs fit through the model at once; TensorRT's engines take one."""
        session = self._session
        return (
            session is not None
            and self.provider != 'tensorrt'
            and not any(isinstance(node.shape[0], int) for node in session.get_inputs())
        )

    def infer_batch(
        self, pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.uint8]]]
    ) -> list[StereoResult]:
        """Compute several pairs of one size in one run.

        Args:
            pairs: left and right images as `infer` takes them, one or more.

        Returns:
            One result per pair; each says how long all of them took.

        Raises:
            EngineError: as `infer` does, or the sizes differ, or the model takes no batches.
        """
        if self._closed:
            raise EngineError('the engine is closed')
        for left, right in pairs:
            self._check_images(left, right)
        sizes = {left.shape for left, _ in pairs}
        if len(sizes) != 1:
            raise EngineError(f'a batch has pairs of one size, these are of {len(sizes)}')
        if not self.takes_batches:
            raise EngineError(f'{self.path} on {self.provider} takes one pair at a time')
        binding = self._serving.binding
        started_ns = time.perf_counter_ns()
        left, right = (np.stack(eyes) for eyes in zip(*pairs))
        try:
            disparity, confidence = binding.run_batch(left, right)
        except Exception as error:
            height, width = left.shape[1:3]
            raise EngineError(
                f'the model failed on {len(pairs)} pairs of {width}x{height}: {_one_line(error)}'
            ) from error
        inference_ms = (time.perf_counter_ns() - started_ns) * 1e-6
        return [
            StereoResult(_sound_disparity(one), _sound_confidence(other), inference_ms)
            for one, other in zip(disparity, confidence)
        ]

    def warm_up(self, height: int, width: int, runs: int = 2) -> float:
        """Run a generated pair of the given size, so that the first real one is not slow.

        Where there are several ways of running the model on this CPU, with provider `auto` or
        with precision `auto` of OpenVINO, the quickest at this size is chosen first: measured for
        a second, or remembered from an earlier start.

        Returns:
            Milliseconds of the last run.

        Raises:
            EngineError: The model cannot take this size.
        """
        left, right = _probe_pair(height, width)
        self._check_images(left, right)
        if self._serving.provider not in ON_GPU and not self._closed:
            self._choose(left, right)
        else:
            self._fit(self._serving, left, right)
        return [self.infer(left, right).inference_ms for _ in range(max(runs, 1))][-1]

    def _fit(self, running: _Running, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> None:
        """Give the size of a pair a session of its own where that is quicker, if it can be had."""
        binding = running.binding
        height, width = left.shape[:2]
        if (
            running.provider not in FITTED_PROVIDERS
            or not isinstance(binding, HostBinding)
            or binding.session is None
            or binding.fits(height, width)
        ):
            return
        names = _size_names(binding.session, height, width)
        if not names:
            return
        try:
            session = _create_session(
                self.path,
                running.provider,
                self.threads,
                running.precision,
                running.spinning,
                sizes=names,
            )
            fitted = _run(HostBinding(session), left, right)[0]
            _require_agreement(fitted, _run(binding, left, right)[0], 'at any size')
        except (EngineError, ModelError) as error:
            _log.info('no session of its own for %dx%d: %s', width, height, error)
            return
        binding.fit(height, width, session)

    def _choose(self, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> None:
        """Serve with the quickest way of running the model on this CPU at this size."""
        candidates = self._candidates()
        current = Candidate(self.provider, self.precision, self.spinning)
        if len(candidates) < 2:
            self._fit(self._serving, left, right)
            return
        height, width = left.shape[:2]
        key = ChoiceKey(
            model_sha256=file_sha256(self.path),
            processor=f'{processor_name()} {vector_unit()}',
            threads=self.threads,
            height=height,
            width=width,
            onnxruntime=onnxruntime.__version__,
            candidates=tuple(str(candidate) for candidate in candidates),
        )
        opened = {current: self._serving}
        remembered = recall(key, candidates)
        if remembered is not None:
            choice, taken_ms = remembered
            if self._opens(choice, opened):
                self._fit(opened[choice], left, right)
                self._serve_choice(
                    opened[choice], f'{taken_ms:.1f} ms at {width}x{height}, as remembered'
                )
                return
        # On a slow machine the start matters more than to have tried them all.
        started = time.monotonic()
        for candidate in candidates:
            if time.monotonic() - started < OPENING_BUDGET_S and self._opens(candidate, opened):
                self._fit(opened[candidate], left, right)
        try:
            median_ms = measure(
                {
                    candidate: functools.partial(_run, running.binding, left, right)
                    for candidate, running in opened.items()
                }
            )
        except EngineError:
            # What fails at this size says so better in the run that follows.
            return
        if current not in median_ms or len(median_ms) < 2:
            return
        choice = quickest(median_ms, current)
        told = ', '.join(f'{taken:.1f} ms with {name}' for name, taken in median_ms.items())
        self._serve_choice(opened[choice], f'quickest at {width}x{height} of {told}')
        try:
            remember(key, choice, median_ms)
        except CacheError as error:
            _log.warning('the quickest provider is not remembered: %s', error)

    def _candidates(self) -> list[Candidate]:
        """Ways of running on the CPU that this onnxruntime has and the caller allows."""
        provider, precision, spinning = self._asked
        # A provider asked for by name stays; what it computes in may still be open.
        automatic = provider == 'auto'
        found = []
        for name in ('openvino', 'cpu') if automatic else (self._serving.provider,):
            both = automatic and name == 'cpu' and spinning is None
            ways = (True, False) if both else (spinning is not False,)
            with contextlib.suppress(EngineError):
                found += [
                    Candidate(name, candidate, way)
                    for candidate in _precisions(name, precision)
                    for way in ways
                ]
        return found

    def _opens(self, candidate: Candidate, opened: dict[Candidate, _Running]) -> bool:
        """Open a candidate unless it is open; whether it runs and gives the right numbers."""
        if candidate not in opened:
            try:
                opened[candidate] = self._open_one(
                    candidate.provider, candidate.precision, candidate.spinning
                )
            except EngineError:
                return False
        return True

    def _serve_choice(self, running: _Running, why: str) -> None:
        self._serving = self._running = running
        attempt = ProviderAttempt(running.provider, True, f'in {running.precision}, {why}')
        others = [
            ProviderAttempt(old.name, False, f'{old.reason}, but is not the quickest')
            if old.ok
            else old
            for old in self.provider_report
            if old.name != running.provider or not old.ok
        ]
        self.provider_report = (*others, attempt)

    def accepts(self, height: int, width: int) -> bool:
        """Whether the model takes images of this size [px]."""
        try:
            self.limits.check(height, width)
        except EngineError:
            return False
        return True

    def close(self) -> None:
        """Free the model; `infer` raises from now on."""
        self._closed = True
        if self._upgrade is not None:
            self._upgrade.close()
        # The names stay, the memory goes.
        freed = _Running(self.provider, self.precision, HostBinding(None), spinning=self.spinning)
        self._serving = self._running = freed

    def _check_images(self, left: NDArray[np.uint8], right: NDArray[np.uint8]) -> None:
        for name, image in (('left', left), ('right', right)):
            if not isinstance(image, np.ndarray) or image.dtype != np.uint8:
                kind = getattr(image, 'dtype', type(image).__name__)
                raise EngineError(f'the {name} image is {kind}, expected a uint8 array')
            if image.ndim != 3 or image.shape[2] != 3:
                raise EngineError(
                    f'the {name} image has the shape {image.shape}, expected (H, W, 3)'
                )
        if left.shape != right.shape:
            raise EngineError(
                f'the left image has {left.shape[1]}x{left.shape[0]} pixels, the right one '
                f'{right.shape[1]}x{right.shape[0]}: a rectified pair has one size'
            )
        self.limits.check(left.shape[0], left.shape[1])


def usable_cores() -> int:
    """Physical cores among those this process may run on, 1 or more.

    Stated to ONNX Runtime rather than left to it: by default it pins one thread to each core,
    and a pinned thread whose core another process keeps busy holds up every layer of the graph.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    try:
        active = Path('/sys/devices/system/cpu/smt/active').read_text(encoding='ascii').strip()
    except OSError:
        active = '0'
    # Two threads of one core share its vector units: more of them only wait for each other.
    return max(1, (usable or 1) // (2 if active == '1' else 1))


def _precisions(name: str, precision: str) -> tuple[str, ...]:
    """Precisions to try with a provider, in order.

    Raises:
        EngineError: The provider is not built in, or knows only another precision.
    """
    # Asking for a provider that was not built in prints in red; asking first does not.
    if EXECUTION_PROVIDERS[name] not in onnxruntime.get_available_providers():
        raise EngineError(
            'this onnxruntime was built without it; pip uninstall onnxruntime, then pip install '
            f'onnxruntime-{EXTRAS[name]}'
        )
    try:
        return precisions(name, precision, computes_bf16())
    except ProviderOptionError as error:
        raise EngineError(str(error)) from error


def _create_session(
    path: Path,
    name: str,
    threads: int,
    precision: str,
    spinning: bool = True,
    gpu: GpuOptions | None = None,
    profile: SizeProfile | None = None,
    cache: EngineCache | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Any:
    """Open the model with one provider and check that this one really runs it.

    `sizes` fixes dynamic dimensions of the inputs, by their names.

    Raises:
        EngineError: The provider does not load, or onnxruntime fell back to another.
        ModelError: The file is damaged or breaks the contract.
    """
    wanted = EXECUTION_PROVIDERS[name]
    options = onnxruntime.SessionOptions()
    # Whatever goes wrong comes back as an exception; printed as well it would only repeat.
    options.log_severity_level = FATAL_ONLY
    options.inter_op_num_threads = 1
    options.add_session_config_entry('session.intra_op.allow_spinning', str(int(spinning)))
    options.add_session_config_entry('session.force_spinning_stop', '1')
    # Finer blocks of work: with equal halves a layer lasts as long as the slower core needs.
    options.add_session_config_entry('session.dynamic_block_base', '4')
    options.intra_op_num_threads = threads
    for dimension, length in (sizes or {}).items():
        options.add_free_dimension_override_by_name(dimension, length)
    if name in ON_GPU:
        _find_nvidia_libraries()
    chosen = _provider_options(name, threads, precision, gpu or GpuOptions(), profile, cache)
    onnxruntime.set_default_logger_severity(FATAL_ONLY)
    try:
        session = _open_session(path, options, chosen)
    except Exception as error:
        if name == 'cpu':
            raise ModelError(
                f'{path} cannot be loaded as an ONNX model: {_one_line(error)}'
            ) from error
        raise EngineError(f'it does not load the model: {_one_line(error)}') from error
    finally:
        onnxruntime.set_default_logger_severity(WARNINGS)
    running = session.get_providers()[0]
    if running != wanted:
        raise EngineError(
            f'onnxruntime falls back to {running}: its libraries or hardware are missing'
        )
    try:
        check_contract(session.get_inputs(), session.get_outputs())
    except ModelError as error:
        raise ModelError(f'{path} breaks the contract: {error}') from error
    return session


def _open_session(path: Path, options: Any, providers: list[tuple[str, dict[str, str]]]) -> Any:
    """A session, for OpenVINO of the graph as it stands in the file where no other opens.

    What ONNX Runtime makes of a quantised graph of any size, OpenVINO's provider takes for one
    with a cycle (onnxruntime-openvino 1.24).
    """
    level = onnxruntime.GraphOptimizationLevel

    def opened(optimised: Any) -> Any:
        options.graph_optimization_level = optimised
        return onnxruntime.InferenceSession(
            str(path), options, providers=providers, enable_fallback=0
        )

    try:
        return opened(level.ORT_ENABLE_ALL)
    except Exception as first:
        if providers[0][0] != EXECUTION_PROVIDERS['openvino']:
            raise
        try:
            return opened(level.ORT_DISABLE_ALL)
        except Exception as second:
            raise first from second


def _find_nvidia_libraries() -> None:
    """Load CUDA and cuDNN from the wheels that the `gpu` extra installs, where they are."""
    preload = getattr(onnxruntime, 'preload_dlls', None)
    if preload is not None:
        # What it does not find it prints; whether that matters shows when the session opens.
        with contextlib.redirect_stdout(io.StringIO()):
            preload()


def _one_line(error: Exception) -> str:
    return ' '.join(str(error).split())


def _provider_options(
    name: str,
    threads: int,
    precision: str,
    gpu: GpuOptions,
    profile: SizeProfile | None,
    cache: EngineCache | None,
) -> list[tuple[str, dict[str, str]]]:
    """What onnxruntime is asked for: the provider, and for TensorRT what runs the rest."""
    full_name = EXECUTION_PROVIDERS[name]
    if name == 'openvino':
        return [(full_name, openvino_options(threads, precision))]
    if name == 'cuda':
        return [(full_name, cuda_options(gpu))]
    if name == 'tensorrt' and profile is not None:
        folders = (None, None) if cache is None else (cache.directory, cache.timing_directory)
        return [
            (full_name, tensorrt_options(gpu, precision, profile, *folders)),
            (EXECUTION_PROVIDERS['cuda'], cuda_options(gpu)),
        ]
    return [(full_name, {})]


def _engine_cache(
    path: Path, profile: SizeProfile, precision: str, gpu: GpuOptions
) -> EngineCache | None:
    """Where the TensorRT engine is kept; None, with a warning, where it cannot be."""
    try:
        name, driver = gpu_and_driver(gpu.device)
        return EngineCache(
            EngineKey(
                model_sha256=file_sha256(path),
                profile=str(profile),
                precision=precision,
                gpu=name,
                driver=driver,
                tensorrt=tensorrt_version(),
                onnxruntime=onnxruntime.__version__,
            )
        )
    except CacheError as error:
        _log.warning('the TensorRT engine is not kept for the next start: %s', error)
        return None


def _bind(session: Any, name: str, gpu: GpuOptions) -> HostBinding | DeviceBinding:
    if name in ON_GPU:
        return DeviceBinding(session, 'cuda', gpu.device, gpu.cuda_graph)
    return HostBinding(session)


def _run(
    binding: HostBinding | DeviceBinding, left: NDArray[np.uint8], right: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Run one pair.

    Raises:
        EngineError: The model failed.
    """
    try:
        return binding.run(left, right)
    except Exception as error:
        height, width = left.shape[:2]
        raise EngineError(
            f'the model failed on a {width}x{height} pair: {_one_line(error)}'
        ) from error


def _sound_disparity(disparity: NDArray[np.float32]) -> NDArray[np.float32]:
    """Make NaN, in place, of what is no disparity (negative or infinite)."""
    # min and max are NaN when there is a NaN, so one comparison covers all three.
    if not (disparity.min() >= 0 and disparity.max() < np.inf):
        disparity[~((disparity >= 0) & (disparity < np.inf))] = np.nan
    return disparity


def _sound_confidence(confidence: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring a confidence into [0, 1], in place; what is no number has none."""
    if not (confidence.min() >= 0 and confidence.max() <= 1):
        np.nan_to_num(confidence, copy=False, nan=0.0, posinf=1.0, neginf=0.0)
        np.clip(confidence, 0, 1, out=confidence)
    return confidence


def _probe_pair(height: int, width: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A seeded texture and its copy moved by `PROBE_SHIFT_PX`, (H, W, 3) each."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (-(-height // 4), -(-(width + PROBE_SHIFT_PX) // 4), 3))
    texture = coarse.repeat(4, axis=0).repeat(4, axis=1).astype(np.uint8)
    left = texture[:height, :width]
    right = texture[:height, PROBE_SHIFT_PX : PROBE_SHIFT_PX + width]
    return np.ascontiguousarray(left), np.ascontiguousarray(right)


def _require_parity(
    binding: HostBinding | DeviceBinding,
    path: Path,
    threads: int,
    profile: SizeProfile | None = None,
) -> None:
    """Compare a provider's disparity with the CPU's, at a size that the profile takes.

    Raises:
        EngineError: They differ by more than reduced precision explains.
    """
    session = binding.session
    limits = _limits(session, _session_manifest(session, path))
    height = max(limits.min_height, min(PROBE_SHAPE[0], limits.max_height or PROBE_SHAPE[0]))
    width = max(limits.min_width, min(PROBE_SHAPE[1], limits.max_width or PROBE_SHAPE[1]))
    if profile is not None and not profile.takes(height, width):
        height, width = profile.usual
    left, right = _probe_pair(height, width)
    cpu = HostBinding(_create_session(path, 'cpu', threads, 'fp32'))
    reference = _run(cpu, left, right)[0]
    given = _run(binding, left, right)[0]
    _require_agreement(given, reference, 'of the CPU')


def _require_agreement(
    given: NDArray[np.float32], reference: NDArray[np.float32], whose: str
) -> None:
    """Compare a disparity with another one of the same pair.

    Raises:
        EngineError: They differ by more than reduced precision explains.
    """
    difference = np.abs(given - reference)
    if not np.isfinite(given).all() and np.isfinite(reference).all():
        raise EngineError(f'its disparity is not finite where that {whose} is')
    median, p90 = np.nanpercentile(difference, (50, 90))
    if not (median <= PARITY_MEDIAN_PX and p90 <= PARITY_P90_PX):
        raise EngineError(
            f'its disparity differs from that {whose} by {median:.2f} px in the median '
            f'and {p90:.2f} px at the 90th percentile'
        )


def _session_manifest(session: Any, path: Path) -> Manifest | None:
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if text is None:
        return None
    try:
        return Manifest.from_json(text)
    except ModelError as error:
        raise ModelError(f'{path}: {error}') from error


def _size_names(session: Any, height: int, width: int) -> dict[str, int]:
    """Names of the inputs' dynamic dimensions, and what they are for one pair of this size.

    Empty when a size has no name of its own, so that it cannot be fixed.
    """
    names: dict[str, int] = {}
    for node in session.get_inputs():
        for name, length in zip(node.shape, (1, height, width)):
            if isinstance(name, int):
                continue
            if not name or names.setdefault(name, length) != length:
                return {}
    return names


def _limits(session: Any, manifest: Manifest | None) -> InputLimits:
    """Sizes the model takes: those fixed in the graph, else those of the manifest."""
    stated = manifest.input_limits if manifest is not None else {}
    sizes = {}
    for axis, name in ((1, 'height'), (2, 'width')):
        fixed = next(
            (
                node.shape[axis]
                for node in session.get_inputs()
                if isinstance(node.shape[axis], int)
            ),
            None,
        )
        sizes[f'min_{name}'] = fixed or stated.get(f'min_{name}', 1)
        sizes[f'max_{name}'] = fixed or stated.get(f'max_{name}')
    return InputLimits(**sizes)
