"""The command line: exit codes, error texts, files written whole or not at all."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import onnx
import pytest
import tiny_models

import kerasnorm
from kerasnorm.cli import commands
from kerasnorm.cli.main import main
from kerasnorm.targets import plan
from kerasnorm.targets.names import NAMES
from kerasnorm.targets.registry import TARGETS


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "model.keras"
    tiny_models.conv_bn_relu().save(path)
    return path


def run(*argv) -> int:
    return main([str(argument) for argument in argv])


def contents(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_swap_writes_everything(model, tmp_path, capsys):
    outputs = [tmp_path / name for name in ("out.keras", "out.onnx", "out.json")]
    assert run("swap", model, "--to", "weight", "--output", outputs[0], "--onnx", outputs[1],
               "--report", outputs[2]) == 0  # fmt: skip
    swapped = kerasnorm.load_model(outputs[0])
    properties = {entry.key: entry.value for entry in onnx.load(outputs[1]).metadata_props}
    assert json.loads(properties["swap_report"])["target"] == "weight"
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(swapped(x), keras.models.load_model(model)(x), atol=1e-6)
    assert json.loads(outputs[2].read_text())["counts"] == {"weight": {"WeightNorm(Conv2D)": 1}}
    said = capsys.readouterr()
    assert "1 exact (1 WeightNorm(Conv2D))" in said.out
    assert f"wrote {outputs[1]}" in said.out
    assert not said.err


def test_fold_and_export(model, tmp_path, capsys):
    swapped, plain, file = (tmp_path / name for name in ("s.keras", "p.keras", "p.onnx"))
    assert run("swap", model, "--to", "weight", "--output", swapped, "--quiet") == 0
    assert run("fold", swapped, plain, "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert run("export", plain, file) == 0
    assert "largest difference between Keras and ONNX Runtime" in capsys.readouterr().out
    assert file.stat().st_size > 0


def test_fold_writes_everything(model, tmp_path, capsys):
    plain, file, report = (tmp_path / name for name in ("p.keras", "p.onnx", "p.json"))
    assert run("fold", model, plain, "--onnx", file, "--report", report) == 0
    folded = keras.models.load_model(plain)
    assert [type(layer).__name__ for layer in folded.layers[1:3]] == ["Conv2D", "ReLU"]
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_allclose(folded(x), keras.models.load_model(model)(x), atol=1e-6)
    assert "BatchNormalization" not in {node.op_type for node in onnx.load(file).graph.node}
    told = json.loads(report.read_text())
    (site,) = told["sites"]
    assert (told["target"], told["source"]) == ("fold", model.name)
    assert (site["name"], site["becomes"], site["partner"]) == ("bn", "Conv2D", "conv")
    assert 0 <= told["differences"]["bn"] < 1e-5
    said = capsys.readouterr()
    assert "→ fold: 1 BatchNorm call: 1 exact (1 Conv2D)" in said.out
    assert "largest difference from the source, on random inputs" in said.out
    for path in (plain, file, report):
        assert f"wrote {path}" in said.out
    assert not said.err


def test_fold_says_which_batch_norm_stays(tmp_path, capsys):
    path = tmp_path / "model.keras"
    tiny_models.training_fixed().save(path)
    assert run("fold", path, tmp_path / "plain.keras") == 0
    assert "it is called with training=True: its batch decides in" in capsys.readouterr().out


def test_fold_that_cannot_be_exported_writes_nothing(model, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise kerasnorm.ExportError("It cannot be exported.")

    monkeypatch.setattr(commands, "export_onnx", fail)
    before = contents(tmp_path)
    assert run("fold", model, tmp_path / "p.keras", "--onnx", tmp_path / "p.onnx") == 1
    assert "It cannot be exported." in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_inspect_json_is_json_alone(model, capsys):
    assert run("inspect", model, "--json") == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["sites"][0]["name"] == "bn"
    assert not said.err


def test_no_batch_norm(tmp_path, capsys):
    path, out = tmp_path / "plain.keras", tmp_path / "out.keras"
    tiny_models.no_bn().save(path)
    assert run("swap", path, "--to", "weight", "--output", out) == 0
    assert "no BatchNorm found" in capsys.readouterr().out
    assert out.exists()
    out.unlink()
    before = contents(tmp_path)
    assert run("swap", path, "--to", "weight", "--output", out, "--strict") == 1
    assert "needs a BatchNorm to swap" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_refused_site_under_strict(tmp_path, capsys):
    path, out = tmp_path / "live.keras", tmp_path / "out.keras"
    tiny_models.training_fixed().save(path)
    assert run("swap", path, "--to", "weight", "--output", out, "--strict") == 1
    assert "training=True" in capsys.readouterr().err
    assert not out.exists()
    assert run("swap", path, "--to", "weight", "--output", out) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "none.keras"], "There is no file"),
        (["inspect", "text.keras"], "no zip archive"),
        (["inspect", "text.h5"], "not an HDF5 file"),
        (["swap", "model.keras", "--to", "weight", "--output", "no/out.keras"], "folder of"),
        (["swap", "model.keras", "--to", "weight", "--output", "out.h5"], "must name a .keras"),
        (["swap", "model.keras", "--to", "weight", "--output", "model.keras"], "exists"),
        (
            ["swap", "model.keras", "--to", "weight", "--output", "model.keras", "--force"],
            "must not name the model itself",
        ),
        (["swap", "model.keras", "--to", "weight", "--onnx", "old.onnx"], "Pass --force"),
        (["swap", "model.keras", "--to", "weight", "--onnx", "folder.onnx"], "is a folder"),
        (["fold", "none.keras", "out.keras"], "There is no file"),
        (["fold", "model.keras", "out.keras", "--onnx", "out.keras"], "must name a .onnx file"),
        (["fold", "model.keras", "out.keras", "--report", "no/out.json"], "folder of"),
        (["export", "model.keras", "old.onnx"], "Pass --force"),
        (["export", "model.keras", "out.onnx", "--opset", "3"], "opset"),
        (["swap", "model.keras", "--to", "weight", "--onnx", "o.onnx", "--opset", "99"], "opset"),
        (["swap", "model.keras", "--to", "batch"], "invalid choice"),
        (["swap", "model.keras"], "--to"),
        ([], "COMMAND"),
    ],
)
def test_wrong_requests_end_in_2_and_touch_nothing(arguments, message, model, tmp_path, capsys,
                                                   monkeypatch):  # fmt: skip
    (tmp_path / "text.keras").write_text("hello")
    (tmp_path / "text.h5").write_text("hello")
    (tmp_path / "old.onnx").write_text("old")
    (tmp_path / "folder.onnx").mkdir()
    monkeypatch.chdir(tmp_path)
    before = contents(tmp_path)
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert message in said.err
    assert "Traceback" not in said.err
    assert not said.out
    assert contents(tmp_path) == before


def test_force_replaces(model, tmp_path):
    out = tmp_path / "out.onnx"
    out.write_text("old")
    assert run("export", model, out, "--force", "--quiet") == 0
    assert out.read_bytes() != b"old"


def test_a_failed_parity_check_writes_nothing(model, tmp_path, capsys, monkeypatch):
    def forget_the_mean(layer):
        found = statistics(layer)
        return dataclasses.replace(found, shift=0 * found.shift)

    statistics = plan.stored_statistics
    monkeypatch.setattr(plan, "stored_statistics", forget_the_mean)
    source = keras.models.load_model(model)
    source.get_layer("bn").moving_mean.assign([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    source.save(model)
    before = contents(tmp_path)
    assert run("swap", model, "--to", "weight", "--output", tmp_path / "out.keras") == 1
    assert "differs from its source at 'bn', in channel" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_one_failing_output_leaves_all_of_them(model, tmp_path, capsys, monkeypatch):
    def fail(*args, **kwargs):
        raise kerasnorm.ExportError("It cannot be.")

    monkeypatch.setattr(commands, "export_onnx", fail)
    out = tmp_path / "out.keras"
    out.write_text("old")
    arguments = ["swap", model, "--to", "weight", "--output", out, "--onnx", tmp_path / "o.onnx"]
    before = contents(tmp_path)
    assert run(*arguments, "--force") == 1
    assert contents(tmp_path) == before
    assert "It cannot be." in capsys.readouterr().err


def test_an_unexpected_failure_is_one_line_and_debug_shows_it(model, capsys, monkeypatch):
    def fail(*args):
        raise RuntimeError("first\nsecond")

    monkeypatch.setattr(commands, "inspect_norms", fail)
    assert run("inspect", model) == 1
    assert (
        capsys.readouterr().err == "kerasnorm: RuntimeError: first second. (--debug shows where)\n"
    )
    with pytest.raises(RuntimeError):
        run("inspect", model, "--debug")


def test_ctrl_c_leaves_the_old_file(model, tmp_path, capsys, monkeypatch):
    def interrupt(self, path):
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    out = tmp_path / "out.keras"
    out.write_text("old")
    monkeypatch.setattr(keras.Model, "save", interrupt)
    before = contents(tmp_path)
    assert run("swap", model, "--to", "weight", "--output", out, "--force") == 130
    assert contents(tmp_path) == before
    assert "interrupted" in capsys.readouterr().err


COMMAND = [sys.executable, "-m", "kerasnorm"]


def test_as_a_user_runs_it(model, tmp_path):
    """A process of its own: nothing but our own words on either stream."""
    out = tmp_path / "out.onnx"
    done = subprocess.run(
        [*COMMAND, "swap", model, "--to", "layer", "--onnx", out], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith("conv_bn_relu → layer: 1 BatchNorm call: 1 matched")


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("--help", 0, "usage: kerasnorm"),
        ("--version", 0, "0."),
        ("swap --help", 0, "usage: kerasnorm swap"),
        ("swap none.keras --to nothing", 2, "invalid choice: 'nothing'"),
        ("inspect none.keras", 2, "kerasnorm: There is no file 'none.keras'."),
        ("swap MODEL --to layer --data none.npy", 2, "kerasnorm: There is no file 'none.npy'."),
        ("swap MODEL --to layer --data .", 2, "kerasnorm: A folder of data must hold images. '.'"),
        ("swap MODEL --to layer --max-samples few", 2, "10, or all. Received: few"),
        ("swap MODEL --to weight --output a.h5", 2, "--output must name a .keras file."),
        ("swap MODEL --to layer --groups 2", 2, "--groups is for --to group. Received --to layer."),
        ("swap MODEL --to group --groups some", 2, "at least 1, or auto. Received: some"),
        ("swap MODEL --to weight --distill", 2, "--distill needs a swap that is not exact"),
        ("fold MODEL MODEL", 2, "exists. Pass --force to replace it."),
    ],
)
def test_what_needs_no_keras_is_answered_without_it(arguments, code, said, model):
    given = arguments.replace("MODEL", str(model)).split()
    program = (
        "import sys\n"
        "sys.argv[0] = 'kerasnorm'\n"
        "from kerasnorm.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "assert not {'keras', 'tensorflow', 'onnx', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(code)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *given], capture_output=True, text=True, cwd=model.parent
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr


def test_names_are_those_of_the_targets():
    assert list(NAMES) == list(TARGETS)
    assert all(name == target.name for name, target in TARGETS.items())


@pytest.mark.slow
def test_a_kill_while_writing_leaves_the_old_file(model, tmp_path):
    out = tmp_path / "out.keras"
    out.write_bytes(b"old")
    ready = tmp_path / "ready"
    code = (
        "import sys, time, pathlib, keras\n"
        "from kerasnorm.cli.main import main\n"
        "def slow(self, path):\n"
        "    path.write_bytes(b'half')\n"
        f"    pathlib.Path(r'{ready}').touch()\n"
        "    time.sleep(60)\n"
        "keras.Model.save = slow\n"
        f"main(['swap', r'{model}', '--to', 'weight', '--output', r'{out}', '--force'])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while not ready.exists():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert out.read_bytes() == b"old"
