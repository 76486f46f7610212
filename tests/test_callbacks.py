"""ActivationDrift: what it records, against NumPy, and that nothing else changes."""

from __future__ import annotations

import builtins
import doctest
import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tiny_code
from helpers import assert_close, sigmoid
from keras import layers

import kerasnorm.callbacks
import kerasnorm.callbacks.activation_drift
from kerasnorm import BatchNorm, CosineNorm, KerasNormError, WeightNorm
from kerasnorm.callbacks import ActivationDrift
from kerasnorm.keras_private import sublayers


def data(count=32, features=4, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 2, size=(count, features)).astype("float32")
    return x, rng.normal(size=(count, 1)).astype("float32")


def small(**compile_with):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(5, activation="sigmoid", name="first"),
            layers.Dense(6, name="second"),
            layers.Dense(1, name="third"),
        ]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse", **{"jit_compile": False, **compile_with})
    return model


def by_hand(weights, x):
    """The inputs of the three layers, in float64."""
    k1, b1, k2, b2, *_ = (np.asarray(w, "float64") for w in weights)
    x = x.astype("float64")
    first = sigmoid(x @ k1 + b1)
    return {"first": x, "second": first, "third": first @ k2 + b2}


class Weights(keras.callbacks.Callback):
    """The weights after every step."""

    def __init__(self):
        super().__init__()
        self.kept = {}

    def on_train_begin(self, logs=None):
        self.kept[0] = self.model.get_weights()

    def on_train_batch_end(self, batch, logs=None):
        self.kept[max(self.kept) + 1] = self.model.get_weights()


@pytest.mark.parametrize("jit_compile", [False, True])
def test_values(jit_compile):
    model = small(jit_compile=jit_compile)
    x, y = data()
    probe, _ = data(17, seed=1)
    watch, weights = ActivationDrift(probe, every=3), Weights()
    model.fit(x, y, batch_size=8, epochs=2, callbacks=[watch, weights], verbose=0)
    assert watch.steps == [0, 3, 6, 8]
    assert list(watch.means) == ["first", "second", "third"]
    expected = [by_hand(weights.kept[step], probe) for step in watch.steps]
    for name in watch.means:
        inputs = np.stack([e[name] for e in expected])
        mean, std = inputs.mean(1), inputs.std(1)
        assert_close(watch.means[name], mean)
        assert_close(watch.stds[name], std)
        bands = np.percentile(inputs, [15, 50, 85], axis=1).swapaxes(0, 1)
        assert_close(watch.percentiles[name], bands)
        moved = [
            np.mean((m - mean[0]) ** 2 + (s - std[0]) ** 2) for m, s in zip(mean, std, strict=True)
        ]
        drift = np.mean(np.sqrt(moved[1:])) / np.sqrt(np.mean(std**2))
        assert_close(watch.drift()[name], drift)
    assert watch.drift()["first"] == 0
    assert watch.drift()["second"] > 0.01


def test_drift_does_not_depend_on_the_scale():
    watches = []
    for scale in (1, 4):
        model = small()
        model.get_layer("second").kernel.assign(scale * model.get_layer("second").kernel)
        model.get_layer("second").trainable = False
        model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
        x, y = data()
        watch = ActivationDrift(x, every=1)
        watches.append(watch)

        def nudge(epoch, logs, model=model):
            model.get_layer("first").bias.assign(model.get_layer("first").bias + 0.1)

        shift = keras.callbacks.LambdaCallback(on_epoch_begin=nudge)
        model.fit(x, y, batch_size=32, epochs=3, callbacks=[shift, watch], verbose=0)
    assert watches[0].drift()["third"] == pytest.approx(watches[1].drift()["third"], rel=1e-5)


def convolutional():
    keras.utils.set_random_seed(1)
    inner = keras.Sequential(
        [
            keras.Input((6, 6, 3)),
            WeightNorm(layers.Conv2D(4, 3, name="convolution"), name="weight"),
            BatchNorm(name="batch"),
            layers.GaussianNoise(0.1),
            layers.Dropout(0.5, name="dropout"),
        ],
        name="inner",
    )
    inputs = keras.Input((6, 6, 3))
    x = layers.Flatten()(inner(inputs))
    x = CosineNorm(layers.Dense(5), rescale=True, name="cosine")(x)
    model = keras.Model(inputs, layers.Dense(1, name="head", activity_regularizer="l2")(x))
    model.compile("adam", "mse", jit_compile=False)
    return model


