"""A stored model, whatever file or files it is in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras

from kerasnorm.loading.legacy.built_layer import BuiltLayer
from kerasnorm.loading.legacy.keras1 import KERAS1_ARGUMENTS
from kerasnorm.loading.repair_log import RepairLog


@dataclass(frozen=True)
class StoredModel:
    """What is known of a model before anything of it is built.

    Attributes:
        config: Class and configuration, as `{"class_name": …, "config": …}`.
        version: The Keras that wrote it, as the file says; None where it does not.
        nbytes: Bytes of weights that the file holds.
        training: The compile state, where the file has one.
        put_weights: Puts the weights into what was built from `config`, in the layout of a major
            version of Keras where the file does not say it.
        native: Has Keras 3 read the file, with the compile state or without it.
    """

    config: dict[str, Any]
    version: str | None
    nbytes: int
    training: dict[str, Any] | None
    put_weights: Callable[[BuiltLayer, int, RepairLog], None]
    native: Callable[[bool], keras.Model]

    @property
    def major(self) -> int:
        """The major version of Keras."""
        if self.version:
            return major_of(self.version)
        layers = _layers(self.config)
        of_keras_1 = any(KERAS1_ARGUMENTS & _config(layer).keys() for layer in layers)
        return 1 if of_keras_1 else 2

    def __str__(self) -> str:
        """What is in the file, and who wrote it: for reports and errors."""
        kinds = Counter(str(layer.get("class_name")) for layer in _layers(self.config))
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(6))
        more = ", …" if len(kinds) > 6 else ""
        writer = f"Keras {self.version}" if self.version else f"a Keras {self.major}"
        return f"a {self.config.get('class_name')} model of {writer} ({listed}{more})"


def major_of(version: str) -> int:
    """The first number of a version of Keras."""
    number = version.split(".", 1)[0]
    return int(number) if number.isdecimal() else 2


def as_stored_config(config: Any) -> dict[str, Any] | None:
    """A configuration with its class, also where the file has only the inner part; or None."""
    if isinstance(config, list):
        return {"class_name": "Sequential", "config": config}
    if not isinstance(config, dict):
        return None
    if "class_name" in config and "config" in config:
        return config
    if not isinstance(config.get("layers"), list):
        return None
    class_name = "Functional" if "output_layers" in config else "Sequential"
    return {"class_name": class_name, "config": config}


def _layers(config: Any) -> list[dict[str, Any]]:
    inner = config.get("config")
    layers = inner.get("layers") if isinstance(inner, dict) else inner
    listed = layers if isinstance(layers, list) else []
    return [layer for layer in listed if isinstance(layer, dict)]


def _config(layer: dict[str, Any]) -> dict[str, Any]:
    config = layer.get("config")
    return config if isinstance(config, dict) else {}
