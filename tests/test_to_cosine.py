"""The swap to cosine norm: which layer takes the cosine, and what the regression makes of it."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import assert_no_batch_norm, randomize
from keras import layers

import kerasnorm
from kerasnorm import CosineNorm, SwapError
from kerasnorm.fit.cosine_norm import fit_cosine_norm
from kerasnorm.fit.im2col import Im2Col
from kerasnorm.fit.sampling import Sampling

pytestmark = pytest.mark.usefixtures("closed_form")

BN = layers.BatchNormalization


def data_for(model, rows=60, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(rows, *model.input_shape[1:])).astype("float32")


def swapped(make, damping=0.0, **arguments):
    keras.utils.set_random_seed(0)
    source = make()
    x = data_for(source)
    randomize(source, x)
    return source, kerasnorm.swap_norms(source, "cosine", x, damping=damping, **arguments)


def cosines(model):
    return [layer for layer in model._flatten_layers() if isinstance(layer, CosineNorm)]


@pytest.mark.parametrize("kind", tiny_models.LINEAR)
def test_every_linear_layer_takes_the_cosine(kind):
    source, swap = swapped(lambda: tiny_models.behind_linear(kind))
    (site,) = swap.report.sites
    assert_no_batch_norm(swap.model)
    if kind in ("EinsumDense, two output axes", "EinsumDense, biases"):
        assert (site.becomes, site.verdict) == ("Affine", "exact")
        assert "several axes" in site.reason
        return
    (layer,) = cosines(swap.model)
    assert site.verdict == "calibrated"
    assert site.becomes == f"CosineNorm({type(layer.layer).__name__})"
    assert layer.rescale
    assert layer.across_groups
    assert layer.damping == 0
    x = data_for(source, seed=1)
    np.testing.assert_allclose(swap.model(10 * x), swap.model(x), rtol=1e-3, atol=1e-4)
    expected = np.asarray(source(x))
    # noise of unit length in every patch: its length carries nothing
    assert np.abs(expected - np.asarray(swap.model(x))).mean() < 0.8 * expected.std()


def test_both_kernels_of_a_separable_convolution_are_wrapped():
    source, swap = swapped(lambda: tiny_models.behind_linear("SeparableConv2D"))
    layer = swap.model.get_layer("bn")
    assert isinstance(layer, CosineNorm)
    own = source.get_layer("linear").depthwise_kernel
    np.testing.assert_array_equal(layer.layer.depthwise_kernel, own)
    np.testing.assert_allclose(layer.lengths(), 1, rtol=1e-5)


def test_without_a_linear_layer_in_front_the_next_one_takes_it():
    _, swap = swapped(tiny_models.pre_activation)
    first, second = swap.report.sites
    assert (first.becomes, first.partner) == ("Affine, CosineNorm(Conv2D)", "conv")
    assert (second.verdict, second.becomes) == ("exact", "Affine")
    assert isinstance(swap.model.get_layer("conv"), CosineNorm)
    assert first.fit is not None


def test_a_layer_that_another_batch_norm_claims_is_left_to_it():
    def make():
        inputs = keras.Input((6,))
        x = layers.ReLU()(BN(name="first")(inputs))
        return keras.Model(inputs, BN(name="second")(layers.Dense(4, name="dense")(x)))

    _, swap = swapped(make)
    assert [s.becomes for s in swap.report.sites] == ["Affine", "CosineNorm(Dense)"]


@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_next_layer_may_have_an_activation(activation):
    def make():
        inputs = keras.Input((6,))
        x = layers.ReLU()(BN(name="bn")(inputs))
        return keras.Model(inputs, layers.Dense(8, activation=activation, name="dense")(x))

    source, swap = swapped(make)
    x = data_for(source, seed=1)
    expected, received = np.asarray(source(x)), np.asarray(swap.model(x))
    # 0.888 and more were seen; the length of an input is lost, and that of noise is worth something
    assert np.corrcoef(expected.ravel(), received.ravel())[0, 1] > 0.85


@pytest.mark.parametrize("activation", [None, "relu"])
def test_the_next_layer_may_be_a_transposed_convolution(activation):
    def make():
        inputs = keras.Input((6, 4, 3))
        x = layers.ReLU()(BN(name="bn")(inputs))
        transposed = layers.Conv2DTranspose(5, 2, padding="same", activation=activation)
        return keras.Model(inputs, transposed(x))

    source, swap = swapped(make)
    (site,) = swap.report.sites
    assert site.becomes == "Affine, CosineNorm(Conv2DTranspose)"
    x = data_for(source, seed=1)
    expected, received = np.asarray(source(x)), np.asarray(swap.model(x))
    # 0.985 and more were seen
    assert np.corrcoef(expected.ravel(), received.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("why", ["activity", "two calls"])
def test_the_next_layer_must_be_called_once_and_not_be_penalized_for_its_output(why):
    def make():
        inputs = keras.Input((6,))
        penalty = "l2" if why == "activity" else None
        dense = layers.Dense(6, activity_regularizer=penalty, name="dense")
        x = dense(layers.ReLU()(BN(name="bn")(inputs)))
        return keras.Model(inputs, x if penalty else dense(x))

    _, swap = swapped(make)
    assert [site.becomes for site in swap.report.sites] == ["Affine"]
    assert not cosines(swap.model)


def test_data_is_needed():
    with pytest.raises(SwapError, match=r"needs data.*--data X\.npy"):
        kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "cosine")


@pytest.mark.parametrize(
    "make",
    [
        lambda: CosineNorm(layers.Conv2D(5, 3, padding="same"), rescale=True),
        lambda: CosineNorm(
            layers.DepthwiseConv2D(3, padding="same"), rescale=True, across_groups=True
        ),
        lambda: CosineNorm(layers.Conv2D(6, 3, groups=3, padding="same"), rescale=True),
    ],
)
def test_the_regression_finds_what_is_there(make):
    """Targets that a cosine-normalized layer made are reproduced."""
    rng = np.random.default_rng(0)
    truth, layer = make(), make()
    batches = [rng.normal(size=(16, 7, 7, 3)).astype("float32") for _ in range(6)]
    truth(batches[0])
    layer(batches[0])
    truth.set_weights([rng.normal(size=w.shape) for w in truth.get_weights()])
    stream = [(x, np.asarray(truth(x))) for x in batches]
    sampling = Sampling(len(batches), np.random.default_rng(1))
    score, _ = fit_cosine_norm(layer, None, lambda: iter(stream), sampling, [0.0])
    assert score > 0.999
    x = rng.normal(size=(4, 7, 7, 3)).astype("float32")
    expected = np.asarray(truth(x))
    assert np.abs(expected - np.asarray(layer(x))).max() < 0.02 * expected.std()


@pytest.mark.parametrize("scale", [1e-25, 1e20])
def test_inputs_of_any_size_are_fitted(scale):
    """Only their direction matters, so that it is the same fit."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6)).astype("float32")
    t = rng.normal(size=(64, 4)).astype("float32")
    gains = []
    for factor in (1.0, scale):
        layer = CosineNorm(layers.Dense(4), rescale=True)
        layer(x)
        layer.layer.kernel.assign(np.ones((6, 4)))
        stream = [((factor * x).astype("float32"), t)]
        fit_cosine_norm(layer, None, lambda s=stream: iter(s), Sampling(1, rng), [0.0])
        gains.append(np.array(layer.g))
    np.testing.assert_allclose(gains[1], gains[0], rtol=1e-3)


