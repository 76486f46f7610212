"""Functions with a gradient of their own."""

from __future__ import annotations

from collections.abc import Callable

import keras
from keras import ops


def with_gradient(forward: Callable, backward: Callable) -> Callable:
    """forward(*values), whose gradient is backward(values, *upstream): one for each value.

    A value may be None; what flows back to it is not used. On TensorFlow only, which takes that in
    every mode of differentiation and without XLA. JAX would refuse to differentiate the function
    in forward mode; it differentiates `forward`.
    """
    if keras.backend.backend() != "tensorflow":
        return forward

    def call(*values):
        places = [place for place, value in enumerate(values) if value is not None]

        @ops.custom_gradient
        def function(*tensors):
            given = list(values)
            for place, tensor in zip(places, tensors, strict=True):
                given[place] = tensor

            def back(*upstream):
                flows = backward(given, *upstream)
                return [flows[place] for place in places]

            return forward(*given), back

        return function(*[values[place] for place in places])

    return call
