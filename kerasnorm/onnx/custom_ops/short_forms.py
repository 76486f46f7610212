"""A copy of a model whose layers are in the forms that ONNX has for them.

Layer normalizations are one operation, cosines their formula, TimeDistributed is one call of its
layer. Norms that the operator cannot express (masked time steps that must not count), and cosines
that are centred or in half precision, stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasnorm.errors import SwapError
from kerasnorm.keras_private import sublayers
from kerasnorm.onnx.custom_ops import cosine, group_norm, layer_norm, time_distributed
from kerasnorm.swap.fold import fold_weight_norms

# LayerNormalization came with it.
_FIRST_OPSET = 17


def in_short_forms(model: keras.Model, opset: int, short: bool) -> tuple[keras.Model, bool]:
    """A copy of a model that says the same in fewer words, and whether layers of it do.

    WeightNorm is folded into the kernels in any case. Where nothing is to be done, and where the
    model cannot be rebuilt, it is the model itself, with its layers as they are.

    Args:
        model: A built model. It stays as it is.
        opset: Version of the ONNX operators.
        short: Whether layers take the short forms that ONNX has for them.
    """
    # What is called in place of a layer's own `call` is more than its config tells a copy.
    if any("call" in vars(layer) for layer in (model, *sublayers(model))):
        return model, False
    short = short and any(True for _ in _short_calls(model, opset))
    try:
        copy = fold_weight_norms(model, always_copy=short)
    except SwapError:
        # A model that is code, not a graph, cannot be rebuilt. Its weights are constants in the
        # graph all the same, and TensorFlow folds what is computed from constants.
        return model, False
    if short:
        shared = set(map(id, sublayers(model)))  # by a config that hands out a layer itself
        for layer, call in list(_short_calls(copy, opset)):
            if id(layer) not in shared:
                # Past Keras's bookkeeping, which would take the function for a part of the layer.
                object.__setattr__(layer, "call", call)
    return copy, short


def _short_calls(
    model: keras.Model, opset: int
) -> Iterator[tuple[keras.Layer, Callable[..., Any]]]:
    """The layers that ONNX has a short form for, and what to call in place of their `call`."""
    # Where TimeDistributed stays, it hands its layer to tf.vectorized_map, which cannot look into a
    # custom operation.
    vectorized = {
        id(inner)
        for layer in sublayers(model)
        if isinstance(layer, keras.layers.TimeDistributed)
        and time_distributed.short_call(layer) is None
        for inner in sublayers(layer)
    }
    for layer in sublayers(model):
        if id(layer) not in vectorized:
            call = time_distributed.short_call(layer) or cosine.short_call(layer)
            if call is None and opset >= _FIRST_OPSET:
                call = layer_norm.short_call(layer) or group_norm.short_call(layer)
            if call is not None:
                yield layer, call
