"""Operations that TensorFlow has no name for: one node in its graph, written by hand in ONNX.

While TensorFlow traces a model, some layers call such a custom operation in place of their own
formula, which would be many primitives. What the formula looks like does not matter then, so
nothing has to be recognized. The node stays whole while tf2onnx moves transpositions about, and is
written as ONNX operators at the end.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# The last input of a custom operation tells that it is one, and which: TensorFlow changes names
# where it inlines functions.
_MARK = 0x6B6E << 32


class Scope:
    """Where a custom operation is written: ONNX operators under its name, in its place.

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
            node = self._graph.make_const(self._unique("constant"), array)
            self._constants[key] = node.output[0]
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


@dataclass(frozen=True)
class CustomOp:
    """A custom operation. Called on tensors, it gives the tensor that it makes of them.

    Args:
        name: What its nodes are called.
        compute: What it does, from NumPy arrays to one: a graph that holds it can be run.
        write: Writes it as ONNX operators.
    """

    name: str
    compute: Callable[..., Any]
    write: Callable[[Scope], None]

    @property
    def mark(self) -> int:
        """Its last input."""
        return _MARK + zlib.crc32(self.name.encode())

    def __call__(self, inputs: Sequence[Any]) -> Any:
        """Its result in TensorFlow's graph.

        Args:
            inputs: Tensors, and constants that `write` reads. The first has the shape and the
                dtype of the result.
        """
        import tensorflow as tf

        like = inputs[0]
        y = tf.numpy_function(
            lambda *arrays: self.compute(*arrays[:-1]),
            [*inputs, np.int64(self.mark)],
            like.dtype,
            stateful=False,
            name=self.name,
        )
        return tf.ensure_shape(y, like.shape)  # the node itself does not say what shape it gives