@pytest.mark.parametrize("training", [False, True])
def test_training_is_the_same_bit_for_bit(training):
    """Weights, moving statistics, random states, losses and the next random numbers."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 6, 6, 3)).astype("float32")
    results = []
    for watched in (False, True):
        model = convolutional()
        keys = set(vars(model.get_layer("cosine")))
        watch = ActivationDrift(x[:9], every=1, training=training)
        callbacks = [watch] if watched else []
        history = model.fit(
            x, x[:, 0, 0, :1], batch_size=8, epochs=2, verbose=0, callbacks=callbacks
        )
        assert set(vars(model.get_layer("cosine"))) == keys
        after = [np.array(v.value) for v in model.variables]
        after += [keras.random.normal((3,)), np.random.normal(size=3)]
        results.append((after, history.history["loss"]))
    (plain, losses), (recorded, losses_recorded) = results
    assert losses == losses_recorded
    assert all(np.array_equal(a, b) for a, b in zip(plain, recorded, strict=True))


def test_recording_alone_changes_no_variable():
    model = convolutional()
    x = np.random.default_rng(0).normal(size=(9, 6, 6, 3)).astype("float32")
    before = [np.array(v.value) for v in model.variables]
    watch = ActivationDrift(x, training=True)
    watch.set_model(model)
    watch.on_train_begin()
    assert watch.steps == [0]
    assert all(np.array_equal(a, v.value) for a, v in zip(before, model.variables, strict=True))


def test_nested_models_and_wrappers():
    model = convolutional()
    x = np.random.default_rng(0).normal(size=(16, 6, 6, 3)).astype("float32")
    watch = ActivationDrift(x, every=1)
    model.fit(x, x[:, 0, 0, :1], verbose=0, callbacks=[watch])
    assert list(watch.means) == ["inner/weight", "cosine", "head"]
    assert_close(watch.means["inner/weight"][0], x.mean((0, 1, 2), dtype="float64"))
    assert_close(watch.stds["inner/weight"][0], x.std((0, 1, 2), dtype="float64"))
    assert watch.means["cosine"][0].shape == (4 * 4 * 4,)
    chosen = ActivationDrift(x, ["dropout", model.get_layer("head"), "inner/batch"], every=1)
    model.fit(x, x[:, 0, 0, :1], verbose=0, callbacks=[chosen])
    assert list(chosen.means) == ["inner/dropout", "head", "inner/batch"]


def test_the_second_axis_are_channels_where_a_layer_says_so():
    model = keras.Sequential([keras.Input((3, 5, 5)), layers.Flatten(data_format="channels_first")])
    model.add(layers.Dense(1))
    model.compile("sgd", "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(8, 3, 5, 5)).astype("float32")
    watch = ActivationDrift(x, model.layers[0].name, every=1)
    model.fit(x, x[:, 0, 0, :1], verbose=0, callbacks=[watch])
    (means,) = watch.means.values()
    assert_close(means[0], x.mean((0, 2, 3), dtype="float64"))


def test_a_shared_layer_counts_all_its_calls():
    inputs = [keras.Input((4,), name="a"), keras.Input((4,), name="b")]
    shared = layers.Dense(3, name="shared")
    model = keras.Model(inputs, layers.Add()([shared(tensor) for tensor in inputs]))
    model.compile("sgd", "mse", jit_compile=False)
    x = {"a": data()[0], "b": data(seed=1)[0]}
    watch = ActivationDrift(x, every=1)
    model.fit(x, np.zeros((32, 3)), verbose=0, callbacks=[watch])
    both = np.concatenate([x["a"], x["b"]]).astype("float64")
    assert_close(watch.stds["shared"][0], both.std(0))


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision(dtype):
    model = keras.Sequential([keras.Input((4,)), layers.Dense(3, dtype=dtype, name="dense")])
    model.compile("sgd", "mse", jit_compile=False)
    x, _ = data()
    watch = ActivationDrift(x, every=1)
    model.fit(x, np.zeros((32, 3)), verbose=0, callbacks=[watch])
    assert watch.means["dense"][0].dtype == "float64"
    assert_close(watch.means["dense"][0], x.mean(0), dtype.removeprefix("mixed_"))


def test_steps_go_on_over_several_fits_and_executions():
    model = small(steps_per_execution=4)
    x, y = data(80)
    watch = ActivationDrift(x[:8], "second", every=5)
    for _ in range(2):
        model.fit(x, y, batch_size=8, epochs=1, callbacks=[watch], verbose=0)
    # of 10 steps each, which end at 4, 8, 10
    assert watch.steps == [0, 8, 10, 18, 20]
    assert len(watch.means["second"]) == len(watch.percentiles["second"]) == 5


def test_a_recurrent_network():
    model = keras.Sequential([keras.Input((7, 4)), layers.LSTM(3, name="lstm"), layers.Dense(1)])
    model.compile("sgd", "mse", jit_compile=False)
    x = np.random.default_rng(0).normal(size=(8, 7, 4)).astype("float32")
    watch = ActivationDrift(x, every=1)
    model.fit(x, x[:, 0, :1], verbose=0, callbacks=[watch])
    assert_close(watch.means["lstm"][0], x.mean((0, 1), dtype="float64"))


def test_training_that_diverges_is_recorded():
    model = small()
    x, y = data()
    model.get_layer("first").bias.assign([np.nan] * 5)
    watch = ActivationDrift(x, every=1)
    model.fit(x, y, verbose=0, callbacks=[watch])
    assert np.isnan(watch.drift()["second"])


def logged(folder):
    """Everything in the only file of events in a folder, by tag and step."""
    import tensorflow as tf

    (file,) = folder.iterdir()
    values = {}
    for record in tf.data.TFRecordDataset(str(file)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            values[value.tag, event.step] = tf.make_ndarray(value.tensor)
            plugin = "histograms" if value.tag.endswith("values") else "scalars"
            # TensorBoard gets the kind with the first of a tag only
            assert value.metadata.plugin_data.plugin_name in (plugin, "")
    return values


def test_log_dir(tmp_path):
    pytest.importorskip("tensorboard")
    model = small()
    x, y = data()
    watch = ActivationDrift(x, ["second"], every=2, log_dir=tmp_path / "log")
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[watch])
    values = logged(tmp_path / "log")
    tags = ("mean", "std", "values")
    assert set(values) == {(f"second/{tag}", step) for tag in tags for step in (0, 2, 4)}
    assert_close(values["second/mean", 4], watch.means["second"][-1].mean())
    assert_close(values["second/std", 4], np.sqrt((watch.stds["second"][-1] ** 2).mean()))
    assert values["second/values", 4].shape == (30, 3)
    assert values["second/values", 4][:, 2].sum() == 32 * 5


def test_log_dir_without_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    x, y = data()
    model = small()
    with pytest.raises(KerasNormError, match=r"needs the package .*install 'kerasnorm\[tensorb"):
        model.fit(x, y, verbose=0, callbacks=[ActivationDrift(x, log_dir=tmp_path / "log")])
    assert not list(tmp_path.iterdir())


def test_log_dir_of_training_that_diverges(tmp_path):
    pytest.importorskip("tensorboard")
    model = small()
    x, _ = data()
    model.get_layer("first").bias.assign([np.nan, np.inf, 0, 0, 0])
    watch = ActivationDrift(x, ["second"], log_dir=tmp_path)
    watch.set_model(model)
    watch.on_train_begin()
    watch.on_train_end()
    values = logged(tmp_path)
    assert np.isnan(values["second/mean", 0])
    assert np.isfinite(values["second/values", 0]).all()
    assert values["second/values", 0][:, 2].sum() == 32 * 4  # a sigmoid of infinity is 1


def test_plot(tmp_path):
    model = small()
    x, y = data()
    watch = ActivationDrift(x, every=1)
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[watch])
    for path in (tmp_path / "drift.png", tmp_path / "again.png"):
        watch.plot(path)
        assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(KerasNormError, match=r"recorded layers can be plotted: 'first', .*'fifth'"):
        watch.plot(tmp_path / "x.png", ["fifth"])
    with pytest.raises(KerasNormError, match="does not exist"):
        watch.plot(tmp_path / "nowhere" / "x.png")
    assert len(list(tmp_path.iterdir())) == 2


def test_without_matplotlib(tmp_path, monkeypatch):
    model = small()
    x, y = data()
    watch = ActivationDrift(x, every=1)
    model.fit(x, y, verbose=0, callbacks=[watch])
    usual = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return usual(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(KerasNormError, match=r"pip install .matplotlib"):
        watch.plot(tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"every": 0}, r"`every` must be a whole number, 1 at least\. Received: every=0"),
        ({"data": np.ones((1, 4))}, r"two at least\. Received \(1, 4\)"),
        ({"data": [np.ones((3, 4)), np.ones((2, 4))]}, r"Received \(3, 4\) and \(2, 4\)"),
        ({"data": np.full((3, 4), np.nan)}, "must be finite"),
        ({"layers": ["secnd"]}, r"'first', 'second', 'third'\. Received: 'secnd'"),
        ({"layers": [layers.Dense(1)]}, "must name layers of the model"),
    ],
)
def test_errors(arguments, match):
    x, y = data()
    model = small()
    with pytest.raises(KerasNormError, match=match):
        model.fit(x, y, verbose=0, callbacks=[ActivationDrift(**{"data": x, **arguments})])


def test_errors_of_the_model():
    x, y = data()
    watch = ActivationDrift(x)
    small().fit(x, y, verbose=0, callbacks=[watch])
    with pytest.raises(KerasNormError, match=r"records one model\. Received a second"):
        small().fit(x, y, verbose=0, callbacks=[watch])
    with pytest.raises(KerasNormError, match=r"two records at least\. Received 0"):
        ActivationDrift(x).drift()
    inputs = keras.Input((4,))
    adds = keras.Model(inputs, layers.Add(name="add")([inputs, inputs]))
    adds.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(KerasNormError, match=r"must have layers with a kernel.*'add'"):
        adds.fit(x, x, verbose=0, callbacks=[ActivationDrift(x)])
    with pytest.raises(KerasNormError, match=r"layer 'add': .* one input\. Received 2"):
        adds.fit(x, x, verbose=0, callbacks=[ActivationDrift(x, ["add"])])
    twice = keras.Sequential([keras.Input((4,)), *(one_dense(n) for n in "ab"), layers.Dense(1)])
    twice.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(KerasNormError, match=r"'a/dense', 'b/dense'.*'dense', which is several"):
        twice.fit(x, y, verbose=0, callbacks=[ActivationDrift(x, ["dense"])])


def one_dense(name):
    return keras.Sequential([keras.Input((4,)), layers.Dense(4, name="dense")], name=name)


def rows_given_to(model, layer, x):
    """What a layer is called on as its model runs."""
    rows, call = [], layer.call

    def recording(inputs, *args, **kwargs):
        rows.append(np.array(inputs).reshape(-1, inputs.shape[-1]))
        return call(inputs, *args, **kwargs)

    vars(layer)["call"] = recording
    model(x)
    del vars(layer)["call"]
    return np.concatenate(rows)


def kinds_of_inner_layers():
    inputs = keras.Input((6, 4))
    x = layers.TimeDistributed(tiny_code.Block(3, name="block"), name="steps")(inputs)
    x = layers.Bidirectional(layers.LSTM(2, name="lstm", return_sequences=True), name="both")(x)
    x = layers.MultiHeadAttention(2, 2, name="attention")(x, x)
    x = layers.RNN([layers.LSTMCell(2, name="cell"), layers.GRUCell(3, name="last")])(x)
    return keras.Model(inputs, x), np.random.default_rng(0).normal(size=(16, 6, 4))


@pytest.mark.parametrize("kind", [*tiny_code.SUBCLASSED, "layers within layers"])
def test_wherever_code_holds_its_layers(kind):
    subclassed = kind in tiny_code.SUBCLASSED
    model, x = tiny_code.subclassed(kind) if subclassed else kinds_of_inner_layers()
    # with one input of each call of theirs, once a sequence
    without = (layers.InputLayer, layers.MultiHeadAttention, layers.Dropout, layers.Softmax)
    without += (layers.StackedRNNCells, layers.LSTMCell, layers.GRUCell)
    inner = [layer for layer in sublayers(model) if not isinstance(layer, without)]
    before = {id(layer): dict(vars(layer)) for layer in (model, *inner)}
    watch = ActivationDrift(x, inner)
    watch.set_model(model)
    watch.on_train_begin()
    for layer in (model, *inner):
        attributes = before[id(layer)]
        assert vars(layer).keys() == attributes.keys()
        assert all(value is attributes[name] for name, value in vars(layer).items())
    assert len(watch.means) == len(inner)
    for means, stds, layer in zip(watch.means.values(), watch.stds.values(), inner, strict=True):
        rows = rows_given_to(model, layer, x).astype("float64")
        assert_close(means[0], rows.mean(0))
        assert_close(stds[0], rows.std(0))


@pytest.mark.parametrize("subclassed", [False, True])
def test_a_model_that_the_first_step_of_training_builds(subclassed):
    class Net(keras.Model):
        def __init__(self, steps):
            super().__init__()
            self.steps = steps

        def call(self, x):
            for step in self.steps:
                x = step(x)
            return x

    steps = small().layers
    steps = [type(step).from_config(step.get_config()) for step in steps]
    model = Net(steps) if subclassed else keras.Sequential(steps)
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False)
    x, y = data()
    watch = ActivationDrift(x, every=1)
    model.fit(x, y, verbose=0, callbacks=[watch])
    assert watch.steps == [0, 1]
    for name, inputs in by_hand(model.get_weights(), x).items():
        assert_close(watch.means[name], np.stack([inputs.mean(0)] * 2))


def test_quantized_layers():
    model = small()
    for layer in model.layers:
        layer.quantize("int8")
    x, _ = data()
    watch = ActivationDrift(x)
    watch.set_model(model)
    watch.on_train_begin()
    assert_close(watch.means["first"][0], x.mean(0, dtype="float64"))
    until = keras.Model(model.inputs[0], model.get_layer("first").output)
    assert_close(watch.means["second"][0], np.asarray(until(x)).mean(0, dtype="float64"))


def test_a_layer_in_a_closure():
    class Net(keras.Model):
        def __init__(self):
            super().__init__()
            self.inner = inner = layers.Dense(1, name="inner")
            self.apply = lambda x: inner(x)

        def call(self, x):
            return self.apply(x)

    x, y = data()
    model = Net()
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(KerasNormError, match=r"layer 'inner': .* from an attribute of what calls"):
        model.fit(x, y, verbose=0, callbacks=[ActivationDrift(x)])


def test_a_layer_that_is_not_called():
    class Idle(keras.Model):
        def __init__(self):
            super().__init__()
            self.used, self.idle = layers.Dense(1, name="used"), layers.Dense(1, name="idle")
            self.idle.build((None, 4))
            self.idle.trainable = False

        def call(self, x):
            return self.used(x)

    x, y = data()
    model = Idle()
    model.compile("sgd", "mse", jit_compile=False)
    with pytest.raises(KerasNormError, match=r"layer 'idle': .* must be called by the model"):
        model.fit(x, y, verbose=0, callbacks=[ActivationDrift(x)])
    assert "call" not in vars(model.used)
    watch = ActivationDrift(x, ["used"])
    model.fit(x, y, verbose=0, callbacks=[watch])
    assert watch.steps == [0, 1]


def test_example():
    result = doctest.testmod(
        kerasnorm.callbacks.activation_drift, optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.slow
def test_jax():
    """The same file, as far as it needs no TensorFlow, in a process of its own."""
    if keras.backend.backend() != "tensorflow":
        pytest.skip("runs once")
    pytest.importorskip("jax")
    few = "test_values or bit_for_bit or several_fits or example or code_holds"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", __file__, "-k", few],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
