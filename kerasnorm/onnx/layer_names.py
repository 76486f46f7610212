"""From the name of an operation back to the layer of the model it belongs to."""

from __future__ import annotations

import re

import keras

from kerasnorm.keras_private import sublayers


def layer_of(model: keras.Model, text: str) -> str | None:
    """Name of the innermost layer in an operation's path, None if there is none.

    Args:
        model: The model that was traced.
        text: A name like "sequential_1/conv_1/Conv2D", or a text that holds one.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> layer_of(model, "sequential_1/head_1/MatMul")
    'head'
    """
    names = {layer.name for layer in sublayers(model)}
    # Keras opens the scope of a layer twice for each call, so in a traced graph it carries a
    # number that TensorFlow added: dense_1 is the layer `dense`, even if a `dense_1` exists.
    return _innermost(names, text, r"_\d+") or _innermost(names, text, "")


def _innermost(names: set[str], text: str, suffix: str) -> str | None:
    ends = {}
    for name in names:
        # Names may hold slashes of their own, so they are searched for, not split off.
        for match in re.finditer(rf"(?<![\w]){re.escape(name)}{suffix}(?=/)", text):
            ends[name] = match.end(), len(name)
    return max(ends, key=ends.__getitem__, default=None)
