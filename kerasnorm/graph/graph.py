"""A read-only view of a Keras model's graph.

Keras records every symbolic call as a node. A layer keeps all nodes it ever took part in, those
of other models included, so that only a walk back from a model's own outputs tells which are
alive; this view is that walk.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import keras
from keras import tree

from kerasnorm import keras_private
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
    """The calls of one model, or of one layer whose code was traced, in topological order.

    Models nested in it, and layers with graphs of their own, are single calls here.

    Attributes:
        owner: The model or layer.
        inputs: Its symbolic inputs, in their structure.
        outputs: Its symbolic outputs, in their structure.
        calls: The calls that the outputs, and losses that code adds, depend on, each after those
            it depends on.
        arguments: For a traced layer, the (args, kwargs) it was traced on; None for a model that
            is its graph.
    """

    def __init__(self, owner: keras.Layer, inputs, outputs, arguments=None, losses=()):
        self.owner = owner
        self.inputs, self.outputs = inputs, outputs
        self.arguments = arguments
        ends = [*tree.flatten(outputs), *losses]
        self._outputs = {id(t) for t in ends}
        self._index(_topological_order(ends))

    def _index(self, calls: list[Call]) -> None:
        self.calls = calls
        self._producers = {id(t): call for call in self.calls for t in call.outputs}
        self._consumers: dict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            for tensor in call.inputs:
                self._consumers[id(tensor)].append(call)

    def with_calls(self, calls: Iterable[Call]) -> Graph:
        """The same graph, with other operations between the same tensors."""
        other = copy.copy(self)
        other._index(list(calls))
        return other

    @property
    def is_code(self) -> bool:
        """Whether the owner computes by Python code, so that only whole layers can be replaced."""
        return self.arguments is not None

    @property
    def batch_size(self) -> int | None:
        """The one size of batches that it takes; None if it takes any."""
        shapes = [tensor.shape for tensor in tree.flatten(self.inputs)]
        return next((shape[0] for shape in shapes if shape and shape[0] is not None), None)

    def producer(self, tensor) -> Call:
        """The call that computes a tensor."""
        return self._producers[id(tensor)]

    def consumers(self, tensor) -> list[Call]:
        """The calls that read a tensor, once for each time they name it."""
        return self._consumers[id(tensor)]

    def is_output(self, tensor) -> bool:
        """Whether a tensor is an output of the model, or a loss that its code adds."""
        return id(tensor) in self._outputs

    def layer_calls(self) -> list[Call]:
        """The calls of a Sequential model's layers, in their order; not its input, nor masks."""
        layers = (call for call in self.calls if isinstance(call.operation, keras.Layer))
        return [call for call in layers if not call.is_input]


def graph_of(model: keras.Model) -> Graph:
    """The graph of a Functional model, or of a Sequential one that is built.

    Raises:
        SwapError: If the model has no graph (subclassed, or a Sequential not yet built).
    """
    return Graph(model, *_ends(model))


def _ends(model):
    if not isinstance(model, keras.Sequential):
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
    stack = [keras_private.node_of(t) for t in reversed(outputs)]
    while stack:
        node = stack[-1]
        if id(node) in done:
            stack.pop()
            continue
        parents = [keras_private.node_of(t) for t in node.input_tensors]
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
