"""What Keras 2 added along one axis is added along that axis, whatever lengths agree."""

from __future__ import annotations

import itertools

import keras
import numpy as np
import old_models
import pytest
from helpers import assert_close, has_channels_first

import kerasnorm
from kerasnorm.graph.keras_add import is_added_in_place
from kerasnorm.loading.legacy import sums

pytestmark = [
    # Keras 2 has its own use of NumPy and TensorFlow
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
tk, L = old_models.tk, old_models.L


def assert_stays(model, *arrays, suffix="h5", tmp_path):
    """A model of Keras 2 answers as it did, for one sample and for several."""
    path = old_models.saved(model, tmp_path / f"model.{suffix}")
    loaded = kerasnorm.load_model(path)
    fixed = model.inputs[0].shape[0]
    for rows in (1, 3) if fixed is None else (fixed,):
        given = [array[:rows] for array in arrays]
        given = given if len(given) > 1 else given[0]
        expected = model(given, training=False).numpy()
        assert_close(loaded(given, training=False), expected)
    loaded.save(tmp_path / "again.keras")
    assert_close(kerasnorm.load_model(tmp_path / "again.keras")(given), expected)
    return loaded


def normal(*shape):
    return np.random.default_rng(0).normal(size=shape).astype("float32")


def constant(*shape):
    return np.arange(np.prod(shape), dtype="float32").reshape(shape)


@pytest.mark.parametrize(
    ("shape", "column"),
    [
        ((6, 6), (6, 1)),
        ((6, 6, 6), (6, 1, 1)),
        ((6, 6, 6), (1, 6, 1)),
        ((6, 6), (6,)),
        ((6, 4), (6, 1)),
        ((6, 1), (6,)),
        ((6, 1), (1, 6)),
        ((None, 6), (6, 1)),
        ((6, None), (6, 1)),
    ],
)
def test_a_constant(shape, column, tmp_path):
    i, c = tk.Input(shape), constant(*column)
    x = normal(3, *[size or 6 for size in shape])
    assert_stays(tk.Model(i, i + c), x, tmp_path=tmp_path)


@pytest.mark.parametrize("suffix", ["h5", "keras"])
def test_other_ways_to_add_a_constant(suffix, tmp_path):
    import tensorflow as tf

    i, c = tk.Input((6, 6)), constant(6, 1)
    total = tf.add(i, c) + tf.add_n([i * 2.0, i])
    model = tk.Model(i, tf.concat([total, c + i, c - i, i - c], axis=-1))
    assert_stays(model, normal(3, 6, 6), suffix=suffix, tmp_path=tmp_path)
    loaded = kerasnorm.load_model(tmp_path / f"model.{suffix}")
    x = normal(3, 6, 6)
    assert_close(loaded.predict(x, verbose=0), model.predict(x, verbose=0))


def test_a_constant_on_a_batch_of_one_size(tmp_path):
    i = tk.Input(batch_shape=(6, 6))
    assert_stays(tk.Model(i, i + constant(6, 1)), normal(6, 6), tmp_path=tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int8"])
def test_tensors_of_whole_numbers(dtype, tmp_path):
    a, b = tk.Input((6, 6), dtype=dtype), tk.Input((6, 1), dtype=dtype)
    x = np.arange(108).reshape(3, 6, 6).astype(dtype), np.arange(18).reshape(3, 6, 1).astype(dtype)
    assert_stays(tk.Model([a, b], a + b), *x, tmp_path=tmp_path)


@pytest.mark.parametrize("batch", [1, None])
def test_a_tensor(batch, tmp_path):
    a, b = tk.Input((6, 6), batch_size=batch), tk.Input((6, 1), batch_size=batch)
    assert_stays(tk.Model([a, b], a + b), normal(3, 6, 6), normal(3, 6, 1), tmp_path=tmp_path)


@pytest.mark.parametrize("merge", ["Add", "Average"])
@pytest.mark.parametrize("other", [(6, 1), (1, 6), (6,), (6, 6)])
def test_a_layer_that_sums(merge, other, tmp_path):
    a, b = tk.Input((6, 6)), tk.Input(other)
    model = tk.Model([a, b], getattr(L, merge)()([a, b]))
    loaded = assert_stays(model, normal(3, 6, 6), normal(3, *other), tmp_path=tmp_path)
    kinds = {type(layer).__name__ for layer in loaded.layers}
    assert (merge in kinds) == (other != (6, 1))  # else no other class is needed


@pytest.mark.parametrize("suffix", ["h5", "keras"])
@pytest.mark.parametrize("where", ["graph", "row"])
def test_a_bias_along_another_axis(suffix, where, tmp_path):
    dense = L.EinsumDense("btc,tu->buc", (6, 6), bias_axes="u", activation="relu")
    model = tk.Sequential([tk.Input((4, 6)), dense, L.Dense(2)])
    if where == "graph":
        inputs = tk.Input((4, 6))
        model = tk.Model(inputs, model.layers[1](dense(inputs)))
    x = normal(3, 4, 6)
    assert_stays(old_models.alive(model), x, suffix=suffix, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("Conv2D", {"filters": 5}),
        ("DepthwiseConv2D", {}),
        ("SeparableConv2D", {"filters": 5}),
        ("Conv2DTranspose", {"filters": 5}),
    ],
)
def test_a_bias_of_channels_first(kind, arguments, tmp_path):
    if not has_channels_first("float32"):
        pytest.skip("TensorFlow has no convolution with channels first on this machine")
    inputs = tk.Input((5, 4, 5))
    layer = getattr(L, kind)(
        **arguments, kernel_size=1, data_format="channels_first", activation="tanh"
    )
    model = old_models.alive(tk.Model(inputs, layer(inputs)))
    assert_stays(model, normal(3, 5, 4, 5), tmp_path=tmp_path)


def test_sums_of_all_small_shapes():
    """Against NumPy; where Keras's own addition is taken, it is right with sizes unknown too."""
    shapes = [s for rank in (1, 2, 3) for s in itertools.product((1, 2, 3), repeat=rank)]
    for x_shape, y_shape in itertools.product(shapes, shapes):
        x, y = normal(*x_shape), constant(*y_shape)
        try:
            expected = x + y
        except ValueError:
            continue
        unknown = (None, *x_shape[1:]), (None, *y_shape[1:])
        answers = [sums.add(x, y)]
        if is_added_in_place(*unknown) or is_added_in_place(unknown[0], y_shape):
            answers.append(keras.ops.add(x, y))
        for answer in answers:
            np.testing.assert_array_equal(answer, expected)
