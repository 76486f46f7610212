"""Layer normalizations as the one operator that ONNX has for them since opset 17."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasnorm.layers import LayerNorm
from kerasnorm.onnx.custom_ops.custom_op import CustomOp, Scope

_NAME = "LayerNormalization"


def short_call(layer: keras.Layer) -> Callable[..., Any] | None:
    """What to call in place of a layer's `call`; None if the operator cannot express it."""
    if layer.compute_dtype == "float64":  # the operator's epsilon is a float32
        return None
    # A subclass with a `call` of its own may compute anything.
    call = type(layer).call
    if call is LayerNorm.call:
        return _layer_norm_call(layer)
    if call is keras.layers.LayerNormalization.call and not layer.rms_scaling:
        return _layer_normalization_call(layer)
    if call is keras.layers.GroupNormalization.call and layer.groups == 1:
        return lambda inputs: one_group(layer, inputs)
    return None


def _layer_norm_call(layer):
    own = layer.call

    def call(inputs, mask=None):
        axes = layer._normalized_axes
        # Masked time steps that must not count are beyond the operator.
        if mask is not None and min(axes) < len(mask.shape):
            return own(inputs, mask=mask)
        return _normalized(layer, inputs, axes, layer._affine_axes, layer.channel_axis)

    return call


def _layer_normalization_call(layer):
    def call(inputs):
        axes = sorted(axis % len(inputs.shape) for axis in layer.axis)
        return _normalized(layer, inputs, axes, axes, -1)

    return call


def one_group(layer, inputs):
    """What a group normalization of one group answers: a sample is normalized as a whole."""
    rank = len(inputs.shape)
    return _normalized(layer, inputs, range(1, rank), [layer.axis % rank], layer.axis)


def _normalized(layer, inputs, axes, affine_axes, channel_axis: int):
    """What a layer with `gamma`, `beta` and `epsilon` answers, by way of the operator.

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
    constants = np.int64(first), np.float32(layer.epsilon)
    y = NORMALIZATION([x, gain, bias, *constants])
    return keras.ops.cast(tf.transpose(y, np.argsort(order)), layer.compute_dtype)


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
    for axis in axes:
        shape[axis] = x.shape[axis]
    return keras.ops.reshape(value, shape)


def _in_numpy(x, gain, bias, first, epsilon):
    axes = tuple(range(first, x.ndim))
    wide = x.astype(np.float64)
    centered = wide - wide.mean(axes, keepdims=True)
    variance = np.square(centered).mean(axes, keepdims=True)
    return (centered / np.sqrt(variance + epsilon) * gain + bias).astype(x.dtype)


def _write(scope: Scope) -> None:
    x, gain, bias = scope.inputs[:3]
    first, epsilon = int(scope.value(3)), float(scope.value(4))
    sizes = scope.shape(x)[first:]
    if scope.shape(gain) != sizes:
        # ONNX Runtime's kernel is three times as fast with an entry for each that it normalizes.
        # Where the sizes are known, it makes them once, when it loads the file.
        shape = scope("Shape", x, start=first) if -1 in sizes else scope.constant(sizes)
        gain, bias = scope("Expand", gain, shape), scope("Expand", bias, shape)
    scope.result(_NAME, x, gain, bias, axis=first, epsilon=epsilon)


NORMALIZATION = CustomOp(_NAME, _in_numpy, _write)
