"""The command line with calibration data: layer and cosine norm, good files and bad ones."""

from __future__ import annotations

import json
import types

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import randomize

import kerasnorm
from kerasnorm.cli import commands
from kerasnorm.cli.main import main
from kerasnorm.fit.array_file import read_arrays

pytestmark = pytest.mark.usefixtures("closed_form")


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    return path


@pytest.fixture
def images(tmp_path):
    x = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "one.npz", x=x)
    np.savez(tmp_path / "several.npz", x=x, y=np.zeros(40))
    return tmp_path


def run(*argv) -> int:
    return main([str(argument) for argument in argv])


@pytest.mark.parametrize("name", ["x.npy", "one.npz", "one.npz:x", "several.npz:x"])
@pytest.mark.parametrize("target", ["layer", "group", "cosine"])
def test_fitted_to_data(model, images, name, target, capsys):
    out, report = images / "out.keras", images / "out.json"
    arguments = ("--data", images / name, "--output", out, "--report", report)
    assert run("swap", model, "--to", target, "--damping", 0, *arguments) == 0
    said = capsys.readouterr()
    assert not said.err
    assert "1 calibrated" in said.out
    assert "R²" in said.out
    (site,) = json.loads(report.read_text())["sites"]
    assert 0 < site["fit"] <= 1
    assert np.isfinite(kerasnorm.load_model(out)(np.zeros((1, 8, 8, 3)))).all()


@pytest.mark.parametrize(("groups", "expected"), [("2", {2}), ("auto", {1, 2}), (None, {1})])
def test_groups_reach_the_swap(images, groups, expected):
    inputs = keras.Input((8, 8, 3))
    y = keras.layers.BatchNormalization()(keras.layers.Conv2D(16, 3)(inputs))
    y = keras.layers.Dense(2)(keras.layers.Flatten()(keras.layers.ReLU()(y)))
    keras.Model(inputs, y).save(images / "model.keras")
    report = images / "out.json"
    options = [] if groups is None else ["--groups", groups]
    arguments = ("--data", images / "x.npy", "--report", report, *options)
    assert run("swap", images / "model.keras", "--to", "group", *arguments) == 0
    (site,) = json.loads(report.read_text())["sites"]
    assert site["groups"] in expected


def test_seed_and_damping_reach_the_swap(model, images):
    weights = []
    for damping in (0, 0, 4):
        options = ("--seed", 1, "--damping", damping)
        arguments = ("--data", images / "x.npy", "--output", images / "out.keras", "--force")
        assert run("swap", model, "--to", "layer", "--quiet", *arguments, *options) == 0
        layer = keras.models.load_model(images / "out.keras").get_layer("bn")
        weights.append((np.array(layer.gamma), layer.epsilon))
    assert np.array_equal(weights[0][0], weights[1][0])
    assert weights[2][1] > 1e4 * weights[0][1]


