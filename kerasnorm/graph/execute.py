"""Run a graph call by call, at inference, and keep what is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.graph.graph import Call, Graph


def run(
    graph: Graph, arrays: Sequence[Any], tensors: Iterable[Any], state: Sequence[tuple] = ()
) -> list[np.ndarray]:
    """What a graph has at some of its symbolic tensors.

    The layers' own state stays as it is, and no tensor is held longer than it is needed.

    Args:
        graph: The graph.
        arrays: Its inputs, flat.
        tensors: Symbolic tensors of the graph.
        state: (variable, value) pairs: values to use in place of the variables' own.
    """
    wanted = list(tensors)
    values = {
        id(t): keras.ops.convert_to_tensor(array)
        for t, array in zip(tree.flatten(graph.inputs), arrays, strict=True)
    }
    readers = Counter(id(t) for call in graph.calls for t in call.inputs)
    readers.update(id(t) for t in wanted)
    missing = {id(t) for t in wanted} - values.keys()
    with keras.StatelessScope(state, collect_losses=True):
        for call in graph.calls:
            if not missing:
                break
            if call.is_input:
                continue
            outputs = tree.flatten(call_on(call, values))
            for tensor, output in zip(call.outputs, outputs, strict=True):
                values[id(tensor)] = output
                missing.discard(id(tensor))
            for tensor in call.inputs:
                readers[id(tensor)] -= 1
                if not readers[id(tensor)]:
                    del values[id(tensor)]
    return [keras.ops.convert_to_numpy(values[id(t)]) for t in wanted]


def call_on(call: Call, values: dict[int, Any]):
    """Make a call again, at inference, on other values of its symbolic tensors, given by `id`."""
    args, kwargs = tree.map_structure(lambda v: values.get(id(v), v), (call.args, call.kwargs))
    operation = call.operation
    # A call fixed to True would move statistics that another call reads. Without the argument,
    # whatever is inside may decide: Resizing has Keras train all that follows.
    if isinstance(operation, keras.Layer):
        kwargs = {**kwargs, "training": False}
    return operation(*args, **kwargs)
