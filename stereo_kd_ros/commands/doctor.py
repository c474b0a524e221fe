# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""`stereo-kd doctor`: what is wrong with the camera of a bag, or with this machine.

Exit codes: 0 nothing grave, 1 an error was found (or the bag cannot be read), 2 misuse.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from stereo_kd_ros.commands.console import console, progress_bar, readable_errors, table_of

_COLOURS = {'ok': 'green', 'unknown': 'cyan', 'warn': 'yellow', 'error': 'red'}


@readable_errors
def doctor(
    bag: Annotated[
        Path | None, typer.Argument(help='rosbag2 or ROS 1 bag; this machine without one.')
    ] = None,
    namespace: Annotated[
        str | None, typer.Option(help='Look only at topics below this one.')
    ] = None,
    pairs: Annotated[int, typer.Option(min=2, max=1000, help='Pairs to look at.')] = 24,
    rate: Annotated[
        float, typer.Option(min=0.1, help="The camera's rate [Hz], to choose a model by.")
    ] = 10.0,
    measure: Annotated[bool, typer.Option(help='Time the shipped models (without a bag).')] = True,
    json_path: Annotated[Path | None, typer.Option('--json', help='Write all findings.')] = None,
) -> None:
    """Find what is wrong with a camera, or with this machine, and say what mends it."""
    report = _examine_machine(rate, measure) if bag is None else _examine(bag, namespace, pairs)
    if json_path is not None:
        json_path.parent.mkdir(parents=True, exist_ok=True)
        json_path.write_text(json.dumps(report, indent=2, allow_nan=False) + '\n')
    if report['worst'] == 'error':
        raise typer.Exit(1)


def _examine(path: Path, namespace: str | None, count: int) -> dict[str, Any]:
    from rich.markup import escape
    from rich.table import Table

    from stereo_kd_ros.bag import StereoBag
    from stereo_kd_ros.bag_sample import first_infos, sample_pairs
    from stereo_kd_ros.doctor import Doctor, examine_topic, worst
    from stereo_kd_ros.doctor_checks import CHECKS
    from stereo_kd_ros.surroundings import suggested_parameters

    with StereoBag(path, namespace=namespace) as bag, progress_bar(transient=True) as bar:
        examination = Doctor(*first_infos(bag))
        topics = bag.stereo_topics
        named = examine_topic(topics.left_image, bag.looks_rectified)
        for pair in bar.track(sample_pairs(bag, count), total=count, description='looking'):
            examination.add(pair.left, pair.right, pair.skew_ns, pair.follows)
    findings = [named, *examination.findings()]
    gravest = worst(findings)
    table = Table(
        '', 'check', 'measured', 'limit', title=escape(f'{examination.pairs} pairs of {path}')
    )
    for finding in findings:
        limit = '' if finding.limit is None or finding.value is None else f'{finding.limit:g}'
        title = CHECKS[finding.check].title
        table.add_row(_badge(finding.severity), title, escape(finding.measured), limit)
    console.print(table)
    for finding in findings:
        if finding.severity in ('warn', 'error'):
            title = CHECKS[finding.check].title
            console.print(f'{_badge(finding.severity)} [bold]{title}[/bold]: ', end='')
            _print_plain(f'{finding.meaning}\n  {finding.remedy}')
    span = examination.disparity_range()
    # A skew as long as an exposure or more pairs the wrong images: no tolerance mends that.
    skew_ms = next((f.value for f in findings if (f.check, f.severity) == ('stamps', 'warn')), 0.0)
    parameters = suggested_parameters(
        [], span=span, largest_skew_ms=skew_ms or 0.0, image_size=examination.image_size
    )
    _print_parameters(parameters)
    return {
        'schema': 1,
        'bag': path.name,
        'topics': asdict(topics),
        'pairs': examination.pairs,
        'worst': gravest,
        'findings': [finding.to_dict() for finding in findings],
        'disparity_range': None if span is None else asdict(span),
        'parameters': parameters,
    }


def _examine_machine(rate_hz: float, measure: bool) -> dict[str, Any]:
    from rich.markup import escape
    from rich.table import Table

    from stereo_kd_ros.doctor import SEVERITIES
    from stereo_kd_ros.model import list_models
    from stereo_kd_ros.surroundings import (
        Fact,
        installed_facts,
        measure_rate,
        provider_facts,
        suggested_parameters,
        transport_facts,
    )

    facts = [*installed_facts(), *transport_facts()]
    models = sorted((Path(path) for path in list_models()), key=lambda path: path.stat().st_size)
    has_engine = not any(f.name == 'onnxruntime' and f.severity == 'error' for f in facts)
    if has_engine and models:
        facts += provider_facts(models[0])
    elif not models:
        remedy = 'Put .onnx files where STEREO_KD_MODELS points, or install the package again.'
        facts.append(Fact('models', 'warn', 'none found', remedy))
    table = Table('', 'what', 'found', title='this machine')
    for fact in facts:
        table.add_row(_badge(fact.severity), fact.name, escape(fact.value))
    console.print(table)
    for fact in facts:
        if fact.remedy:
            console.print(f'{_badge(fact.severity)} [bold]{fact.name}[/bold]: ', end='')
            _print_plain(fact.remedy)

    rates = []
    if measure and has_engine and models:
        with progress_bar(transient=True) as bar:
            for path in bar.track(models, description='timing models'):
                rates.append(measure_rate(path))
        table = table_of('model', 'provider', 'ms at 640x480', 'pairs/s')
        for one in rates:
            row = (one.provider, f'{one.milliseconds:.1f}', f'{one.rate_hz:.1f}')
            table.add_row(one.model, *(('–', escape(one.error), '–') if one.error else row))
        console.print(table)
    parameters = suggested_parameters(rates, rate_hz)
    _print_parameters(parameters)
    severities = [fact.severity for fact in facts] + ['error' for one in rates if one.error]
    return {
        'schema': 1,
        'worst': max(severities, key=SEVERITIES.index),
        'facts': [asdict(fact) for fact in facts],
        'rates': [
            {
                'model': one.model,
                'provider': one.provider,
                'milliseconds': None if one.error else one.milliseconds,
                'error': one.error,
            }
            for one in rates
        ],
        'parameters': parameters,
    }


def _badge(severity: str) -> str:
    return f'[{_COLOURS[severity]}]{severity}[/{_COLOURS[severity]}]'


def _print_plain(text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _print_parameters(parameters: dict[str, Any]) -> None:
    from stereo_kd_ros.surroundings import parameter_file

    if parameters:
        console.print('\nA parameter file that fits:', style='bold')
        _print_plain(parameter_file(parameters))
