# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""An evaluation as one HTML file that needs nothing else: no network, no scripts, no fonts.

Plots are SVG, pictures are JPEG inside the page. `write_html` takes what `evaluation.evaluate`
returned, the per-pair lines it left, and a few pictures.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

# Colours that stay apart for the colour-blind and on paper (Okabe and Ito).
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_PLOT_WIDTH, _PLOT_HEIGHT, _MARGIN = 560, 190, 44
_PICTURE_WIDTH_PX = 1400

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
from SGBM, difference where SGBM answers. These compare models on one bag and are no accuracy.
"""

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;
color:#1b1b1b;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse;font-size:.9em;display:block;overflow-x:auto}
th,td{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
.plots{display:flex;flex-wrap:wrap;gap:1em}figure{margin:0 0 1em}
figcaption{font-size:.85em;color:#444}img{max-width:100%;height:auto}
.pass{color:#006b4f;font-weight:600}.fail{color:#b00020;font-weight:600}.note{color:#555}
svg text{font:11px system-ui,sans-serif;fill:#444}
"""


@dataclass(frozen=True)
class Picture:
    """An RGB uint8 picture (H, W, 3) and what to say under it."""

    pixels: np.ndarray
    caption: str


def write_html(
    path: Path,
    report: Mapping[str, Any],
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
    pictures: Sequence[Picture] = (),
) -> None:
    """Write the page.

    Args:
        path: The .html file.
        report: As `report.json` holds it.
        lines: Per model name, the records of its pairs.
        pictures: Shown at the end, in this order.
    """
    body = [
        f'<h1>{_text(report["bag"]["name"])}</h1>',
        _introduction(report),
        _gate(report),
        '<h2>Figures</h2>',
        _figures_table(report['models']),
        f'<p class="note">{_MEANINGS}</p>',
        _ranges_table(report['models']),
        _live_table(report['models']),
        '<h2>Along the bag</h2>',
        _legend(report['models']),
        '<div class="plots">',
        *(_plot(title, _series(lines, name)) for name, title in _PLOTS),
        _plot('time in the model: share of pairs within, ms', _cumulative(lines), 'ms'),
        '</div>',
    ]
    if pictures:
        body.append('<h2>Pictures</h2>')
        body += [_figure(picture) for picture in pictures]
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<title>{_text(report["bag"]["name"])}: stereo evaluation</title>'
        f'<style>{_STYLE}</style>\n' + '\n'.join(part for part in body if part) + '</html>\n'
    )


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
        f'Measured on {_text(computer["cpu"])} ({computer["cores"]} cores).{warning}</p>'
        f'<p class="note">bag {report["bag"]["sha256"][:16]}, '
        f'left image {_text(report["topics"]["left_image"])}</p>'
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
        rows.append(f'<li>{_text(name)}: <span class="{kind}">{word}</span>{_text(absent)}</li>')
    return f'<p>Gate <code>{_text(gate["condition"])}</code>:</p><ul>{"".join(rows)}</ul>'


def _figures_table(models: Sequence[Mapping[str, Any]]) -> str:
    head = '<th></th>' + ''.join(f'<th>{_text(model["name"])}</th>' for model in models)
    rows = [
        f'<td>{title}</td>'
        + ''.join(f'<td>{_number(model.get(key), digits)}</td>' for model in models)
        for key, title, digits in TABLE
        if any(model.get(key) is not None for model in models)
    ]
    return _table(head, rows)


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
            cells.append(f'<td>{_number(item["mae_m"], 3)} ({_number(item["epe_px"], 2)})</td>')
        rows.append(f'<td>{_text(model["name"])}</td>' + ''.join(cells))
    return '<h2>By range</h2>' + _table(head, rows)


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
        cells += [_number(latency[rank], 1) for rank in ('p50', 'p95', 'p99')]
        rows.append(
            f'<td>{_text(model["name"])}</td>' + ''.join(f'<td>{cell}</td>' for cell in cells)
        )
    return '<h2>Live, stamp to publish</h2>' + _table(head, rows)


