"""Where an old model says what it takes: in an InputLayer, in its first layer, or beside them."""

from __future__ import annotations

from typing import Any


def input_of(stored: dict[str, Any]) -> dict[str, Any] | None:
    """The arguments of `keras.Input` that a first layer, or a model, tells; None if it does not."""
    config = stored.get("config", stored)
    if isinstance(config, list):
        return input_of(config[0])
    if "layers" in config:
        found = input_of(config["layers"][0]) if config["layers"] else None
        if found is None and config.get("build_input_shape"):
            found = {"batch_shape": tuple(config["build_input_shape"])}
        return {key: value for key, value in found.items() if key != "name"} if found else None
    found = _shape_and_dtype(config, stored.get("class_name"))
    if found is None and isinstance(config.get("layer"), dict):  # of a wrapper
        return input_of(config["layer"])
    if found is not None and stored.get("class_name") == "InputLayer" and config.get("name"):
        found["name"] = config["name"]
    return found


def _shape_and_dtype(config: dict[str, Any], class_name: Any) -> dict[str, Any] | None:
    shape = config.get("batch_input_shape") or config.get("batch_shape")
    if shape is None and "input_shape" in config:
        shape = [None, *config["input_shape"]]
    if shape is None:
        return None
    found: dict[str, Any] = {"batch_shape": tuple(shape)}
    dtype = config.get("input_dtype") or config.get("dtype")
    if class_name == "Embedding":
        dtype = "int32" if dtype is None or "float" in str(dtype) else dtype
    if isinstance(dtype, str) and not dtype.startswith("mixed_"):
        found["dtype"] = dtype
    if config.get("sparse"):
        found["sparse"] = True
    return found
