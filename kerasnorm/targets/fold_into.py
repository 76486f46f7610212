"""A linear layer that takes a BatchNorm's affine map in.

With x = W·u + b₀ in front of y = a·x + c, one of a and c per channel,

    y = (a·W)·u + (c + a·b₀).

A layer without bias is given one. The arithmetic is done in float64.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasnorm.clone.by_config import copy_layer, copy_state
from kerasnorm.clone.rebuild import Replace
from kerasnorm.graph import sites
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import NoPartner, Partner, Site, Statistics
from kerasnorm.layers import Affine, kernels


def partner_of(site: Site, model_graphs: ModelGraphs, found: Statistics) -> Partner | NoPartner:
    """The linear layer in front of a site that can take its map in, or why there is none."""
    partner = sites.linear_partner(site, model_graphs, found)
    if isinstance(partner, NoPartner):
        return partner
    try:
        folded_bias(partner, found)
    except ValueError:  # which only an EinsumDense can have
        return NoPartner(f"the bias of '{partner.layer.name}' has no entry for each channel")
    return partner


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


def with_map_folded_in(partner: Partner, found: Statistics) -> Replace:
    """The layer with kernel a·W and bias c + a·b₀, otherwise as it is."""
    layer = partner.layer

    def fill(new: Any) -> None:
        if layer.bias is not None:
            copy_state(layer, new)
        a = per_unit_scale(partner, found)
        sources = kernels.kernels_of(layer)
        for gain, kernel in kernels.kernels_of(new).items():
            weight = float64(sources[gain].variable)
            if gain == "g":
                weight = weight * np.broadcast_to(a, kernel.unit_shape).reshape(
                    kernel.broadcast_shape
                )
            kernel.variable.assign(weight)
        new.bias.assign(folded_bias(partner, found))
        new.trainable = layer.trainable

    return Replace(lambda: with_bias(partner), fill)


def as_affine(site: Site, name: str, found: Statistics, *, penalized: bool = True) -> Replace:
    """The map itself, y = a·x + c, as a layer in the BatchNorm's place.

    `penalized` is whether the BatchNorm's penalty on outputs applies to it.
    """
    source: Any = site.layer

    def make() -> keras.Layer:
        return Affine(
            axis=site.axis - site.rank,
            activity_regularizer=source.activity_regularizer if penalized else None,
            trainable=source.trainable,
            dtype=source.dtype_policy,
            name=name,
        )

    def fill(new: Any) -> None:
        new.kernel.assign(found.scale)
        new.bias.assign(found.shift)

    return Replace(make, fill)


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
