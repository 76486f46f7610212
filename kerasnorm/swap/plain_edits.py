"""What makes plain Keras layers of a model's kerasnorm layers."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone.by_config import copy_layer
from kerasnorm.clone.edits import Replace
from kerasnorm.clone.replace_sublayer import replace_sublayer
from kerasnorm.clone.state import copy_state
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import is_batch_norm
from kerasnorm.layers import WeightNorm
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
        elif id(layer) not in source.graphs and (own := _own_layers(layer)):
            inside = _folded_inside(layer, own, folds)
            if inside is None:
                stuck += [_called(part, layer, path) for part in own]
            else:
                edits.update(dict.fromkeys([call for _, call in places], inside))
    return edits, stuck + _not_called(source)


def holds_what_folds(layer: keras.Layer) -> bool:
    """Whether there is a BatchNorm, or a kerasnorm layer, inside a layer that is none itself."""
    runs_in_its_own_way = isinstance(layer, (keras.layers.RNN, keras.layers.Bidirectional))
    return not (_is_own(layer) or runs_in_its_own_way) and any(
        _is_own(inner) or is_batch_norm(inner) for inner in keras_private.sublayers(layer)
    )


def _folded_inside(
    layer: Any, own: list[keras.Layer], folds: Mapping[type, Fold]
) -> Replace | None:
    """A layer of Keras's whose code is not followed, with plain layers for those that it holds.

    They are put in when it is built. None where one is not WeightNorm, or has no such layer.
    """
    wrapped = [part for part in own if type(part) is WeightNorm and not part.mean_only]
    found = [folds[WeightNorm](part, [], part.name) for part in wrapped]
    edits = [edit for edit in found if isinstance(edit, Replace)]
    inside = keras_private.sublayers(layer)
    if len(edits) < len(own) or type(layer).__module__.split(".")[0] != "keras":
        return None

    def fill(new: Any) -> None:
        copy_state(layer, new)
        copies = keras_private.sublayers(new)
        for part, edit in zip(wrapped, edits, strict=True):
            number = next(n for n, other in enumerate(inside) if other is part)
            plain: Any = edit.make()
            plain.build_from_config(part.layer.get_build_config())
            edit.fill(plain)
            replace_sublayer(new, copies[number], plain)

    return Replace(lambda: copy_layer(layer), fill)


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
