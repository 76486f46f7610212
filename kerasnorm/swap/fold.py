"""Back to plain Keras layers, wherever that is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone.rebuild import Replace, rebuild
from kerasnorm.compare import differences
from kerasnorm.errors import SwapError
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.layers import Affine, BatchNorm, LayerNorm, WeightNorm
from kerasnorm.targets import merge_affine
from kerasnorm.targets import plain as to_plain


def fold_norms(model: keras.Model) -> keras.Model:
    """A copy of the model made of plain `keras.layers` only, which computes the same function.

    Every WeightNorm becomes the layer it wraps with the finished kernel w = g·v/‖v‖. An Affine is
    merged into the linear layers beside it where that is exact, border pixels included; elsewhere
    it becomes an EinsumDense. Every BatchNorm becomes a BatchNormalization, every LayerNorm a
    LayerNormalization or a GroupNormalization of one group. The result loads where kerasnorm is
    not installed, but for models of Keras 1 and 2 with `hard_sigmoid`, whose function it keeps.

    Args:
        model: A built Functional or Sequential model.

    Returns:
        A new model of the same inputs and outputs (shapes, dtypes, names); the source is not
        touched and shares no variable with it. A model without such layers is copied as it is.

    Raises:
        SwapError: If a kerasnorm layer has no exact plain equivalent, naming all such layers.

    Example:

    >>> model = keras.Sequential([keras.Input((4,)), WeightNorm(keras.layers.Dense(2))])
    >>> [type(layer).__name__ for layer in fold_norms(model).layers]
    ['Dense']
    """
    source = graphs_of(model)
    plain = _fold(
        model,
        {
            WeightNorm: to_plain.fold_weight_norm,
            Affine: to_plain.leave_for_now,
            BatchNorm: to_plain.fold_batch_norm,
            LayerNorm: to_plain.fold_layer_norm,
        },
    )
    while True:
        model_graphs = graphs_of(plain)
        edits = merge_affine.merges(model_graphs)
        if not edits:
            break
        plain = rebuild(model_graphs, edits).model
    if any(type(layer) is Affine for layer in keras_private.sublayers(plain)):
        plain = _fold(plain, {Affine: to_plain.fold_affine})
    differences.insist(source, differences.output_pairs(source, graphs_of(plain).root))
    return plain


def fold_weight_norms(model: keras.Model) -> keras.Model:
    """A copy of the model in which every WeightNorm is the layer it wraps, kernel finished.

    What `fold_norms` does, for WeightNorm alone. `Affine` stays, and what `fold_norms` made of one
    becomes an `Affine` again: a multiplication and an addition in any runtime, where a general
    einsum is a matrix product between reshapes.
    """
    folds: dict[type, _Fold] = {
        WeightNorm: to_plain.fold_weight_norm_if_exact,
        keras.layers.EinsumDense: to_plain.as_affine,
    }
    return _fold(model, folds, leave_others=True)


# Gives the replacement, or the reason why there is none; None for a layer that may stay.
_Fold = Callable[[Any, list[Call], str], Replace | str | None]


def _fold(model: keras.Model, folds: dict[type, _Fold], leave_others: bool = False) -> keras.Model:
    source = graphs_of(model)
    edits: dict[Call, Replace] = {}
    done: dict[int, Replace] = {}
    stuck: list[str] = []
    for graph in source.graphs.values():
        taken = {call.operation.name for call in graph.calls}
        path = source.paths[id(graph.owner)]
        for layer, calls in _by_layer(graph):
            if id(layer) in done:  # shared with a graph seen before
                edits.update(dict.fromkeys(calls, done[id(layer)]))
            elif type(layer) in folds:
                fold = folds[type(layer)](layer, calls, _plain_name(layer, taken))
                if isinstance(fold, Replace):
                    done[id(layer)] = fold
                    edits.update(dict.fromkeys(calls, fold))
                elif fold:
                    stuck.append(f"'{path}{layer.name}' ({fold})")
            elif not keras_private.has_graph(layer):
                stuck += _own_layers(layer, path)
    if stuck and not leave_others:
        raise SwapError(
            "Only layers with an exact equivalent among keras.layers can be folded. Received "
            f"{', '.join(dict.fromkeys(stuck))}.",
            model=model.name,
            hint="Keep the model as it is: it loads wherever kerasnorm is imported.",
        )
    if not edits and leave_others:
        return model
    return rebuild(source, edits).model


def _by_layer(graph: Graph) -> list[tuple[keras.Layer, list[Call]]]:
    calls: dict[int, list[Call]] = {}
    for call in graph.calls:
        calls.setdefault(id(call.operation), []).append(call)
    return [(group[0].operation, group) for group in calls.values()]


def _plain_name(layer: keras.Layer, taken: set[str]) -> str:
    inner = getattr(layer, "layer", layer).name
    return layer.name if inner in taken - {layer.name} else inner


def _own_layers(layer, path: str) -> list[str]:
    """'name' (class) of every kerasnorm layer at or inside a layer."""
    if not isinstance(layer, keras.Layer):
        return []
    return [
        f"'{path}{own.name}' ({type(own).__name__}{'' if own is layer else f' in {layer.name}'})"
        for own in (layer, *keras_private.sublayers(layer))
        if any(cls.__module__.split(".")[0] == "kerasnorm" for cls in type(own).__mro__)
    ]
