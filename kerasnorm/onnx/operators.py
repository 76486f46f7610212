"""Layers that ONNX says in fewer words than their own formula, replaced while they are traced.

TensorFlow has no operation for a layer normalization: a trace holds some twelve primitives in its
place. While the model is traced, such layers call a stand-in instead, one opaque operation that
carries what the ONNX operator needs; `handlers` tells tf2onnx to write that operator for it.
What the layer's own formula looks like does not matter, so nothing has to be recognized.

The stand-in computes the same function in NumPy: a graph that holds it can still be run.

CosineNorm guards its formula, for training, against squares that overflow or vanish. What is
traced is the formula: the contraction, ‖x‖² by one more, and their quotient.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np

from kerasnorm.layers import CosineNorm, LayerNorm
from kerasnorm.layers import linear_map as linear
from kerasnorm.layers.substitution import in_dtype
from kerasnorm.rewrite.internals import sublayers

_FIRST_OPSET = 17
_WIDE = ("float32", "float64")
# Keeps 0 / 0 away where a patch is all zeros: its dot products are 0, and so is its cosine.
_TINY = 1e-24


@contextlib.contextmanager
def short_forms(model: keras.Model, opset: int) -> Iterator[None]:
    """Inside the block, layer normalizations are traced as one operation, cosines as their formula.

    Layer normalizations that the operator cannot express (masked time steps that must not count)
    and cosines that are centred or in half precision are traced as they are.

    Args:
        model: A built model. It is as before when the block ends.
        opset: Version of the ONNX operators; LayerNormalization came with 17.
    """
    changed = []
    # TimeDistributed hands its layer to tf.vectorized_map, which cannot look into the stand-in.
    vectorized = {
        id(inner)
        for layer in sublayers(model)
        if isinstance(layer, keras.layers.TimeDistributed)
        for inner in sublayers(layer)
    }
    try:
        for layer in sublayers(model):
            call = _call_for(layer, opset)
            if call is not None and "call" not in vars(layer) and id(layer) not in vectorized:
                # Past Keras's bookkeeping, which would take the function for a part of the layer.
                object.__setattr__(layer, "call", call)
                changed.append(layer)
        yield
    finally:
        for layer in changed:
            object.__delattr__(layer, "call")


def handlers() -> dict[str, Any]:
    """For tf2onnx's `custom_op_handlers`: what to write for the stand-in, and what it lacks."""
    return {"PyFuncStateless": (_write_operator, []), "Erfc": (_write_erfc, [])}


def _call_for(layer: keras.Layer, opset: int) -> Callable[..., Any] | None:
    # A subclass with a `call` of its own may compute anything.
    call = type(layer).call
    # In half precision x has to be scaled before it is squared, as the layer itself does.
    if call is CosineNorm.call and not layer.centered and layer.compute_dtype in _WIDE:
        return _cosine_call(layer)
    if opset < _FIRST_OPSET:
        return None
    if call is LayerNorm.call:
        return _layer_norm_call(layer)
    if call is keras.layers.LayerNormalization.call and not layer.rms_scaling:
        return _layer_normalization_call(layer)
    if call is keras.layers.GroupNormalization.call and layer.groups == 1:
        return _one_group_call(layer)
    return None


def _layer_norm_call(layer):
    own = layer.call

    def call(inputs, mask=None):
        axes = layer._normalized_axes
        if mask is not None and min(axes) < len(mask.shape):
            return own(inputs, mask=mask)
        return _normalized(layer, inputs, axes, layer._affine_axes, layer.channel_axis)

    return call


def _layer_normalization_call(layer):
    def call(inputs):
        axes = sorted(axis % len(inputs.shape) for axis in layer.axis)
        return _normalized(layer, inputs, axes, axes, -1)

    return call


def _one_group_call(layer):
    def call(inputs):
        rank = len(inputs.shape)
        return _normalized(layer, inputs, range(1, rank), [layer.axis % rank], layer.axis)

    return call


def _cosine_call(layer):
    """(w · x + b) / sqrt(‖x‖² + 1), or g · (w · x) / sqrt(‖x‖² + damping²) + b.

    [w, b], or w alone, has length 1.
    """

    def formula(x):
        contraction = layer.contraction(len(x.shape))
        bias = layer.layer.bias
        joined = not layer.rescale and bias is not None
        w, inner = layer._direction(contraction.bias_to_units(bias) if joined else None)
        dots = contraction.apply(w, x)
        if joined:
            dots = dots + contraction.units_to_output(inner)
        if layer.rescale:
            dots = dots * contraction.units_to_output(layer.g)
        beside = layer.damping if layer.rescale else float(joined)
        squares = contraction.squared_lengths(x)
        # A number without axes would stop tf2onnx from pushing transpositions past it.
        smallest = keras.ops.full([1] * len(x.shape), beside**2 or _TINY, dtype=x.dtype)
        squares = squares + smallest if beside else keras.ops.maximum(squares, smallest)
        y = dots * keras.ops.rsqrt(squares)
        return linear.add_bias(layer.layer, y, bias) if layer.rescale else y

    def call(inputs):
        x = keras.ops.cast(inputs, layer.compute_dtype)
        y = in_dtype(layer.variable_dtype, formula, x)
        return y if layer.layer.activation is None else layer.layer.activation(y)

    return call


