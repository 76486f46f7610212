"""Old files with classes and functions of the user's own: found, and repaired as what they are."""

from __future__ import annotations

import json

import h5py
import keras
import numpy as np
import old_models
import pytest
from helpers import assert_close
from keras import layers, ops

import kerasnorm

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
]
tk, L = old_models.tk, old_models.L


@pytest.fixture(autouse=True)
def registered_here():
    """What a test registers is forgotten behind it."""
    known = keras.saving.get_custom_objects()
    before = dict(known)
    yield
    known.clear()
    known.update(before)


class FixedDropout(L.Dropout):
    """A class that is not registered when it is saved."""


def model_of_keras_2(layer, shape=(6,)):
    return old_models.alive(tk.Sequential([tk.Input(shape), layer, L.Dense(2)]))


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_a_class_that_was_stored_unregistered(suffix, tmp_path):
    path = tmp_path / f"model.{suffix}"
    model = model_of_keras_2(FixedDropout(0.3))
    old_models.saved(model, path)
    with pytest.raises(
        kerasnorm.LoadError, match=r"`keras.saving.register_keras_serializable\(\)`"
    ):
        kerasnorm.load_model(path)

    new = type("FixedDropout", (layers.Dropout,), {})
    keras.saving.register_keras_serializable()(new)  # what the advice says
    loaded = kerasnorm.load_model(path)
    assert type(loaded.layers[0]) is new
    x = old_models.batch("vector")
    assert_close(loaded(x), model(x))
    said = "FixedDropout was stored unregistered: the one that is registered now is taken"
    assert loaded.load_report == [said]

    keras.saving.register_keras_serializable("other", "FixedDropout")(type("B", (new,), {}))
    with pytest.raises(kerasnorm.LoadError, match="is no layer that this Keras knows"):
        kerasnorm.load_model(path)  # of two it might be either


def test_a_class_of_another_package_is_named_with_it(tmp_path):
    mine = tk.saving.register_keras_serializable("mine", "Halved")(type("H", (L.Dropout,), {}))
    path = old_models.saved(model_of_keras_2(mine(0.3)), tmp_path / "model.h5")
    with pytest.raises(kerasnorm.LoadError) as caught:
        kerasnorm.load_model(path)
    assert 'register_keras_serializable("mine", "Halved")' in str(caught.value)
    keras.saving.register_keras_serializable("mine", "Halved")(type("H", (layers.Dropout,), {}))
    assert kerasnorm.load_report(path) == []


def test_a_function_that_was_stored_unregistered(tmp_path):
    def bent(x):
        return x * old_models.tk.backend.sigmoid(x)

    model = model_of_keras_2(L.Dense(4, activation=bent))
    path = old_models.saved(model, tmp_path / "model.h5")
    with pytest.raises(kerasnorm.LoadError, match="an activation that this Keras does not know"):
        kerasnorm.load_model(path)
    keras.saving.register_keras_serializable(name="bent")(lambda x: x * ops.sigmoid(x))
    x = old_models.batch("vector")
    assert_close(kerasnorm.load_model(path)(x), model(x))


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_keras_3_files_find_such_a_class_too(suffix, tmp_path):
    class Plain(layers.Dropout):
        """Not registered yet."""

    model = keras.Sequential([keras.Input((6,)), Plain(0.3), layers.Dense(2)])
    path = tmp_path / f"model.{suffix}"
    model.save(path)
    with pytest.raises(kerasnorm.LoadError, match="register_keras_serializable"):
        kerasnorm.load_model(path)
    keras.saving.register_keras_serializable()(Plain)
    x = old_models.batch("vector")
    assert_close(kerasnorm.load_model(path)(x), model(x))


def test_a_name_of_keras_or_of_ours_is_not_taken_for_it(tmp_path):
    keras.saving.register_keras_serializable("mine", "Dense")(type("Dense", (layers.Dense,), {}))
    ours = type("WeightNorm", (L.Dropout,), {})
    path = old_models.saved(model_of_keras_2(ours(0.3)), tmp_path / "model.h5")
    with pytest.raises(kerasnorm.LoadError, match="WeightNorm is no layer that this Keras knows"):
        kerasnorm.load_model(path)
    plain = old_models.saved(model_of_keras_2(L.Dropout(0.3)), tmp_path / "plain.h5")
    assert type(kerasnorm.load_model(plain).layers[-1]) is layers.Dense


def edited(path, class_name, change):
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        stored = [x for x in config["config"]["layers"] if x["class_name"] == class_name]
        change(stored[0]["config"])
        file.attrs["model_config"] = json.dumps(config)


