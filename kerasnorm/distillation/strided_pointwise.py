"""A way around a fault of TensorFlow 2.21 on CPUs.

With oneDNN, the gradient of a strided convolution of size 1 writes where it must not: training ends
in a crash, or not, or wrong. The same layer on every second position, without strides, is the same
function and is safe.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.layers import kernels

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


@contextlib.contextmanager
def strides_taken_before(model: keras.Model) -> Iterator[None]:
    """Let a model's convolutions of size 1 skip positions before they convolve, meanwhile."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    changed: list[Any] = []
    try:
        for layer in keras_private.sublayers(model):
            if _is_strided_point(layer):
                changed.append(layer)
                layer.convolution_op = functools.partial(_skipping, layer)
                if isinstance(layer, keras.layers.Conv1D):  # which does not ask for it
                    layer.call = functools.partial(_call, layer, layer.call)
        yield
    finally:
        for layer in changed:
            layer.__dict__.pop("convolution_op", None)
            layer.__dict__.pop("call", None)


def _is_strided_point(layer: Any) -> bool:
    point = isinstance(layer, _CONVOLUTIONS) and set(layer.kernel_size) == {1}
    return point and max(layer.strides) > 1 and kernels.overridden(layer) is None


def _skipping(layer: Any, inputs: Any, kernel: Any) -> Any:
    inputs = _skipped(layer, inputs)
    return keras.ops.conv(inputs, kernel, padding="valid", data_format=layer.data_format)


def _call(layer: Any, original: Callable[[Any], Any], inputs: Any) -> Any:
    skipped, strides = _skipped(layer, inputs), layer.strides
    layer.strides = (1,) * len(strides)
    try:
        return original(skipped)
    finally:
        layer.strides = strides


def _skipped(layer: Any, inputs: Any) -> Any:
    steps = tuple(slice(None, None, stride) for stride in layer.strides)
    first = layer.data_format == "channels_first"
    return inputs[(slice(None), slice(None), *steps) if first else (slice(None), *steps)]
