"""Operations that TensorFlow has no name for: opaque in a trace, written by hand in ONNX.

While a model is traced, some layers call such an operation in place of their own formula, which
TensorFlow would spell out in many primitives; `handlers` tells tf2onnx what to write for it. What
the formula looks like does not matter, so nothing has to be recognized. Where ONNX has no single
operator either, a function is written, which stays whole while tf2onnx moves transpositions about
and is replaced by its body at the end (`inlined`).

Each computes its value in NumPy as well: a graph that holds it can still be run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from kerasnorm.onnx.nodes import all_nodes

_DOMAIN = "kerasnorm"
# From the name of a function to its definition, in the language of `onnx.parser`.
_FUNCTIONS: dict[str, str] = {}
# From the operation's name to what writes it: (graph, tf2onnx's node) -> None.
_WRITERS: dict[str, Callable[[Any, Any], None]] = {}


def writes(name: str) -> Callable:
    """Decorates the function that writes the operations of this name."""

    def register(writer):
        _WRITERS[name] = writer
        return writer

    return register


def defines(text: str) -> None:
    """Adds a function, in the language of `onnx.parser`, to those that `inlined` knows."""
    _FUNCTIONS[text.split(maxsplit=1)[0]] = text


def opaque(name: str, compute: Callable, inputs: Sequence[Any], like: Any) -> Any:
    """A tensor made by an opaque operation.

    Args:
        name: Of its writer.
        compute: What it does, from NumPy arrays to one.
        inputs: Tensors, or constants that the writer reads.
        like: A tensor of the shape and dtype of the result.
    """
    import tensorflow as tf

    y = tf.numpy_function(compute, inputs, like.dtype, stateful=False, name=name)
    return tf.ensure_shape(y, like.shape)  # the operation itself does not say what shape it gives


def handlers() -> dict[str, Any]:
    """For tf2onnx's `custom_op_handlers`: what to write for these, and what else it lacks."""
    return {"PyFuncStateless": (_write, []), "Erfc": (_write_erfc, [])}


def replace(graph: Any, node: Any, operator: str, inputs: list[str], **attributes: Any) -> None:
    """Puts an ONNX operator, or a function, in a node's place."""
    output, shapes, dtypes = node.output, node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    graph.make_node(
        operator,
        inputs,
        attr=attributes,
        outputs=output,
        name=node.name,
        shapes=shapes,
        dtypes=dtypes,
        domain=_DOMAIN if operator in _FUNCTIONS else "",
    )


def call(graph: Any, function: str, inputs: list[str]) -> str:
    """Adds a call of a function; the name of its result, of as many axes as its first input."""
    shape, dtype = [-1] * graph.get_rank(inputs[0]), graph.get_dtype(inputs[0])
    node = graph.make_node(function, inputs, domain=_DOMAIN, shapes=[shape], dtypes=[dtype])
    return node.output[0]


def inlined(proto: Any) -> Any:
    """An `onnx.ModelProto` whose functions are replaced by what they consist of."""
    from onnx import helper, inliner, parser

    used = {node.op_type for node in all_nodes(proto.graph) if node.domain == _DOMAIN}
    if not used:
        return proto
    [opset] = [entry.version for entry in proto.opset_import if not entry.domain]
    kept = [entry for entry in proto.opset_import if entry.domain != _DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend([*kept, helper.make_opsetid(_DOMAIN, 1)])
    for name in sorted(used):
        header = f'<domain: "{_DOMAIN}", opset_import: ["": {opset}]>'
        proto.functions.append(parser.parse_function(header + _FUNCTIONS[name]))
    return inliner.inline_local_functions(proto)


def _write(graph, node, name, args):
    # Names are made unique by a number at the end. A Python function of a user's has no writer:
    # it stays what it is, and is refused by its name.
    writer = _WRITERS.get(name.split("/")[-1].rstrip("0123456789").rstrip("_"))
    if writer is not None:
        writer(graph, node)


def _write_erfc(graph, node, name, args):
    # TensorFlow writes the exact GELU with erfc(x) = 1 − erf(x), ONNX has erf only.
    from tf2onnx.utils import map_onnx_to_numpy_type

    [shape], [dtype] = node.output_shapes, node.output_dtypes
    erf = graph.make_node("Erf", node.input, shapes=[shape], dtypes=[dtype])
    one = graph.make_const(f"{name}_one", np.ones((), map_onnx_to_numpy_type(dtype)))
    replace(graph, node, "Sub", [one.output[0], erf.output[0]])
