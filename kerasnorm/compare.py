"""How far a swapped model is from its source, at every BatchNorm call and at the outputs."""

from __future__ import annotations

from typing import Any

import keras

from kerasnorm.rewrite import graph as graphs
from kerasnorm.rewrite import verify
from kerasnorm.rewrite.swap import Swap


def site_differences(source: keras.Model, swap: Swap, inputs: Any = None) -> dict[str, float]:
    """How far each BatchNorm call's output is from what the swapped model has in its place.

    max|Δ| / std of the source's tensor over the batch, by site name; the model's outputs follow
    as "output 0", "output 1", …. The sites inside a nested model are compared on what the source
    feeds that model.

    Args:
        source: The model that was swapped.
        swap: What `swap_norms` made of it.
        inputs: A batch in the structure of the model's inputs; None for seeded random numbers.

    Returns:
        A number ≥ 0 for each site and output; infinite where one model's answer is finite and
        the other's is not.

    Raises:
        NotComparableError: If the source itself cannot be run on the inputs.

    Example:

    >>> from kerasnorm import swap_norms
    >>> model = keras.Sequential([keras.Input((4,)), keras.layers.BatchNormalization()])
    >>> sorted(site_differences(model, swap_norms(model, "weight")))
    ['batch_normalization', 'output 0']
    """
    return verify.differences(graphs.forest(source).root, swap.model, swap.twins, inputs)
