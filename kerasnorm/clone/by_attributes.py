"""Clone a layer attribute by attribute, where its class tells no config, or none that works.

Keras makes a config of a constructor's arguments where those are plain data. For subclasses of
`keras.Model` it records the defaults in their place (Keras 3.15), so that such a config makes
another model. A clone by attributes has what its source has: layers, variables, containers and
functions are cloned, and what is held in several places stays one thing.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.clone import tensorflow_objects
from kerasnorm.clone.functional import clone_plain_model
from kerasnorm.clone.objects import Objects
from kerasnorm.clone.operation import clone_operation
from kerasnorm.clone.state import assign_copy, build_alike, copy_state
from kerasnorm.errors import SwapError


def tells_no_config(layer: keras.Layer) -> bool:
    """Whether a layer's class has no config of its own, and Keras has none for it."""
    recorded = keras_private.has_recorded_config(layer) and not isinstance(layer, keras.Model)
    return (
        can_clone_by_attributes(layer) and keras_private.has_default_config(layer) and not recorded
    )


def can_clone_by_attributes(layer: keras.Layer) -> bool:
    """Whether of Keras only `Layer`, `Model` or what has no config is in a layer's class."""
    classes = (cls for cls in type(layer).__mro__ if cls.__module__.split(".")[0] == "keras")
    return type(layer) not in (keras.Layer, keras.Model) and next(classes) in (
        keras.Layer,
        keras.Model,
        keras.layers.ELU,
        keras.layers.Identity,
    )


def clone_by_attributes(
    source: keras.Layer, copy_layer: Callable[[keras.Layer], keras.Layer]
) -> keras.Layer:
    """A new layer with the attributes of another, built as far as that is.

    Args:
        source: The layer (see `can_clone_by_attributes`).
        copy_layer: Copies a layer inside it.

    Raises:
        SwapError: If something in it cannot be cloned.
    """
    return _Cloning(copy_layer).holder(source)


class _Cloning:
    """Clones a layer and all that is in it, each thing once."""

    def __init__(self, copy_layer: Callable[[keras.Layer], keras.Layer]):
        self.copy_layer = copy_layer
        self.objects = Objects(self.state)

    def holder(self, source):
        """The clone of a layer or metric, whose own constructor is not run."""
        clone = self.objects.remember(source, keras_private.bare_instance(source))
        for name, value in keras_private.settings(source).items():
            vars(clone)[name] = self.objects.clone(value)
        for name, value in keras_private.own_state(source):
            keras_private.add_own_state(clone, name, self.objects.clone(value))
        for name, value in keras_private.own_attributes(source).items():
            if name == "load_report":  # which is of the source alone
                continue
            if keras_private.is_untracked(source, value):
                vars(clone)[name] = self.objects.clone(value)
            else:
                setattr(clone, name, self.objects.clone(value))
        return clone

    def state(self, value: Any) -> Any:
        """The clone of something with values of its own."""
        if isinstance(value, keras.Layer):
            return self.layer(value)
        if isinstance(value, keras.Operation):
            return clone_operation(value)
        if isinstance(value, keras.Variable):
            return self.variable(value)
        if isinstance(value, keras.metrics.Metric):
            return self.holder(value)
        if isinstance(value, keras.random.SeedGenerator):
            clone = type(value).from_config(value.get_config())
            assign_copy(clone.state, value.state)
            return clone
        if isinstance(value, keras.optimizers.Optimizer):  # which starts anew, as a model's does
            return type(value).from_config(value.get_config())
        if isinstance(value, np.ndarray):
            return value.copy()
        if tensorflow_objects.is_variable(value):
            return copy.deepcopy(value)
        raise SwapError(
            f"What a layer without a config holds must be of a kind that can be cloned. Received "
            f"a {type(value).__name__}, which may be written to.",
            hint="Give the class that holds it `get_config`, so that its constructor makes one.",
        )

    def layer(self, layer: keras.Layer) -> keras.Layer:
        if can_clone_by_attributes(layer):
            return self.holder(layer)
        if keras_private.has_graph(layer) and keras_private.is_plain(layer):
            return clone_plain_model(layer, self.objects.clone)
        return _built_copy(layer, self.copy_layer)

    def variable(self, variable: keras.Variable) -> keras.Variable:
        clone = self.objects.remember(variable, keras_private.new_variable(variable))
        clone.regularizer = self.objects.clone(variable.regularizer)
        clone.constraint = self.objects.clone(variable.constraint)
        return clone


def _built_copy(layer: keras.Layer, copy_layer: Callable[[keras.Layer], keras.Layer]):
    """A copy that is built where its source is, and has its state.

    A call of the clone may not come to it, and Keras may not know that the clone holds it.
    """
    copy = copy_layer(layer)
    shapes = layer.get_build_config() if layer.built and not copy.built else None
    if shapes:
        copy.build_from_config(shapes)
    if layer.built and copy.built:
        build_alike(layer, copy)
        copy_state(layer, copy)
    return copy
