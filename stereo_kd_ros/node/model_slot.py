# Copyright 2026 The stereo_kd_ros authors
# SPDX-License-Identifier: Apache-2.0
"""The model in use, and how it is exchanged for another without losing a pair.

The new model is loaded and warmed beside the old one in a thread of its own and put in between two
pairs. It stays on trial until it has answered one real pair; when it fails before, the old model
is put back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from stereo_kd_ros.engine import StereoEngine
from stereo_kd_ros.model import ModelError


@dataclass(frozen=True)
class LoadedModel:
    """A model as the user named it, and the engine that runs it."""

    name: str
    engine: StereoEngine


class ModelSlot:
    """Holds the model in use; thread-safe.

    Args:
        load: Turns a model's name into a warm engine; raises what the engine raises.
        on_switched: Called with the new model's name once it has answered a pair.
        on_rolled_back: Called with the name of the model that is in use again, and the reason.
    """

    def __init__(
        self,
        load: Callable[[str], StereoEngine],
        on_switched: Callable[[str], None],
        on_rolled_back: Callable[[str, str], None],
    ) -> None:
        self._load = load
        self._on_switched, self._on_rolled_back = on_switched, on_rolled_back
        self._lock = threading.Lock()
        self._current: LoadedModel | None = None
        self._previous: LoadedModel | None = None
        self._loading: threading.Thread | None = None
        self.last_switch = ''

    def open(self, name: str) -> None:
        """Loads the first model; what `load` raises passes through."""
        self._current = LoadedModel(name, self._load(name))

    def close(self) -> None:
        """Waits for a switch in progress and frees every model."""
        loading = self._loading
        if loading is not None:
            loading.join()
        with self._lock:
            self._current = self._previous = self._loading = None

    def current(self) -> LoadedModel | None:
        """Returns the model for the next pair; None when none is loaded."""
        with self._lock:
            return self._current

    def begin_switch(self, name: str) -> None:
        """Starts loading another model in the background.

        Raises:
            ModelError: no model is loaded, or another switch has not ended.
        """
        with self._lock:
            if self._current is None:
                raise ModelError('no model is loaded; configure the node first')
            if self._loading is not None or self._previous is not None:
                raise ModelError('the last change of the model has not ended; try again later')
            self._loading = threading.Thread(
                target=self._load_beside, args=(name,), name='model_switch', daemon=True
            )
            self._loading.start()

    def _load_beside(self, name: str) -> None:
        try:
            loaded = LoadedModel(name, self._load(name))
        except Exception as error:  # besides our own errors ONNX Runtime and MemoryError end here
            self._end_switch(f'{name}: {error}')
            return
        with self._lock:
            self._previous, self._current, self._loading = self._current, loaded, None

    def answered(self, model: LoadedModel) -> None:
        """Ends the trial of a model that has answered a pair, and frees the one before it."""
        with self._lock:
            if self._previous is None or model is not self._current:
                return
            self._previous = None
            self.last_switch = f'switched to {model.name}'
        self._on_switched(model.name)

    def failed(self, model: LoadedModel, reason: str) -> None:
        """Puts the previous model back when the failing one is on trial."""
        with self._lock:
            if self._previous is None or model is not self._current:
                return
            self._current, self._previous = self._previous, None
        self._end_switch(f'{model.name}: {reason}')

    def _end_switch(self, reason: str) -> None:
        with self._lock:
            self._loading = None
            self.last_switch = f'rolled back: {reason}'
            name = self._current.name if self._current is not None else ''
        self._on_rolled_back(name, reason)
