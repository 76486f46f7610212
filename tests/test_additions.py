"""Sums in a layer's code: `+` broadcasts, and `keras.ops.add` does not always on TensorFlow."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from fidelity import every_site
from helpers import assert_close
from keras import layers, ops

import kerasnorm
from kerasnorm.graph.execute import run
from kerasnorm.graph.trace import trace

SUMS = {
    "plus": lambda x, column: x + column,
    "add": ops.add,
    "whole": lambda x, column: x + ops.broadcast_to(column, (6, 6)),
}


class Columns(keras.Layer):
    """A BatchNorm, and a column added to as many rows as there are channels."""

    def __init__(self, add):
        super().__init__()
        self.add = add
        self.first, self.norm = layers.Dense(6), layers.BatchNormalization()
        self.last = layers.Dense(6)

    def build(self, shape):
        for part in (self.first, self.norm, self.last):
            part.build(shape)
        self.column = self.add_weight(
            shape=(6, 1), initializer=keras.initializers.RandomNormal(stddev=5.0)
        )

    def call(self, x):
        return ops.relu(self.last(self.add(self.norm(self.first(x)), self.column)))


def model_of(add):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6, 6))
    model = keras.Model(inputs, Columns(add)(inputs))
    norm = model.layers[1].norm
    norm.moving_mean.assign(np.linspace(-1, 1, 6))
    norm.gamma.assign(np.linspace(0.5, 2, 6))
    return model


def samples(count):
    return np.random.default_rng(0).normal(size=(count, 6, 6)).astype("float32")


@pytest.mark.parametrize("add", SUMS.values(), ids=SUMS)
def test_a_traced_sum_is_what_the_code_computes(add):
    layer, x = model_of(add).layers[1], samples(4)
    graph = trace(layer, (keras.Input((6, 6)),), {})
    (y,) = run(graph, [x], [graph.outputs])
    assert_close(y, layer(x))


def test_a_sum_of_random_inputs_that_the_code_refuses_is_taken_for_plus():
    class Refusing(Columns):
        def call(self, x):
            if not isinstance(x, keras.KerasTensor) and x.shape[0] == 2:
                raise ValueError("not two samples")
            return super().call(x)

    layer, x = Refusing(SUMS["plus"]), samples(4)
    layer.build((None, 6, 6))
    graph = trace(layer, (keras.Input((6, 6)),), {})
    (y,) = run(graph, [x], [graph.outputs])
    assert_close(y, layer(x))


def test_behind_a_sum_a_site_is_fitted_as_behind_the_same_sum_written_out(closed_form):
    x = samples(200)
    swaps = [
        kerasnorm.swap_norms(model_of(SUMS[name]), "layer", x, sites=every_site)
        for name in ("plus", "whole")
    ]
    assert_close(swaps[0].model(x), swaps[1].model(x), factor=10)  # regressions carry rounding on


def test_a_functional_model_adds_as_keras_does():
    inputs = keras.Input((6, 6))
    y = layers.BatchNormalization()(layers.Dense(6)(inputs))
    model = keras.Model(inputs, layers.Dense(2)(y + np.arange(6, dtype="float32")[:, None]))
    x = samples(10)
    swap = kerasnorm.swap_norms(model, "weight")
    assert [site.verdict for site in swap.report.sites] == ["exact"]
    assert_close(swap.model(x), model(x))
