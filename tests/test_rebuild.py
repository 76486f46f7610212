"""A model that is built anew: its names, flags and notes, and what takes the place of its calls."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

from kerasnorm.clone.compile_state import carry_compile_state
from kerasnorm.clone.edits import Replace, Skip
from kerasnorm.clone.model_attributes import carry_attributes
from kerasnorm.clone.rebuild import rebuild
from kerasnorm.errors import SwapError
from kerasnorm.graph.model_graphs import graphs_of

X = np.random.default_rng(0).normal(size=(6, 4)).astype("float32")


def functional(*names, cls=keras.Model, **options):
    inputs = x = keras.Input((4,), name="in")
    for name in names or ("one", "two"):
        x = layers.Dense(4, name=name)(x)
    return cls(inputs, x, **options)


def rebuilt(model, edits=None, **options):
    graphs = graphs_of(model)
    found = edits(graphs.root) if edits else {}
    return rebuild(graphs, found, **options)


def call_of(graph, name):
    return next(call for call in graph.calls if call.operation.name == name)


def test_a_copy_is_the_same_and_shares_nothing():
    model = functional(name="net")
    copy = rebuilt(model)
    assert copy.notes == []
    assert copy.layers == {"in": "in", "one": "one", "two": "two"}
    assert copy.model.name == "net"
    assert type(copy.model) is type(model)
    np.testing.assert_array_equal(copy.model(X), model(X))
    assert not {id(v) for v in model.variables} & {id(v) for v in copy.model.variables}
    root = graphs_of(model).root
    output = copy.counterpart(root, model.outputs[0])
    assert output is copy.model.outputs[0]
    assert copy.counterpart(root, model.inputs[0]) is copy.model.inputs[0]
    for name in ("one", "two"):
        assert copy.copies[id(model.get_layer(name))] is copy.model.get_layer(name)


@pytest.mark.parametrize("sequential", [True, False])
def test_layers_are_replaced_skipped_and_called_in_front(sequential):
    if sequential:
        stack = [layers.Dense(4, name=name) for name in ("one", "two", "three")]
        model = keras.Sequential([keras.Input((4,), name="in"), *stack])
    else:
        model = functional("one", "two", "three")

    def edits(graph):
        made = {}
        for name, factor in (("first", 2.0), ("second", 3.0)):
            made[name] = Replace(
                lambda factor=factor, name=name: layers.Rescaling(factor, name=name),
                lambda layer: filled.append(layer.name),
            )
        second = Replace(made["second"].make, made["second"].fill, first=made["first"])
        return {call_of(graph, "one"): Skip(into="first"), call_of(graph, "two"): second}

    filled = []
    copy = rebuilt(model, edits)
    assert [layer.name for layer in copy.model.layers if layer.name != "in"] == [
        "first", "second", "three",
    ]  # fmt: skip
    assert copy.layers == {"in": "in", "one": "first", "two": "second", "three": "three"}
    assert sorted(filled) == ["first", "second"]
    np.testing.assert_allclose(copy.model(X), model.get_layer("three")(6.0 * X), rtol=1e-5)


def test_calls_that_share_an_edit_share_a_layer():
    inputs, shared = keras.Input((4,)), layers.Dense(4, name="shared")
    model = keras.Model(inputs, shared(layers.ReLU(name="relu")(shared(inputs))))

    def edits(graph):
        calls = [call for call in graph.calls if call.operation is shared]
        assert len(calls) == 2
        one = Replace(lambda: layers.Rescaling(-2.0, name="new"), lambda layer: None)
        return dict.fromkeys(calls, one)

    copy = rebuilt(model, edits).model
    assert [layer.name for layer in copy.layers[1:]] == ["new", "relu"]
    np.testing.assert_allclose(copy(X), -2 * np.maximum(-2 * X, 0), rtol=1e-6)


class Takes(layers.Layer):
    """Tells which keyword arguments it was called with."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.taken = []

    def call(self, x, training=None, scale=1.0):
        self.taken.append((training, scale))
        return x * scale


class TakesNone(layers.Layer):
    def call(self, x):
        return x


@pytest.mark.parametrize(
    ("cls", "keywords", "factor"),
    [
        (Takes, None, 5.0),  # those that it has parameters for
        (Takes, frozenset(["scale"]), 5.0),
        (Takes, frozenset(["training"]), 1.0),
        (TakesNone, None, 1.0),
        (TakesNone, frozenset(), 1.0),
    ],
)
def test_a_new_layer_gets_the_keywords_that_it_takes(cls, keywords, factor):
    inputs = keras.Input((4,))
    model = keras.Model(inputs, Takes(name="old")(inputs, training=True, scale=5.0))

    def edits(graph):
        edit = Replace(lambda: cls(name="new"), lambda layer: None, keywords=keywords)
        return {call_of(graph, "old"): edit}

    np.testing.assert_allclose(rebuilt(model, edits).model(X), factor * X, rtol=1e-6)
    np.testing.assert_allclose(rebuilt(model).model(X), 5 * X, rtol=1e-6)


class Own(keras.Model):
    pass


class OwnSequential(keras.Sequential):
    pass


