# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Run a script as the two ranks of one group of processes, as a launcher would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys


def run_in_two_processes(script: str, *arguments: str) -> None:
    """Run `script` as ranks 0 and 1 of one gloo group; a failure shows its errors."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        port = probe.getsockname()[1]
    workers = []
    for rank in range(2):
        environment = {
            **os.environ,
            'RANK': str(rank),
            'LOCAL_RANK': str(rank),
            'WORLD_SIZE': '2',
            'LOCAL_WORLD_SIZE': '2',
            'MASTER_ADDR': '127.0.0.1',
            'MASTER_PORT': str(port),
            'ACCELERATE_USE_CPU': 'true',
            'PYTHONPATH': os.pathsep.join(path for path in sys.path if path),
        }
        workers.append(
            subprocess.Popen(
                [sys.executable, '-c', script, *arguments], env=environment, stderr=subprocess.PIPE
            )
        )
    try:
        for worker in workers:
            _, errors = worker.communicate(timeout=600)
            assert worker.returncode == 0, errors.decode()[-3000:]
    finally:
        for worker in workers:
            worker.kill()
