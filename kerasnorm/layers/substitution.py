"""Calling a layer with other values in place of its variables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import keras


class _Reader(keras.Layer):
    """Calls a function inside an autocast scope of this layer's own dtype."""

    def call(self, anchor, function):
        return function(anchor)


@functools.cache
def _reader(dtype: str) -> _Reader:
    return _Reader(dtype=dtype)


def in_dtype(dtype: str, function: Callable[[Any], Any], anchor):
    """function(anchor), with every variable it reads read as `dtype`.

    Under a mixed precision policy Keras hands out variables already rounded to the compute
    dtype. A norm has to be taken before that rounding, and only a layer call can say so.
    """
    return _reader(dtype)(anchor, function=function)


def call_with(layer: keras.Layer, values: Mapping[int, Any], *args, **kwargs):
    """Call a built layer with other values in place of some of its variables, for this call only.

    Gradients flow into `values`, the variables themselves stay as they are, and what the call
    leaves behind (losses, seeds, statistics) is kept.

    Args:
        layer: A built layer.
        values: Tensors by the `id` of the variable that each stands in for.
    """
    # a stateful recurrent layer does not list its states among its variables
    variables = [*layer.variables, *keras.tree.flatten(getattr(layer, "states", None) or [])]
    with keras.StatelessScope(
        [(v, values.get(id(v), v)) for v in variables],
        collect_losses=True,
        initialize_variables=False,
    ) as scope:
        before = [scope.get_current_value(v) for v in variables]
        outputs = layer(*args, **kwargs)
        after = [scope.get_current_value(v) for v in variables]
    for variable, old, new in zip(variables, before, after, strict=True):
        if new is not old:
            variable.assign(new)
    for loss in scope.losses:
        layer.add_loss(loss)
    return outputs
