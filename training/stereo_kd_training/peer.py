# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""A network of this package as a peer in the runtime's benchmark, which has no PyTorch itself.

    python -m stereo_kd_training.peer psmnet --weights FILE --threads 2 --device cpu

Answers what `stereo_kd_ros.process_peer` asks, one line of JSON each, until its input ends.
Images go in as bytes and maps come out in the computer's memory, as for every other subject of a
benchmark: normalising, padding and a GPU's copies are part of the time.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

import numpy as np
import torch

from stereo_kd_ros.subjects import resident_mb
from stereo_kd_training import networks
from stereo_kd_training.networks.checkpoint import load_checkpoint
from stereo_kd_training.teachers import TorchTeacher


class Peer:
    """A network and the pair it was given last.

    Args:
        network: its name.
        weights: a checkpoint; random weights without.
        device: where it runs.

    Raises:
        NetworkError: unknown network, or weights that are not its own.
        RuntimeError: there is no such device.
    """

    def __init__(self, network: str, weights: str | None, device: str) -> None:
        if device == 'cuda' and not torch.cuda.is_available():
            raise RuntimeError('this PyTorch sees no GPU; take torch: instead of torch-cuda:')
        self._device = device
        self._before_mb = _peak_mb(device)
        torch.manual_seed(0)
        built = networks.create(network)
        if weights:
            load_checkpoint(built, weights)
        self._teacher = TorchTeacher(built, device=device)
        self._pair: tuple[np.ndarray, np.ndarray] | None = None

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        """What is asked of it; see the module.

        Raises:
            ValueError: it is asked something else, or to run before it has a pair.
        """
        if 'pair' in question:
            with np.load(question['pair']) as pair:
                self._pair = pair['left'], pair['right']
            return {}
        if 'peak' in question:
            return {'mb': round(_peak_mb(self._device) - self._before_mb, 1)}
        if self._pair is None or not {'run', 'disparity'} & set(question):
            raise ValueError(f'asked {question} {"with" if self._pair else "without"} a pair')
        started = time.perf_counter()
        # The disparity comes back to the computer's memory, so a GPU is done by then.
        disparity = self._teacher.predict(*self._pair).disparity
        taken_ms = 1e3 * (time.perf_counter() - started)
        if 'disparity' in question:
            np.save(question['disparity'], disparity.astype(np.float32))
        return {'ms': taken_ms}


def serve(peer: Peer, asked: TextIO, answers: TextIO) -> None:
    """Answer until there are no more questions."""
    for line in asked:
        try:
            answer = peer.answer(json.loads(line))
        except Exception as error:  # whatever it is, the other process tells it
            answer = {'error': ' '.join(str(error).split()) or type(error).__name__}
        print(json.dumps(answer), file=answers, flush=True)


def _peak_mb(device: str) -> float:
    if device == 'cuda':
        return torch.cuda.max_memory_reserved() / 1e6
    return resident_mb('VmHWM')


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('network')
    parser.add_argument('--weights')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    asked = parser.parse_args(argv)
    # Whatever prints goes to stderr: the real stdout holds answers alone.
    answers = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)
    torch.set_num_threads(asked.threads)
    try:
        peer = Peer(asked.network, asked.weights, asked.device)
    except Exception as error:  # an unknown network, foreign weights: told, not traced
        answer = {'error': ' '.join(str(error).split())}
        print(json.dumps(answer), file=answers, flush=True)
        return 1
    ready = {'provider': f'torch {torch.__version__}' + (' cuda' * (asked.device == 'cuda'))}
    print(json.dumps(ready), file=answers, flush=True)
    serve(peer, sys.stdin, answers)
    return 0


if __name__ == '__main__':
    sys.exit(main())
