# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Parts of a report as one HTML file that needs nothing else: no network, no scripts, no fonts.

Plots are SVG, pictures are JPEG inside of the page.
"""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

# Colours that stay apart for the colour-blind and on paper (Okabe and Ito).
_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')
_PLOT_WIDTH, _PLOT_HEIGHT, _MARGIN = 560, 190, 44
_PICTURE_WIDTH_PX = 1400

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1200px;margin:2em auto;padding:0 1em;
color:#1b1b1b;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse;font-size:.9em;display:block;overflow-x:auto}
th,td{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
th.words,td.words{text-align:left;white-space:normal}
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


def page(title: str, body: Sequence[str]) -> str:
    """A whole page; empty parts are left out."""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<title>{text(title)}</title>'
        f'<style>{_STYLE}</style>\n' + '\n'.join(part for part in body if part) + '</html>\n'
    )


def table(head: str, rows: Sequence[str]) -> str:
    """A table out of its head's cells and its rows' cells, both HTML already."""
    return f'<table><tr>{head}</tr>' + ''.join(f'<tr>{row}</tr>' for row in rows) + '</table>'


def legend(names: Sequence[str]) -> str:
    """Which colour is whose."""
    entries = [
        f'<span style="color:{_colour(place)}">■</span> {text(name)}'
        for place, name in enumerate(names)
    ]
    return f'<p>{" &nbsp; ".join(entries)}</p>'


def plot(title: str, series: list[list[tuple[float, float]]], x_title: str = 'pair') -> str:
    """Lines from 0 upwards as SVG; empty without points.

    Args:
        title: also for those who hear the page.
        series: of (x, y), one per colour of `legend`.
        x_title: of the x axis.
    """
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
    for which, line in enumerate(series):
        if len(line) == 1:
            across, down = place(*line[0]).split(',')
            drawn.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{_colour(which)}"/>')
        elif line:
            path = ' '.join(place(*point) for point in line)
            drawn.append(
                f'<polyline points="{path}" fill="none" stroke="{_colour(which)}" '
                'stroke-width="1.6"/>'
            )
    bottom = 24 + inner_height
    right = _MARGIN + inner_width
    return (
        f'<svg role="img" aria-label="{text(title)}" width="{_PLOT_WIDTH}" '
        f'height="{_PLOT_HEIGHT}" viewBox="0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}">'
        f'<text x="{_MARGIN}" y="14">{text(title)}</text>'
        f'<path d="M{_MARGIN},24 V{bottom} H{right}" fill="none" stroke="#999"/>'
        f'<text x="{_MARGIN - 4}" y="30" text-anchor="end">{_scale(y_high)}</text>'
        f'<text x="{_MARGIN - 4}" y="{bottom}" text-anchor="end">0</text>'
        f'<text x="{_MARGIN}" y="{bottom + 16}">{_scale(x_low)}</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{_scale(x_high)} '
        f'{text(x_title)}</text>' + ''.join(drawn) + '</svg>'
    )


def figure(picture: Picture) -> str:
    """A picture inside of the page, with its caption."""
    pixels = picture.pixels
    if pixels.shape[1] > _PICTURE_WIDTH_PX:
        scale = _PICTURE_WIDTH_PX / pixels.shape[1]
        pixels = cv2.resize(pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    encoded = cv2.imencode(
        '.jpg', cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR), (cv2.IMWRITE_JPEG_QUALITY, 88)
    )[1]
    content = base64.b64encode(encoded.tobytes()).decode()
    caption = text(picture.caption)
    return (
        f'<figure><img alt="{caption}" src="data:image/jpeg;base64,{content}">'
        f'<figcaption>{caption}</figcaption></figure>'
    )


def number(value: float | None, digits: int) -> str:
    """A figure of a table; a dash where there is none."""
    return '–' if value is None or math.isnan(value) else f'{value:.{digits}f}'


def _scale(value: float) -> str:
    return f'{value:.0f}' if value >= 100 or value == int(value) else f'{value:.3g}'


def _colour(place: int) -> str:
    return _COLOURS[place % len(_COLOURS)]


def text(value: object) -> str:
    """Anything as text that HTML shows as it is."""
    return html.escape(str(value))
