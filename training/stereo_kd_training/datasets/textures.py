# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""Pictures to paint procedural scenes with, each with its licence on record.

A bank is a folder of small JPEG crops and ``bank.json``, a list of records
``{name, source, licence, files}`` with SPDX licence identifiers. It is built from unpacked
Debian packages (licences are read file by file from the machine-readable
``usr/share/doc/*/copyright``) or from folders that state theirs in a ``licence.json``
``{"source": ..., "licence": ...}``. A picture without a known licence is never taken:

    apt-get download mate-backgrounds && dpkg-deb -x mate-backgrounds_*.deb mate
    python -m stereo_kd_training.datasets.textures --from mate --out bank
"""

from __future__ import annotations

import argparse
import fnmatch
import hashlib
import io
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath

import cv2
import numpy as np

BANK_NAME = 'bank.json'
CROP_SIDE_PX = 512
_PICTURES = {'.jpg', '.jpeg', '.png', '.webp', '.tga'}
_ARCHIVES = {'.pk3', '.zip'}
# Maps of normals, gloss and the like, and pictures of text or controls, are no surfaces.
_NOT_A_SURFACE = re.compile(
    r'(_nm|_sm|_gm|_rm|_n|normal|gloss|spec|_mask|_ao|emit|splat|glow|light|halo|particle|smoke|'
    r'flare|shadow|icon|screenshot|logo|button|sky|font|minimap|sprite|_alpha|flame|skydome|'
    r'sparkle|water[0-9]*|cursor|fence|grass_?clump|leaf|leaves)[^/]*$',
    re.IGNORECASE,
)
_NOT_A_FOLDER = re.compile(r'/(gui|skins|gfx|shaders|tex_fx|tex_anim|tex_common|editor)/')


class TextureError(ValueError):
    """A bank cannot be built or opened; the message names the folder and what it lacks."""


@dataclass(frozen=True)
class TextureRecord:
    """Where pictures came from and what allows their use."""

    name: str
    source: str
    licence: str
    files: tuple[str, ...]


_SPDX = {
    'GPL-2': 'GPL-2.0-only',
    'GPL-2+': 'GPL-2.0-or-later',
    'GPL-3': 'GPL-3.0-only',
    'GPL-3+': 'GPL-3.0-or-later',
    'LGPL-3': 'LGPL-3.0-only',
    'LGPL-3+': 'LGPL-3.0-or-later',
    'Expat': 'MIT',
    'public-domain': 'LicenseRef-public-domain',
    'CC0': 'CC0-1.0',
    # Debian names no version for these.
    'GPL': 'GPL-1.0-or-later',
    'CC-BY-SA': 'LicenseRef-CC-BY-SA',
}


class DebianLicences:
    """File-by-file licences out of a machine-readable Debian copyright file."""

    def __init__(self, text: str):
        if not text.lstrip().startswith('Format:'):
            raise TextureError('the copyright file is not machine-readable (no "Format:" line)')
        self._exact: dict[str, str] = {}
        self._patterns: list[tuple[str, str]] = []
        for paragraph in re.split(r'\n\s*\n', text):
            fields = dict(re.findall(r'^([A-Za-z-]+):((?:.*(?:\n[ \t].*)*))', paragraph, re.M))
            if 'Files' not in fields or 'License' not in fields:
                continue
            licence = fields['License'].strip().split('\n')[0].strip()
            for pattern in fields['Files'].split():
                if '*' in pattern or '?' in pattern:
                    self._patterns.append((pattern, licence))
                else:
                    self._exact[pattern] = licence

    def licence(self, path: str) -> str | None:
        """SPDX licence of an installed file, by the longest tail of its path that is listed."""
        parts = PurePosixPath(path).parts
        tails = ['/'.join(parts[start:]) for start in range(len(parts))]
        found = next((self._exact[tail] for tail in tails if tail in self._exact), None)
        if found is None:
            # Of several patterns that match, Debian's last one counts.
            for pattern, licence in reversed(self._patterns):
                if any(fnmatch.fnmatchcase(tail, pattern) for tail in tails):
                    found = licence
                    break
        if found is None:
            return None
        return ' OR '.join(_SPDX.get(name, name) for name in re.split(r'\s+or\s+', found))


def _folder_licences(folder: Path):
    """(source name, path -> licence or None) of a folder."""
    statement = folder / 'licence.json'
    if statement.is_file():
        values = json.loads(statement.read_text())
        try:
            source, licence = str(values['source']), str(values['licence'])
        except KeyError as error:
            raise TextureError(
                f'{statement} lacks {error}; it needs "source" and "licence"'
            ) from None
        return source, lambda _path: licence
    copyrights = sorted(folder.glob('usr/share/doc/*/copyright'))
    if not copyrights:
        raise TextureError(
            f'{folder} states no licence: put a licence.json with "source" and "licence" into '
            'it, or give an unpacked Debian package'
        )
    try:
        licences = DebianLicences(copyrights[0].read_text(errors='replace'))
    except TextureError as error:
        raise TextureError(f'{copyrights[0]}: {error}') from None
    return f'Debian package {copyrights[0].parent.name}', licences.licence


def _pictures(folder: Path) -> Iterator[tuple[str, bytes]]:
    """(path, encoded bytes) of every picture in a folder and its zip archives, in order."""
    for path in sorted(folder.rglob('*')):
        if path.is_symlink() or not path.is_file():
            continue
        relative = path.relative_to(folder).as_posix()
        if path.suffix.lower() in _PICTURES:
            yield relative, path.read_bytes()
        elif path.suffix.lower() in _ARCHIVES:
            with zipfile.ZipFile(path) as archive:
                for name in sorted(archive.namelist()):
                    if PurePosixPath(name).suffix.lower() in _PICTURES:
                        yield f'{PurePosixPath(relative).parent}/{name}', archive.read(name)


def _decode(encoded: bytes) -> np.ndarray | None:
    """(H, W, 3) uint8 RGB, or None for pictures with holes or that cannot be read."""
    image = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED)
    if image is None:
        try:
            from PIL import Image

            image = np.array(Image.open(io.BytesIO(encoded)).convert('RGBA'))[..., [2, 1, 0, 3]]
        except (ImportError, OSError):
            return None
    if image.dtype != np.uint8:
        return None
    if image.ndim == 2:
        return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB)
    if image.shape[2] == 4 and (image[..., 3] < 250).mean() > 0.01:
        return None
    return cv2.cvtColor(np.ascontiguousarray(image[..., :3]), cv2.COLOR_BGR2RGB)


