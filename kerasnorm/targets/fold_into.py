"""A linear layer that takes a BatchNorm's affine map in.

With x = W·u + b₀ in front of y = a·x + c, one of a and c per channel,

    y = (a·W)·u + (c + a·b₀).

A layer without bias is given one. Penalties and constraints go on meaning W and b₀
(`layers.rescaled`). The arithmetic is done in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from kerasnorm.clone.by_config import copy_layer
from kerasnorm.clone.edits import Replace
from kerasnorm.clone.state import copy_state
from kerasnorm.errors import Refusal
from kerasnorm.graph.linear_partner import Partner, linear_partner
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site
from kerasnorm.graph.stored_statistics import StoredStatistics
from kerasnorm.layers import Affine, kernels
from kerasnorm.layers.rescaled import RescaledConstraint, RescaledRegularizer

# How arguments that concern a linear layer's kernels begin, that nearest to the output first.
_PREFIXES = ("pointwise", "depthwise", "kernel")
_KINDS = ("regularizer", "constraint")


def partner_of(site: Site, model_graphs: ModelGraphs, found: StoredStatistics) -> Partner | Refusal:
    """The linear layer in front of a site that can take its map in, or why there is none."""
    partner = linear_partner(site, model_graphs, found)
    if isinstance(partner, Refusal):
        return partner
    try:
        folded_bias(partner, found)
    except ValueError:  # which only an EinsumDense can have
        return Refusal(f"the bias of '{partner.layer.name}' has no entry for each channel")
    return partner


def folded_bias(partner: Partner, found: StoredStatistics) -> np.ndarray:
    """c + a·b₀ in the shape of the layer's bias."""
    a, c = (_along_bias(partner, vector) for vector in (found.scale, found.shift))
    if partner.layer.bias is None:
        return c
    bias = float64(partner.layer.bias)
    folded = c + a * bias
    if folded.shape != bias.shape:
        raise ValueError
    return folded


def per_unit_scale(partner: Partner, found: StoredStatistics) -> np.ndarray:
    """a in the shape of the layer's output units, ready to broadcast against it."""
    return kernels.per_unit(partner.layer, found.scale, partner.axis, partner.rank)


def with_bias(partner: Partner, found: StoredStatistics | None) -> keras.layers.Layer:
    """A new, unbuilt copy of the layer that has a bias: c + a·b₀, or b₀ without a map."""
    layer: Any = partner.layer
    changes: dict[str, Any] = {"use_bias": True} if "use_bias" in layer.get_config() else {}
    if isinstance(layer, keras.layers.EinsumDense) and layer.bias is None:
        output = kernels.einsum_letters(layer.equation)[2]
        changes = {"bias_axes": output[partner.axis - partner.rank]}
    new: Any = copy_layer(layer, **changes)
    if layer.bias is None:  # there was nothing to penalize
        new.bias_regularizer = new.bias_constraint = None
    elif found is not None:
        scale, shift = (_along_bias(partner, vector) for vector in (found.scale, found.shift))
        rescale_penalties(new, "bias", scale, shift)
    return new


def with_map_folded_in(partner: Partner, found: StoredStatistics, name: str = "") -> Replace:
    """The layer with kernel a·W and bias c + a·b₀, otherwise as it is but for a new name."""
    layer = partner.layer

    def kernel_scale(kernel: kernels.Kernel) -> np.ndarray:
        a = np.broadcast_to(per_unit_scale(partner, found), kernel.unit_shape)
        return a.reshape(kernel.broadcast_shape)

    def make() -> keras.Layer:
        new = with_bias(partner, found)
        rescale_penalties(new, kernel_prefix(layer), kernel_scale(kernels.output_kernel(layer)))
        new.name = name or new.name
        return new

    def fill(new: Any) -> None:
        if layer.bias is not None:
            copy_state(layer, new)
        sources = kernels.kernels_of(layer)
        for gain, kernel in kernels.kernels_of(new).items():
            weight = float64(sources[gain].variable)
            if gain == "g":
                weight = weight * kernel_scale(kernel)
            kernel.variable.assign(weight)
        new.bias.assign(folded_bias(partner, found))
        new.trainable = layer.trainable
        freeze_alike(new, layer)

    return Replace(make, fill)


