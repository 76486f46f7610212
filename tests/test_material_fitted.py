"""Real trained models swapped to layer and cosine norm: pure, finite, truthfully reported."""

from __future__ import annotations

from collections import Counter

import keras
import numpy as np
import pytest
from fidelity import as_declared, every_site
from helpers import loaded

import kerasnorm
from kerasnorm import Affine, CosineNorm, GroupNorm, LayerNorm, WeightNorm
from kerasnorm.graph.model_graphs import graphs_of

WRAPPERS = {"weight": WeightNorm, "cosine": CosineNorm}
NORMS = {"layer": LayerNorm, "group": GroupNorm, "cosine": CosineNorm}


@pytest.mark.usefixtures("closed_form")
@pytest.mark.parametrize(
    ("name", "target"),
    [
        ("miniresnetv2.h5", "weight"),
        ("toycar_autoencoder.h5", "layer"),
        ("miniresnetv2.h5", "group"),
        ("toycar_autoencoder.h5", "cosine"),
        pytest.param("toycar_autoencoder.h5", "weight", marks=pytest.mark.slow),
        pytest.param("miniresnetv2.h5", "layer", marks=pytest.mark.slow),
        pytest.param("toycar_autoencoder.h5", "group", marks=pytest.mark.slow),
        pytest.param("miniresnetv2.h5", "cosine", marks=pytest.mark.slow),
    ],
)
def test_on_random_data(name, target):
    source = loaded(name)
    x = np.random.default_rng(0).normal(size=(100, *source.input_shape[1:])).astype("float32")
    # what such nets were trained on is of another scale
    swap = kerasnorm.swap_norms(source, target, x, allow_unlike_data=True)
    assert np.isfinite(swap.model(as_declared(swap.model, x))).all()
    # what the report says there is, is there, and nothing else
    said: Counter[str] = Counter()
    for site in swap.report.sites:
        said.update(site.becomes.split(", "))
    found: Counter[str] = Counter()
    for layer in swap.model.layers:
        if isinstance(layer, (WeightNorm, CosineNorm)):
            found[f"{type(layer).__name__}({type(layer.layer).__name__})"] += 1
        elif isinstance(layer, (LayerNorm, GroupNorm, Affine, keras.layers.BatchNormalization)):
            found[type(layer).__name__] += 1
    assert said == found
    held_out = x[9::10]
    for site in swap.report.sites:
        if site.fit is None:
            continue
        place = swap.report.layers[site.name]
        if site.becomes.startswith("Affine, "):  # the next layer is what was fitted
            continue
        expected, received = (
            np.asarray(keras.Model(m.inputs[0], m.get_layer(n).output)(held_out), "float64")
            for m, n in ((source, site.name), (swap.model, place))
        )
        others = tuple(range(expected.ndim - 1))
        spread = np.square(expected - expected.mean(others)).sum()
        # float32, summed up in other batches
        assert site.fit == pytest.approx(
            1 - np.square(expected - received).sum() / spread, abs=1e-4
        )


@pytest.mark.usefixtures("closed_form")
@pytest.mark.parametrize(
    ("name", "target"),
    [
        # each model and each target once every day
        pytest.param(name, target, marks=[pytest.mark.slow] * (row != column))
        for row, name in enumerate(
            ("fashion_dense.keras", "fashion_mobile.keras", "mini_xception_fer2013.hdf5")
        )
        for column, target in enumerate(("layer", "group", "cosine"))
    ],
)
def test_pure(name, target):
    source = loaded(name)
    x = np.random.default_rng(0).uniform(size=(60, *source.input_shape[1:])).astype("float32")
    swap = kerasnorm.swap_norms(source, target, x, damping=0, sites=every_site)
    linear = {
        site.name
        for site in kerasnorm.inspect_norms(source).sites
        if site.target == "weight" and site.becomes != "WeightNorm(Affine)"
    }
    kinds = {site.becomes.split("(")[0] for site in swap.report.sites if site.name in linear}
    assert kinds == {NORMS[target].__name__}
    graph = graphs_of(swap.model).root
    norms = [c for c in graph.calls if isinstance(c.operation, NORMS[target])]
    assert len(norms) >= len(linear)
    feeds = keras.Model(swap.model.inputs[0], [call.inputs[0] for call in norms])(x)
    for call, fed in zip(norms, feeds, strict=True):
        norm = call.operation
        if isinstance(norm, CosineNorm):
            assert norm.rescale
            assert norm.damping == 0
            expected = np.asarray(norm(fed))
            off = np.abs(np.asarray(norm(10.0 * fed)) - expected).max()
            assert off <= 1e-4 * np.abs(expected).max(), norm.name
            continue
        _, variance = norm.statistics(fed)
        assert norm.epsilon <= 1e-3 * np.mean(variance), norm.name
        plain = graph.producer(call.inputs[0]).operation
        if plain.name in source_offsets(source):
            offsets = source_offsets(source)[plain.name]
            signs = np.where(np.asarray(plain.bias) * offsets < 0, -1, 1)
            np.testing.assert_allclose(plain.bias, signs * offsets, rtol=1e-4, atol=1e-5)


def source_offsets(source):
    """c + a·b₀ of each linear layer that a BatchNorm alone reads, by its name."""
    graph, offsets = graphs_of(source).root, {}
    for call in graph.calls:
        norm = call.operation
        if not isinstance(norm, keras.layers.BatchNormalization):
            continue
        plain = graph.producer(call.inputs[0]).operation
        if len(graph.consumers(call.inputs[0])) > 1 or not hasattr(plain, "use_bias"):
            continue
        mean, variance = (np.asarray(v) for v in (norm.moving_mean, norm.moving_variance))
        scale = (1.0 if norm.gamma is None else np.asarray(norm.gamma)) / np.sqrt(
            variance + norm.epsilon
        )
        bias = 0.0 if plain.bias is None else np.asarray(plain.bias)
        offsets[plain.name] = np.asarray(norm.beta) + (bias - mean) * scale
    return offsets
