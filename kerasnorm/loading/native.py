"""Files of Keras 3, read by Keras itself once they have been looked through."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from kerasnorm.errors import LoadError
from kerasnorm.loading.old_layer import CODE_CLASSES


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


def read_pair(
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


def insist_on_no_code(config: Any) -> None:
    """Refuse a configuration that has a class which runs what is kept in the file.

    Keras refuses the functions in its safe mode, each class by itself; this is for the whole.

    Raises:
        LoadError: If there is one.
    """
    for item in _dictionaries(config):
        class_name = item.get("class_name")
        if class_name in CODE_CLASSES or class_name == "__lambda__":
            inner = item.get("config")
            name = inner.get("name") if isinstance(inner, dict) else None
            raise LoadError(
                f"{class_name} would run code that is kept in the file.",
                layer=name if isinstance(name, str) else None,
                hint="If you trust its author, allow it (--allow-custom-code).",
            )


def _dictionaries(config: Any) -> Iterator[dict[str, Any]]:
    waiting = [config]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


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
