"""Copies are built without initial values, and show nothing of it afterwards."""

from __future__ import annotations

import contextlib

import keras
import numpy as np
from keras import layers

import kerasnorm
from kerasnorm.clone.skip_init import skipped_initializers
from kerasnorm.layers import WeightNorm


def test_initializers_come_back():
    dense = layers.Dense(3, kernel_initializer="he_normal")
    wrapped = WeightNorm(layers.SeparableConv2D(4, 3, pointwise_initializer="ones"))
    convolution = wrapped.layer
    before = dense.get_config(), convolution.get_config()
    with skipped_initializers() as skip_init:
        for layer, shape in ((dense, (None, 2)), (wrapped, (None, 8, 8, 2))):
            skip_init(layer)
            layer.build(shape)
    assert (dense.get_config(), convolution.get_config()) == before
    assert all(not np.any(w) for w in (*dense.get_weights(), *wrapped.get_weights()))


def test_initializers_come_back_after_an_error():
    dense = layers.Dense(3, kernel_initializer="he_normal")
    with contextlib.suppress(RuntimeError), skipped_initializers() as skip_init:
        skip_init(dense)
        raise RuntimeError
    assert isinstance(dense.kernel_initializer, keras.initializers.HeNormal)


def test_gains_start_from_norms_again():
    layer = WeightNorm(layers.Dense(3, kernel_initializer="ones"))
    with skipped_initializers() as skip_init:
        skip_init(layer)
    layer.build((None, 4))
    np.testing.assert_allclose(layer.g, 2.0)


def test_gains_of_layers_within_are_skipped():
    layer = layers.Bidirectional(WeightNorm(layers.LSTM(3)))
    with skipped_initializers() as skip_init:
        skip_init(layer)
        layer.build((None, 4, 2))
    for half in (layer.forward_layer, layer.backward_layer):
        assert not np.any(half.g)
        assert np.all(np.any(half.layer.cell.kernel, axis=0))  # as it was drawn


def test_swapped_layers_have_the_initializers_of_their_source():
    model = keras.Sequential(
        [
            keras.Input((8, 8, 2)),
            layers.Conv2D(3, 3, kernel_initializer="he_normal"),
            layers.BatchNormalization(),
            layers.Conv2D(3, 3, kernel_initializer="he_uniform"),
        ]
    )
    swapped = kerasnorm.swap_norms(model, "weight").model
    wrapped, plain = swapped.layers
    assert isinstance(wrapped.layer.kernel_initializer, keras.initializers.HeNormal)
    assert isinstance(plain.kernel_initializer, keras.initializers.HeUniform)
