"""Shallow copies: other objects that compute with the very same variables."""

from __future__ import annotations

import types
from collections.abc import Iterable
from typing import Any

import keras

from kerasnorm import keras_private


def shallow_copies(
    model: keras.Model, layers: Iterable[keras.Layer]
) -> tuple[keras.Model, list[keras.Layer]]:
    """A shallow copy of a model, and what some of its layers are in there.

    These layers, and the models and layers that hold them, are other objects, which may be given
    what the originals must not have. Everything else in the copy is the model's own: variables
    above all, and layers that code does not hold in attributes, or in lists, tuples and dicts
    there.

    Args:
        model: A built model.
        layers: Layers in it, at any depth.
    """
    wanted = {id(layer): layer for layer in layers}
    copies: dict[int, Any] = {}

    def copied(operation):
        within = (operation, *keras_private.sublayers(operation))
        if wanted.keys().isdisjoint(map(id, within)):
            return operation
        if id(operation) not in copies:
            # without its class's `__new__`, in which Keras wraps methods that are copied anyway
            copies[id(operation)] = copy = object.__new__(type(operation))
            vars(copy).update({name: replaced(v) for name, v in vars(operation).items()})
            keras_private.run_on(copy, operation, copied)
        return copies[id(operation)]

    def replaced(value):
        if isinstance(value, keras.Layer):
            return copied(value)
        if isinstance(value, types.MethodType):
            return types.MethodType(value.__func__, replaced(value.__self__))
        if not isinstance(value, (list, tuple, dict)):
            return value
        old = list(value.values() if isinstance(value, dict) else value)
        new = [replaced(item) for item in old]
        if all(a is b for a, b in zip(old, new, strict=True)):
            return value
        if isinstance(value, dict):
            return dict(zip(value, new, strict=True))
        if hasattr(value, "_fields"):
            return value.__class__(*new)
        return new if isinstance(value, list) else tuple(new)

    return copied(model), [copied(layer) for layer in wanted.values()]
