"""Every BatchNorm call of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.layers import kernels
from kerasnorm.layers.batch_norm import BATCH_NORMS


@dataclass(frozen=True, eq=False)
class Site:
    """One BatchNorm call.

    Attributes:
        name: Path of the layer, "backbone/bn"; further calls of a layer are "bn#2", "bn#3".
        call: The call.
        graph: The graph that the call is part of.
        axis: The channel axis, counted from 0.
    """

    name: str
    call: Call
    graph: Graph
    axis: int

    @property
    def layer(self) -> keras.Layer:
        return self.call.operation

    @property
    def rank(self) -> int:
        return len(self.call.output.shape)

    @property
    def producer(self) -> Call:
        """The call whose output is normalized."""
        return self.graph.producer(self.call.inputs[0])


@dataclass(frozen=True)
class OpaqueBatchNorm:
    """A BatchNorm inside another layer, whose calls of it are not seen."""

    name: str
    reason: str


def is_batch_norm(layer: Any) -> bool:
    """Whether a layer is Keras's BatchNormalization or ours, subclasses included."""
    return isinstance(layer, BATCH_NORMS)


def has_known_call(layer: Any) -> bool:
    """Whether a BatchNorm, subclass or not, computes as one of the classes we know."""
    return any(type(layer).call is known.call for known in BATCH_NORMS)


def holds_batch_norm(layer: keras.Layer) -> bool:
    """Whether there is a BatchNorm inside a layer."""
    return any(is_batch_norm(inner) for inner in keras_private.sublayers(layer))


def find_sites(model_graphs: ModelGraphs) -> tuple[list[Site], list[OpaqueBatchNorm]]:
    """Every BatchNorm call in the graphs of a model, in graph order, and those not seen."""
    names: Counter[str] = Counter()

    def unique(name: str) -> str:
        names[name] += 1
        return name + (f"#{names[name]}" if names[name] > 1 else "")

    sites: list[Site] = []
    for graph in model_graphs.graphs.values():
        for call in graph.calls:
            layer = call.operation
            if is_batch_norm(layer):
                axis = layer.axis[0] if isinstance(layer.axis, (list, tuple)) else layer.axis
                rank = len(call.output.shape)
                sites.append(
                    Site(unique(model_graphs.path(graph, layer)), call, graph, axis % rank)
                )
    seen = {id(site.layer) for site in sites}
    told: set[int] = set()
    opaque: list[OpaqueBatchNorm] = []
    for holder, path, reason in _opaque_layers(model_graphs):
        # code that was followed holds many whose calls are sites
        known = told | seen if id(holder) in model_graphs.graphs else told
        for inner in keras_private.sublayers(holder):
            if is_batch_norm(inner) and id(inner) not in known:
                told.add(id(inner))
                opaque.append(OpaqueBatchNorm(unique(f"{path}{inner.name}"), reason))
    return sites, opaque


def _opaque_layers(model_graphs: ModelGraphs) -> Iterator[tuple[keras.Layer, str, str]]:
    """(layer, path in front of its own layers, why no call of a BatchNorm in it is seen)."""
    for graph in model_graphs.graphs.values():
        for call in graph.calls:
            layer = call.operation
            if id(layer) not in model_graphs.graphs:
                why = model_graphs.opaque.get(id(layer), "it was not opened")
                path = f"{model_graphs.path(graph, layer)}/"
                yield layer, path, f"it is inside '{layer.name}': {why}"
    for graph in model_graphs.graphs.values():
        if graph.is_code:
            path = model_graphs.paths[id(graph.owner)]
            yield graph.owner, path, f"no call of it is seen in the code of '{graph.owner.name}'"


def is_plain_linear(layer: Any) -> bool:
    """Whether a layer is of a linear class of the table itself, its kernel one variable."""
    return kernels.kernel_class(layer) is type(layer) and kernels.has_plain_kernel(layer)
