"""TensorFlow functions in an old functional model, as `keras.ops`.

Keras 2 stored `x + 1` or `tf.nn.relu(x)` as a TFOpLambda layer that names the function. Only those
in the table are known; nothing is looked up in TensorFlow itself.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
from keras import ops

from kerasnorm.loading.legacy import sums
from kerasnorm.loading.legacy.legacy_config import LegacyConfig

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


def operation(layer: LegacyConfig) -> Callable[..., Any]:
    """What a TFOpLambda computes, as a function of its first argument and others by name.

    Raises:
        LoadError: If it is a function that is not in the table.
    """
    if layer.class_name == "TensorFlowOpLayer":
        return _raw_operation(layer)
    if layer.class_name.endswith("CustomScaleLayer"):
        scale = layer.config["scale"]
        return lambda inputs, /: sums.add(inputs[0], inputs[1] * scale)
    name = str(layer.config.get("function"))
    if name in _SAME_IN_V1:
        name = name.removeprefix("compat.v1.")
    if layer.class_name == "SlicingOpLambda":
        name = "__operators__.getitem"
    if name not in _FUNCTIONS:
        raise layer.refused(
            f"calls tf.{layer.config.get('function') or name}, which has no counterpart here.",
            hint="Build that part of the model with Keras layers and load the weights into it.",
        )
    function = _FUNCTIONS[name]

    def call(inputs: Any, /, **arguments: Any) -> Any:
        given = {key: value for key, value in arguments.items() if value is not None}
        for key in ("conjugate", "name"):  # of complex numbers; of the node
            given.pop(key, None)
        try:
            return function(inputs, **given)
        except TypeError as error:
            raise layer.refused(
                f"calls tf.{name} with arguments that are not known here."
            ) from error

    layer.log_repair(f"tf.{name} became operations of keras.ops")
    return call


def _raw_operation(layer: LegacyConfig) -> Callable[..., Any]:
    """An operation of a TensorFlow graph, which TensorFlow 2.0 to 2.3 stored for a function.

    It has the tensors in order; those that were constant stand beside them, by their places.
    """
    node_def = layer.config.get("node_def")
    kind = node_def.get("op") if isinstance(node_def, dict) else _op_of(str(node_def))
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

    layer.log_repair(f"TensorFlow's {kind} became operations of keras.ops")
    return call


def _op_of(node_def: str) -> str | None:
    """The operation in a node as JSON, or as the text of a protocol buffer."""
    found = re.search(r'"?op"?: ?"(\w+)"', node_def)
    return found[1] if found else None


def _of_two(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x, y: function(_number(x, y), _number(y, x))


def _number(value: Any, other: Any) -> Any:
    """A constant as it is, or as an array of the other's dtype."""
    return np.asarray(value, other.dtype) if isinstance(value, list) else value


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
    if mode.upper() != "CONSTANT":
        return ops.pad(x, paddings, mode=mode.lower())
    return ops.pad(x, paddings, constant_values=constant_values)


def _matmul(a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Any:
    a = ops.swapaxes(a, -1, -2) if transpose_a else a
    return ops.matmul(a, ops.swapaxes(b, -1, -2) if transpose_b else b)


def _split(x: Any, num_or_size_splits: Any, axis: int = 0) -> Any:
    if not isinstance(num_or_size_splits, list):
        return ops.split(x, num_or_size_splits, axis=axis)
    sizes = list(num_or_size_splits)
    if -1 in sizes:  # what the others leave
        sizes[sizes.index(-1)] = x.shape[axis] - sum(sizes) - 1
    # keras.ops takes the places between them
    return ops.split(x, np.cumsum(sizes)[:-1].tolist(), axis=axis)


def _resize(images: Any, size: Any, method: str = "bilinear") -> Any:
    return ops.image.resize(images, tuple(size), interpolation=method, data_format="channels_last")


def _l2_normalize(x: Any, axis: Any = None, epsilon: float = 1e-12) -> Any:
    squares = ops.sum(ops.square(x), axis=axis, keepdims=True)
    return x * ops.rsqrt(ops.maximum(squares, epsilon))


def _squeeze(x: Any, axis: Any = None) -> Any:
    return ops.squeeze(x, tuple(axis) if isinstance(axis, list) else axis)


def _gather(x: Any, indices: Any, axis: int = 0, batch_dims: int = 0) -> Any:
    if batch_dims:
        raise TypeError(batch_dims)
    return ops.take(x, np.asarray(indices, "int32"), axis)


def _norm(x: Any, ord: Any = "euclidean", axis: Any = None, keepdims: bool = False) -> Any:  # noqa: A002
    return ops.norm(x, 2 if ord == "euclidean" else ord, axis, keepdims)


def _add_bias(value: Any, bias: Any) -> Any:
    return sums.add(value, _number(bias, value))


def _depth_to_space(x: Any, block_size: int, data_format: str = "NHWC") -> Any:
    if data_format != "NHWC":
        raise TypeError(data_format)
    _, height, width, channels = x.shape
    inner = channels // block_size**2
    x = ops.reshape(x, (-1, height, width, block_size, block_size, inner))
    x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
    return ops.reshape(x, (-1, height * block_size, width * block_size, inner))


def _softmax(x: Any, axis: int = -1) -> Any:
    return ops.softmax(x, axis)


# By the names that TensorFlow exports them under. The first argument comes by position, the others
# by the names they have there.
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "__operators__.add": _of_two(sums.add),
    "__operators__.getitem": _getitem,
    "broadcast_to": lambda x, shape: ops.broadcast_to(x, shape),
    "cast": lambda x, dtype: ops.cast(x, dtype),
    "clip_by_value": _clip,
    "concat": lambda values, axis: ops.concatenate(values, axis),
    "expand_dims": lambda x, axis: ops.expand_dims(x, axis),
    "gather": _gather,
    "identity": lambda x: x,
    "image.resize": _resize,
    "linalg.l2_normalize": _l2_normalize,
    "linalg.matmul": _matmul,
    "linalg.norm": _norm,
    "math.abs": ops.abs,
    "math.add": _of_two(sums.add),
    "math.add_n": lambda tensors: functools.reduce(sums.add, tensors),
    "math.divide": _of_two(ops.divide),
    "math.equal": _of_two(ops.equal),
    "math.exp": ops.exp,
    "math.greater": _of_two(ops.greater),
    "math.greater_equal": _of_two(ops.greater_equal),
    "math.l2_normalize": _l2_normalize,
    "math.less": _of_two(ops.less),
    "math.less_equal": _of_two(ops.less_equal),
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
    "nn.bias_add": _add_bias,
    "nn.depth_to_space": _depth_to_space,
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
    "norm": _norm,
    "pad": _pad,
    "reshape": lambda x, shape: ops.reshape(x, shape),
    "split": _split,
    "squeeze": _squeeze,
    "stack": lambda values, axis=0: ops.stack(values, axis),
    "tile": lambda x, multiples: ops.tile(x, multiples),
    "transpose": lambda x, perm=None: ops.transpose(x, perm),
    "unstack": lambda x, num=None, axis=0: ops.unstack(x, num, axis),
    "where": lambda condition, x, y: ops.where(condition, x, y),
}
_SAME_IN_V1 = frozenset(
    f"compat.v1.{name}" for name in ("gather", "norm", "pad", "squeeze", "transpose", "where")
)

# Of TensorFlow's graphs.
_RAW: dict[str, Callable[..., Any]] = {
    "Abs": ops.abs,
    "Add": _of_two(sums.add),
    "AddV2": _of_two(sums.add),
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
