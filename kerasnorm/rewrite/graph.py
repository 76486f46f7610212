"""A read-only view of a Keras model's graph. The one file that knows Keras internals.

Keras records every symbolic call as a node. A layer keeps all nodes it ever took part in, those
of other models included, so that only a walk back from a model's own outputs tells which are
alive; this view is that walk.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
from collections import defaultdict
from collections.abc import Iterable, Iterator
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
    """The live calls of one model, or of one layer whose code was traced, in topological order.

    Models nested in it, and layers with graphs of their own, are single calls here.

    Attributes:
        owner: The model or layer.
        inputs: Its symbolic inputs, in their structure.
        outputs: Its symbolic outputs, in their structure.
        calls: The calls that the outputs depend on, each after those it depends on.
        arguments: For a traced layer, the (args, kwargs) it was traced on; None for a model that
            is its graph.
    """

    def __init__(self, owner: keras.Layer, inputs, outputs, arguments=None):
        self.owner = owner
        self.inputs, self.outputs = inputs, outputs
        self.arguments = arguments
        self.calls = _topological_order(tree.flatten(outputs))
        self._producers = {id(t): call for call in self.calls for t in call.outputs}
        self._consumers: dict[int, list[Call]] = defaultdict(list)
        for call in self.calls:
            for tensor in call.inputs:
                self._consumers[id(tensor)].append(call)
        self._outputs = {id(t) for t in tree.flatten(outputs)}

    @property
    def is_code(self) -> bool:
        """Whether the owner computes by Python code, so that only whole layers can be replaced."""
        return self.arguments is not None

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


def graph_of(model: keras.Model) -> Graph:
    """The graph of a Functional model, or of a Sequential one that is built.

    Raises:
        SwapError: If the model has no graph (subclassed, or a Sequential not yet built).
    """
    return Graph(model, *_ends(model))


def has_graph(operation) -> bool:
    """Whether an operation is a model that computes what its graph says, and nothing else."""
    return any(
        isinstance(operation, cls) and type(operation).call is cls.call
        for cls in (Functional, keras.Sequential)
    )


def is_graph_with_code(layer) -> bool:
    """Whether a layer is a Functional or Sequential model with a `call` of its own."""
    return isinstance(layer, (Functional, keras.Sequential)) and not has_graph(layer)


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
def unrecorded(layers: Iterable[keras.Layer]) -> Iterator[None]:
    """Have some layers forget, in the end, the symbolic calls that are made of them meanwhile."""
    records = [r for layer in layers for r in (layer._inbound_nodes, layer._outbound_nodes)]
    lengths = [len(record) for record in records]
    try:
        yield
    finally:
        for record, length in zip(records, lengths, strict=True):
            del record[length:]


def replace_sublayer(holder: keras.Layer, old: keras.Layer, new: keras.Layer) -> None:
    """Put a layer in the place of another wherever a layer, or one inside it, holds that.

    Attributes are seen, and lists, tuples and dicts in them.

    Raises:
        SwapError: If something else holds on to the old layer.
    """
    for layer in (holder, *sublayers(holder)):
        if has_graph(layer):
            continue
        tracker = layer._tracker
        if tracker.is_in_store("layers", old):
            tracker.replace_tracked_value("layers", old, new)
        for name, value in list(vars(layer).items()):
            if name not in _KERAS_OWN:
                replaced = _with_replaced(value, old, new)
                if replaced is not value:
                    setattr(layer, name, replaced)
    if any(layer is old for layer in sublayers(holder)):
        raise SwapError(
            f"A layer is replaced in attributes, lists and dicts. Received '{old.name}', which "
            f"'{holder.name}' holds in another way.",
            layer=holder.name,
        )


_KERAS_OWN = frozenset(vars(keras.Model(name="any")))


def _with_replaced(value, old, new):
    if value is old:
        return new
    if isinstance(value, (list, dict)):
        for key, item in list(value.items() if isinstance(value, dict) else enumerate(value)):
            replaced = _with_replaced(item, old, new)
            if replaced is not item:
                value[key] = replaced
    elif isinstance(value, tuple):
        items = [_with_replaced(item, old, new) for item in value]
        if any(a is not b for a, b in zip(items, value, strict=True)):
            # TensorFlow wraps tuples; `__class__` is that of the tuple inside
            return value.__class__(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def built_shapes(model: keras.Model) -> tuple[tuple, dict[str, Any]] | None:
    """The (args, kwargs) of shapes that a model was first called on; None if it was not."""
    config = _untracked(model.get_build_config()) if model.built else None
    if not config:
        return None
    if "shapes_dict" in config:
        return (), {k.removesuffix("_shape"): v for k, v in config["shapes_dict"].items()}
    return (config["input_shape"],), {}


def _untracked(value):
    """Dicts and lists as such, not of the classes by which Keras tracks what is in attributes."""
    if isinstance(value, dict):
        return {key: _untracked(item) for key, item in value.items()}
    return [_untracked(item) for item in value] if isinstance(value, list) else value


def call_parameters(layer: keras.Layer) -> Iterable[str]:
    """The names of the arguments that a layer's `call` takes."""
    return inspect.signature(layer.call).parameters


@contextlib.contextmanager
def trusted_configs() -> Iterator[None]:
    """Let configs hold functions. Only for configs taken from a model in this very process."""
    with SafeModeScope(safe_mode=False):
        yield


def _ends(model):
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
