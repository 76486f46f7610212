"""A read-only view of a Keras model's graph. The one file that knows Keras internals.

Keras records every symbolic call as a node. A layer keeps all nodes it ever took part in, those
of other models included, so that only a walk back from a model's own outputs tells which are
alive; this view is that walk.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
from keras import tree
from keras.src.models.functional import Functional
from keras.src.saving.serialization_lib import SafeModeScope

from kerasnorm.errors import SwapError


@dataclass(frozen=True, eq=False)
class Call:
    """One call of a layer or operation in a model's graph."""

    operation: Any
    args: tuple
    kwargs: dict[str, Any]
    inputs: tuple
    """The symbolic tensors among `args` and `kwargs`."""
    outputs: tuple
    is_input: bool
    """Whether this is the entry of the graph: an InputLayer, which is called on nothing."""

    @property
    def output(self):
        """The only output, for layers that have one."""
        return self.outputs[0]


class Graph:
    """The live calls of one Functional or Sequential model, in topological order.

    Models nested in it are single calls here; `submodels` has their own graphs.

    Args:
        model: A Functional model, or a Sequential one that is built.

    Raises:
        SwapError: If the model has no graph (subclassed, or a Sequential not yet built).
    """

    def __init__(self, model: keras.Model):
        self.model = model
        self.inputs, self.outputs = _ends(model)
        self.calls = _topological_order(tree.flatten(self.outputs))
        self._producers = {id(t): call for call in self.calls for t in call.outputs}
        self._consumers: dict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            for tensor in call.inputs:
                self._consumers[id(tensor)].append(call)
        self._outputs = {id(t) for t in tree.flatten(self.outputs)}

    def producer(self, tensor) -> Call:
        """The call that computes a tensor."""
        return self._producers[id(tensor)]

    def consumers(self, tensor) -> list[Call]:
        """The calls that read a tensor, once for each time they name it."""
        return self._consumers[id(tensor)]

    def is_output(self, tensor) -> bool:
        """Whether a tensor is an output of the model."""
        return id(tensor) in self._outputs

    def layer_calls(self) -> list[Call]:
        """The calls in the order of a Sequential model's layers, its input left out."""
        return [call for call in self.calls if not call.is_input]


@dataclass(frozen=True)
class Forest:
    """The graphs of a model and of every model nested in it.

    Attributes:
        root: The graph of the model itself.
        graphs: Every graph by the `id` of its model, inner models before the ones that hold them.
        paths: The path of each model in front of its layers' names: "" or "backbone/".
        calls: How many calls of each operation there are, by `id`, in all graphs together.
        live: The `id` of each model that some call, or some call of a model around it, runs with
            `training=True`.
    """

    root: Graph
    graphs: dict[int, Graph]
    paths: dict[int, str]
    calls: Counter
    live: set[int]


def forest(model: keras.Model) -> Forest:
    """Collect the graphs of a model and of the models nested in it, each once."""
    graphs: dict[int, Graph] = {}
    paths: dict[int, str] = {}
    calls: Counter = Counter()
    live: set[int] = set()

    def visit(inner, path):
        if id(inner) in paths:
            return
        paths[id(inner)] = path
        graph = Graph(inner)
        for call in graph.calls:
            calls[id(call.operation)] += 1
            if has_graph(call.operation):
                visit(call.operation, f"{path}{call.operation.name}/")
        graphs[id(inner)] = graph

    def enliven(inner):
        live.add(id(inner))
        for call in graphs[id(inner)].calls:
            if has_graph(call.operation) and call.kwargs.get("training") is not False:
                enliven(call.operation)

    visit(model, "")
    for graph in graphs.values():
        for call in graph.calls:
            if has_graph(call.operation) and call.kwargs.get("training"):
                enliven(call.operation)
    return Forest(graphs[id(model)], graphs, paths, calls, live)


def has_graph(operation) -> bool:
    """Whether an operation is a model that computes what its graph says, and nothing else."""
    return any(
        isinstance(operation, cls) and type(operation).call is cls.call
        for cls in (Functional, keras.Sequential)
    )


def is_plain(model: keras.Model) -> bool:
    """Whether a model is of Keras's own class, without methods of the user's."""
    return type(model) in (Functional, keras.Sequential)


def sublayers(layer) -> list[keras.Layer]:
    """Every layer inside a layer, to any depth, in Keras's own order; not the layer itself."""
    if not isinstance(layer, keras.Layer):
        return []
    return layer._flatten_layers(include_self=False)


def input_layer(tensor) -> keras.layers.InputLayer:
    """The InputLayer that a model's input comes from."""
    return tensor._keras_history.operation


def attached_mask(tensor):
    """The mask that travels with a tensor, or None."""
    return getattr(tensor, "_keras_mask", None)


def copied_operation(operation):
    """A copy of an operation without weights, such as a `keras.ops` call, without its history.

    The copy has the very same attributes: a config would lose arrays and callables.
    """
    clone = copy.copy(operation)
    clone._inbound_nodes = []
    clone._outbound_nodes = []
    return clone


@contextlib.contextmanager
def trusted_configs() -> Iterator[None]:
    """Let configs hold functions. Only for configs taken from a model in this very process."""
    with SafeModeScope(safe_mode=False):
        yield


def _ends(model):
    if not has_graph(model):
        raise SwapError(
            f"The model must be Functional or Sequential. Received a {type(model).__name__}, "
            "whose graph is Python code.",
            model=getattr(model, "name", None),
            hint="Rebuild it with the functional API.",
        )
    if isinstance(model, Functional):
        return model.input, model.output
    try:
        return model.inputs[0], model.outputs[0]
    except AttributeError:
        raise SwapError(
            "A Sequential model must be built before it has a graph.",
            model=model.name,
            hint="Call `model.build(input_shape)` or give it an `Input` first.",
        ) from None


def _topological_order(outputs) -> list[Call]:
    """Every call that the outputs depend on, each after those it depends on."""
    done: dict[int, Call | None] = {}
    order: list[Call] = []
    # An explicit stack: deep models exceed Python's recursion limit.
    stack = [_node_of(t) for t in reversed(outputs)]
    while stack:
        node = stack[-1]
        if id(node) in done:
            stack.pop()
            continue
        parents = [_node_of(t) for t in node.input_tensors]
        waiting = [p for p in parents if id(p) not in done]
        if waiting:
            stack.extend(reversed(waiting))
            continue
        stack.pop()
        done[id(node)] = call = Call(
            operation=node.operation,
            args=node.arguments.args,
            kwargs=node.arguments.kwargs,
            inputs=tuple(node.input_tensors),
            outputs=tuple(node.output_tensors),
            is_input=node.is_input,
        )
        order.append(call)
    return order


def _node_of(tensor):
    history = tensor._keras_history
    return history.operation._inbound_nodes[history.node_index]
