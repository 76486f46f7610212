"""The signs of the channels in front of a layer norm make them cancel in its mean."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kerasnorm
from kerasnorm import LayerNorm

layers = keras.layers
BN = layers.BatchNormalization


def alike(make, shape, rows=600):
    """A model whose channels rise and fall together, as with light, and such data."""
    keras.utils.set_random_seed(0)
    inputs = keras.Input(shape)
    x = make(inputs)
    model = keras.Model(inputs, BN(name="bn")(x))
    rng = np.random.default_rng(0)
    data = rng.uniform(0.2, 2, (rows, *[1] * len(shape))) * rng.uniform(0.5, 1.5, (rows, *shape))
    kerasnorm.estimate_statistics(model, data.astype("float32"))
    model.get_layer("bn").beta.assign(rng.normal(size=model.output_shape[-1]))
    return model, data.astype("float32")


CASES = {
    "Dense": (lambda x: layers.Dense(16, kernel_initializer="random_uniform")(x), (12,)),
    "positive Dense": (
        lambda x: layers.Dense(16, kernel_initializer=keras.initializers.RandomUniform(0, 1))(x),
        (12,),
    ),
    "Conv2D": (lambda x: layers.Conv2D(16, 3)(x), (8, 8, 4)),
    "groups": (lambda x: layers.Conv2D(16, 3, groups=2)(x), (8, 8, 4)),
    "transposed": (lambda x: layers.Conv2DTranspose(16, 3)(x), (6, 6, 4)),
    "depthwise": (lambda x: layers.DepthwiseConv2D(3, depth_multiplier=4)(x), (8, 8, 4)),
    "separable": (lambda x: layers.SeparableConv2D(16, 3)(x), (8, 8, 4)),
    "einsum": (lambda x: layers.EinsumDense("abc,cd->abd", (5, 16), bias_axes="d")(x), (5, 8)),
    "activation": (lambda x: layers.ReLU()(layers.Dense(16)(x)), (12,)),
}


@pytest.mark.parametrize("case", CASES)
def test_the_mean_of_a_sample_varies_less(case):
    model, data = alike(*CASES[case])
    swap = kerasnorm.swap_norms(model, "layer")
    (norm,) = (layer for layer in swap.model.layers if isinstance(layer, LayerNorm))
    signs = np.sign(norm.gamma)
    assert set(signs) <= {-1.0, 1.0}
    y = np.asarray(model(data)).astype("float64")
    axes = tuple(range(1, y.ndim)) if norm.axis == "sample" else -1
    signed, plain = (np.square((s * y).mean(axes)).mean() for s in (signs, 1.0))
    # that much at least in every case; all signs alike would leave it as it is
    assert signed < 0.5 * plain


@pytest.mark.parametrize("damping", [0, 1e6])
def test_the_gain_undoes_them(damping):
    """On the data that the statistics are of, what the source puts out comes again on average."""
    model, data = alike(*CASES["Conv2D"])
    swap = kerasnorm.swap_norms(model, "layer", damping=damping)
    source, swapped = (np.asarray(m(data)).reshape(-1, 16) for m in (model, swap.model))
    for expected, received in zip(source.T, swapped.T, strict=True):
        # a layer norm loses some of it; with a gain of the wrong sign this would be negative
        assert np.corrcoef(expected, received)[0, 1] > 0.7


def test_a_maximum_in_between_is_of_the_channel_itself():
    inputs = keras.Input((8, 8, 3))
    x = layers.MaxPooling2D()(layers.Conv2D(8, 3, name="conv")(inputs))
    model = keras.Model(inputs, BN(name="bn")(x))
    swap = kerasnorm.swap_norms(model, "layer")
    (norm,) = (layer for layer in swap.model.layers if isinstance(layer, LayerNorm))
    assert (np.asarray(norm.gamma) > 0).all()
