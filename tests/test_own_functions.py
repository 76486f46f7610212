"""Functions that a layer keeps of itself compute with the weights of the layer that keeps them."""

from __future__ import annotations

import functools
import types

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny_models
import tiny_state
from fidelity import randomize
from keras import layers, ops
from storage import assert_shares_no_storage, bits, storage_of

import kerasnorm
from kerasnorm import SwapError

X = np.random.default_rng(0).normal(size=(16, 4)).astype("float32")
CLASSES = {"by config": tiny_state.ScaleWithConfig, "by attributes": tiny_state.Scale}


def model_of(layer, *more):
    """The layer, a Dense and a BatchNorm in a graph."""
    inputs = keras.Input((4,))
    x = layer(inputs)
    for step in more:
        x = step(x)
    return keras.Model(inputs, layers.BatchNormalization(name="norm")(layers.Dense(3)(x)))


def weights_in(layer) -> list[keras.Variable]:
    """The weights that a layer uses in a call on X, by its gradients."""
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(layer(X) ** 2)
    gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
    used = zip(layer.trainable_variables, gradients, strict=True)
    return [v for v, gradient in used if gradient is not None and np.any(gradient)]


def assert_computes_by_itself(source, clone) -> None:
    """A clone learns where its source does, and does not follow when that is written to."""
    assert weights_in(source)
    assert [v.name for v in weights_in(clone)] == [v.name for v in weights_in(source)]
    answers = np.array(clone(X))
    before = source.get_weights()
    np.testing.assert_allclose(source(X), answers, atol=1e-5)
    source.set_weights([7 * weight for weight in before])
    np.testing.assert_array_equal(clone(X), answers)
    source.set_weights(before)


@pytest.mark.parametrize("path", CLASSES)
@pytest.mark.parametrize("function", tiny_state.FUNCTIONS)
def test_in_a_graph(path, function):
    source = model_of(CLASSES[path](function, name="scale"))
    swapped = kerasnorm.swap_norms(source, "weight", strict=True).model
    assert type(swapped.get_layer("scale")) is CLASSES[path]
    assert_computes_by_itself(source.get_layer("scale"), swapped.get_layer("scale"))
    assert_shares_no_storage(source, swapped)


@pytest.mark.parametrize("path", CLASSES)
@pytest.mark.parametrize("place", list(tiny_state.PLACES)[1:])
@pytest.mark.parametrize("function", ["a lambda", "a partial", "a closure over a layer in it"])
def test_kept_elsewhere(path, place, function):
    source = model_of(CLASSES[path](function, place, name="scale"))
    swapped = kerasnorm.swap_norms(source, "weight", strict=True).model
    assert_computes_by_itself(source.get_layer("scale"), swapped.get_layer("scale"))
    assert_shares_no_storage(source, swapped)


class Net(keras.Model):
    """A layer with a function of itself beside a BatchNorm, in code."""

    def __init__(self, scale):
        super().__init__(name="net")
        self.scale = scale
        self.dense, self.norm = layers.Dense(3, name="dense"), layers.BatchNormalization()
        self.head = lambda x: self.norm(self.dense(x))

    def call(self, x):
        return self.head(self.scale(x))


class Deep(layers.Layer):
    def __init__(self, net, **kwargs):
        super().__init__(**kwargs)
        self.nets = [net]

    def call(self, x):
        return self.nets[0](x)


@pytest.mark.parametrize("path", CLASSES)
@pytest.mark.parametrize("function", tiny_state.FUNCTIONS)
def test_in_code(path, function):
    source = Net(CLASSES[path](function, name="scale"))
    source(X)
    swapped = kerasnorm.swap_norms(source, "weight", strict=True).model
    assert_computes_by_itself(source.scale, swapped.scale)
    assert_shares_no_storage(source, swapped)
    assert swapped.dense is not source.dense
    assert {"kernel", "bias", "g"} <= {v.name for v in weights_in(swapped)}


@pytest.mark.parametrize("path", CLASSES)
@pytest.mark.parametrize("function", ["a lambda", "a partial", "a bound method"])
def test_two_deep(path, function):
    net = Net(CLASSES[path](function, name="scale"))
    source = model_of(Deep(net, name="deep"))
    source(X)
    swapped = kerasnorm.swap_norms(source, "weight").model
    clone = swapped.get_layer("deep").nets[0]
    assert_computes_by_itself(net.scale, clone.scale)
    assert_shares_no_storage(source, swapped)


