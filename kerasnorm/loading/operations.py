"""TensorFlow functions in an old functional model, as `keras.ops`.

Keras 2 stored `x + 1` or `tf.nn.relu(x)` as a TFOpLambda layer that names the function. Only those
in the table are known; nothing is looked up in TensorFlow itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from keras import ops

from kerasnorm.loading.old_layer import OldLayer

# CustomScaleLayer is of `applications.InceptionResNetV2`.
CLASSES = frozenset(
    {
        "Custom>CustomScaleLayer",
        "CustomScaleLayer",
        "SlicingOpLambda",
        "TFOpLambda",
        "TensorFlowOpLayer",
    }
)


def operation(layer: OldLayer) -> Callable[..., Any]:
    """What a TFOpLambda computes, as a function of its first argument and others by name.

    Raises:
        LoadError: If it is a function that is not in the table.
    """
    if layer.class_name == "TensorFlowOpLayer":
        return _raw_operation(layer)
    if layer.class_name.endswith("CustomScaleLayer"):
        scale = layer.config["scale"]
        return lambda inputs, /: inputs[0] + inputs[1] * scale
    name = str(layer.config.get("function"))
    name = name.removeprefix("compat.v1.")
    if layer.class_name == "SlicingOpLambda":
        name = "__operators__.getitem"
    if name not in _FUNCTIONS:
        raise layer.refused(
            f"calls tf.{name}, which has no counterpart here.",
            hint="Build that part of the model with Keras layers and load the weights into it.",
        )
    function = _FUNCTIONS[name]

    def call(inputs: Any, /, **arguments: Any) -> Any:
        given = {key: value for key, value in arguments.items() if value is not None}
        for key in ("conjugate", "name"):  # of complex numbers; of the node
            given.pop(key, None)
        return function(inputs, **given)

    layer.say(f"tf.{name} became operations of keras.ops")
    return call


def _raw_operation(layer: OldLayer) -> Callable[..., Any]:
    """An operation of a TensorFlow graph, which TensorFlow 2.0 to 2.3 stored for a function.

    It has the tensors in order; those that were constant stand beside them, by their places.
    """
    node = layer.config.get("node_def")
    kind = node.get("op") if isinstance(node, dict) else _op_of(str(node))
    if kind not in _RAW:
        raise layer.refused(
            f"is TensorFlow's {kind}, which has no counterpart here.",
            hint="Build that part of the model with Keras layers and load the weights into it.",
        )
    constants = {int(place): value for place, value in layer.config.get("constants", {}).items()}

    def call(inputs: Any, /, **_: Any) -> Any:
        tensors = list(inputs) if isinstance(inputs, list) else [inputs]
        for place in sorted(constants):
            tensors.insert(place, constants[place])
        return _RAW[kind](*tensors)

    layer.say(f"TensorFlow's {kind} became operations of keras.ops")
    return call


def _op_of(node_def: str) -> str | None:
    """The operation in a node as JSON, or as the text of a protocol buffer."""
    found = re.search(r'"?op"?: ?"(\w+)"', node_def)
    return found[1] if found else None


def _of_two(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: function(x, y)


def _reduced(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, axis=None, keepdims=False: function(x, axis=axis, keepdims=keepdims)


def _getitem(x: Any, slice_spec: Any) -> Any:
    return x[tuple(_index(item) for item in _listed(slice_spec))]


def _index(item: Any) -> Any:
    if isinstance(item, dict) and {"start", "stop", "step"} <= item.keys():
        return slice(item["start"], item["stop"], item["step"])
    if isinstance(item, dict):  # {"class_name": "__ellipsis__"}
        return Ellipsis
    return item


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _leaky_relu(x: Any, alpha: float = 0.2) -> Any:
    return ops.leaky_relu(x, negative_slope=alpha)


def _silu(x: Any, beta: float = 1.0) -> Any:
    return x * ops.sigmoid(beta * x)


def _clip(x: Any, clip_value_min: Any, clip_value_max: Any) -> Any:
    return ops.clip(x, clip_value_min, clip_value_max)


def _pad(x: Any, paddings: Any, mode: str = "CONSTANT", constant_values: float = 0) -> Any:
    if mode != "CONSTANT":
        return ops.pad(x, paddings, mode=mode.lower())
    return ops.pad(x, paddings, constant_values=constant_values)


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


def _split(x: Any, num_or_size_splits: Any, axis: int = 0) -> Any:
    if isinstance(num_or_size_splits, list):  # sizes; keras.ops takes the places between them
        ends = [sum(num_or_size_splits[: n + 1]) for n in range(len(num_or_size_splits) - 1)]
        return ops.split(x, ends, axis=axis)
    return ops.split(x, num_or_size_splits, axis=axis)


def _resize(images: Any, size: Any, method: str = "bilinear") -> Any:
    return ops.image.resize(images, tuple(size), interpolation=method, data_format="channels_last")


def _l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Any:
    squares = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, epsilon))


def _squeeze(x: Any, axis: Any = None) -> Any:
    return ops.squeeze(x, tuple(axis) if isinstance(axis, list) else axis)


def _softmax(x: Any, axis: int = -1) -> Any:
    return ops.softmax(x, axis)


# By the names that TensorFlow exports them under. The first argument comes by position, the others
# by the names they have there.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "__operators__.add": _of_two(ops.add),
    "__operators__.getitem": _getitem,
    "cast": lambda x, dtype: ops.cast(x, dtype),
    "clip_by_value": _clip,
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "expand_dims": lambda x, axis: ops.expand_dims(x, axis),
    "identity": lambda x: x,
    "image.resize": _resize,
    "linalg.l2_normalize": _l2_normalize,
    "linalg.matmul": _matmul,
    "math.abs": ops.abs,
    "math.add": _of_two(ops.add),
    "math.add_n": lambda tensors: sum(tensors[1:], tensors[0]),
    "math.divide": _of_two(ops.divide),
    "math.exp": ops.exp,
    "math.l2_normalize": _l2_normalize,
    "math.log": ops.log,
    "math.maximum": _of_two(ops.maximum),
    "math.minimum": _of_two(ops.minimum),
    "math.multiply": _of_two(ops.multiply),
    "math.negative": ops.negative,
    "math.pow": _of_two(ops.power),
    "math.reduce_max": _reduced(ops.max),
    "math.reduce_mean": _reduced(ops.mean),
    "math.reduce_min": _reduced(ops.min),
    "math.reduce_std": _reduced(ops.std),
    "math.reduce_sum": _reduced(ops.sum),
    "math.reduce_variance": _reduced(ops.var),
    "math.rsqrt": ops.rsqrt,
    "math.scalar_mul": lambda scalar, x: ops.multiply(scalar, x),
    "math.sigmoid": ops.sigmoid,
    "math.softplus": ops.softplus,
    "math.sqrt": ops.sqrt,
    "math.square": ops.square,
    "math.subtract": _of_two(ops.subtract),
    "math.tanh": ops.tanh,
    "math.truediv": _of_two(ops.divide),
    "nn.elu": ops.elu,
    "nn.gelu": lambda x, approximate=False: ops.gelu(x, approximate),
    "nn.l2_normalize": _l2_normalize,
    "nn.leaky_relu": _leaky_relu,
    "nn.relu": ops.relu,
    "nn.relu6": ops.relu6,
    "nn.selu": ops.selu,
    "nn.sigmoid": ops.sigmoid,
    "nn.silu": _silu,
    "nn.softmax": _softmax,
    "nn.swish": _silu,
    "nn.tanh": ops.tanh,
    "pad": _pad,
    "reshape": lambda x, shape: ops.reshape(x, shape),
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda values, axis=0: ops.stack(values, axis),
    "tile": lambda x, multiples: ops.tile(x, multiples),
    "transpose": lambda x, perm=None: ops.transpose(x, perm),
    "unstack": lambda x, num=None, axis=0: ops.unstack(x, num, axis),
}

# Of TensorFlow's graphs.
_RAW: dict[str, Callable[..., Any]] = {
    "Abs": ops.abs,
    "Add": ops.add,
    "AddV2": ops.add,
    "ConcatV2": lambda *values: ops.concatenate(values[:-1], values[-1]),
    "Elu": ops.elu,
    "Exp": ops.exp,
    "ExpandDims": ops.expand_dims,
    "Identity": lambda x: x,
    "Log": ops.log,
    "Maximum": ops.maximum,
    "Minimum": ops.minimum,
    "Mul": ops.multiply,
    "Neg": ops.negative,
    "Pow": ops.power,
    "RealDiv": ops.divide,
    "Relu": ops.relu,
    "Relu6": ops.relu6,
    "Reshape": ops.reshape,
    "Rsqrt": ops.rsqrt,
    "Sigmoid": ops.sigmoid,
    "Softplus": ops.softplus,
    "Sqrt": ops.sqrt,
    "Square": ops.square,
    "Sub": ops.subtract,
    "Tanh": ops.tanh,
    "Transpose": ops.transpose,
}
