# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Procedural pairs at scale: a pool of rendered pairs on disk, and a stream of fresh ones.

A pool is a folder of shards and a manifest:

    pool.json              seed, sizes, generator version, licences of the textures
    shard-00000/           one folder per shard, four memory-mapped arrays of N pairs
        left.npy           (N, H, W, 3) uint8 RGB
        right.npy          (N, H, W, 3) uint8 RGB
        disparity.npy      (N, H, W) uint16, disparity * 256 [px]; 65535 is invalid
        occluded.npy       (N, H, ceil(W / 8)) uint8, bits of the occlusion mask

Shards appear whole or not at all, so a pool can be read while it grows and generation can
be killed and resumed. Pair ``i`` of a pool depends on the seed and on ``i`` alone.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import cv2
import numpy as np

from stereo_kd_ros.procedural import (
    GENERATOR_VERSION,
    ProceduralError,
    StereoSample,
    check_scene,
    render_pair,
)
from stereo_kd_training.datasets.rooms import render_space

DISPARITY_SCALE = 256.0
INVALID = 65535
PAIRS_PER_SHARD = 100
MANIFEST_NAME = 'pool.json'
SCENES: dict[str, dict[str, float]] = {
    'layered': {'layered': 1.0},
    'rooms': {'rooms': 1.0},
    'streets': {'streets': 1.0},
    'indoors': {'indoors': 1.0},
    'mixed': {'layered': 0.5, 'rooms': 0.5},
}
"""What a pool may be made of, and the share of each generator in it."""
CORRIDOR_SHARE = 0.25
"""Of pairs indoors; the rest are rooms."""


class PoolError(RuntimeError):
    """A pool cannot be written or read; the message names the file and what to do."""


@dataclass(frozen=True)
class PoolManifest:
    """What a pool was made with; ``pairs`` is what was asked for, not what exists yet.

    ``scenes`` are the shares of layered scenes (``stereo_kd_ros.procedural``), of rooms, corridors
    and streets, of streets alone, and of rooms and corridors alone
    (``stereo_kd_training.datasets.rooms``); ``cameras`` says whether two cameras with their faults
    took the pictures, or none; ``without`` which `stereo_kd_ros.procedural.INGREDIENTS` were left
    out.
    """

    pairs: int
    height: int
    width: int
    seed: int
    max_disparity_px: float
    difficulty: tuple[float, float]
    generator_version: int = GENERATOR_VERSION
    pairs_per_shard: int = PAIRS_PER_SHARD
    textures: list[dict[str, object]] = field(default_factory=list)
    textures_sha256: str = ''
    scenes: dict[str, float] = field(default_factory=lambda: dict(SCENES['layered']))
    cameras: bool = True
    without: list[str] = field(default_factory=list)

    def to_json(self) -> str:
        """Indented JSON, ending with a newline."""
        values = asdict(self)
        if not self.without:
            # Pools of everything keep the digest that they had before anything could be left out.
            del values['without']
        return json.dumps(values, indent=2) + '\n'

    @classmethod
    def read(cls, folder: Path) -> PoolManifest:
        """Read a pool's manifest.

        Raises:
            PoolError: when there is none or it is not one of ours.
        """
        path = Path(folder) / MANIFEST_NAME
        try:
            values = json.loads(path.read_text())
            values['difficulty'] = tuple(values['difficulty'])
            return cls(**values)
        except FileNotFoundError:
            raise PoolError(
                f'{path} does not exist; make a pool with "stereo-kd-train generate"'
            ) from None
        except (ValueError, KeyError, TypeError) as error:
            raise PoolError(f'{path} is not a pool manifest: {error}') from error


def encode_disparity(disparity: np.ndarray) -> np.ndarray:
    """Float px (NaN or outside 0..255 px is invalid) to uint16 in 1/256 px."""
    valid = (disparity >= 0) & (disparity < INVALID / DISPARITY_SCALE - 0.01)
    scaled = np.where(valid, disparity, 0) * DISPARITY_SCALE + 0.5
    return np.where(valid, scaled, INVALID).astype(np.uint16)


def decode_disparity(stored: np.ndarray) -> np.ndarray:
    """uint16 in 1/256 px to float32 px, invalid as NaN."""
    disparity = stored.astype(np.float32) / np.float32(DISPARITY_SCALE)
    disparity[stored == INVALID] = np.nan
    return disparity