def test_models_of_own_classes_become_plain_ones():
    copy = rebuilt(functional(cls=Own, name="own"))
    assert type(copy.model) is keras.Model or type(copy.model).__module__.startswith("keras")
    assert copy.notes == [
        "model 'own' was a Own; it is a plain functional model now, without the methods of that "
        "class"
    ]
    copy = rebuilt(OwnSequential([keras.Input((4,)), layers.Dense(2)], name="own"))
    assert type(copy.model) is keras.Sequential
    assert copy.notes == [
        "model 'own' was a OwnSequential; it is a plain Sequential model now, without the methods "
        "of that class"
    ]


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("inner", [True, False])
def test_flags_and_policies_are_those_of_the_source(trainable, inner):
    model = functional(name="net")
    model.trainable = trainable
    model.get_layer("one").trainable = inner
    model.dtype_policy = keras.DTypePolicy("mixed_bfloat16")
    copy = rebuilt(model).model
    assert copy.dtype_policy == model.dtype_policy
    assert (copy.trainable, copy.get_layer("one").trainable) == (trainable, inner)
    assert copy.get_layer("two").trainable == trainable
    assert len(copy.trainable_variables) == len(model.trainable_variables)


def test_names_inside_nested_models_are_paths():
    inner = functional(name="inner")
    inputs = keras.Input((4,), name="outer_in")
    copy = rebuilt(keras.Model(inputs, layers.ReLU(name="relu")(inner(inputs))))
    assert copy.layers == {
        "outer_in": "outer_in", "inner": "inner", "inner/in": "inner/in",
        "inner/one": "inner/one", "inner/two": "inner/two", "relu": "relu",
    }  # fmt: skip


def test_functions_of_the_users_own_are_known_by_their_names_where_these_mean_one_thing():
    def twice(x):
        return 2 * x

    def activated(*functions):
        inputs = x = keras.Input((4,))
        for number, function in enumerate(functions):
            x = layers.Activation(function, name=f"{function.__name__}_{number}")(x)
        return keras.Model(inputs, x)

    copy = rebuilt(activated(twice, keras.ops.tanh, twice)).model
    assert copy.layers[1].activation is twice
    np.testing.assert_allclose(copy(X), 2 * np.tanh(2 * X), rtol=1e-5)
    made = [lambda x, factor=factor: factor * x for factor in (3, 4)]
    for function in made:  # one code, of two functions
        function.__name__ = "made"
    np.testing.assert_allclose(rebuilt(activated(*made)).model(X), 12 * X, rtol=1e-5)

    def other(x):
        return x / 2

    other.__name__ = "twice"
    with pytest.raises(SwapError, match="Activation cannot be made from its own"):
        rebuilt(activated(twice, other))


# Compile state


@pytest.mark.parametrize("compiled", [True, False])
def test_the_compile_state_is_carried_if_asked_for(compiled):
    model = functional()
    model.compile(keras.optimizers.Adam(0.025), "mse", metrics=["mae"])
    copy = rebuilt(model, compiled=compiled)
    assert copy.notes == []
    assert copy.model.compiled == compiled
    if compiled:
        assert float(copy.model.optimizer.learning_rate) == pytest.approx(0.025)
        assert copy.model.loss == "mse"
        assert copy.model.optimizer is not model.optimizer


def test_a_model_that_is_not_compiled_stays_so():
    source, target = functional(), functional()
    assert carry_compile_state(source, target) == []
    assert not target.compiled


def test_losses_keep_the_values_that_they_have_by_now():
    source, target = functional(), functional()
    loss = keras.losses.Huber(delta=1.0)
    source.compile("sgd", loss)
    loss.delta = 0.25
    assert carry_compile_state(source, target) == []
    assert target.loss is not loss
    assert target.loss.delta == 0.25


def test_why_a_copy_is_not_compiled_is_said():
    class Refuses(keras.losses.Loss):
        def get_config(self):
            raise ValueError("not told")

        def call(self, y, z):
            return ops.mean(y - z)

    source = functional()
    source.compile("sgd", Refuses())
    assert carry_compile_state(source, functional()) == [
        "not compiled: the source's compile state cannot be copied (not told)"
    ]

    class TellsNothing(keras.Model):
        def get_compile_config(self):
            return None

    source = functional(cls=TellsNothing)
    source.compile("sgd", "mse")
    assert carry_compile_state(source, functional()) == [
        "not compiled: the source does not tell how it was compiled"
    ]


# What a user hung on a model


def test_plain_data_is_carried_and_the_rest_is_named():
    source, target = functional(name="net"), functional()
    array = np.arange(3)
    carried = {
        "classes": ["a", "b"], "sizes": {"x": (1, 2.5), 3: None}, "means": array,
        "raw": b"bytes", "flag": True, "complex": 1j, "nested": [[{"deep": [array]}]],
    }  # fmt: skip
    for name, value in carried.items():
        setattr(source, name, value)
    source.z_function, source.decoder = len, {"f": len}
    source.in_tuple, source.layer = (1, object()), layers.ReLU()
    source.history, source._hidden = object(), 1
    assert carry_attributes(source, target) == [
        "model 'net': its attributes decoder, in_tuple, z_function are not carried over"
    ]
    for name, value in carried.items():
        own = getattr(target, name)
        if name != "nested":
            np.testing.assert_equal(own, value)
        assert own is not value or not isinstance(value, (list, dict, np.ndarray))
    assert target.nested[0][0]["deep"][0] is not array
    for name in ("z_function", "decoder", "in_tuple", "layer", "history", "_hidden"):
        assert not hasattr(target, name)
    assert carry_attributes(functional(), functional()) == []
