"""CosineNorm in as few operators as its formula needs.

The layer guards its formula, for training, against squares that overflow or vanish. What is
written is the formula: with w of length 1, and the gain in it,

    (w · x) / sqrt(‖x‖² + damping²) + b,    or    (w · x + b) / sqrt(‖x‖² + 1).

A dense layer and a 1×1 convolution divide x before the contraction, so that bias and activation
follow it at once, which runtimes fuse. Other convolutions divide after it: ‖x‖² of each patch is
the sum of x² over the channels, summed over the patch by a convolution with ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kerasnorm.layers import CosineNorm
from kerasnorm.layers import kernel as kernels
from kerasnorm.layers import linear_map as linear
from kerasnorm.layers.patches import Contraction
from kerasnorm.layers.substitution import in_dtype
from kerasnorm.onnx.opaque import call, defines, opaque, replace, writes

_WIDE = ("float32", "float64")
# Keeps 0 / 0 away where a patch is all zeros: its dot products are 0, and so is its cosine.
_TINY = 1e-24


def short_call(layer: keras.Layer) -> Callable[..., Any] | None:
    """What to call in place of a layer's `call`; None for what is traced as it is.

    That is a centred cosine, one in half precision, whose x has to be scaled before it is squared,
    and a subclass with a `call` of its own.
    """
    if type(layer).call is not CosineNorm.call or layer.centered:
        return None
    return _call(layer) if layer.compute_dtype in _WIDE else None


def _call(layer: CosineNorm):
    def call(inputs):
        x = ops.cast(inputs, layer.compute_dtype)
        y = in_dtype(layer.variable_dtype, lambda x: _formula(layer, x), x)
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
    return last(opaque("UnitVectors", _unit_vectors_in_numpy, [x, smallest], x))


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
            contraction.groups,
            contraction.filters_per_group,
            layer.kernel_size,
            layer.strides,
            layer.dilation_rate,
            padding == "same",
        )
    ]
    return last(opaque("OverLengths", _over_lengths_in_numpy, [dots, x, smallest, *geometry], dots))


def _smallest(beside: float, x) -> np.ndarray:
    """What is added to ‖x‖²."""
    return np.array(beside**2 or _TINY, x.dtype.as_numpy_dtype)


def _channels_first(contraction: Contraction):
    """The way to the layout of ONNX and back.

    What comes in between is opaque, or tf2onnx would move transpositions into it: past a sum over
    the channels they become reshapes, and stay.
    """
    import tensorflow as tf

    rank, axis = contraction.rank, contraction.channel_axis
    order = [0, axis, *(a for a in range(1, rank) if a != axis)]
    return lambda t: tf.transpose(t, order), lambda t: tf.transpose(t, np.argsort(order))


defines("""
UnitVectors (x, flat, ones, smallest, shape) => (y) {
    vectors = Reshape(x, flat)
    square = Mul(vectors, vectors)
    summed = MatMul(ones, square)
    squares = Add(summed, smallest)
    lengths = Sqrt(squares)
    units = Div(vectors, lengths)
    y = Reshape(units, shape)
}
""")


def _unit_vectors_in_numpy(x, smallest):
    return x / np.sqrt(np.sum(np.square(x), axis=1, keepdims=True) + smallest)


@writes("UnitVectors")
def _write_unit_vectors(graph, node):
    x, smallest = node.input
    inputs = [x, *_sums_as_product(graph, x, 1), smallest, _shape(graph, x, [0, 0])]
    replace(graph, node, "UnitVectors", inputs)


# In half of them there is nothing to sum: each channel of a depthwise convolution is on its own.
defines("""
Squares (x) => (y) {
    y = Mul(x, x)
}
""")
defines("""
ChannelSums (x, flat, ones, shape) => (y) {
    vectors = Reshape(x, flat)
    square = Mul(vectors, vectors)
    summed = MatMul(ones, square)
    y = Reshape(summed, shape)
}
""")
# Of `auto_pad` and `pads` one is given.
defines("""
OverLengths <group, strides, dilations, auto_pad, pads> (dots, sums, box, smallest) => (y) {
    squares = Conv <group: int = @group, strides: ints = @strides, dilations: ints = @dilations,
                    auto_pad: string = @auto_pad, pads: ints = @pads> (sums, box, smallest)
    lengths = Sqrt(squares)
    y = Div(dots, lengths)
}
""")


def _over_lengths_in_numpy(dots, x, smallest, groups, often, size, strides, dilations, same):
    batch, channels, *space = x.shape
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


@writes("OverLengths")
def _write_over_lengths(graph, node):
    dots, x = node.input[:2]
    smallest, groups, often, size, strides, dilations, same = (
        constant.get_tensor_value(as_list=False) for constant in node.inputs[2:]
    )
    if groups == graph.get_shape(x)[1]:
        sums = call(graph, "Squares", [x])
    else:
        inputs = [x, *_sums_as_product(graph, x, groups), _shape(graph, x, [0, groups])]
        sums = call(graph, "ChannelSums", inputs)
    outputs = groups * often
    box = np.ones((outputs, 1, *size), smallest.dtype)
    smallest = np.full(outputs, smallest)
    replace(
        graph,
        node,
        "OverLengths",
        [dots, sums, _constant(graph, box), _constant(graph, smallest)],
        group=int(groups),
        strides=strides.tolist(),
        dilations=dilations.tolist(),
        **_padding(size, strides, dilations, same),
    )


def _padding(size, strides, dilations, same: bool) -> dict[str, Any]:
    """As numbers where they do not depend on the size of x: with strides there is no dilation.

    ONNX Runtime takes no "same" padding of dilated convolutions.
    """
    if same and max(strides) > 1:
        return {"auto_pad": "SAME_UPPER"}
    total = (size - 1) * dilations * same
    return {"pads": [*(total // 2).tolist(), *(total - total // 2).tolist()]}


def _sums_as_product(graph, x: str, groups: int) -> tuple[str, str]:
    """What sums the channels of each group: the shape to give to x, and ones to multiply it with.

    ONNX Runtime is slow to reduce the channels of one sample, and fast to multiply matrices.
    """
    from tf2onnx.utils import map_onnx_to_numpy_type

    channels = graph.get_shape(x)[1]
    ones = np.repeat(np.eye(groups), channels // groups, axis=1)
    ones = ones.astype(map_onnx_to_numpy_type(graph.get_dtype(x)))
    return _constant(graph, [0, channels, -1]), _constant(graph, ones)


def _shape(graph, x: str, first: list[int]) -> str:
    """`first`, where 0 is what there was, and then the sizes of x in space."""
    from tf2onnx.graph_builder import GraphBuilder

    space = graph.get_shape(x)[2:]
    if -1 not in space:
        return _constant(graph, [*first, *space])
    sizes = graph.make_node("Shape", [x]).output[0]
    ends = np.iinfo(np.int64).max
    space = GraphBuilder(graph).make_slice({"data": sizes, "starts": [2], "ends": [ends]})
    return graph.make_node("Concat", [_constant(graph, first), space], attr={"axis": 0}).output[0]


def _constant(graph, value) -> str:
    from tf2onnx.utils import make_name

    return graph.make_const(make_name("constant"), np.asarray(value)).output[0]
