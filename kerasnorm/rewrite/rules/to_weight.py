"""BatchNorm to weight norm: exact at inference, without data.

At inference BatchNorm is the affine map y = γ(x − m)/s + β with s = sqrt(v + ε), that is
y = a·x + c with a = γ/s and c = β − m·a, one of each per channel.

1. Behind a linear layer x = W·u + b₀ of its own, the two compose to one linear layer

       y = (a·W)·u + (c + a·b₀)

   which weight norm writes as direction and length:

       v = W,   g = a·‖W‖,   b = c + a·b₀,

   g signed as γ is. A unit with W = 0 has no direction: any v ≠ 0 and g = 0 give its output b.

2. Anywhere else the map stays where it is, as a diagonal linear layer: v = ±1, g = a, b = c,
   `WeightNorm(Affine())`.

A call fixed to `training=True`, its own or that of a model around it, normalizes by its batch
and is no affine map: refused.
The arithmetic is done in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.layers import Affine, WeightNorm
from kerasnorm.layers import kernel as kernels
from kerasnorm.rewrite import match
from kerasnorm.rewrite.copying import copy_layer
from kerasnorm.rewrite.graph import Call, Forest
from kerasnorm.rewrite.match import NoPartner, Site, Statistics
from kerasnorm.rewrite.rebuild import Replace, Skip
from kerasnorm.rewrite.report import SiteRecord

TARGET = "weight"


@dataclass(frozen=True)
class Plan:
    """What `check` decided for a site, and what `rewrite` needs to do it."""

    record: SiteRecord
    statistics: Statistics | None = None
    partner: Call | None = None
    name: str = ""
    """Of the partner once it is wrapped."""


def check(site: Site, forest: Forest) -> Plan:
    """Decide the case of a site; nothing is changed."""
    if site.call.kwargs.get("training") or id(site.graph.model) in forest.live:
        return _refused(site, "it is called with training=True, so that its batch decides")
    if not match.has_known_call(site.layer):
        return _refused(site, f"{type(site.layer).__name__} computes in its own way")
    found = match.statistics(site.layer)
    if isinstance(found, str):
        return _refused(site, found)
    partner = match.linear_partner(site, forest)
    if isinstance(partner, Call):
        blocked = _bias_in_the_way(partner.operation, found, site)
        partner = NoPartner(blocked) if blocked else partner
    if isinstance(partner, NoPartner):
        return Plan(
            SiteRecord(
                site.name,
                TARGET,
                "exact",
                rule="to_weight 2",
                becomes="WeightNorm(Affine)",
                reason=partner.reason,
            ),
            found,
        )
    layer = partner.operation
    return Plan(
        SiteRecord(
            site.name,
            TARGET,
            "exact",
            rule="to_weight 1",
            becomes=f"WeightNorm({type(layer).__name__})",
            partner=forest.paths[id(site.graph.model)] + layer.name,
            reason=f"taken in by '{layer.name}'",
        ),
        found,
        partner,
        _name_of_partner(site, partner, forest),
    )


def rewrite(site: Site, plan: Plan, name: str) -> dict[Call, Skip | Replace]:
    """The edits that carry out a plan; `name` is for a layer in the BatchNorm's place."""
    if plan.statistics is None:
        return {}
    if plan.partner is None:
        return {site.call: _as_affine(site, name, plan.statistics)}
    return {
        plan.partner: _taken_in(plan.partner.operation, plan.name, site, plan.statistics),
        site.call: Skip(into=plan.name),
    }


def lost(site: Site, plan: Plan, forest: Forest) -> list[str]:
    """What training the swapped model would not find again, in plain sentences."""
    if plan.statistics is None:
        return []
    layer, notes = site.layer, []
    for kind in ("regularizer", "constraint"):
        gone = [w for w in ("gamma", "beta") if getattr(layer, f"{w}_{kind}", None) is not None]
        if gone:
            notes.append(f"'{site.name}': the {kind} of {' and '.join(gone)} is gone with them")
    if plan.partner is not None and forest.calls[id(layer)] > 1:
        notes.append(
            f"'{site.name}': it shared gamma and beta with its other calls; "
            f"'{plan.name}' has a gain and bias of its own"
        )
    if plan.partner is not None and plan.partner.operation.trainable != layer.trainable:
        frozen, free = (
            (plan.partner.operation.name, "g trains")
            if layer.trainable
            else (layer.name, "kernel, g and bias train")
        )
        notes.append(f"'{site.name}': '{frozen}' was frozen and the other was not; {free}")
    return notes


def _refused(site: Site, reason: str) -> Plan:
    return Plan(SiteRecord(site.name, TARGET, "refused", "to_weight", "BatchNorm", reason=reason))


