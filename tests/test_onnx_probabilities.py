"""What the check of an ONNX file makes of probabilities next to 0 and 1."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import pytest
from keras import layers
from onnx import numpy_helper

import kerasnorm
from kerasnorm import ExportError
from kerasnorm.onnx import export

X = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")


def surely(logit, activation="sigmoid", units=1):
    """A net whose logits are near a number, or whose first class is the only one."""
    bias = np.zeros(units, "float32")
    bias[0] = logit
    inputs = keras.Input((6,))
    outputs = layers.Dense(units, activation, bias_initializer=keras.initializers.Constant(bias))
    return keras.Model(inputs, outputs(inputs))


@pytest.mark.parametrize("logit", [-20.5, -90.0, 20.5])
def test_a_sigmoid_that_is_sure_is_exported(logit, tmp_path):
    keras.utils.set_random_seed(0)
    model = surely(logit)
    assert kerasnorm.export_onnx(model, tmp_path / "m.onnx", inputs=X).max_difference < 1e-5
    kerasnorm.export_onnx(model, tmp_path / "m.onnx")


def test_pixels_that_are_surely_no(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    conv = layers.Conv2D(1, 3, bias_initializer=keras.initializers.Constant(-20.5))
    model = keras.Model(inputs, layers.Activation("sigmoid")(conv(inputs)))
    kerasnorm.export_onnx(model, tmp_path / "m.onnx")


def wrong_by(monkeypatch, factor, rank=2):
    """Has every weight of so many axes be larger by a factor in the file."""
    to_onnx = export.to_onnx

    def wrong(*args):
        proto = to_onnx(*args)
        for tensor in proto.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.ndim == rank:
                changed = numpy_helper.from_array(values * np.float32(factor), tensor.name)
                tensor.CopyFrom(changed)
        return proto

    monkeypatch.setattr(export, "to_onnx", wrong)


@pytest.mark.parametrize(
    "model",
    [lambda: surely(-20.5), lambda: surely(40.0), lambda: surely(60.0, "softmax", 3)],
    ids=["no", "yes", "one class"],
)
def test_what_is_wrong_before_them_is_seen(model, tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    model = model()
    wrong_by(monkeypatch, 1.01)
    with pytest.raises(ExportError, match="differ in the logits of output"):
        kerasnorm.export_onnx(model, tmp_path / "m.onnx", inputs=X)
    assert not (tmp_path / "m.onnx").exists()


def test_logits_of_channels_first_are_turned(tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 2))
    conv = layers.Conv2D(3, 3, bias_initializer=keras.initializers.Constant([60.0, 0, 0]))
    model = keras.Model(inputs, layers.Softmax()(conv(inputs)))
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 2)).astype("float32")
    kerasnorm.export_onnx(model, tmp_path / "m.onnx", inputs=x)
    wrong_by(monkeypatch, 1.01, rank=4)
    with pytest.raises(ExportError, match="differ in the logits of output"):
        kerasnorm.export_onnx(model, tmp_path / "m.onnx", inputs=x)
    assert "Softmax" in {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}


@pytest.mark.parametrize(
    "last",
    [
        lambda: [layers.Softmax(), layers.Permute((2, 1))],
        lambda: [layers.Softmax(axis=1)],
        lambda: [layers.Softmax(axis=1), layers.Permute((2, 1))],
        lambda: [layers.Permute((2, 1)), layers.Activation("sigmoid"), layers.Permute((2, 1))],
    ],
    ids=["turned after", "over another axis", "both", "turned twice"],
)
@pytest.mark.parametrize("units", [4, 5])
def test_probabilities_that_are_turned(last, units, tmp_path, monkeypatch):
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4, 6)), layers.Dense(units), *last()])
    x = 1e4 * np.random.default_rng(0).normal(size=(4, 4, 6)).astype("float32")
    kerasnorm.export_onnx(model, tmp_path / "m.onnx", inputs=x)
    wrong_by(monkeypatch, 1.01)
    with pytest.raises(ExportError, match="differ in"):
        kerasnorm.export_onnx(model, tmp_path / "m.onnx", inputs=x)


def test_probabilities_in_bfloat16(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,), dtype="bfloat16")
    outputs = layers.Dense(5, "softmax", dtype="bfloat16")(inputs)
    kerasnorm.export_onnx(keras.Model(inputs, outputs), tmp_path / "m.onnx", inputs=1e4 * X)
