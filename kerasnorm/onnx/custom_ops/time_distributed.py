"""TimeDistributed as its layer called once, on all steps of all samples.

Keras calls the layer for step after step, or, where their number is free, in a loop that TensorFlow
writes for one step only once it is frozen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import keras


def short_call(layer: keras.Layer) -> Callable[..., Any] | None:
    """What to call in place of a layer's `call`; None if it is no TimeDistributed."""
    if type(layer).call is not keras.layers.TimeDistributed.call:
        return None
    inner = layer.layer

    def call(inputs, training=None, mask=None):
        import tensorflow as tf

        sizes = tf.shape(inputs)
        samples = -1 if inputs.shape[0] is None else inputs.shape[0]
        steps = sizes[1] if inputs.shape[1] is None else inputs.shape[1]

        def together(x):
            return tf.reshape(x, [-1, *_sizes_after(x, 2)])

        arguments = {"training": training}
        if mask is not None:
            arguments["mask"] = together(mask)
        taken = inspect.signature(inner.call).parameters
        arguments = {name: value for name, value in arguments.items() if name in taken}
        y = inner.call(together(inputs), **arguments)
        y = tf.reshape(y, [samples, steps, *_sizes_after(y, 1)])
        return tf.ensure_shape(y, [*inputs.shape[:2], *y.shape[2:]])

    return call


def _sizes_after(x: Any, first: int) -> list[Any]:
    """The sizes of the axes from one on, as numbers where they are known."""
    import tensorflow as tf

    sizes = tf.shape(x)
    return [
        sizes[axis] if x.shape[axis] is None else x.shape[axis]
        for axis in range(first, len(x.shape))
    ]
