"""The graphs of a model and of everything in it that has one."""

from __future__ import annotations

import inspect
import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import keras
from keras import tree

from kerasnorm import keras_private
from kerasnorm.errors import SwapError
from kerasnorm.graph import graph as graphs
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.trace import TraceError, trace

Opens = Callable[[keras.Layer], bool]
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass
class ModelGraphs:
    """The graphs of a model, of every model nested in it, and of layers whose code was traced.

    Attributes:
        root: The graph of the model itself.
        graphs: Every graph by the `id` of its owner, inner ones before those that hold them.
        paths: The path of each owner in front of its layers' names: "" or "backbone/".
        calls: How many calls of each operation there are, by `id`, in all graphs together; that
            a layer whose own calls are not seen holds another is one more call of the other.
        trained: The calls that run with `training=True`: told so themselves, or by a call of a
            model around them, or in code by the layer that is called before.
        opaque: Why a layer that was to be opened could not be traced, by `id`.
        holders: The `id` of each layer whose own calls are not seen.
        branches: Why code may call its layers in another way than was seen, by the `id` of its
            owner.
    """

    root: Graph
    graphs: dict[int, Graph] = field(default_factory=dict)
    paths: dict[int, str] = field(default_factory=dict)
    calls: Counter = field(default_factory=Counter)
    trained: set[Call] = field(default_factory=set)
    opaque: dict[int, str] = field(default_factory=dict)
    holders: set[int] = field(default_factory=set)
    branches: dict[int, str] = field(default_factory=dict)

    def path(self, graph: Graph, layer: Any) -> str:
        """The path of a layer that a graph calls."""
        return self.paths[id(graph.owner)] + layer.name


def graphs_of(model: keras.Model, opens: Opens = lambda layer: False) -> ModelGraphs:
    """Collect the graphs of a model and of what is nested in it, each once.

    Args:
        model: A Functional or Sequential model, or one with a `call` of its own that was called.
        opens: Which layers with code of their own to trace.

    Raises:
        SwapError: If the model has no graph and its code cannot be traced.
    """
    if not isinstance(model, keras.Layer):
        raise SwapError(
            f"A model must be given. Received: {type(model).__name__}.",
            hint="Give its `.model`."
            if isinstance(getattr(model, "model", None), keras.Model)
            else "Load a file first: kerasnorm.load_model(path).",
        )
    root = graphs.graph_of(model) if keras_private.has_graph(model) else _traced_model(model)
    opaque: dict[int, str] = {}
    while True:
        found = ModelGraphs(root, opaque=dict(opaque))
        _visit(found, root, "", opens)
        odd = _called_in_several_ways(found)
        if not odd:
            break
        opaque.update(dict.fromkeys(odd, "it is called in several ways"))
    for graph in found.graphs.values():
        for call in itertools.compress(graph.calls, _trains(graph)):
            _mark_trained(found, call)
    found.branches = _branches(found)
    return found


def _visit(found: ModelGraphs, graph: Graph, path: str, opens: Opens) -> None:
    found.paths[id(graph.owner)] = path
    for call in graph.calls:
        operation = call.operation
        found.calls[id(operation)] += 1
        if id(operation) in found.paths or id(operation) in found.opaque:
            continue
        inner = _inner_graph(found, call, opens)
        if inner is not None:
            _visit(found, inner, f"{path}{operation.name}/", opens)
        elif id(operation) not in found.holders:
            found.holders.add(id(operation))
            found.calls.update(map(id, keras_private.sublayers(operation)))
    found.graphs[id(graph.owner)] = graph


def _inner_graph(found: ModelGraphs, call: Call, opens: Opens) -> Graph | None:
    layer = call.operation
    if keras_private.has_graph(layer):
        return graphs.graph_of(layer)
    if not isinstance(layer, keras.Layer) or call.is_input or not opens(layer):
        return None
    try:
        return trace(layer, call.args, call.kwargs)
    except TraceError as error:
        found.opaque[id(layer)] = str(error)
        return None


def _called_in_several_ways(found: ModelGraphs) -> list[int]:
    """The `id` of each traced layer whose code does not call the same layers in each of its calls.

    Its graph is that of one call only.
    """
    signatures: dict[int, dict[str, Call]] = {}
    for graph in found.graphs.values():
        for call in graph.calls:
            inner = found.graphs.get(id(call.operation))
            if inner is not None and inner.is_code:
                signatures.setdefault(id(call.operation), {}).setdefault(
                    _call_signature(call), call
                )
    return [
        owner
        for owner, calls in signatures.items()
        if len(calls) > 1 and not all(_runs_as(found.graphs[owner], c) for c in calls.values())
    ]


