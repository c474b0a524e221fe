# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What a benchmark times: contract models on a provider, and their peers.

A `SubjectSpec` says how to open one, so that it can be opened a second time in a process of its
own, where the memory it takes is told from that of all others:

    model    a contract model behind `StereoEngine`, on PROVIDER or PROVIDER:PRECISION
    peer     sgbm-3way, sgbm-hh, bm                   OpenCV's matchers over 192 px
             NAME=FILE.onnx[@YAML]                    a network of others, see `onnx_peer`
             torch:NAME[=WEIGHTS]                     a network of the training package in PyTorch,
             torch-cuda:NAME[=WEIGHTS]                in a process of its own, see `process_peer`
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stereo_kd_ros.procedural import render_pair
from stereo_kd_ros.providers import PRECISIONS, ProviderOptionError, precisions, provider_names

Image = NDArray[np.uint8]
Run = Callable[[Image, Image], Any]
MATCHERS = ('sgbm-3way', 'sgbm-hh', 'bm')
TORCH = {'torch': 'cpu', 'torch-cuda': 'cuda'}
DISPARITY_RANGE_PX = 192
MEMORY_TIMEOUT_S = 600.0


class BenchmarkError(ValueError):
    """A benchmark that cannot be run or compared."""


@dataclass(frozen=True)
class Subject:
    """Something that is timed.

    Attributes:
        name: of the model or peer.
        provider: what really runs it.
        run: takes two (H, W, 3) uint8 RGB images.
        disparity: takes the same, gives (H, W) px, dense; None when it has no error to measure.
        prepare: told (height, width) [px] before a size is timed, as a node does at its start.
        macs_640x480: multiply-accumulates of a model at 640x480; None for a peer.
        weight_bytes: read once per frame.
        precision: that it computes in; empty where there is no choice.
        ran: provider and precision that the last run really had, where they may change with the
            image size.
        own_ms: of the last run by its own clock, for what runs in another process; asked after
            each run.
        own_peak_mb: the memory it took, for what runs in another process.
        close: ends it.
    """

    name: str
    provider: str
    run: Run
    macs_640x480: int | None = None
    weight_bytes: int = 0
    disparity: Run | None = None
    prepare: Callable[[int, int], Any] | None = None
    precision: str = ''
    ran: Callable[[], tuple[str, str]] | None = None
    own_ms: Callable[[], float] | None = None
    own_peak_mb: Callable[[], float] | None = None
    close: Callable[[], None] | None = None


@dataclass(frozen=True)
class SubjectSpec:
    """How to open a subject.

    Attributes:
        kind: `model` or `peer`.
        name: of the peer; name or path of the model.
        provider: of a model, `auto` included.
        precision: of a model.
    """

    kind: str
    name: str
    provider: str = ''
    precision: str = 'auto'

    def open(self, threads: int) -> Subject:
        """Open it with this many threads of the CPU.

        Raises:
            EngineError, ModelError, BenchmarkError, OnnxPeerError, ProcessPeerError: it cannot be.
        """
        if self.kind == 'peer':
            return open_peer(self.name, threads)
        return open_model(self.name, self.provider, threads, self.precision)


def provider_of(text: str) -> tuple[str, str]:
    """Provider and precision from `PROVIDER` or `PROVIDER:PRECISION`.

    Raises:
        BenchmarkError: one of them does not exist, or the provider has no such precision.
    """
    provider, mark, precision = text.partition(':')
    precision = precision if mark else 'auto'
    if precision not in PRECISIONS:
        raise BenchmarkError(
            f'{text!r} names the precision {precision!r}, expected one of {", ".join(PRECISIONS)}'
        )
    try:
        provider_names(provider)
        if provider != 'auto' and precision != 'auto':
            precisions(provider, precision, True)
    except ProviderOptionError as error:
        raise BenchmarkError(f'{text}: {error}') from error
    return provider, precision


def check_peer(text: str) -> None:
    """Check that there can be such a peer, before anything is timed.

    Raises:
        BenchmarkError: there is none of this name.
    """
    kind, mark, _ = text.partition(':')
    if text in MATCHERS or (mark and kind in TORCH) or '=' in text:
        return
    raise BenchmarkError(
        f'there is no peer {text!r}; expected one of {", ".join(MATCHERS)}, NAME=FILE.onnx, '
        'or torch:NETWORK[=WEIGHTS]'
    )


def open_model(model: str, provider: str, threads: int, precision: str = 'auto') -> Subject:
    """A contract model behind `StereoEngine`.

    Raises:
        EngineError, ModelError: as the engine does.
    """
    from stereo_kd_ros.engine import StereoEngine

    engine = StereoEngine(model, provider=provider, threads=threads, precision=precision)
    manifest = engine.manifest
    # A file in few bits computes in them whatever the provider does with what is left.
    variant = manifest.extra.get('variant') if manifest else None
    in_file = variant.get('precision') if isinstance(variant, dict) else None

    def ran() -> tuple[str, str]:
        if in_file == 'int8' or (in_file == 'fp16' and engine.provider == 'cuda'):
            return engine.provider, in_file
        return engine.provider, engine.precision

    return Subject(
        name=manifest.name if manifest else Path(engine.path).stem,
        provider=engine.provider,
        precision=ran()[1],
        run=engine.infer,
        macs_640x480=getattr(manifest, 'macs_640x480', 0) or None,
        weight_bytes=Path(engine.path).stat().st_size,
        disparity=lambda left, right: engine.infer(left, right).disparity,
        prepare=lambda height, width: engine.warm_up(height, width, runs=1),
        ran=ran,
        close=engine.close,
    )


