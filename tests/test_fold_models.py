"""`fold_norms` on models that nobody designed for it: random ones, trained ones, published ones."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
from architectures import architectures, brought_alive, in_float64, may_have_batch_norm, smallest
from fidelity import (
    FLOAT64_TOLERANCE,
    LEAST_SPREAD,
    all_layers,
    as_declared,
    assert_no_batch_norm,
    linearize_outputs,
    to_float64,
)
from helpers import TRAINED, large_ones_slow, loaded
from hypothesis import given, seed, settings
from hypothesis import strategies as st
from random_layers import Chain, Net
from random_models import Drawn, random_model
from test_fold_batch_norm import is_plain
from test_material import images
from test_random_models import HARSH

import kerasnorm
from kerasnorm.graph import sites as match
from kerasnorm.swap.fold import fold

DRAWS = int(os.environ.get("KERASNORM_DRAWS", "2000")) // 4
SEED = int(os.environ.get("KERASNORM_SEED", "0"))

# Runs files with what was put in, where kerasnorm is not to be had.
LOAD = """
import pathlib, pickle, sys
sys.modules["kerasnorm"] = None
import keras, numpy as np
folder = pathlib.Path(sys.argv[1])
for number in range(int(sys.argv[2])):
    model = keras.models.load_model(folder / f"{number}.keras")
    x, answers = pickle.loads((folder / f"{number}.pickle").read_bytes())
    for answer, again in zip(answers, keras.tree.flatten(model(x, training=False)), strict=True):
        scale = np.abs(answer).max() + 1e-6
        np.testing.assert_allclose(again, answer, rtol=0, atol=1e-5 * scale, err_msg=str(number))
"""


def answers_of(model, x) -> list[np.ndarray]:
    return [to_float64(y) for y in keras.tree.flatten(model(as_declared(model, x), training=False))]


def off(expected: list[np.ndarray], received: list[np.ndarray]) -> float:
    """max|Δ| over the spread of the worst output."""
    found = []
    for one, other in zip(expected, received, strict=True):
        assert one.shape == other.shape
        spread = max(one.std(), LEAST_SPREAD * np.abs(one).max()) or 1.0
        found.append(float(np.abs(one - other).max() / spread))
    return max(found)


def check(drawn: Drawn):
    """Fold a random model; the result."""
    model, x = drawn.model, drawn.x
    drawn.randomize()
    before = [np.array(variable) for variable in model.variables]
    result = fold(model)  # which compares both at every call
    assert not result.report.doubts
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))
    assert not {id(v) for v in model.variables} & {id(v) for v in result.model.variables}
    names = [site.name for site in result.report.sites]
    assert len(names) == len(set(names))
    refused = {site.name.split("/")[-1].split("#")[0] for site in result.report.refused}
    left = [layer for layer in all_layers(result.model) if match.is_batch_norm(layer)]
    assert {layer.name for layer in left} <= refused
    assert bool(left) or not refused
    for site in result.report.refused:
        assert site.rule == "graph" or "training=True" in site.reason, site
    others = [la for la in all_layers(result.model) if not isinstance(la, (Chain, Net))]
    assert not [layer.name for layer in others if not is_plain(layer)]
    if drawn.policy == "float64":
        assert off(answers_of(model, x), answers_of(result.model, x)) <= FLOAT64_TOLERANCE
    return result


def check_many(folder, draws: int, number: int) -> None:
    saved = seen = 0

    @seed(number)
    @settings(HARSH, max_examples=draws)
    @given(st.data())
    def draw_one(data):
        nonlocal saved, seen
        keras.backend.clear_session(free_memory=not seen % 25)
        drawn = random_model(data.draw)
        result = check(drawn)
        seen += 1
        if drawn.policy.startswith("mixed") or drawn.code or result.report.refused:
            return
        result.model.save(folder / f"{saved}.keras")
        facts = (drawn.x, answers_of(result.model, drawn.x))
        (folder / f"{saved}.pickle").write_bytes(pickle.dumps(facts))
        saved += 1

    draw_one()
    assert saved
    command = [sys.executable, "-c", LOAD, str(folder), str(saved)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
def test_random_models(tmp_path):
    check_many(tmp_path, draws=16, number=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@pytest.mark.parametrize("part", range(4))
def test_many_random_models(tmp_path, part):
    check_many(tmp_path, draws=DRAWS, number=SEED + part + 1)


@pytest.mark.parametrize("name", large_ones_slow(TRAINED))
def test_trained_models(name, tmp_path):
    source = loaded(name)
    result = fold(source)
    assert len(result.report.sites) == TRAINED[name]
    assert not result.report.refused
    assert not result.report.doubts
    # on random inputs some channels hardly vary, and what is left of them is rounding
    swapped = kerasnorm.swap_norms(source, "weight").differences
    assert max(result.differences.values()) <= max(1e-4, 2 * max(swapped.values()))
    assert_no_batch_norm(result.model)
    assert not [layer.name for layer in all_layers(result.model) if not is_plain(layer)]
    linearize_outputs(source, result.model)
    x = images(name)
    assert off(answers_of(source, x), answers_of(result.model, x)) <= 1e-4
    export = kerasnorm.export_onnx(result.model, tmp_path / "model.onnx")
    assert export.max_difference <= 1e-5
    assert "BatchNormalization" not in export.op_counts


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in architectures() if may_have_batch_norm(n)])
def test_published_models(name):
    model = smallest(name)
    x = brought_alive(model)
    result = fold(model)
    assert not result.report.refused
    assert_no_batch_norm(result.model)
    assert not [layer.name for layer in all_layers(result.model) if not is_plain(layer)]
    wide = in_float64(name, model)
    expected = answers_of(wide, x)
    # in float32, no further from the source in float64 than the source is itself, or hardly
    own = off(expected, answers_of(model, x))
    assert off(expected, answers_of(result.model, x)) <= max(1e-4, 5 * own)
