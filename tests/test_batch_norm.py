"""BatchNorm beyond the contract: moving statistics, freezing, precision, and what it refuses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers import TOLERANCE, standardize
from keras import layers

from kerasnorm import Affine, BatchNorm


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_moving_statistics_take_a_step():
    layer = BatchNorm(momentum=0.9)
    x = normal(16, 3) * 2 + 5
    layer(x, training=True)
    np.testing.assert_allclose(layer.moving_mean, 0.1 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(layer.moving_variance, 0.9 + 0.1 * x.var(0), rtol=1e-5)


def test_a_frozen_layer_runs_on_its_moving_statistics():
    layer = BatchNorm()
    x = normal(8, 3) + 4
    layer(x, training=True)
    layer.trainable = False
    before = layer.get_weights()
    np.testing.assert_array_equal(layer(x, training=True), layer(x, training=False))
    for old, new in zip(before, layer.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_mask_of_all_axes_but_the_channels(axis):
    x = normal(4, 3, 5, 6) if axis == 1 else normal(4, 5, 6, 3)
    mask = np.random.default_rng(1).random((4, 5, 6)) > 0.4
    layer = BatchNorm(axis=axis, momentum=0.0)
    layer(x, training=True, mask=mask)
    counted = np.moveaxis(x, axis, -1)[mask]
    np.testing.assert_allclose(layer.moving_mean, counted.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance, counted.var(0), rtol=1e-4)


def test_masked_values_may_be_anything():
    x = normal(4, 5, 3)
    mask = np.array([[1, 1, 1, 0, 0]] * 4, "bool")
    layer, other = BatchNorm(), BatchNorm()
    expected = np.asarray(other(x, training=True, mask=mask))
    x[:, 3:] = np.nan
    actual = np.asarray(layer(x, training=True, mask=mask))
    np.testing.assert_allclose(actual[:, :3], expected[:, :3], atol=1e-6)
    np.testing.assert_allclose(layer.moving_mean, other.moving_mean, rtol=1e-6)


def test_masks_agree_with_keras():
    x, mask = normal(4, 5, 3), np.random.default_rng(2).random((4, 5)) > 0.3
    ours, theirs = BatchNorm(), layers.BatchNormalization()
    np.testing.assert_allclose(
        ours(x, training=True, mask=mask), theirs(x, training=True, mask=mask), atol=1e-5
    )


def test_digits_are_kept_where_the_mean_is_large():
    x = (1e4 + normal(256, 4)).astype("float32")
    expected = standardize(x.astype("float64"), (0,), 1e-3)
    error = np.abs(np.asarray(BatchNorm()(x, training=True)) - expected).max()
    assert error < TOLERANCE["float32"] * np.abs(expected).max()


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_large_16_bit_values_do_not_overflow(policy):
    layer = BatchNorm(dtype=policy, momentum=0.0)
    x = np.where(np.arange(64) % 2, 6e4, -6e4)[:, None].astype("float32")
    y = np.asarray(keras.ops.cast(layer(x, training=True), "float32"))
    np.testing.assert_allclose(y, np.sign(x), atol=1e-2)
    np.testing.assert_allclose(layer.moving_variance, [3.6e9], rtol=1e-2)
    assert layer.moving_mean.dtype == "float32"


@pytest.mark.parametrize("kind", [BatchNorm, Affine])
def test_integer_inputs_are_cast(kind):
    x = np.arange(8).reshape(4, 2)
    y = kind()(x)
    assert keras.backend.standardize_dtype(y.dtype) == "float32"
    np.testing.assert_allclose(y, kind()(x.astype("float32")))


def test_synchronized_on_one_device_is_the_plain_layer():
    x = normal(8, 3)
    np.testing.assert_allclose(
        BatchNorm(synchronized=True)(x, training=True), BatchNorm()(x, training=True), atol=1e-6
    )


REFUSALS = [
    (lambda: BatchNorm(axis=2).build((None, 4)), "an axis of the input whose size is known"),
    (lambda: BatchNorm().build((None, None)), "Give the size in `Input`"),
    (lambda: BatchNorm(renorm=True, renorm_clipping={"max": 1}), "may hold 'rmin', 'rmax'"),
    (lambda: BatchNorm(renorm_clipping={"rmin": 2, "rmax": 1}), "with rmin ≤ rmax"),
    (
        lambda: BatchNorm()(normal(2, 3), training=True, mask=np.ones((2, 3, 1), "bool")),
        "at most as many axes as the inputs",
    ),
]


@pytest.mark.parametrize(("ask", "text"), REFUSALS, ids=[text for _, text in REFUSALS])
def test_refusals_say_why(ask, text):
    with pytest.raises(ValueError, match=text):
        ask()
