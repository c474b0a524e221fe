# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pools of procedural pairs: round trip, growth, resuming after a kill; licences of textures."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stereo_kd_training.datasets import procedural
from stereo_kd_training.datasets.procedural import (
    INVALID,
    PairPool,
    PoolError,
    PoolManifest,
    ProceduralPairs,
    decode_disparity,
    encode_disparity,
    generate_pool,
    pool_pair,
)
from stereo_kd_training.datasets.textures import (
    DebianLicences,
    TextureBank,
    TextureError,
    build_bank,
    is_surface_like,
)

COPYRIGHT = """\
Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/
Upstream-Name: pictures

Files: *
Copyright: 2020, Somebody
License: GPL-2+

Files: photos/*
Copyright: 2021, Else
License: CC-BY-SA-4.0 or CC0
 Explanations of the licence follow here.

Files:
 photos/wall.png
 photos/my_own.png
Copyright: 2022, Third
License: public-domain

License: GPL-2+
 The licence's text.
"""


def generate(folder: Path, pairs: int, **options) -> PoolManifest:
    return generate_pool(
        folder, pairs, 40, 72, seed=9, progress=False, pairs_per_shard=3, **options
    )


def manifest_with_small_shards(pairs: int = 7) -> PoolManifest:
    return PoolManifest(pairs, 40, 72, 9, 192.0, (0.2, 0.8), pairs_per_shard=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*.npy'))
    }


@given(st.floats(0, 255.9))
def test_stored_disparity_is_exact_to_a_five_hundredth_of_a_pixel(disparity):
    stored = encode_disparity(np.array([disparity], np.float32))
    assert abs(decode_disparity(stored)[0] - disparity) <= 1 / 512 + 1e-4


@pytest.mark.parametrize('disparity', [np.nan, np.inf, -np.inf, -0.5, 256.0, 1e9])
def test_what_is_no_disparity_comes_back_as_nan(disparity):
    stored = encode_disparity(np.array([disparity], np.float32))
    assert stored[0] == INVALID
    assert np.isnan(decode_disparity(stored)[0])


def test_pool_gives_back_what_was_rendered(tmp_path):
    manifest = generate(tmp_path, 4)
    pool = PairPool(tmp_path)
    assert len(pool) == 4
    for index in (0, 3, -1):
        sample, rendered = pool[index], pool_pair(manifest, index % 4, None)
        assert np.array_equal(sample.left, rendered.left)
        assert np.array_equal(sample.right, rendered.right)
        assert np.array_equal(sample.occluded, rendered.occluded)
        assert np.abs(sample.disparity - rendered.disparity).max() <= 1 / 512 + 1e-4
    with pytest.raises(IndexError):
        pool[4]


def test_crop_is_a_window_of_the_pair(tmp_path):
    generate(tmp_path, 1)
    pool = PairPool(tmp_path)
    whole, crop = pool[0], pool.crop(0, 5, 13, 20, 30)
    for name in ('left', 'right', 'disparity', 'occluded'):
        window = getattr(whole, name)[5:25, 13:43]
        assert np.array_equal(getattr(crop, name), window)


def test_pairs_differ_and_do_not_depend_on_the_pool_s_size(tmp_path):
    generate(tmp_path / 'small', 2)
    generate(tmp_path / 'large', 3)
    small, large = PairPool(tmp_path / 'small'), PairPool(tmp_path / 'large')
    assert np.array_equal(small[1].left, large[1].left)
    assert not np.array_equal(large[0].left, large[1].left)


def test_growing_pool_can_be_read(tmp_path):
    manifest = manifest_with_small_shards()
    procedural._write_manifest(tmp_path, manifest)
    pool = PairPool(tmp_path)
    assert len(pool) == 0
    procedural._write_shard(tmp_path, manifest, 1, None)
    assert pool.refresh() == 0, 'a shard after a gap must not shift indices'
    procedural._write_shard(tmp_path, manifest, 0, None)
    assert pool.refresh() == 6
    procedural._write_shard(tmp_path, manifest, 2, None)
    assert pool.refresh() == 7
    assert np.array_equal(pool[6].left, pool_pair(manifest, 6, None).left)