@pytest.mark.parametrize("function", ["a lambda", "a bound method", "a default"])
def test_a_model_from_a_file(function, tmp_path):
    model_of(tiny_state.ScaleWithConfig(function, name="scale")).save(tmp_path / "source.keras")
    source = kerasnorm.load_model(tmp_path / "source.keras")
    swapped = kerasnorm.swap_norms(source, "weight", strict=True).model
    assert_computes_by_itself(source.get_layer("scale"), swapped.get_layer("scale"))
    swapped.save(tmp_path / "swapped.keras")
    loaded = kerasnorm.load_model(tmp_path / "swapped.keras")
    assert_computes_by_itself(swapped.get_layer("scale"), loaded.get_layer("scale"))
    np.testing.assert_array_equal(loaded(X), swapped(X))
    assert_shares_no_storage(swapped, kerasnorm.fold_norms(loaded))


def test_weights_from_a_file_reach_the_clone(tmp_path):
    source = Net(tiny_state.Scale(name="scale"))
    source(X)
    swapped = kerasnorm.swap_norms(source, "weight").model
    swapped.scale.scale.assign([1.0, 2.0, 3.0, 4.0])
    swapped.save_weights(tmp_path / "swapped.weights.h5")
    again = kerasnorm.swap_norms(source, "weight").model
    again.load_weights(tmp_path / "swapped.weights.h5")
    np.testing.assert_array_equal(again(X), swapped(X))
    np.testing.assert_array_equal(source.scale.scale, [2.0] * 4)


def test_what_two_functions_have_in_common_they_have_in_the_clone():
    def counter():
        count = 0

        def step():
            nonlocal count
            count += 1

        return step, lambda: count

    class Counting(tiny_state.Scale):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.step, self.count = counter()

    source = model_of(Counting(name="scale"))
    layer = source.get_layer("scale")
    layer.step()
    clone = kerasnorm.swap_norms(source, "weight").model.get_layer("scale")
    clone.step()
    clone.step()
    assert [layer.count(), clone.count()] == [1, 3]


def test_functions_of_no_layer_are_the_same_ones():
    """A config knows them by name; a registered one has to be found by its name again."""
    constant = np.ones(4, "float32")

    @keras.saving.register_keras_serializable(package="test_own_functions")
    def registered(x):
        return x * constant

    def plain(x):
        return x

    source = model_of(layers.Dense(4, registered, name="a"), layers.Dense(4, plain, name="b"))
    swapped = kerasnorm.swap_norms(source, "weight").model
    assert swapped.get_layer("a").activation is registered
    assert swapped.get_layer("b").activation is plain


LEAKED: dict = {}
MODULE = types.ModuleType("a_module")


class Registry:
    layer = None


class ByItself:
    """A callable that `copy.copy` gives back as it is."""

    def __init__(self, layer):
        self.layer = layer

    def __copy__(self):
        return self


def _leaked():
    return LEAKED["layer"]


MODULE.Registry = Registry


class OfRegistry(Registry):
    """An object that reads what its class holds."""

    def __call__(self, x):
        return x * self.layer.scale


LEADING_OUT = {
    "a module": lambda layer: lambda x: x * MODULE.layer.scale,
    "a class": lambda layer: lambda x: x * Registry.layer.scale,
    "a class in a module": lambda layer: lambda x: x * MODULE.Registry.layer(x),
    "the class of an object": lambda layer: OfRegistry(),
    "a global name": lambda layer: lambda x: x * LEAKED["layer"].scale,
    "a global function": lambda layer: lambda x: x * _leaked().scale,
    "a compiled function": lambda layer: tf.function(lambda x: x * layer.scale),
    "a cache": lambda layer: functools.lru_cache(lambda: layer.scale),
    "an object that is not copied": ByItself,
}


@pytest.mark.parametrize(
    ("path", "function"),
    [
        *(("by attributes", function) for function in LEADING_OUT),
        ("by config", "a global name"),
        ("by config", "a global function"),
        ("by config", "a module"),
    ],
)
def test_what_leads_to_the_source_is_refused(path, function, monkeypatch):
    class Own(CLASSES[path]):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.extra = LEADING_OUT[function](self)

        def get_config(self):
            return {"name": super().get_config()["name"]}

    source = model_of(Own(name="scale"))
    LEAKED["layer"] = MODULE.layer = source.get_layer("scale")
    monkeypatch.setattr(Registry, "layer", source.get_layer("scale"))
    with pytest.raises(
        SwapError,
        match=r"layer 'scale': The copy of a layer must use no layer or variable of its source\. "
        r"Received a Own whose attribute `extra` leads to the source's .* Have the code take",
    ):
        kerasnorm.swap_norms(source, "weight")


