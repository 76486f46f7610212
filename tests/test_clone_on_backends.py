"""A copy keeps its numbers to itself on every backend: training it leaves its source as it was."""

from __future__ import annotations

import keras
import numpy as np
import pytest

import kerasnorm
from kerasnorm.clone.rebuild import rebuild
from kerasnorm.graph.model_graphs import graphs_of


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def residual_net():
    keras.utils.set_random_seed(7)
    inputs = keras.Input((8, 8, 3))
    x = keras.layers.Conv2D(4, 3, padding="same")(inputs)
    x = keras.layers.BatchNormalization()(x)
    y = keras.layers.SeparableConv2D(4, 3, padding="same", use_bias=False)(x)
    y = keras.layers.Dropout(0.5)(keras.layers.BatchNormalization()(y))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Add()([x, y]))
    outputs = keras.layers.Dense(5)(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, outputs)


class Scaled(keras.Model):
    """A model that owns a weight, and has no config."""

    def __init__(self):
        super().__init__()
        self.scale = self.add_weight(shape=(3,), initializer="ones", name="scale")
        self.dense, self.norm = keras.layers.Dense(5), keras.layers.BatchNormalization()
        self.pool = keras.layers.GlobalAveragePooling2D()

    def call(self, x, training=False):
        return self.pool(self.norm(self.dense(x * self.scale), training=training))


def scaled():
    keras.utils.set_random_seed(7)
    model = Scaled()
    model(np.zeros((1, 8, 8, 3), "float32"))
    return model


def clone(model):
    return rebuild(graphs_of(model), {}, compiled=False).model


def twice(model):
    return kerasnorm.fold_norms(kerasnorm.swap_norms(model, to="weight").model)


MAKERS = {
    "clone": clone,
    "weight": lambda model: kerasnorm.swap_norms(model, to="weight").model,
    "layer": lambda model: kerasnorm.swap_norms(model, to="layer").model,
    "cosine": lambda model: (
        kerasnorm.swap_norms(model, to="cosine", data=normal(32, 8, 8, 3)).model
    ),
    "folded": twice,
    "folded at once": kerasnorm.fold_norms,
}


def train(model):
    model.compile("adam", "mse")
    model.fit(normal(16, 8, 8, 3), normal(16, 5), batch_size=8, epochs=2, verbose=0)


@pytest.mark.parametrize("build", [residual_net, scaled])
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.usefixtures("closed_form")
def test_training_a_copy_leaves_its_source(maker, build):
    x = normal(4, 8, 8, 3)
    model = build()
    made = MAKERS[maker](model)
    before, of_copy = model.get_weights(), made.get_weights()
    answers = model.predict(x, verbose=0)
    train(made)
    assert any((old != new).any() for old, new in zip(of_copy, made.get_weights(), strict=True))
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    np.testing.assert_array_equal(model.predict(x, verbose=0), answers)


@pytest.mark.parametrize("build", [residual_net, scaled])
@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.usefixtures("closed_form")
def test_training_a_source_leaves_its_copy(maker, build):
    x = normal(4, 8, 8, 3)
    model = build()
    made = MAKERS[maker](model)
    before = made.get_weights()
    answers = made.predict(x, verbose=0)
    train(model)
    for old, new in zip(before, made.get_weights(), strict=True):
        np.testing.assert_array_equal(new, old)
    np.testing.assert_array_equal(made.predict(x, verbose=0), answers)