def pool_pair(manifest: PoolManifest, index: int, textures: Sequence[np.ndarray] | None):
    """Render pair ``index`` of a pool: a function of the manifest, textures and index alone."""
    low, high = manifest.difficulty
    difficulty = np.random.default_rng([manifest.seed, index, 1]).uniform(low, high)
    choice = np.random.default_rng([manifest.seed, index, 2]).random()
    # A pool of one sort asks for no choice: its pairs are those of pools before there was any.
    kinds = [kind for kind, share in manifest.scenes.items() if share > 0]
    kind = kinds[0]
    if len(kinds) > 1:
        kind = 'layered' if choice < manifest.scenes['layered'] else 'rooms'
    indoors = 'corridor' if choice < CORRIDOR_SHARE else 'room'
    render = {
        'layered': render_pair,
        'rooms': render_space,
        'streets': functools.partial(render_space, kind='street'),
        'indoors': functools.partial(render_space, kind=indoors),
    }[kind]
    return render(
        (manifest.seed, index),
        manifest.height,
        manifest.width,
        manifest.max_disparity_px,
        textures,
        difficulty,
        cameras=manifest.cameras,
        without=manifest.without,
    )


def _shard_path(folder: Path, shard: int) -> Path:
    return folder / f'shard-{shard:05d}'