def is_surface_like(image: np.ndarray) -> bool:
    """Whether a crop has detail to match, and is no map of normals nor a flat drawing."""
    mean = image.reshape(-1, 3).mean(axis=0)
    if mean[2] > 190 and abs(mean[0] - 128) < 22 and abs(mean[1] - 128) < 22:
        return False
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    if grey.std() < 6:
        return False
    gradient = np.abs(np.diff(grey.astype(np.int16), axis=1))
    # Drawings and smooth renders are flat almost everywhere; photographs are not.
    return gradient.mean() > 1.2 and (gradient > 1).mean() > 0.15


def _crops(image: np.ndarray, limit: int) -> Iterator[np.ndarray]:
    """Up to ``limit`` square crops, the picture first scaled to a useful size."""
    height, width = image.shape[:2]
    if min(height, width) < 192:
        return
    factor = min(1.0, 2 * CROP_SIDE_PX / min(height, width))
    if min(height, width) <= 1.5 * CROP_SIDE_PX:
        factor = min(1.0, CROP_SIDE_PX / min(height, width))
    if factor < 1:
        size = (round(width * factor), round(height * factor))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    side = min(CROP_SIDE_PX, image.shape[0], image.shape[1])
    rows, columns = image.shape[0] // side, image.shape[1] // side
    found = [
        image[y * side : (y + 1) * side, x * side : (x + 1) * side]
        for y in range(rows)
        for x in range(columns)
    ]
    found = [crop for crop in found if is_surface_like(crop)]
    step = max(1, len(found) // limit)
    yield from found[::step][:limit]


def build_bank(
    sources: Sequence[str | Path],
    out_dir: str | Path,
    per_picture: int = 4,
    limit: int = 600,
    quality: int = 90,
    exclude: Sequence[str] = (),
) -> list[TextureRecord]:
    """Build a bank from folders; returns its records.

    Args:
        sources: folders that state their licences.
        out_dir: the bank.
        per_picture: most crops of one picture.
        limit: most crops in all.
        quality: of the JPEG files.
        exclude: patterns of SPDX licences that are not to be taken, as `*GPL*`.

    Raises:
        TextureError: when a folder states no licence or no picture is fit.
    """
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    found: list[tuple[str, str, str, bytes]] = []
    seen: set[bytes] = set()
    # All licences first: a folder that states none is no surprise after minutes.
    stated = [(folder, *_folder_licences(folder)) for folder in map(Path, sources)]
    for folder, source, licence_of in stated:
        for path, encoded in _pictures(folder):
            name = PurePosixPath(path)
            unfit = _NOT_A_SURFACE.search(name.stem) or _NOT_A_FOLDER.search('/' + path)
            licence = licence_of(path)
            if unfit or licence is None:
                continue
            if any(fnmatch.fnmatchcase(licence, pattern) for pattern in exclude):
                continue
            image = _decode(encoded)
            if image is None:
                continue
            for crop in _crops(image, per_picture):
                # Sizes and day/night variants of one picture differ in detail, not in layout.
                grey = cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY)
                tiny = cv2.resize(grey, (8, 8), interpolation=cv2.INTER_AREA)
                key = (tiny > tiny.mean()).tobytes()
                if key in seen:
                    continue
                seen.add(key)
                parameters = [cv2.IMWRITE_JPEG_QUALITY, quality]
                _, stream = cv2.imencode('.jpg', crop[..., ::-1], parameters)
                found.append((source, licence, path, stream.tobytes()))
    if not found:
        raise TextureError('no picture in the given folders is fit to be a texture')
    # Fewer than all: thin out evenly, so that no source is lost.
    keep = np.unique(np.linspace(0, len(found) - 1, min(limit, len(found))).round().astype(int))
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    origins: dict[str, str] = {}
    for number, index in enumerate(keep):
        source, licence, path, stream = found[index]
        name = f'{number:04d}.jpg'
        (out / name).write_bytes(stream)
        groups[source, licence].append(name)
        origins[name] = path
    records = [
        TextureRecord(f'{source}, {licence}', source, licence, tuple(files))
        for (source, licence), files in sorted(groups.items())
    ]
    contents = {'textures': [asdict(record) for record in records], 'origins': origins}
    (out / BANK_NAME).write_text(json.dumps(contents, indent=1) + '\n')
    return records


