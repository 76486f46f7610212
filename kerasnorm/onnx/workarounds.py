"""Keeps zero padding and max pooling apart where ONNX Runtime would join them wrongly.

Up to 1.31 ONNX Runtime fuses a Pad into the MaxPool behind it (`Pad_Fusion`). MaxPool pads with
minus infinity: where all of a window is negative, the zeros that were the largest are gone.
"""

from __future__ import annotations

from typing import Any

# Behind these nothing is negative, and zeros at the edge are what minus infinity is.
_NOT_NEGATIVE = frozenset({"Relu", "Sigmoid", "Softmax", "Softplus"})


def keep_apart(graph: Any) -> None:
    """Put a node that changes nothing between a Pad and the MaxPool that reads it, in place."""
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