def test_pool_that_was_killed_carries_on_where_it_stopped(tmp_path):
    script = (
        'from stereo_kd_training.datasets.procedural import generate_pool\n'
        f'generate_pool({str(tmp_path / "killed")!r}, 10**6, 40, 72, seed=9, progress=False,\n'
        '              pairs_per_shard=3)\n'
    )
    process = subprocess.Popen([sys.executable, '-c', script])
    first = tmp_path / 'killed' / 'shard-00000'
    deadline = time.monotonic() + 300
    while not first.is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert first.is_dir()
    kept = contents(first)
    written = (first / 'left.npy').stat().st_mtime_ns

    made = len(PairPool(tmp_path / 'killed'))
    generate(tmp_path / 'killed', made + 5)
    generate(tmp_path / 'whole', made + 5)
    assert (first / 'left.npy').stat().st_mtime_ns == written
    assert contents(first) == kept
    assert contents(tmp_path / 'killed') == contents(tmp_path / 'whole')
    assert not list((tmp_path / 'killed').glob('.shard-*'))


def test_pool_can_be_made_longer(tmp_path):
    generate(tmp_path / 'grown', 2)
    generate(tmp_path / 'grown', 5)
    generate(tmp_path / 'once', 5)
    assert contents(tmp_path / 'grown') == contents(tmp_path / 'once')
    assert PoolManifest.read(tmp_path / 'grown').pairs == 5


def test_two_workers_make_the_same_pool(tmp_path):
    generate(tmp_path / 'one', 8)
    generate(tmp_path / 'two', 8, workers=2)
    assert contents(tmp_path / 'one') == contents(tmp_path / 'two')


def test_pool_of_other_settings_is_left_alone(tmp_path):
    generate(tmp_path, 1)
    before = contents(tmp_path)
    with pytest.raises(PoolError, match='height 40, not 48'):
        generate_pool(tmp_path, 1, 48, 72, seed=9, progress=False, pairs_per_shard=3)
    with pytest.raises(PoolError, match='seed 9, not 10'):
        generate_pool(tmp_path, 1, 40, 72, seed=10, progress=False, pairs_per_shard=3)
    assert contents(tmp_path) == before


def test_folder_that_is_no_pool_is_named(tmp_path):
    with pytest.raises(PoolError, match='does not exist'):
        PairPool(tmp_path)
    (tmp_path / 'pool.json').write_text('{"pairs": 3}')
    with pytest.raises(PoolError, match='not a pool manifest'):
        PairPool(tmp_path)


def test_stream_equals_the_pool(tmp_path):
    manifest = generate(tmp_path, 3)
    for fresh, stored in zip(
        islice(ProceduralPairs(manifest), 3), PairPool(tmp_path), strict=True
    ):
        assert np.array_equal(fresh.left, stored.left)


