"""The biases in front of layer norms, which training is not to enlarge.

A layer norm whose input has a large offset in common to all samples divides by about the same for
each: it becomes an affine map. Training toward a network with such maps would find that way out,
and a layer norm in name only would be left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import keras

from kerasnorm.layers import LayerNorm
from kerasnorm.rewrite import match
from kerasnorm.rewrite.forest import Forest

_LAYER_NORMS = (LayerNorm, keras.layers.LayerNormalization)


@contextlib.contextmanager
def offsets_kept(forest: Forest) -> Iterator[None]:
    """Leave the biases of linear layers in front of layer norms out of training, meanwhile."""
    held = [bias for bias in _offsets(forest) if bias.trainable]
    try:
        for bias in held:
            bias.trainable = False
        yield
    finally:
        for bias in held:
            bias.trainable = True


def _offsets(forest: Forest) -> Iterator[Any]:
    for graph in forest.graphs.values():
        for call in graph.calls:
            if isinstance(call.operation, _LAYER_NORMS):
                layer: Any = graph.producer(call.inputs[0]).operation
                if match.is_plain_linear(layer) and layer.bias is not None:
                    yield layer.bias
