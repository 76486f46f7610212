"""`Swap.compare` sees what differs, where, and in nested models too."""

from __future__ import annotations

import fidelity
import numpy as np
import pytest
import tiny_models
from test_swap import EXACT_MODELS, batch, randomized

import kerasnorm


def of_worst_channel(expected, received):
    """max|Δ| over the deviation of a channel, which is the last axis of these models' tensors."""
    worst = 0.0
    for channel in range(expected.shape[-1]):
        a, b = expected[..., channel], received[..., channel]
        largest = np.abs(a).max()
        spread = max(a.std(), 1e-4 * largest) if a.std() > 1e-6 * largest else 1e-2 * largest
        worst = max(worst, np.abs(a - b).max() / (spread or 1e-4 * np.abs(expected).max()))
    return worst


@pytest.mark.parametrize("name", ["nested", "shared_bn", "structured", "sequential", "masked"])
def test_agrees_with_watching_the_layers_run(name):
    source = randomized(name)
    swap = kerasnorm.swap_norms(source, "weight")
    x = batch(source, seed=1)
    watched = fidelity.site_differences(source, swap, x, of_worst_channel)
    found = swap.compare(x)
    assert {site.replace("#2/", "/") for site in found} == set(watched)
    for site, difference in found.items():
        # a model called twice is watched in both calls, and fed what the source feeds it here
        assert difference <= 1.01 * watched[site.replace("#2/", "/")] + 1e-6, site
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
