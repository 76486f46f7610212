"""Two models that compute in 16 bits, judged in float32.

What 16 bits round, 0.2 deviations of a channel in float16 and 0.9 in bfloat16, hides what a swap
gets wrong. In float32 the same weights tell. The source is copied for that; the copy is not yet
anybody's, and computes in float32 as long as it is compared.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone.rebuild import rebuild
from kerasnorm.compare.tensor_pairs import ModelPair, TensorPair
from kerasnorm.errors import SwapError
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.model_graphs import ModelGraphs

SIXTEEN_BITS = ("float16", "bfloat16")


class _ComputeInFloat32(keras.DTypePolicy):
    """As the policy of this name, but for what it computes in."""

    @property
    def compute_dtype(self) -> str:
        return "float32"


@contextlib.contextmanager
def in_float32(models: ModelPair) -> Iterator[ModelPair | None]:
    """The models with every layer that computes in 16 bits computing in float32 meanwhile.

    Yields:
        The copy of `models` beside a copy of the source; None where a layer cannot be copied or
        made to: it is quantized, or its dtype is part of a map.
    """
    try:
        copied = _with_copied_source(models)
    except SwapError:
        yield None
        return
    owners = [copied.source.root.owner, copied.copies[id(copied.source.root.owner)].owner]
    layers = {id(la): la for owner in owners for la in (owner, *keras_private.sublayers(owner))}
    narrow = [la for la in layers.values() if la.compute_dtype in SIXTEEN_BITS]
    before = [(la, la.dtype_policy) for la in narrow if type(la.dtype_policy) is keras.DTypePolicy]
    try:
        for layer, policy in before:
            layer.dtype_policy = _ComputeInFloat32(policy.name)
        yield copied if len(before) == len(narrow) else None
    finally:
        for layer, policy in before:
            layer.dtype_policy = policy


def _with_copied_source(models: ModelPair) -> ModelPair:
    source, rebuilt = models.source, rebuild(models.source, {})
    owners = {key: id(rebuilt.graphs[key].owner) for key in source.graphs}
    graphs = {owners[key]: rebuilt.graphs[key] for key in source.graphs}
    counterparts = {
        (owners[key], id(rebuilt.counterpart(graph, tensor))): models.counterpart(graph, tensor)
        for key, graph in source.graphs.items()
        for call in models.opened_calls(graph)
        for tensor in call.outputs
    }

    def counterpart(graph: Graph, tensor: Any) -> Any:
        return counterparts[id(graph.owner), id(tensor)]

    def of_copy(pair: TensorPair) -> TensorPair:
        graph = graphs[owners[id(pair.graph.owner)]]
        expected = rebuilt.counterpart(pair.graph, pair.expected)
        return dataclasses.replace(pair, graph=graph, expected=expected)

    return ModelPair(
        ModelGraphs(
            graphs[owners[id(source.root.owner)]],
            graphs,
            {owners[key]: source.paths[key] for key in source.graphs},
        ),
        {owners[key]: copy for key, copy in models.copies.items()},
        counterpart,
        *(tuple(map(of_copy, pairs)) for pairs in (models.sites, models.outputs)),
    )
