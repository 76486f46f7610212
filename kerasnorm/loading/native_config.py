"""What Keras 3 loses when it reads a configuration from an HDF5 file that it wrote itself.

There it takes a layer's `axis` for a number, or drops it, and looks for operations of `keras.ops`
among the layers. Neither befalls an item that says which module its class is of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from kerasnorm import keras_private


def with_modules(config: dict[str, Any], log: Callable[[str, str], None]) -> dict[str, Any]:
    """The configuration of a model in which nothing is left for Keras to lose.

    Args:
        config: Class and configuration of a model, as Keras 3 writes them into HDF5 files.
        log: Is told of every item that had to be changed, and its name.

    Returns:
        The same configuration where nothing had to be.
    """
    inner = config["config"]
    if not isinstance(inner, dict) or not isinstance(inner.get("layers"), list):
        return config
    layers = [_with_module(item, log) for item in inner["layers"]]
    if all(new is old for new, old in zip(layers, inner["layers"], strict=True)):
        return config
    return {**config, "config": {**inner, "layers": layers}}


def _with_module(item: dict[str, Any], log: Callable[[str, str], None]) -> dict[str, Any]:
    if "module" in item or not isinstance(item.get("config"), dict):
        return item
    inner, class_name = item["config"], str(item["class_name"])
    name = str(inner.get("name"))
    if "layers" in inner:
        return with_modules(item, log)
    operation = keras_private.operation_class(class_name)
    if operation is not None and "trainable" not in inner:  # which every layer's has
        log(f"keras.ops.{class_name} was stored as if it were a layer", name)
        return {**item, "module": operation.__module__, "registered_name": class_name}
    if "axis" not in inner or isinstance(inner["axis"], int):
        return item
    # Normalization keeps its axis=None, of all values together, as a list of none
    axis = inner["axis"] or None if class_name == "Normalization" else inner["axis"]
    log(f"`axis={axis}` was kept, which Keras 3 loses in its own HDF5 files", name)
    if hasattr(keras.layers, class_name):
        return {**item, "module": "keras.layers", "registered_name": None}
    return {**item, "module": None, "registered_name": class_name}
