# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Two processes over gloo compute the gradients and statistics of one, to rounding."""

from __future__ import annotations

import pytest

pytest.importorskip('torch', reason='the training extra is not installed')

from two_processes import run_in_two_processes

# In float64, so that a difference is a mistake and not the order of a sum.
WORKER = """
import copy, torch
import torch.distributed as distributed
from torch import nn
from stereo_kd_training.parallel import share_statistics

torch.set_num_threads(1)
distributed.init_process_group('gloo')
rank = distributed.get_rank()
torch.manual_seed(0)
whole = nn.Sequential(
    nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Unflatten(1, (2, 3)),
    nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(),
    nn.Flatten(2), nn.BatchNorm1d(4),
).double()
shared = copy.deepcopy(whole)
share_statistics(shared)
assert all(isinstance(m, nn.BatchNorm2d) for m in shared if 'Norm2d' in type(m).__name__)
images = torch.randn(4, 3, 7, 9, dtype=torch.float64)

def loss(network, part):
    return network(part).pow(3).sum((1, 2)).mean()

expected = loss(whole, images)
expected.backward()
got = loss(shared, images[rank::2])
got.backward()
total = got.detach().clone()
distributed.all_reduce(total)
torch.testing.assert_close(total / 2, expected.detach())
for ours, theirs in zip(whole.parameters(), shared.parameters()):
    gradient = theirs.grad.clone()
    distributed.all_reduce(gradient)
    torch.testing.assert_close(gradient / 2, ours.grad, rtol=1e-9, atol=1e-12)
for key, value in whole.state_dict().items():
    torch.testing.assert_close(shared.state_dict()[key], value, rtol=1e-9, atol=1e-12)
torch.testing.assert_close(shared.eval()(images), whole.eval()(images))
# A process that ends with gloo's threads still running may be aborted.
distributed.barrier()
distributed.destroy_process_group()
"""


COMMAND = """
import sys
import torch.distributed as distributed
from stereo_kd_training.main import main

distributed.init_process_group('gloo')
for arguments, ends_well in ((['--no-such-option'], False), (['--help'], True)):
    sys.argv = ['stereo-kd-train', *arguments]
    try:
        main()
    except SystemExit as end:
        assert (not end.code) == ends_well, end.code
    # after a failure nothing waits for the others
    assert distributed.is_initialized() == (not ends_well)
"""


def test_a_command_of_several_processes_leaves_their_group():
    run_in_two_processes(COMMAND)


def test_batch_norm_sees_the_batch_of_all_processes():
    run_in_two_processes(WORKER)
