"""Which variables of a student are trained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras

from kerasnorm.graph import commute, sites
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.layers import CosineNorm, WeightNorm
from kerasnorm.layers.sample_norm import SampleNorm

_SAMPLE_NORMS = (
    SampleNorm,
    keras.layers.LayerNormalization,
    keras.layers.GroupNormalization,
)


def trained_variables(
    model_graphs: ModelGraphs, layers: Iterable[keras.Layer] | None = None
) -> list[keras.Variable]:
    """The trainable variables of a model, or of some of its layers, that training may change.

    That is all but the biases in front of layer and group norms.
    """
    model: Any = model_graphs.root.owner
    left = {id(variable) for variable in _biases_before_sample_norms(model_graphs)}
    chosen = model.variables if layers is None else [v for layer in layers for v in layer.variables]
    kept = {id(variable) for variable in chosen} - left
    return [variable for variable in model.trainable_variables if id(variable) in kept]


def _biases_before_sample_norms(model_graphs: ModelGraphs) -> Iterator[keras.Variable]:
    """The biases that add up to what a layer or group norm reads.

    A layer norm whose input has a large offset in common to all samples divides by about the same
    for each: it becomes an affine map. Training toward a network with such maps would find that
    way out, and a layer norm in name only would be left.
    """
    for graph in model_graphs.graphs.values():
        for call in graph.calls:
            if not isinstance(call.operation, _SAMPLE_NORMS):
                continue
            before = graph.producer(call.inputs[0])
            while commute.commutes(before):
                before = graph.producer(before.inputs[0])
            layer: Any = before.operation
            if isinstance(layer, (WeightNorm, CosineNorm)):
                layer = layer.layer
            if sites.is_plain_linear(layer) and layer.bias is not None:
                yield layer.bias
