"""What makes plain Keras layers of a model's kerasnorm layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone.edits import Replace
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import is_batch_norm
from kerasnorm.targets.target import Edits, Fold

# The calls of one layer, each with the graph it is in.
Places = list[tuple[Graph, Call]]


def plain_edits(source: ModelGraphs, folds: Mapping[type, Fold]) -> tuple[Edits, list[str]]:
    """The edits that make plain layers of others.

    Args:
        source: The model.
        folds: How each class becomes a plain layer.

    Returns:
        The edits, and "'name' (why)" for each kerasnorm layer that has no such edit.
    """
    edits: Edits = {}
    stuck: list[str] = []
    names = {
        id(graph.owner): {call.operation.name for call in graph.calls}
        for graph in source.graphs.values()
    }
    for places in _by_layer(source):
        graph, first = places[0]
        layer, path = first.operation, source.paths[id(graph.owner)]
        if type(layer) in folds:
            calls = [call for _, call in places]
            fold = folds[type(layer)](layer, calls, _plain_name(source.root, places, names))
            if isinstance(fold, Replace):
                if any(graph.is_code for graph, _ in places):
                    fold = _as_one_layer(fold)
                edits.update(dict.fromkeys(calls, fold))
            elif fold is not None:
                stuck.append(f"'{path}{layer.name}' ({fold.reason})")
        elif id(layer) not in source.graphs:
            stuck += [_called(own, layer, path) for own in _own_layers(layer)]
    return edits, stuck + _not_called(source)


def holds_what_folds(layer: keras.Layer) -> bool:
    """Whether there is a BatchNorm, or a kerasnorm layer, inside a layer that is none itself."""
    return not _is_own(layer) and any(
        _is_own(inner) or is_batch_norm(inner) for inner in keras_private.sublayers(layer)
    )


def _by_layer(source: ModelGraphs) -> list[Places]:
    """The calls of each layer, in all graphs."""
    places: dict[int, Places] = {}
    for graph in source.graphs.values():
        for call in graph.calls:
            places.setdefault(id(call.operation), []).append((graph, call))
    return list(places.values())


def _plain_name(root: Graph, places: Places, names: dict[int, set[str]]) -> str:
    """That of the wrapped layer, unless it is taken or the wrapper's names an output."""
    layer: Any = places[0][1].operation
    inner = getattr(layer, "layer", layer).name
    beside = [names[id(graph.owner)] for graph, _ in places]
    names_output = any(graph is root and root.is_output(call.output) for graph, call in places)
    if names_output or any(inner in taken for taken in beside):
        return layer.name
    for taken in beside:
        taken.add(inner)
    return inner


def _as_one_layer(fold: Replace) -> Replace:
    """The two layers of an edit as one, for code, which calls one layer in a layer's place."""
    first = fold.first
    if first is None:
        return fold

    def make() -> keras.Layer:
        last = fold.make()
        return keras.Sequential([first.make(), last], name=last.name)

    return dataclasses.replace(fold, make=make, first=None)


def _is_own(layer: Any) -> bool:
    return any(cls.__module__.split(".")[0] == "kerasnorm" for cls in type(layer).__mro__)


def _own_layers(layer: Any) -> list[keras.Layer]:
    """Every kerasnorm layer at or inside a layer."""
    if not isinstance(layer, keras.Layer):
        return []
    return [own for own in (layer, *keras_private.sublayers(layer)) if _is_own(own)]


def _called(own: keras.Layer, holder: keras.Layer, path: str) -> str:
    """'name' (class), and in what."""
    inside = "" if own is holder else f" in {holder.name}"
    return f"'{path}{own.name}' ({type(own).__name__}{inside})"


def _not_called(source: ModelGraphs) -> list[str]:
    """The kerasnorm layers that code holds and no call of which is seen."""
    called = [call.operation for graph in source.graphs.values() for call in graph.calls]
    seen = set(map(id, called))
    for layer in called:
        if id(layer) not in source.graphs and isinstance(layer, keras.Layer):
            seen.update(map(id, keras_private.sublayers(layer)))
    return [
        _called(own, graph.owner, source.paths[id(graph.owner)])
        for graph in source.graphs.values()
        if graph.is_code
        for own in _own_layers(graph.owner)
        if id(own) not in seen and own is not graph.owner
    ]
