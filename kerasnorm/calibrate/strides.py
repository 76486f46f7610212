"""A way around a fault of TensorFlow 2.21 on CPUs.

With oneDNN, the gradient of a strided convolution of size 1 writes where it must not: training ends
in a crash, or not, or wrong. The same layer on every second position, without strides, is the same
function and is safe.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras

from kerasnorm.rewrite import internals

_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)


@contextlib.contextmanager
def strides_taken_before(model: keras.Model) -> Iterator[None]:
    """Let a model's convolutions of size 1 skip positions before they convolve, meanwhile."""
    if keras.backend.backend() != "tensorflow":
        yield
        return
    changed: list[tuple[Any, tuple]] = []
    called: dict[int, Any] = {}
    try:
        for layer in internals.sublayers(model):
            inner: Any = layer.layer if isinstance(layer, keras.layers.Wrapper) else layer
            if not _is_strided_point(inner) or isinstance(layer, keras.layers.TimeDistributed):
                continue
            if all(inner is not other for other, _ in changed):
                changed.append((inner, inner.strides))
                called[id(layer)] = layer
                _skip(layer, inner)
        for inner, _ in changed:
            inner.strides = (1,) * len(inner.strides)
        yield
    finally:
        for layer in called.values():
            del layer.call
        for inner, strides in changed:
            inner.strides = strides


def _is_strided_point(layer: Any) -> bool:
    points = isinstance(layer, _CONVOLUTIONS) and set(layer.kernel_size) == {1}
    return points and max(layer.strides) > 1


def _skip(layer: Any, inner: Any) -> None:
    steps = tuple(slice(None, None, stride) for stride in inner.strides)
    first = inner.data_format == "channels_first"
    at = (slice(None), slice(None), *steps) if first else (slice(None), *steps)
    original = layer.call

    @functools.wraps(original)
    def call(x, *args, **kwargs):
        return original(x[at], *args, **kwargs)

    layer.call = call
