"""Whether a tensor is an input of the model, as the data has it."""

from __future__ import annotations

from typing import Any

import keras
from keras import tree

from kerasnorm.graph.graph import Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.trace import fed_by


def is_model_input(model_graphs: ModelGraphs, graph: Graph, tensor: Any) -> bool:
    """Whether a tensor is an input of the model, or made of inputs by layers without weights alone.

    `Normalization`, whose weights are those of the data, counts as one of them. What is inside a
    nested model is looked at from each of its calls.
    """
    call = graph.producer(tensor)
    if not call.is_input:
        layer = call.operation
        passes = isinstance(layer, keras.layers.Normalization) or not getattr(layer, "weights", ())
        sources = [is_model_input(model_graphs, graph, entry) for entry in call.inputs]
        return passes and bool(sources) and all(sources)
    if graph is model_graphs.root:
        return True
    number = [id(entry) for entry in tree.flatten(graph.inputs)].index(id(tensor))
    around = [
        (outer, fed_by(graph, outer_call))
        for outer in model_graphs.graphs.values()
        for outer_call in outer.calls
        if outer_call.operation is graph.owner
    ]
    return bool(around) and all(
        number < len(entries) and is_model_input(model_graphs, outer, entries[number])
        for outer, entries in around
    )
