"""Operations that Keras or TensorFlow adds and tf2onnx does not know."""

from __future__ import annotations

import keras
import numpy as np
import onnxruntime
import pytest
from keras import layers, ops

import kerasnorm
from kerasnorm import ExportError

X = np.float32([[0.0, -0.0, -1.0, 0.0], [3.0, 2.0, 3.0, -1.0], [-0.0, 0.0, -2.0, -0.0]])
X = np.concatenate([X, np.random.default_rng(0).normal(size=(20, 4)).astype("float32")])
FUNCTIONS = {
    "argmax": lambda x: ops.argmax(x, -1),
    "argmin": lambda x: ops.argmin(x, -1),
    "argmax that keeps its axis": lambda x: ops.argmax(x, 1, keepdims=True),
    "argmax of all": ops.argmax,
    "signbit": lambda x: ops.cast(ops.signbit(x), "int32"),
    "one-hot answers": lambda x: ops.one_hot(ops.argmax(x, -1), 4),
    "digitize": lambda x: ops.digitize(x, np.float32([-1, 0, 0.5])),
    "log1p": ops.log1p,
    "logaddexp": lambda x: ops.logaddexp(x, 2 * x),
    "gelu": lambda x: ops.gelu(x, approximate=False),
    "a layer of boundaries": layers.Discretization([-1.0, 0.0, 0.5]),
    "boundaries, one-hot": layers.Discretization([-1.0, 0.0, 0.5], output_mode="one_hot"),
}


@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_it_is_what_keras_computes(name, opset, tmp_path):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, FUNCTIONS[name](inputs))
    x = np.abs(X) if name == "log1p" else X
    kerasnorm.export_onnx(model, tmp_path / "model.onnx", inputs=x, opset=opset)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    [received] = session.run(None, {"x": x})
    np.testing.assert_allclose(received, model(x), atol=1e-6)


def test_log1p_of_small_numbers(tmp_path):
    inputs = keras.Input((6,), name="x")
    kerasnorm.export_onnx(keras.Model(inputs, ops.log1p(inputs)), tmp_path / "model.onnx")
    x = np.float32([[1e-30, 1e-9, -1e-9, 1e-7, 3e-4, 0.0]])
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], np.log1p(x), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_log1p_at_the_ends(dtype, tmp_path):
    inputs = keras.Input((6,), name="x", dtype=dtype)
    model = keras.Model(inputs, keras.layers.Lambda(ops.log1p, dtype=dtype)(inputs))
    kerasnorm.export_onnx(model, tmp_path / "model.onnx")
    x = np.array([[np.inf, np.finfo(dtype).max, -1, -2, np.nan, -np.inf]], dtype)
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    [received] = session.run(None, {"x": x})
    expected = keras.ops.convert_to_numpy(model(x))
    np.testing.assert_allclose(received, expected, rtol=1e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("layer", ["lookup", "hashing"])
def test_what_onnx_cannot_do_is_named_and_the_advice_works(layer, tmp_path):
    inputs = keras.Input((4,), dtype="int64", name="x")
    make = {
        "lookup": layers.IntegerLookup(vocabulary=[10, 20, 30], name="lookup"),
        "hashing": layers.Hashing(8, name="hashing"),
    }
    y = layers.Embedding(9, 3)(make[layer](inputs))
    model = keras.Model(inputs, layers.Dense(2)(layers.Flatten()(y)))
    with pytest.raises(ExportError) as caught:
        kerasnorm.export_onnx(model, tmp_path / "model.onnx")
    message = str(caught.value)
    assert f"layer '{layer}'" in message
    assert "tf2onnx" not in message
    assert "fct=" not in message
    assert f"keras.Model(model.get_layer('{layer}').output, model.output)" in message
    behind = keras.Model(model.get_layer(layer).output, model.output)
    kerasnorm.export_onnx(behind, tmp_path / "model.onnx")
