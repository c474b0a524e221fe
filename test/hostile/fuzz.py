# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`make fuzz`: damaged messages at decode, pair, infer, publish, watched from outside.

    python test/hostile/fuzz.py --messages 100000 [--minutes 30] [--seed 0] [--round N]

A child process does the work and tells after every few rounds what came of it; a child that dies
counts as a crash, one that is silent for too long as a hang, and the next child goes on with the
round after. Round N of a seed is always the same, and `--round N` repeats it alone, with a
traceback. The last line is the verdict, `fuzz: 100000 messages, 0 crashes, 0 hangs, 0 wrong`, and
the exit code is 1 unless all three are 0.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from fuzz_target import Crash, FuzzTarget, WrongAnswer, open_engine
from rich.table import Table

from stereo_kd_ros.commands.console import console, progress_bar

ROUNDS_PER_REPORT = 50
# The first report takes the start of the process, on a cold and busy machine, too.
HANG_S = 180.0
SHOWN_FAILURES = 10
# A process that dies again and again needs no more proof.
MOST_FAILURES = 20


@dataclass
class Tally:
    """What the children have told so far."""

    messages: int = 0
    crashes: int = 0
    hangs: int = 0
    wrong: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def add(self, report: dict[str, Any]) -> None:
        """Takes one report of a child."""
        self.messages += report['messages']
        self.crashes += report['crashes']
        self.wrong += report['wrong']
        self.outcomes.update(report['outcomes'])
        self.failures += report['failures']

    @property
    def sound(self) -> bool:
        """Whether nothing went wrong, and something was thrown."""
        return not (self.crashes or self.hangs or self.wrong) and self.messages > 0


class Worker:
    """The work itself: rounds against targets that pair exactly, roughly, and compressed."""

    def __init__(self, seed: int, folder: Path) -> None:
        self._seed = seed
        engine = open_engine(folder)
        exact, rough = FuzzTarget(engine), FuzzTarget(engine, approximate=True)
        self._targets = [*[exact] * 6, *[rough] * 3, FuzzTarget(engine, compressed=True)]

    def round(self, number: int) -> None:
        """Does one round; raises what the target raises."""
        self._target(number).round(Random(f'{self._seed}/{number}'))

    def rounds(self, numbers: range) -> dict[str, Any]:
        """Does some rounds and returns a report of them."""
        report: dict[str, Any] = {'last': numbers[-1], 'crashes': 0, 'wrong': 0, 'failures': []}
        distinct = {id(target): target for target in self._targets}.values()
        before = sum(target.messages for target in distinct)
        for target in distinct:
            target.outcomes.clear()
        for number in numbers:
            try:
                self.round(number)
            except (WrongAnswer, Crash) as error:
                report['wrong' if isinstance(error, WrongAnswer) else 'crashes'] += 1
                report['failures'].append(f'round {number}: {type(error).__name__}: {error}')
        report['messages'] = sum(target.messages for target in distinct) - before
        report['outcomes'] = sum((target.outcomes for target in distinct), Counter())
        return report

    def _target(self, number: int) -> FuzzTarget:
        return self._targets[number % len(self._targets)]


