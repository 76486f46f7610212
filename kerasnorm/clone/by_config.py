"""Copy one layer from its config."""

from __future__ import annotations

import inspect
import textwrap
from collections import Counter
from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.clone.by_attributes import (
    can_clone_by_attributes,
    clone_by_attributes,
    tells_no_config,
)
from kerasnorm.clone.functional import clone_plain_model
from kerasnorm.clone.objects import Objects, copied
from kerasnorm.clone.operation import clone_operation
from kerasnorm.clone.state import carry_functions, carry_name, is_keras_own
from kerasnorm.errors import SwapError


def copy_layer(layer: keras.Layer, **changes) -> keras.Layer:
    """A new, unbuilt layer from a layer's config, or attribute by attribute where it has none.

    Args:
        layer: The layer to copy.
        **changes: Config entries that differ.

    Raises:
        SwapError: If the layer's class cannot be made from its config.
    """
    if not changes and tells_no_config(layer):
        return clone_by_attributes(layer, copy_layer)
    if keras_private.has_graph(layer) and keras_private.is_plain(layer):
        return clone_plain_model(layer, _copy_operation)
    if type(layer) is keras.layers.TimeDistributed:  # whose config needs one of the layer in it
        return type(layer)(
            copy_layer(layer.layer),
            activity_regularizer=copied(layer.activity_regularizer),
            name=layer.name,
            dtype=layer.dtype_policy,
        )
    try:
        config = {**layer.get_config(), **changes}
        copy = type(layer).from_config(Objects(_copied_array).clone(_accepted(type(layer), config)))
    except Exception as error:
        # a user's class may fail in any way
        if not changes and can_clone_by_attributes(layer):
            return clone_by_attributes(layer, copy_layer)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise SwapError(
            f"A layer is copied through its config, and {type(layer).__name__} cannot be made "
            f"from its own: {textwrap.shorten(reason, 200, placeholder=' …')}",
            layer=layer.name,
            hint="Give the user's classes in it `get_config` and `from_config`.",
        ) from error
    inner, inner_copies = keras_private.sublayers(layer), keras_private.sublayers(copy)
    others = Counter(map(type, inner_copies)) - Counter(map(type, inner))
    if others and not changes and can_clone_by_attributes(layer):
        # the config made two of one, or what is held since in the place of these is another kind
        return clone_by_attributes(layer, copy_layer)
    copy.name = config.get("name", layer.name)  # constructors may make another of it
    carry_functions(layer, copy)
    if list(map(type, inner)) == list(map(type, inner_copies)):  # else `build` makes some
        for one, other in zip(inner, inner_copies, strict=True):
            carry_name(one, other)
    if is_keras_own(layer) and not layer.weights:
        copy.dtype_policy = layer.dtype_policy  # some configs of Keras tell another, or none
    if copy.dtype_policy != layer.dtype_policy:
        raise SwapError(
            f"The copy of a layer must compute as its source does. Received dtype policy "
            f"'{copy.dtype_policy.name}' for '{layer.dtype_policy.name}'.",
            layer=layer.name,
            hint=f"Give the constructor of {type(layer).__name__} a `dtype` argument.",
        )
    return copy


def _copy_operation(operation):
    return (
        copy_layer(operation) if isinstance(operation, keras.Layer) else clone_operation(operation)
    )


def _copied_array(value: Any) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value.copy()
    kind = "variables" if isinstance(value, keras.Variable) else f"a {type(value).__name__}"
    raise TypeError(f"it holds {kind}, which the copy would share")


def _accepted(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    """A config without what a user's constructor has no arguments for: name, dtype, trainable."""
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return config
    common = {"name", "dtype", "trainable"} - set(parameters)
    return {key: value for key, value in config.items() if key not in common}
