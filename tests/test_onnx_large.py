"""Weights of more than one ONNX file holds, in a file of their own."""

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tiny_models
from keras import layers

import kerasnorm
from kerasnorm.errors import ExportError
from kerasnorm.layers import CosineNorm, LayerNorm, WeightNorm
from kerasnorm.onnx import export, trace
from kerasnorm.onnx.check import tolerance_for
from kerasnorm.onnx.export import export_onnx


@pytest.fixture
def small_files(monkeypatch):
    """As if one file held no more than 1000 bytes, and a weight of 500 were large."""
    keras.utils.set_random_seed(0)
    monkeypatch.setattr(export, "_LARGEST_FILE", 1000)
    monkeypatch.setattr(trace, "_LARGE_MODEL", 1000)
    monkeypatch.setattr(trace, "_LARGE_WEIGHT", 500)


def images():
    stack = [
        layers.Conv2D(8, 3, activation="relu"),
        layers.BatchNormalization(),
        WeightNorm(layers.DepthwiseConv2D(3)),
        LayerNorm(axis="sample"),
        CosineNorm(layers.Conv2D(16, 3), rescale=True),
        layers.GlobalAveragePooling2D(),
        layers.Dense(64),
    ]
    return keras.Sequential([keras.Input((None, None, 3), name="x"), *stack])


def steps():
    stack = [layers.Embedding(99, 16), layers.LSTM(16, return_sequences=True), layers.GRU(16)]
    return keras.Sequential([keras.Input((None,), dtype="int32"), *stack])


def half():
    return keras.Sequential([keras.Input((32,)), layers.Dense(64, dtype="mixed_float16")])


def brain():
    return keras.Sequential([keras.Input((32,)), layers.Dense(64, dtype="mixed_bfloat16")])


def files(folder):
    return sorted(file.name for file in folder.iterdir())


@pytest.mark.parametrize("make", [images, steps, half, brain, tiny_models.residual])
@pytest.mark.parametrize("opset", [17, 21])
def test_the_weights_stand_beside_the_model(make, opset, small_files, tmp_path):
    model = make()
    result = export_onnx(model, tmp_path / "model.onnx", opset=opset)  # compared with Keras
    assert result.max_difference <= tolerance_for(model)
    model_file, weights = files(tmp_path)
    assert weights.startswith("weights-")
    assert model_file == "model.onnx"
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    stored = graph.initializer
    places = {entry.value for t in stored for entry in t.external_data if entry.key == "location"}
    assert places == {weights}
    assert all(len(tensor.raw_data) <= 500 for tensor in stored)
    # No kernel is left to be transposed each time.
    names = {tensor.name for tensor in stored if tensor.external_data}
    assert not any(set(node.input) <= names for node in graph.node if node.input)


def test_another_model_of_the_same_weights_shares_them(small_files, tmp_path):
    model = images()
    export_onnx(model, tmp_path / "a.onnx")
    export_onnx(model, tmp_path / "b.onnx")
    assert len(files(tmp_path)) == 3
    head = model.layers[-1].kernel
    head.assign(head + 1)
    export_onnx(model, tmp_path / "b.onnx")
    assert len(files(tmp_path)) == 4
    x = np.ones((1, 16, 16, 3), "float32")
    first, second = (
        onnxruntime.InferenceSession(tmp_path / name).run(None, {"x": x})[0]
        for name in ("a.onnx", "b.onnx")
    )
    assert not np.allclose(first, second)


def test_a_failure_leaves_nothing(small_files, tmp_path):
    with pytest.raises(ExportError, match="differ"):
        export_onnx(images(), tmp_path / "model.onnx", tolerance=0.0)
    assert files(tmp_path) == []


def test_a_failure_leaves_weights_that_another_model_needs(small_files, tmp_path):
    model = images()
    export_onnx(model, tmp_path / "a.onnx")
    before = files(tmp_path)
    with pytest.raises(ExportError, match="differ"):
        export_onnx(model, tmp_path / "b.onnx", tolerance=0.0)
    assert files(tmp_path) == before


@pytest.mark.slow
def test_more_than_two_gigabytes(tmp_path):
    keras.utils.set_random_seed(0)
    stack = [
        layers.Dense(17_000),
        layers.BatchNormalization(),
        layers.Dense(17_000),
        layers.Dense(8),
    ]
    model = keras.Sequential([keras.Input((17_000,)), *stack])
    swap = kerasnorm.swap_norms(model, "weight")
    del model
    result = export_onnx(swap.model, tmp_path / "model.onnx")
    assert "Transpose" not in result.op_counts
    [weights] = tmp_path.glob("weights-*.data")
    assert weights.stat().st_size > 2**31
