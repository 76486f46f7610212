"""A limit on the weights that a file can have Keras make."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.errors import LoadError
from kerasnorm.loading.safety import Limits


@contextlib.contextmanager
def limited_weights(stored: int, limits: Limits, dry_run: Callable[[], object]) -> Iterator[None]:
    """In the block this thread makes no more weights than a file can mean.

    Keras makes all weights before it looks for their values, so that each is counted before it is
    made. Only TensorFlow tells of them then; for other backends the model is built once before,
    without values.

    Args:
        stored: Bytes of weights that the file holds.
        limits: How many more may be made.
        dry_run: Builds the model, to be thrown away.

    Raises:
        LoadError: If there would be more, or a backend other than TensorFlow cannot tell.
    """
    count = _Count(stored, limits)
    if keras.backend.backend() == "tensorflow":
        with keras_private.watched_variables(count):
            yield
        return
    try:
        with keras_private.deferred_variables(count):
            dry_run()
    except ValueError as error:
        if "stateless scope" not in str(error):
            raise
        raise LoadError(
            "Only TensorFlow can tell beforehand how much memory its weights need.",
            hint="If you trust its author, lift the limit (--allow-custom-code).",
        ) from error
    yield


class _Count:
    """Adds up the bytes of variables, of which it gets one after the other."""

    def __init__(self, stored: int, limits: Limits):
        self._stored, self._limit, self._made = stored, limits.weights(stored), 0

    def __call__(self, variable: Any) -> None:
        self._made += math.prod(variable.shape) * _itemsize(variable.dtype)
        if self._made > self._limit:
            raise LoadError(
                f"The configuration asks for weights of {self._made:,} bytes, and the file holds "
                f"{self._stored:,}.",
                layer="".join(getattr(variable, "path", "").split("/")[-2:-1]) or None,
            )


def _itemsize(dtype: Any) -> int:
    bits = re.search(r"\d+", keras.backend.standardize_dtype(dtype))
    return max(1, int(bits[0]) // 8) if bits else 1
