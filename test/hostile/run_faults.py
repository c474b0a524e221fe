# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`make faults`: every named fault, its answer, and whether the node survived it.

    python test/hostile/run_faults.py [--only TEXT]

The last line is the verdict, `faults: 53 of 53 survived`; the exit code is 1 unless all did.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults import FAULTS, Fault, run_all
from process_faults import MORE_FAULTS, PROCESS_FAULTS, run_processes
from rich.table import Table

from stereo_kd_ros.commands.console import console
from stereo_kd_ros.transport import apply_fastdds_profile


@contextmanager
def node_log(path: Path) -> Iterator[None]:
    """Sends what the node under test writes to stderr into a file: it has a lot to say."""
    sys.stderr.flush()
    kept = os.dup(2)
    with path.open('wb') as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)


def chosen(faults: list[Fault], text: str) -> list[Fault]:
    """The faults whose name holds a text."""
    return [fault for fault in faults if text in fault.name]


def show(results: list[tuple[Fault, float, str]]) -> None:
    """Prints the table and the verdict."""
    table = Table(title='Faults', box=None)
    for column in ('fault', 'counted', 'said', 'then', 'seconds'):
        table.add_column(column, justify='right' if column == 'seconds' else 'left')
    for fault, seconds, reason in results:
        then = f'[red]{reason}' if reason else '[green]survived'
        table.add_row(fault.name, fault.counter, fault.says, then, f'{seconds:.1f}')
    console.print(table)
    survived = sum(not reason for _, _, reason in results)
    console.print(f'faults: {survived} of {len(results)} survived', highlight=False)


def main() -> int:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--only', default='', metavar='TEXT', help='faults whose name holds it')
    asked = parser.parse_args()
    log = Path(tempfile.gettempdir()) / f'stereo_kd_faults_{os.getpid()}.log'
    here = chosen([*FAULTS, *MORE_FAULTS], asked.only)
    across = chosen(PROCESS_FAULTS, asked.only)
    if not here and not across:
        parser.error(f'no fault has {asked.only!r} in its name')
    apply_fastdds_profile()  # read when the first participant is made
    with node_log(log):
        console.print(f'{len(here)} faults in one process (log: {log})', highlight=False)
        results = run_all(here)
        console.print(f'{len(across)} faults across processes', highlight=False)
        results += run_processes(across) if across else []
    show(results)
    if any(reason for _, _, reason in results):
        return 1
    log.unlink()
    return 0


if __name__ == '__main__':
    sys.exit(main())
