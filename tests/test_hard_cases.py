"""Models that look ordinary and are not: what must stay exact, or be refused aloud."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from fidelity import assert_no_batch_norm, randomize
from keras import layers, ops

import kerasnorm
from kerasnorm import SwapError, WeightNorm

BN = layers.BatchNormalization


def built(build, *shape, dtype="float32"):
    inputs = keras.Input(shape, dtype=dtype)
    model = keras.Model(inputs, build(inputs))
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if variable.path.endswith("bias"):
            variable.assign(rng.normal(size=variable.shape))
    x = rng.normal(size=(8, *shape)).astype(dtype)
    randomize(model, x)
    return model, x


def assert_same(source, other, x):
    expected, received = np.asarray(source(x)), np.asarray(other(x))
    assert np.abs(expected - received).max() <= 1e-4 * expected.std()


def first(kind, *args, **kwargs):
    return lambda x: BN(axis=1)(kind(*args, data_format="channels_first", **kwargs)(x))


# Keras 3.15 on TensorFlow adds a bias along the last axis wherever its size is the channels'.
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (first(layers.Conv1D, 8, 3, padding="same", use_bias=False), (3, 8)),
        (first(layers.SeparableConv1D, 8, 3, padding="same"), (3, 8)),
        (first(layers.Conv1DTranspose, 8, 3, padding="same"), (3, 8)),
        (first(layers.Conv1D, 5, 3, padding="same", use_bias=False), (3, 8)),
        (lambda x: BN(axis=2)(layers.EinsumDense("abc,cde->abde", (5, 4, 4))(x)), (5, 6)),
        (
            lambda x: BN(axis=2)(layers.EinsumDense("abcd,bcd->abcd", (8, 8, 4))(x)),
            (8, 8, 4),
        ),
        (lambda x: BN(axis=1)(x), (8, 8, 8)),
        (lambda x: BN(axis=1)(x), (4, 4)),
        (lambda x: BN(axis=2)(x), (5, 8, 8)),
        (lambda x: BN(axis=1)(x), (8, 8, 5)),
    ],
)
def test_channels_before_the_last_axis(build, shape):
    source, x = built(build, *shape)
    swap = kerasnorm.swap_norms(source, "weight", strict=True)
    assert_same(source, swap.model, x)
    for model in (swap.model, source):
        folded = kerasnorm.fold_norms(model)
        assert_same(source, folded, x)
        assert_no_batch_norm(folded)


def test_a_model_called_in_training_mode():
    inner = keras.Sequential([keras.Input((6,)), layers.Dense(4), BN(name="bn")], name="inner")
    source, _ = built(lambda x: inner(x, training=True), 6)
    (site,) = kerasnorm.swap_norms(source, "weight").report.sites
    assert site.verdict == "refused"
    assert "training=True" in site.reason


def test_models_that_do_more_than_their_graph():
    class Doubled(keras.Sequential):
        def call(self, inputs, training=None, mask=None):
            return 2 * super().call(inputs, training=training)

    class WithHead(keras.Model):
        def __init__(self, inputs, outputs, temperature=1.0):
            super().__init__(inputs, outputs)
            self.temperature = temperature

        def call(self, inputs, training=None):
            return super().call(inputs, training=training) / self.temperature

    doubled = Doubled([keras.Input((4,)), BN()])
    inputs = keras.Input((4,))
    with_head = WithHead(inputs, BN()(inputs), temperature=3.0)
    for model in (doubled, with_head):
        with pytest.raises(SwapError, match="a graph, and a `call` of its own"):
            kerasnorm.swap_norms(model, "weight")


def test_a_class_of_the_users_own_becomes_a_plain_model_and_says_so():
    class Net(keras.Model):
        def __init__(self, units=4, **kwargs):
            inputs = keras.Input((4,))
            super().__init__(inputs, BN(name="bn")(layers.Dense(units)(inputs)), **kwargs)

    source = Net(units=5)
    swap = kerasnorm.swap_norms(source, "weight")
    x = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    assert_same(source, swap.model, x)
    assert any("was a Net; it is a plain functional model now" in n for n in swap.report.notes)


def test_functions_of_the_users_own():
    def gelu(x):  # has the name of one of Keras's
        return ops.sin(3 * x)

    def own(x):
        return ops.cos(x)

    source, x = built(
        lambda i: BN()(
            layers.Lambda(lambda t: ops.tanh(t))(
                layers.Activation(gelu)(layers.Dense(4, activation=own)(i))
            )
        ),
        6,
    )
    swap = kerasnorm.swap_norms(source, "weight")
    assert_same(source, swap.model, x)
    assert_same(source, kerasnorm.fold_norms(swap.model), x)


def test_state_that_neither_config_nor_variables_tell_is_noticed():
    class Offset(layers.Layer):
        def build(self, shape):
            self.offset = 0.0

        def call(self, x):
            return x + self.offset

        def compute_output_shape(self, shape):
            return shape

    source, _ = built(lambda i: BN(name="bn")(Offset(name="offset")(i)), 6)
    source.get_layer("offset").offset = 5.0
    source.get_layer("bn").gamma.assign(np.ones(6))
    with pytest.raises(SwapError, match=r"differs from its source at '.*standard deviations"):
        kerasnorm.swap_norms(source, "weight")


def test_a_variable_in_the_graph_is_not_shared_with_the_copy():
    dense = layers.Dense(6)
    inputs = keras.Input((6,))
    source = keras.Model(inputs, BN()(ops.matmul(dense(inputs), dense.kernel)))
    with pytest.raises(SwapError, match=r"must not take a layer's variable"):
        kerasnorm.swap_norms(source, "weight")


def test_integers_into_batch_norm():
    inputs = keras.Input((6,), dtype="uint8")
    source = keras.Model(inputs, BN()(inputs))
    swap = kerasnorm.swap_norms(source, "weight")
    assert_same(source, swap.model, np.arange(48, dtype="uint8").reshape(8, 6))


def test_large_gains_under_float16():
    inputs = keras.Input((4,))
    norm = BN(epsilon=1e-5, dtype="mixed_float16", name="bn")
    source = keras.Model(inputs, norm(layers.ReLU(dtype="mixed_float16")(inputs)))
    norm.moving_mean.assign([300.0] * 4)
    norm.moving_variance.assign([1e-6] * 4)
    x = np.full((2, 4), 300.0, "float32")
    swap = kerasnorm.swap_norms(source, "weight")
    assert np.isfinite(np.asarray(swap.model(x))).all()


@pytest.mark.parametrize("layer", [layers.LSTM(3), layers.GRU(3), layers.SimpleRNN(3)])
def test_wrapped_recurrent_layers_fold(layer):
    inputs = keras.Input((5, 4))
    model = keras.Model(inputs, WeightNorm(layer)(inputs))
    for variable in model.variables:
        variable.assign(variable * 1.5)
    folded = kerasnorm.fold_norms(model)
    assert type(folded.layers[-1]) is type(layer)
    assert_same(model, folded, np.random.default_rng(0).normal(size=(2, 5, 4)).astype("float32"))


def test_text_is_not_compared_and_said_so():
    inputs = keras.Input((1,), dtype="string")
    words = layers.StringLookup(vocabulary=["a", "b"], output_mode="one_hot")(inputs)
    source = keras.Model(inputs, BN()(layers.Dense(3)(words)))
    swap = kerasnorm.swap_norms(source, "weight")
    assert any("not compared with its source" in note for note in swap.report.warnings)
    x = np.array([["a"], ["b"], ["c"]])
    np.testing.assert_allclose(source(x), swap.model(x), atol=1e-5)


def test_strict_counts_only_what_was_asked_for():
    inputs = keras.Input((4,))
    source = keras.Model(inputs, BN(name="b")(layers.ReLU()(BN(name="a")(inputs))))
    swap = kerasnorm.swap_norms(source, "weight", sites=["b"], strict=True)
    assert [site.becomes for site in swap.report.sites] == ["BatchNorm", "WeightNorm(Affine)"]
    with pytest.raises(SwapError, match=r"Write sites=\['b'\]"):
        kerasnorm.swap_norms(source, "weight", sites="b")
