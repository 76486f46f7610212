"""What is changed in the ONNX model that tf2onnx gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

# Behind these nothing is negative, and zeros at the edge are what minus infinity is.
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "Softplus"})


def all_nodes(graph: Any) -> Iterator[Any]:
    """The nodes of an ONNX graph and of the graphs inside it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                yield from all_nodes(inner)


def keep_padding_apart(graph: Any) -> None:
    """Puts a node that changes nothing between a Pad and the MaxPool that reads it, in place.

    Up to 1.31 ONNX Runtime fuses the two (`Pad_Fusion`). MaxPool pads with minus infinity: where
    all of a window is negative, the zeros that were the largest are gone.
    """
    import onnx

    producers = {output: node for node in graph.node for output in node.output}
    nodes = []
    for node in graph.node:
        pad = producers.get(node.input[0]) if node.op_type == "MaxPool" else None
        if pad is not None and pad.op_type == "Pad":
            before = producers.get(pad.input[0])
            if before is None or before.op_type not in _NOT_NEGATIVE:
                # A copy would be optimized away, the larger of two equal ones is not.
                name = f"{node.output[0]}/padded"
                padded = node.input[0]
                nodes.append(onnx.helper.make_node("Max", [padded, padded], [name], name))
                node.input[0] = name
        nodes.append(node)
    if len(nodes) > len(graph.node):
        copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)


def widen_short_floats(graph: Any) -> None:
    """Makes the short floats of a bfloat16 model float32, in place.

    Most ONNX operators of these opsets do not take bfloat16, and tf2onnx writes half of it as
    float16, whose range is far smaller.
    """
    import onnx
    from onnx import TensorProto

    short = (TensorProto.BFLOAT16, TensorProto.FLOAT16)

    def widen(tensor):
        if tensor.data_type in short:
            values = onnx.numpy_helper.to_array(tensor).astype("float32")
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))

    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in short:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        widen(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and attribute.i in short:
                attribute.i = TensorProto.FLOAT
            if attribute.HasField("t"):
                widen(attribute.t)
            for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
                widen_short_floats(inner)
