"""The examples run, in settings that take a minute."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from helpers import material

_EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("compare_norms.py", ["none", "batch", "layer", "weight, data_init", "cosine"]),
        ("compare_recurrent.py", ["LSTM", "layer-norm LSTM"]),
    ],
)
def test_quick(name, rows):
    material("data", "fashion_mnist.npz")
    command = [sys.executable, str(_EXAMPLES / name), "--quick"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    table = done.stdout.splitlines()[2:]
    assert [line[:18].strip() for line in table] == rows
    assert all(line.count("%") == 2 for line in table)


@pytest.mark.slow
def test_swap_and_export(tmp_path):
    command = [sys.executable, str(_EXAMPLES / "swap_and_export.py"), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "same answer as the source: yes" in done.stdout
    assert (tmp_path / "model.onnx").stat().st_size > 1e6


@pytest.mark.slow
def test_train_weight_norm(tmp_path):
    pytest.importorskip("sklearn", reason="the digits are scikit-learn's")
    command = [sys.executable, str(_EXAMPLES / "train_weight_norm.py"), "--folder", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert float(done.stdout.split("test accuracy ")[1].split("%")[0]) > 90
    assert "loaded again: the same answers" in done.stdout
    assert (tmp_path / "weight_norm.onnx").exists()
