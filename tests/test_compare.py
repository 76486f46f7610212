"""`Swap.compare` sees what differs, where, and in nested models too."""

from __future__ import annotations

import fidelity
import numpy as np
import pytest
import tiny_models
from test_swap import EXACT_MODELS, batch, randomized

import kerasnorm


@pytest.mark.parametrize("name", ["nested", "shared_bn", "structured", "sequential", "masked"])
def test_agrees_with_watching_the_layers_run(name):
    source = randomized(name)
    swap = kerasnorm.swap_norms(source, "weight")
    x = batch(source, seed=1)
    found, watched = swap.compare(x), fidelity.site_differences(source, swap, x)
    assert set(found) == set(watched)
    for site, difference in found.items():
        # a model called twice is watched in both calls, and fed its first input here
        assert difference <= watched[site] + 1e-6, site
    assert max(found.values()) <= fidelity.SITE_TOLERANCE


def test_a_fault_is_seen_where_it_is():
    source = randomized("nested")
    swap = kerasnorm.swap_norms(source, "weight")
    wrong = swap.model.get_layer("tail").get_layer("conv")
    wrong.g.assign(wrong.g * 1.01)
    differences = swap.compare(batch(source))
    assert differences["tail/bn"] > 1e-3
    assert differences["block/second"] <= fidelity.SITE_TOLERANCE


def test_random_inputs_are_made_where_none_are_given():
    source = EXACT_MODELS["structured"]()
    swap = kerasnorm.swap_norms(source, "weight")
    again = [swap.compare() for _ in range(2)]
    assert again[0] == again[1]
    assert np.isfinite(list(again[0].values())).all()


def test_sites_inside_a_wrapper_are_compared():
    source = tiny_models.opaque()
    swap = kerasnorm.swap_norms(source, "weight")
    assert set(swap.compare()) == {"per_step/inner", "bn", "output 0"}
