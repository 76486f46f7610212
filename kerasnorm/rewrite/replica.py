"""Copy a layer attribute by attribute, where its class tells no config, or none that works.

Keras makes a config of a constructor's arguments where those are plain data. For subclasses of
`keras.Model` it records the defaults in their place (Keras 3.15), so that such a config makes
another model. A replica has what its source has: layers and variables are copied, lists, tuples
and dicts too, and anything else is the same object.
"""

from __future__ import annotations

import copy as copying
import types
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasnorm.rewrite import graph as graphs

# What Keras hangs on a layer or model when it is compiled, trained, saved.
_OF_TRAINING = {
    "optimizer", "history", "stop_training", "stop_evaluating", "stop_predicting",
    "_compile_config", "_compiled_trainable_state", "_eval_epoch_iterator",
}  # fmt: skip
# What a constructor may have set differently from what every new layer has.
_OF_EVERY_LAYER = (
    "_supports_masking", "_input_spec", "autocast", "supports_jit", "activity_regularizer",
    "_convert_input_args", "_allow_non_tensor_positional_args", "_remat_mode", "built",
    "_build_shapes_dict", "_called",
)  # fmt: skip


def tells_no_config(layer: keras.Layer) -> bool:
    """Whether a layer's class has no config of its own, and Keras has none for it."""
    told = not getattr(layer.get_config, "_is_default", False)
    return (
        can_be_replicated(layer)
        and not told
        and (isinstance(layer, keras.Model) or getattr(layer, "_auto_config", None) is None)
    )


def can_be_replicated(layer: keras.Layer) -> bool:
    """Whether nothing of Keras but `Layer` or `Model` is in a layer's class."""
    classes = (cls for cls in type(layer).__mro__ if cls.__module__.split(".")[0] == "keras")
    return type(layer) not in (keras.Layer, keras.Model) and next(classes) in (
        keras.Layer,
        keras.Model,
    )


def replica(
    source: keras.Layer,
    copy_layer: Callable[[keras.Layer], keras.Layer],
    memo: dict[int, Any] | None = None,
) -> keras.Layer:
    """A new layer with the attributes of another, built as far as that is.

    Args:
        source: The layer (see `can_be_replicated`).
        copy_layer: Copies a layer inside it.
        memo: The copies of layers so far, by `id`: what is shared inside stays shared.
    """
    cls: Any = type(source)
    copy: Any = cls.__new__(cls)
    base = keras.Model if isinstance(source, keras.Model) else keras.Layer
    base.__init__(copy, name=source.name, dtype=source.dtype_policy)
    memo = {} if memo is None else memo
    memo[id(source)] = copy

    def inner_copy(layer: keras.Layer) -> keras.Layer:
        if id(layer) not in memo:
            if can_be_replicated(layer):
                replica(layer, copy_layer, memo)
            elif graphs.has_graph(layer) and graphs.is_plain(layer):
                memo[id(layer)] = copy_model(layer, inner_copy)
            else:
                memo[id(layer)] = _built_copy(layer, copy_layer)
        return memo[id(layer)]

    for inner in source._layers:
        copy._tracker.add_to_store("layers", inner_copy(inner))
    for variable in (*source._trainable_variables, *source._non_trainable_variables):
        memo[id(variable)] = new = _variable(variable, copy)
        copy._track_variable(new)
    for name in _OF_EVERY_LAYER:
        if name in vars(source):
            vars(copy)[name] = copying.copy(vars(source)[name])
    for name, value in vars(source).items():
        new = name not in vars(copy) and name not in _OF_TRAINING
        if new and not name.startswith("_self_"):  # TensorFlow's
            setattr(copy, name, _copied(value, memo))
    return copy


def copy_model(model: keras.Model, copy_layer: Callable[[keras.Layer], keras.Layer]) -> keras.Model:
    """A copy of a plain model, layer by layer: its config would need one of every layer."""

    def clone(operation):
        is_layer = isinstance(operation, keras.Layer)
        return copy_layer(operation) if is_layer else graphs.copied_operation(operation)

    copy = keras.models.clone_model(model, clone_function=clone)
    copy.dtype_policy = model.dtype_policy
    copy.name = model.name
    return copy


def _built_copy(layer: keras.Layer, copy_layer: Callable[[keras.Layer], keras.Layer]):
    """A copy that is built where its source is: a call of the replica may not come to it."""
    copy = copy_layer(layer)
    shapes = layer.get_build_config() if layer.built and not copy.built else None
    if shapes:
        copy.build_from_config(shapes)
    return copy


def _variable(variable: keras.Variable, owner: keras.Layer) -> keras.Variable:
    with owner._open_name_scope():
        copy = keras.Variable(
            variable.value,
            dtype=variable.dtype,
            trainable=variable.trainable,
            autocast=variable._autocast,
            aggregation=variable.aggregation,
            name=variable.name,
        )
    copy.regularizer, copy.constraint = variable.regularizer, variable.constraint
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
