# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Peers in processes of their own: what they answer, and how they fail."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from stereo_kd_ros.process_peer import ProcessPeer, ProcessPeerError

# Speaks the protocol without PyTorch: the disparity is the left image's red channel.
PROGRAM = """
import json, sys
import numpy as np
print(json.dumps({'provider': 'pretended ' + ' '.join(sys.argv[1:])}), flush=True)
pairs = 0
for line in sys.stdin:
    asked = json.loads(line)
    if 'pair' in asked:
        pair, pairs = np.load(asked['pair']), pairs + 1
        answer = {}
    elif 'peak' in asked:
        answer = {'mb': 3.5}
    elif pair['left'].max() == 255:
        answer = {'error': 'it is too bright'}
    elif pair['left'].max() == 254:
        sys.exit('it broke')
    else:
        if 'disparity' in asked:
            np.save(asked['disparity'], pair['left'][..., 0].astype(np.float32))
        answer = {'ms': 7.0 + pairs}
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def peer():
    peer = ProcessPeer('net', 'weights.tar', 2, command=(sys.executable, '-c', PROGRAM))
    yield peer
    peer.close()


def grey(level: int) -> np.ndarray:
    return np.full((4, 6, 3), level, np.uint8)


def test_it_is_told_what_to_run(peer):
    assert peer.provider == 'pretended net --weights weights.tar --threads 2 --device cpu'


def test_a_pair_goes_over_once_and_is_timed_over_there(peer):
    left, right = grey(3), grey(4)
    for _ in range(3):
        peer.run(left, right)
    assert peer.last_ms == 8.0
    np.testing.assert_array_equal(peer.disparity(left, right), np.full((4, 6), 3.0))
    np.testing.assert_array_equal(peer.disparity(grey(5), right), np.full((4, 6), 5.0))
    assert peer.last_ms == 9.0
    assert peer.peak_mb() == 3.5


def test_a_failure_is_told_and_the_next_pair_runs(peer):
    with pytest.raises(ProcessPeerError, match='net: it is too bright'):
        peer.run(grey(255), grey(1))
    peer.run(grey(7), grey(1))


def test_a_process_that_ends_is_an_error_with_its_last_words(peer):
    with pytest.raises(ProcessPeerError, match='net: it broke'):
        peer.run(grey(254), grey(1))
    with pytest.raises(ProcessPeerError, match='it broke'):
        peer.peak_mb()


def test_closing_ends_the_process(peer):
    process = peer._process
    assert process.poll() is None
    peer.close()
    assert process.poll() == 0
    peer.close()


def test_without_the_training_package_it_says_what_to_install():
    missing = 'raise ModuleNotFoundError("No module named \'torch\'")'
    with pytest.raises(ProcessPeerError, match='make env'):
        ProcessPeer('psmnet', None, 1, command=(sys.executable, '-c', missing))
