"""Convolutions in training as another form of the same function.

TensorFlow can crash in some convolution gradients on CPUs; kerasnorm's own training avoids it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import keras

from kerasnorm.layers import kernels

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


def stride_before_pointwise(layers: Iterable[Any]) -> None:
    """Have convolutions of size 1 skip positions before they convolve.

    Args:
        layers: Layers of a model that nobody else has: they compute the same, but not by the
            methods of their classes.
    """
    for layer in layers:
        if _is_strided_pointwise(layer):
            layer.convolution_op = functools.partial(_pointwise, layer)
            if isinstance(layer, keras.layers.Conv1D):  # which does not ask for it
                layer.call = functools.partial(_call, layer, layer.call)


def _is_strided_pointwise(layer: Any) -> bool:
    pointwise = isinstance(layer, _CONVOLUTIONS) and set(layer.kernel_size) == {1}
    return pointwise and max(layer.strides) > 1 and kernels.overridden(layer) is None


def _pointwise(layer: Any, inputs: Any, kernel: Any) -> Any:
    inputs = _strided(layer, inputs)
    return keras.ops.conv(inputs, kernel, padding="valid", data_format=layer.data_format)


def _call(layer: Any, original: Callable[[Any], Any], inputs: Any) -> Any:
    strided, strides = _strided(layer, inputs), layer.strides
    layer.strides = (1,) * len(strides)
    try:
        return original(strided)
    finally:
        layer.strides = strides


def _strided(layer: Any, inputs: Any) -> Any:
    steps = tuple(slice(None, None, stride) for stride in layer.strides)
    first = layer.data_format == "channels_first"
    return inputs[(slice(None), slice(None), *steps) if first else (slice(None), *steps)]
