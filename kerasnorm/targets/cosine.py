"""BatchNorm to cosine norm: a linear regression on data.

With x̂ = x/‖x‖ (of each patch, for a convolution), a cosine-normalized layer with gain and outer
bias is y = u·x̂ + b, where u = g·w/‖w‖ is any vector: what fits BatchNorm's output best has a
closed form (`fit.cosine_norm`). Stored statistics alone do not tell how long x is.

1. Behind a linear layer that CosineNorm can wrap: that layer takes the cosine, and BatchNorm's
   output is what it is fitted to. Grouped and depthwise convolutions take that with all channels
   of the patch: the few entries that one channel has there keep nothing of their size.
2. Elsewhere BatchNorm stays the affine map it is, an `Affine`, and the next linear layer takes the
   cosine instead, if layers without weights alone are in between and no other BatchNorm claims
   it; its own pre-activation is what it is fitted to.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kerasnorm.clone.edits import Replace, Skip
from kerasnorm.clone.state import assign_copy
from kerasnorm.errors import Refusal
from kerasnorm.graph import commute
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.linear_partner import Partner
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site, is_batch_norm, is_plain_linear
from kerasnorm.graph.stored_statistics import StoredStatistics
from kerasnorm.layers import CosineNorm, kernels
from kerasnorm.layers.linear_ops import has_rows
from kerasnorm.layers.patches import refusal
from kerasnorm.targets import fold_into
from kerasnorm.targets.plan import FitRequest, Plan, name_of_partner
from kerasnorm.targets.target import Damping, Edits, Target, harm_before_probabilities

_OWN, _NEXT = 1, 2


class CosineTarget(Target):
    """BatchNorm to cosine norm."""

    name = "cosine"

    def plan(
        self, site: Site, model_graphs: ModelGraphs, statistics: StoredStatistics
    ) -> Plan | Refusal:
        def case(number, verdict, becomes, **more):
            return Plan(site, self.name, number, verdict, becomes, statistics, **more)

        partner = fold_into.partner_of(site, model_graphs, statistics)
        if isinstance(partner, Partner):
            partner = _without_commuting(partner)
        if isinstance(partner, Partner):
            return case(
                _OWN,
                "calibrated",
                f"CosineNorm({type(partner.layer).__name__})",
                partner=partner,
                name=name_of_partner(site, partner, model_graphs),
                in_place=False,
            )
        follower = _follower(site, model_graphs)
        if follower is None:
            return case(_NEXT, "exact", "Affine", reason=partner.reason)
        return case(
            _NEXT,
            "calibrated",
            f"Affine, CosineNorm({type(follower.layer).__name__})",
            partner=follower,
            name=follower.layer.name,
            reason=partner.reason,
        )

    def harm(self, plan: Plan, model_graphs: ModelGraphs) -> Refusal | None:
        return harm_before_probabilities(plan, model_graphs)

    def rewrite(self, plan: Plan, name: str, damping: Damping) -> Edits:
        site, partner, found = plan.site, plan.partner, plan.statistics
        if plan.case == _OWN:
            assert partner is not None
            penalty = site.layer.activity_regularizer
            return {
                partner.call: _cosine(partner, plan.name, found, penalty),
                site.call: Skip(into=plan.name),
            }
        edits: Edits = {site.call: fold_into.as_affine(site, name, found)}
        if partner is not None:
            edits[partner.call] = _cosine(partner, plan.name, None)
        return edits

    def fit_request(
        self, plan: Plan, edits: Mapping[Call, Any], damping: Damping
    ) -> FitRequest | None:
        """The regression: on BatchNorm's output, or for the next layer on its pre-activation."""
        partner = plan.partner
        if partner is None:
            return None
        if plan.case == _NEXT:
            return FitRequest(edits[partner.call], partner.call, damping, source=partner.layer)
        return FitRequest(edits[partner.call], plan.site.call, damping)

    def notes(self, plan: Plan, model_graphs: ModelGraphs) -> list[str]:
        site, partner = plan.site, plan.partner
        weights = ("gamma", "beta") if plan.case == _OWN else ("beta",)
        notes = fold_into.lost_penalties(site, weights)
        if partner is None:
            return notes
        notes += fold_into.penalties_of_direction(partner.layer, "CosineNorm")
        if plan.case == _OWN and model_graphs.calls[id(site.layer)] > 1:
            notes.append(
                f"'{site.name}': it shared gamma and beta with its other calls; "
                f"'{partner.layer.name}' has a gain and bias of its own"
            )
        if plan.case == _OWN:
            notes += fold_into.frozen_apart(
                partner, site, of_partner="kernel, g and bias train", of_batch_norm="nothing trains"
            )
        return notes


def _without_commuting(partner: Partner) -> Partner | Refusal:
    """The partner if CosineNorm can take its place with nothing in between."""
    if partner.commuted:
        between = partner.commuted[-1].operation.name
        return Refusal(f"'{between}' stands between it and '{partner.layer.name}'")
    reason = _refusal(partner.layer)
    return (
        Refusal(f"CosineNorm cannot wrap '{partner.layer.name}': {reason}") if reason else partner
    )


def _refusal(layer: Any) -> Refusal | None:
    """Why a linear layer cannot be fitted as a CosineNorm."""
    if isinstance(layer, keras.layers.EinsumDense) and not has_rows(layer):
        return Refusal("its output units run along several axes")
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
        if is_plain_linear(layer):
            break
        weightless = isinstance(layer, keras.layers.Layer) and not layer.weights
        if not weightless or len(call.inputs) != 1:
            return None
        tensor = call.output
    once = model_graphs.calls[id(layer)] == 1 and layer.activity_regularizer is None
    if not once or _refusal(layer) or _is_claimed(call, graph):
        return None
    rank = len(call.output.shape)
    axis = kernels.channel_axis(layer, rank)
    return Partner(call, rank - 1 if axis is None else axis, model_graphs.path(graph, layer))


def _is_claimed(call: Call, graph: Graph) -> bool:
    """Whether a BatchNorm behind a linear layer may take it."""
    tensor = call.output
    while True:
        readers = graph.consumers(tensor)
        if any(is_batch_norm(reader.operation) for reader in readers):
            return True
        if len(readers) != 1 or not commute.commutes(readers[0]):
            return False
        tensor = readers[0].output


def _cosine(partner: Partner, name: str, found: StoredStatistics | None, penalty=None) -> Replace:
    layer = partner.layer

    def make() -> keras.layers.Layer:
        inner = fold_into.with_bias(partner, found)
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
            assign_copy(own.variable, kernels.kernels_of(layer)[gain].variable)
        kernel.variable.assign(weight)
        # g starts at sqrt(fan-in): the length of the map for inputs with entries around 1
        new.g.assign(new.g * new.lengths())
        new.layer.bias.assign(np.broadcast_to(bias, new.layer.bias.shape))
        new.trainable = layer.trainable
        fold_into.freeze_alike(new.layer, layer)
        fold_into.freeze(new.g, kernels.output_kernel(layer).variable)

    return Replace(make, fill)
