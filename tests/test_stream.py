"""The activations of a model are what its layers give, whatever is nested in it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import watched

import kerasnorm
from kerasnorm.graph.activation_store import ActivationStore
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.graph.stream import ActivationStream

MODELS = (
    "pre_activation", "nested", "structured", "called_by_name", "shared_bn", "masked", "sequential",
)  # fmt: skip


def stream_of(model, store):
    model_graphs = graphs_of(model)
    return ActivationStream(model_graphs.root, model_graphs.graphs, store, "source")


@pytest.fixture
def store(request):
    store = ActivationStore(getattr(request, "param", 10**8))
    yield store
    store.close()


def batches_of(model, count=3):
    rng = np.random.default_rng(0)
    inputs = keras.tree.flatten(model.inputs)
    return [
        [rng.normal(size=(4, *t.shape[1:])).astype(t.dtype) for t in inputs] for _ in range(count)
    ]


@pytest.mark.parametrize("store", [0, 10**8], indirect=True)
@pytest.mark.parametrize("name", MODELS)
def test_every_step_gives_what_the_layer_gives(name, store):
    model = getattr(tiny_models, name)()
    batches = batches_of(model)
    stream = stream_of(model, store)
    for arrays in batches:
        stream.feed(arrays)
    operations = [step.call.operation for step in stream.steps]
    with watched([o for o in operations if getattr(o, "variables", None)]) as expected:
        for arrays in batches:
            model(keras.tree.pack_sequence_as(structure_of(model), arrays), training=False)
    seen = 0
    for number, step in enumerate(stream.steps):
        key = stream.output(number)
        stream.pin(key)
        received = list(stream.activations(number + 1, key))
        stream.unpin(key)
        answers = expected.get(id(step.call.operation))
        if answers and len(answers) == len(batches):  # called once
            seen += 1
            for answer, array in zip(answers, received, strict=True):
                np.testing.assert_allclose(answer, array, rtol=1e-5, atol=1e-6)
    assert seen


def structure_of(model):
    return model.inputs[0] if isinstance(model, keras.Sequential) else model.input


@pytest.mark.parametrize("store", [0], indirect=True)
def test_a_stream_can_be_read_again_until_it_is_unpinned(store):
    model = tiny_models.pre_activation()
    stream = stream_of(model, store)
    for arrays in batches_of(model):
        stream.feed(arrays)
    key = stream.output(1)
    stream.pin(key)
    first, second = list(stream.activations(2, key)), list(stream.activations(2, key))
    list(stream.activations(len(stream.steps), stream.output(len(stream.steps) - 1)))
    third = list(stream.activations(2, key))
    for a, b, c in zip(first, second, third, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)


def test_nothing_is_kept_that_no_step_reads(store):
    model = tiny_models.pre_activation()
    stream = stream_of(model, store)
    for arrays in batches_of(model):
        stream.feed(arrays)
    last = stream.output(len(stream.steps) - 1)
    stream.pin(last)
    list(stream.activations(len(stream.steps), last))
    assert set(store._held) == {("source", last)}


class Counter(keras.layers.Layer):
    """Counts its calls, at inference too."""

    def build(self, shape):
        self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

    def call(self, x):
        self.count.assign(self.count + 1)
        return x


def test_the_state_of_layers_stays_while_a_model_is_swapped():
    inputs = keras.Input((5,))
    y = keras.layers.Dense(4, activity_regularizer="l2")(Counter()(inputs))
    source = keras.Model(inputs, keras.layers.BatchNormalization()(y))
    given = source.get_weights()
    x = np.random.default_rng(0).normal(size=(20, 5)).astype("float32")
    swap = kerasnorm.swap_norms(source, "layer", x)
    swap.update_report(x)
    for model in (source, swap.model):
        assert int(model.layers[1].count) == 0
        assert not model.losses
    for a, b in zip(source.get_weights(), given, strict=True):
        np.testing.assert_array_equal(a, b)
