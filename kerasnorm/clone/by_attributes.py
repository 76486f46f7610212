"""Copy a layer attribute by attribute, where its class tells no config, or none that works.

Keras makes a config of a constructor's arguments where those are plain data. For subclasses of
`keras.Model` it records the defaults in their place (Keras 3.15), so that such a config makes
another model. Such a clone has what its source has: layers and variables are copied, lists, tuples
and dicts too, and anything else is the same object.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private


def tells_no_config(layer: keras.Layer) -> bool:
    """Whether a layer's class has no config of its own, and Keras has none for it."""
    recorded = keras_private.has_recorded_config(layer) and not isinstance(layer, keras.Model)
    return (
        can_clone_by_attributes(layer) and keras_private.has_default_config(layer) and not recorded
    )


def can_clone_by_attributes(layer: keras.Layer) -> bool:
    """Whether nothing of Keras but `Layer` or `Model` is in a layer's class."""
    classes = (cls for cls in type(layer).__mro__ if cls.__module__.split(".")[0] == "keras")
    return type(layer) not in (keras.Layer, keras.Model) and next(classes) in (
        keras.Layer,
        keras.Model,
    )


def clone_by_attributes(
    source: keras.Layer,
    copy_layer: Callable[[keras.Layer], keras.Layer],
    memo: dict[int, Any] | None = None,
) -> keras.Layer:
    """A new layer with the attributes of another, built as far as that is.

    Args:
        source: The layer (see `can_clone_by_attributes`).
        copy_layer: Copies a layer inside it.
        memo: The copies of layers so far, by `id`: what is shared inside stays shared.
    """
    copy = keras_private.bare_instance(source)
    memo = {} if memo is None else memo
    memo[id(source)] = copy

    def inner_copy(layer: keras.Layer) -> keras.Layer:
        if id(layer) not in memo:
            if can_clone_by_attributes(layer):
                clone_by_attributes(layer, copy_layer, memo)
            elif keras_private.has_graph(layer) and keras_private.is_plain(layer):
                memo[id(layer)] = copy_model(layer, inner_copy)
            else:
                memo[id(layer)] = _built_copy(layer, copy_layer)
        return memo[id(layer)]

    for inner in keras_private.own_layers(source):
        keras_private.add_own_layer(copy, inner_copy(inner))
    for variable in keras_private.own_variables(source):
        memo[id(variable)] = keras_private.add_own_variable(copy, variable)
    for name, value in keras_private.own_attributes(source, copy).items():
        setattr(copy, name, _copied(value, memo))
    return copy


def copy_model(model: keras.Model, copy_layer: Callable[[keras.Layer], keras.Layer]) -> keras.Model:
    """A copy of a plain model, layer by layer: its config would need one of every layer."""

    def clone(operation):
        is_layer = isinstance(operation, keras.Layer)
        return copy_layer(operation) if is_layer else keras_private.copied_operation(operation)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.dtype_policy = model.dtype_policy
    copy.name = model.name
    return copy


def _built_copy(layer: keras.Layer, copy_layer: Callable[[keras.Layer], keras.Layer]):
    """A copy that is built where its source is: a call of the clone may not come to it."""
    copy = copy_layer(layer)
    shapes = layer.get_build_config() if layer.built and not copy.built else None
    if shapes:
        copy.build_from_config(shapes)
    return copy


def _copied(value, memo: dict[int, Any]):
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, dict):
        return {key: _copied(item, memo) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_copied(item, memo) for item in value]
        return value.__class__(*items) if hasattr(value, "_fields") else tuple(items)
    if isinstance(value, list):
        return [_copied(item, memo) for item in value]
    if isinstance(value, types.MethodType) and id(value.__self__) in memo:
        return types.MethodType(value.__func__, memo[id(value.__self__)])
    if isinstance(value, keras.random.SeedGenerator):
        memo[id(value)] = keras.random.SeedGenerator.from_config(value.get_config())
        return memo[id(value)]
    if isinstance(value, (np.ndarray, set)):
        return value.copy()
    return value
