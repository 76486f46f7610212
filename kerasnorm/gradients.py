"""Functions with a gradient of their own."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops


def with_gradient(forward: Callable, backward: Callable) -> Callable:
    """forward(*values), whose gradient is backward(values, *upstream).

    On TensorFlow only, which takes that in every mode of differentiation and without XLA. JAX
    would refuse to differentiate the function in forward mode; it differentiates `forward`.
    """
    if keras.backend.backend() != "tensorflow":
        return forward

    @ops.custom_gradient
    def function(*values):
        return forward(*values), lambda *upstream: backward(values, *upstream)

    return function
