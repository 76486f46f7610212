"""Files of Keras 3, read by Keras itself once they have been looked through."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras


def read_native(file: Path, suffix: str, allow_custom_code: bool, compiled: bool) -> keras.Model:
    """The model of a file of Keras 3.

    Args:
        file: The path.
        suffix: What Keras calls such a file: ".keras" or ".h5".
        allow_custom_code: Whether functions in it may run.
        compiled: Whether to restore the compile state as well.

    Raises:
        Exception: Whatever Keras says to what it cannot read.
    """
    with _named(file, suffix) as named:
        return keras.models.load_model(named, compile=compiled, safe_mode=not allow_custom_code)


def read_file_pair(
    config: dict[str, Any], weights: Path, suffix: str, allow_custom_code: bool
) -> keras.Model:
    """The model of a configuration of Keras 3 with weights in another file.

    Raises:
        Exception: Whatever Keras says to what it cannot read.
    """
    model = keras.saving.deserialize_keras_object(config, safe_mode=not allow_custom_code)
    with _named(weights, suffix) as named:
        model.load_weights(named)
    return model


@contextlib.contextmanager
def _named(file: Path, suffix: str) -> Iterator[Path]:
    """The file under a name that tells Keras its format."""
    if file.suffix == suffix:
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{suffix}"
        link.symlink_to(file.resolve())
        yield link
