"""Exported files in the runtimes that people deploy to; those that are absent are skipped."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))
import onnx_runtimes


@pytest.mark.parametrize("runtime", onnx_runtimes.RUNTIMES)
def test_the_answers_are_those_of_keras(exported_residual, runtime):
    model, path, x = exported_residual
    try:
        off = onnx_runtimes.difference(onnx_runtimes.RUNTIMES[runtime], path, model, x[:8])
    except onnx_runtimes.MissingRuntimeError as reason:
        pytest.skip(str(reason))
    assert off <= 1e-5
