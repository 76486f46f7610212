"""What rounding alone does to a model's answers, which no other way to compute them can help.

Every number in a network is off by up to half a unit in its last place, differently in each
runtime and in each order of operations. Deep networks without training amplify that: InceptionV3
with random weights is off by 3e-4 in Keras and by 2e-4 in ONNX Runtime, both against float64.
Moving every weight by one rounding step shows how much a network amplifies. Over ten networks,
trained and not, that moved the answers by 0.7 to 3 times the difference between the runtimes.
"""

from __future__ import annotations

from collections.abc import Iterable

import keras
import numpy as np

from kerasnorm.compare.tolerances import EPSILONS

# How often everything is moved, each time at random; the largest movement counts.
MOVES = 3
# Two computations of one network may be so many times as far apart as that. Up to 4.2 times was
# seen between Keras and ONNX Runtime (EfficientNetB0, random weights, one move), and 3.6 between a
# model and its copy, in 10^5 channels of two numbers each.
ROUNDINGS = 8


def moved(values: np.ndarray, generator: np.random.Generator, step: float = 0.0) -> np.ndarray:
    """Floating numbers moved up or down, at random, by one rounding step; others as they are.

    Zeros do not move: they are structure (padding, masks), and exact in every runtime.

    Args:
        values: The numbers.
        generator: Of the directions.
        step: The least step, as a fraction of each number; that of their dtype is taken where it
            is larger.
    """
    if values.dtype.name not in EPSILONS:
        return values
    step = max(step, EPSILONS[values.dtype.name])
    up = generator.integers(0, 2, values.shape, dtype=np.int8).astype(bool)
    wide = np.result_type(values.dtype, np.float32)
    factors = np.where(up, wide.type(1 + step), wide.type(1 - step))
    return np.asarray(values * factors).astype(values.dtype)


def moved_weights(
    variables: Iterable[keras.Variable], seed: int, step: float = 0.0
) -> list[tuple[keras.Variable, np.ndarray]]:
    """Each floating variable and its value moved by one rounding step (see `moved`)."""
    generator = np.random.default_rng(seed)
    return [
        (variable, moved(keras.ops.convert_to_numpy(variable), generator, step))
        for variable in variables
        if variable.dtype in EPSILONS
    ]
