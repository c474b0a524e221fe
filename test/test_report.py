# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The HTML report: complete in itself, well-formed, and safe with any name."""

from __future__ import annotations

import base64
import itertools
import re
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

from stereo_kd_ros.evaluation import DRAWN, FIGURES, RANGE_BINS_M
from stereo_kd_ros.html_page import plot, strip, thinned
from stereo_kd_ros.report import Picture, write_html

VOID = {'meta', 'img'}


class _Balance(HTMLParser):
    """Collects tags and checks that what opens closes."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.links += [value or '' for name, value in attrs if name in ('src', 'href')]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def _model(name: str, epe_px: float | None) -> dict[str, object]:
    ranges = [
        {'from_m': low, 'to_m': high, 'pixels': 10, 'epe_px': epe_px, 'mae_m': 0.1}
        for low, high in itertools.pairwise(RANGE_BINS_M)
    ]
    figures = dict.fromkeys(FIGURES) | {'pairs': 3, 'epe_px': epe_px, 'p50_ms': 12.5}
    return {'name': name, **figures, 'ranges': ranges if epe_px is not None else []}


def _report(*models: dict[str, object]) -> dict[str, object]:
    return {
        'bag': {'name': 'drive <1>', 'sha256': 'ab' * 32},
        'topics': {'left_image': '/left/image_rect'},
        'pairs_in_bag': 3,
        'unpaired': {'unmatched_left': 2},
        'image_size': [64, 48],
        'camera': {'fx_px': 100.0, 'baseline_m': 0.1},
        'rectified_topics': False,
        'machine': {'cpu': 'test', 'cores': 2},
        'models': list(models),
        'gate': {
            'condition': 'bad3<5',
            'passed': False,
            'models': {'<b>': {'passed': False, 'absent': ['bad3']}},
        },
    }


def _drawn(values: list[float]) -> dict[str, np.ndarray]:
    """As if only the first pair had no truth, and nothing else were measured."""
    points = np.array(list(enumerate(values)), float).reshape(-1, 2)
    drawn = dict.fromkeys(DRAWN, np.empty((0, 2)))
    return drawn | {
        'inference_ms': points,
        'left_right_percent': points,
        'epe_px': points[1:],
    }


def test_a_page_needs_nothing_else(tmp_path: Path) -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[..., 0] = 250
    write_html(
        tmp_path / 'report.html',
        _report(_model('<b>', 1.25), _model('other', None)),
        {'<b>': _drawn([1.0, 2.0, 3.0]), 'other': _drawn([4.0])},
        [Picture(pixels, 'pair 0 & more')],
    )
    page = (tmp_path / 'report.html').read_text()
    parser = _Balance()
    parser.feed(page)

    assert parser.open == []
    assert all(link.startswith('data:image/jpeg;base64,') for link in parser.links)
    assert 'script' not in parser.seen and 'http' not in page
    assert '&lt;b&gt;' in page and '<b>:' not in page
    assert '1.250' in page and 'not measured: bad3' in page and 'may not be rectified' in page
    assert parser.seen.count('polyline') >= 3
    encoded = base64.b64decode(parser.links[0].split(',', 1)[1])
    picture = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR)
    assert picture[10, 15].tolist() == pytest.approx([0, 0, 250], abs=6)


def test_curves_stay_inside_their_plots(tmp_path: Path) -> None:
    drawn = {'m': _drawn([0.0, 1e6, 5.0, 0.001])}
    write_html(tmp_path / 'report.html', _report(_model('m', 1.0)), drawn)
    page = (tmp_path / 'report.html').read_text()

    for points in re.findall(r'<polyline points="([^"]+)"', page):
        for point in points.split():
            across, down = map(float, point.split(','))
            assert 0 <= across <= 560 and 0 <= down <= 190


def test_a_line_of_any_length_is_drawn_with_its_peaks() -> None:
    """Three hours at 10 Hz: what cannot be told apart is left out, what stands out is not."""
    index = np.arange(108_000, dtype=float)
    values = 10 + np.sin(index / 500)
    values[77_777], values[33_333] = 99.0, 0.5
    thin = thinned(np.stack([index, values], axis=1), 400)

    assert len(thin) <= 800 and (np.diff(thin[:, 0]) > 0).all()
    assert thin[:, 1].max() == 99.0 and thin[:, 1].min() == 0.5
    assert thin[0, 0] < 300 and thin[-1, 0] > 107_700
    assert len(plot('long', [np.stack([index, values], axis=1)])) < 20_000
    short = np.stack([index, values], axis=1)[:500]
    np.testing.assert_array_equal(thinned(short, 400), short)


def test_the_page_says_which_files_and_how_well_confidence_sorts(tmp_path: Path) -> None:
    model = _model('small', 1.0) | {
        'file': 'kestrel.onnx',
        'version': '1.2',
        'sha256': 'c0ffee' * 10,
        'provider': 'cpu',
        'sparsification': {'epe_px': [2.0, 1.5, 1.0, 0.5], 'oracle_px': [2.0, 1.0, 0.5, 0.1]},
    }
    report = _report(model) | {'teacher': {'name': 'hit', 'file': 'net.onnx', 'sha256': None}}
    picture = Picture(np.zeros((20, 30, 3), np.uint8), 'pair 0')
    write_html(tmp_path / 'report.html', report, {'small': _drawn([1.0])}, [picture])
    page = (tmp_path / 'report.html').read_text()

    for said in ('kestrel.onnx', '1.2', 'c0ffeec0ffeec0ff', 'teacher: hit', 'net.onnx'):
        assert f'>{said}</td>' in page
    assert 'Sparsification' in page and 'small: EPE of what is left, px' in page
    assert 'below 0.5' in page and '10 and more' in page


def test_labels_of_wide_pictures_are_as_large_as_those_of_small_ones() -> None:
    """A label is 28 rows high, whatever the pictures under it were."""
    wide = np.zeros((400, 2800, 3), np.uint8)
    made = strip([wide, wide, wide], ['left', 'right', 'truth'], 2)
    assert made.shape[:2] == (2 * (28 + 100) + 4, 2 * 700 + 4)
    assert made[:28].max() == 255 and (made[:28, :100] < 128).any(), 'no label'
    small = np.zeros((40, 60, 3), np.uint8)
    assert strip([small, small], ['left', 'right'], 2).shape[:2] == (68, 124)
