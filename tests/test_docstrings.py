"""The examples in the layers' docstrings run as they stand."""

from __future__ import annotations

import doctest
import importlib

import pytest

MODULES = [
    "layers.affine",
    "layers.batch_norm",
    "layers.cosine_norm",
    "layers.data_dependent",
    "layers.layer_norm",
    "layers.recurrent",
    "layers.weight_norm",
    "calibrate.distill",
    "calibrate.statistics",
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"kerasnorm.{name}")
    result = doctest.testmod(module, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.attempted > 0
    assert result.failed == 0
