"""The contract on the other backends, each in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
# one of each kind, compiled: what an everyday run can afford
_A_FEW = "test_compiled and (BatchNorm-mask or LayerNorm-sample or Embedding or WeightNorm-Dense)"


def run(backend, module, expression, *options):
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"needs {module}")
    command = [sys.executable, "-m", "pytest", "-q", str(_TESTS / "test_contract.py")]
    done = subprocess.run(
        [*command, "-k", expression, *options],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


def test_jax():
    run("jax", "jax", _A_FEW)


@pytest.mark.slow
def test_jax_in_full():
    run("jax", "jax", "test_float32 or test_compiled or test_fit or twice", "-m", "")


@pytest.mark.slow
def test_torch():
    # eagerly, on its CPU device
    run("torch", "torch", "test_float32")
