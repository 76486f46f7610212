"""Operations that TensorFlow has no name for: opaque in a trace, written by hand in ONNX.

While a model is traced, some layers call such an operation in place of their own formula, which
TensorFlow would spell out in many primitives. What the formula looks like does not matter then, so
nothing has to be recognized. It stays whole while tf2onnx moves transpositions about, and is
written as ONNX operators at the end (`write`).

Each computes its value in NumPy as well: a graph that holds it can still be run.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

# TensorFlow's name for what `opaque` makes, and for any other function in Python.
_TYPE = "PyFuncStateless"
# The last input tells ours, and which: TensorFlow changes names where it inlines functions.
_MARK = 0x6B6E << 32
# From such a mark to what writes the operation.
_WRITERS: dict[int, Callable[[Scope], None]] = {}


class Scope:
    """Where an opaque operation is written: ONNX operators under its name, in its place.

    Args:
        graph: A graph of tf2onnx.
        node: The operation in it.
        constants: The names of those that were written before, by what is in them.

    Attributes:
        inputs: Names of what the operation is called on.
    """

    def __init__(self, graph: Any, node: Any, constants: dict[tuple, str]):
        self._graph = graph
        self._constants = constants
        self._node = node
        self.inputs = list(node.input)

    def __call__(self, operator: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        """Adds an ONNX operator; the name of its output."""
        name = self._unique(name or operator.lower())
        return self._graph.make_node(operator, list(inputs), attr=attributes, name=name).output[0]

    def result(self, operator: str, *inputs: str, **attributes: Any) -> None:
        """Puts an ONNX operator in the place of the operation."""
        node = self._node
        shapes, dtypes = node.output_shapes, node.output_dtypes
        self._graph.remove_node(node.name)
        self._graph.make_node(
            operator,
            list(inputs),
            attr=attributes,
            outputs=node.output,
            name=node.name,
            shapes=shapes,
            dtypes=dtypes,
        )

    def constant(self, value: Any) -> str:
        """Adds a constant, unless it is there already; its name."""
        array = np.asarray(value)
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            made = self._graph.make_const(self._unique("constant"), array)
            self._constants[key] = made.output[0]
        return self._constants[key]

    def value(self, number: int) -> np.ndarray:
        """The value of an input that is constant."""
        return self._node.inputs[number].get_tensor_value(as_list=False)

    def shape(self, name: str) -> list[int]:
        """The shape of a tensor, −1 where it is free."""
        return self._graph.get_shape(name)

    def dtype(self, name: str) -> np.dtype:
        """The dtype of a tensor."""
        from tf2onnx.utils import map_onnx_to_numpy_type

        return np.dtype(map_onnx_to_numpy_type(self._graph.get_dtype(name)))

    def _unique(self, name: str) -> str:
        from tf2onnx.utils import make_name

        return make_name(f"{self._node.name}/{name}")


def writes(name: str) -> Callable:
    """Decorates the function that writes the operations of this name."""

    def register(writer):
        _WRITERS[_mark(name)] = writer
        return writer

    return register


def _mark(name: str) -> int:
    return _MARK + zlib.crc32(name.encode())


def opaque(name: str, compute: Callable, inputs: Sequence[Any]) -> Any:
    """A tensor made by an opaque operation.

    Args:
        name: Of its writer.
        compute: What it does, from NumPy arrays to one.
        inputs: Tensors, and constants that the writer reads. The first has the shape and the dtype
            of the result.
    """
    import tensorflow as tf

    like = inputs[0]
    y = tf.numpy_function(
        lambda *arrays: compute(*arrays[:-1]),
        [*inputs, np.int64(_mark(name))],
        like.dtype,
        stateful=False,
        name=name,
    )
    return tf.ensure_shape(y, like.shape)  # the operation itself does not say what shape it gives


def handlers() -> dict[str, Any]:
    """For tf2onnx's `custom_op_handlers`: what to do with these, and with what it lacks."""
    return {_TYPE: (_leave, []), "Erfc": (_write_erfc, [])}


def write(graph: Any) -> None:
    """Replaces the opaque operations of a graph of tf2onnx, and of those inside it."""
    constants: dict[tuple, str] = {}
    for node in list(graph.get_nodes()):
        for inner in (node.get_body_graphs() or {}).values():
            write(inner)
        writer = _writer(node)
        if writer is not None:
            writer(Scope(graph, node, constants))


def _writer(node) -> Callable[[Scope], None] | None:
    if node.type != _TYPE or not node.inputs or not node.inputs[-1].is_const():
        return None
    return _WRITERS.get(node.inputs[-1].get_tensor_value())


def _leave(graph, node, name, args):
    if _writer(node) is not None:
        graph.copy_shape(node.input[0], node.output[0])


def _write_erfc(graph, node, name, args):
    # TensorFlow writes the exact GELU with erfc(x) = 1 − erf(x), ONNX has erf only.
    scope = Scope(graph, node, {})
    [x] = scope.inputs
    one = scope.constant(np.ones((), scope.dtype(x)))
    scope.result("Sub", one, scope("Erf", x))
