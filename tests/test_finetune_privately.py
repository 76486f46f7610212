"""The example that fine-tunes with jax-privacy runs; and what BatchNorm does there."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import material

_EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune_privately.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("jax_privacy") is None, reason="needs `pip install .[privacy]`"
    ),
]

# In a process of its own: jax-privacy wants the JAX backend.
_BATCH_NORM = """
import keras, numpy as np
from jax_privacy import keras_api

norm = keras.layers.BatchNormalization()
model = keras.Sequential([keras.Input((3,)), norm, keras.layers.Dense(2)])
model.compile("sgd", "mse")
settings = dict(epsilon=9.0, delta=1e-3, clipping_norm=1.0, batch_size=4, train_steps=2)
settings |= dict(train_size=8, gradient_accumulation_steps=1, noise_multiplier=2.0, seed=0)
model = keras_api.make_private(model, keras_api.DPKerasConfig(**settings))
before = [np.array(w) for w in (norm.moving_mean, norm.moving_variance, model.layers[-1].kernel)]
x = np.random.default_rng(0).normal(5, 2, (8, 3)).astype("float32")
model.fit(x, x[:, :2], batch_size=4, verbose=0)
after = [np.array(w) for w in (norm.moving_mean, norm.moving_variance, model.layers[-1].kernel)]
print([bool(np.array_equal(a, b)) for a, b in zip(before, after)])
"""


def run(*command, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *command],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_quick(tmp_path):
    material("data", "fashion_mnist.npz")
    path = tmp_path / "figure.png"
    methods = ["batch, frozen", "weight"]
    out = run(str(_EXAMPLE), "--quick", "--output", str(path), "--methods", *methods)
    lines = out[out.index("test accuracy") :].splitlines()
    assert "epsilon 3, delta 1e-05, noise " in lines[0]
    assert lines[1].split() == ["0", "2", "4", "rate"]
    assert [line[:15].strip() for line in lines[2:4]] == methods
    assert all(line.count("..") == 3 for line in lines[2:4])
    # one function at first
    assert lines[2][15:34] == lines[3][15:34]
    assert lines[4] == f"written: {path}"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_batch_norm_is_taken_without_a_word_and_its_statistics_stay():
    # what the example says of it: the statistics are not those that it trains with
    assert run("-c", _BATCH_NORM, KERAS_BACKEND="jax").splitlines()[-1] == "[True, True, False]"