def _name_of_partner(site: Site, partner: Call, forest: Forest) -> str:
    """The partner's own name, or the BatchNorm's where that names an output of the model."""
    names_output = (
        site.graph is forest.root
        and site.graph.is_output(site.call.output)
        and forest.calls[id(site.layer)] == 1
    )
    return site.layer.name if names_output else partner.operation.name


def _bias_in_the_way(layer: keras.Layer, found: Statistics, site: Site) -> str | None:
    """Why c + a·b₀ does not fit the bias of the layer, which only an EinsumDense can have."""
    try:
        _folded_bias(layer, found, site)
    except ValueError:
        return f"the bias of '{layer.name}' has no entry for each channel"
    return None


def _folded_bias(layer: keras.Layer, found: Statistics, site: Site) -> np.ndarray:
    """c + a·b₀ in the shape of the layer's bias."""
    a, c = (_along_bias(layer, vector, site) for vector in (found.scale, found.shift))
    if layer.bias is None:
        return c
    bias = _float64(layer.bias)
    folded = c + a * bias
    if folded.shape != bias.shape:
        raise ValueError
    return folded


def _along_bias(layer: keras.Layer, vector: np.ndarray, site: Site) -> np.ndarray:
    if not isinstance(layer, keras.layers.EinsumDense):
        return vector
    # The bias of an EinsumDense is aligned with the last axes of its output.
    from_end = site.rank - site.axis
    rank = from_end if layer.bias is None else len(layer.bias.shape)
    if from_end > rank:
        raise ValueError
    return vector.reshape([-1 if axis == rank - from_end else 1 for axis in range(rank)])


def _taken_in(layer: keras.Layer, name: str, site: Site, found: Statistics) -> Replace:
    changes: dict[str, Any] = {"use_bias": True} if "use_bias" in layer.get_config() else {}
    if isinstance(layer, keras.layers.EinsumDense) and layer.bias is None:
        output = kernels.einsum_letters(layer.equation)[2]
        changes = {"bias_axes": output[site.axis - site.rank]}

    def make() -> keras.Layer:
        return WeightNorm(
            copy_layer(layer, **changes),
            name=name,
            activity_regularizer=site.layer.activity_regularizer,
        )

    def fill(new: WeightNorm) -> None:
        new.layer.bias.assign(_folded_bias(layer, found, site))
        a = kernels.per_unit(layer, found.scale, site.axis, site.rank)
        sources = kernels.kernels_of(layer)
        for gain, kernel in kernels.kernels_of(new.layer).items():
            scale = a if gain == "g" else np.ones(1)
            _fill_weight(kernel, getattr(new, gain), _float64(sources[gain].variable), scale)
        _set_flags(new, layer, site.layer)

    return Replace(make, fill)


def _as_affine(site: Site, name: str, found: Statistics) -> Replace:
    source = site.layer

    def make() -> keras.Layer:
        affine = Affine(axis=site.axis - site.rank, name=name, dtype=source.dtype_policy)
        return WeightNorm(affine, name=name, activity_regularizer=source.activity_regularizer)

    def fill(new: WeightNorm) -> None:
        new.layer.bias.assign(found.shift)
        (kernel,) = kernels.kernels_of(new.layer).values()
        _fill_weight(kernel, new.g, np.ones_like(found.scale), found.scale)
        _set_flags(new, source, source)

    mask = frozenset(["mask"]) if match.has_own_mask(site) else frozenset()
    return Replace(make, fill, keywords=frozenset(["inputs", *mask]))


def _fill_weight(
    kernel: kernels.Kernel, gain: keras.Variable, weight: np.ndarray, scale: np.ndarray
) -> None:
    """v = W and g = a·‖W‖; a unit of zeros gets v = 1 and g = 0."""
    axes = kernel.contracted_axes
    largest = np.abs(weight).max(axis=axes, keepdims=True)
    zero = largest == 0
    direction = np.where(zero, 1.0, weight)
    largest = np.where(zero, 1.0, largest)  # squares of 1e-30 would vanish once cast back
    length = largest * np.sqrt(np.square(direction / largest).sum(axis=axes, keepdims=True))
    length = np.where(zero, 0.0, length).reshape(kernel.unit_shape)
    kernel.variable.assign(direction)
    gain.assign(np.broadcast_to(scale * length, kernel.unit_shape))


def _set_flags(new: WeightNorm, linear: keras.Layer, batch_norm: keras.Layer) -> None:
    """The kernel and bias train as the linear layer did, g also where only the BatchNorm did."""
    new.trainable = linear.trainable or batch_norm.trainable
    if new.layer.trainable != linear.trainable:
        new.layer.trainable = linear.trainable
    for kernel in kernels.kernels_of(new.layer).values():
        if not kernel.contracted_axes:
            kernel.variable.trainable = False


def _float64(variable) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(variable), np.float64)