def test_compiled_functions_that_a_constructor_makes_are_the_clones_own():
    class Own(tiny_state.ScaleWithConfig):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.apply = tf.function(lambda x: x * self.scale)

        def get_config(self):
            return {"name": self.name}

    source = model_of(Own(name="scale"))
    swapped = kerasnorm.swap_norms(source, "weight").model
    assert_computes_by_itself(source.get_layer("scale"), swapped.get_layer("scale"))


def test_methods_that_lead_to_the_source_are_refused():
    class Own(tiny_state.Scale):
        @property
        def leaked(self):
            return LEAKED["layer"].inner

        def call(self, x):
            return self.leaked(x)

    source = model_of(Own(name="scale"))
    LEAKED["layer"] = source.get_layer("scale")
    with pytest.raises(SwapError, match=r"layer 'scale': .* a Own whose method `leaked` leads"):
        kerasnorm.swap_norms(source, "weight")


def test_a_lambda_over_another_layer_is_refused():
    dense = layers.Dense(4, name="dense")
    source = model_of(dense, layers.Lambda(lambda x: x @ dense.kernel, name="tied"))
    with pytest.raises(SwapError, match=r"layer 'tied': .* it holds a Dense, which the copy would"):
        kerasnorm.swap_norms(source, "weight")


def test_an_operation_that_is_given_a_layer_is_refused():
    dense = layers.Dense(4, name="dense")
    source = model_of(dense, lambda x: ops.vectorized_map(lambda row: dense.kernel @ row, x))
    with pytest.raises(SwapError, match=r"must not take a layer's variable .*'dense'"):
        kerasnorm.swap_norms(source, "weight")


@keras.saving.register_keras_serializable(package="test_own_functions")
class TellsItsLayer(layers.Layer):
    """Has the layer itself in its config."""

    def __init__(self, inner, **kwargs):
        super().__init__(**kwargs)
        self.inner = inner

    def build(self, shape):
        self.inner.build(shape)

    def call(self, x):
        return self.inner(x)

    def get_config(self):
        return {**super().get_config(), "inner": self.inner}


class WrapsALayerAsItIs(layers.Wrapper):
    def call(self, x):
        return self.layer(x)

    def get_config(self):
        return {"layer": self.layer, "name": self.name}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def test_a_layer_in_a_config_is_cloned():
    source = model_of(TellsItsLayer(layers.Dense(4), name="own"))
    swapped = kerasnorm.swap_norms(source, "weight").model
    assert_computes_by_itself(source.get_layer("own"), swapped.get_layer("own"))
    assert_shares_no_storage(source, swapped)


def test_a_layer_in_a_config_of_a_layer_of_keras_is_refused():
    source = model_of(WrapsALayerAsItIs(layers.Dense(4), name="own"))
    with pytest.raises(SwapError, match=r"layer 'own': .* it holds a Dense, which the copy would"):
        kerasnorm.swap_norms(source, "weight")


def test_methods_that_were_shadowed_on_one_layer_are_not_carried_along():
    source = model_of(layers.Dense(4, name="dense"), tiny_state.Scale(name="scale"))
    told = []
    for name in ("dense", "scale"):
        layer = source.get_layer(name)

        def reporting(weights, layer=layer, original=layer.set_weights):
            original(weights)
            told.append(layer)

        layer.set_weights = reporting
    swapped = kerasnorm.swap_norms(source, "weight").model
    assert_shares_no_storage(source, swapped)
    before = source.get_weights()
    for name in ("dense", "scale"):
        layer = swapped.get_layer(name)
        layer.set_weights([0 * weight for weight in layer.get_weights()])
        assert not any(map(np.any, layer.get_weights()))
    assert source.get_layer("dense") not in told
    assert source.get_layer("scale") not in told
    assert all(np.array_equal(a, b) for a, b in zip(before, source.get_weights(), strict=True))


def test_weights_go_into_the_model_that_they_are_loaded_into(tmp_path):
    """After two swaps in a row, whose first result has layers that WeightNorm wraps."""
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 4)).astype("float32")
    source = tiny_models.nested()
    randomize(source, x)
    first = kerasnorm.swap_norms(source, "weight", sites=["block/second"]).model
    second = kerasnorm.swap_norms(first, "weight").model
    second.save_weights(tmp_path / "second.weights.h5")
    answers, before = np.array(second(x)), [bits(storage_of(m)) for m in (source, first)]
    for variable in second.weights:
        variable.assign(0 * variable)
    second.load_weights(tmp_path / "second.weights.h5")
    np.testing.assert_array_equal(second(x), answers)
    assert [bits(storage_of(m)) for m in (source, first)] == before
    assert_shares_no_storage(first, second)
