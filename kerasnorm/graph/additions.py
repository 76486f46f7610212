"""Additions in traced code, made as the code makes them.

On symbolic tensors, `x + y` and `keras.ops.add(x, y)` are recorded alike. On TensorFlow's own
tensors `+` broadcasts, and `ops.add` does not always (see `keras_add`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import keras
import numpy as np
from keras import tree

from kerasnorm.graph.execute import run
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.keras_add import is_added_in_place


class Plus(keras.Operation):
    """x + y, broadcast as NumPy does."""

    def call(self, x, y):
        """The sum of two tensors, the first of which is one of the backend's own."""
        return x + y


def as_written(graph: Graph) -> Graph:
    """The graph of a layer's code with `+` in the place of `ops.add` where the code has `+`.

    A few random numbers tell: the layer is called on them, and so are both graphs.
    """
    changed = {id(call) for call in graph.calls if is_ambiguous(call)}
    if not changed:
        return graph
    plus = graph.with_calls(
        dataclasses.replace(call, operation=Plus()) if id(call) in changed else call
        for call in graph.calls
    )
    try:
        return min(plus, graph, key=_error_of(graph))
    except Exception:
        # any code of any user, on numbers that it may not be made for: most people write `+`
        return plus


def _error_of(graph: Graph) -> Callable[[Graph], float]:
    """A function that tells how far a graph is from what its owner gives for random inputs."""
    rng = np.random.default_rng(0)
    inputs = tree.flatten(graph.inputs)
    arrays = [
        rng.random([size or 2 for size in tensor.shape]).astype(tensor.dtype) for tensor in inputs
    ]
    values = {id(t): keras.ops.convert_to_tensor(a) for t, a in zip(inputs, arrays, strict=True)}
    args, kwargs = tree.map_structure(lambda v: values.get(id(v), v), graph.arguments)
    with keras.StatelessScope(collect_losses=True):
        outputs = graph.owner(*args, **{**kwargs, "training": False})
    expected = [keras.ops.convert_to_numpy(output) for output in tree.flatten(outputs)]

    def error(candidate: Graph) -> float:
        pairs = zip(expected, run(candidate, arrays, tree.flatten(graph.outputs)), strict=True)
        return sum(float(np.abs(y - z).sum()) for y, z in pairs)

    return error


def is_ambiguous(call: Call) -> bool:
    """Whether a call is an addition whose values may depend on how it was written."""
    if keras.backend.backend() != "tensorflow" or isinstance(call.operation, keras.Layer):
        return False
    if type(call.operation).__name__ != "Add" or call.kwargs or len(call.args) != 2:
        return False
    x, y = (tuple(getattr(value, "shape", ())) for value in call.args)
    return not is_added_in_place(x, y)
