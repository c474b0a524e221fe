# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A network of the training package as a peer, in a process of its own.

The runtime does without PyTorch; where the training package is installed as well, its networks
(the papers' students, PSMNet and other teachers) can run beside ours on the same pairs:

    python -m stereo_kd_training.peer psmnet --weights FILE --threads 2 --device cpu

One line of JSON asks and one answers; a pair goes over as a file once, and every run of it is
timed over there, so that nothing between the processes counts.

    asked                        answered
                               {"provider": "torch 2.13.0"}  once it is ready
    {"pair": "FILE.npz"}       {}                            with `left`, `right` (H, W, 3)
    {"run": true}              {"ms": 12.3}
    {"disparity": "FILE.npy"}  {"ms": 12.3}                  writes (H, W) float32 px
    {"peak": true}             {"mb": 512.0}                 memory beyond PyTorch's own

An answer `{"error": "..."}` says what is wrong, in words.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
MODULE = 'stereo_kd_training.peer'


class ProcessPeerError(ValueError):
    """A peer that does not start, or ended."""


class ProcessPeer:
    """A network that runs in another process; `close` ends it.

    Args:
        network: its name in the training package.
        weights: a checkpoint; random ones without, which tell the time but no disparity.
        threads: of the CPU.
        device: `cpu` or `cuda`.
        command: to start instead of the training package's.

    Attributes:
        provider: what runs it, as `torch 2.13.0`.
        last_ms: of the last run, by the clock of that process.

    Raises:
        ProcessPeerError: it does not start; the message says why.
    """

    def __init__(
        self,
        network: str,
        weights: str | None,
        threads: int,
        device: str = 'cpu',
        command: Sequence[str] | None = None,
    ) -> None:
        if command is None:
            command = (sys.executable, '-m', MODULE)
        given = ['--weights', weights] if weights else []
        self._name = network
        self._folder = tempfile.TemporaryDirectory(prefix='stereo_kd_peer_')
        self._errors = Path(self._folder.name) / 'stderr'
        self._pair: tuple[Image, Image] | None = None
        self.last_ms = float('nan')
        with self._errors.open('wb') as errors:
            self._process = subprocess.Popen(
                [*command, network, *given, '--threads', str(threads), '--device', device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        try:
            self.provider = str(self._answer()['provider'])
        except BaseException:
            self.close()
            raise

    def run(self, left: Image, right: Image) -> None:
        """Run a pair of (H, W, 3) uint8 RGB images.

        Raises:
            ProcessPeerError: the network failed, or the process ended.
        """
        self._hand_over(left, right)
        self.last_ms = float(self._ask({'run': True})['ms'])

    def disparity(self, left: Image, right: Image) -> NDArray[np.float32]:
        """The same; gives (H, W) px.

        Raises:
            ProcessPeerError: the network failed, or the process ended.
        """
        self._hand_over(left, right)
        path = Path(self._folder.name) / 'disparity.npy'
        self.last_ms = float(self._ask({'disparity': str(path)})['ms'])
        return np.load(path)

    def peak_mb(self) -> float:
        """The most memory [MB] that the network has taken, its weights included."""
        return float(self._ask({'peak': True})['mb'])

    def close(self) -> None:
        """End the process; may be called twice."""
        process = self._process
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if process.stdout is not None:
            process.stdout.close()
        self._folder.cleanup()

    def _hand_over(self, left: Image, right: Image) -> None:
        known = self._pair
        if known is not None and known[0] is left and known[1] is right:
            return
        path = Path(self._folder.name) / 'pair.npz'
        np.savez(path, left=left, right=right)
        self._ask({'pair': str(path)})
        self._pair = (left, right)

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        try:
            assert self._process.stdin is not None
            print(json.dumps(question), file=self._process.stdin, flush=True)
        except (OSError, ValueError) as error:
            raise ProcessPeerError(f'{self._name}: {self._why_it_ended()}') from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ProcessPeerError(f'{self._name}: {self._why_it_ended()}')
        answer = json.loads(line)
        if 'error' in answer:
            raise ProcessPeerError(f'{self._name}: {answer["error"]}')
        return answer

    def _why_it_ended(self) -> str:
        self._process.wait()
        told = self._errors.read_text(errors='replace').strip().splitlines()
        last = told[-1] if told else f'it ended with code {self._process.returncode}'
        if "No module named 'stereo_kd_training" in last or "No module named 'torch" in last:
            return (
                'networks of the training package need PyTorch; `make env` installs both, or '
                'leave this peer out'
            )
        return last
