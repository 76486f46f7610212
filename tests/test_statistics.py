"""estimate_statistics: exact, however the data is cut into batches."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers

from kerasnorm import BatchNorm, KerasNormError, estimate_statistics
from kerasnorm.errors import DataError
from kerasnorm.layers.batch_norm import BATCH_NORMS


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def deep(kind):
    inputs = keras.Input((6, 6, 3))
    x = kind(name="first")(layers.Conv2D(4, 3)(inputs))
    x = layers.Dropout(0.5)(layers.ReLU()(x))
    return keras.Model(inputs, kind(name="second")(layers.Conv2D(4, 3)(x)))


@pytest.mark.parametrize("kind", [BatchNorm, layers.BatchNormalization])
@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_one_layer_gets_the_statistics_of_the_whole_set(kind, batch_size):
    x = normal(100, 5) * 3 + 1e3
    model = keras.Sequential([keras.Input((5,)), kind()])
    estimate_statistics(model, x, batch_size=batch_size)
    _, _, mean, variance = model.get_weights()
    np.testing.assert_allclose(mean, x.astype("float64").mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, x.astype("float64").var(0), rtol=1e-5)


@pytest.mark.parametrize("kind", [BatchNorm, layers.BatchNormalization])
def test_one_batch_makes_inference_agree_with_training(kind):
    x = normal(32, 6, 6, 3)
    model = deep(kind)
    estimate_statistics(model, x, batch_size=32)
    before = model.get_weights()
    second = model.get_layer("second")
    seen = keras.Model(model.input, second.input)
    t = np.asarray(seen(x))
    np.testing.assert_allclose(second.moving_mean, t.mean((0, 1, 2)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(second.moving_variance, t.var((0, 1, 2)), rtol=1e-4)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_iterables_and_several_inputs():
    x = normal(20, 4)
    reference = keras.Sequential([keras.Input((4,)), BatchNorm()])
    estimate_statistics(reference, x)
    batches = ((x[i : i + 6], None) for i in range(0, 20, 6))
    model = keras.Sequential([keras.Input((4,)), BatchNorm()])
    estimate_statistics(model, batches)
    np.testing.assert_allclose(model.get_weights()[3], reference.get_weights()[3], rtol=1e-6)
    a, b = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    model = keras.Model({"a": a, "b": b}, BatchNorm()(a + b))
    estimate_statistics(model, {"a": x, "b": x})
    np.testing.assert_allclose(model.get_weights()[3], 4 * reference.get_weights()[3], rtol=1e-5)


def test_masked_steps_do_not_count():
    x = normal(8, 5, 3) + 2
    x[:, 3:] = 0
    model = keras.Sequential([keras.Input((5, 3)), layers.Masking(), BatchNorm()])
    estimate_statistics(model, x, batch_size=3)
    np.testing.assert_allclose(model.get_weights()[2], x[:, :3].mean((0, 1)), rtol=1e-5)


def test_layers_inside_other_layers_and_frozen_ones():
    inner = keras.Sequential([keras.Input((3,)), BatchNorm()])
    inner.trainable = False
    model = keras.Sequential([keras.Input((4, 3)), layers.TimeDistributed(inner)])
    x = normal(8, 4, 3) * 2
    estimate_statistics(model, x)
    np.testing.assert_allclose(inner.layers[0].moving_variance, x.var((0, 1)), rtol=1e-4)


def test_a_failing_batch_leaves_the_layers_as_they_were():
    model = keras.Sequential([keras.Input((3,)), BatchNorm()])
    with pytest.raises(ValueError, match="incompatible with the layer"):
        estimate_statistics(model, iter([normal(4, 3), normal(4, 5)]))
    np.testing.assert_array_equal(model.layers[0].moving_mean, 0)


class ByCode(keras.Model):
    """Takes its statistics in a list of layers, and has no config."""

    def __init__(self):
        super().__init__()
        self.norms = [BatchNorm(), layers.BatchNormalization(), BatchNorm()]

    def build(self, shape):
        for norm in self.norms:
            norm.build(shape)

    def call(self, x):
        return self.norms[1](self.norms[0](x) * 2)


@pytest.mark.parametrize("make", [lambda: deep(layers.BatchNormalization), lambda: ByCode()])
def test_the_model_answers_as_before_until_all_data_is_seen(make):
    model, x = make(), normal(40, 6, 6, 3)
    expected = np.asarray(model(x[:4]))
    own = [layer for layer in model._flatten_layers() if isinstance(layer, layers.Layer)]
    given = [set(vars(layer)) for layer in own]
    seen = []

    def batches():
        for start in range(0, 40, 8):
            yield x[start : start + 8]
            seen.append(np.asarray(model(x[:4])))
            assert [set(vars(layer)) for layer in own] == given

    estimate_statistics(model, batches())
    assert len(seen) == 5
    for answer in seen:
        np.testing.assert_array_equal(answer, expected)
    first = next(layer for layer in own if isinstance(layer, BATCH_NORMS))
    assert (np.asarray(model(x[:4])) != expected).any()
    assert (np.asarray(first.moving_variance) != 1).any()


def test_moments_are_taken_in_float64():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(20_000, 2)) * 1e-2 + 100).astype("float32")
    model = keras.Sequential([keras.Input((2,)), BatchNorm()])
    estimate_statistics(model, x, batch_size=20_000)
    _, _, mean, variance = model.get_weights()
    np.testing.assert_array_equal(mean, x.astype("float64").mean(0).astype("float32"))
    np.testing.assert_allclose(variance, x.astype("float64").var(0), rtol=1e-7)


@pytest.mark.parametrize("kind", [list, tuple])
def test_a_list_of_batches_for_one_input_is_refused(kind):
    model = keras.Sequential([keras.Input((3,)), BatchNorm()], name="one")
    batches = kind([normal(4, 3), normal(4, 3, seed=1)])
    with pytest.raises(KerasNormError, match=r"model 'one': A list stands for.*\n?.*iter"):
        estimate_statistics(model, batches)
    estimate_statistics(model, iter(batches))
    np.testing.assert_allclose(model.get_weights()[2], np.concatenate(batches).mean(0), rtol=1e-5)


def test_refusals_say_why():
    plain = keras.Sequential([keras.Input((3,)), layers.Dense(2)], name="plain")
    with pytest.raises(KerasNormError, match="model 'plain': estimate_statistics needs a model"):
        estimate_statistics(plain, normal(4, 3))
    model = keras.Sequential([keras.Input((3,)), BatchNorm(name="bn")])
    with pytest.raises(KerasNormError, match="layer 'bn': The inputs of a BatchNorm must be"):
        estimate_statistics(model, np.full((4, 3), np.inf, "float32"))
    with pytest.raises(KerasNormError, match=r"A model must be given. Received: str"):
        estimate_statistics("model.keras", normal(4, 3))
    for nothing in ([], iter(())):
        with pytest.raises(DataError, match="model 'plain': The data must hold samples"):
            estimate_statistics(plain, nothing)
    with pytest.raises(DataError, match="`batch_size` must be a whole number, 1 at least"):
        estimate_statistics(plain, normal(4, 3), batch_size=0)
    with pytest.raises(KerasNormError, match="arrays or an iterable of batches"):
        estimate_statistics(model, 3)