def as_affine(site: Site, name: str, found: StoredStatistics, *, penalized: bool = True) -> Replace:
    """The map itself, y = a·x + c, as a layer in the BatchNorm's place.

    `penalized` is whether the BatchNorm's penalty on outputs applies to it.
    """
    source: Any = site.layer

    def make() -> keras.Layer:
        penalties: dict[str, Any] = {}
        if source.gamma is not None:
            penalties["kernel_regularizer"] = source.gamma_regularizer
            penalties["kernel_constraint"] = source.gamma_constraint
        affine = Affine(
            axis=site.axis - site.rank,
            **penalties,
            activity_regularizer=source.activity_regularizer if penalized else None,
            trainable=source.trainable,
            dtype=source.dtype_policy,
            name=name,
        )
        rescale_penalties(affine, "kernel", 1 / found.deviation)
        return affine

    def fill(new: Any) -> None:
        new.kernel.assign(found.scale)
        new.bias.assign(found.shift)
        freeze(new.kernel, source.gamma)
        freeze(new.bias, source.beta)

    return Replace(make, fill)


def freeze_alike(new: Any, layer: Any) -> None:
    """Have single kernels, and the bias, of a linear layer not train where another's do not."""
    sources = kernels.kernels_of(layer)
    for gain, kernel in kernels.kernels_of(new).items():
        freeze(kernel.variable, sources[gain].variable)
    freeze(new.bias, layer.bias)


def freeze(variable: keras.Variable | None, source: keras.Variable | None) -> None:
    """Have a variable not train where its source does not."""
    if variable is not None and source is not None and not source.trainable:
        variable.trainable = False


def lost_penalties(site: Site, weights: Sequence[str]) -> list[str]:
    """A note for each kind of penalty or constraint on `gamma` or `beta` that goes with them."""
    notes = []
    for kind in _KINDS:
        gone = [
            weight
            for weight in weights
            if getattr(site.layer, weight) is not None
            and getattr(site.layer, f"{weight}_{kind}") is not None
        ]
        if gone:
            notes.append(f"'{site.name}': the {kind} of {' and '.join(gone)} is gone with them")
    return notes


def frozen_apart(partner: Partner, site: Site, *, of_partner: str, of_batch_norm: str) -> list[str]:
    """A note where one of a BatchNorm and its partner is frozen, on what trains in their place.

    `of_partner` and `of_batch_norm` say what does where that alone was not frozen.
    """
    if partner.layer.trainable == site.layer.trainable:
        return []
    frozen, trains = (
        (partner.layer.name, of_batch_norm)
        if site.layer.trainable
        else (site.layer.name, of_partner)
    )
    return [f"'{site.name}': '{frozen}' was frozen and the other was not; {trains}"]


def erased_penalties(partner: Partner, found: StoredStatistics) -> list[str]:
    """A note where gamma erases units of a kernel, and with them what penalized these."""
    layer, erased = partner.layer, int((found.scale == 0).sum())
    names = [f"{kernel_prefix(layer)}_{kind}" for kind in _KINDS]
    gone = [name for name in names if getattr(layer, name) is not None]
    if not erased or not gone:
        return []
    return [
        f"'{layer.name}': its {' and '.join(gone)} leave{'s' if len(gone) == 1 else ''} out "
        f"{erased} unit{'s' if erased > 1 else ''} that gamma=0 erases"
    ]


def penalties_of_direction(layer: Any, wrapper: str) -> list[str]:
    """A note for each penalty or constraint that acts on a kernel whose length counts no more."""
    named = (f"{prefix}_{kind}" for prefix in _PREFIXES for kind in _KINDS)
    return [
        f"'{layer.name}': its {name} acts on the direction that {wrapper} takes from the kernel "
        "now, and does not restrict the length of the weights"
        for name in named
        if getattr(layer, name, None) is not None
    ]


def kernel_prefix(layer: Any) -> str:
    """How the arguments of a linear layer that concern the kernel nearest to its output begin."""
    return next(prefix for prefix in _PREFIXES if hasattr(layer, f"{prefix}_regularizer"))


def rescale_penalties(layer: Any, prefix: str, scale: np.ndarray, offset: Any = 0.0) -> None:
    """Have penalty and constraint of a weight that was folded to scale·W + offset mean W."""
    regularizer, constraint = f"{prefix}_regularizer", f"{prefix}_constraint"
    if getattr(layer, regularizer) is not None:
        factor = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale != 0)
        rescaled = RescaledRegularizer(getattr(layer, regularizer), factor, offset)
        setattr(layer, regularizer, rescaled)
    if getattr(layer, constraint) is not None:
        setattr(layer, constraint, RescaledConstraint(getattr(layer, constraint), scale, offset))


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