def test_damping_is_a_share_of_the_mean_square_length():
    source, swap = swapped(tiny_models.conv_bn_relu, damping=0.5)
    (layer,) = cosines(swap.model)
    x = data_for(source)
    rows = Im2Col(layer.layer)
    index = rows.sample((len(x), 6, 6, 6), 10**6, np.random.default_rng(0))
    mean = np.square(rows.inputs(x, index)).sum(-1).mean()
    assert layer.damping == pytest.approx(np.sqrt(0.5 * mean), rel=0.02)


def test_damping_brings_it_closer():
    _, pure = swapped(tiny_models.conv_bn_relu)
    _, damped = swapped(tiny_models.conv_bn_relu, damping=10.0)
    assert damped.report.sites[0].fit > pure.report.sites[0].fit


def test_saved_and_exported(tmp_path):
    source, swap = swapped(tiny_models.conv_bn_relu)
    x = data_for(source, seed=1)
    swap.model.save(tmp_path / "swapped.keras")
    again = keras.models.load_model(tmp_path / "swapped.keras")
    np.testing.assert_array_equal(swap.model(x), again(x))
    kerasnorm.export_onnx(swap.model, tmp_path / "swapped.onnx", inputs=x)
    with pytest.raises(SwapError, match="CosineNorm"):
        kerasnorm.fold_norms(swap.model)


def test_a_frozen_layer_stays_frozen():
    def make():
        model = tiny_models.conv_bn_relu()
        model.get_layer("conv").trainable = False
        return model

    _, swap = swapped(make)
    assert not swap.model.get_layer("conv").trainable_variables
