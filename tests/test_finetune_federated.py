"""The example of federated fine-tuning runs; not who wins."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import material

_EXAMPLE = Path(__file__).parents[1] / "examples" / "finetune_federated.py"
_METHODS = ["batch", "batch, frozen", "weight"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("flwr") is None, reason="needs `pip install .[federated]`"
    ),
    # of what Flower imports
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def test_quick(tmp_path):
    material("data", "fashion_mnist.npz")
    path = tmp_path / "figure.png"
    command = [sys.executable, "-W", "ignore", str(_EXAMPLE), "--quick", "--output", str(path)]
    done = subprocess.run(
        [*command, "--methods", *_METHODS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["0", "1", "2", "rate"]
    assert [line[:15].strip() for line in lines[2:5]] == _METHODS
    assert all(line.count("..") == 3 for line in lines[2:5])
    # one function at first
    assert lines[2][15:34] == lines[3][15:34] == lines[4][15:34]
    assert lines[5] == f"written: {path}"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_every_client_has_two_classes_and_no_image_is_anywhere_twice(monkeypatch):
    material("data", "fashion_mnist.npz")
    monkeypatch.syspath_prepend(_EXAMPLE.parent)
    import dim_fashion
    import finetune_federated as example

    task, protocol = dim_fashion.load(quick=False), example.Protocol()
    parts = example.parts_of(task, protocol, seed=0)
    assert [len(part) for part in parts] == [protocol.images] * protocol.clients
    assert all(len(set(task.y[part])) == 2 for part in parts)
    together = np.concatenate([*parts, task.test, task.validation])
    assert len(set(together)) == len(together)
    others = example.parts_of(task, protocol, seed=1)
    assert not np.array_equal(parts, others)


def test_what_the_clients_give_is_averaged(monkeypatch):
    material("data", "fashion_mnist.npz")
    monkeypatch.syspath_prepend(_EXAMPLE.parent)
    import dim_fashion
    import finetune_federated as example
    import keras

    task, protocol = dim_fashion.load(quick=True), example.QUICK
    model = dim_fashion.residual_net()
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss)
    start = model.get_weights()
    given = []
    model.get_weights = lambda: given.append(weights(model)) or given[-1]
    protocol.rounds = 1
    example.federated(model, start, task, protocol, 0.1, 0, task.test)
    assert len(given) == protocol.clients
    for mean, first, *parts in zip(weights(model), start, *given, strict=True):
        np.testing.assert_allclose(mean, np.mean(parts, axis=0), rtol=1e-4, atol=1e-6)
        assert not np.array_equal(mean, first)


def weights(model):
    return [np.array(weight) for weight in model.weights]