def test_data_sets_of_procedural_pairs_need_no_torch():
    script = (
        'import sys; import stereo_kd_training.datasets.procedural, '
        'stereo_kd_training.datasets.textures; sys.exit("torch" in sys.modules)'
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    assert subprocess.run([sys.executable, '-c', script], env=environment).returncode == 0


def photo(seed: int, side: int = 256) -> np.ndarray:
    """Something with the statistics of a photograph."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 120.0, np.float32)
    for cells in (4, 16, 64):
        layer = rng.normal(0, 25, (cells, cells, 3)).astype(np.float32)
        image += cv2.resize(layer, (side, side), interpolation=cv2.INTER_CUBIC)
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture
def package(tmp_path) -> Path:
    """An unpacked Debian package with pictures under several licences."""
    root = tmp_path / 'package'
    (root / 'usr/share/doc/pictures').mkdir(parents=True)
    (root / 'usr/share/doc/pictures/copyright').write_text(COPYRIGHT)
    photos = root / 'usr/share/pictures/photos'
    photos.mkdir(parents=True)
    for number, name in enumerate(('wall.png', 'meadow.png', 'meadow_nm.png')):
        cv2.imwrite(str(photos / name), photo(number))
    cv2.imwrite(str(photos / 'flat.png'), np.full((300, 300, 3), 90, np.uint8))
    cv2.imwrite(str(photos / 'tiny.png'), photo(4, 100))
    holes = np.dstack([photo(5), np.zeros((256, 256), np.uint8)])
    cv2.imwrite(str(photos / 'sprite_with_holes.png'), holes)
    with zipfile.ZipFile(photos.parent / 'more.pk3', 'w') as archive:
        archive.writestr('stone.png', cv2.imencode('.png', photo(6))[1].tobytes())
    return root


def test_licence_of_each_picture_is_on_record(package, tmp_path):
    build_bank([package], tmp_path / 'bank')
    bank = TextureBank.open(tmp_path / 'bank')
    found = {record.licence: len(record.files) for record in bank.records}
    assert found == {
        'LicenseRef-public-domain': 1,
        'CC-BY-SA-4.0 OR CC0-1.0': 1,
        'GPL-2.0-or-later': 1,
    }
    assert {record.source for record in bank.records} == {'Debian package pictures'}
    origins = json.loads((tmp_path / 'bank/bank.json').read_text())['origins']
    stems = sorted(Path(origin).stem for origin in origins.values())
    assert stems == ['meadow', 'stone', 'wall']
    for image in bank:
        assert image.shape == (256, 256, 3)
        assert not image.flags.writeable


def test_pool_names_the_licences_of_its_textures(package, tmp_path):
    build_bank([package], tmp_path / 'bank')
    manifest = generate(tmp_path / 'pool', 2, textures=tmp_path / 'bank')
    read = PoolManifest.read(tmp_path / 'pool')
    assert read == manifest
    assert sorted(str(item['licence']) for item in read.textures) == [
        'CC-BY-SA-4.0 OR CC0-1.0',
        'GPL-2.0-or-later',
        'LicenseRef-public-domain',
    ]
    generate(tmp_path / 'plain', 2)
    painted, plain = PairPool(tmp_path / 'pool'), PairPool(tmp_path / 'plain')
    assert any(not np.array_equal(a.left, b.left) for a, b in zip(painted, plain, strict=True))
    with pytest.raises(PoolError, match='textures_sha256'):
        generate(tmp_path / 'pool', 2)


def test_folder_states_its_licence_in_a_file(tmp_path):
    source = tmp_path / 'mine'
    source.mkdir()
    cv2.imwrite(str(source / 'wall.jpg'), photo(1))
    with pytest.raises(TextureError, match='states no licence'):
        build_bank([source], tmp_path / 'bank')
    (source / 'licence.json').write_text('{"source": "me"}')
    with pytest.raises(TextureError, match="lacks 'licence'"):
        build_bank([source], tmp_path / 'bank')
    (source / 'licence.json').write_text('{"source": "me", "licence": "CC0-1.0"}')
    (record,) = build_bank([source], tmp_path / 'bank')
    assert (record.source, record.licence, len(record.files)) == ('me', 'CC0-1.0', 1)


def test_copyright_of_free_text_is_refused():
    with pytest.raises(TextureError, match='machine-readable'):
        DebianLicences('This package was debianized by somebody.')


def test_most_specific_licence_counts():
    licences = DebianLicences(COPYRIGHT)
    assert licences.licence('usr/share/x/photos/my_own.png') == 'LicenseRef-public-domain'
    assert licences.licence('usr/share/x/photos/sea.png') == 'CC-BY-SA-4.0 OR CC0-1.0'
    assert licences.licence('usr/share/x/readme.png') == 'GPL-2.0-or-later'


def test_bank_with_a_picture_gone_is_named(package, tmp_path):
    build_bank([package], tmp_path / 'bank')
    with pytest.raises(TextureError, match=r'holds no bank\.json'):
        TextureBank.open(tmp_path)
    next((tmp_path / 'bank').glob('*.jpg')).unlink()
    with pytest.raises(TextureError, match='lacks 1 of its pictures'):
        TextureBank.open(tmp_path / 'bank')


def test_maps_of_normals_and_flat_drawings_are_no_surfaces():
    assert is_surface_like(photo(0))
    normals = photo(0) // 8
    normals += np.array([112, 112, 215], np.uint8)
    assert not is_surface_like(normals)
    drawing = np.zeros((256, 256, 3), np.uint8)
    drawing[:, 128:] = 200
    assert not is_surface_like(drawing)


def test_a_recipe_states_the_licences_of_its_pools_once(tmp_path):
    """What a pool was painted with follows the student that learns from it into its manifest."""
    pytest.importorskip('torch', reason='the training extra is not installed')
    from stereo_kd_training.recipe import Source
    from stereo_kd_training.stages import Pairs

    bank = tmp_path / 'bank'
    bank.mkdir()
    picture = np.random.default_rng(0).integers(0, 255, (200, 200, 3), np.uint8)
    cv2.imwrite(str(bank / '0.jpg'), picture)
    record = {'name': 'walls', 'source': 'w', 'licence': 'CC0-1.0', 'files': ['0.jpg']}
    (bank / 'bank.json').write_text(json.dumps({'textures': [record]}))
    for name, seed in (('one', 1), ('two', 2)):
        generate_pool(
            tmp_path / name, 1, 64, 96, seed, textures=bank, max_disparity_px=32, progress=False
        )
    pools = [Source(pool=str(tmp_path / name)) for name in ('one', 'two', 'one')]
    stated = Pairs(pools).training_data
    assert [entry['licence'] for entry in stated] == ['Apache-2.0', 'CC0-1.0', 'Apache-2.0']
    assert [entry['seed'] for entry in stated if 'seed' in entry] == [1, 2]
