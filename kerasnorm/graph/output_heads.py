"""What a model's outputs are: the probabilities of a softmax or sigmoid, or numbers.

Answers are compared as logits, which a final softmax or sigmoid squeezes: for probabilities p,
log p is the logits less a constant of each sample, and log p − log(1 − p) is those of a sigmoid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import keras
from keras import ops, tree

from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs

# Below these, probabilities in float32 are rounding: p itself, and 1 − p.
_LEAST, _LEAST_BESIDE_ONE = 1e-30, 1e-7
_PASSING = (keras.layers.Identity, keras.layers.Dropout)
_ACTIVATIONS = {keras.activations.softmax: "softmax", keras.activations.sigmoid: "sigmoid"}


@dataclass(frozen=True)
class Head:
    """How one output of a model is to be read.

    Attributes:
        kind: What its last layer ends in; "linear" stands for all that is no probability.
        axis: Of the classes.
    """

    kind: Literal["softmax", "sigmoid", "linear"]
    axis: int = -1

    def logits(self, y: Any) -> Any:
        """The logits of probabilities, of the same shape, in float32 or wider; of text, zeros."""
        if getattr(y.dtype, "name", y.dtype) in ("string", "object"):
            return ops.zeros(ops.shape(y), "float32")
        y = ops.cast(y, keras.backend.result_type(y.dtype, "float32"))
        if self.kind == "softmax":
            return ops.log(ops.maximum(y, _LEAST))
        if self.kind == "sigmoid":
            y = ops.clip(y, _LEAST_BESIDE_ONE, 1 - _LEAST_BESIDE_ONE)
            return ops.log(y) - ops.log(1 - y)
        return y

    def answers(self, logits: Any) -> Any:
        """The likeliest class; of a sigmoid, yes or no for each unit."""
        return ops.argmax(logits, self.axis) if self.kind == "softmax" else logits > 0


def heads_of(model_graphs: ModelGraphs) -> list[Head]:
    """How to read each output of a model, flat."""
    outputs = tree.flatten(model_graphs.root.outputs)
    return [_head(model_graphs, model_graphs.root, tensor) for tensor in outputs]


def _head(model_graphs: ModelGraphs, graph: Graph, tensor: Any) -> Head:
    call = graph.producer(tensor)
    operation = call.operation
    inner = model_graphs.graphs.get(id(operation))
    if inner is not None:
        number = [id(t) for t in call.outputs].index(id(tensor))
        return _head(model_graphs, inner, tree.flatten(inner.outputs)[number])
    if not _is_keras(operation):  # what a user's class computes is its own affair
        return Head("linear")
    if type(operation).__name__ == "Softmax":  # the layer, or the operation of keras.ops
        return Head("softmax", operation.axis) if type(operation.axis) is int else Head("linear")
    if type(operation).__name__ == "Sigmoid":
        return Head("sigmoid")
    activation = _activation(operation)
    passes = isinstance(operation, keras.layers.Activation) and (
        activation is keras.activations.linear
    )
    if (passes or isinstance(operation, _PASSING)) and call.inputs:
        return _head(model_graphs, graph, call.inputs[0])
    return Head(_ACTIVATIONS.get(activation, "linear"))  # type: ignore[arg-type]


def before_probabilities(model_graphs: ModelGraphs) -> list[Call]:
    """The calls whose outputs a final softmax or sigmoid makes probabilities of, as they are."""
    outputs = tree.flatten(model_graphs.root.outputs)
    found = (_before(model_graphs, model_graphs.root, tensor) for tensor in outputs)
    return [call for call in found if call is not None]


def _before(model_graphs: ModelGraphs, graph: Graph, tensor: Any) -> Call | None:
    call = graph.producer(tensor)
    inner = model_graphs.graphs.get(id(call.operation))
    if inner is not None:
        number = [id(t) for t in call.outputs].index(id(tensor))
        return _before(model_graphs, inner, tree.flatten(inner.outputs)[number])
    has_weights = bool(getattr(call.operation, "weights", ()))
    if has_weights or len(call.inputs) != 1 or not _is_keras(call.operation):
        return None
    if isinstance(call.operation, _PASSING):
        return _before(model_graphs, graph, call.inputs[0])
    if _head(model_graphs, graph, tensor).kind == "linear":
        return None
    return graph.producer(call.inputs[0])


def _activation(layer: Any) -> Any:
    """A layer's last function; that of a recurrent layer is not the last thing it does."""
    while isinstance(layer, keras.layers.Wrapper) and _is_keras(layer):
        layer = layer.layer
    if not _is_keras(layer):
        return None
    return None if hasattr(layer, "cell") else getattr(layer, "activation", None)


def _is_keras(operation: Any) -> bool:
    """Whether a layer or operation is one of Keras's own classes or of this package's."""
    return type(operation).__module__.split(".")[0] in ("keras", "kerasnorm")
