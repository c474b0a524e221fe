# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd bench`: models beside their peers on this machine, and above the floor."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from stereo_kd_ros.commands.console import (
    console,
    image_size,
    phase_bar,
    readable_errors,
    require_rclpy,
    table_of,
)
from stereo_kd_ros.processor import processor_name, vector_unit

NOTEWORTHY_STOLEN_PERCENT = 1.0
WIDE_COLUMNS = 92
"""Of a terminal, from which on a table of timings has room for all."""


@readable_errors
def bench(
    models: Annotated[
        str, typer.Option(help='Names or paths, comma-separated; all shipped ones without.')
    ] = '',
    providers: Annotated[
        str,
        typer.Option(
            help='Of the models, comma-separated: cpu, openvino, cuda, tensorrt, auto; with a '
            'precision as openvino:fp32.'
        ),
    ] = 'cpu',
    peers: Annotated[
        str,
        typer.Option(
            help='sgbm-3way, sgbm-hh, bm; a network as hitnet=FILE.onnx or NAME=FILE.onnx@YAML, '
            'or of the training package as torch:psmnet=WEIGHTS; ratios refer to the first.'
        ),
    ] = 'sgbm-3way',
    sizes: Annotated[str, typer.Option(help='WIDTHxHEIGHT, comma-separated.')] = '640x480',
    threads: Annotated[str, typer.Option(help='CPU threads, comma-separated.')] = '2',
    runs: Annotated[int, typer.Option(min=3, help='Counted runs of each.')] = 30,
    epe_pairs: Annotated[
        int,
        typer.Option(min=0, help='Measure the EPE on this many generated pairs of each size.'),
    ] = 0,
    data: Annotated[
        Path | None,
        typer.Option(help='Time and measure on the pairs of this bag, at their own size.'),
    ] = None,
    truth: Annotated[
        str | None, typer.Option(help='Of that bag: a topic of it or a folder of files.')
    ] = None,
    node: Annotated[
        bool,
        typer.Option(
            '--node', help='Measure the whole node instead: stamp to publish over DDS, by stage.'
        ),
    ] = False,
    rates: Annotated[
        str, typer.Option(help='With --node: pairs per second, comma-separated.')
    ] = '10,30',
    pairs: Annotated[
        int, typer.Option(min=2, max=300, help='With --node: pairs of each size and rate.')
    ] = 150,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.5, help='With --node: length of each run, instead of --pairs.'),
    ] = None,
    places: Annotated[
        str,
        typer.Option(
            help='With --node: player, node and listener as processes, or in one_process.'
        ),
    ] = 'processes,one_process',
    json_path: Annotated[
        Path | None, typer.Option('--json', help='Write the report, with machine and versions.')
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help='Write a chart (PNG, SVG or PDF; needs matplotlib).')
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            help='A report of before, or a folder of reports, of which that of a processor like '
            'this one counts; exit code 1 when a ratio grew by more than 25 %.'
        ),
    ] = None,
) -> None:
    """Time models and their peers in turn, with their ratios and the machine's floor."""
    if node:
        if plot or check:
            raise typer.BadParameter('--node has neither --plot nor --check')
        if data or truth:
            raise typer.BadParameter('--node has neither --data nor --truth')
        if ':' in providers:
            raise typer.BadParameter('with --node, --providers are without a precision')
        _bench_node(
            _words(models) or ['small'],
            _words(providers),
            [image_size(word) for word in _words(sizes)],
            [_rate(word) for word in _words(rates)],
            [_count(word) for word in _words(threads)],
            pairs,
            seconds,
            _words(places),
            json_path,
        )
        return
    from stereo_kd_ros import benchmark as benchmarking
    from stereo_kd_ros.model import list_models

    before = benchmarking.baseline_for(check, vector_unit(), processor_name()) if check else None
    if plot:
        benchmarking.check_plot(plot)
    named = _words(models) or [path.stem for path in list_models()]
    with phase_bar(transient=True) as on_progress:
        report = benchmarking.benchmark(
            named,
            _words(providers),
            _words(peers),
            [image_size(word) for word in _words(sizes)],
            [_count(word) for word in _words(threads)],
            runs,
            on_progress,
            epe_pairs,
            data=data,
            truth=truth,
        )
    machine = report['machine']
    console.print(bench_table(report))
    taken = machine['stolen_percent'] or 0.0
    if taken >= NOTEWORTHY_STOLEN_PERCENT:
        console.print(_stolen(taken, 'meanwhile'), highlight=False)
    for item in report['skipped']:
        console.print(f'not measured: {item["subject"]} on {item["provider"]}: {item["reason"]}')
    if json_path:
        benchmarking.write_report(report, json_path)
    if plot:
        benchmarking.plot_report(report, plot)
    if before is not None:
        slower = benchmarking.compare_with(report, before)
        for sentence in benchmarking.not_compared(report, before):
            console.print(f'[yellow]not compared:[/yellow] {sentence}', highlight=False)
        for sentence in slower:
            console.print(f'[red]slower:[/red] {sentence}')
        if slower:
            raise typer.Exit(1)
        console.print(f'nothing got slower than in {check}')