class Child:
    """A worker in a process of its own, from one round on."""

    def __init__(self, seed: int, first_round: int, log: Path) -> None:
        self.next_round = first_round
        command = [sys.executable, __file__, '--seed', str(seed), '--from', str(first_round)]
        environ = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
        with log.open('ab') as errors:
            self._process = subprocess.Popen(
                command,
                bufsize=0,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environ,
            )
        self._selector = selectors.DefaultSelector()
        assert self._process.stdout is not None
        self._selector.register(self._process.stdout, selectors.EVENT_READ)

    def report(self) -> dict[str, Any] | None:
        """Returns the next report; None when the child has died.

        Raises:
            TimeoutError: It is silent for too long.
        """
        if not self._selector.select(HANG_S):
            raise TimeoutError
        line = self._process.stdout.readline()
        if not line.endswith(b'\n'):
            return None
        report = json.loads(line)
        self.next_round = report['last'] + 1
        return report

    def end(self) -> int:
        """Ends it and returns its exit code."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.stdout.close()
        return self._process.wait()


def supervise(seed: int, messages: int, seconds: float, log: Path) -> Tally:
    """Runs children until that many messages were thrown, or the time is up."""
    tally = Tally()
    deadline_s = time.monotonic() + seconds
    with progress_bar() as progress:
        task = progress.add_task('messages', total=messages)
        child = Child(seed, 0, log)
        try:
            while tally.messages < messages and time.monotonic() < deadline_s:
                if tally.crashes + tally.hangs > MOST_FAILURES:
                    break
                child = go_on(child, tally, seed, log)
                progress.update(task, completed=min(tally.messages, messages))
        finally:
            child.end()
    return tally


def go_on(child: Child, tally: Tally, seed: int, log: Path) -> Child:
    """Takes one report; returns the child that goes on."""
    rounds = f'rounds {child.next_round} to {child.next_round + ROUNDS_PER_REPORT - 1}'
    try:
        report = child.report()
    except TimeoutError:
        tally.hangs += 1
        tally.failures.append(f'{rounds}: silent for {HANG_S:.0f} s')
    else:
        if report is not None:
            tally.add(report)
            return child
        tally.crashes += 1
        tally.failures.append(f'{rounds}: the process ended with {child.end()}, see {log}')
    child.end()
    return Child(seed, child.next_round + ROUNDS_PER_REPORT, log)


def work(seed: int, first_round: int) -> None:
    """Is the child: reports on stdout until nobody listens any more."""
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(seed, Path(folder))
        while os.getppid() != 1:
            numbers = range(first_round, first_round + ROUNDS_PER_REPORT)
            print(json.dumps(worker.rounds(numbers)), flush=True)
            first_round += ROUNDS_PER_REPORT


def replay(seed: int, number: int) -> None:
    """Repeats one round, after those just before it, on which pairing depends."""
    with tempfile.TemporaryDirectory() as folder:
        worker = Worker(seed, Path(folder))
        worker.rounds(range(max(number - 20, 0), number + 1)[:-1] or range(1))
        worker.round(number)


def show(tally: Tally, seconds: float) -> None:
    """Prints what became of the pairs, what failed, and the verdict."""
    table = Table(title='What became of the pairs', box=None)
    table.add_column('outcome')
    table.add_column('pairs', justify='right')
    for outcome, number in tally.outcomes.most_common():
        table.add_row(outcome, f'{number:,}')
    console.print(table)
    for failure in tally.failures[:SHOWN_FAILURES]:
        console.print(failure, markup=False, style='red', soft_wrap=True)
    console.print(f'{tally.messages / seconds:.0f} messages per second')
    console.print(
        f'fuzz: {tally.messages} messages, {tally.crashes} crashes, {tally.hangs} hangs, '
        f'{tally.wrong} wrong',
        highlight=False,
        soft_wrap=True,
    )


def main() -> int:
    """Reads the command line and runs."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--messages', type=int, default=100_000)
    parser.add_argument('--minutes', type=float, default=30.0, help='stop after this long')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--round', type=int, help='repeat this round alone')
    parser.add_argument('--from', type=int, dest='first_round', help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.first_round is not None:
        work(asked.seed, asked.first_round)
        return 0
    if asked.round is not None:
        replay(asked.seed, asked.round)
        console.print(f'round {asked.round} of seed {asked.seed} holds')
        return 0
    log = Path(tempfile.gettempdir()) / f'stereo_kd_fuzz_{os.getpid()}.log'
    began_s = time.monotonic()
    tally = supervise(asked.seed, asked.messages, asked.minutes * 60, log)
    show(tally, time.monotonic() - began_s)
    if not tally.sound:
        return 1
    log.unlink(missing_ok=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