def _table(head: str, rows: Sequence[str]) -> str:
    return f'<table><tr>{head}</tr>' + ''.join(f'<tr>{row}</tr>' for row in rows) + '</table>'


def _legend(models: Sequence[Mapping[str, Any]]) -> str:
    entries = [
        f'<span style="color:{_colour(place)}">■</span> {_text(model["name"])}'
        for place, model in enumerate(models)
    ]
    return f'<p>{" &nbsp; ".join(entries)}</p>'


def _series(
    lines: Mapping[str, Sequence[Mapping[str, Any]]], name: str
) -> list[list[tuple[float, float]]]:
    """Per model, the points (pair, value) of one figure."""
    series = []
    for records in lines.values():
        points = []
        for record in records:
            value = record.get(name)
            if name == 'epe_px' and record['truth'] is not None:
                value = record['truth']['disparity']['epe_px']
            if value is not None:
                points.append((float(record['index']), float(value)))
        series.append(points)
    return series


def _cumulative(
    lines: Mapping[str, Sequence[Mapping[str, Any]]],
) -> list[list[tuple[float, float]]]:
    series = []
    for records in lines.values():
        times = sorted(record['inference_ms'] for record in records)
        series.append([(value, (place + 1) / len(times)) for place, value in enumerate(times)])
    return series


def _plot(title: str, series: list[list[tuple[float, float]]], x_title: str = 'pair') -> str:
    points = [point for line in series for point in line]
    if not points:
        return ''
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    y_high = max(y for _, y in points) or 1.0
    x_span = (x_high - x_low) or 1.0
    inner_width, inner_height = _PLOT_WIDTH - 2 * _MARGIN, _PLOT_HEIGHT - 2 * _MARGIN + 20

    def place(x: float, y: float) -> str:
        across = _MARGIN + inner_width * (x - x_low) / x_span
        down = 24 + inner_height * (1 - y / y_high)
        return f'{across:.1f},{down:.1f}'

    drawn = []
    for number, line in enumerate(series):
        if len(line) == 1:
            across, down = place(*line[0]).split(',')
            drawn.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{_colour(number)}"/>')
        elif line:
            path = ' '.join(place(*point) for point in line)
            drawn.append(
                f'<polyline points="{path}" fill="none" stroke="{_colour(number)}" '
                'stroke-width="1.6"/>'
            )
    bottom = 24 + inner_height
    right = _MARGIN + inner_width
    return (
        f'<svg role="img" aria-label="{_text(title)}" width="{_PLOT_WIDTH}" '
        f'height="{_PLOT_HEIGHT}" viewBox="0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}">'
        f'<text x="{_MARGIN}" y="14">{_text(title)}</text>'
        f'<path d="M{_MARGIN},24 V{bottom} H{right}" fill="none" stroke="#999"/>'
        f'<text x="{_MARGIN - 4}" y="30" text-anchor="end">{_scale(y_high)}</text>'
        f'<text x="{_MARGIN - 4}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{_MARGIN}" y="{bottom + 16}">{_scale(x_low)}</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{_scale(x_high)} '
        f'{_text(x_title)}</text>' + ''.join(drawn) + '</svg>'
    )


def _figure(picture: Picture) -> str:
    pixels = picture.pixels
    if pixels.shape[1] > _PICTURE_WIDTH_PX:
        scale = _PICTURE_WIDTH_PX / pixels.shape[1]
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(
        '.jpg', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 88)
    )[1]
    content = base64.b64encode(encoded.tobytes()).decode()
    caption = _text(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/jpeg;base64,{content}">'
        f'<figcaption>{caption}</figcaption></figure>'
    )


def _number(value: float | None, digits: int) -> str:
    return '–' if value is None or math.isnan(value) else f'{value:.{digits}f}'


def _scale(value: float) -> str:
    return f'{value:.0f}' if value >= 100 or value == int(value) else f'{value:.3g}'


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def _text(value: object) -> str:
    return html.escape(str(value))
