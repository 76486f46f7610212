"""Layers that ONNX says in fewer words than their own formula, replaced while they are traced."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras

from kerasnorm.keras_private import sublayers
from kerasnorm.onnx.custom_ops import cosine, layer_norm

_FIRST_OPSET = 17


@contextlib.contextmanager
def short_forms(model: keras.Model, opset: int) -> Iterator[list[keras.Layer]]:
    """Inside the block, layer normalizations are traced as one operation, cosines as their formula.

    Layer normalizations that the operator cannot express (masked time steps that must not count)
    and cosines that are centred or in half precision are traced as they are.

    Args:
        model: A built model. It is as before when the block ends.
        opset: Version of the ONNX operators; LayerNormalization came with 17.

    Yields:
        The layers that are.
    """
    changed: list[keras.Layer] = []
    # TimeDistributed hands its layer to tf.vectorized_map, which cannot look into an opaque
    # operation.
    vectorized = {
        id(inner)
        for layer in sublayers(model)
        if isinstance(layer, keras.layers.TimeDistributed)
        for inner in sublayers(layer)
    }
    try:
        for layer in sublayers(model):
            call = _call_for(layer, opset)
            if call is not None and "call" not in vars(layer) and id(layer) not in vectorized:
                # Past Keras's bookkeeping, which would take the function for a part of the layer.
                object.__setattr__(layer, "call", call)
                changed.append(layer)
        yield changed
    finally:
        for layer in changed:
            object.__delattr__(layer, "call")


def _call_for(layer: keras.Layer, opset: int) -> Callable[..., Any] | None:
    call = cosine.short_call(layer)
    return layer_norm.short_call(layer) if call is None and opset >= _FIRST_OPSET else call
