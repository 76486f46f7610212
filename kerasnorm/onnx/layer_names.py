"""From the name of an operation back to the layer of the model it belongs to."""

from __future__ import annotations

import keras


def all_layers(model: keras.Model) -> list[keras.Layer]:
    """Every layer of a model, those inside other layers and models too."""
    return list(model._flatten_layers(include_self=False, recursive=True))


def layer_of(model: keras.Model, operation: str) -> str | None:
    """Name of the innermost layer in an operation's path, None if there is none.

    Args:
        model: The model that was traced.
        operation: A name like "functional_1/conv/Conv2D", or a text that holds one.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, name="head")])
    >>> layer_of(model, "sequential/head/MatMul")
    'head'
    """
    # A layer's name may hold slashes of its own, so names are searched for, not split off.
    found = {
        layer.name: operation.rfind(f"/{layer.name}/")
        for layer in all_layers(model)
        if f"/{layer.name}/" in operation
    }
    return max(found, key=lambda name: (found[name] + len(name), len(name)), default=None)
