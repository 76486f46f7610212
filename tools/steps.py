"""One step of a layer or a model as a compiled function.

What the tools that time layers and those that compile them for other machines have in common.
Keras's backend decides between TensorFlow and JAX.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np

_RATE = 0.01


def step(layer: Any, shape: tuple[int, ...], gradients: bool, training: bool = True):
    """A compiled function of a layer, and what to call it on.

    With gradients it takes x and what flows back to the output, and returns the output and the
    gradients in x and in all weights.

    Args:
        layer: Built or not.
        shape: Of the input, which is random.
        gradients: Whether to go back as well.
        training: What the layer is told, if it takes that.
    """
    told = {"training": training} if layer._call_has_training_arg else {}
    x = keras.ops.cast(np.random.default_rng(0).normal(size=shape), layer.compute_dtype)
    y = layer(x, **told)
    behind = keras.ops.cast(np.random.default_rng(1).normal(size=y.shape), y.dtype)
    make = _jax_step if keras.backend.backend() == "jax" else _tensorflow_step
    return make(layer, x, behind, gradients, told)


def _tensorflow_step(layer, x, behind, gradients: bool, told) -> tuple[Callable, tuple]:
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def forward(x):
        return layer(x, **told)

    @tf.function(jit_compile=True, autograph=False)
    def backward(x, behind):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **told)
        weights = [v.value for v in layer.trainable_variables]
        return y, tape.gradient(y, [x, *weights], behind)

    return (backward, (x, behind)) if gradients else (forward, (x,))


def _jax_step(layer, x, behind, gradients: bool, told) -> tuple[Callable, tuple]:
    import jax

    weights = [v.value for v in layer.trainable_variables]
    others = [v.value for v in layer.non_trainable_variables]

    def forward(weights, others, x):
        return layer.stateless_call(weights, others, x, **told)

    def backward(weights, others, x, behind):
        y, back, others = jax.vjp(
            lambda weights, x: forward(weights, others, x), weights, x, has_aux=True
        )
        return y, back(behind), others

    if gradients:
        # without its scope of mixed precision, a layer may answer in another dtype
        answer, _ = jax.eval_shape(forward, weights, others, x)
        return jax.jit(backward), (weights, others, x, behind.astype(answer.dtype))
    return jax.jit(forward), (weights, others, x)


def training_step(model: keras.Model, size: int):
    """A step of SGD on a random batch of this size, and what to call it on.

    For a model with one input, of a known shape, and one output, the probabilities of classes.
    """
    random = np.random.default_rng(0)
    x = keras.ops.cast(random.uniform(size=(size, *model.input_shape[1:])), "float32")
    y = keras.ops.cast(random.integers(model.output_shape[-1], size=size), "int32")
    make = _jax_training_step if keras.backend.backend() == "jax" else _tensorflow_training_step
    return make(model, x, y)


def _loss(y, probabilities):
    return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, probabilities))


def _tensorflow_training_step(model, x, y) -> tuple[Callable, tuple]:
    import tensorflow as tf

    @tf.function(jit_compile=True, autograph=False)
    def train(x, y):
        with tf.GradientTape() as tape:
            loss = _loss(y, model(x, training=True))
        weights = [v.value for v in model.trainable_variables]
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(_RATE * gradient)
        return loss

    return train, (x, y)


def _jax_training_step(model, x, y) -> tuple[Callable, tuple]:
    import jax

    def loss_of(weights, others, x, y):
        probabilities, others = model.stateless_call(weights, others, x, training=True)
        return _loss(y, probabilities), others

    def train(weights, others, x, y):
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, others), gradients = differentiate(weights, others, x, y)
        return [w - _RATE * g for w, g in zip(weights, gradients, strict=True)], others, loss

    weights = [v.value for v in model.trainable_variables]
    others = [v.value for v in model.non_trainable_variables]
    return jax.jit(train), (weights, others, x, y)
