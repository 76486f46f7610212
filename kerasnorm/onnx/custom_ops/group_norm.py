"""Group normalizations as layer normalizations of what is reshaped to (samples, groups, rest).

Each group of a sample is a row then, which ONNX Runtime shares out to its threads. A single group
of the whole sample needs no reshaping, and the operator takes its gain and bias.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from kerasnorm.layers import GroupNorm
from kerasnorm.onnx.custom_ops.layer_norm import NORMALIZATION, one_group


def short_call(layer: keras.Layer) -> Callable[..., Any] | None:
    """What to call in place of a layer's `call`; None if the operator cannot express it."""
    if layer.compute_dtype == "float64":  # the operator's epsilon is a float32
        return None
    # A subclass with a `call` of its own may compute anything.
    call = type(layer).call
    if call is GroupNorm.call:
        return _group_norm_call(layer)
    if call is keras.layers.GroupNormalization.call and layer.groups != 1:
        return lambda inputs: _normalized(layer, inputs)
    return None


def _group_norm_call(layer):
    own = layer.call

    def call(inputs, mask=None):
        if mask is not None and not layer.per_position:
            return own(inputs, mask=mask)  # masked steps that do not count are beyond the operator
        if layer.groups == 1 and not layer.per_position:
            return one_group(layer, inputs)
        return _normalized(layer, inputs, layer.per_position)

    return call


def _normalized(layer, inputs, per_position: bool = False):
    """What a layer with `groups`, `axis`, `gamma`, `beta` and `epsilon` answers."""
    import tensorflow as tf

    x = keras.ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))
    rank = len(x.shape)
    axis = layer.axis % rank
    channels = x.shape[axis]
    groups = channels if layer.groups == -1 else layer.groups
    others = [a for a in range(1, rank) if a != axis]
    # images channels first, as ONNX convolutions leave them: no transposition remains between
    order = [0, *others, axis] if per_position else [0, axis, *others]
    x = tf.transpose(x, order)
    before = rank - 1 if per_position else 1
    rest = [channels // groups, *x.shape[before + 1 :]]
    entries = -1 if None in rest else math.prod(rest)
    if None in x.shape[1:]:
        full = tf.shape(x)
        grouped = tf.concat([full[:before], [groups, entries]], 0)
    else:
        full = [-1, *x.shape[1:]]
        grouped = [-1, *x.shape[1:before], groups, entries]
    ones = tf.ones((1,), x.dtype)  # in the file; ONNX Runtime makes as many of it as there are
    constants = np.int64(before + 1), np.float32(layer.epsilon)
    y = NORMALIZATION([tf.reshape(x, grouped), ones, tf.zeros_like(ones), *constants])
    y = tf.reshape(y, full)
    if layer.gamma is not None:
        y = y * _spread(layer.gamma, x, per_position)
    if layer.beta is not None:
        y = y + _spread(layer.beta, x, per_position)
    return keras.ops.cast(tf.transpose(y, np.argsort(order)), layer.compute_dtype)


def _spread(value, x, per_position: bool):
    """A value for each channel, to be broadcast against x."""
    after = 0 if per_position else len(x.shape) - 2
    return keras.ops.reshape(keras.ops.cast(value, x.dtype), (-1, *[1] * after))
