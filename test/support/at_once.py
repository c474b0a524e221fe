# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The same work in several threads at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

START_S = 60.0


def at_once(work: Callable[[Any], object], arguments: Sequence[Any]) -> None:
    """Run `work(argument)` in a thread for each, none before all are there; raise what they do."""
    all_there = threading.Barrier(len(arguments), timeout=START_S)

    def one(argument: Any) -> None:
        all_there.wait()
        work(argument)

    with ThreadPoolExecutor(len(arguments)) as threads:
        for _ in threads.map(one, arguments):
            pass
