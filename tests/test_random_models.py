"""Properties of the swap to weight norm on random models.

Whatever the graph: exact at every BatchNorm call, every call in one record, the source untouched;
and the result is saved, loaded elsewhere, and exported to ONNX.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from fidelity import (
    FLOAT64_TOLERANCE,
    all_layers,
    assert_exact,
    computing_in,
    site_differences,
)
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from random_models import Drawn, random_model

import kerasnorm
from kerasnorm import ExportError
from kerasnorm.graph import sites as match
from kerasnorm.graph.model_graphs import graphs_of
from kerasnorm.swap.swap import Swap

# Shrinking builds hundreds of Keras models: minutes, for a report that names the layer anyway.
HARSH = settings(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[phase for phase in Phase if phase is not Phase.shrink],
    report_multiple_bugs=False,
)


# How many models the slow test draws, and from which seed: the same ones in every run, or others.
DRAWS = int(os.environ.get("KERASNORM_DRAWS", "2000"))
SEED = int(os.environ.get("KERASNORM_SEED", "0"))
PARTS = 4
ONE_IN = 12  # models in float32 is exported


def sites_of(model) -> list[match.Site]:
    return match.find_sites(graphs_of(model, match.holds_batch_norm))[0]


def kernels(model) -> int:
    """How many kernels there are, those of Affine aside."""
    names = ("kernel", "depthwise_kernel", "embeddings")
    affines = sum(isinstance(layer, kerasnorm.Affine) for layer in all_layers(model))
    return sum(variable.name in names for variable in model.variables) - affines


def outcomes(records, target=None) -> dict[str, tuple]:
    """By site, what becomes of it, of all records or those of one target."""
    return {
        site.name: (site.verdict, site.becomes, site.rule, site.reason)
        for site in records
        if target in (None, site.target)
    }


def check_promise(drawn: Drawn, target: str) -> None:
    """What `inspect_norms` says of a target that needs no data is what a swap to it does."""
    promised = outcomes(kerasnorm.inspect_norms(drawn.model).sites, target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", kerasnorm.FidelityWarning)
        swap = kerasnorm.swap_norms(drawn.model, target)
    assert outcomes(swap.report.sites) == promised


def check(drawn: Drawn) -> Swap:
    """Swap a random model and check everything about that; the swap."""
    model, x = drawn.model, drawn.x
    drawn.randomize()
    before = [np.array(variable) for variable in model.variables]
    records = [len(layer._inbound_nodes) for layer in all_layers(model)]
    promised = kerasnorm.inspect_norms(model).sites
    swap = kerasnorm.swap_norms(model, "weight")
    assert outcomes(swap.report.sites) == outcomes(promised, "weight")
    assert not any("compared" in warning for warning in swap.report.warnings)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))
    assert records == [len(layer._inbound_nodes) for layer in all_layers(model)]
    assert not {id(v) for v in model.variables} & {id(v) for v in swap.model.variables}
    assert kernels(swap.model) == kernels(model), "a shared layer stays one"
    names = [site.name for site in swap.report.sites]
    assert len(names) == len(set(names))
    opaque = [site for site in swap.report.sites if site.rule == "graph"]
    sites = sites_of(model)
    assert len(names) - len(opaque) == len(sites)
    in_training = {
        site.name for site in sites if site.call.kwargs.get("training") and site.layer.trainable
    }
    assert in_training <= {site.name for site in swap.report.refused}
    left = {layer.name for layer in all_layers(swap.model) if match.is_batch_norm(layer)}
    assert left <= {site.name.split("/")[-1].split("#")[0] for site in swap.report.refused}
    # a call fixed to training=True changes its own statistics, in both models alike
    if drawn.policy == "float64":
        differences = site_differences(model, swap, x)
        assert max(differences.values()) <= FLOAT64_TOLERANCE, differences
        return swap
    if drawn.extreme:
        return swap  # judged while it was swapped, each channel by its own spread
    with computing_in("float32" if drawn.policy != "float32" else None, model, swap.model):
        # Some random channels hardly vary: what is left of them is rounding. More of it than in
        # the source, which rounds γ/s alike in γ/s·x and γ/s·m.
        assert_exact(model, swap, x, most=0.1, roundings=100)
    return swap


class Shelf:
    """Swapped models in files, to be loaded in one new process together."""

    def __init__(self, folder):
        self.folder = folder
        self.count = 0

    def put(self, model, x) -> None:
        model.save(self.folder / f"{self.count}.keras")
        answers = [np.array(y) for y in keras.tree.flatten(model(x, training=False))]
        (self.folder / f"{self.count}.pickle").write_bytes(pickle.dumps((x, answers)))
        self.count += 1

    def insist(self) -> None:
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD, str(self.folder), str(self.count)],
            capture_output=True,
            text=True,
        )
        assert loaded.returncode == 0, loaded.stderr[-3000:]


LOAD = """
import pathlib, pickle, sys
import keras, numpy as np
import kerasnorm
folder = pathlib.Path(sys.argv[1])
for number in range(int(sys.argv[2])):
    model = keras.models.load_model(folder / f"{number}.keras")
    x, answers = pickle.loads((folder / f"{number}.pickle").read_bytes())
    for answer, again in zip(answers, keras.tree.flatten(model(x, training=False)), strict=True):
        scale = np.abs(answer).max() + 1e-6
        np.testing.assert_allclose(again, answer, rtol=0, atol=1e-5 * scale, err_msg=str(number))
"""


def export(drawn: Drawn, swapped, path) -> None:
    """A file that ONNX Runtime runs as Keras does, or none: tf2onnx gets some of these wrong."""
    path.unlink(missing_ok=True)
    try:
        kerasnorm.export_onnx(swapped, path, inputs=drawn.x)
    except ExportError:
        assert not path.exists()


def check_many(folder, draws: int, number: int) -> None:
    seen = 0
    shelf = Shelf(folder)

    @seed(number)
    @settings(HARSH, max_examples=draws)
    @given(st.data())
    def draw_one(data):
        nonlocal seen
        keras.backend.clear_session(free_memory=not seen % 25)
        drawn = random_model(data.draw)
        swap = check(drawn)
        seen += 1
        if not seen % 3:
            check_promise(drawn, ("layer", "group")[seen % 2])
        if drawn.policy.startswith("mixed"):
            return
        if not drawn.code:
            shelf.put(swap.model, drawn.x)
        live = [site for site in swap.report.refused if "training=True" in site.reason]
        if not seen % ONE_IN and not live and drawn.policy == "float32":
            export(drawn, swap.model, folder / "model.onnx")

    draw_one()
    shelf.insist()


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
def test_random_models(tmp_path):
    check_many(tmp_path, draws=24, number=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@pytest.mark.parametrize("part", range(PARTS))
def test_many_random_models(tmp_path, part):
    check_many(tmp_path, draws=DRAWS // PARTS, number=SEED + part + 1)