def _write_shard(
    folder: Path, manifest: PoolManifest, shard: int, textures: Sequence[np.ndarray] | None
) -> int:
    first = shard * manifest.pairs_per_shard
    count = min(manifest.pairs_per_shard, manifest.pairs - first)
    height, width = manifest.height, manifest.width
    final = _shard_path(folder, shard)
    partial = folder / f'.{final.name}.{os.getpid()}'
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    shapes = {
        'left': ((count, height, width, 3), np.uint8),
        'right': ((count, height, width, 3), np.uint8),
        'disparity': ((count, height, width), np.uint16),
        'occluded': ((count, height, (width + 7) // 8), np.uint8),
    }
    arrays = {
        name: np.lib.format.open_memmap(partial / f'{name}.npy', 'w+', dtype, shape)
        for name, (shape, dtype) in shapes.items()
    }
    for row in range(count):
        sample = pool_pair(manifest, first + row, textures)
        arrays['left'][row] = sample.left
        arrays['right'][row] = sample.right
        arrays['disparity'][row] = encode_disparity(sample.disparity)
        arrays['occluded'][row] = np.packbits(sample.occluded, axis=1)
    for array in arrays.values():
        array.flush()
    os.rename(partial, final)
    return count


def _work(task: tuple[Path, PoolManifest, int, str | None]) -> int:
    cv2.setNumThreads(1)
    folder, manifest, shard, textures_dir = task
    return _write_shard(folder, manifest, shard, _open_textures(textures_dir))


@functools.lru_cache(maxsize=1)
def _open_textures(textures_dir: str | Path | None):
    if textures_dir is None:
        return None
    from stereo_kd_training.datasets.textures import TextureBank

    return TextureBank.open(textures_dir)


def generate_pool(
    out_dir: str | Path,
    pairs: int,
    height: int = 288,
    width: int = 576,
    seed: int = 0,
    workers: int = 1,
    textures: str | Path | None = None,
    max_disparity_px: float = 192.0,
    difficulty: tuple[float, float] = (0.2, 0.8),
    progress: bool = True,
    pairs_per_shard: int = PAIRS_PER_SHARD,
    scenes: str = 'layered',
    cameras: bool = True,
    without: Collection[str] = (),
) -> PoolManifest:
    """Render a pool, or carry on with one that was interrupted.

    Args:
        out_dir: the pool's folder.
        pairs: how many pairs the whole pool shall have; may be raised later.
        height: rows of a pair.
        width: columns of a pair.
        seed: the pool; pair i depends on (seed, i).
        workers: processes.
        textures: folder of a texture bank, None for synthetic textures alone.
        max_disparity_px: range of the scenes.
        difficulty: range drawn from for each pair.
        progress: show a progress bar.
        pairs_per_shard: how many pairs are written, and lost when killed, at a time.
        scenes: 'layered', 'rooms', 'streets', 'indoors' or 'mixed'.
        cameras: photographed with the faults of two cameras, and not quite rectified.
        without: `stereo_kd_ros.procedural.INGREDIENTS` that no scene shall have.

    Raises:
        PoolError: when there are no such scenes or ingredients, nothing is left to draw, or the
            folder holds another pool.
    """
    if scenes not in SCENES:
        raise PoolError(f'there are no {scenes!r} scenes; use one of {", ".join(SCENES)}')
    if scenes == 'streets' and 'streets' in without:
        raise PoolError(
            'scenes of streets without streets: nothing is left; leave one of them out'
        )
    try:
        check_scene(height, width, max_disparity_px, difficulty[0], without)
    except ProceduralError as error:
        raise PoolError(str(error)) from None
    folder = Path(out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    bank = _open_textures(textures)
    manifest = PoolManifest(
        pairs,
        height,
        width,
        seed,
        max_disparity_px,
        tuple(difficulty),
        pairs_per_shard=pairs_per_shard,
        textures=[] if bank is None else bank.licences(),
        textures_sha256='' if bank is None else bank.sha256,
        scenes=dict(SCENES[scenes]),
        cameras=cameras,
        without=sorted(set(without)),
    )
    _write_manifest(folder, manifest)
    shards = -(-pairs // manifest.pairs_per_shard)
    tasks = [
        (folder, manifest, shard, None if textures is None else str(textures))
        for shard in range(shards)
        if not _shard_is_whole(folder, manifest, shard)
    ]
    missing = sum(
        min(manifest.pairs_per_shard, pairs - task[2] * manifest.pairs_per_shard) for task in tasks
    )
    for stale in folder.glob('.shard-*'):
        shutil.rmtree(stale, ignore_errors=True)
    from tqdm import tqdm

    with tqdm(total=missing, unit='pair', disable=not progress, smoothing=0.1) as bar:
        if workers <= 1:
            for task in tasks:
                bar.update(_work(task))
        else:
            context = multiprocessing.get_context('spawn')
            with context.Pool(workers) as processes:
                for count in processes.imap(_work, tasks):
                    bar.update(count)
    return manifest


def _shard_is_whole(folder: Path, manifest: PoolManifest, shard: int) -> bool:
    path = _shard_path(folder, shard)
    if not path.is_dir():
        return False
    expected = min(manifest.pairs_per_shard, manifest.pairs - shard * manifest.pairs_per_shard)
    if len(np.load(path / 'left.npy', mmap_mode='r')) >= expected:
        return True
    # The pool's last, short shard of an earlier, smaller request.
    shutil.rmtree(path)
    return False


def _write_manifest(folder: Path, manifest: PoolManifest) -> None:
    path = folder / MANIFEST_NAME
    if path.exists():
        earlier = asdict(PoolManifest.read(folder))
        for name, value in asdict(manifest).items():
            if name not in ('pairs', 'textures') and earlier[name] != value:
                raise PoolError(
                    f'{folder} holds a pool with {name} {earlier[name]!r}, not {value!r}; '
                    'choose another folder or remove that pool'
                )
    partial = path.with_suffix(f'.{os.getpid()}.tmp')
    partial.write_text(manifest.to_json())
    os.replace(partial, path)


class PairPool(Sequence[StereoSample]):
    """Random access to the pairs of a pool, also while it still grows.

    ``pool[i]`` is a StereoSample whose ``disparity_right`` is empty: a pool does not keep it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.manifest = PoolManifest.read(self.folder)
        self._shards: list[Path] = []
        self._starts: list[int] = []
        self._length = 0
        self._open: dict[int, dict[str, np.ndarray]] = {}
        self.refresh()

    def refresh(self) -> int:
        """Look for new shards; returns the number of pairs now readable."""
        for path in sorted(self.folder.glob('shard-*'))[len(self._shards) :]:
            # Indices must not shift under a reader: stop at the first gap.
            if path != _shard_path(self.folder, len(self._shards)):
                break
            self._starts.append(self._length)
            self._shards.append(path)
            self._length += len(np.load(path / 'disparity.npy', mmap_mode='r'))
        return self._length

    def __len__(self) -> int:
        return self._length

    def arrays(self, index: int) -> dict[str, np.ndarray]:
        """Memory-mapped rows of one pair (``left``, ``right``, ``disparity``, ``occluded``)."""
        if not -self._length <= index < self._length:
            raise IndexError(f'pair {index} of a pool of {self._length}')
        index %= self._length
        shard = bisect.bisect_right(self._starts, index) - 1
        if shard not in self._open:
            path = self._shards[shard]
            self._open[shard] = {
                name: np.load(path / f'{name}.npy', mmap_mode='r')
                for name in ('left', 'right', 'disparity', 'occluded')
            }
        row = index - self._starts[shard]
        return {name: array[row] for name, array in self._open[shard].items()}

    def __getitem__(self, index: int) -> StereoSample:
        return self._sample(self.arrays(index), slice(None), slice(None))

    def crop(self, index: int, y: int, x: int, height: int, width: int) -> StereoSample:
        """A window of a pair; only its pages are read. The disparity stays as it is."""
        return self._sample(self.arrays(index), slice(y, y + height), slice(x, x + width))

    def _sample(self, rows: dict[str, np.ndarray], ys: slice, xs: slice) -> StereoSample:
        bits = np.unpackbits(rows['occluded'][ys], axis=1, count=self.manifest.width)
        return StereoSample(
            np.array(rows['left'][ys, xs]),
            np.array(rows['right'][ys, xs]),
            decode_disparity(np.array(rows['disparity'][ys, xs])),
            np.empty((0, 0), np.float32),
            bits[:, xs].astype(bool),
        )

    def sha256(self) -> str:
        """Digest of the manifest and the pairs' number; names the data in a model's record."""
        text = self.manifest.to_json() + str(self._length)
        return hashlib.sha256(text.encode()).hexdigest()


class ProceduralPairs:
    """An endless stream of fresh pairs, for when rendering keeps up with training."""

    def __init__(self, manifest: PoolManifest, textures: str | Path | None = None):
        self.manifest = manifest
        self.textures = _open_textures(textures)

    def __iter__(self) -> Iterator[StereoSample]:
        for index in itertools.count():
            yield pool_pair(self.manifest, index, self.textures)