def open_peer(text: str, threads: int) -> Subject:
    """A classic matcher over 192 px, padded so that every column can be matched, or a network.

    Args:
        text: as the module lists them.
        threads: of the CPU.

    Raises:
        BenchmarkError: there is no such peer.
        OnnxPeerError: the network's file or its adapter is at fault.
        ProcessPeerError: the training package is missing, or its network or weights are at fault.
    """
    check_peer(text)
    if text in MATCHERS:
        return _open_matcher(text, threads)
    kind, mark, network = text.partition(':')
    if mark and kind in TORCH:
        return _open_torch(network, threads, TORCH[kind])
    name, _, file = text.partition('=')
    return _open_network(name, file, threads)


def _open_network(name: str, file: str, threads: int) -> Subject:
    from stereo_kd_ros.onnx_peer import open_onnx_peer

    network = open_onnx_peer(name, file, threads)
    return Subject(
        name,
        'cpu',
        network,
        weight_bytes=network.path.stat().st_size,
        disparity=network,
        precision='fp32',
    )


def _open_torch(text: str, threads: int, device: str) -> Subject:
    from stereo_kd_ros.process_peer import ProcessPeer

    name, _, weights = text.partition('=')
    peer = ProcessPeer(name, weights or None, threads, device)
    return Subject(
        name,
        peer.provider,
        peer.run,
        # Answers of random weights have no error worth telling.
        disparity=peer.disparity if weights else None,
        precision='fp32',
        own_ms=lambda: peer.last_ms,
        own_peak_mb=peer.peak_mb,
        close=peer.close,
    )


def _open_matcher(name: str, threads: int) -> Subject:
    import cv2

    from stereo_kd_ros.baselines import BlockMatcher, Sgbm

    matcher: Any = (
        BlockMatcher(DISPARITY_RANGE_PX)
        if name == 'bm'
        else Sgbm(DISPARITY_RANGE_PX, 'hh' if name == 'sgbm-hh' else '3way')
    )

    def run(left: Image, right: Image) -> Any:
        cv2.setNumThreads(threads)
        return matcher.compute(left, right)

    return Subject(name, f'opencv {cv2.__version__}', run, disparity=matcher.dense)


def measure_memory(spec: SubjectSpec, width: int, height: int, threads: int) -> float | None:
    """Peak resident memory [MB] that opening a subject and running it at a size adds.

    In a process of its own, with its libraries imported before: what several subjects share, or
    leave to each other, counts for none of them. None where it does not run.
    """
    command = [sys.executable, '-m', 'stereo_kd_ros.subjects', json.dumps(asdict(spec))]
    try:
        result = subprocess.run(
            [*command, str(width), str(height), str(threads)],
            capture_output=True,
            text=True,
            timeout=MEMORY_TIMEOUT_S,
        )
        return float(result.stdout.splitlines()[-1])
    except (subprocess.TimeoutExpired, ValueError, IndexError):
        return None


def resident_mb(what: str = 'VmRSS') -> float:
    """Memory of this process [MB], or with `VmHWM` the most it ever had; NaN where not told.

    Not `getrusage`: its maximum is that of the process which started this one, if that is more.
    """
    try:
        for line in Path('/proc/self/status').read_text(encoding='ascii').splitlines():
            if line.startswith(f'{what}:'):
                return int(line.split()[1]) * 1024 / 1e6
    except (OSError, ValueError, IndexError):
        pass
    return math.nan


def main(argv: Sequence[str] | None = None) -> int:
    """Open a subject, run it once, and print the memory that took."""
    text, width, height, threads = sys.argv[1:] if argv is None else argv
    spec = SubjectSpec(**json.loads(text))
    # Imported and used before, so that what is measured is the subject's own.
    import cv2  # noqa: F401
    import onnxruntime  # noqa: F401

    pair = render_pair(0, int(height), int(width))
    before, highest = resident_mb(), resident_mb('VmHWM')
    subject = spec.open(int(threads))
    try:
        if subject.prepare is not None:
            subject.prepare(int(height), int(width))
        subject.run(pair.left, pair.right)
        if subject.own_peak_mb is not None:
            added = subject.own_peak_mb()
        else:
            peak = resident_mb('VmHWM')
            # What is not above the peak of rendering the pair is not the subject's.
            added = (peak if peak > highest else resident_mb()) - before
    finally:
        if subject.close is not None:
            subject.close()
    if math.isnan(added):
        return 1
    print(round(max(added, 0.0), 1))
    return 0


if __name__ == '__main__':
    sys.exit(main())
