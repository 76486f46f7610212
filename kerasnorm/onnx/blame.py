"""Where does a wrong ONNX file first go wrong?

tf2onnx keeps the names of many of the tensors of the TensorFlow graph it translates. Each such
tensor is computed on both sides and compared. From the wrong output the search goes back through
tensors that differ (or cannot be compared) and stops at those that agree: the earliest tensor
reached that differs is where the fault arose. Where several layers became one operation, as a
convolution and the batch normalization after it do, they are suspects together.
"""

from __future__ import annotations

import os

import numpy as np

from kerasnorm.compare.measures import relative_difference
from kerasnorm.keras_private import sublayers
from kerasnorm.onnx.error_text import layer_of
from kerasnorm.onnx.frozen_graph import FrozenGraph
from kerasnorm.onnx.run_inside import run_inside

# Moved and renamed freely by tf2onnx: their names say nothing about where a fault is.
_LAYOUT = {"Transpose", "Reshape", "Squeeze", "Unsqueeze", "Identity", "Cast"}


def first_layers_that_differ(
    path: str | os.PathLike[str],
    frozen: FrozenGraph,
    batch: list[np.ndarray],
    tolerance: float,
    output: str,
) -> list[str]:
    """Name of the first layer whose output differs; several where they were made one operation.

    Args:
        path: The file.
        frozen: The graph it was made from.
        batch: Inputs on which `output` differs.
        tolerance: What counts as different, relative to each tensor's own largest entry.
        output: Name of the output that is wrong.
    """
    import onnx

    proto = onnx.load(os.fspath(path))
    counterparts = _counterparts(proto, frozen)
    expected = frozen.run(batch, list(counterparts.values()))
    received = run_inside(proto, frozen, batch, list(counterparts))
    differs = {
        name: _differs(reference, answer, tolerance)
        for name, reference, answer in zip(counterparts, expected, received, strict=True)
    }
    producers = {name: node for node in proto.graph.node for name in node.output}
    order = {id(node): position for position, node in enumerate(proto.graph.node)}
    waiting, seen, guilty = [output], {output}, []
    while waiting:
        node = producers.get(waiting.pop())
        if node is None:
            continue
        if any(differs.get(name) for name in node.output):
            guilty.append(node)
        for name in node.input:
            if name not in seen and differs.get(name) is not False:
                seen.add(name)
                waiting.append(name)
    for node in sorted(guilty, key=lambda node: order[id(node)]):
        layers = _layers_between(frozen.model, node, producers, differs)
        if layers:
            return layers
    return []


def _layers_between(model, node, producers, differs) -> list[str]:
    """The layers after the last tensors that agree, up to `node`, in the order of the model."""
    waiting, texts = [node], []
    while waiting:
        node = waiting.pop()
        if node.op_type not in _LAYOUT:
            texts += [node.output[0], node.name]
            texts += [name for name in node.input if name not in producers]
        # Further back only through what could not be compared.
        waiting += [
            producers[name]
            for name in node.input
            if name in producers and differs.get(name) is None
        ]
    found = {layer_of(model, text) for text in texts}
    return [layer.name for layer in sublayers(model) if layer.name in found]


def _counterparts(proto, frozen: FrozenGraph) -> dict[str, str]:
    """ONNX tensors that exist in the TensorFlow graph too, with their names there."""
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(frozen.graph, name="")
        known = {
            tensor.name
            for operation in graph.get_operations()
            for tensor in operation.outputs
            if tensor.dtype.is_floating
        }
    inside = {name: name for node in proto.graph.node for name in node.output if name in known}
    return inside | dict(zip(frozen.output_names, frozen.outputs, strict=True))


def _differs(reference: np.ndarray, answer: np.ndarray, tolerance: float) -> bool | None:
    """Whether two tensors differ, None if their shapes do not even correspond.

    ONNX keeps images channels first: a tensor may be the other's transpose.
    """
    candidates = [answer] if answer.shape == reference.shape else []
    if answer.ndim > 2:
        channels_last = np.moveaxis(answer, 1, -1)
        if channels_last.shape == reference.shape:
            candidates.append(channels_last)
    if not candidates or not reference.size:
        return None
    return not min(relative_difference(reference, c)[0] for c in candidates) <= tolerance
