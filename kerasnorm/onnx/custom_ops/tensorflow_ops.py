"""Operations of TensorFlow that tf2onnx has no translation for."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasnorm.onnx.custom_ops.custom_op import Scope

# Below it, no operator for bits.
_BITWISE_OPSET = 18


def _write_erfc(graph, node, name, args):
    # TensorFlow writes the exact GELU with erfc(x) = 1 − erf(x), ONNX has erf only.
    scope = Scope(graph, node, {})
    [x] = scope.inputs
    one = scope.constant(np.ones((), scope.dtype(x)))
    scope.result("Sub", one, scope("Erf", x))


def _write_log1p(graph, node, name, args):
    # log(1 + x) = x·log(u)/(u − 1) where u is what 1 + x is rounded to, x itself where u is 1.
    # Where x is infinite, so is u, and x/(u − 1) NaN: there, and where 1 is too small to count
    # beside x, log(u) is all of it.
    scope = Scope(graph, node, {})
    [x] = scope.inputs
    one = scope.constant(np.ones((), scope.dtype(x)))
    u = scope("Add", x, one)
    rounded_off = scope("Equal", u, one)
    log = scope("Log", u)
    beside = scope("Where", rounded_off, one, scope("Sub", u, one))
    near = scope("Where", rounded_off, x, scope("Mul", x, scope("Div", log, beside)))
    scope.result("Where", scope("Equal", u, x), log, near)


def _write_bucketize(graph, node, name, args):
    # the number of boundaries that a value is not below
    boundaries = np.asarray(node.get_attr_value("boundaries"), np.float32)
    scope = Scope(graph, node, {})
    [x] = scope.inputs
    x = scope("Cast", x, to=_FLOAT)
    x = scope("Unsqueeze", x, scope.constant(np.array([-1])))
    above = scope("Not", scope("Less", x, scope.constant(boundaries)))
    counted = scope("Cast", above, to=graph.get_dtype(node.output[0]))
    scope.result("ReduceSum", counted, scope.constant(np.array([-1])), keepdims=0)


def _write_sign_bit(graph, node, name, args):
    # Keras tells -0.0 from 0.0 in argmax by the bits of a number, of which only their sign counts:
    # that of 1/x, in ONNX.
    readers = graph.find_output_consumers(node.output[0])
    if not readers or not all(_reads_sign(reader, node.output[0]) for reader in readers):
        raise ValueError("ONNX has no operator for the bits of a number.")
    scope = Scope(graph, node, {})
    [x] = scope.inputs
    zero, one = (scope.constant(np.full((), value, scope.dtype(x))) for value in (0, 1))
    negative = scope("Less", scope("Div", one, x), zero)
    scope.result("Neg", scope("Cast", negative, to=graph.get_dtype(node.output[0])))


def _reads_sign(node: Any, value: str) -> bool:
    """Whether a node asks if a value is less than 0, or takes its highest bit."""
    if node.input[0] != value or not node.inputs[1].is_const():
        return False
    other = node.inputs[1].get_tensor_value(as_list=False)
    return (node.type == "Less" and not np.any(other)) or _is_highest_bit(node.type, other)


def _is_highest_bit(operation: str, other: np.ndarray) -> bool:
    return operation == "BitwiseAnd" and bool(np.all(other == np.iinfo(other.dtype).min))


def _write_bitwise_and(graph, node, name, args):
    scope = Scope(graph, node, {})
    x, other = scope.inputs
    bit = node.inputs[1].get_tensor_value(as_list=False) if node.inputs[1].is_const() else None
    if bit is not None and _is_highest_bit(node.type, bit):
        negative = scope("Less", x, scope.constant(np.zeros((), bit.dtype)))
        scope.result("Where", negative, other, scope.constant(np.zeros_like(bit)))
    elif graph.opset >= _BITWISE_OPSET:
        scope.result("BitwiseAnd", x, other)
    else:
        raise ValueError(f"ONNX has operators for bits since opset {_BITWISE_OPSET}.")


_FLOAT = 1  # TensorProto.FLOAT
WRITERS = {
    "Bitcast": _write_sign_bit,
    "BitwiseAnd": _write_bitwise_and,
    "Bucketize": _write_bucketize,
    "Erfc": _write_erfc,
    "Log1p": _write_log1p,
}
