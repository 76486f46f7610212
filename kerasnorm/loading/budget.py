"""A limit on what a file can make Keras allocate."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import keras

from kerasnorm.errors import LoadError
from kerasnorm.loading.safety import Limits

_BYTES = 4
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def limited_weights(stored: int, limits: Limits) -> Iterator[None]:
    """In the block, layers made by this thread may not make weights that the file cannot fill.

    Keras makes all weights before it looks for their values. `Layer.add_weight`, through which
    layers make all weights, is replaced for the time of the block.

    Args:
        stored: Bytes of weights that the file holds.
        limits: How many more layers may ask for.

    Raises:
        LoadError: In the block, if layers ask for many more.
    """
    limit = limits.weights(stored)
    thread, made = threading.get_ident(), 0
    with _one_at_a_time:
        original = keras.Layer.add_weight

        def add_weight(self: keras.Layer, shape: Any = None, *args: Any, **kwargs: Any) -> Any:
            nonlocal made
            if threading.get_ident() == thread:
                made += _BYTES * _size(shape)
                if made > limit:
                    raise LoadError(
                        f"The configuration asks for weights of {made:,} bytes, and the file "
                        f"holds {stored:,}.",
                        layer=self.name,
                    )
            return original(self, shape, *args, **kwargs)

        keras.Layer.add_weight = add_weight
        try:
            yield
        finally:
            keras.Layer.add_weight = original


def _size(shape: Any) -> int:
    sizes = shape if isinstance(shape, list | tuple) else () if shape is None else (shape,)
    return math.prod(size for size in sizes if isinstance(size, int))