def bench_table(report: dict[str, Any]) -> Table:
    """A row for each subject; what all have in common stands in the title, not in each."""
    machine, rows = report['machine'], report['rows']
    columns = {
        'subject': [row['subject'] for row in rows],
        'provider': [f'{row["provider"]} {row["precision"]}'.strip() for row in rows],
        'threads': [str(row['threads']) for row in rows],
        'size': [f'{row["width"]}x{row["height"]}' for row in rows],
        'min / p50 / p99 ms': [
            f'{row["min_ms"]:.1f} / {row["p50_ms"]:.1f} / {row["p99_ms"]:.1f}' for row in rows
        ],
        'fps': [f'{row["fps"]:.1f}' for row in rows],
        'floor\nms': [_optional(row['floor_ms'], 1) for row in rows],
        f'x\n{report["reference"]}': [_optional(row['ratio_to_reference'], 2) for row in rows],
        'MB': [_optional(row['memory_mb'], 0) for row in rows],
        'EPE px': [_optional(row['epe'], 2) for row in rows],
    }
    common = [machine['processor'], machine['vectors'], f'load {machine["load_1min"]}']
    for name, unit in (('threads', ' threads'), ('size', '')):
        values = set(columns[name])
        if len(values) == 1:
            del columns[name]
            value = values.pop()
            common.append(value + (unit.removesuffix('s') if value == '1' else unit))
    if all(row['epe'] is None for row in rows):
        del columns['EPE px']
    if console.width < WIDE_COLUMNS:
        # It is 1000 / p50, and what else stands there would be cut.
        del columns['fps']
        columns['provider'] = [text.replace(' ', '\n') for text in columns['provider']]
    table = table_of(
        *columns,
        whole=('size', 'min / p50 / p99 ms'),
        title=', '.join(filter(None, common)),
    )
    for cells in zip(*columns.values(), strict=True):
        table.add_row(*cells)
    return table


def node_table(report: dict[str, Any]) -> Table:
    """What each run of the node was, and below one another what it took."""
    table = table_of(
        'run', 'dropped', 'ms, p50 / p95 / p99', title=report['machine']['cpu'], lines=True
    )
    for row in report['rows']:
        stages = ', '.join(f'{stage} {taken:.1f}' for stage, taken in row['stage_ms'].items())
        table.add_row(
            f'{row["subject"]}\n{row["provider"]}, {row["threads"]} thr\n'
            f'{row["width"]}x{row["height"]} at {row["rate_hz"]:g} Hz\n'
            + row['place'].replace('_', ' '),
            f'{row["dropped_percent"]:.1f} %\nof {row["pairs_sent"]} sent\n'
            f'at {row["sent_hz"]:.1f} Hz',
            f'engine alone {_ranks(row["bare_ms"])}\n'
            f'stamp to publish {_ranks(row["stamp_to_publish_ms"])}\n'
            f'of which {stages}\n'
            f'{_lead_in(row["lead_in"])}',
        )
    return table


def _lead_in(of: dict[str, Any]) -> str:
    """What became of the pairs that a run begins with."""
    took = 'none published'
    if of['first_ms'] is not None:
        took = f'the first took {of["first_ms"]:.0f}, the slowest {of["longest_ms"]:.0f}'
    return f'before it {of["pairs"]} pairs, {of["lost"]} lost; {took}'


def _bench_node(
    models: list[str],
    providers: list[str],
    sizes: list[tuple[int, int]],
    rates_hz: list[float],
    threads: list[int],
    pairs: int,
    seconds: float | None,
    places: list[str],
    json_path: Path | None,
) -> None:
    """Measure the node with every model, provider and thread count; one report of all rows."""
    require_rclpy()
    from stereo_kd_ros.model import resolve_model
    from stereo_kd_ros.node.latency import measure_node, rates_without_drops
    from stereo_kd_ros.results import write_json

    files = [resolve_model(model).resolve() for model in models]
    report: dict[str, Any] = {}
    with phase_bar(transient=True) as on_progress:
        for model, provider, count in itertools.product(files, providers, threads):
            of = measure_node(
                model,
                provider,
                sizes,
                rates_hz,
                count,
                pairs,
                on_progress,
                places,
                seconds,
            )
            report = of if not report else {**report, 'rows': report['rows'] + of['rows']}
    report['without_drops'] = rates_without_drops(report['rows'])
    console.print(node_table(report))
    taken = max((row['stolen_percent'] or 0.0 for row in report['rows']), default=0.0)
    if taken >= NOTEWORTHY_STOLEN_PERCENT:
        console.print(_stolen(taken, 'in one of these runs'), highlight=False)
    for of in report['without_drops']:
        kept = 'pairs dropped at every rate'
        if of['rate_hz'] is not None:
            kept = f'no pair dropped up to {of["rate_hz"]:g} Hz'
        console.print(
            f'{of["subject"]} at {of["width"]}x{of["height"]}, '
            f'{of["place"].replace("_", " ")}: {kept}',
            highlight=False,
        )
    if json_path:
        write_json(json_path, report)


def _stolen(percent: float, when: str) -> str:
    return (
        f'[yellow]The host of this virtual machine gave {percent:.1f} % of its processors to '
        f'others {when}:[/yellow] p99, and pairs dropped, are of that too.'
    )


def _rate(text: str) -> float:
    try:
        rate_hz = float(text)
    except ValueError:
        rate_hz = 0.0
    if not 0 < rate_hz < 1000:
        raise typer.BadParameter(f'{text!r} is no rate; expected pairs per second, as 30')
    return rate_hz


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(',') if word.strip()]


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f'{text!r} is no number of threads; expected 1 or more')
    return int(text)


def _ranks(figures: dict[str, float | None]) -> str:
    return ' / '.join(_optional(figures[rank], 1) for rank in ('p50', 'p95', 'p99'))


def _optional(value: float | None, digits: int) -> str:
    return '–' if value is None else f'{value:.{digits}f}'
