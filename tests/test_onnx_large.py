"""Weights of more than one ONNX file holds, in a file of their own."""

import errno
import os

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
import tensorflow as tf
import tiny_models
from keras import layers

import kerasnorm
from kerasnorm.compare.tolerances import OF_LARGEST_ENTRY, coarsest_dtype
from kerasnorm.errors import ExportError
from kerasnorm.layers import CosineNorm, LayerNorm, WeightNorm
from kerasnorm.onnx import export, frozen_graph
from kerasnorm.onnx import external_weights as weights
from kerasnorm.onnx.check import rounding_sensitivity
from kerasnorm.onnx.export import export_onnx
from kerasnorm.onnx.io_spec import signature_of


@pytest.fixture
def small_files(monkeypatch):
    """As if one file held no more than 1000 bytes, and a weight of 500 were large."""
    keras.utils.set_random_seed(0)
    monkeypatch.setattr(export, "_LARGEST_FILE", 1000)
    monkeypatch.setattr(export, "_LARGE_MODEL", 1000)
    monkeypatch.setattr(frozen_graph, "_LARGE_WEIGHT", 500)


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
    assert result.max_difference <= OF_LARGEST_ENTRY[coarsest_dtype(model)]
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


class Inverse(layers.Layer):
    """Computes with its weight what ONNX has no operator for, which TensorFlow can do at once."""

    def build(self, shape):
        self.w = self.add_weight(shape=(64, 64), initializer=keras.initializers.Identity())

    def call(self, x):
        return x @ tf.linalg.inv(self.w)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Branch(layers.Layer):
    """A weight decides, and is used in both branches."""

    def build(self, shape):
        self.w = self.add_weight(shape=(64, 64))

    def call(self, x):
        less, more = lambda: self.w * 2, lambda: self.w + keras.ops.mean(x)
        return x @ keras.ops.cond(keras.ops.sum(self.w) > 1e9, less, more)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype)


class Weight(layers.Layer):
    """Hands a weight out."""

    def build(self, shape):
        self.w = self.add_weight(shape=(64, 64))

    def call(self, x):
        return x, keras.ops.convert_to_tensor(self.w)

    def compute_output_spec(self, x):
        return keras.KerasTensor(x.shape, x.dtype), keras.KerasTensor((64, 64), x.dtype)


@pytest.mark.parametrize("make", [Inverse, Branch, Weight])
def test_what_is_computed_from_weights(make, monkeypatch, small_files, tmp_path):
    monkeypatch.setattr(export, "_LARGEST_FILE", 2**31)
    inputs = keras.Input((64,))
    model = keras.Model(inputs, make()(inputs))
    assert export_onnx(model, tmp_path / "model.onnx").max_difference <= 1e-5
    assert files(tmp_path) == ["model.onnx"]


def test_what_cannot_be_computed_is_refused_where_it_has_to_be(small_files, tmp_path):
    model = keras.Sequential([keras.Input((64,)), Inverse(name="inverse")])
    with pytest.raises(ExportError, match=r"layer 'inverse': .*MatrixInverse"):
        export_onnx(model, tmp_path / "model.onnx")
    assert files(tmp_path) == []


def test_weights_outside_are_moved_too_where_rounding_is_measured(small_files):
    model = keras.Sequential([keras.Input((), dtype="int32"), layers.Embedding(50, 64)])
    for _ in range(8):
        model.add(layers.Dense(64, use_bias=False, activation="tanh"))
    x = [np.arange(3, dtype="int32")]
    inside, outside = (
        rounding_sensitivity(
            frozen_graph.freeze(model, signature_of(model), 17, outside=outside), x
        )
        for outside in (False, True)
    )
    # The same weights, moved up and down in another order; without them nothing moves at all.
    assert 0.5 * inside < outside < 2 * inside


def test_damaged_weights_are_replaced(small_files, tmp_path):
    model = images()
    export_onnx(model, tmp_path / "a.onnx")
    [weights] = tmp_path.glob("weights-*")
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    export_onnx(model, tmp_path / "a.onnx")
    assert weights.read_bytes() == whole


def test_weights_lie_where_a_runtime_can_map_them(small_files, tmp_path):
    export_onnx(images(), tmp_path / "a.onnx")
    stored = onnx.load(tmp_path / "a.onnx", load_external_data=False).graph.initializer
    offsets = [int(e.value) for t in stored for e in t.external_data if e.key == "offset"]
    assert len(offsets) > 1
    assert all(offset % 4096 == 0 for offset in offsets)


def test_no_weight_is_left_that_nothing_needs(small_files, tmp_path):
    export_onnx(images(), tmp_path / "a.onnx")
    graph = onnx.load(tmp_path / "a.onnx", load_external_data=False).graph
    used = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= used


def test_one_that_fails_does_not_take_the_weights_of_another(small_files, tmp_path, monkeypatch):
    model = images()
    checked = export.check

    def fail(*args, **kwargs):
        monkeypatch.setattr(export, "check", checked)
        export_onnx(model, tmp_path / "b.onnx")  # meanwhile, by somebody else
        monkeypatch.setattr(export, "check", fail)
        raise ExportError("It differs.")

    monkeypatch.setattr(export, "check", fail)
    with pytest.raises(ExportError, match="differs"):
        export_onnx(model, tmp_path / "a.onnx")
    onnxruntime.InferenceSession(tmp_path / "b.onnx")


def test_a_full_disk_leaves_nothing(small_files, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(weights.os, "fsync", full)
    with pytest.raises(ExportError, match=r"could not be written: No space left on device\."):
        export_onnx(images(), tmp_path / "model.onnx")
    assert files(tmp_path) == []


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
    if os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < 14 * 2**30:
        pytest.skip("needs 14 GB of free memory: model, copy, file and session")
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
