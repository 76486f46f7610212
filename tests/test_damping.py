"""`damping="auto"`: no more of it than held-out rows ask for, and the record says how much."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import every_site, randomize
from test_swap import batch

import kerasnorm
from kerasnorm import CosineNorm
from kerasnorm.cli.main import main
from kerasnorm.fit.damping import first_enough
from kerasnorm.layers.sample_norm import SampleNorm

pytestmark = pytest.mark.usefixtures("closed_form")
layers = keras.layers
BN = layers.BatchNormalization


def source_and_data(make=tiny_models.residual, rows=160):
    source = make()
    data = batch(source, rows=rows)
    # samples of unlike size, which a pure norm makes alike
    data *= np.random.default_rng(1).uniform(0.3, 3, (rows, 1, 1, 1)).astype("float32")
    randomize(source, data)
    return source, data


def norms(model):
    return [x for x in model._flatten_layers() if isinstance(x, (SampleNorm, CosineNorm))]


@pytest.mark.parametrize(
    ("scores", "taken"),
    [([0.995, 0.999], 0), ([0.5, 0.99, 0.999], 1), ([0.5, 0.7, 0.6], 1), ([0.3], 0)],
)
def test_the_first_that_is_enough_or_else_the_best(scores, taken):
    assert first_enough(scores) == taken


@pytest.mark.parametrize("target", ["layer", "group", "cosine"])
def test_the_record_says_what_each_norm_has(target):
    source, data = source_and_data()
    auto = kerasnorm.swap_norms(source, target, data, sites=every_site)
    shares = {site.name: site.damping for site in auto.report.sites}
    assert set(shares.values()) <= {0.0, 0.25, 1.0, 4.0}
    assert auto.report.to_dict()["sites"][0]["damping"] == auto.report.sites[0].damping
    # each has what an explicit number gives: the first site is fitted on the same inputs
    first = auto.report.sites[0]
    explicit = kerasnorm.swap_norms(source, target, data, damping=first.damping, sites=every_site)
    a, b = (norms(swap.model)[0] for swap in (auto, explicit))
    name = "damping" if target == "cosine" else "epsilon"
    assert getattr(a, name) == pytest.approx(getattr(b, name), rel=0.05)
    assert all(site.damping == first.damping for site in explicit.report.sites)


@pytest.mark.parametrize("target", ["layer", "group", "cosine"])
def test_it_keeps_more_than_the_pure_method(target):
    source, data = source_and_data()
    # by itself, a swap makes those sites weight norm where either loses most
    swaps = [
        kerasnorm.swap_norms(source, target, data, damping=damping, sites=every_site)
        for damping in (0, "auto")
    ]
    pure, auto = (swap.report.agreement.fit for swap in swaps)
    assert auto > pure


def test_it_is_zero_where_the_pure_method_is_enough():
    """Unit vectors: a cosine norm is a linear layer there."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 6))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype("float32")
    inputs = keras.Input((6,))
    source = keras.Model(inputs, BN(name="bn")(layers.Dense(4)(inputs)))
    randomize(source, x)
    swap = kerasnorm.swap_norms(source, "cosine", x)
    assert [site.damping for site in swap.report.sites] == [0.0]
    assert [norm.damping for norm in norms(swap.model)] == [0.0]


def test_without_data_it_is_the_most_that_is_tried():
    source, _ = source_and_data()
    auto = kerasnorm.swap_norms(source, "layer")
    most = kerasnorm.swap_norms(source, "layer", damping=4)
    for a, b in zip(auto.model.variables, most.model.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    assert [norm.epsilon for norm in norms(auto.model)] == [n.epsilon for n in norms(most.model)]
    assert {site.damping for site in auto.report.sites if "LayerNorm" in site.becomes} == {4.0}


def test_exact_sites_have_none():
    source, _ = source_and_data(tiny_models.conv_bn_relu)
    assert [site.damping for site in kerasnorm.swap_norms(source, "weight").report.sites] == [None]


@pytest.mark.parametrize("damping", [-1, float("nan"), float("inf"), "much", None, True, [1.0]])
def test_what_it_may_be(damping):
    with pytest.raises(kerasnorm.SwapError, match="at least 0, and finite, or 'auto'"):
        kerasnorm.swap_norms(tiny_models.conv_bn_relu(), "layer", damping=damping)


def test_the_command_line_takes_it(tmp_path, capsys):
    source, _ = source_and_data(tiny_models.conv_bn_relu)
    source.save(tmp_path / "m.keras")
    for damping, share in (("auto", 4.0), ("0.5", 0.5)):
        report = tmp_path / f"{damping}.json"
        options = ["--to", "layer", "--damping", damping, "--report", str(report)]
        assert main(["swap", str(tmp_path / "m.keras"), *options]) == 0
        assert json.loads(report.read_text())["sites"][0]["damping"] == share
    capsys.readouterr()
    assert main(["swap", "m.keras", "--to", "layer", "--damping", "much"]) == 2
    assert "must be a number of at least 0, or auto. Received: much" in capsys.readouterr().err
