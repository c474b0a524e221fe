# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""What is kept between two starts: TensorRT engines, and the choice among CPU providers.

Everything lies in `$STEREO_KD_CACHE`, or `$XDG_CACHE_HOME/stereo_kd_ros` (`~/.cache` without),
and may be deleted at any time. An entry's folder is named after the hash of all it depends on,
so that another model, driver or library finds another folder; an entry that was not finished, or
whose files changed since, is emptied before use. A cache that cannot be used costs time, never a
failure.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # not a POSIX system: two builds at once are then not kept apart
    fcntl = None  # type: ignore[assignment]

ENTRIES_KEPT = 8
MINIMUM_FREE_BYTES = 256 * 1024 * 1024
_KEY_FILE, _COMPLETE_FILE, _LOCK_FILE = 'key.json', 'complete.json', 'lock'


class CacheError(RuntimeError):
    """The cache cannot be used; the message says why."""


@dataclass(frozen=True)
class EngineKey:
    """All that a TensorRT engine depends on."""

    model_sha256: str
    profile: str
    precision: str
    gpu: str
    driver: str
    tensorrt: str
    onnxruntime: str

    def digest(self) -> str:
        """A name for this key, 24 hexadecimal digits.

        Raises:
            CacheError: A part is unknown, so that a stale engine could not be told.
        """
        unknown = [name for name, value in asdict(self).items() if not value]
        if unknown:
            raise CacheError(f'cannot tell what an engine would depend on: no {unknown[0]}')
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:24]


def cache_root(environ: Mapping[str, str] | None = None) -> Path:
    """The folder of this package's cache; it need not exist.

    Raises:
        CacheError: There is no home to put it in.
    """
    environ = os.environ if environ is None else environ
    if environ.get('STEREO_KD_CACHE'):
        return Path(environ['STEREO_KD_CACHE'])
    base = environ.get('XDG_CACHE_HOME', '')
    # The XDG specification has relative paths ignored.
    if os.path.isabs(base):
        return Path(base) / 'stereo_kd_ros'
    home = environ.get('HOME', '')
    if not os.path.isabs(home):
        raise CacheError('neither XDG_CACHE_HOME nor HOME names a folder')
    return Path(home) / '.cache' / 'stereo_kd_ros'


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open('rb') as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


class EngineCache:
    """A folder for the engines of one key, ours alone until `release`.

    Args:
        key: What the engines depend on.
        root: The cache's folder; `cache_root()` without.

    Raises:
        CacheError: The folder cannot be used, or another process is filling it.
    """

    def __init__(self, key: EngineKey, root: Path | None = None) -> None:
        root = cache_root() if root is None else root
        engines = root / 'tensorrt'
        self.directory = engines / key.digest()
        # Timings of single layers hold for every model on this GPU and TensorRT.
        machine = hashlib.sha256(f'{key.gpu}|{key.driver}|{key.tensorrt}'.encode()).hexdigest()
        self.timing_directory = root / 'tensorrt_timing' / machine[:24]
        self._lock: Any = None
        try:
            for folder in (self.directory, self.timing_directory):
                folder.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            if not self._is_intact():
                self.empty()
            free_bytes = shutil.disk_usage(self.directory).free
            if free_bytes < MINIMUM_FREE_BYTES and not self.is_filled:
                raise CacheError(
                    f'{self.directory} has {free_bytes // 2**20} MB left, expected '
                    f'{MINIMUM_FREE_BYTES // 2**20} MB or more'
                )
            write_json(self.directory / _KEY_FILE, asdict(key))
            _keep_newest(engines, ENTRIES_KEPT, besides=self.directory)
        except OSError as error:
            self.release()
            raise CacheError(f'{self.directory} cannot be used: {error.strerror}') from error
        except CacheError:
            self.release()
            raise

    @property
    def is_filled(self) -> bool:
        """Whether engines of an earlier start lie here, whole."""
        return (self.directory / _COMPLETE_FILE).exists()

    def mark_filled(self) -> None:
        """Say that the engines that lie here are whole and gave the right answer.

        Raises:
            CacheError: It cannot be written.
        """
        try:
            write_json(self.directory / _COMPLETE_FILE, self._contents())
        except OSError as error:
            raise CacheError(f'{self.directory} cannot be written: {error.strerror}') from error

    def empty(self) -> None:
        """Remove the engines."""
        for path in self.directory.iterdir():
            if path.name == _LOCK_FILE:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def release(self) -> None:
        """Let other processes in; may be called twice."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _take_lock(self) -> None:
        self._lock = (self.directory / _LOCK_FILE).open('a')
        if fcntl is None:
            return
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CacheError(f'another process is building into {self.directory}') from error

    def _is_intact(self) -> bool:
        noted = read_json(self.directory / _COMPLETE_FILE)
        return noted is not None and noted == self._contents()

    def _contents(self) -> dict[str, str]:
        notes = (_KEY_FILE, _COMPLETE_FILE, _LOCK_FILE)
        return {
            str(path.relative_to(self.directory)): file_sha256(path)
            for path in sorted(self.directory.rglob('*'))
            if path.is_file() and path.name not in notes
        }


def _keep_newest(folder: Path, count: int, besides: Path) -> None:
    """Remove all but the `count` entries used last, so that the cache stays bounded."""
    os.utime(besides)
    entries = [path for path in folder.iterdir() if path.is_dir() and path != besides]
    for path in sorted(entries, key=lambda entry: entry.stat().st_mtime)[: -(count - 1)]:
        shutil.rmtree(path, ignore_errors=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON object from a file; None when there is none, or something else."""
    try:
        value = json.loads(path.read_text(encoding='utf-8'))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object so that a reader sees the old file or the new one, whole.

    Raises:
        OSError: It cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
        with os.fdopen(handle, 'w', encoding='utf-8') as stream:
            json.dump(value, stream, indent=1)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise


def gpu_and_driver(device: int) -> tuple[str, str]:
    """Name of a GPU and version of its driver, as nvidia-smi tells them; empty when unknown."""
    command = ['nvidia-smi', '--query-gpu=name,driver_version', '--format=csv,noheader']
    try:
        told = subprocess.run(
            [*command, f'--id={device}'], capture_output=True, text=True, timeout=20, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return '', ''
    return parse_gpu_line(told)


def parse_gpu_line(text: str) -> tuple[str, str]:
    """Name and driver from `name, version`, nvidia-smi's answer; empty when it is no such line."""
    name, _, driver = text.strip().partition(',')
    return (
        (name.strip(), driver.strip())
        if name and driver and '\n' not in text.strip()
        else ('', '')
    )


def tensorrt_version() -> str:
    """Version of the TensorRT library this process can load; empty when there is none."""
    for library in ('libnvinfer.so.10', 'libnvinfer.so'):
        try:
            number = ctypes.CDLL(library).getInferLibVersion()
        except (OSError, AttributeError):
            continue
        return str(number)
    return ''