def _branches(found: ModelGraphs) -> dict[int, str]:
    """See `ModelGraphs.branches`.

    In a graph the arguments of each call are recorded, but for `training`. Nobody knows what a
    model with code is going to be called with, nor how it calls the code inside it then.
    """
    code = {key: graph for key, graph in found.graphs.items() if graph.is_code}
    owner = found.root.owner
    choices = [
        name
        for name, parameter in keras_private.call_parameters(owner).items()
        if name not in ("training", "mask")
        and (parameter.default is not parameter.empty or parameter.kind in _VARIADIC)
    ]
    if found.root.is_code and choices:
        reason = f"the code of '{owner.name}' may use it in another way, given `{choices[0]}`"
        return dict.fromkeys(code, reason)
    return {
        key: f"the code of '{graph.owner.name}' may use it in another way in training"
        for key, graph in code.items()
        if _in_training(graph) is None
    }


def _in_training(graph: Graph) -> Graph | None:
    """The graph of a traced layer's code in training; None if it is of another form, or none."""
    assert graph.arguments is not None
    try:
        other = trace(graph.owner, *graph.arguments, training=True)
    except TraceError:
        return None
    return other if _form(other) == _form(graph) else None


def _runs_as(graph: Graph, call: Call) -> bool:
    """Whether the code of a graph's owner has a graph of the same form in another call."""
    try:
        other = trace(call.operation, call.args, call.kwargs)
    except TraceError:
        return False
    return _form(graph) == _form(other) and _trains(graph) == _trains(other)


def _form(graph: Graph) -> list[tuple]:
    """What is called on what: everything but sizes and constants."""
    numbers = {id(t): (n, k) for n, c in enumerate(graph.calls) for k, t in enumerate(c.outputs)}
    return [
        (
            call.operation if isinstance(call.operation, keras.Layer) else type(call.operation),
            [numbers[id(t)] for t in call.inputs],
            [(len(t.shape), t.dtype, graph.is_output(t)) for t in call.outputs],
        )
        for call in graph.calls
        if not call.is_input
    ]


def _trains(graph: Graph, *, traced_in_training: bool = False) -> list[bool]:
    """Which calls of a graph run in training of themselves.

    In code, a layer without the argument has the layers in it train where those around it do, of
    which nothing is recorded: it counts as one that does where any other does.
    """
    told = [call.kwargs.get("training") for call in graph.calls]
    inside = traced_in_training or (graph.is_code and any(told))
    return [inside if value is None else bool(value) for value in told]


def _call_signature(call: Call) -> str:
    """How a layer is called, but for which tensors: shapes, dtypes, constants."""
    values = {k: v for k, v in call.kwargs.items() if k != "training"}
    return repr(
        tree.map_structure(
            lambda v: (v.shape, v.dtype) if isinstance(v, keras.KerasTensor) else v,
            (call.args, values),
        )
    )


def _traced_model(model: keras.Model) -> Graph:
    shapes = keras_private.built_shapes(model)
    if shapes is None:
        raise SwapError(
            f"A model with code of its own must have been called on its inputs, and Keras must be "
            f"able to follow the code. Received a {type(model).__name__} that does not know the "
            "shapes of its inputs.",
            model=model.name,
            hint="Call it on a batch first; write its `call` with Keras layers and keras.ops.",
        )
    args, kwargs = tree.map_shape_structure(
        lambda shape: keras.Input(batch_shape=(None, *shape[1:])), shapes
    )
    try:
        return trace(model, args, kwargs)
    except TraceError as error:
        raise SwapError(
            f"The model must be Functional or Sequential, or have code that Keras can follow. "
            f"Received a {type(model).__name__}: {error}.",
            model=model.name,
            hint="Write its `call` with Keras layers and keras.ops; without the batch size, which "
            "is not known (ops.zeros_like(x), not ops.zeros(ops.shape(x))); with tensors in front "
            "of variables (x * self.scale, not self.scale * x). Or rebuild it with the functional "
            "API.",
        ) from error


def _mark_trained(found: ModelGraphs, call: Call) -> None:
    if call in found.trained:
        return
    found.trained.add(call)
    inner = found.graphs.get(id(call.operation))
    for other in [] if inner is None else _trained_with_owner(inner):
        _mark_trained(found, other)


def _trained_with_owner(graph: Graph) -> list[Call]:
    """The calls that run in training where their graph's owner is called so."""
    if graph.arguments is None:  # Keras tells all layers of a model, in the place of their own
        return graph.calls
    other = _in_training(graph)
    if other is None:
        return graph.calls
    return list(itertools.compress(graph.calls, _trains(other, traced_in_training=True)))
