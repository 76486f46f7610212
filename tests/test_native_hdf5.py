"""HDF5 files of Keras 3 answer as what was saved, also where Keras's own reader loses things."""

from __future__ import annotations

import json

import h5py
import keras
import numpy as np
import pytest
from helpers import assert_close
from keras import layers, ops

import kerasnorm

pytestmark = [
    pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5"),
]
SHAPE = (4, 5, 6)


def images(rows=3):
    return np.random.default_rng(0).normal(3, 2, size=(rows, *SHAPE)).astype("float32")


def adapted(axis):
    layer = layers.Normalization(axis=axis)
    layer.adapt(images(20))
    return layer


@keras.saving.register_keras_serializable("native_hdf5")
class SumOver(layers.Layer):
    """Takes its axes as a list, of one too."""

    def __init__(self, axis, **kwargs):
        super().__init__(**kwargs)
        self.axis = axis

    def call(self, inputs):
        return ops.sum(inputs, tuple(self.axis))

    def get_config(self):
        return {**super().get_config(), "axis": list(self.axis)}


LAYERS = {
    "UnitNormalization": lambda: layers.UnitNormalization(axis=[1, 2]),
    "LayerNormalization, neither": lambda: layers.LayerNormalization(
        axis=[1, 2], center=False, scale=False
    ),
    "LayerNormalization": lambda: layers.LayerNormalization(axis=[3, 1]),
    "Softmax": lambda: layers.Softmax(axis=(1, 2)),
    "Normalization": lambda: adapted([1, 3]),
    "Normalization of all": lambda: adapted(None),
    "Normalization of the last": lambda: adapted(-1),
    "one's own": lambda: SumOver([1, 2]),
    "one's own, of one": lambda: SumOver([1]),
    "TimeDistributed": lambda: layers.TimeDistributed(layers.Softmax(axis=(1, 2))),
}
OPERATIONS = {
    "mean": lambda x: ops.mean(x, axis=(1, 2)),
    "transpose": lambda x: ops.transpose(x, (0, 2, 1, 3)),
    "index": lambda x: x[..., 1:3],
    "reshape": lambda x: ops.reshape(x, (-1, 20, 6)),
    "sum": lambda x: x + 2.0 * x,
    "maximum": lambda x: ops.maximum(x, 0.5),
    "concatenate": lambda x: ops.concatenate([x, 2.0 * x], axis=1),
    "softmax": lambda x: ops.softmax(x, axis=1),
    "cast": lambda x: ops.cast(x, "float16"),
    "resize": lambda x: ops.image.resize(x, (7, 8)),
}


def flat(x):
    return keras.Model(x, layers.Dense(2)(layers.Flatten()(x)))


def assert_stays(model, path, x=None):
    x = images() if x is None else x
    for number, weight in enumerate(model.trainable_weights):
        draw = np.random.default_rng(number)
        weight.assign(draw.normal(size=weight.shape))
    model.save(path)
    loaded = kerasnorm.load_model(path)
    assert_close(loaded(x, training=False), model(x, training=False))
    return loaded


@pytest.mark.parametrize("where", ["graph", "row", "inner"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name, where, tmp_path):
    layer, x = LAYERS[name](), keras.Input(SHAPE)
    if where == "graph":
        model = keras.Model(x, layer(x))
    else:
        model = keras.Sequential([keras.Input(SHAPE), layer])
    if where == "inner":
        model = keras.Model(x, layers.Activation("tanh")(model(x)))
    assert_stays(model, tmp_path / "model.h5")


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations(name, tmp_path):
    x = keras.Input(SHAPE)
    assert_stays(keras.Model(x, OPERATIONS[name](x)), tmp_path / "model.h5")


def test_the_report_says_what_was_kept(tmp_path):
    x = keras.Input(SHAPE)
    y = layers.UnitNormalization(axis=[1, 2], name="unit")(ops.tanh(x))
    loaded = assert_stays(keras.Model(x, y), tmp_path / "model.h5")
    assert loaded.load_report == [
        "keras.ops.Tanh was stored as if it were a layer ('tanh')",
        "`axis=[1, 2]` was kept, which Keras 3 loses in its own HDF5 files ('unit')",
    ]


@pytest.mark.parametrize(("axis", "said"), [(None, "None"), ([1, 3], "[1, 3]")])
def test_the_report_says_an_axis_as_its_argument_is_given(axis, said, tmp_path):
    model = keras.Sequential([keras.Input(SHAPE), adapted(axis)])
    [line] = assert_stays(model, tmp_path / "model.h5").load_report
    assert line.startswith(f"`axis={said}` was kept")


def test_the_compile_state_stays(tmp_path):
    model = keras.Sequential([keras.Input(SHAPE), layers.Softmax(axis=(1, 2)), layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.02), "mse", metrics=["mae"])
    loaded = assert_stays(model, tmp_path / "model.h5")
    assert loaded.compiled
    assert float(loaded.optimizer.learning_rate) == pytest.approx(0.02)


def test_a_configuration_taken_out_of_the_file(tmp_path):
    model = keras.Sequential([keras.Input(SHAPE), layers.Softmax(axis=(1, 2)), layers.Dense(2)])
    assert_stays(model, tmp_path / "whole.h5")
    with h5py.File(tmp_path / "whole.h5") as file, h5py.File(tmp_path / "net.h5", "w") as weights:
        config = json.loads(file.attrs["model_config"])
        file["model_weights"].copy(file["model_weights"], weights, "kept")
        for name in list(weights["kept"]):
            weights.move(f"kept/{name}", name)
        weights.attrs.update(dict(weights["kept"].attrs))
    (tmp_path / "net.json").write_text(json.dumps(config))
    loaded = kerasnorm.load_model(tmp_path / "net.json")
    assert_close(loaded(images()), model(images()))


def test_files_that_lose_nothing_are_read_by_keras(tmp_path):
    model = keras.Sequential([keras.Input(SHAPE), layers.Softmax(axis=1), layers.Dense(2)])
    assert assert_stays(model, tmp_path / "model.h5").load_report == []
