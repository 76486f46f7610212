"""CosineNorm in as few operators as its formula needs.

The layer guards its formula, for training, against squares that overflow or vanish. What is
written is the formula: with w of length 1, and the gain in it,

    (w · x) / sqrt(‖x‖² + damping²) + b,    or    (w · x + b) / sqrt(‖x‖² + 1).

A dense layer and a 1×1 convolution divide x before the contraction, so that bias and activation
follow it at once, which runtimes fuse. Other convolutions divide after it: ‖x‖² of each patch is
the sum of x² over the channels, summed over the patch by a convolution with ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasnorm.layers import CosineNorm, kernels
from kerasnorm.layers import linear_ops as linear
from kerasnorm.layers.patches import Contraction
from kerasnorm.onnx.custom_ops.custom_op import CustomOp, Scope

_WIDE = ("float32", "float64")
# Keeps 0 / 0 away where a patch is all zeros: its dot products are 0, and so is its cosine.
_TINY = 1e-36


def short_call(layer: keras.Layer) -> Callable[..., Any] | None:
    """What to call in place of a layer's `call`; None for what stays as it is.

    That is a centred cosine, one in half precision, whose x has to be scaled before it is squared,
    and a subclass with a `call` of its own.
    """
    if type(layer).call is not CosineNorm.call or layer.centered:
        return None
    return _call(layer) if layer.compute_dtype in _WIDE else None


def _call(layer: CosineNorm):
    def call(inputs):
        x = ops.cast(inputs, layer.compute_dtype)
        y = _formula(layer, x)
        return y if layer.layer.activation is None else layer.layer.activation(y)

    return call


def _formula(layer: CosineNorm, x):
    contraction = layer.contraction(len(x.shape))
    bias = layer.layer.bias
    if not layer.rescale and bias is not None:
        w, inner = layer._direction(contraction.bias_to_units(bias))
        dots = contraction.apply(w, x) + contraction.units_to_output(inner)
        return _over_lengths(contraction, dots, x, 1.0)
    w, _ = layer._direction(None)
    if layer.rescale:
        kernel = kernels.output_kernel(layer.layer)
        w["g"] = w["g"] * ops.reshape(layer.g, kernel.broadcast_shape)
    if not contraction.sliding or _is_pointwise(contraction):
        y = contraction.apply(w, _unit_vectors(contraction, x, layer.damping))
    else:
        y = _over_lengths(contraction, contraction.apply(w, x), x, layer.damping)
    return linear.add_bias(layer.layer, y, bias)


def _is_pointwise(contraction: Contraction) -> bool:
    """Whether each position of a convolution's input is one of its patches, with all channels."""
    layer = contraction.layer
    alone = {*layer.kernel_size, *layer.strides} == {1}
    return alone and contraction.groups == 1 and not linear.is_transposed(layer)


def _unit_vectors(contraction: Contraction, x, beside: float):
    """x / sqrt(‖x‖² + beside²)."""
    smallest = _smallest(beside, x)
    if not contraction.sliding:
        squares = ops.sum(ops.square(x), axis=contraction.axes, keepdims=True)
        return x / ops.sqrt(squares + smallest)
    first, last = _channels_first(contraction)
    x = first(x)
    channels = np.int64(x.shape[1])
    return last(UNIT_VECTORS([x, smallest, channels]))


def _over_lengths(contraction: Contraction, dots, x, beside: float):
    """dots / sqrt(‖x‖² + beside²)."""
    layer = contraction.layer
    smallest = _smallest(beside, x)
    if not contraction.sliding or linear.is_transposed(layer):
        return dots / ops.sqrt(contraction.squared_lengths(x) + smallest)
    first, last = _channels_first(contraction)
    x, padding = linear.pad_causal(layer, x)
    dots, x = first(dots), first(x)
    geometry = [
        np.array(numbers, np.int64)
        for numbers in (
            x.shape[1],
            contraction.groups,
            contraction.filters_per_group,
            layer.kernel_size,
            layer.strides,
            layer.dilation_rate,
            padding == "same",
        )
    ]
    return last(OVER_LENGTHS([dots, x, smallest, *geometry]))


def _smallest(beside: float, x) -> np.ndarray:
    """What is added to ‖x‖²."""
    return np.array(max(beside**2, _TINY), x.dtype.as_numpy_dtype)


