"""Clone what a graph holds beside layers: `keras.ops` calls and the constants they are given."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.clone.objects import Objects
from kerasnorm.errors import SwapError


def clone_operation(operation: keras.Operation) -> keras.Operation:
    """A clone of an operation that is no layer: a config would lose arrays and functions.

    Raises:
        SwapError: If it holds layers or variables.
    """
    objects = Objects(lambda value: _clone_array(value, operation.name))
    clone = objects.remember(operation, keras_private.bare_operation(operation))
    for name, value in keras_private.operation_attributes(operation).items():
        vars(clone)[name] = objects.clone(value)
    return clone


def clone_arguments(arguments: Any, model: str) -> Any:
    """The arguments of a call in a model's graph, arrays copied.

    Raises:
        SwapError: If a layer or variable is among them, or what a function among them uses.
    """
    return Objects(lambda value: _clone_array(value, model)).clone(arguments)


def _clone_array(value: Any, owner: str) -> np.ndarray:
    if isinstance(value, np.ndarray):
        return value.copy()
    raise SwapError(
        f"Operations must not take a layer's variable as an argument. Received "
        f"'{getattr(value, 'path', None) or getattr(value, 'name', value)}', which the copy would "
        "share with its source.",
        model=owner,
        hint="Make the operation part of a layer.",
    )
