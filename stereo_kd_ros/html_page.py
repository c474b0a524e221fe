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

from stereo_kd_ros.visualize import ERROR_COLOURS, ERROR_STEPS_PX, picture_strip

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
.key{display:inline-block;padding:0 .5em;border-radius:3px;font-size:.85em}
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


def error_key() -> str:
    """What the colours of an error picture mean."""
    bounds = [*(f'below {step:g}' for step in ERROR_STEPS_PX), f'{ERROR_STEPS_PX[-1]:g} and more']
    keys = []
    for words, colour in zip(bounds, ERROR_COLOURS):
        ink = '#fff' if sum(colour) < 330 else '#000'
        style = f'background:rgb{colour};color:{ink}'.replace(' ', '')
        keys.append(f'<span class="key" style="{style}">{words}</span>')
    return (
        f'<p>Error px: {" ".join(keys)}; black where nothing is known. Disparity: near is red, '
        'far is blue, black is no answer.</p>'
    )


def plot(
    title: str,
    series: Sequence[Sequence[tuple[float, float]] | np.ndarray],
    x_title: str = 'pair',
) -> str:
    """Lines from 0 upwards as SVG; empty without points.

    Args:
        title: also for those who hear the page.
        series: of (x, y) by rising x, one per colour of `legend`; of more points than can be told
            apart only the lowest and the highest of each column are drawn.
        x_title: of the x axis.
    """
    inner_width, inner_height = _PLOT_WIDTH - 2 * _MARGIN, _PLOT_HEIGHT - 2 * _MARGIN + 20
    lines = [np.asarray(line, np.float64).reshape(-1, 2) for line in series]
    points = np.concatenate([*lines, np.empty((0, 2))])
    if not len(points):
        return ''
    x_low, x_high = float(points[:, 0].min()), float(points[:, 0].max())
    y_high = float(points[:, 1].max()) or 1.0
    x_span = (x_high - x_low) or 1.0

    def place(x: float, y: float) -> str:
        across = _MARGIN + inner_width * (x - x_low) / x_span
        down = 24 + inner_height * (1 - y / y_high)
        return f'{across:.1f},{down:.1f}'

    drawn = []
    for which, line in enumerate(lines):
        if len(line) == 1:
            across, down = place(*line[0]).split(',')
            drawn.append(f'<circle cx="{across}" cy="{down}" r="3" fill="{_colour(which)}"/>')
        elif len(line):
            path = ' '.join(place(*point) for point in thinned(line, inner_width))
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
        f'<text x="{_MARGIN + inner_width / 2:g}" y="{bottom + 16}" text-anchor="middle">'
        f'{text(x_title)}</text>'
        f'<text x="{right}" y="{bottom + 16}" text-anchor="end">{_scale(x_high)}</text>'
        + ''.join(drawn)
        + '</svg>'
    )


def thinned(line: np.ndarray, columns: int) -> np.ndarray:
    """Of a line (N, 2) by rising x no more points than can be seen in so many columns.

    The lowest and the highest of each column stay, so that no peak is lost; a line of fewer points
    is left as it is.
    """
    if len(line) <= 2 * columns:
        return line
    low, span = line[0, 0], (line[-1, 0] - line[0, 0]) or 1.0
    column = np.minimum(((line[:, 0] - low) / span * columns).astype(int), columns - 1)
    # By column, then by height: the ends of each run are its lowest and its highest.
    order = np.lexsort((line[:, 1], column))
    borders = np.flatnonzero(np.diff(column[order]))
    first, last = np.append(0, borders + 1), np.append(borders, len(order) - 1)
    return line[np.unique(np.concatenate([order[first], order[last]]))]


def strip(images: Sequence[np.ndarray], labels: Sequence[str], columns: int) -> np.ndarray:
    """Pictures under their labels in rows of so many, as wide together as a page shows them.

    They are shrunk before they are labelled, so that the labels can be read.
    """
    scale = _PICTURE_WIDTH_PX / columns / images[0].shape[1]
    if scale < 1:
        images = [
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            for image in images
        ]
    return picture_strip(images, labels, columns)


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
