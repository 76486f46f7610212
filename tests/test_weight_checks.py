"""Weights that no training means are named by layer, and refused or said."""

from __future__ import annotations

import json

import keras
import numpy as np
import pytest
import tiny_models

import kerasnorm
from kerasnorm import SwapError
from kerasnorm.cli.main import main
from kerasnorm.graph.weight_checks import faults_of


def spoiled(value, weight="kernel", model=None):
    """A model with one bad number, in the first weight of that name."""
    model = model or tiny_models.dense_bn()
    found = next(w for w in model.weights if w.name == weight)
    numbers = keras.ops.convert_to_numpy(found).copy()
    numbers.flat[1] = value
    found.assign(numbers)
    return model


def test_a_sound_model_has_no_faults():
    assert faults_of(tiny_models.residual()) == []
    assert faults_of(tiny_models.mixed_precision()) == []


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (-np.inf, "infinite")])
def test_a_weight_outside_of_batch_norm_that_is_not_finite(value, kind, tmp_path, capsys):
    model = spoiled(value)
    layer = next(layer for layer in model.layers if layer.weights).name
    words = rf"'{layer}': its kernel holds 1 of \d+ {kind}"
    for target in ("weight", "layer", "group"):
        with pytest.raises(SwapError, match=f"The weights must be finite. Received {words}"):
            kerasnorm.swap_norms(model, target)
    assert any(kind in note for note in kerasnorm.inspect_norms(model).notes)
    path = tmp_path / "model.keras"
    model.save(path)
    with pytest.warns(UserWarning, match=words):
        kerasnorm.load_model(path)
    assert main(["swap", str(path), "--to", "weight", "--output", str(tmp_path / "o.keras")]) == 1
    said = capsys.readouterr()
    assert "its kernel holds 1 of" in said.err
    assert not (tmp_path / "o.keras").exists()
    assert main(["inspect", str(path), "--json"]) == 0
    assert kind in " ".join(json.loads(capsys.readouterr().out)["notes"])


def test_a_fault_deep_in_a_model_is_found():
    model = spoiled(np.nan, model=tiny_models.nested())
    assert len(faults_of(model)) == 1
    with pytest.raises(SwapError, match="must be finite"):
        kerasnorm.swap_norms(model, "weight")


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
def test_statistics_that_no_answer_comes_from_are_refused_by_name(value):
    swap = kerasnorm.swap_norms(spoiled(value, "moving_variance"), "weight")
    assert [site.verdict for site in swap.report.sites] == ["refused"]
    assert "its moving_variance" in swap.report.sites[0].reason


def test_a_negative_variance_that_epsilon_makes_up_for_is_kept_and_said():
    model = spoiled(-1e-4, "moving_variance")
    swap = kerasnorm.swap_norms(model, "weight")
    assert [site.verdict for site in swap.report.sites] == ["exact"]
    assert any("moving_variance is negative for 1 of" in note for note in swap.report.notes)
    x = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")
    np.testing.assert_allclose(swap.model(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1e-36, 1e13])
@pytest.mark.parametrize("target", ["weight", "layer", "group"])
def test_variances_of_real_files(value, target):
    model = spoiled(value, "moving_variance")
    swap = kerasnorm.swap_norms(model, target)
    assert swap.report.refused == []
    assert swap.report.notes == []
    x = np.random.default_rng(0).normal(size=(4, *model.input_shape[1:])).astype("float32")
    assert np.isfinite(swap.model(x)).all()
    if target == "weight":
        expected = np.asarray(model(x))
        scale = np.abs(expected).max()
        np.testing.assert_allclose(swap.model(x), expected, rtol=1e-5, atol=1e-5 * scale)
