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

from typing import Any

import keras
import numpy as np

from kerasnorm.clone.rebuild import Replace, Skip
from kerasnorm.graph import sites
from kerasnorm.graph.graph import Call
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import NoPartner, Partner, Site, Statistics
from kerasnorm.layers import Affine, WeightNorm, kernels
from kerasnorm.targets import fold_into as linear
from kerasnorm.targets import plan
from kerasnorm.targets.plan import Plan

TARGET = "weight"


def check(site: Site, model_graphs: ModelGraphs) -> Plan:
    """Decide the case of a site; nothing is changed."""
    found = plan.stored_statistics(site, model_graphs)
    if isinstance(found, str):
        return plan.refused(site, TARGET, found)
    partner = linear.partner_of(site, model_graphs, found)
    if isinstance(partner, NoPartner):
        return Plan(plan.record(site, TARGET, "exact", 2, "WeightNorm(Affine)", partner), found)
    becomes = f"WeightNorm({type(partner.layer).__name__})"
    name = plan.name_of_partner(site, partner, model_graphs)
    record = plan.record(site, TARGET, "exact", 1, becomes, partner)
    return Plan(record, found, partner, name, in_place=False)


def rewrite(site: Site, decided: Plan, name: str, damping: float) -> dict[Call, Skip | Replace]:
    """The edits that carry out a plan; `name` is for a layer in the BatchNorm's place.

    Weight norm has no scale to damp.
    """
    if decided.statistics is None:
        return {}
    if decided.partner is None:
        return {site.call: _as_affine(site, name, decided.statistics)}
    return {
        decided.partner.call: _taken_in(decided.partner, decided.name, site, decided.statistics),
        site.call: Skip(into=decided.name),
    }


def fit(site: Site, decided: Plan, edits: dict[Call, Skip | Replace]) -> None:
    """Nothing is left for data to do."""


def lost(site: Site, decided: Plan, model_graphs: ModelGraphs) -> list[str]:
    """What training the swapped model would not find again, in plain sentences."""
    if decided.statistics is None:
        return []
    layer, notes = site.layer, []
    for kind in ("regularizer", "constraint"):
        gone = [w for w in ("gamma", "beta") if getattr(layer, f"{w}_{kind}", None) is not None]
        if gone:
            notes.append(f"'{site.name}': the {kind} of {' and '.join(gone)} is gone with them")
    if decided.partner is not None and model_graphs.calls[id(layer)] > 1:
        notes.append(
            f"'{site.name}': it shared gamma and beta with its other calls; "
            f"'{decided.name}' has a gain and bias of its own"
        )
    if decided.partner is not None and decided.partner.layer.trainable != layer.trainable:
        frozen, free = (
            (decided.partner.layer.name, "g trains")
            if layer.trainable
            else (layer.name, "kernel, g and bias train")
        )
        notes.append(f"'{site.name}': '{frozen}' was frozen and the other was not; {free}")
    return notes


def _taken_in(partner: Partner, name: str, site: Site, found: Statistics) -> Replace:
    layer = partner.layer

    def make() -> keras.Layer:
        return WeightNorm(
            linear.with_bias(partner),
            name=name,
            activity_regularizer=site.layer.activity_regularizer,
        )

    def fill(new: WeightNorm) -> None:
        new.layer.bias.assign(linear.folded_bias(partner, found))
        a = linear.per_unit_scale(partner, found)
        sources = kernels.kernels_of(layer)
        for gain, kernel in kernels.kernels_of(new.layer).items():
            scale = a if gain == "g" else np.ones(1)
            _fill_weight(kernel, getattr(new, gain), sources[gain].variable, scale)
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

    mask = frozenset(["mask"]) if sites.has_own_mask(site) else frozenset()
    return Replace(make, fill, keywords=frozenset(["inputs", *mask]))


def _fill_weight(
    kernel: kernels.Kernel, gain: keras.Variable, source: Any, scale: np.ndarray
) -> None:
    """v = W and g = a·‖W‖; a unit of zeros gets v = 1 and g = 0."""
    axes = kernel.contracted_axes
    weight = linear.float64(source)
    largest = np.maximum(
        weight.max(axis=axes, keepdims=True), -weight.min(axis=axes, keepdims=True)
    )
    zero = largest == 0
    kernel.variable.assign(np.where(zero, 1.0, weight) if zero.any() else source)
    scaled = weight / np.where(zero, 1.0, largest)  # squares of 1e-200 would vanish
    length = largest * np.sqrt(np.square(scaled, out=scaled).sum(axis=axes, keepdims=True))
    gain.assign(np.broadcast_to(scale * length.reshape(kernel.unit_shape), kernel.unit_shape))


def _set_flags(new: WeightNorm, linear: keras.Layer, batch_norm: keras.Layer) -> None:
    """The kernel and bias train as the linear layer did, g also where only the BatchNorm did."""
    new.trainable = linear.trainable or batch_norm.trainable
    if new.layer.trainable != linear.trainable:
        new.layer.trainable = linear.trainable
    for kernel in kernels.kernels_of(new.layer).values():
        if not kernel.contracted_axes:
            kernel.variable.trainable = False
