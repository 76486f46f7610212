"""Build layers that are given all their weights afterwards, without drawing initial ones first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.graph import sites
from kerasnorm.layers import CosineNorm, WeightNorm

_INITIALIZERS = ("kernel_initializer", "depthwise_initializer", "pointwise_initializer")


@contextlib.contextmanager
def skipped_initializers() -> Iterator[Callable[[keras.Layer], None]]:
    """Have new layers start from zeros where random numbers and norms would take long.

    Gives a function to call on each layer before it is built. In the end the layers have their
    initializers back, which are part of their configs.
    """
    taken: list[tuple[Any, str, Any]] = []

    def take(layer: keras.Layer, name: str) -> None:
        taken.append((layer, name, getattr(layer, name)))
        setattr(layer, name, keras.initializers.Zeros())

    def skip_init(layer: keras.Layer) -> None:
        for inner in (layer, *keras_private.sublayers(layer)):
            if isinstance(inner, WeightNorm):
                take(inner, "gain_initializer")
        linear: Any = layer.layer if isinstance(layer, (WeightNorm, CosineNorm)) else layer
        if sites.is_plain_linear(linear):
            for name in _INITIALIZERS:
                if hasattr(linear, name):
                    take(linear, name)

    try:
        yield skip_init
    finally:
        for layer, name, initializer in taken:
            setattr(layer, name, initializer)
