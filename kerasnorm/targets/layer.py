"""BatchNorm to layer norm: matched from stored statistics, or fitted to data.

BatchNorm's statistics say what a sample's own are on average, when its features are as unlike
each other as those of the data. With y = a·x + c, a = γ/s, c = β − m·a, s = sqrt(v + ε):

1. Behind a linear layer x = W·u + b₀, the whole of BatchNorm is folded into that first: kernel
   U = a·W, offset c + a·b₀. Its output has mean β and variance γ²v/s² in each channel, so a
   sample's statistics over its features are on average

       μ̄ = mean_c β,   σ̄² = mean_c (β² + γ²v/s²) − μ̄²,

   and the layer norm that follows has gain σ̄ and bias μ̄ in every channel.

2. Elsewhere, an `Affine` takes BatchNorm's map, U = a, and the same layer norm follows: raw
   activations have channels of all sizes, and the largest would decide for all.

3. Where code of a layer's own calls the BatchNorm, and so takes one layer in its place, on the raw
   activation:

       μ̄ = mean_c m,   σ̄² = mean_c (v + m²) − μ̄²,   gain = a·σ̄,   bias = β + a·(μ̄ − m).

4. On an input of the model, whose features may be unlike (age beside income), or on a single
   channel, which a layer norm would erase: an `Affine`, y itself.

Feature maps are normalized as a whole (`axis="sample"`), whose mean and deviation vary least from
sample to sample; sequences at each step by itself, so that no step sees another.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import keras
import numpy as np

from kerasnorm.clone.rebuild import Replace, Skip
from kerasnorm.graph.graph import Call
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import NoPartner, Partner, Site
from kerasnorm.layers import LayerNorm
from kerasnorm.targets import fold_into, plan
from kerasnorm.targets.plan import FitRequest, Plan

TARGET = "layer"
# ε as a share of σ̄², so that it is as small beside large activations as beside small ones.
_LEAST_EPSILON = 1e-5
_VOLUMES = (keras.layers.Conv3D, keras.layers.Conv3DTranspose)


def check(site: Site, model_graphs: ModelGraphs) -> Plan:
    """Decide the case of a site; nothing is changed."""
    found = plan.stored_statistics(site, model_graphs)
    if isinstance(found, str):
        return plan.refused(site, TARGET, found)
    unlike = _unlike(site, model_graphs)
    if unlike:
        return Plan(plan.record(site, TARGET, "exact", 4, "Affine", NoPartner(unlike)), found)
    partner = fold_into.partner_of(site, model_graphs, found)
    if isinstance(partner, NoPartner):
        case, becomes = (3, "LayerNorm") if site.graph.is_code else (2, "Affine, LayerNorm")
        return Plan(plan.record(site, TARGET, "matched", case, becomes, partner), found)
    return Plan(plan.record(site, TARGET, "matched", 1, "LayerNorm", partner), found, partner)


def rewrite(site: Site, decided: Plan, name: str, damping: float) -> dict[Call, Skip | Replace]:
    """The edits that carry out a plan; `name` is for the layer in the BatchNorm's place."""
    found, partner = decided.statistics, decided.partner
    if found is None:
        return {}
    if decided.record.becomes == "Affine":
        return {site.call: fold_into.as_affine(site, name, found)}
    raw = decided.record.rule == "to_layer 3"
    if raw:
        center, spread = _sample_statistics(found.mean, found.variance)
        gain, bias = found.scale * spread, found.beta + found.scale * (center - found.mean)
    else:
        center, spread = _sample_statistics(found.beta, np.square(found.scale) * found.variance)
        gain, bias = np.full_like(found.scale, spread), np.full_like(found.scale, center)
    epsilon = max(damping, _LEAST_EPSILON) * spread**2 or keras.config.epsilon()
    norm = _layer_norm(site, partner, name, epsilon, gain, bias)
    if partner is not None:
        return {partner.call: fold_into.with_map_folded_in(partner, found), site.call: norm}
    if raw:
        return {site.call: norm}
    first = fold_into.as_affine(site, _free(f"{name}_affine", site), found, penalized=False)
    return {site.call: dataclasses.replace(norm, first=first)}


def fit(site: Site, decided: Plan, edits: dict[Call, Any]) -> FitRequest | None:
    """What data can do: gain and bias, and the kernel in front if the layer norm alone reads it."""
    if decided.statistics is None or decided.record.becomes == "Affine":
        return None
    partner = decided.partner
    plain = None if partner is None or partner.commuted else edits[partner.call]
    return FitRequest(edits[site.call], site.call, plain=plain)


def lost(site: Site, decided: Plan, model_graphs: ModelGraphs) -> list[str]:
    """What training the swapped model would not find again, in plain sentences."""
    if decided.partner is None or model_graphs.calls[id(site.layer)] == 1:
        return []
    return [
        f"'{site.name}': it shared gamma and beta with its other calls; they are folded into "
        f"'{decided.partner.layer.name}' here"
    ]


def _free(name: str, site: Site) -> str:
    """The name, or one like it that no layer beside the site has."""
    taken = {call.operation.name for call in site.graph.calls}
    return next(n for n in (name + "_" * k for k in itertools.count()) if n not in taken)


def _unlike(site: Site, model_graphs: ModelGraphs) -> str | None:
    """Why the features of a site are none to be normalized together."""
    if site.call.output.shape[site.axis] == 1:
        return "it has a single channel, which a layer norm would erase"
    if site.producer.is_input and site.graph is model_graphs.root:
        return "it normalizes an input of the model, whose features may be unlike"
    return None


def _sample_statistics(means: np.ndarray, variances: np.ndarray) -> tuple[float, float]:
    """(μ̄, σ̄) of a sample whose channels have these means and variances."""
    center = float(means.mean())
    return center, float(np.sqrt(max((variances + np.square(means)).mean() - center**2, 0.0)))


def _layer_norm(
    site: Site, partner: Partner | None, name: str, epsilon: float, gain, bias
) -> Replace:
    source: Any = site.layer
    volume = partner is not None and isinstance(partner.layer, _VOLUMES)
    whole = site.rank == 4 or (site.rank == 5 and volume)
    channels = site.axis - site.rank

    def make() -> keras.Layer:
        axes: dict[str, Any] = (
            {"axis": "sample", "channel_axis": channels} if whole else {"axis": channels}
        )
        return LayerNorm(
            **axes,
            epsilon=epsilon,
            gamma_regularizer=source.gamma_regularizer,
            gamma_constraint=source.gamma_constraint,
            beta_regularizer=source.beta_regularizer,
            beta_constraint=source.beta_constraint,
            activity_regularizer=source.activity_regularizer,
            trainable=source.trainable,
            dtype=source.dtype_policy,
            name=name,
        )

    def fill(new: Any) -> None:
        new.gamma.assign(gain.reshape(new.gamma.shape))
        new.beta.assign(bias.reshape(new.beta.shape))

    return Replace(make, fill)
