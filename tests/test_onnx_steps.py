"""TimeDistributed as ONNX: one call of its layer, for any number of steps."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import onnxruntime
import pytest
from keras import layers

import kerasnorm
from kerasnorm import GroupNorm, LayerNorm

INNER = {
    "dense": ((6,), lambda: layers.Dense(4, bias_initializer="random_normal")),
    "convolution": ((8, 8, 3), lambda: layers.Conv2D(4, 3, strides=2)),
    "to a vector": ((5, 3), layers.Flatten),
    "recurrent": ((5, 3), lambda: layers.LSTM(4)),
    "layer norm": ((5, 3), LayerNorm),
    "group norm": ((6, 6, 8), lambda: GroupNorm(2)),
    "model": ((6,), lambda: keras.Sequential([layers.Dense(4, "relu"), layers.Dense(2)])),
    "nested": ((4, 6), lambda: layers.TimeDistributed(layers.Dense(3))),
    "Keras's group norm": ((4, 4, 8), lambda: layers.GroupNormalization(2)),
}


def answers(path, *arrays):
    session = onnxruntime.InferenceSession(path)
    names = [value.name for value in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays, strict=True)))


def sizes(values):
    return [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values]


@pytest.mark.parametrize("steps", [None, 5])
@pytest.mark.parametrize("name", INNER)
def test_each_step_of_each_sample(name, steps, tmp_path):
    shape, make = INNER[name]
    keras.utils.set_random_seed(0)
    inputs = keras.Input((steps, *shape), name="x")
    model = keras.Model(inputs, layers.TimeDistributed(make())(inputs))
    result = kerasnorm.export_onnx(model, tmp_path / "model.onnx")
    assert not {"Loop", "Scan", "If"} & set(result.op_counts)
    for samples, count in ((1, 5), (3, steps or 7)):
        x = np.random.default_rng(0).normal(size=(samples, count, *shape)).astype("float32")
        [received] = answers(tmp_path / "model.onnx", x)
        np.testing.assert_allclose(received, model(x), atol=1e-5)


def test_what_reads_the_steps(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 6))
    y = layers.TimeDistributed(layers.Dense(4))(inputs)
    model = keras.Model(inputs, layers.Bidirectional(layers.GRU(3))(y))
    kerasnorm.export_onnx(model, tmp_path / "model.onnx")
    x = np.random.default_rng(0).normal(size=(2, 11, 6)).astype("float32")
    np.testing.assert_allclose(answers(tmp_path / "model.onnx", x)[0], model(x), atol=1e-5)


def test_masked_steps(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((7, 4, 6))
    y = layers.Masking()(inputs)
    model = keras.Model(inputs, layers.TimeDistributed(layers.LSTM(3))(y))
    x = np.random.default_rng(0).normal(size=(3, 7, 4, 6)).astype("float32")
    x[:, 4:] = x[1, 2:, 3:] = 0
    kerasnorm.export_onnx(model, tmp_path / "model.onnx", inputs=x)
    np.testing.assert_allclose(answers(tmp_path / "model.onnx", x)[0], model(x), atol=1e-5)


def test_a_fixed_number_of_steps_is_one_product(tmp_path):
    inputs = keras.Input((50, 6))
    model = keras.Model(inputs, layers.TimeDistributed(layers.Dense(4))(inputs))
    counts = kerasnorm.export_onnx(model, tmp_path / "model.onnx").op_counts
    assert counts["MatMul"] == 1
    assert sum(counts.values()) <= 3


def test_free_sizes_have_one_name_wherever_they_are_the_same(tmp_path):
    image, words = keras.Input((None, None, 3), name="image"), keras.Input((None, 5), name="words")
    same = layers.Conv2D(4, 3, padding="same", name="same")(image)
    half = layers.Conv2D(4, 3, 2, padding="same", name="half")(image)
    steps = layers.TimeDistributed(layers.Dense(2), name="steps")(words)
    model = keras.Model([image, words], [same, half, steps])
    kerasnorm.export_onnx(model, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert sizes(graph.input) == [
        ["batch", "image_axis_1", "image_axis_2", 3],
        ["batch", "words_axis_1", 5],
    ]
    outputs = [["batch", "image_axis_1", "image_axis_2", 4]]
    outputs += [["batch", "half_axis_1", "half_axis_2", 4], ["batch", "words_axis_1", 2]]
    received = sizes(graph.output)
    assert [received[0], received[2]] == [outputs[0], outputs[2]]
    assert received[1][0] == "batch"
    assert not {"image_axis_1", "image_axis_2"} & set(received[1])


def test_what_is_no_batch_is_not_called_one(tmp_path):
    inputs = keras.Input((4,), name="x")
    model = keras.Model(inputs, keras.ops.reshape(layers.Dense(6)(inputs), (-1, 2)))
    kerasnorm.export_onnx(model, tmp_path / "model.onnx")
    [[rows, _]] = sizes(onnx.load(tmp_path / "model.onnx").graph.output)
    assert rows != "batch"
