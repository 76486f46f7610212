"""Old files with layers of TensorFlow Addons, keras_contrib and tfmot."""

from __future__ import annotations

import numpy as np
import old_models
import pytest
from helpers import assert_close, direction, standardize

import kerasnorm

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
tk, L = old_models.tk, old_models.L


@tk.saving.register_keras_serializable("Addons")
class WeightNormalization(L.Wrapper):
    """Has the arguments, the weights and their names that the one of TensorFlow Addons has."""

    def __init__(self, layer, data_init=True, **kwargs):
        super().__init__(layer, **kwargs)
        self.data_init = data_init

    def build(self, shape):
        import tensorflow as tf

        self.layer.build(shape)
        units = self.layer.kernel.shape[-1]
        self.g = self.add_weight(name="g", shape=(units,), initializer="ones")
        self.v = self.layer.kernel
        self.initialized = self.add_weight(
            name="initialized", shape=None, initializer="ones", dtype="bool", trainable=False
        )
        if self.data_init:
            with tf.name_scope("data_dep_init"):
                self.naked = type(self.layer).from_config(
                    {**self.layer.get_config(), "trainable": False}
                )
                self.naked.build(shape)
        self.built = True

    def call(self, inputs):
        import tensorflow as tf

        axes = list(range(len(self.v.shape) - 1))
        self.layer.kernel = tf.nn.l2_normalize(self.v, axis=axes) * self.g
        return self.layer(inputs)

    def get_config(self):
        return {**super().get_config(), "data_init": self.data_init}


class InstanceNormalization(L.Layer):
    """keras_contrib's, by its arguments and weights."""

    def __init__(self, axis=None, **kwargs):
        super().__init__(**kwargs)
        self.axis = axis

    def build(self, shape):
        size = 1 if self.axis is None else shape[self.axis]
        self.gamma, self.beta = (
            self.add_weight(name=name, shape=(size,)) for name in ("gamma", "beta")
        )

    def call(self, inputs):
        return inputs  # what it computes is an oracle's in NumPy

    def get_config(self):
        own = {"axis": self.axis, "epsilon": 0.01, "center": True, "scale": True}
        return {**super().get_config(), **own, "gamma_initializer": {"class_name": "Ones"}}


class OfAddons(InstanceNormalization):
    def get_config(self):
        return {**super().get_config(), "groups": 4}


def saved(model, tmp_path):
    return old_models.saved(old_models.alive(model), tmp_path / "model.h5")


@pytest.mark.parametrize("data_init", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (lambda: L.Dense(5, activation="tanh"), (6,)),
        (lambda: L.Dense(5, use_bias=False), (7, 4)),
        (lambda: L.Conv1D(5, 3, padding="causal"), (7, 4)),
        (lambda: L.Conv2D(6, 3, strides=2, groups=2), (8, 8, 4)),
    ],
)
def test_weight_normalization_is_weight_norm(layer, shape, data_init, tmp_path):
    x = tk.Input(shape)
    y = WeightNormalization(layer(), data_init)(x)
    y = WeightNormalization(L.Dense(3), data_init, name="last")(y)
    model = tk.Model(x, y)
    path = saved(model, tmp_path)
    loaded = kerasnorm.load_model(path)
    assert [type(layer).__name__ for layer in loaded.layers[1:]] == ["WeightNorm", "WeightNorm"]
    given = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    assert_close(loaded(given), model(given))
    assert "became kerasnorm's WeightNorm" in loaded.load_report[0]
    assert loaded.load_report.warnings == []


def test_its_kernel_by_numpy(tmp_path):
    model = tk.Sequential([tk.Input((6,)), WeightNormalization(L.Dense(5))])
    loaded = kerasnorm.load_model(saved(model, tmp_path))
    g, v, bias, *_ = (w.numpy().astype("float64") for w in model.weights)
    x = old_models.batch("vector").astype("float64")
    assert_close(loaded(x), x @ (g * direction(v, (0,))) + bias)


def test_a_frozen_one_and_one_inside_a_model(tmp_path):
    inner = tk.Sequential([tk.Input((6,)), WeightNormalization(L.Dense(5)), L.Dense(4)])
    frozen = WeightNormalization(L.Dense(3))
    frozen.trainable = False
    model = tk.Sequential([tk.Input((6,)), inner, frozen])
    path = saved(model, tmp_path)
    x = old_models.batch("vector")
    assert_close(kerasnorm.load_model(path)(x), model(x))


def test_one_that_was_never_called_is_warned_of(tmp_path):
    model = old_models.alive(tk.Sequential([tk.Input((6,)), WeightNormalization(L.Dense(5))]))
    model.layers[0].initialized.assign(False)
    path = old_models.saved(model, tmp_path / "model.h5")
    (said,) = kerasnorm.load_report(path).warnings
    assert "before its first call" in said


def test_around_another_layer_it_is_refused(tmp_path):
    model = tk.Sequential([tk.Input((7, 4)), WeightNormalization(L.Conv1DTranspose(5, 3))])
    with pytest.raises(kerasnorm.LoadError, match="Received: Conv1DTranspose"):
        kerasnorm.load_model(saved(model, tmp_path))


@pytest.mark.parametrize("axis", [None, -1, 1])
def test_instance_normalization_of_keras_contrib(axis, tmp_path):
    model = tk.Sequential([tk.Input((5, 6, 4)), InstanceNormalization(axis)])
    loaded = kerasnorm.load_model(saved(model, tmp_path))
    gamma, beta = (w.numpy().astype("float64") for w in model.weights)
    x = 0.1 * np.random.default_rng(0).normal(size=(3, 5, 6, 4))
    axes = {None: (1, 2, 3), -1: (1, 2), 1: (2, 3)}[axis]
    gamma, beta = (v.reshape(5, 1, 1) if axis == 1 else v for v in (gamma, beta))
    centered = x - x.mean(axes, keepdims=True)
    expected = gamma * centered / (x.std(axes, keepdims=True) + 0.01) + beta
    assert_close(loaded(x), expected)
    loaded.save(tmp_path / "again.keras")
    assert_close(kerasnorm.load_model(tmp_path / "again.keras")(x), expected)


@pytest.mark.parametrize("name", ["Addons>InstanceNormalization", "InstanceNormalization"])
def test_instance_normalization_of_addons(name, tmp_path):
    model = tk.Sequential([tk.Input((5, 6, 4)), type(name, (OfAddons,), {})(-1)])
    loaded = kerasnorm.load_model(saved(model, tmp_path))
    gamma, beta = (w.numpy().astype("float64") for w in model.weights)
    x = 0.1 * np.random.default_rng(0).normal(size=(3, 5, 6, 4))
    assert_close(loaded(x), gamma * standardize(x, (1, 2), 0.01) + beta)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("QuantizeWrapperV2", "quantize_scope"),
        ("QuantizeLayer", "quantize_scope"),
        ("PruneLowMagnitude", "strip_pruning"),
        ("ClusterWeights", "strip_clustering"),
        ("Addons>Maxout", "has no counterpart here"),
    ],
)
def test_what_cannot_be_had_is_named(name, words, tmp_path):
    model = tk.Sequential([tk.Input((6,)), type(name, (L.Layer,), {})()])
    with pytest.raises(kerasnorm.LoadError) as caught:
        kerasnorm.load_model(saved(model, tmp_path))
    assert words in str(caught.value)
    assert name.rpartition(">")[2] in str(caught.value)
    assert "register_keras_serializable" not in str(caught.value)
