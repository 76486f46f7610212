"""A limit on what a file can make Keras allocate."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterator
from typing import Any

import keras

from kerasnorm.errors import LoadError

# Of the weights' size: layers of a file may hold more than it stores, but not many times more.
_SLACK, _FLOOR = 3, 2**26
_BYTES = 4
_one_at_a_time = threading.RLock()


@contextlib.contextmanager
def limited_weights(stored: int) -> Iterator[None]:
    """In the block, layers made by this thread may not make weights that no file could fill.

    A configuration of a few bytes can ask for a kernel of a terabyte. Keras would make it before
    it finds that the file has nothing to put there. `Layer.add_weight`, through which layers make
    all weights, is replaced for the time of the block.

    Args:
        stored: Bytes of weights that the file holds.

    Raises:
        LoadError: In the block, if layers ask for many more.
    """
    limit = _SLACK * stored + _FLOOR
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
