"""Models that answer in words."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from keras import layers, ops

import kerasnorm
from kerasnorm.cli.main import main
from kerasnorm.compare.measures import as_numbers

WORDS = ["dog", "cat", "bird", "fish"]


def naming():
    keras.utils.set_random_seed(0)
    inputs = keras.Input((6,))
    y = layers.Dense(8)(inputs)
    y = layers.ReLU()(layers.BatchNormalization(name="bn")(y))
    scores = layers.Dense(4, activation="softmax")(y)
    names = layers.StringLookup(vocabulary=WORDS, invert=True, num_oov_indices=0)
    return keras.Model(inputs, names(ops.argmax(scores, -1)))


@pytest.mark.parametrize("target", ["weight", "layer"])
def test_it_is_swapped(target):
    model = naming()
    swap = kerasnorm.swap_norms(model, target)
    x = np.random.default_rng(0).normal(size=(5, 6)).astype("float32")
    assert swap.model(x).shape == (5,)
    if target == "weight":
        assert swap.model(x).numpy().tolist() == model(x).numpy().tolist()


@pytest.mark.parametrize("target", ["layer", "cosine"])
def test_it_is_calibrated(target, closed_form):
    model, x = naming(), np.random.default_rng(0).normal(size=(200, 6)).astype("float32")
    kerasnorm.estimate_statistics(model, x)
    swap = kerasnorm.swap_norms(model, target, x)
    assert [site.verdict for site in swap.report.sites] == ["calibrated"]
    same = swap.model(x).numpy() == model(x).numpy()
    assert same.mean() > 0.7


def test_it_is_folded_and_saved(tmp_path):
    model = naming()
    model.save(tmp_path / "model.keras")
    out = tmp_path / "plain.keras"
    assert main(["fold", str(tmp_path / "model.keras"), str(out)]) == 0
    x = np.random.default_rng(0).normal(size=(50, 6)).astype("float32")
    assert keras.models.load_model(out)(x).numpy().tolist() == model(x).numpy().tolist()


def test_words_as_numbers():
    one, other = as_numbers(np.array([b"a", b"b"], object), np.array([b"a", b"c"], object))
    assert one[0] == other[0]
    assert one[1] != other[1]
    numbers = np.zeros(3), np.ones(3)
    assert as_numbers(*numbers) is not None
    assert all(a is b for a, b in zip(as_numbers(*numbers), numbers, strict=True))
