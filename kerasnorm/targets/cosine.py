"""BatchNorm to cosine norm: a linear regression on data.

With x̂ = x/‖x‖ (of each patch, for a convolution), a cosine-normalized layer with gain and outer
bias is y = u·x̂ + b, where u = g·w/‖w‖ is any vector: what fits BatchNorm's output best has a
closed form (`fit.fit_layer.fit_cosine`). Stored statistics alone do not tell how long x is.

1. Behind a linear layer that CosineNorm can wrap: that layer takes the cosine, and BatchNorm's
   output is what it is fitted to. Grouped and depthwise convolutions take that with all channels
   of the patch: the few entries that one channel has there keep nothing of their size.
2. Elsewhere BatchNorm stays the affine map it is, an `Affine`, and the next linear layer takes the
   cosine instead, if layers without weights alone are in between and no other BatchNorm claims
   it; its own pre-activation is what it is fitted to.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasnorm.clone.rebuild import Replace, Skip
from kerasnorm.graph import commute, sites
from kerasnorm.graph.graph import Call
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import NoPartner, Partner, Site, Statistics
from kerasnorm.layers import CosineNorm, kernels
from kerasnorm.layers.linear_ops import has_rows
from kerasnorm.layers.patches import refusal
from kerasnorm.targets import fold_into, plan
from kerasnorm.targets.plan import FitRequest, Plan

TARGET = "cosine"


def check(site: Site, model_graphs: ModelGraphs) -> Plan:
    """Decide the case of a site; nothing is changed."""
    found = plan.stored_statistics(site, model_graphs)
    if isinstance(found, str):
        return plan.refused(site, TARGET, found)
    partner = fold_into.partner_of(site, model_graphs, found)
    if isinstance(partner, Partner):
        partner = _without_commuting(partner)
    if isinstance(partner, Partner):
        becomes = f"CosineNorm({type(partner.layer).__name__})"
        record = plan.record(site, TARGET, "calibrated", 1, becomes, partner)
        name = plan.name_of_partner(site, partner, model_graphs)
        return Plan(record, found, partner, name, in_place=False)
    follower = _follower(site, model_graphs)
    if follower is None:
        return Plan(plan.record(site, TARGET, "exact", 2, "Affine", partner), found)
    becomes = f"Affine, CosineNorm({type(follower.layer).__name__})"
    record = plan.record(site, TARGET, "calibrated", 2, becomes, follower, partner.reason)
    return Plan(record, found, follower, follower.layer.name)


def rewrite(site: Site, decided: Plan, name: str, damping: float) -> dict[Call, Skip | Replace]:
    """The edits that carry out a plan; `name` is for a layer in the BatchNorm's place."""
    found, partner = decided.statistics, decided.partner
    if found is None:
        return {}
    if partner is None:
        return {site.call: fold_into.as_affine(site, name, found)}
    if decided.record.rule == "to_cosine 2":
        return {
            site.call: fold_into.as_affine(site, name, found),
            partner.call: _cosine(partner, decided.name, None),
        }
    return {
        partner.call: _cosine(partner, decided.name, found, site.layer.activity_regularizer),
        site.call: Skip(into=decided.name),
    }


def fit(site: Site, decided: Plan, edits: dict[Call, Any]) -> FitRequest | None:
    """The regression: on BatchNorm's output, or for the next layer on its own pre-activation."""
    partner = decided.partner
    if partner is None:
        return None
    if decided.record.rule == "to_cosine 2":
        return FitRequest(edits[partner.call], partner.call, source=partner.layer)
    return FitRequest(edits[partner.call], site.call)


def lost(site: Site, decided: Plan, model_graphs: ModelGraphs) -> list[str]:
    """What training the swapped model would not find again, in plain sentences."""
    if decided.partner is None or model_graphs.calls[id(site.layer)] == 1:
        return []
    if decided.record.rule == "to_cosine 2":
        return []
    return [
        f"'{site.name}': it shared gamma and beta with its other calls; "
        f"'{decided.partner.layer.name}' has a gain and bias of its own"
    ]


def _without_commuting(partner: Partner) -> Partner | NoPartner:
    """The partner if CosineNorm can take its place with nothing in between."""
    if partner.commuted:
        between = partner.commuted[-1].operation.name
        return NoPartner(f"'{between}' stands between it and '{partner.layer.name}'")
    reason = _refusal(partner.layer)
    return (
        NoPartner(f"CosineNorm cannot wrap '{partner.layer.name}': {reason}") if reason else partner
    )


def _refusal(layer: Any) -> str | None:
    """Why a linear layer cannot be fitted as a CosineNorm."""
    if isinstance(layer, keras.layers.EinsumDense) and not has_rows(layer):
        return "its output units run along several axes"
    return refusal(layer)


def _follower(site: Site, model_graphs: ModelGraphs) -> Partner | None:
    """The next linear layer, where it may take the cosine."""
    graph, tensor = site.graph, site.call.output
    while True:
        readers = graph.consumers(tensor)
        if len(readers) != 1 or graph.is_output(tensor):
            return None
        call = readers[0]
        layer: Any = call.operation
        if sites.is_plain_linear(layer):
            break
        weightless = isinstance(layer, keras.layers.Layer) and not layer.weights
        if not weightless or sites.is_batch_norm(layer) or len(call.inputs) != 1:
            return None
        tensor = call.output
    once = model_graphs.calls[id(layer)] == 1 and layer.activity_regularizer is None
    if not once or _refusal(layer) or _is_claimed(call, graph):
        return None
    rank = len(call.output.shape)
    axis = kernels.channel_axis(layer, rank)
    return Partner(call, rank - 1 if axis is None else axis, model_graphs.path(graph, layer))


def _is_claimed(call: Call, graph) -> bool:
    """Whether a BatchNorm behind a linear layer may take it."""
    tensor = call.output
    while True:
        readers = graph.consumers(tensor)
        if any(sites.is_batch_norm(reader.operation) for reader in readers):
            return True
        if len(readers) != 1 or not commute.commutes(readers[0]):
            return False
        tensor = readers[0].output


def _cosine(partner: Partner, name: str, found: Statistics | None, penalty=None) -> Replace:
    layer = partner.layer

    def make() -> keras.layers.Layer:
        inner = fold_into.with_bias(partner)
        inner.activity_regularizer = penalty
        return CosineNorm(inner, rescale=True, across_groups=True, name=name)

    def fill(new: CosineNorm) -> None:
        kernel = kernels.output_kernel(new.layer)
        weight = fold_into.float64(kernels.output_kernel(layer).variable)
        bias = 0.0 if layer.bias is None else fold_into.float64(layer.bias)
        if found is not None:
            a = np.broadcast_to(fold_into.per_unit_scale(partner, found), kernel.unit_shape)
            weight = weight * a.reshape(kernel.broadcast_shape)
            bias = fold_into.folded_bias(partner, found)
        for gain, own in kernels.kernels_of(new.layer).items():
            own.variable.assign(kernels.kernels_of(layer)[gain].variable)
        kernel.variable.assign(weight)
        # g starts at sqrt(fan-in): the length of the map for inputs with entries around 1
        new.g.assign(new.g * new.lengths())
        new.layer.bias.assign(np.broadcast_to(bias, new.layer.bias.shape))
        new.trainable = layer.trainable

    return Replace(make, fill)
