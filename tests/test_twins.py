"""A net and its twin in other units, and nets and data of odd sizes, on scikit-learn's digits."""

from __future__ import annotations

import functools
import warnings

import keras
import numpy as np
import pytest
from sklearn.datasets import load_digits

import kerasnorm

layers = keras.layers
BN = layers.BatchNormalization
RAW = 255.0 / 16


@functools.cache
def digits(channels=1):
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    images = (RAW * x[order]).reshape(-1, 8, 8, 1).astype("float32")
    return np.repeat(images, channels, axis=-1), y[order]


@functools.cache
def source():
    """A net that takes pixels of 0..255, with a hidden layer without BatchNorm."""
    keras.utils.set_random_seed(0)
    x, y = digits()
    inputs = keras.Input((8, 8, 1))
    z = layers.Conv2D(16, 3, padding="same", name="first")(inputs)
    z = layers.ReLU()(BN(name="bn_1")(z))
    z = layers.Conv2D(16, 3, padding="same", activation="relu", name="hidden")(z)
    z = layers.Conv2D(16, 3, padding="same", name="next")(z)
    z = layers.MaxPooling2D()(layers.ReLU()(BN(name="bn_2")(z)))
    z = layers.Conv2D(24, 3, padding="same")(z)
    z = layers.GlobalAveragePooling2D()(layers.ReLU()(BN(name="bn_3")(z)))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(z))
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x[:1200], y[:1200], epochs=15, verbose=0)
    return model


def twin(**scales):
    """The net with kernels, and the hidden layer's bias, times other numbers."""
    model = keras.models.clone_model(source())
    model.set_weights(source().get_weights())
    for name, scale in scales.items():
        layer = model.get_layer(name)
        layer.kernel.assign(layer.kernel * scale)
        if name == "hidden":
            layer.bias.assign(layer.bias * scale)
    return model


def answers(model, x):
    return model.predict(x, verbose=0).argmax(1)


def swapped(model, target, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kerasnorm.errors.FidelityWarning)
        return kerasnorm.swap_norms(model, target, data)


@functools.cache
def swap_of_source(target):
    return swapped(source(), target, digits()[0][:400])


TWINS = {"first kernel": ({"first": 255.0}, 255.0), "hidden": ({"hidden": 1e3, "next": 1e-3}, 1.0)}


@pytest.mark.parametrize(
    ("target", "twin_of"),
    [
        ("weight", "first kernel"),
        ("layer", "first kernel"),
        ("cosine", "hidden"),
        pytest.param("weight", "hidden", marks=pytest.mark.slow),
        pytest.param("layer", "hidden", marks=pytest.mark.slow),
        pytest.param("group", "first kernel", marks=pytest.mark.slow),
        pytest.param("group", "hidden", marks=pytest.mark.slow),
        pytest.param("cosine", "first kernel", marks=pytest.mark.slow),
    ],
)
def test_a_twin_gets_the_same_verdicts_and_answers(target, twin_of):
    scales, unit = TWINS[twin_of]
    x, _ = digits()
    of_source = swap_of_source(target)
    of_twin = swapped(twin(**scales), target, x[:400] / unit)
    seen = [[(s.name, s.verdict, s.becomes) for s in r.report.sites] for r in (of_source, of_twin)]
    assert seen[0] == seen[1]
    assert of_source.report.trained == of_twin.report.trained
    same = answers(of_source.model, x[1200:]) == answers(of_twin.model, x[1200:] / unit)
    assert np.mean(same) >= 0.998


@pytest.mark.parametrize(
    "target", ["layer", pytest.param("group", marks=pytest.mark.slow), "cosine"]
)
def test_a_net_of_raw_pixels_keeps_its_answers(target):
    x, y = digits()
    swap = swap_of_source(target)
    before, after = answers(source(), x[1200:]), answers(swap.model, x[1200:])
    assert np.mean(before == y[1200:]) > 0.95
    assert np.mean(after == y[1200:]) > np.mean(before == y[1200:]) - 0.015


@pytest.mark.parametrize(
    ("count", "target"),
    [
        (10, "layer"),
        (16, "group"),
        (64, "cosine"),
        *(
            pytest.param(count, target, marks=pytest.mark.slow)
            for count, target in (
                (10, "group"),
                (10, "cosine"),
                (16, "layer"),
                (16, "cosine"),
                (64, "layer"),
                (64, "group"),
            )
        ),
    ],
)
def test_few_samples_give_an_honest_report(count, target):
    x, _ = digits()
    swap = swapped(source(), target, x[:count])
    assert np.isfinite(swap.model.predict(x[1200:], verbose=0)).all()
    truth = np.mean(answers(source(), x[1200:]) == answers(swap.model, x[1200:]))
    report = swap.report
    if count < 64:
        assert report.agreement is None
        assert any("at least 100 samples" in note for note in report.notes)
    if report.agreement is not None:
        low, high = report.agreement.interval
        assert low - 1e-9 <= truth <= high + 1e-9


@pytest.mark.parametrize("target", ["layer", "group", "cosine"])
def test_a_net_of_one_channel(target):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 1))
    y = inputs
    for number in range(3):
        y = layers.Conv2D(1, 3, padding="same", use_bias=False)(y)
        y = layers.ReLU()(BN(name=f"bn_{number}")(y))
    model = keras.Model(inputs, layers.Dense(10, activation="softmax")(layers.Flatten()(y)))
    x, labels = digits()
    model.compile("adam", "sparse_categorical_crossentropy", jit_compile=False)
    model.fit(x[:1000], labels[:1000], epochs=2, verbose=0)
    swap = swapped(model, target, x[:200])
    assert np.isfinite(swap.model.predict(x[1200:], verbose=0)).all()
    verdicts = {site.verdict for site in swap.report.sites}
    assert verdicts <= ({"exact"} if target == "layer" else {"exact", "calibrated"})
    if verdicts == {"exact"}:
        np.testing.assert_array_equal(answers(model, x[1200:]), answers(swap.model, x[1200:]))
