"""How far a swapped model is from its source, at every BatchNorm call and at the outputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.onnx.check import batches
from kerasnorm.onnx.signature import signature_of
from kerasnorm.rewrite import graph as graphs
from kerasnorm.rewrite.graph import Graph
from kerasnorm.rewrite.swap import Swap, Twin


def site_differences(source: keras.Model, swap: Swap, inputs: Any = None) -> dict[str, float]:
    """How far each BatchNorm call's output is from what the swapped model has in its place.

    max|Δ| / std of the source's tensor over the batch, by site name; the model's outputs follow
    as "output 0", "output 1", …. Both models run from the same inputs; the sites inside a nested
    model are compared on what the source feeds that model. A difference of the outputs alone
    proves little: behind a softmax, networks agree that differ by far before it.

    Args:
        source: The model that was swapped.
        swap: What `swap_norms` made of it.
        inputs: A batch in the structure of the model's inputs; None for seeded random numbers.

    Returns:
        A number ≥ 0 for each site and output; NaN where an answer is not finite.

    Example:

    >>> from kerasnorm import swap_norms
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    >>> sorted(site_differences(model, swap_norms(model, "weight")))
    ['batch_normalization', 'output 0']
    """
    root = graphs.forest(source).root
    if inputs is None:
        inputs = batches(source, signature_of(source), None)[-1]
    arrays = tree.flatten(inputs)
    differences = dict(_in_graph(root, swap, arrays))
    pairs = zip(
        _answers(source, source.outputs, arrays),
        _answers(swap.model, swap.model.outputs, arrays),
        strict=True,
    )
    for number, pair in enumerate(pairs):
        differences[f"output {number}"] = _spread_difference(*pair)
    return differences


def _in_graph(graph: Graph, swap: Swap, arrays: list[Any]) -> Iterator[tuple[str, float]]:
    nested = {id(call.operation): call for call in graph.calls if graphs.has_graph(call.operation)}
    for call in nested.values():
        fed = _answers(graph.model, list(call.inputs), arrays)
        yield from _in_graph(Graph(call.operation), swap, fed)
    twins: list[Twin] = [twin for twin in swap.twins if twin.graph.model is graph.model]
    if twins:
        expected = _answers(graph.model, [twin.expected for twin in twins], arrays)
        received = _answers(twins[0].model, [twin.received for twin in twins], arrays)
        for twin, *pair in zip(twins, expected, received, strict=True):
            yield twin.name, _spread_difference(*pair)


def _answers(model: keras.Model, tensors: list[Any], arrays: list[Any]) -> list[np.ndarray]:
    """What a model has at some of its symbolic tensors, in float64."""
    probe = keras.Model(model.inputs, tensors)
    answers = probe(arrays, training=False)
    return [
        np.asarray(keras.ops.convert_to_numpy(answer)).astype("float64")
        for answer in tree.flatten(answers)
    ]


def _spread_difference(expected: np.ndarray, received: np.ndarray) -> float:
    if expected.shape != received.shape:
        return float("inf")
    return float(np.abs(expected - received).max(initial=0.0) / (expected.std() or 1.0))