DERIVED = {
    "BatchNormalization": ((6,), {}),
    "DepthwiseConv2D": ((6, 6, 3), {"kernel_size": 3}),
    "GRU": ((5, 3), {"units": 4, "reset_after": False, "recurrent_activation": "hard_sigmoid"}),
    "Dense": ((6,), {"units": 4, "activation": "hard_sigmoid"}),
    "TimeDistributed": ((5, 6), {"layer": L.Dense(3, activation="hard_sigmoid")}),
    "LeakyReLU": ((6,), {"alpha": 0.4}),
    "EinsumDense": ((4,), {"equation": "ab,bc->ac", "output_shape": (5,), "bias_axes": "c"}),
}


@pytest.mark.parametrize("base", DERIVED)
def test_a_derived_class_is_repaired_as_its_base(base, tmp_path):
    shape, arguments = DERIVED[base]
    old = tk.saving.register_keras_serializable("mine", "Fixed")(
        type("Fixed", (getattr(L, base),), {})
    )
    new = type("Fixed", (getattr(layers, base),), {})
    keras.saving.register_keras_serializable("mine", "Fixed")(new)
    model = model_of_keras_2(old(**arguments), shape)
    path = old_models.saved(model, tmp_path / "model.h5")
    if base == "BatchNormalization":  # as TensorFlow's Keras wrote it for years
        edited(path, "mine>Fixed", lambda config: config.update(axis=[1], scale=1))
    if base == "DepthwiseConv2D":
        edited(path, "mine>Fixed", lambda config: config.update(groups=1))
    loaded = kerasnorm.load_model(path)
    assert type(loaded.layers[0]) is new
    x = np.random.default_rng(0).normal(size=(3, *shape)).astype("float32")
    assert_close(loaded(x), model(x))


def test_arguments_of_its_own_stay(tmp_path):
    @tk.saving.register_keras_serializable("mine", "Scaled")
    class Scaled(L.Dense):
        def __init__(self, units, **kwargs):
            self.factor = kwargs.pop("factor", 1.0)
            super().__init__(units, **kwargs)

        def call(self, inputs):
            return super().call(inputs) * self.factor

        def get_config(self):
            return {**super().get_config(), "factor": self.factor}

    @keras.saving.register_keras_serializable("mine", "Scaled")
    class NewScaled(layers.Dense):
        def __init__(self, units, **kwargs):
            self.factor = kwargs.pop("factor", 1.0)
            super().__init__(units, **kwargs)

        def call(self, inputs):
            return super().call(inputs) * self.factor

    model = model_of_keras_2(Scaled(4, factor=3.0))
    path = old_models.saved(model, tmp_path / "model.h5")
    x = old_models.batch("vector")
    assert_close(kerasnorm.load_model(path)(x), model(x))


def test_hard_sigmoid_in_a_class_of_its_own_is_warned_of(tmp_path):
    class Own(L.Layer):
        def call(self, inputs):
            return tk.activations.hard_sigmoid(inputs)

        def get_config(self):
            return {**super().get_config(), "activation": "hard_sigmoid"}

    class NewOwn(layers.Layer):
        def __init__(self, activation, **kwargs):
            super().__init__(**kwargs)
            self.activation = keras.activations.get(activation)

        def call(self, inputs):
            return self.activation(inputs)

    keras.saving.register_keras_serializable("mine", "Own")(NewOwn)
    path = old_models.saved(model_of_keras_2(Own()), tmp_path / "model.h5")
    assert "is that of Keras 3" in kerasnorm.load_report(path).warnings[0]


@pytest.mark.parametrize(
    ("kind", "name", "stored"),
    [
        ("initializer", "HeNormal", "he_normal"),
        ("regularizer", "L2", "l2"),
        ("constraint", "NonNeg", "non_neg"),
    ],
)
def test_what_keras_has_under_a_name_is_not_taken_for_ones_own(kind, name, stored, tmp_path):
    options = {f"kernel_{kind}": stored}
    own = type(name, (), {"get_config": lambda self: {}})
    keras.saving.register_keras_serializable("mine")(own)
    for suffix in ("h5", "keras"):
        path = tmp_path / f"model.{suffix}"
        for model in (
            model_of_keras_2(L.Dense(4, **options)),
            keras.Sequential([keras.Input((6,)), layers.Dense(4, **options)]),
        ):
            model.save(path)
            loaded = kerasnorm.load_model(path)
            assert type(getattr(loaded.layers[0], f"kernel_{kind}")) is not own
            assert loaded.load_report == []
