"""A report as a picture: what is in it, and what is said where there is none."""

from __future__ import annotations

import builtins

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import every_site

import kerasnorm
from kerasnorm.cli.main import main

matplotlib = pytest.importorskip("matplotlib", reason="needs matplotlib, of the plot extra")


def words(report, path):
    """The text in a picture."""
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        report.plot(path)
    return path.read_text()


def test_every_site_is_named_with_what_it_became(tmp_path):
    report = kerasnorm.swap_norms(tiny_models.residual(), "weight").report
    text = words(report, tmp_path / "swap.svg")
    for site in report.sites:
        assert site.name in text
        assert site.becomes in text
    assert report.summary().split(" → ")[0] in text
    assert ">exact<" in text
    assert "R²" not in text


def test_fits_and_agreement_are_shown_where_there_is_data(tmp_path, closed_form):
    x = np.random.default_rng(0).normal(size=(200, 8, 8, 3)).astype("float32")
    report = kerasnorm.swap_norms(tiny_models.residual(), "layer", x, sites=every_site).report
    text = words(report, tmp_path / "swap.svg")
    assert "R² on samples held out" in text
    assert all(f"{site.fit:.3f}" in text for site in report.sites)
    assert str(report.agreement) in text
    assert "before" in text
    assert "after" in text


def test_refused_sites_and_all_targets_of_an_inspection(tmp_path):
    report = kerasnorm.inspect_norms(tiny_models.training_fixed())
    text = words(report, tmp_path / "inspect.svg")
    for word in ("to weight", "to layer", "to cosine", ">refused<"):
        assert word in text


def test_a_mixed_swap_names_every_site_once(tmp_path):
    names = [
        site.name for site in kerasnorm.swap_norms(tiny_models.residual(), "weight").report.sites
    ]
    targets = {names[0]: "weight", names[1]: "layer"}
    report = kerasnorm.swap_norms(tiny_models.residual(), targets).report
    text = words(report, tmp_path / "mixed.svg")
    assert all(text.count(f">{name}<") == 1 for name in names)
    assert text.count("left as it is") == len(names) - 2
    assert f"{len(names) - 2} BatchNorm calls left as they are" in report.summary()


def test_a_png_of_many_sites(tmp_path):
    x = inputs = keras.Input((4,))
    for number in range(100):
        x = keras.layers.BatchNormalization(name=f"a_rather_long_name_for_one_of_them_{number}")(x)
    report = kerasnorm.inspect_norms(keras.Model(inputs, x))
    report.plot(tmp_path / "many.png")
    assert (tmp_path / "many.png").read_bytes().startswith(b"\x89PNG")


def test_no_batch_norm_and_no_matplotlib(tmp_path, monkeypatch):
    report = kerasnorm.inspect_norms(tiny_models.no_bn())
    with pytest.raises(kerasnorm.KerasNormError, match="needs a BatchNorm"):
        report.plot(tmp_path / "none.png")
    with pytest.raises(kerasnorm.KerasNormError, match="A picture is one of"):
        kerasnorm.inspect_norms(tiny_models.dense_bn()).plot(tmp_path / "none.xyz")
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    report = kerasnorm.inspect_norms(tiny_models.dense_bn())
    with pytest.raises(kerasnorm.KerasNormError, match="pip install 'matplotlib"):
        report.plot(tmp_path / "none.png")
    assert list(tmp_path.iterdir()) == []


def test_the_command_draws_and_ends_with_a_line_to_paste(tmp_path, capsys):
    model, picture = tmp_path / "model.keras", tmp_path / "swap.png"
    tiny_models.conv_bn_relu().save(model)
    assert main(["swap", str(model), "--to", "weight", "--plot", str(picture)]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"kerasnorm {kerasnorm.__version__}, ")
    assert "1 of 1 BatchNorm calls to weight norm, within " in last
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["swap", str(model), "--to", "weight", "--plot", str(picture)]) == 2
    assert "exists. Pass --force" in capsys.readouterr().err
