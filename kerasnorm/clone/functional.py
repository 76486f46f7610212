"""Build a Functional or Sequential model anew, call by call, from the graph of another."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import keras
from keras import tree

from kerasnorm import keras_private
from kerasnorm.clone.operation import clone_arguments
from kerasnorm.graph.graph import Call, Graph, graph_of

# The operations that stand for a call, in the order in which they are called: one, or two, or none
# where its only input goes straight through.
Operations = Callable[[Call], list[Any]]
# Whether the operation in a call's place gets a keyword argument of that call.
TakesKeyword = Callable[[Call, Any, str], bool]
Tensors = dict[int, Any]


def clone_graph(
    graph: Graph,
    clone_input: Callable[[keras.layers.InputLayer], keras.layers.InputLayer],
    operations: Operations,
    takes: TakesKeyword = lambda call, operation, keyword: True,
) -> tuple[keras.Model, Tensors]:
    """A model of Keras's own class with the graph of another, and its tensors by the others' `id`.

    Raises:
        SwapError: If a call takes a layer or variable as an argument.
    """
    if isinstance(graph.owner, keras.Sequential):
        return _sequential(graph, clone_input, operations)
    return _functional(graph, clone_input, operations, takes)


def clone_plain_model(model: keras.Model, clone: Callable[[Any], Any]) -> keras.Model:
    """A model of Keras's own class, each of whose layers and operations is cloned once."""
    clones: dict[int, Any] = {}

    def cloned(operation):
        if id(operation) not in clones:
            clones[id(operation)] = clone(operation)
        return clones[id(operation)]

    if isinstance(model, keras.Sequential) and not model.built:
        new = keras.Sequential([cloned(layer) for layer in model.layers], name=model.name)
    else:
        new, _ = clone_graph(graph_of(model), cloned, lambda call: [cloned(call.operation)])
    new.dtype_policy = model.dtype_policy
    return new


def _functional(graph, clone_input, operations, takes) -> tuple[keras.Model, Tensors]:
    tensors: Tensors = {}
    for old in tree.flatten(graph.inputs):
        tensors[id(old)] = clone_input(keras_private.input_layer(old)).output
    for call in graph.calls:
        if call.is_input:
            continue
        given, instead = tensors, operations(call)
        for operation in instead[:-1]:
            new = operation(given[id(call.inputs[0])])
            given = {**tensors, id(call.inputs[0]): new}
        if instead:
            result = _called(call, instead[-1], given, takes, graph.owner.name)
        else:
            result = given[id(call.inputs[0])]
        for old, new in zip(call.outputs, tree.flatten(result), strict=True):
            tensors[id(old)] = new
    inputs, outputs = (
        tree.map_structure(lambda tensor: tensors[id(tensor)], ends)
        for ends in (graph.inputs, graph.outputs)
    )
    # never the source's own class: its constructor may build anything
    return keras.Model(inputs, outputs, name=graph.owner.name), tensors


def _called(call: Call, operation, given: Tensors, takes: TakesKeyword, model: str):
    """What an operation gives for the arguments of a call."""

    def new(value):
        if isinstance(value, keras.KerasTensor):
            return given[id(value)]
        return clone_arguments(value, model)

    args = tree.map_structure(new, call.args)
    kwargs = {
        name: tree.map_structure(new, value)
        for name, value in call.kwargs.items()
        if takes(call, operation, name)
    }
    return operation(*args, **kwargs)


def _sequential(graph, clone_input, operations) -> tuple[keras.Sequential, Tensors]:
    entry = clone_input(keras_private.input_layer(graph.inputs))
    layers = [operations(call) for call in graph.layer_calls()]
    model = keras.Sequential([entry, *itertools.chain(*layers)], name=graph.owner.name)
    tensor = model.inputs[0]
    tensors = {id(graph.inputs): tensor}
    calls = iter(graph_of(model).layer_calls())
    for call, instead in zip(graph.layer_calls(), layers, strict=True):
        for _ in instead:
            tensor = next(calls).output
        tensors[id(call.output)] = tensor
    return model, tensors
