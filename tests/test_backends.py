"""The contract on the other backends, each in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

_TESTS = Path(__file__).parent
# one of each kind, compiled, and the limit on a file's weights: what an everyday run can afford
_A_FEW = "test_compiled and (WeightNorm-Dense or LayerNorm-mask or Affine)"
_A_FEW += " or asks_for_more"


def run(backend, files, *options):
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs {backend}")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *(str(_TESTS / file) for file in files), *options],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout


def test_jax():
    run("jax", ["test_contract.py", "test_loading.py"], "-k", _A_FEW)


@pytest.mark.slow
def test_jax_copies():
    run("jax", ["test_clone_on_backends.py"], "-k", "clone-residual or (folded and scaled)")


@pytest.mark.slow
def test_jax_examples_alone():
    run("jax", ["test_per_example.py"])


@pytest.mark.slow
@pytest.mark.parametrize("tests", ["test_float32 or twice", "test_compiled or test_fit"])
def test_jax_contract(tests):
    run("jax", ["test_contract.py"], "-k", tests)


@pytest.mark.slow
def test_jax_beyond_the_contract():
    files = (
        "weight_norm",
        "batch_norm",
        "layer_norm",
        "recurrent",
        "statistics",
        "clone_on_backends",
    )
    run("jax", [f"test_{name}.py" for name in files])


@pytest.mark.slow
def test_torch_contract():
    # eagerly, on its CPU device
    run("torch", ["test_contract.py"], "-k", "test_float32")
