"""Copies of layers that tell less than they hold, or tell it late."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasnorm
from kerasnorm.clone.by_config import copy_layer
from kerasnorm.errors import SwapError


@keras.saving.register_keras_serializable(package="test_copying")
class MadeByBuild(layers.Layer):
    """Makes a Dense layer in `build`, in front of the one that the constructor made."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.last = layers.Dense(3, activation="relu")

    def build(self, shape):
        self.first = layers.Dense(3, activation="tanh")
        self._layers = [self.first, self.last]
        self.first.build(shape)
        self.last.build((*shape[:-1], 3))

    def call(self, x):
        return self.last(self.first(x))


@keras.saving.register_keras_serializable(package="test_copying")
class LengthensItsName(layers.Layer):
    def __init__(self, name=None, **kwargs):
        super().__init__(name=f"{name}_0", **kwargs)
        self.dense = layers.Dense(3, name=f"{self.name}_dense")
        self.norm = layers.BatchNormalization(name=f"{self.name}_norm")

    def build(self, shape):
        self.dense.build(shape)
        self.norm.build((*shape[:-1], 3))

    def call(self, x):
        return self.norm(self.dense(x))


@keras.saving.register_keras_serializable(package="test_copying")
class PaddedLate(layers.Layer):
    """Leaves what has no weights to its first call."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.pad = layers.ZeroPadding1D(1)
        self.norm = layers.BatchNormalization()

    def build(self, shape):
        self.norm.build((shape[0], None, shape[-1]))

    def call(self, x):
        return self.norm(self.pad(x))

    def compute_output_shape(self, shape):
        return (shape[0], shape[1] + 2, shape[2])


@keras.saving.register_keras_serializable(package="test_copying")
class TellsItsVariable(layers.Layer):
    def __init__(self, scale=1.0, **kwargs):
        super().__init__(**kwargs)
        self.scale = scale

    def build(self, shape):
        self.scale = self.add_weight(shape=(), initializer=keras.initializers.Constant(self.scale))

    def call(self, x):
        return x * ops.convert_to_tensor(self.scale)

    def get_config(self):
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable(package="test_copying")
class TellsTheVariableOfADense(layers.Dense):
    def get_config(self):
        return {**super().get_config(), "units": self.kernel}


def swapped_with_norm(layer, shape=(5, 4)):
    model = keras.Sequential([keras.Input(shape), layer, layers.BatchNormalization()])
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    model(x)
    return model, kerasnorm.swap_norms(model, "weight"), x


def test_functions_stay_with_their_layers():
    layer = MadeByBuild(name="block")
    _, swap, _ = swapped_with_norm(layer)
    copy = swap.model.get_layer("block")
    assert copy.first.activation is keras.activations.tanh
    assert copy.last.activation is keras.activations.relu
    assert [copy.first.name, copy.last.name] == [layer.first.name, layer.last.name]


def test_names_stay_as_they_are():
    model, swap, _ = swapped_with_norm(LengthensItsName(name="block"))
    assert [layer.name for layer in swap.model.layers[:1]] == ["block_0"]
    copy = swap.model.layers[0]
    assert copy.dense.name == "block_0_dense"
    assert swap.report.layers["block_0/block_0_norm"] == "block_0/block_0_dense"
    assert swap.report.sites[0].verdict == "exact"
    assert model.layers[0].dense.name == "block_0_dense"


def test_layers_that_are_built_when_called():
    model, swap, x = swapped_with_norm(PaddedLate())
    assert [site.verdict for site in swap.report.sites] == ["exact"] * 2
    np.testing.assert_allclose(swap.model(x), model(x), atol=1e-6)


def test_a_variable_in_a_config_is_not_shared():
    layer = TellsItsVariable(2.0, name="scale")
    model, swap, x = swapped_with_norm(layer)
    assert swap.model.get_layer("scale").scale is not layer.scale
    np.testing.assert_allclose(swap.model(x), model(x), atol=1e-6)


def test_a_variable_in_a_config_of_a_layer_of_keras_is_refused():
    layer = TellsTheVariableOfADense(3)
    layer.build((None, 4))
    with pytest.raises(SwapError, match="it holds variables, which the copy would share"):
        copy_layer(layer)


@keras.saving.register_keras_serializable(package="test_copying")
class UnderTwoNames(layers.Layer):
    """Holds one layer under two names, which its config makes two layers of."""

    def __init__(self, first, second, **kwargs):
        super().__init__(**kwargs)
        self.first, self.second = first, second

    def build(self, shape):
        self.first.build(shape)

    def call(self, x):
        return self.second(self.first(x))

    def get_config(self):
        held = {"first": self.first, "second": self.second}
        own = {k: keras.saving.serialize_keras_object(v) for k, v in held.items()}
        return {**super().get_config(), **own}

    @classmethod
    def from_config(cls, config):
        held = {
            k: keras.saving.deserialize_keras_object(config.pop(k)) for k in ("first", "second")
        }
        return cls(**held, **config)


def test_what_a_config_makes_two_of_stays_one():
    dense = layers.Dense(4)
    model = keras.Sequential(
        [keras.Input((4,)), UnderTwoNames(dense, dense, name="twice"), layers.BatchNormalization()]
    )
    x = np.random.default_rng(0).normal(size=(8, 4)).astype("float32")
    swap = kerasnorm.swap_norms(model, "weight", strict=True)
    twice = swap.model.get_layer("twice")
    assert twice.first is twice.second
    assert twice.first is not dense
    np.testing.assert_allclose(swap.model(x), model(x), atol=1e-5)
