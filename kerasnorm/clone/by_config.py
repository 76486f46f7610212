"""Copy one layer: made from its config, then given its weights, flags and other state."""

from __future__ import annotations

import inspect
import tempfile
import textwrap
from collections.abc import Iterable
from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.clone.by_attributes import (
    can_clone_by_attributes,
    clone_by_attributes,
    copy_model,
    tells_no_config,
)
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
        return copy_model(layer, copy_layer)
    if type(layer) is keras.layers.TimeDistributed:  # whose config needs one of the layer in it
        return type(layer)(copy_layer(layer.layer), name=layer.name, dtype=layer.dtype_policy)
    try:
        config = _accepted(type(layer), {**layer.get_config(), **changes})
        if any(isinstance(value, keras.Variable) for value in config.values()):
            raise TypeError("it holds variables, which the copy would share")
        copy = type(layer).from_config(config)
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
    if len(inner_copies) > len(inner) and not changes and can_clone_by_attributes(layer):
        return clone_by_attributes(layer, copy_layer)  # the config made two of one
    copy.name = config.get("name", layer.name)  # constructors may make another of it
    _carry_functions(layer, copy)
    if list(map(type, inner)) == list(map(type, inner_copies)):  # else `build` makes some
        _carry_inner_looks(zip(inner, inner_copies, strict=True))
    if _is_keras_own(layer) and not layer.weights:
        copy.dtype_policy = layer.dtype_policy  # some configs of Keras tell another, or none
    if copy.dtype_policy != layer.dtype_policy:
        raise SwapError(
            f"The copy of a layer must compute as its source does. Received dtype policy "
            f"'{copy.dtype_policy.name}' for '{layer.dtype_policy.name}'.",
            layer=layer.name,
            hint=f"Give the constructor of {type(layer).__name__} a `dtype` argument.",
        )
    return copy


def _accepted(cls: type, config: dict[str, Any]) -> dict[str, Any]:
    """A config without what a user's constructor has no arguments for: name, dtype, trainable."""
    parameters = inspect.signature(cls).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return config
    common = {"name", "dtype", "trainable"} - set(parameters)
    return {key: value for key, value in config.items() if key not in common}


def _carry_inner_looks(pairs: Iterable[tuple[keras.Layer, keras.Layer]]) -> None:
    for inner, inner_copy in pairs:
        inner_copy.name = inner.name
        _carry_functions(inner, inner_copy)


def _carry_functions(source: keras.Layer, copy: keras.Layer) -> None:
    """Functions as they are: a config knows them by name, and another may have that name."""
    for name, value in vars(source).items():
        # Keras wraps these two for each layer
        if inspect.isfunction(value) and name in vars(copy) and name not in ("build", "quantize"):
            setattr(copy, name, value)


def build_alike(source: keras.Layer, target: keras.Layer) -> None:
    """Build the layers in a copied layer that its own `build` leaves to their first call."""
    for inner, inner_copy in zip(
        keras_private.sublayers(source), keras_private.sublayers(target), strict=False
    ):
        if inner.built and not inner_copy.built:
            inner_copy.build_from_config(inner.get_build_config() or {})


def copy_state(source: keras.Layer, target: keras.Layer) -> None:
    """Give a copied layer the weights, vocabularies, seeds and trainable flags of its source.

    Raises:
        SwapError: If the copy's variables are not those of the source.
    """
    inner_pairs = _paired_sublayers(source, target)
    _carry_inner_looks(inner_pairs)
    of_source, of_target = source.variables, target.variables
    if [(v.shape, v.dtype) for v in of_source] != [(v.shape, v.dtype) for v in of_target]:
        raise SwapError(
            f"The copy of a layer must have the variables of its source. Received "
            f"{[f'{v.name} {v.shape}' for v in of_target]} for "
            f"{[f'{v.name} {v.shape}' for v in of_source]}.",
            layer=source.name,
            hint="Its config does not tell all that it holds (LoRA? quantization?).",
        )
    for old, new in zip(of_source, of_target, strict=True):
        new.assign(old)
    for old_layer, new_layer in [(source, target), *inner_pairs]:
        _carry_other_state(old_layer, new_layer)
        if new_layer.trainable != old_layer.trainable:
            new_layer.trainable = old_layer.trainable
    for old, new in zip(of_source, of_target, strict=True):
        if new.trainable != old.trainable:
            new.trainable = old.trainable


def _paired_sublayers(source: keras.Layer, target: keras.Layer) -> list:
    inner, inner_copies = keras_private.sublayers(source), keras_private.sublayers(target)
    if [type(layer) for layer in inner] != [type(layer) for layer in inner_copies]:
        raise SwapError(
            f"The copy of a layer must have the layers of its source. Received "
            f"{[layer.name for layer in inner_copies]} for {[layer.name for layer in inner]}.",
            layer=source.name,
            hint="Its config does not tell all that it holds.",
        )
    return list(zip(inner, inner_copies, strict=True))


def _carry_other_state(source: keras.Layer, target: keras.Layer) -> None:
    """State that is not in variables: what a layer derives on loading, and lookup tables."""
    if not source.built:
        return
    derives = hasattr(source, "finalize_state") or not _is_keras_own(source)
    if derives and _overrides(source, "load_own_variables"):
        store: dict[str, Any] = {}
        source.save_own_variables(store)
        if store:
            values = {name: keras.ops.convert_to_numpy(v) for name, v in store.items()}
            target.load_own_variables(values)
    if _overrides(source, "save_assets"):
        with tempfile.TemporaryDirectory() as folder:
            source.save_assets(folder)
            target.load_assets(folder)


def _is_keras_own(layer: keras.Layer) -> bool:
    return type(layer).__module__.split(".")[0] == "keras"


def _overrides(layer: keras.Layer, method: str) -> bool:
    return getattr(type(layer), method, None) is not getattr(keras.Layer, method, None)


# What `fit` hangs on a model; that the optimizer starts anew is said where it is copied.
_OF_TRAINING = frozenset({"history", "optimizer"})


def carry_attributes(source: keras.Model, target: keras.Model) -> list[str]:
    """Give a copied model the plain data that was hung on its source; notes on what was not."""
    own = {n: v for n, v in vars(source).items() if not n.startswith("_") and n not in vars(target)}
    lost = []
    for name, value in own.items():
        if _is_data(value):
            setattr(target, name, _copied_data(value))
        elif name not in _OF_TRAINING and not isinstance(value, (keras.Layer, keras.KerasTensor)):
            lost.append(name)
    if not lost:
        return []
    return [f"model '{source.name}': its attributes {', '.join(sorted(lost))} are not carried over"]


def _is_data(value) -> bool:
    if isinstance(value, dict):
        return all(_is_data(v) for v in (*value.keys(), *value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_data, value))
    return value is None or isinstance(value, (bool, int, float, complex, str, bytes, np.ndarray))


def _copied_data(value):
    if isinstance(value, dict):
        return {k: _copied_data(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_copied_data(v) for v in value]
    return value.copy() if isinstance(value, np.ndarray) else value
