"""Properties of the swap to weight norm on random models.

Whatever the graph: exact at every BatchNorm call, every call in one record, the source untouched.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from fidelity import all_layers, assert_exact, randomize
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from random_models import batch, random_model

import kerasnorm
from kerasnorm.rewrite import match
from kerasnorm.rewrite.forest import graphs_of

# Shrinking builds hundreds of Keras models: minutes, for a report that names the layer anyway.
HARSH = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    phases=[phase for phase in Phase if phase is not Phase.shrink],
    report_multiple_bugs=False,
)


# A number here draws that many new models; without it the draws are the same in every run.
DRAWS = int(os.environ.get("KERASNORM_DRAWS", "0"))


def calls_of_batch_norm(model) -> int:
    forest = graphs_of(model, match.holds_batch_norm)
    return sum(
        match.is_batch_norm(call.operation)
        for graph in forest.graphs.values()
        for call in graph.calls
    )


def check(model) -> None:
    x = batch(model, seed=0)
    randomize(model, x)
    before = [np.array(variable) for variable in model.variables]
    swap = kerasnorm.swap_norms(model, "weight")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.variables, strict=True))
    assert not {id(v) for v in model.variables} & {id(v) for v in swap.model.variables}
    names = [site.name for site in swap.report.sites]
    assert len(names) == len(set(names))
    hidden = [site for site in swap.report.sites if site.rule == "graph"]
    assert len(names) - len(hidden) == calls_of_batch_norm(model)
    left = {layer.name for layer in all_layers(swap.model) if match.is_batch_norm(layer)}
    assert left <= {site.name.split("/")[-1].split("#")[0] for site in swap.report.refused}
    # a call fixed to training=True changes its own statistics, in both models alike
    assert_exact(model, swap, x)


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@settings(HARSH, max_examples=100)
@given(st.data())
def test_exact_on_random_models(data):
    check(random_model(data.draw))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask")
@settings(HARSH, max_examples=DRAWS or 500, derandomize=not DRAWS)
@given(st.data())
def test_exact_on_many_random_models(data):
    check(random_model(data.draw))
