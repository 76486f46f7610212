"""Back to plain Keras layers, wherever that is exact."""

from __future__ import annotations

from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone.edits import Replace
from kerasnorm.clone.rebuild import rebuild
from kerasnorm.compare.differences import check_equal
from kerasnorm.compare.tensor_pairs import pair_outputs
from kerasnorm.errors import SwapError
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs, graphs_of
from kerasnorm.layers import Affine, BatchNorm, WeightNorm
from kerasnorm.layers.rescaled import RescaledConstraint, RescaledRegularizer
from kerasnorm.targets import merge_affine
from kerasnorm.targets.plain import fold_affine, fold_batch_norm, leave_for_now, unfold_affine
from kerasnorm.targets.registry import TARGETS
from kerasnorm.targets.target import Fold
from kerasnorm.targets.weight import fold_weight_norm_if_exact

# The calls of one layer, each with the graph it is in.
Places = list[tuple[Graph, Call]]


def fold_norms(model: keras.Model) -> keras.Model:
    """A copy of the model made of plain `keras.layers` only, which computes the same function.

    Every WeightNorm becomes the layer it wraps with the finished kernel w = g·v/‖v‖. An Affine is
    merged into the linear layers beside it where that is exact, border pixels included; elsewhere
    it becomes an EinsumDense. Every BatchNorm becomes a BatchNormalization, every LayerNorm a
    LayerNormalization or a GroupNormalization of one group. The result loads where kerasnorm is
    not installed, but for models of Keras 1 and 2 with `hard_sigmoid`, whose function it keeps.
    Regularizers and constraints of a weight that changes (a kernel that becomes g·v/‖v‖ or takes
    an Affine in, and what a swap rescaled) have no plain equivalent and are left out.

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
    folds: dict[type, Fold] = {Affine: leave_for_now, BatchNorm: fold_batch_norm}
    for target in TARGETS.values():
        folds |= target.folds
    plain = _fold(model, folds)
    while True:
        model_graphs = graphs_of(plain)
        edits = merge_affine.merges(model_graphs)
        if not edits:
            break
        plain = rebuild(model_graphs, edits).model
    if any(type(layer) is Affine for layer in keras_private.sublayers(plain)):
        plain = _fold(plain, {Affine: fold_affine})
    _drop_rescaled_penalties(plain)
    check_equal(pair_outputs(source, graphs_of(plain).root))
    return plain


def fold_weight_norms(model: keras.Model, *, always_copy: bool = False) -> keras.Model:
    """A copy of the model in which every WeightNorm is the layer it wraps, kernel finished.

    What `fold_norms` does, for WeightNorm alone. `Affine` stays, and what `fold_norms` made of one
    becomes an `Affine` again: a multiplication and an addition in any runtime, where a general
    einsum is a matrix product between reshapes.

    Args:
        model: As for `fold_norms`.
        always_copy: Whether a model without any of these is copied too; otherwise it is what comes
            back.
    """
    folds: dict[type, Fold] = {
        WeightNorm: fold_weight_norm_if_exact,
        keras.layers.EinsumDense: unfold_affine,
    }
    return _fold(model, folds, leave_others=True, always_copy=always_copy)


def _fold(
    model: keras.Model,
    folds: dict[type, Fold],
    leave_others: bool = False,
    always_copy: bool = True,
) -> keras.Model:
    source = graphs_of(model)
    edits: dict[Call, Replace] = {}
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
                edits.update(dict.fromkeys(calls, fold))
            elif fold is not None:
                stuck.append(f"'{path}{layer.name}' ({fold.reason})")
        elif not keras_private.has_graph(layer):
            stuck += _own_layers(layer, path)
    if stuck and not leave_others:
        raise SwapError(
            "Only layers with an exact equivalent among keras.layers can be folded. Received "
            f"{', '.join(dict.fromkeys(stuck))}.",
            model=model.name,
            hint="Keep the model as it is: it loads wherever kerasnorm is imported.",
        )
    if not edits and not always_copy:
        return model
    return rebuild(source, edits).model


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


def _own_layers(layer, path: str) -> list[str]:
    """'name' (class) of every kerasnorm layer at or inside a layer."""
    if not isinstance(layer, keras.Layer):
        return []
    return [
        f"'{path}{own.name}' ({type(own).__name__}{'' if own is layer else f' in {layer.name}'})"
        for own in (layer, *keras_private.sublayers(layer))
        if any(cls.__module__.split(".")[0] == "kerasnorm" for cls in type(own).__mro__)
    ]


def _drop_rescaled_penalties(model: keras.Model) -> None:
    rescaled = (RescaledRegularizer, RescaledConstraint)
    for layer in keras_private.sublayers(model):
        for name, value in list(vars(layer).items()):
            if isinstance(value, rescaled):
                setattr(layer, name, None)
    for variable in model.variables:
        if isinstance(variable.regularizer, rescaled):
            variable.regularizer = None
        if isinstance(variable.constraint, rescaled):
            variable.constraint = None
