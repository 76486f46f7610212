"""Where does a wrong ONNX file first go wrong?

tf2onnx keeps the names of many of the tensors of the TensorFlow graph it translates. Each such
tensor is computed on both sides and compared. From the wrong output the search goes back through
tensors that differ (or cannot be compared) and stops at those that agree: the earliest tensor
reached that differs is where the fault arose.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from kerasnorm.onnx.convert import Traced
from kerasnorm.onnx.layer_names import layer_of


def first_difference(
    path: str | os.PathLike[str],
    traced: Traced,
    batch: list[np.ndarray],
    tolerance: float,
    output: str,
) -> str | None:
    """Name of the first layer whose output differs, None if none can be told.

    Args:
        path: The file.
        traced: The graph it was made from.
        batch: Inputs on which `output` differs.
        tolerance: What counts as different, relative to each tensor's own largest entry.
        output: Name of the output that is wrong.
    """
    import onnx

    proto = onnx.load(os.fspath(path))
    common = _common_tensors(proto, traced)
    expected = _run_tensorflow(traced, batch, common)
    received = _run_onnx(proto, traced, batch, common)
    differs = {
        name: _differs(expected[name], received[name], tolerance)
        for name in common
        if name in received
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
        layer = layer_of(traced.model, node.output[0]) or layer_of(traced.model, node.name)
        if layer:
            return layer
    node = producers.get(output)
    return layer_of(traced.model, node.name) if node is not None and not guilty else None


def _common_tensors(proto, traced: Traced) -> list[str]:
    import tensorflow as tf

    with tf.Graph().as_default() as graph:
        tf.import_graph_def(traced.graph, name="")
        known = {
            tensor.name
            for operation in graph.get_operations()
            for tensor in operation.outputs
            if tensor.dtype.is_floating
        }
    return [name for node in proto.graph.node for name in node.output if name in known]


def _run_tensorflow(traced: Traced, batch, names: list[str]) -> dict[str, np.ndarray]:
    import tensorflow as tf

    @tf.function(autograph=False)
    def intermediates(*inputs):
        return tf.graph_util.import_graph_def(
            traced.graph,
            input_map=dict(zip(traced.inputs, inputs, strict=True)),
            return_elements=names,
            name="",
        )

    values = intermediates(*[tf.constant(array) for array in batch]) if names else []
    return {name: value.numpy() for name, value in zip(names, values, strict=True)}


def _run_onnx(proto, traced: Traced, batch, names: list[str]) -> dict[str, np.ndarray]:
    import onnx
    import onnxruntime

    exposed = onnx.ModelProto()
    exposed.CopyFrom(proto)
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(
        exposed.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    feeds = dict(zip(traced.input_names, batch, strict=True))
    return dict(zip(names, session.run(names, feeds), strict=True))


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
    scale = _largest(reference) or 1.0
    return not min(_largest(reference - c) for c in candidates) <= tolerance * scale


def _largest(array: Any) -> float:
    return float(np.max(np.abs(np.asarray(array, np.float64))))
