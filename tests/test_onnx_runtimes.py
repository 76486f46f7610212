"""Exported files in the runtimes that people deploy to; those that are absent are skipped."""

from __future__ import annotations

import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny_models
from fidelity import randomize

import kerasnorm

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import onnx_runtimes


@pytest.fixture(scope="module", params=["none", "weight", "layer", "cosine"])
def exported(request, tmp_path_factory):
    keras.utils.set_random_seed(0)
    model = tiny_models.residual()
    x = np.random.default_rng(0).normal(size=(40, 8, 8, 3)).astype("float32")
    randomize(model, x)
    if request.param != "none":
        model = kerasnorm.swap_norms(model, request.param, x).model
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    kerasnorm.export_onnx(model, path)
    return model, path, x[:8]


@pytest.mark.parametrize("runtime", onnx_runtimes.RUNTIMES)
def test_the_answers_are_those_of_keras(exported, runtime):
    model, path, x = exported
    try:
        off = onnx_runtimes.difference(onnx_runtimes.RUNTIMES[runtime], path, model, x)
    except onnx_runtimes.MissingRuntimeError as reason:
        pytest.skip(str(reason))
    assert off <= 1e-5
