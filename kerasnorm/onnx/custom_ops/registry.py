"""The table of all custom operations, and what tf2onnx does with them."""

from __future__ import annotations

from typing import Any

from kerasnorm.onnx.custom_ops import cosine, layer_norm
from kerasnorm.onnx.custom_ops.custom_op import CustomOp, Scope
from kerasnorm.onnx.custom_ops.tensorflow_ops import WRITERS

_CUSTOM_OPS = (layer_norm.NORMALIZATION, cosine.UNIT_VECTORS, cosine.OVER_LENGTHS)
_BY_MARK = {op.mark: op for op in _CUSTOM_OPS}
# TensorFlow's name for the nodes of a custom operation, and of any other function in Python.
_TYPE = "PyFuncStateless"


def handlers() -> dict[str, Any]:
    """For tf2onnx's `custom_op_handlers`: what to do with these, and with what it lacks."""
    return {_TYPE: (_leave, []), **{name: (write, []) for name, write in WRITERS.items()}}


def write(graph: Any) -> None:
    """Replaces the custom operations of a graph of tf2onnx, and of those inside it."""
    constants: dict[tuple, str] = {}
    for node in list(graph.get_nodes()):
        for inner in (node.get_body_graphs() or {}).values():
            write(inner)
        op = _custom_op(node)
        if op is not None:
            op.write(Scope(graph, node, constants))


def _custom_op(node) -> CustomOp | None:
    if node.type != _TYPE or not node.inputs or not node.inputs[-1].is_const():
        return None
    return _BY_MARK.get(node.inputs[-1].get_tensor_value())


def _leave(graph, node, name, args):
    if _custom_op(node) is not None:
        graph.copy_shape(node.input[0], node.output[0])
