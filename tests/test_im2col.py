"""A linear layer as a matrix: rows times the matrix is what the layer computes."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from helpers import assert_close
from keras import layers

from kerasnorm.fit.im2col import Im2Col
from kerasnorm.layers.linear_ops import has_rows

CASES = {
    **tiny_models.LINEAR,
    "Conv2D same": (lambda: layers.Conv2D(4, (3, 2), padding="same"), (7, 6, 3)),
    "Conv2D same, strided": (lambda: layers.Conv2D(4, 3, strides=2, padding="same"), (8, 7, 3)),
    "Conv2D same, dilated": (
        lambda: layers.Conv2D(6, 3, dilation_rate=2, groups=3, padding="same"),
        (8, 7, 6),
    ),
    "Conv1D causal, dilated": (
        lambda: layers.Conv1D(4, 3, dilation_rate=2, padding="causal"),
        (9, 3),
    ),
    "DepthwiseConv2D same, strided": (
        lambda: layers.DepthwiseConv2D(3, strides=2, padding="same", depth_multiplier=2),
        (8, 7, 3),
    ),
    "SeparableConv2D same, strided": (
        lambda: layers.SeparableConv2D(4, 3, strides=2, padding="same", depth_multiplier=2),
        (8, 7, 3),
    ),
    "Conv3D same": (lambda: layers.Conv3D(4, 3, strides=2, padding="same"), (5, 6, 5, 2)),
}
NO_MATRIX = {"Conv1DTranspose", "Conv2DTranspose", "Conv3DTranspose"} | {
    "EinsumDense, two output axes",
    "EinsumDense, biases",
}


def built(name):
    make, shape = CASES[name]
    layer = make()
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, *shape)).astype("float32")
    layer(x)
    for variable in layer.variables:
        variable.assign(rng.normal(size=variable.shape))
    return layer, x


@pytest.mark.parametrize("name", sorted(CASES.keys() - NO_MATRIX))
@pytest.mark.parametrize("count", [10, 10**6])
def test_rows_times_matrix_is_the_layer(name, count):
    layer, x = built(name)
    assert has_rows(layer)
    y = np.asarray(layer(x))
    rows = Im2Col(layer)
    index = rows.sample(y.shape, count, np.random.default_rng(1))
    answer = rows.flat(rows.inputs(x.astype("float64"), index) @ rows.matrix())
    bias = 0.0 if layer.bias is None else np.asarray(layer.bias, "float64")
    assert_close(answer + bias, rows.flat(rows.outputs(y, index)))
    assert len(answer) == min(count, np.prod(y.shape[:-1]))


@pytest.mark.parametrize("name", ["Conv2D groups", "DepthwiseConv2D", "Dense"])
def test_a_matrix_goes_back_where_it_came_from(name):
    layer, _ = built(name)
    before = np.array(Im2Col(layer).variable)
    rows = Im2Col(layer)
    rows.assign(2.0 * rows.matrix())
    np.testing.assert_allclose(rows.variable, 2.0 * before, rtol=1e-6)


def test_channels_first():
    layer = layers.Conv2D(4, 3, strides=2, padding="same", data_format="channels_first")
    layer.build((None, 3, 8, 7))
    last = layers.Conv2D(4, 3, strides=2, padding="same")
    last.build((None, 8, 7, 3))
    x = np.random.default_rng(0).normal(size=(2, 3, 8, 7))
    rows, reference = Im2Col(layer), Im2Col(last)
    index = rows.sample((2, 4, 4, 4), 10, np.random.default_rng(1))
    np.testing.assert_array_equal(
        rows.inputs(x, index), reference.inputs(np.moveaxis(x, 1, -1), index)
    )


@pytest.mark.parametrize("name", sorted(NO_MATRIX))
def test_what_is_no_matrix(name):
    assert not has_rows(CASES[name][0]())


def test_other_layers_are_no_matrix():
    assert not has_rows(keras.layers.ReLU())
