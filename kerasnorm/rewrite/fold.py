"""Back to plain Keras layers, wherever that is exact.

1. WeightNorm(layer): the layer with kernel w = g · v / ‖v‖, and its moving mean taken from the
   bias where it keeps one.
2. Affine: EinsumDense with a diagonal kernel, "bhwc,c->bhwc".
"""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasnorm.errors import SwapError
from kerasnorm.layers import Affine, WeightNorm
from kerasnorm.layers import kernel as kernels
from kerasnorm.layers.patches import Contraction
from kerasnorm.rewrite import graph as graphs
from kerasnorm.rewrite import match
from kerasnorm.rewrite.graph import Call, Graph
from kerasnorm.rewrite.rebuild import Replace, copy_layer, copy_state, rebuild


def fold_norms(model: keras.Model) -> keras.Model:
    """A copy of the model made of plain `keras.layers` only, which computes the same function.

    Every WeightNorm becomes the layer it wraps with the finished kernel w = g·v/‖v‖, every Affine
    an EinsumDense. The result loads where kerasnorm is not installed.

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
    return _fold(model, {WeightNorm: _fold_weight_norm, Affine: _fold_affine})


def bake(model: keras.Model) -> keras.Model:
    """A copy of the model in which every WeightNorm is the layer it wraps, kernel finished.

    What `fold_norms` does, for WeightNorm alone. `Affine` stays, and what `fold_norms` made of one
    becomes an `Affine` again: a multiplication and an addition in any runtime, where a general
    einsum is a matrix product between reshapes.
    """
    folds: dict[type, _Fold] = {WeightNorm: _bake_weight_norm, keras.layers.EinsumDense: _as_affine}
    return _fold(model, folds, leave_others=True)


# Gives the replacement, or the reason why there is none; None for a layer that may stay.
_Fold = Callable[[Any, list[Call], str], Replace | str | None]


def _fold(model: keras.Model, folds: dict[type, _Fold], leave_others: bool = False) -> keras.Model:
    forest = graphs.forest(model)
    edits: dict[Call, Replace] = {}
    stuck: list[str] = []
    for graph in forest.graphs.values():
        taken = {call.operation.name for call in graph.calls}
        path = forest.paths[id(graph.model)]
        for layer, calls in _by_layer(graph):
            if type(layer) in folds:
                fold = folds[type(layer)](layer, calls, _plain_name(layer, taken))
                if isinstance(fold, Replace):
                    edits.update(dict.fromkeys(calls, fold))
                elif fold:
                    stuck.append(f"'{path}{layer.name}' ({fold})")
            elif not graphs.has_graph(layer):
                stuck += _own_layers(layer, path)
    if stuck and not leave_others:
        raise SwapError(
            "Only layers with an exact equivalent among keras.layers can be folded. Received "
            f"{', '.join(dict.fromkeys(stuck))}.",
            model=model.name,
            hint="Keep the model as it is: it loads wherever kerasnorm is imported.",
        )
    return rebuild(forest, edits).model if edits or not leave_others else model


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
        for own in (layer, *graphs.sublayers(layer))
        if type(own).__module__.split(".")[0] == __name__.split(".")[0]
    ]


def _fold_weight_norm(layer: WeightNorm, calls: list[Call], name: str) -> Replace | str:
    if isinstance(layer.layer, Affine):
        (kernel,) = layer.normalized_kernels().values()
        return _diagonal(layer.layer, kernel, calls, name)
    return _bake_weight_norm(layer, calls, name) or "it takes the mean of each sample"


def _fold_affine(layer: Affine, calls: list[Call], name: str) -> Replace | str:
    return _diagonal(layer, layer.kernel, calls, name)


def _bake_weight_norm(layer: WeightNorm, calls: list[Call], name: str) -> Replace | None:
    """The wrapped layer with kernel w and, for mean-only batch norm, bias b − moving mean.

    None for `mean_only="layer"`, whose mean is another one for each sample.
    """
    inner = layer.layer
    if layer.mean_only == "layer":
        return None
    changes: dict[str, Any] = {"name": name}
    if layer.mean_only and inner.bias is None:
        if isinstance(inner, keras.layers.EinsumDense):
            letters = kernels.einsum_letters(inner.equation)
            changes["bias_axes"] = "".join(x for x in letters[2] if x in letters[1])
        else:
            changes["use_bias"] = True
    rank = len(calls[0].inputs[0].shape)

    def fill(plain: keras.Layer) -> None:
        if plain.bias is None or inner.bias is not None:
            copy_state(inner, plain)
        weights = layer.normalized_kernels()
        for gain, kernel in kernels.kernels_of(plain).items():
            kernel.variable.assign(weights[gain])
            kernel.variable.trainable = plain.trainable
        if layer.mean_only:
            bias = plain.bias if inner.bias is not None else keras.ops.zeros_like(plain.bias)
            shift = Contraction(plain, rank).units_to_bias(layer.moving_mean)
            plain.bias.assign(bias - shift)

    return Replace(lambda: copy_layer(inner, **changes), fill)


def _diagonal(layer: Affine, kernel, calls: list[Call], name: str) -> Replace | str:
    """An Affine as EinsumDense: the channel's letter in kernel and output, contracted nowhere."""
    if any(graphs.attached_mask(call.output) is not None for call in calls):
        return "it passes on a mask, which EinsumDense would drop"
    shapes = [call.output.shape for call in calls]
    rank = len(shapes[0])
    axis = layer.axis % rank
    # Every axis has its letter: with "..." Keras 3.15 infers height and width the wrong way round.
    letters = string.ascii_lowercase[:rank]
    letter = letters[axis]
    equation = f"{letters},{letter}->{letters}"
    # Sizes have to be named, or the layers behind it would not know them.
    output_shape = tuple(
        sizes[0] if len(set(sizes)) == 1 else None for sizes in zip(*shapes, strict=True)
    )[1:]

    def make() -> keras.Layer:
        return keras.layers.EinsumDense(
            equation,
            output_shape=output_shape,
            bias_axes=letter if layer.use_bias else None,
            kernel_regularizer=layer.kernel_regularizer,
            bias_regularizer=layer.bias_regularizer,
            kernel_constraint=layer.kernel_constraint,
            bias_constraint=layer.bias_constraint,
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
            name=name,
        )

    def fill(plain: keras.Layer) -> None:
        plain.kernel.assign(kernel)
        if layer.use_bias:
            bias = np.asarray(keras.ops.convert_to_numpy(layer.bias))
            plain.bias.assign(bias.reshape(plain.bias.shape))

    return Replace(make, fill, keywords=frozenset(["inputs"]))


def _as_affine(layer: keras.layers.EinsumDense, calls: list[Call], name: str) -> Replace | None:
    """The way back from `_diagonal`."""
    inputs, letter, output = kernels.einsum_letters(layer.equation)
    diagonal = inputs == output and len(letter) == 1 and layer.bias_axes in (None, letter)
    linear = layer.activation is keras.activations.linear
    if not (diagonal and linear and "." not in inputs and match.has_plain_kernel(layer)):
        return None

    def make() -> keras.Layer:
        return Affine(
            axis=inputs.index(letter),
            use_bias=layer.bias is not None,
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
            name=name,
        )

    def fill(affine: keras.Layer) -> None:
        affine.kernel.assign(layer.kernel)
        if layer.bias is not None:
            affine.bias.assign(keras.ops.reshape(layer.bias, (-1,)))

    return Replace(make, fill)
