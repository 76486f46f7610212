"""Where an old model says what it takes: in an InputLayer, in its first layer, or beside them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kerasnorm.loading.legacy.built_layer import BuiltLayer

# Layers of Keras 1 that could say the size of their input alone.
_OF_KERAS_1 = frozenset({"Convolution1D", "Dense", "GRU", "LSTM", "SimpleRNN"})
# Of a first layer's kernel: how many dimensions of unknown size its input has, and which
# dimension of the kernel is the input's last.
_BY_KERNEL: dict[str, tuple[int, int | None]] = {
    "Conv1D": (1, -2),
    "Conv2D": (2, -2),
    "Conv3D": (3, -2),
    "Dense": (0, 0),
    "DepthwiseConv2D": (2, 2),
    "GRU": (1, 0),
    "LSTM": (1, 0),
    "SeparableConv1D": (1, -2),
    "SeparableConv2D": (2, -2),
    "SimpleRNN": (1, 0),
}


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
    if shape is None and config.get("input_shape"):
        shape = [None, *config["input_shape"]]
    if shape is None and "input_dim" in config and class_name in _OF_KERAS_1:
        steps = [] if class_name == "Dense" else [config.get("input_length")]
        shape = [None, *steps, config["input_dim"]]
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


def shape_by_kernel(first: BuiltLayer, kernel: Sequence[int]) -> tuple[int | None, ...] | None:
    """The input's shape, batch included, that a first layer's kernel tells; None if it does not.

    Args:
        first: The layer.
        kernel: The shape of its first stored array.
    """
    if first.class_name == "Embedding":
        return (None, None)
    free, place = _BY_KERNEL.get(first.class_name, (0, None))
    if place is None or getattr(first.layer, "data_format", None) == "channels_first":
        return None
    return (None, *[None] * free, kernel[place] * getattr(first.layer, "groups", 1))
