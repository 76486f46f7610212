"""Run a graph call by call, at inference, and keep what is asked for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm import keras_private
from kerasnorm.graph.graph import Call, Graph

# What a layer costs beside its arithmetic is the same for any batch: samples that are small are run
# many at once.
_LEAST_AT_ONCE, _MOST_AT_ONCE, _BYTES_AT_ONCE = 32, 256, 2**21


def samples_at_once(arrays: Sequence[np.ndarray]) -> int:
    """How many samples like these to run at once, where a few of their activations are held."""
    each = sum(array.nbytes for array in arrays) // max(1, len(arrays[0]))
    return int(np.clip(_BYTES_AT_ONCE // max(1, each), _LEAST_AT_ONCE, _MOST_AT_ONCE))


def run(graph: Graph, arrays: Sequence[Any], tensors: Iterable[Any]) -> list[np.ndarray]:
    """What a graph has at some of its symbolic tensors (see `run_tensors`), as arrays."""
    return [keras.ops.convert_to_numpy(value) for value in run_tensors(graph, arrays, tensors)]


def run_tensors(
    graph: Graph,
    arrays: Sequence[Any],
    tensors: Iterable[Any],
    *,
    state: Sequence[tuple] = (),
    given: Mapping[int, Any] | None = None,
) -> list[Any]:
    """What a graph has at some of its symbolic tensors, masks attached.

    The layers' own state stays as it is, and no tensor is held longer than it is needed.

    Args:
        graph: The graph.
        arrays: Its inputs, flat.
        tensors: Symbolic tensors of the graph.
        state: (variable, value) pairs: values to use in place of the variables' own.
        given: By the `id` of a symbolic tensor, what the calls that read it get in its place. What
            is returned is still what the graph computes; a call all of whose outputs are given,
            and none is asked for, is not made.
    """
    wanted, given = list(tensors), given or {}
    values = {
        id(t): keras.ops.convert_to_tensor(array)
        for t, array in zip(tree.flatten(graph.inputs), arrays, strict=True)
    }
    readers = Counter(id(t) for call in graph.calls for t in call.inputs)
    missing = {id(t) for t in wanted} - values.keys()
    found = {key: values[key] for key in {id(t) for t in wanted} & values.keys()}
    with keras.StatelessScope(state, collect_losses=True):
        for call in graph.calls:
            if not missing:
                break
            if call.is_input:
                continue
            keys = [id(t) for t in call.outputs]
            if missing.isdisjoint(keys) and given.keys() >= set(keys):
                values.update((key, given[key]) for key in keys)
            else:
                for key, value in zip(keys, tree.flatten(call_on(call, values)), strict=True):
                    if key in missing:
                        found[key] = value
                    values[key] = _in_place_of(value, given[key]) if key in given else value
                missing.difference_update(keys)
            for tensor in call.inputs:
                readers[id(tensor)] -= 1
                if not readers[id(tensor)]:
                    del values[id(tensor)]
    return [found[id(t)] for t in wanted]


def _in_place_of(value, given):
    """A value that is given, with the mask of the one it stands for."""
    given = keras.ops.convert_to_tensor(given)
    mask = keras_private.attached_mask(value)
    if mask is not None:
        keras_private.attach_mask(given, mask)
    return given


def call_on(call: Call, values: dict[int, Any]):
    """Make a call again, at inference, on other values of its symbolic tensors, given by `id`."""
    args, kwargs = tree.map_structure(lambda v: values.get(id(v), v), (call.args, call.kwargs))
    operation = call.operation
    # A call fixed to True would move statistics that another call reads. Without the argument,
    # whatever is inside may decide: Resizing has Keras train all that follows.
    if isinstance(operation, keras.Layer):
        kwargs = {**kwargs, "training": False}
    return operation(*args, **kwargs)
