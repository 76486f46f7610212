"""Arrays by name and batch, in memory up to a budget and beyond it in temporary files."""

from __future__ import annotations

import tempfile
from collections.abc import Hashable
from typing import Any

import numpy as np


class Store:
    """Holds the activations between two steps of a calibration.

    The temporary files have no name in the file system, so that nothing is left of them however
    the process ends.

    Args:
        budget: Bytes that may be held in memory.
    """

    def __init__(self, budget: int):
        self._budget = budget
        self._used = 0
        self._held: dict[Hashable, dict[int, Any]] = {}
        self._files: dict[Hashable, Any] = {}

    def put(self, key: Hashable, batch: int, array: np.ndarray) -> None:
        array = np.ascontiguousarray(array)
        held = self._held.setdefault(key, {})
        if self._used + array.nbytes <= self._budget:
            self._used += array.nbytes
            held[batch] = array
            return
        if key not in self._files:
            self._files[key] = tempfile.TemporaryFile()  # noqa: SIM115
        file = self._files[key]
        place = file.seek(0, 2)
        array.tofile(file)
        held[batch] = (place, array.dtype, array.shape)

    def get(self, key: Hashable, batch: int) -> np.ndarray:
        found = self._held[key][batch]
        if isinstance(found, np.ndarray):
            return found
        place, dtype, shape = found
        file = self._files[key]
        file.seek(place)
        return np.fromfile(file, dtype, int(np.prod(shape))).reshape(shape)

    def drop(self, key: Hashable) -> None:
        for found in self._held.pop(key, {}).values():
            if isinstance(found, np.ndarray):
                self._used -= found.nbytes
        if key in self._files:
            self._files.pop(key).close()

    def close(self) -> None:
        for key in list(self._held):
            self.drop(key)