@pytest.mark.parametrize("target", ["layer", pytest.param("cosine", marks=pytest.mark.slow)])
def test_distilled_on_the_same_data(tmp_path, target, capsys):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(150, 8, 8, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)
    source = tiny_models.residual()
    randomize(source, x)
    model, report, out = (tmp_path / name for name in ("model.keras", "out.json", "out.keras"))
    source.save(model)
    arguments = ("--data", tmp_path / "x.npy", "--output", out, "--report", report)
    assert run("swap", model, "--to", target, "--distill", *arguments) == 0
    said = capsys.readouterr()
    assert not said.err
    assert "distilled; on held-out samples" in said.out
    swap = kerasnorm.swap_norms(source, target, x)
    history = kerasnorm.distill(swap.model, source, x)
    (note,) = (n for n in json.loads(report.read_text())["notes"] if n.startswith("distilled"))
    for name, form in (("agreement", ".2%"), ("loss", ".3g")):
        before, after = (found[name] for found in (history.before, history.after))
        assert f"{name} {before:{form}} → {after:{form}}" in note
    loaded = keras.models.load_model(out)
    for a, b in zip(loaded.get_weights(), swap.model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_report_is_of_the_distilled_model(model, tmp_path, monkeypatch):
    x = np.random.default_rng(0).normal(size=(100, 8, 8, 3)).astype("float32")
    np.save(tmp_path / "x.npy", x)

    def train(student, teacher, data, seed):
        for variable in student.trainable_variables:  # to a model that says nothing
            variable.assign(0 * variable)
        found = {"loss": 1.0}
        return types.SimpleNamespace(before=found, after=found)

    monkeypatch.setattr(commands, "distill", train)
    report = tmp_path / "out.json"
    arguments = ("--data", tmp_path / "x.npy", "--report", report, "--distill")
    assert run("swap", model, "--to", "layer", *arguments) == 0
    said = json.loads(report.read_text())
    assert said["agreement"]["fit"] < 0
    assert said["sites"][0]["fit"] < 0.1


def test_an_npy_file_is_mapped_into_memory(images):
    """What is used of it is read, and nothing else."""
    assert isinstance(read_arrays(str(images / "x.npy")), np.memmap)
    np.testing.assert_array_equal(
        read_arrays(str(images / "x.npy")), read_arrays(str(images / "one.npz"))
    )


@pytest.mark.parametrize(
    ("option", "notes"),
    [
        ((), []),
        (("--max-samples", "all"), []),
        (("--max-samples", 40), []),
        (("--max-samples", 20), ["20 of 40 samples were used, drawn at random"]),
    ],
)
def test_how_many_samples_are_used(model, images, option, notes):
    report = images / "out.json"
    arguments = ("--data", images / "x.npy", "--report", report, *option)
    assert run("swap", model, "--to", "layer", *arguments) == 0
    found = [note for note in json.loads(report.read_text())["notes"] if "were used" in note]
    assert [note.split(";")[0] for note in found] == notes


@pytest.mark.parametrize(
    ("option", "used"), [((), {}), (("--max-samples", 50), {"max_samples": 50})]
)
def test_distillation_uses_all_samples_unless_told(model, tmp_path, monkeypatch, option, used):
    np.save(tmp_path / "x.npy", np.zeros((100, 8, 8, 3), "float32"))
    given = {}

    def train(student, teacher, data, **settings):
        given.update(settings)
        return types.SimpleNamespace(before={"loss": 1.0}, after={"loss": 1.0})

    monkeypatch.setattr(commands, "distill", train)
    arguments = ("--data", tmp_path / "x.npy", "--distill", *option)
    assert run("swap", model, "--to", "layer", *arguments) == 0
    assert given == {"seed": 0, **used}


def test_layer_norm_without_data(model, capsys):
    assert run("swap", model, "--to", "layer") == 0
    assert "1 matched (1 LayerNorm)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--to", "cosine"), "needs data"),
        (("--to", "layer", "--data", "{}/none.npy"), "There is no file"),
        (("--to", "layer", "--data", "{}/text.npy"), "must be an .npy or .npz file"),
        (("--to", "layer", "--data", "{}/objects.npy"), "must be an .npy or .npz file"),
        (("--to", "layer", "--data", "{}/one.npz:y"), "has no array 'y'. It holds: x"),
        (("--to", "layer", "--data", "{}/x.npy:a"), "Received the name 'a'"),
        (("--to", "layer", "--data", "{}/several.npz"), "the inputs of the model by name: 'image'"),
        (("--to", "layer", "--data", "{}/flat.npy"), "must have the shape of the model's input"),
        (("--to", "layer", "--distill"), "needs data to train on. Received no --data"),
        (("--to", "weight", "--distill"), "not exact already. Received --to weight"),
        (("--to", "weight", "--distill", "--data", "{}/x.npy"), "Received --to weight"),
        (("--to", "layer", "--data", "{}/x.npy", "--damping", "-1"), "`damping` must be at least"),
        (("--to", "layer", "--data", "{}/x.npy", "--seed", "-1"), "`seed` must be a whole number"),
        (("--to", "layer", "--data", "{}/no_samples.npy"), "at least 10 samples. Received 0"),
        (("--to", "layer", "--data", "{}/short.npy"), "must be an .npy or .npz file"),
        (("--to", "layer", "--data", "{}/x.npy", "--max-samples", "9"), "a whole number, 10 at"),
        (("--to", "layer", "--data", "{}/x.npy", "--max-samples", "few"), "or all. Received: few"),
    ],
)
def test_requests_that_cannot_be_right(model, images, options, message, capsys):
    (images / "text.npy").write_text("no array")
    np.save(images / "objects.npy", np.array([{}, None]), allow_pickle=True)
    np.save(images / "flat.npy", np.zeros((40, 5)))
    np.save(images / "no_samples.npy", np.zeros((0, 8, 8, 3)))
    (images / "short.npy").write_bytes((images / "x.npy").read_bytes()[:-100])
    before = sorted(images.iterdir())
    arguments = [str(option).format(images) for option in options]
    assert run("swap", model, *arguments, "--output", images / "out.keras") == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert sorted(images.iterdir()) == before


@pytest.mark.parametrize("sizes", [(100, 90), (90, 100)])
def test_inputs_of_unlike_length(tmp_path, sizes, capsys):
    a, b = (keras.Input((5,), name=name) for name in "ab")
    keras.Model([a, b], keras.layers.BatchNormalization()(a + b)).save(tmp_path / "two.keras")
    arrays = {name: np.ones((size, 5)) for name, size in zip("ab", sizes, strict=True)}
    np.savez(tmp_path / "x.npz", **arrays)
    out = tmp_path / "out.keras"
    arguments = ("--to", "layer", "--data", tmp_path / "x.npz", "--output", out)
    assert run("swap", tmp_path / "two.keras", *arguments) == 2
    said = capsys.readouterr().err
    assert f"for one input as for another. Received {sizes[0]} and {sizes[1]}." in said
    assert not out.exists()
