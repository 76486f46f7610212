"""`FrozenGraph`: a Keras model as a TensorFlow graph with its weights inside."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.compare.rounding import moved
from kerasnorm.compare.tolerances import EPSILONS
from kerasnorm.errors import ExportError
from kerasnorm.math import sums
from kerasnorm.onnx.custom_ops.short_forms import in_short_forms
from kerasnorm.onnx.error_text import layer_of, reason
from kerasnorm.onnx.io_spec import Signature, output_names

# In bytes: what is smaller is a constant of the graph in any case, which TensorFlow computes with.
_LARGE_WEIGHT = 2**14


@dataclass(frozen=True)
class FrozenGraph:
    """A model as a TensorFlow graph with its weights inside.

    Args:
        model: The model that the graph was made of: a copy, where one could be made.
        function: The TensorFlow function that was frozen. `graph` runs as long as it is there.
        graph: A GraphDef without variables.
        inputs, outputs: Tensor names in that graph.
        input_names, output_names: The names that a user of the model knows them by.
        weights: By tensor name, variables (or values) that are inputs of the graph too: the large
            ones of a model whose weights would go through all of TensorFlow's and tf2onnx's copies
            else.
        plain: Whether it is what TensorFlow makes of the layers as they are, and nothing else.
    """

    model: keras.Model
    function: Any
    graph: Any
    inputs: list[str]
    outputs: list[str]
    input_names: list[str]
    output_names: list[str]
    weights: dict[str, Any]
    plain: bool

    def run(self, batch: Sequence[np.ndarray], names: list[str]) -> list[np.ndarray]:
        """The values of tensors of the graph.

        Args:
            batch: Values for `inputs`.
            names: Of the tensors.
        """
        import tensorflow as tf

        @tf.function(autograph=False)
        def tensors(*inputs):
            return tf.graph_util.import_graph_def(
                self.graph,
                input_map={
                    **dict(zip(self.inputs, inputs, strict=True)),
                    **{n: tf.convert_to_tensor(w) for n, w in self.weights.items()},
                },
                return_elements=names,
                name="",
            )

        return [value.numpy() for value in tensors(*[tf.constant(array) for array in batch])]

    def moved(self, generator: np.random.Generator) -> FrozenGraph:
        """The same with every weight and constant moved by one rounding step."""
        import tensorflow as tf

        graph = type(self.graph)()
        graph.CopyFrom(self.graph)
        for node in graph.node:
            if node.op == "Const":
                tensor = node.attr["value"].tensor
                value = tf.make_ndarray(tensor)
                if value.dtype.name in EPSILONS:
                    tensor.CopyFrom(tf.make_tensor_proto(moved(value, generator)))
        weights = {
            name: moved(keras.ops.convert_to_numpy(weight), generator)
            for name, weight in self.weights.items()
        }
        return dataclasses.replace(self, graph=graph, weights=weights)


def freeze(
    model: keras.Model,
    signature: Signature,
    opset: int,
    *,
    outside: bool = False,
    short: bool = True,
) -> FrozenGraph:
    """The model at inference (`training=False`) as a frozen TensorFlow graph.

    What is traced is a copy, where WeightNorm is folded into the kernels and layers are in the
    short forms that ONNX has for them. A model that cannot be rebuilt is traced as it is.

    Args:
        model: The model.
        signature: How it is called.
        opset: Version of the ONNX operators.
        outside: Whether large weights become inputs.
        short: Whether layers take the short forms that ONNX has for them.

    Raises:
        ExportError: If TensorFlow cannot trace or freeze the model.
    """
    import tensorflow as tf
    from tf2onnx import tf_loader

    names: list[str] = []
    copy, shortened = in_short_forms(model, opset, short)
    weights = [v for v in copy.variables if outside and nbytes(v) > _LARGE_WEIGHT]

    def answer(*tensors):
        tensors, values = tensors[: len(signature.inputs)], tensors[len(signature.inputs) :]
        with keras.StatelessScope(state_mapping=list(zip(weights, values, strict=True))):
            outputs = signature.call(copy, tensors)
        names[:] = output_names(model, outputs, [spec.name for spec in signature.inputs])
        # An output of its own for each name, also where two are the same tensor or an input.
        return [tf.identity(tensor) for tensor in keras.tree.flatten(outputs)]

    specs = [tf.TensorSpec(spec.shape, spec.dtype) for spec in signature.inputs]
    specs += [tf.TensorSpec(v.shape, v.dtype) for v in weights]
    try:
        with sums.assuming("onnx"):
            function = tf.function(answer, specs, autograph=False).get_concrete_function()
        # After the arguments come captured variables and constants, which freezing turns inward.
        inputs = [t.name for t in function.inputs[: len(specs)]]
        outputs = [t.name for t in function.outputs]
        graph = tf_loader.from_function(function, inputs, outputs)
        if _free_from_xla(graph):
            with tf.Graph().as_default():
                tf.import_graph_def(graph, name="")
                graph = tf_loader.tf_optimize(inputs, outputs, graph)
    except Exception as failure:
        raise ExportError(
            f"TensorFlow could not trace the model: {reason(failure)}",
            model=model.name,
            layer=layer_of(copy, str(failure)),
            hint="A model can be exported if `tf.function` can call it on inputs of free size.",
        ) from failure
    given = [spec.name for spec in signature.inputs]
    inputs, beside = inputs[: len(given)], inputs[len(given) :]
    weights_by_name = dict(zip(beside, weights, strict=True))
    plain = not shortened and not weights
    return FrozenGraph(copy, function, graph, inputs, outputs, given, names, weights_by_name, plain)


def nbytes(variable: keras.Variable) -> int:
    """How large a variable is."""
    return variable.value.dtype.size * math.prod(variable.shape)


def _free_from_xla(graph) -> bool:
    """Lets functions that only XLA may compile be inlined; whether there were any.

    Keras compiles grouped convolutions with XLA, as TensorFlow's own CPU kernel has none. What
    is inside is an ordinary convolution, which ONNX has.
    """
    functions = graph.library.function
    nodes = [*graph.node, *(node for function in functions for node in function.node_def)]
    found = [item for item in (*nodes, *functions) if "_XlaMustCompile" in item.attr]
    if found:
        for item in (*found, *functions):
            for obstacle in ("_XlaMustCompile", "_noinline"):
                item.attr.pop(obstacle, None)
    return bool(found)
