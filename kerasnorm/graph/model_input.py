"""Whether a tensor is an input of the model, as the data has it."""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.trace import fed_by


def is_model_input(model_graphs: ModelGraphs, graph: Graph, tensor: Any) -> bool:
    """Whether a tensor is an input of the model, or made of inputs by layers without weights alone.

    `Normalization`, whose weights are those of the data, counts as one of them. What is inside a
    nested model is looked at from each of its calls.
    """
    waiting, seen = [(graph, tensor)], set[tuple[int, int]]()
    while waiting:
        graph, tensor = waiting.pop()
        if (id(graph), id(tensor)) in seen:
            continue
        seen.add((id(graph), id(tensor)))
        call = graph.producer(tensor)
        if call.is_input and graph is model_graphs.root:
            continue
        sources = _around(model_graphs, graph, tensor) if call.is_input else _read(graph, call)
        if not sources:
            return False
        waiting += sources
    return True


def _read(graph: Graph, call: Call) -> list[tuple[Graph, Any]]:
    """What a call without weights reads; nothing of one with weights."""
    layer = call.operation
    if getattr(layer, "weights", ()) and not isinstance(layer, keras.layers.Normalization):
        return []
    return [(graph, entry) for entry in call.inputs]


def _around(model_graphs: ModelGraphs, graph: Graph, entry: Any) -> list[tuple[Graph, Any]]:
    """What stands for an input of a nested model in each of its calls."""
    number = [id(tensor) for tensor in tree.flatten(graph.inputs)].index(id(entry))
    given = [
        (outer, fed_by(graph, call))
        for outer in model_graphs.graphs.values()
        for call in outer.calls
        if call.operation is graph.owner
    ]
    if any(number >= len(entries) for _, entries in given):  # code that fills it in by itself
        return []
    return [(outer, entries[number]) for outer, entries in given]
