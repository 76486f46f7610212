"""How large a step of training is for each variable: relative to what the variable holds.

Adam's steps are as large for a weight of 0.001 as for one of 1. Where the scale of a BatchNorm was
folded into a kernel, or inputs are pixels from 0 to 255, one learning rate is too large for some
layers and too small for others; relative to the variables' own sizes, it is the same for a model
and its twin whose layers compute in other units.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasnorm.graph.activation_store import ActivationStore
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.stream import ActivationStream

# The activations of a few samples.
_BYTES = 2**28


def step_sizes(
    student: ModelGraphs, variables: Sequence[keras.Variable], arrays: list[np.ndarray]
) -> list[float]:
    """What a learning rate of 1 is for each variable.

    That is the root mean square of what it holds; for what is added to a layer's output (a vector
    beside a matrix, an offset beside a gain), at least that output's deviation.

    Args:
        student: The graphs of the model that is trained.
        variables: Those that are.
        arrays: Some samples, flat inputs of the model.
    """
    deviations = _deviations(student, arrays)
    found = []
    for variable in variables:
        size = _root_mean_square(variable)
        found.append(max(size, deviations.get(id(variable), 0.0)) or 1.0)
    return found


def _deviations(student: ModelGraphs, arrays: list[np.ndarray]) -> dict[int, float]:
    """The deviation of what a layer puts out, by the `id` of its offset."""
    store = ActivationStore(_BYTES)
    stream = ActivationStream(student.root, student.graphs, store, "student")
    found: dict[int, float] = {}
    try:
        stream.feed(arrays)
        for number, step in enumerate(stream.steps):
            offsets = _offsets(step.call.operation)
            if offsets:
                (value,) = stream.activations(number + 1, stream.output(number))
                rows = value.reshape(-1, value.shape[-1]).astype(np.float64)
                deviation = float(np.sqrt(np.mean(rows.var(0))))
                for offset in offsets:
                    found[id(offset)] = max(found.get(id(offset), 0.0), deviation)
    finally:
        store.close()
    return found


def _offsets(layer: Any) -> list[keras.Variable]:
    offsets = [getattr(part, name, None) for part in _parts(layer) for name in ("bias", "beta")]
    return [offset for offset in offsets if isinstance(offset, keras.Variable)]


def _parts(layer: Any) -> list[Any]:
    return [layer, layer.layer] if isinstance(layer, keras.layers.Wrapper) else [layer]


def _root_mean_square(variable: keras.Variable) -> float:
    values = keras.ops.convert_to_numpy(variable).astype(np.float64)
    return float(np.sqrt(np.mean(np.square(values)))) if values.size else 0.0
