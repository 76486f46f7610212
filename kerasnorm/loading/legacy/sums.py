"""Sums as TensorFlow and Keras 2 have them: what is added lies along the axes that it has.

On TensorFlow, `keras.ops.add(x, y)` takes a y of one long axis for a bias: it adds it along x's
last axis where that is as long, or else along axis 1, whichever axis of y it is. A difference is
always taken axis by axis, and x − (−y) is x + y to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import backend, ops

from kerasnorm.graph.keras_add import is_added_in_place


def add(x: Any, y: Any) -> Any:
    """x + y, axis by axis from the last.

    Args:
        x: Tensor, array or number.
        y: The same.

    Returns:
        Their sum.

    Example:

    >>> add(np.zeros((2, 2)), np.array([[0.0], [1.0]])).numpy().tolist()
    [[0.0, 0.0], [1.0, 1.0]]
    """
    if isinstance(x, np.ndarray):
        x, y = y, x
    if is_added_in_place(tuple(np.shape(x)), tuple(np.shape(y))):
        return ops.add(x, y)
    if isinstance(y, np.ndarray):
        return ops.subtract(x, -y)
    if "uint" in backend.standardize_dtype(y.dtype):  # TensorFlow has no negative of those
        return ops.subtract(x, ops.subtract(ops.zeros_like(y), y))
    return ops.subtract(x, ops.negative(y))
