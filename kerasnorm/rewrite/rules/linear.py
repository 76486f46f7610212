"""A linear layer that takes a BatchNorm's affine map in.

With x = W·u + b₀ in front of y = a·x + c, one of a and c per channel,

    y = (a·W)·u + (c + a·b₀).

A layer without bias is given one. The arithmetic is done in float64.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasnorm.layers import kernel as kernels
from kerasnorm.rewrite.copying import copy_layer
from kerasnorm.rewrite.match import Partner, Statistics


def bias_in_the_way(partner: Partner, found: Statistics) -> str | None:
    """Why c + a·b₀ does not fit the bias of the layer, which only an EinsumDense can have."""
    try:
        folded_bias(partner, found)
    except ValueError:
        return f"the bias of '{partner.layer.name}' has no entry for each channel"
    return None


def folded_bias(partner: Partner, found: Statistics) -> np.ndarray:
    """c + a·b₀ in the shape of the layer's bias."""
    a, c = (_along_bias(partner, vector) for vector in (found.scale, found.shift))
    if partner.layer.bias is None:
        return c
    bias = float64(partner.layer.bias)
    folded = c + a * bias
    if folded.shape != bias.shape:
        raise ValueError
    return folded


def per_unit_scale(partner: Partner, found: Statistics) -> np.ndarray:
    """a in the shape of the layer's output units, ready to broadcast against it."""
    return kernels.per_unit(partner.layer, found.scale, partner.axis, partner.rank)


def with_bias(partner: Partner) -> keras.layers.Layer:
    """A new, unbuilt copy of the layer that has a bias."""
    layer: Any = partner.layer
    changes: dict[str, Any] = {"use_bias": True} if "use_bias" in layer.get_config() else {}
    if isinstance(layer, keras.layers.EinsumDense) and layer.bias is None:
        output = kernels.einsum_letters(layer.equation)[2]
        changes = {"bias_axes": output[partner.axis - partner.rank]}
    return copy_layer(layer, **changes)


def float64(variable) -> np.ndarray:
    """A variable's value as NumPy float64."""
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)


def _along_bias(partner: Partner, vector: np.ndarray) -> np.ndarray:
    layer = partner.layer
    if not isinstance(layer, keras.layers.EinsumDense):
        return vector
    # The bias of an EinsumDense is aligned with the last axes of its output.
    from_end = partner.rank - partner.axis
    rank = from_end if layer.bias is None else len(layer.bias.shape)
    if from_end > rank:
        raise ValueError
    return vector.reshape([-1 if axis == rank - from_end else 1 for axis in range(rank)])
