# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one HTML file that needs nothing else: no network, no scripts, no fonts.

Plots are SVG, pictures are JPEG inside the page. `write_html` takes what `evaluation.evaluate`
returned, what `evaluation.drawn_figures` made of each model's lines, and a few pictures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stereo_kd_ros.html_page import (
    Picture,
    error_key,
    figure,
    legend,
    number,
    page,
    plot,
    table,
    text,
)

# Figures of a model as tables show them: name in report.json, title, digits.
TABLE = (
    ('pairs', 'pairs', 0),
    ('epe_px', 'EPE px', 3),
    ('bad1', 'bad-1 %', 2),
    ('bad3', 'bad-3 %', 2),
    ('d1', 'D1 %', 2),
    ('edge_epe_px', 'EPE at edges px', 3),
    ('depth_mae_m', 'depth error m', 3),
    ('ause_px', 'AUSE px', 3),
    ('valid_fraction', 'valid', 3),
    ('left_right_percent', 'left-right %', 2),
    ('photometric_error', 'photometric', 2),
    ('plane_rms_px', 'planes px', 3),
    ('flicker_px', 'flicker px', 3),
    ('sgbm_difference_px', 'from SGBM px', 3),
    ('teacher_difference_px', 'from teacher px', 3),
    ('teacher_bad3', 'from teacher, bad-3 %', 2),
    ('p50_ms', 'p50 ms', 1),
    ('p95_ms', 'p95 ms', 1),
    ('p99_ms', 'p99 ms', 1),
)

_PLOTS = (
    ('epe_px', 'EPE against the truth, px'),
    ('left_right_percent', 'left-right disagreement, % of pixels'),
    ('photometric_error', 'photometric error, grey levels'),
    ('flicker_px', 'flicker, px'),
    ('sgbm_difference_px', 'difference from SGBM, px'),
    ('teacher_difference_px', 'difference from the teacher, px'),
    ('inference_ms', 'time in the model, ms'),
)

_MEANINGS = """
EPE, bad-N, D1: against the ground truth; every pixel with 0 &lt; d &lt; 192 px counts, holes are
filled with the background. AUSE: how much the confidence falls short of sorting pixels by their
true error. Without truth: left-right, pixels whose right-view disparity disagrees by more than
1 px; photometric, grey levels between the left picture and the right one warped onto it; planes,
RMS distance of the two largest planes from flat; flicker, change of disparity along optical flow;
from SGBM and from the teacher, difference where these answer. These compare models on one bag and
are no accuracy.
"""


def write_html(
    path: Path,
    report: Mapping[str, Any],
    drawn: Mapping[str, Mapping[str, np.ndarray]],
    pictures: Sequence[Picture] = (),
) -> None:
    """Write the page.

    Args:
        path: The .html file.
        report: As `report.json` holds it.
        drawn: Per model name and figure, the points (pair, value), (N, 2).
        pictures: Shown at the end, in this order.
    """
    body = [
        f'<h1>{text(report["bag"]["name"])}</h1>',
        _introduction(report),
        _gate(report),
        _models_table(report),
        '<h2>Figures</h2>',
        _figures_table(report['models']),
        f'<p class="note">{_MEANINGS}</p>',
        _ranges_table(report['models']),
        _live_table(report['models']),
        '<h2>Along the bag</h2>',
        legend([model['name'] for model in report['models']]),
        '<div class="plots">',
        *(plot(title, [figures[name] for figures in drawn.values()]) for name, title in _PLOTS),
        plot('share of pairs that took no longer', _cumulative(drawn), 'ms'),
        '</div>',
        *_sparsification(report['models']),
    ]
    if pictures:
        body += ['<h2>Pictures</h2>', error_key()]
        body += [figure(picture) for picture in pictures]
    path.write_text(page(f'{report["bag"]["name"]}: stereo evaluation', body))


def _introduction(report: Mapping[str, Any]) -> str:
    width, height = report['image_size']
    camera, computer = report['camera'], report['machine']
    unpaired = sum(report['unpaired'].values())
    warning = (
        ''
        if report['rectified_topics']
        else ' <b class="fail">The images are of a raw topic and may not be rectified.</b>'
    )
    return (
        f'<p>{report["pairs_in_bag"]} pairs of {width}×{height}, f {camera["fx_px"]:g} px, '
        f'baseline {camera["baseline_m"]:g} m; {unpaired} images without partner. '
        f'Measured on {text(computer["cpu"])} ({computer["cores"]} cores).{warning}</p>'
        f'<p class="note">bag {report["bag"]["sha256"][:16]}, '
        f'left image {text(report["topics"]["left_image"])}</p>'
    )


