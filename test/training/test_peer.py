# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Networks of the training package as peers of a benchmark, in a real process of their own."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from stereo_kd_ros.benchmark import benchmark  # noqa: E402
from stereo_kd_ros.process_peer import ProcessPeerError  # noqa: E402
from stereo_kd_ros.subjects import open_peer  # noqa: E402
from stereo_kd_training.networks import NetworkError, create  # noqa: E402
from stereo_kd_training.peer import Peer  # noqa: E402


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp('weights') / 'anynet.tar'
    torch.save({'state_dict': create('anynet').state_dict()}, path)
    return path


def test_a_papers_student_runs_beside_a_matcher(weights):
    report = benchmark(
        [],
        peers=['bm', f'torch:anynet={weights}', 'torch:compact_stereonet'],
        sizes=[(128, 64)],
        threads=[1],
        runs=3,
        epe_pairs=1,
        memory=False,
    )
    matcher, trained, random = report['rows']
    assert [row['subject'] for row in report['rows']] == ['bm', 'anynet', 'compact_stereonet']
    assert trained['provider'] == f'torch {torch.__version__}'
    assert trained['p50_ms'] > 0
    assert trained['ratio_to_reference'] > 0
    # With weights there is an error to tell, with random ones only the time.
    assert trained['epe'] > 0
    assert random['epe'] is None
    assert matcher['epe'] > 0


def test_its_disparity_is_that_of_the_network(weights):
    peer = open_peer(f'torch:anynet={weights}', 1)
    try:
        rng = np.random.default_rng(0)
        left, right = (rng.integers(0, 255, (64, 128, 3), np.uint8) for _ in range(2))
        given = peer.disparity(left, right)
        beside = Peer('anynet', str(weights), 'cpu')
        np.testing.assert_allclose(
            given, beside._teacher.predict(left, right).disparity, atol=1e-4
        )
        assert peer.own_peak_mb() > 0
    finally:
        peer.close()


def test_what_cannot_be_run_is_told_in_words():
    with pytest.raises(ProcessPeerError, match=r"unknown network 'psmnett'; .* 'psmnet'"):
        open_peer('torch:psmnett', 1)


def test_weights_or_a_gpu_that_are_not_there_are_told(tmp_path):
    with pytest.raises(NetworkError, match='no checkpoint at'):
        Peer('anynet', str(tmp_path / 'absent.tar'), 'cpu')
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(RuntimeError, match='sees no GPU'):
        Peer('anynet', None, 'cuda')


def test_a_peer_without_a_pair_says_so(weights):
    with pytest.raises(ValueError, match='without a pair'):
        Peer('anynet', str(weights), 'cpu').answer({'run': True})
