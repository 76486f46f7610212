"""What may stand between a linear layer and the BatchNorm that it takes in."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import assert_exact, randomize
from keras import layers

import kerasnorm

KINDS = [(kind, rank) for kind, (_, ranks) in tiny_models.CROSSED.items() for rank in ranks]


def rows(model, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(16, *model.input_shape[1:])).astype("float32")


def randomized(model, *, sign=None, shift=True):
    """Random weights; gamma of both signs or of one, a map y = a·x + c with c ≠ 0 or c = 0."""
    randomize(model, rows(model))
    norm = model.get_layer("bn")
    gamma = np.array(norm.gamma)
    if sign:
        norm.gamma.assign(sign * np.abs(gamma))
    else:
        norm.gamma.assign(np.where(np.arange(gamma.size) % 2, 1, -1) * np.abs(gamma))
    if not shift:
        norm.beta.assign(norm.beta * 0)
        norm.moving_mean.assign(norm.moving_mean * 0)
    return model


def site_of(model):
    """The record of the only site, the swap checked to be exact on the way."""
    swap = kerasnorm.swap_norms(model, "weight", strict=True)
    assert_exact(model, swap, rows(model, seed=1))
    (site,) = swap.report.sites
    return site


@pytest.mark.parametrize(("kind", "rank"), KINDS)
def test_with_gamma_of_both_signs(kind, rank):
    site = site_of(randomized(tiny_models.commuting(kind, rank)))
    if "max" in kind:
        assert "some gamma is negative" in site.reason
    elif "padding" in kind:
        assert "pads with zeros" in site.reason
    elif "bicubic" in kind:
        assert "no linear layer" in site.reason
    else:
        assert (site.partner, site.across) == ("linear", ("between",))


@pytest.mark.parametrize(("kind", "rank"), KINDS)
@pytest.mark.parametrize("sign", [1, -1])
def test_with_gamma_of_one_sign_and_no_shift(kind, rank, sign):
    site = site_of(randomized(tiny_models.commuting(kind, rank), sign=sign, shift=False))
    stays = ("max" in kind and sign < 0) or "bicubic" in kind
    assert site.partner == (None if stays else "linear"), site.reason


@pytest.mark.parametrize(("kind", "rank"), tiny_models.CROSSED_CHANNELS_FIRST)
def test_channels_first(kind, rank):
    model = randomized(tiny_models.crossing_channels_first(kind, rank), sign=1, shift=False)
    site = site_of(model)
    assert site.partner == (None if "bicubic" in kind else "linear"), site.reason


@pytest.mark.parametrize(
    ("kind", "rank"), [("average pooling", 4), ("cropping", 3), ("upsampling", 4)]
)
def test_another_axis_than_the_channels(kind, rank):
    site = site_of(randomized(tiny_models.commuting(kind, rank, axis=1)))
    assert "mixes entries along axis 1" in site.reason


@pytest.mark.parametrize(
    ("name", "partner", "reason"),
    [
        ("pool_read_twice", None, "the output of 'pool' (AveragePooling2D) is used elsewhere too"),
        ("conv_before_pool_read_twice", None, "the output of 'linear' (Conv2D) is used elsewhere"),
        ("masked_pool", None, "'pool' (GlobalAveragePooling1D) in front of it has a mask"),
        ("masked_dropout", "linear", "across 'dropout'"),
        ("two_crossed", "linear", "across 'dropout', 'pool'"),
    ],
)
def test_what_is_in_the_way(name, partner, reason):
    site = site_of(randomized(getattr(tiny_models, name)()))
    assert site.partner == partner
    assert reason in site.reason


def test_a_layer_of_fewer_digits_is_not_crossed():
    site, *_ = kerasnorm.inspect_norms(tiny_models.crossed_in_another_dtype()).sites
    assert "computes in another dtype" in site.reason


def test_dropout_that_is_on_at_inference_is_not_crossed():
    inputs = keras.Input((4,))
    x = layers.Dropout(0.5, name="on")(layers.Dense(3, name="linear")(inputs), training=True)
    norm = layers.BatchNormalization(name="bn")
    site = site_of(randomized(keras.Model(inputs, norm(x, training=False))))
    assert site.partner is None
    assert "'on' (Dropout) in front of it is called with training=True" in site.reason


def test_crossing_trains():
    model = randomized(tiny_models.two_crossed())
    swapped = kerasnorm.swap_norms(model, "weight").model
    swapped.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    x = rows(model)
    history = swapped.fit(x, np.zeros_like(model(x)), epochs=8, verbose=0).history["loss"]
    assert history[-1] < history[0]
