"""The short training after the closed-form fits: what it compares, when it runs, what it brings."""

from __future__ import annotations

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import randomize
from helpers import assert_close
from keras import layers

import kerasnorm
from kerasnorm import CosineNorm
from kerasnorm.calibrate import reconstruct
from kerasnorm.calibrate.features import common_features
from kerasnorm.calibrate.reconstruct import Reconstruction, multiplications
from kerasnorm.calibrate.strides import strides_taken_before
from kerasnorm.rewrite.forest import graphs_of

BN = layers.BatchNormalization


def images(rows=200, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.normal(size=(rows, 4, 4, 3)).repeat(2, 1).repeat(2, 2)
    return (coarse + 0.3 * rng.normal(size=(rows, 8, 8, 3))).astype("float32")


def residual():
    keras.utils.set_random_seed(0)
    source = tiny_models.residual()
    randomize(source, images())
    for layer in source.layers:  # gains near 1, as trained ones are
        if isinstance(layer, BN):
            layer.gamma.assign(1.0 + 0.2 * layer.gamma)
    return source


@pytest.mark.parametrize("target", ["layer", "cosine"])
def test_it_brings_the_model_nearer_on_samples_that_it_never_saw(target, monkeypatch):
    source, data, x = residual(), images(500), images(seed=9)
    trained = kerasnorm.swap_norms(source, target, data)
    monkeypatch.setattr(Reconstruction, "run", lambda *_: False)
    fitted = kerasnorm.swap_norms(source, target, data)
    assert trained.report.trained
    assert not fitted.report.trained
    lost = []
    for swap in (fitted, trained):
        features = common_features(graphs_of(swap.model), graphs_of(source))
        ends = keras.Model(source.input, [f.teacher for f in features])(x)
        received = keras.Model(swap.model.input, [f.student for f in features])(x)
        lost.append(np.mean([1 - r_squared_of(*p) for p in zip(ends, received, strict=True)]))
    assert lost[1] < 0.95 * lost[0]


def r_squared_of(expected, received):
    expected, received = (np.asarray(y, "float64") for y in (expected, received))
    channels = tuple(range(expected.ndim - 1))
    spread = np.square(expected - expected.mean(channels)).sum()
    return 1 - np.square(expected - received).sum() / spread


def test_the_same_seed_and_data_give_the_same_weights():
    source, data = residual(), images(100)
    weights = []
    for seed in (3, 3, 4):
        keras.utils.set_random_seed(seed + 10)  # of no account
        weights.append(kerasnorm.swap_norms(source, "layer", data, seed=seed).model.get_weights())
    assert all(np.array_equal(a, b) for a, b in zip(weights[0], weights[1], strict=True))
    assert any((a != b).any() for a, b in zip(weights[0], weights[2], strict=True))


@pytest.mark.parametrize("target", ["layer", "cosine"])
def test_the_report_is_of_the_trained_model_on_held_out_samples(target):
    source, data = residual(), images()
    swap = kerasnorm.swap_norms(source, target, data)
    held_out = data[9::10]
    for site in swap.report.sites:
        place = swap.report.layers[site.name]
        expected, received = (
            keras.Model(model.input, model.get_layer(name).output)(held_out)
            for model, name in ((source, site.name), (swap.model, place))
        )
        assert_close(site.fit, r_squared_of(expected, received), factor=100)
    said = swap.report.agreement
    answers = [np.asarray(model(held_out), "float64") for model in (source, swap.model)]
    same = np.mean(answers[0].argmax(-1) == answers[1].argmax(-1))
    assert said.samples == 20
    assert said.same_answers == same
    assert_close(said.fit, r_squared_of(*answers), factor=100)
    assert f"20 samples held out: {same:.1%} same answers" in str(swap.report)
    assert swap.report.to_dict()["agreement"]["samples"] == 20


def test_a_site_that_fits_badly_is_warned_of():
    x = np.random.default_rng(0).normal(size=(200, 8, 8, 3))
    # patches of one length or another, which is all that the source's answer is about
    x = (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype("float32")
    x *= np.random.default_rng(1).uniform(0.1, 10, (200, 1, 1, 1)).astype("float32")
    keras.utils.set_random_seed(0)
    inputs = keras.Input((8, 8, 3))
    y = layers.Conv2D(4, 1, kernel_initializer="ones", name="sum")(layers.ReLU()(inputs))
    source = keras.Model(inputs, BN(name="bn")(y))
    randomize(source, x)
    report = kerasnorm.swap_norms(source, "cosine", x).report
    assert report.poor == list(report.sites)
    assert "warning: 1 sites keep less than half" in str(report)


def test_large_models_are_not_trained(monkeypatch):
    source, data = residual(), images(40)
    each = multiplications(graphs_of(source))
    # per position 3·8·9 + 8·8·9 + 3·8 of the first block, 3 · 8·8·9 less two 3x3 of the second
    by_hand = 64 * (3 * 8 * 9 + 8 * 8 * 9 + 3 * 8 + 2 * 8 * 8 * 9 + 8 * 8) + 8 * 5
    assert each == by_hand
    for work, expected in ((each * 40 * 20, True), (each * 39, False)):
        monkeypatch.setattr(reconstruct, "_WORK", work)
        reconstruction = Reconstruction(graphs_of(source))
        assert len(list(reconstruction.watch([[data[:20]], [data[20:]]]))) == 2
        assert bool(reconstruction.epochs == 20) == expected
    monkeypatch.setattr(reconstruct, "_WORK", 1)
    report = kerasnorm.swap_norms(source, "layer", data).report
    assert not report.trained
    assert report.agreement.samples == 4


def test_models_by_code_are_trained_on_their_answers():
    x = np.random.default_rng(0).normal(size=(100, 8, 8, 4)).astype("float32")
    source = tiny_models.nested()
    randomize(source, x)
    forest = graphs_of(source)
    swap = kerasnorm.swap_norms(source, "layer", x)
    assert common_features(graphs_of(swap.model), forest)
    assert swap.report.agreement.fit > 0.5


def test_compared_are_the_ends_of_blocks():
    source = tiny_models.residual()
    for target in ("weight", "layer", "cosine"):
        model = kerasnorm.swap_norms(source, target, images(20)).model
        features = common_features(graphs_of(model), graphs_of(source))
        by_layer = {id(layer.output): layer.name for layer in source.layers}
        pooling = source.layers[-2].name
        assert [by_layer[id(f.teacher)] for f in features] == [
            "bn_1_end", "bn_1_short", "add_1", "bn_2_end", "bn_2_short", "add_2",
            pooling,
        ]  # fmt: skip


@pytest.mark.parametrize("wrap", [lambda layer: layer, lambda layer: CosineNorm(layer)])
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_strided_points_are_the_same_function_without_strides(wrap, data_format):
    if data_format == "channels_first" and not keras.config.is_nnx_enabled():
        pytest.importorskip("tensorflow")
    shape = (9, 8, 3) if data_format == "channels_last" else (3, 9, 8)
    conv = layers.Conv2D(4, 1, strides=(2, 3), padding="same", data_format=data_format)
    model = keras.Sequential([keras.Input(shape), wrap(conv)])
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    expected = np.asarray(model(x))
    with strides_taken_before(model):
        assert conv.strides == (1, 1)
        np.testing.assert_allclose(model(x), expected, rtol=1e-5, atol=1e-6)
    assert conv.strides == (2, 3)
    assert "call" not in vars(model.layers[0])
    np.testing.assert_array_equal(model(x), expected)
