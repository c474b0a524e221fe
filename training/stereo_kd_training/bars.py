# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Progress bars of what runs in stages."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console

console = Console()


@contextlib.contextmanager
def stage_bars() -> Iterator[Callable[[str, int, int, str], None]]:
    """A bar per stage, made when the stage is first heard of."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TaskID,
        TextColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn('{task.fields[text]}'),
        console=console,
    ) as bars:
        tasks: dict[str, TaskID] = {}

        def report(stage: str, step: int, steps: int, text: str) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=steps, text='')
            bars.update(tasks[stage], completed=step, total=steps, text=text)

        yield report
