"""Files of Keras 3, read by Keras itself once they have been looked through."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.loading.legacy.weights.assign import finalize
from kerasnorm.loading.registered import registered_class


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
        model = keras.models.load_model(named, compile=compiled, safe_mode=not allow_custom_code)
    return _finalized(model)


def read_parts(
    config: dict[str, Any], weights: Path, suffix: str, allow_custom_code: bool
) -> keras.Model:
    """The model of a configuration of Keras 3, with the weights of a file.

    Args:
        config: Class and configuration.
        weights: The path.
        suffix: What Keras calls such a file: ".weights.h5", or ".h5" where layers have groups.
        allow_custom_code: Whether functions in the configuration may run.

    Raises:
        Exception: Whatever Keras says to what it cannot read.
    """
    config = copy.deepcopy(config)  # which Keras changes
    if "module" in config:
        model = keras.saving.deserialize_keras_object(config, safe_mode=not allow_custom_code)
    else:
        trust = keras_private.trusted_configs if allow_custom_code else contextlib.nullcontext
        with trust():
            model = _class_of(config).from_config(config["config"])
    with _named(weights, suffix) as named:
        model.load_weights(named)
    return _finalized(model)


def _finalized(model: Any) -> Any:
    """The model with the values that were adapted to data in use, in models in it too."""
    for layer in keras_private.sublayers(model):
        if layer.built:
            finalize(layer)
    return model


def _class_of(config: dict[str, Any]) -> Any:
    class_name = config["class_name"]
    if class_name in ("Functional", "Sequential"):
        return keras.Sequential if class_name == "Sequential" else keras.Model
    found = registered_class(config)
    if found is None:
        raise ValueError(f"Unknown model: {class_name}")
    return found


@contextlib.contextmanager
def _named(file: Path, suffix: str) -> Iterator[Path]:
    """The file under a name that tells Keras its format."""
    found = "".join(file.suffixes[-2:])
    if found == suffix or (file.suffix == suffix and found != ".weights.h5"):
        yield file
        return
    with tempfile.TemporaryDirectory() as folder:
        link = Path(folder) / f"model{suffix}"
        link.symlink_to(file.resolve())
        yield link
