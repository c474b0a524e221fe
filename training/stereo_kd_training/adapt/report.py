# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What an adaptation did and what came of it: report.json for programs, report.html for eyes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stereo_kd_ros.evaluation import ModelMatcher
from stereo_kd_ros.html_page import (
    Picture,
    error_key,
    figure,
    legend,
    number,
    page,
    plot,
    strip,
    table,
    text,
)
from stereo_kd_ros.results import machine
from stereo_kd_ros.visualize import colorize_disparity, colorize_error
from stereo_kd_training.adapt.label import read_label
from stereo_kd_training.adapt.settings import STAGES, RunFolder, write_json
from stereo_kd_training.adapt.student import find_student
from stereo_kd_training.datasets.base import read_rgb

SCHEMA = 'stereo_kd_ros/adaptation/1'
_PICTURES = 3
_MEANINGS = {
    'teacher': 'error against the believed pixels of the teacher, on the held-out part',
    'truth': 'error against ground truth, on the held-out part',
    'procedural': 'error on procedural scenes with exact truth, none of them learnt from',
    'procedural_bad3': 'pixels of these scenes that are off by more than 3 px',
    'parity': 'largest difference between the file and the network',
    'swap': 'confident pixels when the eyes are exchanged, as a share of those in order',
    'mirror': 'pixels whose answer in the mirrored pair is another one',
    'shift': 'median error of a pair whose right picture is shifted',
    'shift_off': 'pixels of that pair that are off by more than 1 px',
    'latency': 'of one pair of the size of the bag',
}


def write_report(run: RunFolder, folder: Path) -> None:
    """Write both files, of the stages that there are."""
    folder.mkdir(parents=True, exist_ok=True)
    report = gathered(run)
    write_json(folder / 'report.json', report)
    partial = folder / '.report.html'
    partial.write_text(_html(run, report), encoding='utf-8')
    partial.replace(folder / 'report.html')


def gathered(run: RunFolder) -> dict[str, Any]:
    """The facts of every finished stage."""
    stages = {stage: run.facts(stage) for stage in STAGES if run.is_done(stage)}
    gate = stages.get('gate')
    return {
        'schema': SCHEMA,
        'name': run.settings.name,
        'passed': bool(gate and gate['passed']),
        'fell_short': gate['fell_short'] if gate else None,
        'seconds': {stage: facts.get('seconds') for stage, facts in stages.items()},
        'machine': machine(),
        'stages': stages,
    }


def _html(run: RunFolder, report: Mapping[str, Any]) -> str:
    stages = report['stages']
    body = [f'<h1>{text(report["name"])}</h1>', _verdict(report)]
    body += [_checks(stages['gate'])] if 'gate' in stages else []
    body += [_introduction(stages), _licences(stages)]
    body.append('<h2>Stages</h2>')
    body.append(_stage_table(run, report))
    curves = _curves(run)
    if curves:
        body += ['<h2>Training</h2>', '<div class="plots">', *curves, '</div>']
    body += _held_out_plots(run)
    if 'gate' in stages:
        body += ['<h2>Held-out pairs</h2>', error_key(), *map(figure, _held_out_pictures(run))]
    if 'label' in stages:
        body += ['<h2>Labels</h2>', *map(figure, _label_pictures(run))]
    return page(f'{report["name"]}: adaptation', body)


def _verdict(report: Mapping[str, Any]) -> str:
    if report['passed']:
        return '<p class="pass">Passed the gate and is delivered.</p>'
    short = ', '.join(report['fell_short'] or ['it did not come as far as the gate'])
    return f'<p class="fail">Not delivered. What fell short: {text(short)}</p>'


def _checks(gate: Mapping[str, Any]) -> str:
    head = ''.join(f'<th>{name}</th>' for name in ('check', 'before', 'after', 'limit', '', ''))
    rows = []
    for check in gate['checks']:
        kind, word = ('pass', 'passed') if check['passed'] else ('fail', 'not passed')
        rows.append(
            f'<td>{text(check["name"])}: {_MEANINGS[check["name"]]}</td>'
            f'<td>{number(check["before"], 3)}</td><td>{number(check["measured"], 3)}</td>'
            f'<td>{number(check["limit"], 3)}</td><td>{text(check["unit"])}</td>'
            f'<td class="{kind}">{word}</td>'
        )
    return table(head, rows)


def _introduction(stages: Mapping[str, Any]) -> str:
    if 'look' not in stages:
        return ''
    look = stages['look']
    camera, student = look['camera'], look['student']
    bags = ', '.join(f'{bag["name"]} ({bag["pairs"]} pairs)' for bag in look['bags'])
    found = [
        f'<li>{text(bag["name"])}: {text(finding["check"])}: {text(finding["measured"])}</li>'
        for bag in look['bags']
        for finding in bag['findings']
        if finding['severity'] in ('warn', 'error')
    ]
    listed = f'<ul>{"".join(found)}</ul>' if found else ''
    return (
        f'<p>From {text(student["name"])}, with {text(bags)}: {camera["width"]}×'
        f'{camera["height"]}, f {camera["fx"]:.1f} px, baseline {camera["baseline_m"]:.4f} m, '
        f'calibration {look["calibration"]["hash"]}.</p>{listed}'
    )


