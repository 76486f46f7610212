"""Layer-normalized recurrent cells beyond the contract: states, masks, dropout, wrappers."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import output_and_gradients
from keras import layers

from kerasnorm import WeightNorm
from kerasnorm.layers import LayerNormGRUCell, LayerNormLSTMCell, LayerNormSimpleRNNCell

CELLS = [LayerNormSimpleRNNCell, LayerNormLSTMCell, LayerNormGRUCell]
cells = pytest.mark.parametrize("cell", CELLS)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


@cells
def test_masked_steps_keep_the_state(cell):
    inputs = keras.Input((None, 3))
    layer = layers.RNN(cell(4))
    model = keras.Model(inputs, layer(layers.Masking()(inputs)))
    x = normal(2, 6, 3)
    x[:, 4:] = 0
    np.testing.assert_allclose(model(x), layer(x[:, :4]), atol=1e-6)


def test_the_initial_state_is_normalized():
    """With no input to add, only the direction of h matters; c is part of the sum it enters."""
    layer = layers.RNN(LayerNormLSTMCell(8, epsilon=1e-12))
    x, h, c = normal(2, 1, 3), normal(2, 8, seed=1), normal(2, 8, seed=2)
    start = layer(x, initial_state=[h, c])
    np.testing.assert_allclose(layer(x, initial_state=[100 * h, c]), start, atol=1e-5)
    assert np.abs(np.asarray(layer(x, initial_state=[-h, c])) - np.asarray(start)).max() > 1e-3


@cells
def test_the_initial_state_has_mean_0_and_variance_1(cell):
    for state in cell(6).get_initial_state(batch_size=2):
        np.testing.assert_allclose(np.mean(state, -1), 0, atol=1e-6)
        np.testing.assert_allclose(np.var(state, -1), 1, atol=1e-6)


@cells
@pytest.mark.parametrize("blank", [0, 30])
def test_blank_steps_at_the_start_keep_gradients_within_bounds(cell, blank):
    layer = layers.RNN(cell(16))
    x = np.concatenate([np.zeros((2, blank, 3), "float32"), normal(2, 5, 3)], 1)
    y, _, gradients = output_and_gradients(layer, x, np.ones(layer(x).shape, "float32"))
    assert np.isfinite(y).all()
    assert max(np.abs(gradient).max() for gradient in gradients) < 1e3


@cells
def test_a_given_state_of_zeros_is_finite(cell):
    layer = layers.RNN(cell(4))
    zeros = [np.zeros((2, 4), "float32") for _ in cell(4).get_initial_state(2)]
    assert np.isfinite(layer(normal(2, 5, 3), initial_state=zeros)).all()


@cells
@pytest.mark.parametrize("blank", [0, 30])
def test_blank_steps_from_a_state_of_zeros_keep_gradients_within_bounds(cell, blank):
    layer = layers.RNN(cell(16), stateful=True)
    x = np.concatenate([np.zeros((2, blank, 3), "float32"), normal(2, 5, 3)], 1)
    layer(x)
    layer.reset_state()  # to zeros, whatever the cell starts from
    y, dx, gradients = output_and_gradients(layer, x, np.ones((2, 16), "float32"))
    assert np.isfinite(y).all()
    assert max(np.abs(gradient).max() for gradient in (dx, *gradients)) < 1e3
    assert all(np.abs(gradient).max() > 0 for gradient in gradients)


@cells
def test_dropout_is_drawn_once_per_sequence_and_not_at_inference(cell):
    layer = layers.RNN(cell(16, dropout=0.5, recurrent_dropout=0.5))
    x = normal(2, 4, 8)
    assert not np.array_equal(layer(x, training=True), layer(x, training=True))
    np.testing.assert_array_equal(layer(x), layer(x))


def test_dropout_masks_are_the_same_at_every_step():
    """Each output then depends on its own input only, which is the same at every step."""
    layer = layers.RNN(LayerNormSimpleRNNCell(16, dropout=0.5), return_sequences=True)
    x = np.repeat(normal(2, 1, 8), 6, axis=1)
    layer(x)
    layer.cell.recurrent_kernel.assign(np.zeros((16, 16)))
    y = np.asarray(layer(x, training=True))
    np.testing.assert_array_equal(y, np.repeat(y[:, :1], 6, axis=1))
    assert np.abs(y - np.asarray(layer(x))).max() > 1e-3


@cells
def test_without_a_bias(cell):
    layer = layers.RNN(cell(4, use_bias=False))
    assert layer(normal(2, 5, 3)).shape == (2, 4)
    assert not any("bias" in w.path for w in layer.weights)


@cells
def test_half_precision_takes_large_inputs(cell):
    layer = layers.RNN(cell(4, dtype="mixed_float16"), dtype="mixed_float16")
    y = np.asarray(layer(1e3 * normal(2, 5, 3)))
    assert np.isfinite(y).all()


def test_cells_can_be_stacked_and_read_both_ways():
    stacked = layers.RNN([LayerNormLSTMCell(4), LayerNormGRUCell(3)], return_sequences=True)
    y = layers.Bidirectional(stacked)(normal(2, 5, 3))
    assert y.shape == (2, 5, 6)


def test_a_cell_can_be_weight_normalized_as_well():
    cell = LayerNormLSTMCell(4)
    layer = layers.RNN(WeightNorm(cell))
    x = normal(2, 5, 3)
    np.testing.assert_allclose(layer(x), layers.RNN(cell)(x), atol=1e-5)


def test_a_reset_gate_before_the_product_is_refused():
    with pytest.raises(ValueError, match="Received: reset_after=False"):
        LayerNormGRUCell(4, reset_after=False)