def _gate(report: Mapping[str, Any]) -> str:
    gate = report.get('gate')
    if not gate:
        return ''
    rows = []
    for name, verdict in gate['models'].items():
        word = 'passed' if verdict['passed'] else 'not passed'
        absent = f' (not measured: {", ".join(verdict["absent"])})' if verdict['absent'] else ''
        kind = 'pass' if verdict['passed'] else 'fail'
        rows.append(f'<li>{text(name)}: <span class="{kind}">{word}</span>{text(absent)}</li>')
    return f'<p>Gate <code>{text(gate["condition"])}</code>:</p><ul>{"".join(rows)}</ul>'


def _models_table(report: Mapping[str, Any]) -> str:
    """Which file each figure is of; the teacher beside them."""
    teacher = report.get('teacher')
    listed = [*report['models'], *([teacher] if teacher else [])]
    rows = []
    for place, model in enumerate(listed):
        name = f'teacher: {model["name"]}' if place == len(report['models']) else model['name']
        digest = model.get('sha256')
        words = [model.get('file'), model.get('version'), digest and digest[:16]]
        cells = ['–' if cell is None else text(cell) for cell in (*words, model.get('provider'))]
        rows.append(
            f'<td>{text(name)}</td>' + ''.join(f'<td class="words">{cell}</td>' for cell in cells)
        )
    heads = ''.join(
        f'<th class="words">{head}</th>' for head in ('file', 'version', 'SHA-256', 'provider')
    )
    return table(f'<th>model</th>{heads}', rows)


def _figures_table(models: Sequence[Mapping[str, Any]]) -> str:
    head = '<th></th>' + ''.join(f'<th>{text(model["name"])}</th>' for model in models)
    rows = [
        f'<td>{title}</td>'
        + ''.join(f'<td>{number(model.get(key), digits)}</td>' for model in models)
        for key, title, digits in TABLE
        if any(model.get(key) is not None for model in models)
    ]
    return table(head, rows)


def _ranges_table(models: Sequence[Mapping[str, Any]]) -> str:
    if not any(item['pixels'] for model in models for item in model['ranges']):
        return ''
    bins = next(model['ranges'] for model in models if model['ranges'])
    used = [place for place, item in enumerate(bins) if item['pixels']]
    head = '<th>depth error m (EPE px) by true depth</th>' + ''.join(
        f'<th>{bins[place]["from_m"]:g} to {bins[place]["to_m"]:g} m</th>' for place in used
    )
    rows = []
    for model in models:
        cells = []
        for place in used:
            item = model['ranges'][place] if model['ranges'] else {'mae_m': None, 'epe_px': None}
            cells.append(f'<td>{number(item["mae_m"], 3)} ({number(item["epe_px"], 2)})</td>')
        rows.append(f'<td>{text(model["name"])}</td>' + ''.join(cells))
    return '<h2>By range</h2>' + table(head, rows)


def _live_table(models: Sequence[Mapping[str, Any]]) -> str:
    live = [model for model in models if model.get('live')]
    if not live:
        return ''
    head = ''.join(
        f'<th>{title}</th>'
        for title in (
            'live node',
            'pairs sent',
            'published',
            'dropped',
            'p50 ms',
            'p95 ms',
            'p99 ms',
        )
    )
    rows = []
    for model in live:
        run = model['live']
        dropped = {cause: number for cause, number in run['dropped'].items() if number}
        causes = ', '.join(f'{number} {cause}' for cause, number in dropped.items()) or '0'
        latency = run['stamp_to_publish_ms']
        cells = [run['pairs_sent'], run['pairs_published'], causes]
        cells += [number(latency[rank], 1) for rank in ('p50', 'p95', 'p99')]
        rows.append(
            f'<td>{text(model["name"])}</td>' + ''.join(f'<td>{cell}</td>' for cell in cells)
        )
    return '<h2>Live, stamp to publish</h2>' + table(head, rows)


def _sparsification(models: Sequence[Mapping[str, Any]]) -> list[str]:
    """A plot per model that has a confidence: its curve and that of the true errors."""
    drawn = []
    for model in models:
        curves = model.get('sparsification')
        if curves:
            removed = np.linspace(0, 100, len(curves['epe_px']), endpoint=False)
            lines = [np.stack([removed, curves[name]], axis=1) for name in ('epe_px', 'oracle_px')]
            drawn.append(plot(f'{model["name"]}: EPE of what is left, px', lines, '% removed'))
    if not drawn:
        return []
    return [
        '<h2>Sparsification</h2>',
        legend(['least confident pixels removed', 'worst pixels removed: the best possible']),
        '<div class="plots">',
        *drawn,
        '</div>',
    ]


def _cumulative(drawn: Mapping[str, Mapping[str, np.ndarray]]) -> list[np.ndarray]:
    series = []
    for figures in drawn.values():
        times = np.sort(figures['inference_ms'][:, 1])
        series.append(np.stack([times, np.arange(1, len(times) + 1) / max(len(times), 1)], axis=1))
    return series
