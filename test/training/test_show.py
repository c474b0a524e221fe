# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The table of all networks: real figures, in its place in a page."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip('torch', reason='the training extra is not installed')
pytest.importorskip('torch_pruning', reason='the training extra is not installed')

from stereo_kd_training import networks, show
from stereo_kd_training.networks.base import NetworkError


def test_every_network_has_a_row():
    assert set(show.STATED) == set(networks.names())
    assert set(show.VARIANTS) | set(show.TEACHERS) <= set(show.STATED)


def test_one_network_is_counted_pruned_exported_and_timed(tmp_path):
    report = show.measure(['anynet'], seconds=0.0)
    (anynet,) = report['rows']
    assert anynet['role'] == 'student'
    assert anynet['parameters'] == 43_269 and anynet['pruned_parameters'] < 35_000
    whole, early = report['exports']
    assert early['label'] == '`anynet`, `exit_stage: 3`'
    assert whole['runs'] == 2 and whole['latency_ms'] > 0
    assert whole['off_fraction'] < 0.01

    page = tmp_path / 'page.md'
    page.write_text(f'# Networks\n\n{show.BEGIN}\nold\n{show.END}\n\nmore\n')
    show.write_into(page, show.as_markdown(report))
    written = page.read_text()
    assert '| `anynet` | student | 43,269 | 0.043 M | 0.84 |' in written
    assert 'old' not in written and written.endswith(f'{show.END}\n\nmore\n')
    show.write_into(page, show.as_markdown(report))
    assert page.read_text() == written
    page.write_text('no place\n')
    with pytest.raises(NetworkError, match='no place for the table'):
        show.write_into(page, 'x')


def test_official_weights_are_judged_where_they_are(tmp_path, data_dir):
    if not (data_dir / 'weights/anynet/anynet_kitti2015.tar').is_file():
        pytest.skip('no official weights')
    name = 'anynet/anynet_kitti2015.tar'
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).symlink_to((data_dir / 'weights' / name).resolve())
    (row,) = show.official_errors(tmp_path, data_dir, limit=1)
    assert row['weights'] == 'AnyNet, KITTI 2015' and row['pairs'] == 1
    assert len(row['epe_px']) == 4
    assert row['epe_px'][-1] < row['epe_px'][0] and row['epe_px'][-1] < 1.5


def test_errors_of_stages_are_those_of_the_pixels_with_truth():
    class Constant(networks.StereoNetwork):
        stride = 16

        def forward(self, left, right):
            coarse = left[:, 0] * 0 + 12.0
            return networks.StereoOutput(coarse - 2.0, stages=(coarse, coarse - 2.0))

    image = cv2.resize(np.random.default_rng(0).integers(0, 255, (5, 9, 3), np.uint8), (70, 50))
    truth = np.full((50, 70), np.nan, np.float32)
    truth[10, 10], truth[49, 69] = 10.0, 4.0
    epe, d1 = show._stage_errors(Constant(), image, image, truth)
    assert epe == [5.0, 3.0]
    assert d1 == 50.0
