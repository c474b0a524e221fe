# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The cache: what makes an entry stale, what empties one, and that it never fails a start."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import fields, replace

import pytest

from stereo_kd_ros import cache as cache_module
from stereo_kd_ros.cache import (
    ENTRIES_KEPT,
    CacheError,
    EngineCache,
    EngineKey,
    cache_root,
    file_sha256,
    gpu_and_driver,
    parse_gpu_line,
    read_json,
    write_json,
)

KEY = EngineKey('abc', '480x640', 'fp16', 'NVIDIA H200', '580.1', '101300', '1.31.1')
needs_permissions = pytest.mark.skipif(
    not hasattr(os, 'geteuid') or os.geteuid() == 0, reason='root may write anywhere'
)


@pytest.fixture(autouse=True)
def _room_on_the_disk(monkeypatch):
    monkeypatch.setattr(cache_module, 'MINIMUM_FREE_BYTES', 1)


def fill(root, key=KEY) -> EngineCache:
    """An entry as a finished build leaves it."""
    cache = EngineCache(key, root)
    (cache.directory / 'TensorrtExecutionProvider.engine').write_bytes(b'engine')
    cache.mark_filled()
    cache.release()
    return cache


@pytest.mark.parametrize('field', [field.name for field in fields(EngineKey)])
def test_every_part_of_the_key_makes_another_entry(tmp_path, field):
    other = replace(KEY, **{field: 'other'})
    assert other.digest() != KEY.digest()
    fill(tmp_path)
    assert not EngineCache(other, tmp_path).is_filled
    assert EngineCache(KEY, tmp_path).is_filled


@pytest.mark.parametrize('field', [field.name for field in fields(EngineKey)])
def test_an_unknown_part_means_no_cache(tmp_path, field):
    with pytest.raises(CacheError, match=f'no {field}'):
        EngineCache(replace(KEY, **{field: ''}), tmp_path)


def test_an_unfinished_entry_is_emptied(tmp_path):
    cache = EngineCache(KEY, tmp_path)
    (cache.directory / 'half.engine').write_bytes(b'hal')
    cache.release()
    again = EngineCache(KEY, tmp_path)
    assert not again.is_filled
    assert not (again.directory / 'half.engine').exists()


@pytest.mark.parametrize('damage', ['truncated', 'changed', 'removed', 'added', 'note'])
def test_a_damaged_entry_is_emptied(tmp_path, damage):
    folder = fill(tmp_path).directory
    engine = folder / 'TensorrtExecutionProvider.engine'
    match damage:
        case 'truncated':
            engine.write_bytes(b'eng')
        case 'changed':
            engine.write_bytes(b'ENGINE')
        case 'removed':
            engine.unlink()
        case 'added':
            (folder / 'other.engine').write_bytes(b'x')
        case 'note':
            (folder / 'complete.json').write_text('{"TensorrtExec')
    cache = EngineCache(KEY, tmp_path)
    assert not cache.is_filled
    assert list(folder.glob('*.engine')) == []


def test_two_processes_do_not_build_into_one_entry(tmp_path):
    cache = EngineCache(KEY, tmp_path)
    program = (
        'import sys; from pathlib import Path; from stereo_kd_ros import cache as c; '
        'c.MINIMUM_FREE_BYTES = 1\n'
        'try: c.EngineCache(c.EngineKey(*sys.argv[2:]), Path(sys.argv[1])); print("in")\n'
        'except c.CacheError as error: print(error)'
    )
    command = [sys.executable, '-c', program, str(tmp_path)]
    command += [getattr(KEY, field.name) for field in fields(EngineKey)]

    def other_process() -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert 'another process is building' in other_process()
    cache.release()
    assert other_process() == 'in\n'


def test_a_full_disk_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_module, 'MINIMUM_FREE_BYTES', 2**80)
    with pytest.raises(CacheError, match=r'MB left, expected'):
        EngineCache(KEY, tmp_path)


@needs_permissions
def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(CacheError, match='cannot be used: Permission denied'):
        EngineCache(KEY, tmp_path)


def test_a_file_in_the_way_is_told(tmp_path):
    (tmp_path / 'tensorrt').write_text('')
    with pytest.raises(CacheError, match='cannot be used'):
        EngineCache(KEY, tmp_path)


def test_only_the_entries_used_last_are_kept(tmp_path):
    keys = [replace(KEY, profile=f'{n}x{n}') for n in range(ENTRIES_KEPT + 1)]
    caches = [fill(tmp_path, key) for key in keys[:-1]]
    for age, cache in enumerate(caches):
        os.utime(cache.directory, (1000 + age, 1000 + age))
    EngineCache(keys[0], tmp_path).release()
    newest = fill(tmp_path, keys[-1])
    assert not caches[1].directory.exists()
    for cache in (newest, caches[0], *caches[2:]):
        assert cache.is_filled


def test_the_cache_follows_the_xdg_rules(tmp_path):
    assert cache_root({'XDG_CACHE_HOME': '/c', 'HOME': '/h'}).as_posix() == '/c/stereo_kd_ros'
    for environ in ({'HOME': '/h'}, {'XDG_CACHE_HOME': 'relative', 'HOME': '/h'}):
        assert cache_root(environ).as_posix() == '/h/.cache/stereo_kd_ros'
    assert cache_root({'STEREO_KD_CACHE': '/k', 'XDG_CACHE_HOME': '/c'}).as_posix() == '/k'
    with pytest.raises(CacheError, match='neither'):
        cache_root({})


def test_json_is_written_whole_and_read_forgivingly(tmp_path):
    path = tmp_path / 'deep' / 'x.json'
    assert read_json(path) is None
    write_json(path, {'a': 1})
    assert read_json(path) == {'a': 1}
    with pytest.raises(TypeError):
        write_json(path, {'a': object()})
    assert read_json(path) == {'a': 1}
    assert [found.name for found in path.parent.iterdir()] == ['x.json']
    for text in ('', '[1]', '{', '\0'):
        path.write_text(text)
        assert read_json(path) is None


def test_a_file_is_known_by_its_bytes(tmp_path):
    path = tmp_path / 'x'
    path.write_bytes(b'abc')
    # The published test vector of SHA-256.
    assert file_sha256(path).startswith('ba7816bf8f01cfea414140de5dae2223')


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('NVIDIA H200, 580.65.06\n', ('NVIDIA H200', '580.65.06')),
        ('No devices were found\n', ('', '')),
        ('A, 1\nB, 2\n', ('', '')),
        ('', ('', '')),
    ],
)
def test_the_gpu_is_read_from_one_line(text, expected):
    assert parse_gpu_line(text) == expected


def test_a_machine_without_nvidia_smi_has_no_gpu_name(monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert gpu_and_driver(0) == ('', '')
