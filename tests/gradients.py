"""A layer's output and gradients on whichever backend Keras runs, eagerly, traced or compiled."""

from __future__ import annotations

import keras
import numpy as np

BACKEND = keras.backend.backend()


def output_and_gradients(layer, x, cotangent, mode="eager", **call):
    """y = layer(x), and the gradients of sum(y · cotangent) in x and in each trainable weight.

    The gradient in x is None for integer x.
    """
    run = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[BACKEND]
    y, dx, dw = run(layer, x, cotangent, mode, call)
    to_numpy = keras.ops.convert_to_numpy
    y = keras.ops.cast(y, keras.backend.result_type(y.dtype, "float32"))
    return to_numpy(y), None if dx is None else to_numpy(dx), [to_numpy(d) for d in dw]


def _loss(y, cotangent):
    return keras.ops.sum(keras.ops.cast(y, cotangent.dtype.name) * cotangent)


def _tensorflow(layer, x, cotangent, mode, call):
    import tensorflow as tf

    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **call)
            loss = _loss(y, cotangent)
        watched = [v.value for v in layer.trainable_weights]
        dx, *dw = tape.gradient(loss, [x, *watched])
        return y, dx, [tf.convert_to_tensor(d) for d in dw]

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "jit")
    return step(tf.convert_to_tensor(x))


def _jax(layer, x, cotangent, mode, call):
    import jax

    frozen = [v.value for v in layer.non_trainable_variables]

    def loss(trainable, x):
        y, _ = layer.stateless_call(trainable, frozen, x, **call)
        return _loss(y, cotangent), y

    differentiable = 1 if np.issubdtype(x.dtype, np.integer) else 2
    step = jax.value_and_grad(loss, argnums=tuple(range(differentiable)), has_aux=True)
    if mode != "eager":
        step = jax.jit(step)
    trainable = [v.value for v in layer.trainable_variables]
    (_, y), gradients = step(trainable, keras.ops.convert_to_tensor(x))
    return y, gradients[1] if differentiable == 2 else None, gradients[0]


def _torch(layer, x, cotangent, mode, call):
    import torch

    x = torch.tensor(x, requires_grad=not np.issubdtype(x.dtype, np.integer))
    y = layer(x, **call)
    for weight in layer.trainable_weights:
        weight.value.grad = None  # backward adds to what an earlier call left
    torch.sum(y.to(torch.float32) * torch.tensor(cotangent)).backward()
    return y.detach(), x.grad, [v.value.grad for v in layer.trainable_weights]
