"""Gains: the length of each output unit's weight vector, kept apart from its direction."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kerasnorm.layers.kernels import Kernel
from kerasnorm.math import norms


def weight(kernel: Kernel, gain):
    """w_i = g_i · v_i / ‖v_i‖, in the shape of the kernel and the dtype of the gain."""
    v = kernel.wide_value
    g = ops.cast(ops.reshape(gain, kernel.broadcast_shape), v.dtype)
    w = norms.normalized_weight(v, g, kernel.contracted_axes)
    return ops.cast(w, gain.dtype)


def initial_gain(kernel: Kernel) -> Callable[..., Any]:
    """An initializer that gives ‖v_i‖; and 0 where v_i is zero, which it gives a direction."""

    def initializer(shape, dtype=None):
        v = kernel.wide_value
        length, zero = norms.norm(v, kernel.contracted_axes), ops.equal(v, 0)
        if kernel.contracted_axes:
            zero = ops.all(zero, axis=kernel.contracted_axes, keepdims=True)
            # any direction would do; a fixed seed makes it the same one every time
            direction = keras.random.normal(v.shape, dtype=v.dtype, seed=0)
        else:
            direction = ops.ones_like(v)
        kernel.variable.assign(ops.where(zero, direction, v))
        length = ops.where(zero, ops.zeros_like(length), length)
        return ops.cast(ops.reshape(length, shape), dtype)

    return initializer


def out_of_graphs() -> contextlib.AbstractContextManager:
    """A scope whose code runs at once, even while `tf.function` traces the call it is in.

    A model without an `Input` is built by the first step that `fit` traces. The values of v, which
    gains start from, are there only when the graph runs, and XLA compiles that step only if no
    variable made in it starts from the value of another.
    """
    if keras.backend.backend() != "tensorflow":
        return contextlib.nullcontext()
    import tensorflow as tf

    return tf.init_scope()
