"""Build layers that are given all their weights afterwards, without drawing initial ones first."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasnorm.graph import sites
from kerasnorm.layers import CosineNorm, WeightNorm
from kerasnorm.layers.weight_norm import gains_set_later

_INITIALIZERS = ("kernel_initializer", "depthwise_initializer", "pointwise_initializer")


@contextlib.contextmanager
def skipped_initializers() -> Iterator[Callable[[keras.Layer], None]]:
    """Have new layers start from zeros where random numbers and norms would take long.

    Gives a function to call on each layer before it is built. In the end the layers have their
    initializers back, which are part of their configs.
    """
    taken: list[tuple[Any, str, Any]] = []

    def skip_init(layer: keras.Layer) -> None:
        linear: Any = layer.layer if isinstance(layer, (WeightNorm, CosineNorm)) else layer
        if not sites.is_plain_linear(linear):
            return
        for name in _INITIALIZERS:
            if hasattr(linear, name):
                taken.append((linear, name, getattr(linear, name)))
                setattr(linear, name, keras.initializers.Zeros())

    try:
        with gains_set_later():
            yield skip_init
    finally:
        for linear, name, initializer in taken:
            setattr(linear, name, initializer)
