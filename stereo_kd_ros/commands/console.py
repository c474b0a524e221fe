# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What every sub-command shares: the terminal, progress bars, and errors made readable.

Exit codes: 0 done, 1 the work failed (a bad file, a dead node), 2 the command was misused.
"""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

console = Console()
error_console = Console(stderr=True)

Command = TypeVar('Command', bound=Callable[..., Any])

_CAUSES = {
    errno.ENOENT: 'there is no such file or folder; check the path',
    errno.ENOTDIR: 'a part of this path is a file where a folder is needed; check the path',
    errno.EISDIR: 'is a folder where a file is expected; give a file',
    errno.EEXIST: 'a file is in the way of the folder to be made; give another name',
    errno.EACCES: 'this user may not open it; change its permissions or give another path',
    errno.EROFS: 'nothing can be written there; give another path',
    errno.ENOSPC: 'the disk is full; make room, then run the command again',
}


def progress_bar(*, transient: bool = False) -> Progress:
    """A bar with counts, elapsed and remaining time; on stderr, so that stdout can be piped."""
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=error_console,
        transient=transient,
    )


@contextmanager
def phase_bar(
    label: str = '', *, transient: bool = False
) -> Iterator[Callable[[str, int, int], None]]:
    """One bar for work in phases: call what it gives with the phase, how much is done, of what.

    Args:
        label: Comes before each phase.
        transient: Leave nothing of the bar on the terminal.
    """
    with progress_bar(transient=transient) as bar:
        task = bar.add_task(f'{label}starting', total=None)
        yield lambda phase, done, total: bar.update(
            task, description=label + phase, completed=done, total=total
        )


def table_of(
    *columns: str, whole: tuple[str, ...] = (), title: str | None = None, lines: bool = False
) -> Table:
    """A table, with `lines` between its rows where they are of several lines.

    The first column, what a row is about, and those in `whole` are never cut.
    """
    table = Table(title=title, show_lines=lines)
    for number, column in enumerate(columns):
        table.add_column(column, no_wrap=number == 0 or column in whole)
    return table


def image_size(text: str) -> tuple[int, int]:
    """Read `640x480` as (width, height).

    Raises:
        typer.BadParameter: It is anything else.
    """
    width, mark, height = text.lower().partition('x')
    if not (mark and width.isdigit() and height.isdigit() and int(width) and int(height)):
        raise typer.BadParameter(f'{text!r} is no size; expected WIDTHxHEIGHT, as 640x480')
    return int(width), int(height)


def message_of(error: Exception) -> str:
    """What to tell the user: of what the system refused, the path, the reason and what to do."""
    cause = _CAUSES.get(error.errno or 0) if isinstance(error, OSError) else None
    if cause is None:
        return str(error)
    return f'{error.filename}: {cause}.' if error.filename else f'{cause}.'


def readable_errors_of(*packages: str) -> Callable[[Command], Command]:
    """Turn errors of these packages and of files into one message on stderr and exit code 1.

    Anything else is a bug and keeps its traceback.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            try:
                return command(*args, **kwargs)
            except Exception as error:
                known = type(error).__module__.split('.')[0] in packages
                if not known and not isinstance(error, OSError):
                    raise
                message = message_of(error)
                error_console.print('[red]error:[/red] ', end='')
                error_console.print(message, markup=False, highlight=False, soft_wrap=True)
                raise typer.Exit(1) from error

        return wrapper  # type: ignore[return-value]

    return decorate


readable_errors = readable_errors_of('stereo_kd_ros')


def require_rclpy() -> None:
    """Leave with exit code 1 and advice where ROS is not installed."""
    if find_spec('rclpy') is None:
        error_console.print(
            '[red]error:[/red] rclpy is not installed. Source a ROS 2 distribution, or run '
            '`make env` in the repository for an environment with ROS from wheels.'
        )
        raise typer.Exit(1)