def _channels_first(contraction: Contraction):
    """The way to the layout of ONNX and back.

    What comes in between is a custom operation, or tf2onnx would move transpositions into it: past
    a sum over the channels they become reshapes, and stay.
    """
    import tensorflow as tf

    rank, axis = contraction.rank, contraction.channel_axis
    order = [0, axis, *(a for a in range(1, rank) if a != axis)]
    return lambda t: tf.transpose(t, order), lambda t: tf.transpose(t, np.argsort(order))


def _write_unit_vectors(scope: Scope) -> None:
    x, smallest = scope.inputs[:2]
    vectors, sums = _channel_sums(scope, x, int(scope.value(2)), 1)
    lengths = scope("Sqrt", scope("Add", sums, smallest, name="squares"), name="lengths")
    scope.result("Reshape", scope("Div", vectors, lengths), _shape(scope, x, [0, 0]))


def _unit_vectors_in_numpy(x, smallest, channels):
    return x / np.sqrt(np.sum(np.square(x), axis=1, keepdims=True) + smallest)


def _write_over_lengths(scope: Scope) -> None:
    dots, x = scope.inputs[:2]
    smallest, channels, groups, often, size, strides, dilations, same = map(
        scope.value, range(2, 10)
    )
    if groups == channels:
        sums = scope("Mul", x, x, name="square")
    else:
        _, sums = _channel_sums(scope, x, int(channels), int(groups))
        sums = scope("Reshape", sums, _shape(scope, x, [0, int(groups)]))
    outputs = int(groups * often)
    squares = scope(
        "Conv",
        sums,
        scope.constant(np.ones((outputs, 1, *size), smallest.dtype)),
        scope.constant(np.full(outputs, smallest)),
        name="squares",
        group=int(groups),
        strides=strides.tolist(),
        dilations=dilations.tolist(),
        **_padding(size, strides, dilations, same),
    )
    scope.result("Div", dots, scope("Sqrt", squares, name="lengths"))


def _over_lengths_in_numpy(
    dots, x, smallest, channels, groups, often, size, strides, dilations, same
):
    batch, _, *space = x.shape
    sums = np.square(x).reshape(batch, groups, channels // groups, *space).sum(axis=2)
    # Groups as samples: Keras's convolution of one channel is that of any other.
    sums = ops.conv(
        sums.reshape(-1, *space, 1),
        np.ones((*size, 1, 1), x.dtype),
        strides=tuple(map(int, strides)),
        padding="same" if same else "valid",
        data_format="channels_last",
        dilation_rate=tuple(map(int, dilations)),
    )
    squares = ops.convert_to_numpy(sums).reshape(batch, groups, *dots.shape[2:])
    return dots / np.sqrt(np.repeat(squares, often, axis=1) + smallest)


def _padding(size, strides, dilations, same) -> dict[str, Any]:
    """As numbers where they do not depend on the size of x: with strides there is no dilation.

    ONNX Runtime takes no "same" padding of dilated convolutions.
    """
    if same and max(strides) > 1:
        return {"auto_pad": "SAME_UPPER"}
    total = (size - 1) * dilations * same
    return {"pads": [*(total // 2).tolist(), *(total - total // 2).tolist()]}


def _channel_sums(scope: Scope, x: str, channels: int, groups: int) -> tuple[str, str]:
    """x with its places in one axis, and its squares summed over the channels of each group.

    ONNX Runtime is slow to reduce the channels of one sample, and fast to multiply matrices.
    """
    space = scope.shape(x)[2:]
    places = -1 if -1 in space else math.prod(space)  # ONNX Runtime infers none of an empty batch
    ones = np.repeat(np.eye(groups), channels // groups, axis=1).astype(scope.dtype(x))
    vectors = scope("Reshape", x, scope.constant([0, channels, places]), name="vectors")
    square = scope("Mul", vectors, vectors, name="square")
    return vectors, scope("MatMul", scope.constant(ones), square, name="channel_sums")


def _shape(scope: Scope, x: str, first: list[int]) -> str:
    """`first`, where 0 is what there was, and then the sizes of x in space."""
    space = scope.shape(x)[2:]
    if -1 not in space:
        return scope.constant([*first, *space])
    bounds = scope.constant([2]), scope.constant([np.iinfo(np.int64).max])
    return scope(
        "Concat", scope.constant(first), scope("Slice", scope("Shape", x), *bounds), axis=0
    )


UNIT_VECTORS = CustomOp("CosineNormUnits", _unit_vectors_in_numpy, _write_unit_vectors)
OVER_LENGTHS = CustomOp("CosineNormOverLengths", _over_lengths_in_numpy, _write_over_lengths)
