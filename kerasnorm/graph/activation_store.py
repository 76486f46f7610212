"""Arrays by name and batch, in memory up to a budget and beyond it in temporary files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Hashable
from typing import Any

import keras
import numpy as np

from kerasnorm.errors import SwapError


def as_array(value: Any) -> np.ndarray:
    """An array or tensor as an array, without a copy where that can be."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(memoryview(value))
    except (TypeError, ValueError, BufferError):  # other backends, and dtypes NumPy does not know
        return keras.ops.convert_to_numpy(value)


def _size(value: Any) -> int:
    dtype = keras.backend.standardize_dtype(value.dtype)
    itemsize = 2 if dtype == "bfloat16" else np.dtype(dtype).itemsize
    return int(np.prod(value.shape)) * itemsize


def _in_memory(held: Any) -> int:
    """The bytes of what is held: an array, or a tuple that says where in a file it is."""
    return 0 if isinstance(held, tuple) else _size(held)


def _append(array: np.ndarray, file: Any) -> int:
    """Write an array to the end of a file, and return where that was."""
    place = file.seek(0, 2)
    cause: Exception | None = None
    try:
        array.tofile(file)
        # what it could not write when it closed its own handle, NumPy does not tell
        if os.fstat(file.fileno()).st_size >= place + array.nbytes:
            return place
    except OSError as error:
        cause = error
    raise SwapError(
        "The temporary files of a calibration must have room in the folder "
        f"'{tempfile.gettempdir()}'. Received a disk that is full.",
        hint="Use fewer samples (`max_samples`, --max-samples), or set TMPDIR to another folder.",
    ) from cause


class ActivationStore:
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

    def put(self, key: Hashable, batch: int, array: Any) -> None:
        """Keep an array or a tensor; a tensor stays one while it is in memory."""
        held = self._held.setdefault(key, {})
        self._used -= _in_memory(held.pop(batch, ()))
        size = _size(array)
        if self._used + size <= self._budget:
            self._used += size
            held[batch] = array
            return
        array = np.asarray(as_array(array), order="C")  # of shape () too
        if key not in self._files:
            self._files[key] = tempfile.TemporaryFile()  # noqa: SIM115
        held[batch] = (_append(array, self._files[key]), array.dtype, array.shape)

    def get(self, key: Hashable, batch: int) -> Any:
        found = self._held[key][batch]
        if not isinstance(found, tuple):
            return found
        place, dtype, shape = found
        file = self._files[key]
        file.seek(place)
        return np.fromfile(file, dtype, int(np.prod(shape))).reshape(shape)

    def drop(self, key: Hashable) -> None:
        for found in self._held.pop(key, {}).values():
            self._used -= _in_memory(found)
        if key in self._files:
            self._files.pop(key).close()

    def close(self) -> None:
        for key in list(self._held):
            self.drop(key)
