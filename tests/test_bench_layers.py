"""The tool that times the layers; not how fast they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import keras
import pytest

TOOLS = Path(__file__).parents[1] / "tools"


def test_ratios_are_those_of_the_medians(monkeypatch):
    monkeypatch.syspath_prepend(TOOLS)
    import bench_layers

    took = {"first": [1.0, 2.0, 9.0], "second": [4.0, 3.0, 5.0]}
    assert bench_layers.ratio(bench_layers.Line("", 1, took), "second") == 2.0


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_a_table_and_its_plot(backend, tmp_path, monkeypatch):
    if backend != keras.backend.backend():
        pytest.importorskip(backend)
    monkeypatch.setenv("KERAS_BACKEND", backend)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    path = tmp_path / "plot.png"
    arguments = ["--groups", "Dense", "--largest", "2e4", "--rounds", "2", "--plot", str(path)]
    done = subprocess.run(
        [sys.executable, "bench_layers.py", *arguments],
        cwd=TOOLS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert "### Dense, training step" in lines
    assert sum(line.startswith("| 32 × 64 |") for line in lines) == 2
    assert sum(line.startswith("| geometric mean |") for line in lines) == 2
    assert path.read_bytes().startswith(b"\x89PNG")
