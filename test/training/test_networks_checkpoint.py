# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Weight files: read safely, loaded strictly, refused in words."""

from __future__ import annotations

import pickle

import pytest

torch = pytest.importorskip('torch', reason='training needs torch')

from torch import nn  # noqa: E402

from stereo_kd_training.networks.checkpoint import (  # noqa: E402
    CheckpointError,
    load_checkpoint,
    read_state_dict,
)


def small_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))


class Trap:
    """Runs code when unpickled carelessly."""

    def __reduce__(self):
        return (print, ('executed',))


@pytest.mark.parametrize('envelope', [None, 'state_dict', 'model', 'network'])
def test_envelopes_and_the_parallel_prefix_are_taken_off(tmp_path, envelope):
    source, target = small_network(), small_network()
    state = {f'module.{key}': value for key, value in source.state_dict().items()}
    torch.save({envelope: state, 'epoch': 3} if envelope else state, tmp_path / 'weights.tar')
    load_checkpoint(target, tmp_path / 'weights.tar')
    torch.testing.assert_close(target.state_dict(), source.state_dict())


def test_files_older_than_batch_counters_load(tmp_path):
    state = small_network().state_dict()
    del state['1.num_batches_tracked']
    torch.save(state, tmp_path / 'old.tar')
    load_checkpoint(small_network(), tmp_path / 'old.tar')


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, capsys):
    path = tmp_path / 'trap.tar'
    torch.save({'state_dict': Trap()}, path)
    with pytest.raises(CheckpointError, match=r'trap\.tar is not a checkpoint'):
        read_state_dict(path)
    assert 'executed' not in capsys.readouterr().out


@pytest.mark.parametrize(
    ('content', 'complaint'),
    [
        (b'', 'is not a checkpoint'),
        (b'not a checkpoint at all', 'is not a checkpoint'),
        (pickle.dumps([1, 2, 3], protocol=2), 'holds no state dict|is not a checkpoint'),
    ],
)
def test_other_files_are_named_as_such(tmp_path, content, complaint):
    path = tmp_path / 'other.bin'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=complaint):
        read_state_dict(path)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / 'cut.tar'
    torch.save(small_network().state_dict(), path)
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(CheckpointError, match=r'cut\.tar is not a checkpoint'):
        read_state_dict(path)


def test_an_absent_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r'no checkpoint at .*gone\.tar'):
        read_state_dict(tmp_path / 'gone.tar')


def test_a_dictionary_of_other_things_is_no_state_dict(tmp_path):
    torch.save({'epoch': 3}, tmp_path / 'meta.tar')
    with pytest.raises(CheckpointError, match="'epoch' is not a tensor"):
        read_state_dict(tmp_path / 'meta.tar')


def test_another_networks_weights_name_the_first_misfit(tmp_path):
    state = small_network().state_dict()
    state['head.weight'] = state.pop('0.weight')
    torch.save(state, tmp_path / 'other.tar')
    with pytest.raises(CheckpointError, match=r"missing, first '0.weight'.*first 'head.weight'"):
        load_checkpoint(small_network(), tmp_path / 'other.tar')


def test_a_wrong_shape_names_both(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).state_dict(), tmp_path / 'w')
    with pytest.raises(CheckpointError, match=r"'0.weight' has shape \(3, .*expected \(2, "):
        load_checkpoint(small_network(), tmp_path / 'w')