def _licences(stages: Mapping[str, Any]) -> str:
    if 'look' not in stages:
        return ''
    rows = [
        f'<td>{text(teacher["name"])}</td><td class="words">{text(teacher["licence"])}</td>'
        for teacher in stages['look']['teachers']
    ]
    note = (
        '<p class="note">The labels are derived from the teacher: its licence follows the student '
        'and stands in its manifest.</p>'
    )
    return table('<th>labels by</th><th class="words">licence</th>', rows) + note


def _stage_table(run: RunFolder, report: Mapping[str, Any]) -> str:
    log = (run.folder / 'log.txt').read_text(encoding='utf-8').splitlines()
    rows = []
    for stage, facts in report['stages'].items():
        said = [line.split(maxsplit=3) for line in log]
        lines = [parts[3] for parts in said if len(parts) == 4 and parts[2] == stage]
        # A resumed stage says some of its lines again.
        told = '<br>'.join(text(line) for line in dict.fromkeys(lines))
        seconds = facts.get('seconds')
        rows.append(f'<td>{stage}</td><td>{number(seconds, 1)}</td><td class="words">{told}</td>')
    return table('<th>stage</th><th>seconds</th><th></th>', rows)


def _curves(run: RunFolder) -> list[str]:
    """Loss and validation error over the steps, stage after stage."""
    loss: list[tuple[float, float]] = []
    error: list[tuple[float, float]] = []
    behind = 0
    runs = [run.stage('distil'), *sorted(run.stage('prune').glob('step_*'))]
    for folder in runs:
        path = folder / 'log.jsonl'
        if not path.is_file():
            continue
        # A run that was killed logs the steps after its checkpoint twice; the last ones count.
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for key, points in (('train/loss', loss), ('validation/epe_px', error)):
            known = {line['step']: line[key] for line in lines if line.get(key) is not None}
            points += [(float(behind + step), known[step]) for step in sorted(known)]
        behind += max(line['step'] for line in lines)
    return [
        plot('loss', [loss], 'step'),
        plot('EPE against the labels of the validation part, px', [error], 'step'),
    ]


def _held_out_plots(run: RunFolder) -> list[str]:
    path = run.stage('gate') / 'measured_held_out.json'
    if not path.is_file():
        return []
    records = json.loads(path.read_text())
    names = ('before', 'after')
    series = [
        [
            (float(index), record[name]['teacher']['epe_px'])
            for index, record in enumerate(records)
            if record[name]['teacher']
        ]
        for name in names
    ]
    return [
        '<h2>Along the held-out part</h2>',
        legend(names),
        plot('EPE against the labels, px', series, 'held-out pair'),
    ]


def _held_out_pictures(run: RunFolder) -> list[Picture]:
    """The pair that gained most, the median one, and the one that gained least."""
    names = run.facts('select')['held_out']
    records = json.loads((run.stage('gate') / 'measured_held_out.json').read_text())
    gains = [
        r['before']['teacher']['epe_px'] - r['after']['teacher']['epe_px']
        if r['before']['teacher']
        else 0.0
        for r in records
    ]
    order = np.argsort(gains)[::-1]
    places = np.linspace(0, len(order) - 1, min(_PICTURES, len(order))).round().astype(int)
    shipped = ModelMatcher(
        find_student(run.settings.student).whole(run.stage('look')), 'cpu', 'before'
    )
    adapted = ModelMatcher(run.folder / run.facts('gate')['model'], 'cpu', 'after')
    pictures = []
    for place in places:
        index = int(order[place])
        pictures.append(_comparison(run, names[index], gains[index], (shipped, adapted)))
    return pictures


def _comparison(
    run: RunFolder, name: str, gain: float, matchers: Sequence[ModelMatcher]
) -> Picture:
    left, right = (
        read_rgb(run.stage('select') / 'pairs' / eye / f'{name}.png') for eye in ('left', 'right')
    )
    label = read_label(run.stage('label') / 'labels' / f'{name}.png')
    known = label[np.isfinite(label)]
    most = float(np.percentile(known, 99)) if known.size else 64.0
    images, labels = (
        [left, colorize_disparity(label, most)],
        ['left', f'label, 0 to {most:.0f} px'],
    )
    for matcher in matchers:
        told = matcher.match(left, right).dense
        images += [colorize_disparity(told, most), colorize_error(told, label)]
        labels += [matcher.name, f'{matcher.name}: error']
    word = 'lower' if gain >= 0 else 'higher'
    return Picture(strip(images, labels, 2), f'{name}: error {abs(gain):.3f} px {word}')


def _label_pictures(run: RunFolder) -> list[Picture]:
    facts = run.facts('label')
    return [
        Picture(
            read_rgb(run.stage('label') / 'pictures' / f'{name}.png'),
            f'{name}: {facts["coverage_by_pair"][name]:.0%} of the pixels have a label',
        )
        for name in facts['pictures']
    ]