def _normalized(layer, inputs, axes, affine_axes, channel_axis: int):
    """What a layer with `gamma`, `beta` and `epsilon` answers, by way of the stand-in.

    Args:
        layer: The layer.
        inputs: What it is called on.
        axes: The axes to normalize together, counted from the front.
        affine_axes: Those that gamma and beta run along; none if they are single numbers.
        channel_axis: The axis of the channels.
    """
    import tensorflow as tf

    x = keras.ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
    rank = len(x.shape)
    channel_axis = channel_axis % rank if channel_axis % rank in axes else axes[-1]
    order, first = _order(tuple(axes), channel_axis, rank)
    gain, bias = (
        tf.transpose(_spread(value, affine_axes, channel_axis, x), order)[(0,) * first]
        for value in (
            tf.ones(()) if layer.gamma is None else layer.gamma,
            tf.zeros(()) if layer.beta is None else layer.beta,
        )
    )
    x = tf.transpose(x, order)
    y = tf.numpy_function(
        _layer_normalization,
        [x, gain, bias, np.int64(first), np.float32(layer.epsilon)],
        x.dtype,
        stateful=False,
        name="LayerNormalization",
    )
    # The opaque operation does not say what shape it gives.
    y = tf.transpose(tf.ensure_shape(y, x.shape), np.argsort(order))
    return keras.ops.cast(y, layer.compute_dtype)


def _order(axes: tuple[int, ...], channel_axis: int, rank: int) -> tuple[list[int], int]:
    """The order of axes that the operator runs in, and the first of those it normalizes.

    It normalizes the last axes. Images it takes channels first, as ONNX convolutions leave them:
    then no transposition remains between the two.
    """
    if axes == tuple(range(1, rank)) and rank > 3:
        return [0, channel_axis, *(axis for axis in axes if axis != channel_axis)], 1
    others = [axis for axis in range(rank) if axis not in axes]
    return [*others, *axes], len(others)


def _spread(value, axes, channel_axis: int, x):
    """A gain or bias along `axes` with a size for every axis of x.

    A single number gets one entry per channel: not every runtime takes fewer.
    """
    value = keras.ops.cast(value, x.dtype)
    shape = [1] * len(x.shape)
    if len(value.shape) == 0:
        shape[channel_axis] = x.shape[channel_axis] or 1
        return keras.ops.broadcast_to(value, shape)
    for axis, size in zip(axes, value.shape, strict=True):
        shape[axis] = size
    return keras.ops.reshape(value, shape)


def _layer_normalization(x, gain, bias, first, epsilon):
    axes = tuple(range(first, x.ndim))
    wide = x.astype(np.float64)
    centered = wide - wide.mean(axes, keepdims=True)
    variance = np.square(centered).mean(axes, keepdims=True)
    return (centered / np.sqrt(variance + epsilon) * gain + bias).astype(x.dtype)


def _write_operator(graph, node, name, args):
    first, epsilon = (tensor.get_tensor_value() for tensor in node.inputs[3:])
    inputs, output = node.input[:3], node.output
    shapes, dtypes = node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    graph.make_node(
        "LayerNormalization",
        inputs,
        attr={"axis": int(first), "epsilon": float(epsilon)},
        outputs=output,
        name=name,
        shapes=shapes,
        dtypes=dtypes,
    )


def _write_erfc(graph, node, name, args):
    # TensorFlow writes the exact GELU with erfc(x) = 1 − erf(x), ONNX has erf only.
    from tf2onnx.utils import map_onnx_to_numpy_type

    inputs, output = node.input, node.output
    shapes, dtypes = node.output_shapes, node.output_dtypes
    graph.remove_node(node.name)
    erf = graph.make_node("Erf", inputs, shapes=shapes, dtypes=dtypes)
    one = graph.make_const(f"{name}_one", np.ones((), map_onnx_to_numpy_type(dtypes[0])))
    graph.make_node(
        "Sub",
        [one.output[0], erf.output[0]],
        outputs=output,
        name=name,
        shapes=shapes,
        dtypes=dtypes,
    )
