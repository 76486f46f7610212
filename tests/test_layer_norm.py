"""LayerNorm beyond the contract: unknown sizes, masks, digits, and what it refuses."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from gradients import output_and_gradients
from helpers import TOLERANCE, standardize
from keras import layers

from kerasnorm import BatchNorm, LayerNorm


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_sample_axis_takes_any_height_and_width():
    inputs = keras.Input((None, None, 3))
    layer = LayerNorm(axis="sample")
    model = keras.Model(inputs, layer(inputs))
    assert layer.gamma.shape == layer.beta.shape == (3,)
    for shape in ((2, 4, 5, 3), (1, 7, 2, 3)):
        x = normal(*shape)
        expected = standardize(x.astype("float64"), (1, 2, 3), 1e-3)
        np.testing.assert_allclose(model(x), expected, atol=1e-5)


def test_a_batch_neighbour_changes_nothing():
    layer = LayerNorm(axis="sample")
    x = normal(4, 3, 3, 2)
    np.testing.assert_allclose(np.asarray(layer(x))[:1], layer(x[:1]), atol=1e-6)


def test_masked_steps_do_not_count_whatever_they_hold():
    inputs = keras.Input((5, 3))
    layer = LayerNorm(axis="sample")
    model = keras.Model(inputs, layer(layers.Masking()(inputs)))
    x = normal(2, 5, 3)
    x[:, 3:] = 0
    np.testing.assert_allclose(np.asarray(model(x))[:, :3], layer(x[:, :3]), atol=1e-5)
    mask = np.array([[1, 1, 1, 0, 0]] * 2, "bool")
    x[:, 3:] = np.nan
    np.testing.assert_allclose(np.asarray(layer(x, mask=mask))[:, :3], layer(x[:, :3]), atol=1e-5)
    assert layer.compute_mask(x, mask) is mask


@pytest.mark.parametrize("hidden", [np.nan, np.inf, -np.inf, -3.4e38])
@pytest.mark.parametrize("kind", [LayerNorm, BatchNorm])
def test_gradients_are_finite_whatever_masked_steps_hold(kind, hidden):
    layer = LayerNorm(axis="sample") if kind is LayerNorm else BatchNorm()
    call = {} if kind is LayerNorm else {"training": True}
    x, cotangent = normal(2, 5, 3), normal(2, 5, 3, seed=1)
    mask = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 1, 1]], "bool")
    x[~mask], cotangent[~mask] = 0, 0
    layer.build(x.shape)
    expected = output_and_gradients(layer, x, cotangent, mask=mask, **call)
    x[~mask] = hidden
    y, dx, dw = output_and_gradients(layer, x, cotangent, mask=mask, **call)
    np.testing.assert_allclose(y[mask], expected[0][mask], atol=1e-6)
    np.testing.assert_allclose(dx[mask], expected[1][mask], atol=1e-6)
    for gradient, reference in zip(dw, expected[2], strict=True):
        np.testing.assert_allclose(gradient, reference, atol=1e-5)
    assert np.isfinite(dx).all()


def test_a_mask_of_all_axes_but_the_channels():
    x, mask = normal(2, 3, 4, 5), np.random.default_rng(1).random((2, 4, 5)) > 0.4
    first = LayerNorm(axis="sample", channel_axis=1)(x, mask=mask)
    last = LayerNorm(axis="sample")(np.moveaxis(x, 1, -1), mask=mask)
    np.testing.assert_allclose(np.moveaxis(first, 1, -1), last, atol=1e-6)


def test_digits_are_kept_where_the_mean_is_large():
    x = (1e4 + normal(4, 256)).astype("float32")
    expected = standardize(x.astype("float64"), (-1,), 1e-3)
    error = np.abs(np.asarray(LayerNorm()(x)) - expected).max() / np.abs(expected).max()
    assert error < TOLERANCE["float32"]


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_large_16_bit_values_do_not_overflow(policy):
    layer = LayerNorm(dtype=policy)
    x = np.where(np.arange(64) % 2, 6e4, -6e4)[None].astype("float32")
    y = np.asarray(keras.ops.cast(layer(x), "float32"))
    np.testing.assert_allclose(y, np.sign(x), atol=1e-2)
    assert keras.backend.standardize_dtype(layer(x).dtype) == policy.removeprefix("mixed_")


def test_a_constant_sample_gives_its_bias():
    y = np.asarray(LayerNorm()(np.full((2, 7), 1234.5678, "float32")))
    np.testing.assert_array_equal(y, 0)


def test_integer_inputs_are_cast():
    np.testing.assert_allclose(
        LayerNorm()(np.arange(6).reshape(2, 3)),
        LayerNorm()(np.arange(6.0, dtype="float32").reshape(2, 3)),
    )


def test_a_single_feature_warns():
    with pytest.warns(UserWarning, match="'alone' normalizes over a single feature"):
        LayerNorm(name="alone")(normal(4, 1))


def test_arguments_are_kept_as_given():
    layer = LayerNorm(axis=(2, 1))
    layer(normal(2, 3, 4))
    assert layer.axis == (2, 1)
    assert layer.gamma.shape == (3, 4)


@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_an_axis_that_h5_files_lose_is_asked_for(tmp_path):
    x = normal(2, 4, 3)
    for axis in (1, "sample", (1, 2)):
        layer = LayerNorm(axis)
        model = keras.Sequential([keras.Input((4, 3)), layer])
        layer.set_weights([normal(*w.shape, seed=1) for w in layer.weights])
        model.save(tmp_path / "model.h5")
        if axis == 1:
            np.testing.assert_array_equal(
                keras.saving.load_model(tmp_path / "model.h5")(x), model(x)
            )
            continue
        with pytest.raises(ValueError, match=r"must hold its `axis`.*\.keras"):
            keras.saving.load_model(tmp_path / "model.h5")
        again = keras.Sequential([keras.Input((4, 3)), LayerNorm(axis)])
        again.load_weights(tmp_path / "model.h5")
        np.testing.assert_array_equal(again(x), model(x))


REFUSALS = [
    (lambda: LayerNorm(axis="batch"), TypeError, "an integer, a tuple of integers, or 'sample'"),
    (lambda: LayerNorm(axis=1.5), TypeError, "Received: axis=1.5"),
    (lambda: LayerNorm(rms_scaling=True), ValueError, "Use keras.layers.RMSNormalization"),
    (lambda: LayerNorm(axis=3).build((None, 4)), ValueError, "distinct axes among the 2"),
    (lambda: LayerNorm(axis=(1, -1)).build((None, 4)), ValueError, "distinct axes"),
    (lambda: LayerNorm(axis=0).build((None, 4)), ValueError, "`axis` must not name axis 0"),
    (lambda: LayerNorm(axis=(1, -3)).build((None, 4, 3)), ValueError, "axis 0, the batch"),
    (
        lambda: LayerNorm(axis="sample", channel_axis=0).build((4, 4)),
        ValueError,
        "`channel_axis` must not name axis 0, the batch",
    ),
    (
        lambda: LayerNorm(axis=1).build((None, None, 3)),
        ValueError,
        "use axis='sample' or scalar_affine=True",
    ),
    (
        lambda: LayerNorm()(normal(2, 3), mask=np.ones((2, 3, 1), "bool")),
        ValueError,
        "at most as many axes as the inputs",
    ),
]


@pytest.mark.parametrize(("ask", "error", "text"), REFUSALS, ids=[text for *_, text in REFUSALS])
def test_refusals_say_why(ask, error, text):
    with pytest.raises(error, match=text):
        ask()
