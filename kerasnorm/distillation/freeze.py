"""What training leaves alone: for a time, some variables are not trainable."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import keras

from kerasnorm.graph import commute, sites
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.layers import CosineNorm, LayerNorm, WeightNorm

_LAYER_NORMS = (LayerNorm, keras.layers.LayerNormalization)


@contextlib.contextmanager
def frozen(variables: Iterable[Any]) -> Iterator[None]:
    """Leave these variables out of training, meanwhile."""
    held = [variable for variable in variables if variable.trainable]
    try:
        for variable in held:
            variable.trainable = False
        yield
    finally:
        for variable in held:
            variable.trainable = True


def others(model: keras.Model, layers: Iterable[keras.Layer]) -> list[Any]:
    """The variables of a model that are in none of some of its layers."""
    trained = {id(variable) for layer in layers for variable in layer.variables}
    return [variable for variable in model.variables if id(variable) not in trained]


def offsets(model_graphs: ModelGraphs) -> Iterator[Any]:
    """The biases that add up to what a layer norm reads.

    A layer norm whose input has a large offset in common to all samples divides by about the same
    for each: it becomes an affine map. Training toward a network with such maps would find that
    way out, and a layer norm in name only would be left.
    """
    for graph in model_graphs.graphs.values():
        for call in graph.calls:
            if not isinstance(call.operation, _LAYER_NORMS):
                continue
            before = graph.producer(call.inputs[0])
            while commute.commutes(before):
                before = graph.producer(before.inputs[0])
            layer: Any = before.operation
            if isinstance(layer, (WeightNorm, CosineNorm)):
                layer = layer.layer
            if sites.is_plain_linear(layer) and layer.bias is not None:
                yield layer.bias
