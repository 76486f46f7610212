"""What is wrong in one channel is refused, whatever its neighbours and whatever the dtype.

While a model is rewritten, the bias of one unit is put off by 0.05 standard deviations of what the
source has in that channel: a fifth of what rounding to bfloat16 does to it.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from fidelity import all_layers, randomize, to_float64, watched
from keras import layers

import kerasnorm
from kerasnorm import SwapError, WeightNorm
from kerasnorm.swap import swap as swaps

GAMMAS = np.logspace(-3, 3, 7)
DTYPES = ("float32", "mixed_float16", "mixed_bfloat16")


def dense(x):
    return layers.BatchNormalization(name="bn")(layers.Dense(7)(x))


def conv(x):
    return layers.BatchNormalization(name="bn")(layers.Conv2D(7, 3)(x))


def depthwise(x):
    return layers.BatchNormalization(name="bn")(layers.DepthwiseConv2D(3)(x))


def affine(x):
    return layers.BatchNormalization(name="bn")(layers.ReLU()(x))


def after_pooling(x):
    return layers.BatchNormalization(name="bn")(layers.AveragePooling2D(2)(layers.Conv2D(7, 3)(x)))


def nested(x):
    inputs = keras.Input(x.shape[1:])
    y = layers.BatchNormalization(name="bn")(layers.Conv2D(7, 3, padding="same")(inputs))
    inner = keras.Model(inputs, layers.Conv2D(7, 1)(layers.Activation("tanh")(y)), name="inner")
    return inner(layers.ReLU()(inner(x)))


KINDS = {
    "Dense": (dense, (12,)),
    "Conv2D": (conv, (9, 9, 3)),
    "DepthwiseConv2D": (depthwise, (9, 9, 7)),
    "Affine": (affine, (9, 9, 7)),
    "after pooling": (after_pooling, (9, 9, 3)),
    "nested, called twice": (nested, (6, 6, 7)),
}


def built(kind: str, dtype: str, seed: int = 0):
    """A model with one BatchNorm whose γ are 1e-3 to 1e3, and the deviations of its channels."""
    make, shape = KINDS[kind]
    rng = np.random.default_rng(seed)
    keras.utils.set_random_seed(seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        inputs = keras.Input(shape)
        model = keras.Model(inputs, layers.Dense(3)(layers.Activation("tanh")(make(inputs))))
    finally:
        keras.config.set_dtype_policy(before)
    x = rng.normal(size=(64, *shape)).astype("float32")
    randomize(model, x, seed)
    norm = next(layer for layer in all_layers(model) if layer.name == "bn")
    gammas = rng.permutation(GAMMAS) * rng.choice([-1, 1], 7)
    norm.gamma.assign(gammas)
    norm.beta.assign(gammas * rng.normal(size=7))
    with watched([norm]) as outputs:
        model(x)
    deviations = to_float64(outputs[id(norm)][0]).reshape(-1, 7).std(0)
    return model, deviations


def put_off(monkeypatch, change, layer_of=None):
    """Have a layer changed while a model is rewritten: the only one that takes in a BatchNorm."""
    real = swaps.rebuild

    def taking_in(model):
        (layer,) = (la for la in all_layers(model) if isinstance(la, WeightNorm))
        return layer

    def rebuild(*args):
        rebuilt = real(*args)
        change((layer_of or taking_in)(rebuilt.model))
        return rebuilt

    monkeypatch.setattr(swaps, "rebuild", rebuild)


def check_refused(monkeypatch, model, deviations, channel: int, size: float = 0.05):
    def change(layer):
        off = np.zeros(7)
        off[channel] = size * deviations[channel]
        layer.layer.bias.assign(to_float64(layer.layer.bias) + off)

    with monkeypatch.context() as patch:
        put_off(patch, change)
        with pytest.raises(
            SwapError, match=rf"differs from its source at '.*bn', in channel {channel},"
        ):
            kerasnorm.swap_norms(model, "weight")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_one_channel_is_refused(kind, dtype, monkeypatch):
    model, deviations = built(kind, dtype)
    assert kerasnorm.swap_norms(model, "weight").report.notes == []
    smallest, largest = np.argmin(deviations), np.argmax(deviations)
    for channel in (smallest, largest):
        check_refused(monkeypatch, model, deviations, channel)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_in_any_channel_is_refused(kind, dtype, monkeypatch):
    for seed in range(1, 4):
        model, deviations = built(kind, dtype, seed)
        kerasnorm.swap_norms(model, "weight")
        for channel in range(7):
            for size in (0.05, -0.05):
                check_refused(monkeypatch, model, deviations, channel, size)


def test_an_error_does_not_hide_behind_a_channel_that_amplifies_rounding(monkeypatch):
    model, deviations = built("Dense", "float32")
    before = model.layers[1]
    # x = W·u + 1e6: the source's own rounding is a tenth of what varies
    norm = model.get_layer("bn")
    before.bias.assign(to_float64(before.bias) + 1e6 * np.eye(7)[2])
    norm.moving_mean.assign(to_float64(norm.moving_mean) + 1e6 * np.eye(7)[2])
    assert kerasnorm.swap_norms(model, "weight").differences["bn"] > 0.02
    for channel in (0, 1, 3):
        check_refused(monkeypatch, model, deviations, channel)


def test_an_error_of_a_gain_is_refused(monkeypatch):
    model, _ = built("Conv2D", "mixed_bfloat16")
    put_off(monkeypatch, lambda layer: layer.g.assign(layer.g * (1 + 0.05 * np.eye(7)[4])))
    with pytest.raises(SwapError, match="in channel 4,"):
        kerasnorm.swap_norms(model, "weight")


def test_an_exact_site_is_judged_beside_one_that_is_not(monkeypatch):
    inputs = keras.Input((12,))
    x = layers.BatchNormalization(name="matched")(layers.Dense(7)(inputs))
    x = layers.BatchNormalization(name="bn")(layers.Dense(7)(layers.ReLU()(x)))
    model = keras.Model(inputs, layers.Dense(3)(x))
    randomize(model, np.random.default_rng(0).normal(size=(64, 12)).astype("float32"))
    to = {"matched": "layer", "bn": "weight"}
    assert [site.verdict for site in kerasnorm.swap_norms(model, to).report.sites] == [
        "matched",
        "exact",
    ]
    put_off(monkeypatch, lambda layer: layer.layer.bias.assign(layer.layer.bias + 0.2))
    with pytest.raises(SwapError, match="differs from its source at 'bn'"):
        kerasnorm.swap_norms(model, to)


@pytest.mark.parametrize(
    ("layer_of", "site"),
    [
        (lambda model: model.layers[-1], "output 0"),
        (lambda model: model.get_layer("inner").layers[-1], "inner/output 0"),
    ],
)
def test_an_error_behind_the_last_site_is_refused(layer_of, site, monkeypatch):
    model, _ = built("nested, called twice", "float32")
    put_off(monkeypatch, lambda layer: layer.bias.assign(layer.bias + 0.1), layer_of)
    with pytest.raises(SwapError, match=f"differs from its source at '{site}'"):
        kerasnorm.swap_norms(model, "weight")
