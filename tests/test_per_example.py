"""In a swapped model each example stands alone: what clipping single gradients rests on.

The gradients of single examples, taken all at once, are those of a loop over the examples, and
their mean is the gradient of the batch. A BatchNorm in training mode breaks the second. This file
runs on TensorFlow as it is, and on JAX by tests/test_backends.py.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from helpers import assert_close
from keras import layers

import kerasnorm

BN = layers.BatchNormalization
TARGETS = ("weight", "layer", "group", "cosine")
EVERYDAY = (
    ("sequence", "weight"), ("residual", "layer"), ("sequence", "group"), ("separable", "cosine"),
)  # fmt: skip
EXAMPLES = 6
# Sums of float32 in another order, in networks of several layers; a BatchNorm is off by 10 %.
ROUNDING = 100


def separable():
    """Depthwise convolutions and pointwise ones by turns, and a SeparableConv2D."""
    inputs = keras.Input((10, 10, 3))
    x = layers.ReLU()(BN(name="bn_1")(layers.Conv2D(8, 3, strides=2, use_bias=False)(inputs)))
    y = layers.ReLU()(BN(name="bn_2")(layers.DepthwiseConv2D(3, padding="same")(x)))
    y = BN(name="bn_3")(layers.Conv2D(8, 1, use_bias=False)(y))
    x = layers.Add()([x, y])
    x = layers.ReLU()(BN(name="bn_4")(layers.SeparableConv2D(8, 3)(x)))
    x = layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x), name="separable")


def sequence():
    """Conv1D over time, then Dense layers."""
    inputs = keras.Input((12, 4))
    x = layers.ReLU()(BN(name="bn_1")(layers.Conv1D(8, 3)(inputs)))
    x = layers.ReLU()(BN(name="bn_2")(layers.Conv1D(8, 3, use_bias=False)(x)))
    x = layers.Dense(16)(layers.Flatten()(x))
    x = layers.ReLU()(BN(name="bn_3")(x))
    return keras.Model(inputs, layers.Dense(5, activation="softmax")(x), name="sequence")


NETS = {"residual": tiny_models.residual, "separable": separable, "sequence": sequence}


def made(net):
    """A network whose BatchNorm has statistics of the data and learned numbers; data for it."""
    model = NETS[net]()
    rng = np.random.default_rng(0)
    x = rng.normal(0.5, 2, (64, *model.input_shape[1:])).astype("float32")
    for layer in model.layers:
        if isinstance(layer, BN):
            for weight, mean in ((layer.gamma, 1), (layer.beta, 0)):
                weight.assign(rng.normal(mean, 0.3, weight.shape))
    kerasnorm.estimate_statistics(model, x)
    return model, x, rng.integers(5, size=len(x))


def swapped(net, target):
    model, x, y = made(net)
    swap = kerasnorm.swap_norms(model, target, None if target == "weight" else x)
    assert not swap.report.refused
    return swap.model, x[:EXAMPLES], y[:EXAMPLES]


def mean_loss(y, answers):
    return keras.ops.mean(keras.losses.sparse_categorical_crossentropy(y, answers))


def gradients_on_jax(model, x, y):
    """Of single examples by `jax.vmap`, the same by a loop, and of the whole batch."""
    import jax

    variables = [[v.value for v in values] for values in _variables(model)]

    def loss(trainable, others, x, y):
        return mean_loss(y, model.stateless_call(trainable, others, x, training=True)[0])

    gradient = jax.grad(loss)

    def of_one(trainable, others, x, y):
        return gradient(trainable, others, x[None], y[None])

    at_once = jax.jit(jax.vmap(of_one, in_axes=(None, None, 0, 0)))(*variables, x, y)
    one = jax.jit(of_one)
    by_loop = [one(*variables, *example) for example in zip(x, y, strict=True)]
    return at_once, _stacked(by_loop), jax.jit(gradient)(*variables, x, y)


def gradients_on_tensorflow(model, x, y):
    """Of single examples by `tf.vectorized_map`, the same by a loop, and of the whole batch."""
    import tensorflow as tf

    x, y = tf.constant(x), tf.constant(y)

    def gradient(x, y):
        with tf.GradientTape() as tape:
            loss = mean_loss(y, model(x, training=True))
        return tape.gradient(loss, [v.value for v in model.trainable_variables])

    def of_one(example):
        return gradient(*(values[None] for values in example))

    # TensorFlow 2.21 cannot vectorize a depthwise convolution whose filter all examples share
    # ("expected to be not loop invariant"): there the map is a loop in its graph.
    at_once = tf.vectorized_map(of_one, (x, y), fallback_to_while_loop=model.name == "separable")
    by_loop = [of_one(example) for example in zip(x, y, strict=True)]
    return at_once, _stacked(by_loop), gradient(x, y)


def _variables(model):
    return model.trainable_variables, model.non_trainable_variables


def _stacked(examples):
    return [np.stack(tensors) for tensors in zip(*examples, strict=True)]


def gradients(model, x, y):
    backend = keras.backend.backend()
    if backend == "jax":
        return gradients_on_jax(model, x, y)
    if backend == "tensorflow":
        return gradients_on_tensorflow(model, x, y)
    return pytest.skip(f"not written for {backend}")


def assert_examples_stand_alone(model, x, y):
    at_once, by_loop, of_batch = gradients(model, x, y)
    names = [variable.path for variable in model.trainable_variables]
    assert len(at_once) == len(by_loop) == len(of_batch) == len(names) > 0
    for name, one, other, batch in zip(names, at_once, by_loop, of_batch, strict=True):
        assert_close(one, other, factor=ROUNDING, what=f"{name}, of each example")
        mean = np.mean(np.asarray(one), axis=0)
        assert_close(mean, batch, factor=ROUNDING, what=f"{name}, of the batch")


@pytest.mark.usefixtures("closed_form")
@pytest.mark.parametrize(
    ("net", "target"),
    [
        pytest.param(net, target, marks=[pytest.mark.slow] * ((net, target) not in EVERYDAY))
        for net in NETS
        for target in TARGETS
    ],
)
def test_swapped(target, net):
    model, x, y = swapped(net, target)
    assert model.non_trainable_variables == []
    assert_examples_stand_alone(model, x, y)


@pytest.mark.parametrize("net", NETS)
def test_batch_norm_in_training_does_not(net):
    model, x, y = made(net)
    with pytest.raises(AssertionError, match="of the batch: relative error"):
        assert_examples_stand_alone(model, x[:EXAMPLES], y[:EXAMPLES])


def test_one_batch_norm_that_stays_is_enough():
    model, x, y = made("sequence")
    swap = kerasnorm.swap_norms(model, "weight", sites=["bn_1", "bn_3"])
    assert len(swap.model.non_trainable_variables) == 2
    with pytest.raises(AssertionError, match="of the batch: relative error"):
        assert_examples_stand_alone(swap.model, x[:EXAMPLES], y[:EXAMPLES])


def test_frozen_batch_norm_does():
    model, x, y = made("sequence")
    for layer in model.layers:
        if isinstance(layer, BN):
            layer.trainable = False
    assert_examples_stand_alone(model, x[:EXAMPLES], y[:EXAMPLES])
