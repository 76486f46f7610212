"""Give a copied layer the weights, vocabularies, seeds, flags and functions of its source."""

from __future__ import annotations

import inspect
import tempfile
from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.clone.objects import Objects, copied, is_state, leads_to
from kerasnorm.errors import SwapError


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
    for one, other in inner_pairs:
        carry_name(one, other)
    of_source = source.variables
    of_target = _in_order_of_source(target.variables, [(source, target), *inner_pairs], of_source)
    if [(v.shape, v.dtype) for v in of_source] != [(v.shape, v.dtype) for v in of_target]:
        raise SwapError(
            f"The copy of a layer must have the variables of its source. Received "
            f"{[f'{v.name} {v.shape}' for v in of_target]} for "
            f"{[f'{v.name} {v.shape}' for v in of_source]}.",
            layer=source.name,
            hint="Its config does not tell all that it holds (LoRA? quantization?).",
        )
    for old, new in zip(of_source, of_target, strict=True):
        assign_copy(new, old)
    for old_layer, new_layer in [(source, target), *inner_pairs]:
        _carry_other_state(old_layer, new_layer)
        if new_layer.trainable != old_layer.trainable:
            new_layer.trainable = old_layer.trainable
    for old, new in zip(of_source, of_target, strict=True):
        if new.trainable != old.trainable:
            new.trainable = old.trainable


def _in_order_of_source(of_target: list, pairs: list, of_source: list) -> list:
    """The variables of a copy in the order that they have in its source.

    A layer that is quantized has new ones last; one that is made quantized, by its config, first.
    """
    named: dict[int, keras.Variable] = {}
    for source, target in pairs:
        own = keras_private.own_variables(source)
        by_name = {variable.name: variable for variable in keras_private.own_variables(target)}
        if sorted(variable.name for variable in own) == sorted(by_name):
            named.update({id(variable): by_name[variable.name] for variable in own})
    if len(of_source) != len(of_target):
        return of_target
    return [named.get(id(old), new) for old, new in zip(of_source, of_target, strict=True)]


def own_penalties(layer: keras.Layer) -> None:
    """Have a layer that is not built yet share no regularizer or constraint with another."""
    for part in (layer, *keras_private.sublayers(layer)):
        for name, value in vars(part).copy().items():
            if name.endswith(("regularizer", "constraint")):
                setattr(part, name, copied(value))


def assign_copy(variable: keras.Variable, value: Any) -> None:
    """Set a variable to a copy of another's value.

    `assign` alone keeps the same array on JAX, and a training step there deletes the arrays that it
    replaces: training the one would take the other's weights away.
    """
    is_jax = keras.backend.backend() == "jax"
    variable.assign(keras.ops.copy(value) if is_jax else value)


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
    """State that is not in `variables`: what a layer derives on loading, of an RNN, and tables.

    And of the metrics that it holds; those of a model are part of how that is compiled.
    """
    if not source.built:
        return
    if not isinstance(source, keras.Model):
        metrics = (_metrics(layer) for layer in (source, target))
        for one, other in zip(*metrics, strict=True):
            for old, new in zip(one.variables, other.variables, strict=True):
                assign_copy(new, old)
    if isinstance(source, keras.layers.RNN) and source.stateful:
        states = (keras.tree.flatten(layer.states) for layer in (source, target))
        for old, new in zip(*states, strict=True):
            assign_copy(new, old)
    derives = hasattr(source, "finalize_state") or not is_keras_own(source)
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


def is_keras_own(layer: keras.Layer) -> bool:
    return type(layer).__module__.split(".")[0] == "keras"


def _overrides(layer: keras.Layer, method: str) -> bool:
    return getattr(type(layer), method, None) is not getattr(keras.Layer, method, None)


def carry_name(source: keras.Layer, copy: keras.Layer) -> None:
    """Give a layer inside a copied one the name and functions of its source."""
    copy.name = source.name
    carry_functions(source, copy)


def carry_functions(source: keras.Layer, copy: keras.Layer) -> None:
    """Functions as they are: a config knows them by name, and another may have that name.

    Those that lead to layers or variables stay the copy's own, which its constructor made.
    """
    for name, value in vars(source).items():
        if inspect.isfunction(value) and name in vars(copy) and not leads_to([value], _is_own):
            setattr(copy, name, Objects(np.copy).clone(value))
        elif name.endswith(("regularizer", "constraint")):
            carry_values(value, vars(copy).get(name))


def carry_values(source: Any, copy: Any) -> None:
    """Give an object that its config made anew the values that its source has by now."""
    if type(copy) is not type(source) or not hasattr(source, "__dict__"):
        return
    for name, value in vars(source).items():
        own = vars(copy).get(name)
        if isinstance(value, (bool, int, float, str)):
            vars(copy)[name] = value
        elif isinstance(value, np.ndarray):
            vars(copy)[name] = value.copy()
        elif isinstance(value, keras.Variable):
            if isinstance(own, keras.Variable) and own.shape == value.shape:
                assign_copy(own, value)
        elif isinstance(value, (keras.regularizers.Regularizer, keras.constraints.Constraint)):
            carry_values(value, own)


def _is_own(value: Any) -> bool:
    return is_state(value) and not isinstance(value, np.ndarray)


def _metrics(layer: keras.Layer) -> list[keras.metrics.Metric]:
    """The metrics directly in a layer, which are not in its `variables`."""
    values = (value for _, value in keras_private.own_state(layer))
    return [value for value in values if isinstance(value, keras.metrics.Metric)]
