"""Fixtures that several files share, and an end in time for a run of the slow tests."""

from __future__ import annotations

import datetime
import gc
import os
import time

# Only with oneDNN has TensorFlow convolutions with channels first on a CPU, and it leaves it off on
# some CPUs unless told.
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")

import fidelity
import hypothesis  # noqa: F401  at its end pytest imports it, which warns where `gc.freeze` hid trio
import keras
import numpy as np
import pytest
import tiny_models

import kerasnorm
from kerasnorm.distillation.reconstruct import Reconstruction

# What is imported stays to the end, and is much: no collection of garbage has to go through it.
gc.disable()

MINUTES = float(os.environ.get("KERASNORM_SLOW_MINUTES", "inf"))
_START = time.monotonic()
# The workers of a run, which inherit it, have to agree on the day.
_DAY = int(os.environ.setdefault("KERASNORM_DAY", str(datetime.date.today().toordinal())))


def pytest_configure(config):
    # Most models here are untrained: what is lost of them is no subject of most tests.
    config.addinivalue_line("filterwarnings", "ignore::kerasnorm.FidelityWarning")


@pytest.fixture(autouse=True)
def seeded():
    """A test draws the same numbers whichever tests ran before it."""
    keras.utils.set_random_seed(0)


@pytest.fixture
def closed_form(monkeypatch):
    """Swaps with data end with the closed-form fits, without the training after them."""
    monkeypatch.setattr(Reconstruction, "run", lambda *_: False)


@pytest.fixture(scope="session", params=["none", "weight", "layer", "group", "cosine"])
def exported_residual(request, tmp_path_factory):
    """A residual network as it is, or swapped to a target: the model, its file, and inputs."""
    keras.utils.set_random_seed(0)
    model = tiny_models.residual()
    x = np.random.default_rng(0).normal(size=(200, 8, 8, 3)).astype("float32")
    fidelity.randomize(model, x)
    if request.param != "none":  # too few samples to be trained after the fits
        model = kerasnorm.swap_norms(model, request.param, x[:90]).model
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    kerasnorm.export_onnx(model, path)
    return model, path, x


def pytest_collection_modifyitems(items):
    # Where there is no time for all of them, they begin at another file each day.
    if float("inf") > MINUTES:
        files = list(dict.fromkeys(item.path for item in items))
        first = files[_DAY % len(files)] if files else None
        start = next((n for n, item in enumerate(items) if item.path == first), 0)
        items[:] = [*items[start:], *items[:start]]


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


def pytest_runtest_setup(item):
    # What is left when the time is over is skipped, and said.
    over = time.monotonic() - _START > 60 * MINUTES
    if over and item.get_closest_marker("slow"):
        pytest.skip(f"the {MINUTES:g} minutes for slow tests (KERASNORM_SLOW_MINUTES) are over")