class TextureBank(Sequence[np.ndarray]):
    """The pictures of a bank as read-only (H, W, 3) uint8 RGB arrays, decoded when first used."""

    def __init__(self, folder: Path, records: tuple[TextureRecord, ...]):
        self.folder = folder
        self.records = records
        self._names = sorted(name for record in records for name in record.files)
        self._images: dict[int, np.ndarray] = {}

    @classmethod
    def open(cls, folder: str | Path) -> TextureBank:
        """Open a bank.

        Raises:
            TextureError: when the folder is no bank or misses one of its pictures.
        """
        folder = Path(folder)
        path = folder / BANK_NAME
        if not path.is_file():
            raise TextureError(
                f'{folder} holds no {BANK_NAME}; build a bank with '
                '"python -m stereo_kd_training.datasets.textures --from DIR --out BANK"'
            )
        records = tuple(
            TextureRecord(item['name'], item['source'], item['licence'], tuple(item['files']))
            for item in json.loads(path.read_text())['textures']
        )
        missing = [n for record in records for n in record.files if not (folder / n).is_file()]
        if missing:
            raise TextureError(f'{folder} lacks {len(missing)} of its pictures, as {missing[0]}')
        return cls(folder, records)

    @property
    def sha256(self) -> str:
        """Digest of all pictures in order."""
        digest = hashlib.sha256()
        for name in self._names:
            digest.update((self.folder / name).read_bytes())
        return digest.hexdigest()

    def licences(self) -> list[dict[str, object]]:
        """Name, source, licence and number of pictures of each record, for manifests."""
        return [
            {
                'name': record.name,
                'source': record.source,
                'licence': record.licence,
                'pictures': len(record.files),
            }
            for record in self.records
        ]

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> np.ndarray:
        if index not in self._images:
            image = cv2.imread(str(self.folder / self._names[index]), cv2.IMREAD_COLOR)
            if image is None:
                raise TextureError(f'{self.folder / self._names[index]} is not a readable picture')
            image = np.ascontiguousarray(image[..., ::-1])
            image.setflags(write=False)
            self._images[index] = image
        return self._images[index]


def main() -> None:
    """Build a bank from the command line."""
    parser = argparse.ArgumentParser(description='Build a texture bank with its licences.')
    parser.add_argument('--from', dest='sources', nargs='+', required=True, metavar='DIR')
    parser.add_argument('--out', required=True, metavar='DIR')
    parser.add_argument('--limit', type=int, default=600, help='pictures to keep (600)')
    parser.add_argument(
        '--exclude', nargs='*', default=[], metavar='LICENCE', help='as "*GPL*": leave these out'
    )
    arguments = parser.parse_args()
    records = build_bank(
        arguments.sources, arguments.out, limit=arguments.limit, exclude=arguments.exclude
    )
    for record in records:
        print(f'{len(record.files):4d}  {record.licence:20s}  {record.source}')


if __name__ == '__main__':
    main()
