"""Calibration data from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from kerasnorm.errors import DataError
from kerasnorm.fit.image_folder import SUFFIXES


def read_arrays(text: str) -> Any:
    """The array in an .npy file, or in an .npz file the one named after a colon, "x.npz:images".

    An .npz file without a name gives its only array, or all of them by name. An .npy file is mapped
    into memory, so that only what is used of it is read.

    Raises:
        DataError: If there is no such file or array.
    """
    path, _, name = (text, "", "") if Path(text).exists() else text.partition(":")
    if not Path(path).exists():
        raise DataError(
            f"There is no file '{path}'.",
            hint="Data is an .npy or .npz file, or a folder of images.",
        )
    try:
        arrays: Any = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(arrays, np.ndarray):
            with arrays:
                arrays = dict(arrays)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"Data must be an .npy or .npz file of numbers. '{path}' is not.",
            hint="Of images, name the folder." if path.lower().endswith(SUFFIXES) else None,
        ) from error
    if isinstance(arrays, np.ndarray):
        if name:
            raise DataError(f"'{path}' has one array, without a name. Received the name '{name}'.")
        return arrays
    if name and name not in arrays:
        raise DataError(f"'{path}' has no array '{name}'. It holds: {', '.join(arrays)}.")
    if not arrays:
        raise DataError(f"'{path}' holds no arrays.")
    if name or len(arrays) == 1:
        return arrays[name or next(iter(arrays))]
    return arrays
