"""Put a layer in the place of another inside a layer with code of its own."""

from __future__ import annotations

import keras

from kerasnorm import keras_private
from kerasnorm.clone.objects import Objects
from kerasnorm.errors import SwapError


def replace_sublayer(holder: keras.Layer, old: keras.Layer, new: keras.Layer) -> None:
    """Put a layer in the place of another wherever a layer, or one inside it, holds that.

    Attributes are seen, and what they hold: containers, functions, plain objects.

    Raises:
        SwapError: If something else holds on to the old layer.
    """
    objects = Objects(lambda value: new, needs=lambda value: value is old)
    for layer in (holder, *keras_private.sublayers(holder)):
        if keras_private.has_graph(layer):
            continue
        keras_private.replace_own_layer(layer, old, new)
        for name, value in keras_private.own_attributes(layer).items():
            replaced = objects.clone(value)
            if replaced is not value:
                setattr(layer, name, replaced)
    if any(layer is old for layer in keras_private.sublayers(holder)):
        raise SwapError(
            f"A layer is replaced in attributes, and in containers, functions and objects in them. "
            f"Received '{old.name}', which '{holder.name}' holds in another way.",
            layer=holder.name,
        )
