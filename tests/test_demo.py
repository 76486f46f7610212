"""`kerasnorm demo`, as a user runs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytest.importorskip("sklearn", reason="the demo reads scikit-learn's digits")


@pytest.mark.slow  # the first of the two commands in CI runs it too
def test_the_demo_tells_the_whole_story():
    done = subprocess.run(
        [sys.executable, "-m", "kerasnorm", "demo"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    rows = [line for line in done.stdout.splitlines() if "% " in line + " "]
    source = next(line for line in rows if line.startswith("BatchNorm, the source"))
    accuracy = source.split()[-1]
    assert float(accuracy.rstrip("%")) > 97
    for name in ("weight norm ", "weight norm, folded", "weight norm, ONNX Runtime"):
        line = next(line for line in rows if line.startswith(name))
        assert accuracy in line
        assert "100.00%" in line
    assert "5 WeightNorm(Conv2D), 1 WeightNorm(Affine)" in done.stdout
    for name in ("layer norm", "cosine norm"):
        keras_line, onnx_line = (line for line in rows if line.startswith(name))
        assert float(keras_line.split()[2].rstrip("%")) > 97
        assert keras_line.split()[2] == onnx_line.split()[4]
        assert float(keras_line.split("%")[1]) > 95
