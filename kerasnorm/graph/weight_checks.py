"""Numbers in a model that no training means: NaN, infinities, negative variances."""

from __future__ import annotations

from dataclasses import dataclass

import keras
import numpy as np

from kerasnorm.keras_private import own_variables, sublayers
from kerasnorm.layers.batch_norm import BATCH_NORMS


@dataclass(frozen=True)
class Fault:
    """What is wrong with a weight.

    Attributes:
        layer: Name of the layer that holds it.
        what: What it holds, as a sentence.
        spoils: Whether nothing that passes the layer can be right: it is not finite.
        in_batch_norm: Whether the layer is a BatchNorm.
    """

    layer: str
    what: str
    spoils: bool
    in_batch_norm: bool

    def __str__(self) -> str:
        return f"'{self.layer}': {self.what}"


def faults_of(model: keras.Model) -> list[Fault]:
    """The faults of all weights of a model, layer by layer."""
    found = []
    for layer in (model, *sublayers(model)):
        for weight in own_variables(layer):
            values = _numbers(weight)
            bad = ~np.isfinite(values)
            if bad.any():
                kind = "NaN" if np.isnan(values).any() else "infinite"
                what, spoils = f"holds {_count(bad)} {kind}", True
            elif weight.name == "moving_variance" and (values < 0).any():
                what, spoils = f"is negative for {_count(values < 0)}", False
            else:
                continue
            is_norm = isinstance(layer, BATCH_NORMS)
            found.append(Fault(layer.name, f"its {weight.name} {what}", spoils, is_norm))
    return found


def _numbers(weight: keras.Variable) -> np.ndarray:
    if "float" not in str(weight.dtype):  # bfloat16 is one for Keras, and none for NumPy
        return np.zeros(0)
    return np.asarray(keras.ops.convert_to_numpy(weight), "float64")


def _count(which: np.ndarray) -> str:
    return f"{int(which.sum()):,} of {which.size:,}"
