"""Activations within a budget, and nothing left of what went to files."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile

import numpy as np
import pytest

from kerasnorm.errors import SwapError
from kerasnorm.graph.activation_store import ActivationStore


@pytest.mark.parametrize("budget", [0, 1000, 10**6])
def test_what_is_put_comes_back(budget, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    store = ActivationStore(budget)
    rng = np.random.default_rng(0)
    arrays = {
        (key, batch): rng.normal(size=(3, 5 + batch)).astype("float32")
        for key in ("a", "b")
        for batch in range(4)
    }
    arrays["b", 4] = np.asarray(2.5, "float32")
    for (key, batch), array in arrays.items():
        store.put(key, batch, array)
    store.drop("a")
    for batch in range(5):
        np.testing.assert_array_equal(store.get("b", batch), arrays["b", batch], strict=True)
    assert not os.listdir(tmp_path)  # the files have no name that a kill could leave behind
    with pytest.raises(KeyError):
        store.get("a", 0)
    store.close()


def test_memory_is_given_back():
    store = ActivationStore(100)
    for key in range(50):
        store.put(key, 0, np.zeros(12))
        assert not store._files, "each array fits once the one before is dropped"
        store.drop(key)


def test_what_is_put_again_takes_the_place_of_what_was_held():
    store = ActivationStore(100)
    for number in range(50):
        store.put("a", 0, np.full(12, number))
        assert not store._files
        np.testing.assert_array_equal(store.get("a", 0), [number] * 12)


def test_nothing_is_left_where_the_process_is_killed(tmp_path):
    code = """
import os, signal, numpy as np
from kerasnorm.graph.activation_store import ActivationStore
store = ActivationStore(0)
store.put("a", 0, np.ones(10**6))

os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not os.listdir(tmp_path)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
@pytest.mark.parametrize("size", [3, 10**6])
def test_a_disk_that_is_full_is_said(monkeypatch, size):
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: open("/dev/full", "r+b"))  # noqa: SIM115
    store = ActivationStore(0)
    with pytest.raises(SwapError, match=r"a disk that is full\. Use fewer samples.*TMPDIR"):
        store.put("a", 0, np.zeros(size))
    store.close()
