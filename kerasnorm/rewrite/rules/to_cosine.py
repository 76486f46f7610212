"""BatchNorm to cosine norm: a linear regression on data.

With x̂ = x/‖x‖ (of each patch, for a convolution), a cosine-normalized layer with gain and outer
bias is y = u·x̂ + b, where u = g·w/‖w‖ is any vector: what fits BatchNorm's output best has a
closed form (`calibrate.fits.fit_cosine`). Stored statistics alone do not tell how long x is.

1. Behind a linear layer that CosineNorm can wrap: that layer takes the cosine, and BatchNorm's
   output is what it is fitted to. Grouped and depthwise convolutions take that with all channels
   of the patch: the few entries that one channel has there keep nothing of their size.
2. Behind a separable convolution: its depthwise part stays, and its pointwise part takes the
   cosine, as a convolution of size 1.
3. Elsewhere BatchNorm stays the affine map it is, an `Affine`, and the next linear layer takes the
   cosine instead, if layers without weights alone are in between and no other BatchNorm claims
   it; its own pre-activation is what it is fitted to.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from kerasnorm.calibrate.rows import has_rows
from kerasnorm.layers import CosineNorm
from kerasnorm.layers import kernel as kernels
from kerasnorm.layers.patches import refusal
from kerasnorm.rewrite import crossing, match
from kerasnorm.rewrite.forest import Forest
from kerasnorm.rewrite.graph import Call
from kerasnorm.rewrite.match import NoPartner, Partner, Site, Statistics
from kerasnorm.rewrite.rebuild import Replace, Skip
from kerasnorm.rewrite.rules import linear, plan
from kerasnorm.rewrite.rules.plan import FitRequest, Plan

TARGET = "cosine"
_POINTWISE = {
    keras.layers.SeparableConv1D: (keras.layers.DepthwiseConv1D, keras.layers.Conv1D),
    keras.layers.SeparableConv2D: (keras.layers.DepthwiseConv2D, keras.layers.Conv2D),
}


def check(site: Site, forest: Forest) -> Plan:
    """Decide the case of a site; nothing is changed."""
    found = plan.stored_statistics(site, forest)
    if isinstance(found, str):
        return plan.refused(site, TARGET, found)
    partner = linear.partner_of(site, forest, found)
    if isinstance(partner, Partner):
        partner = _without_crossing(partner)
    if isinstance(partner, Partner):
        separable = type(partner.layer) in _POINTWISE
        kind = _POINTWISE[type(partner.layer)][1] if separable else type(partner.layer)
        becomes, case = f"CosineNorm({kind.__name__})", 2 if separable else 1
        record = plan.record(site, TARGET, "calibrated", case, becomes, partner)
        name = plan.name_of_partner(site, partner, forest)
        return Plan(record, found, partner, name, in_place=separable)
    follower = _follower(site, forest)
    if follower is None:
        return Plan(plan.record(site, TARGET, "exact", 3, "Affine", partner), found)
    becomes = f"Affine, CosineNorm({type(follower.layer).__name__})"
    record = plan.record(site, TARGET, "calibrated", 3, becomes, follower, partner.reason)
    return Plan(record, found, follower, follower.layer.name)


def rewrite(site: Site, decided: Plan, name: str, damping: float) -> dict[Call, Skip | Replace]:
    """The edits that carry out a plan; `name` is for a layer in the BatchNorm's place."""
    found, partner = decided.statistics, decided.partner
    if found is None:
        return {}
    if partner is None:
        return {site.call: linear.as_affine(site, name, found)}
    if decided.record.rule == "to_cosine 3":
        return {
            site.call: linear.as_affine(site, name, found),
            partner.call: _cosine(partner, decided.name, None),
        }
    if decided.record.rule == "to_cosine 2":
        return {
            partner.call: _depthwise_part(partner),
            site.call: _pointwise_part(site, partner, name, found),
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
    if decided.record.rule == "to_cosine 3":
        return FitRequest(edits[partner.call], partner.call, source=partner.layer)
    at = site.call if decided.record.rule == "to_cosine 2" else partner.call
    return FitRequest(edits[at], site.call)


def lost(site: Site, decided: Plan, forest: Forest) -> list[str]:
    """What training the swapped model would not find again, in plain sentences."""
    if decided.partner is None or forest.calls[id(site.layer)] == 1:
        return []
    if decided.record.rule == "to_cosine 3":
        return []
    return [
        f"'{site.name}': it shared gamma and beta with its other calls; "
        f"'{decided.partner.layer.name}' has a gain and bias of its own"
    ]


def _without_crossing(partner: Partner) -> Partner | NoPartner:
    """The partner if CosineNorm can take its place with nothing in between."""
    if partner.crossed:
        between = partner.crossed[-1].operation.name
        return NoPartner(f"'{between}' stands between it and '{partner.layer.name}'")
    if type(partner.layer) in _POINTWISE:
        return partner
    reason = _refusal(partner.layer)
    return (
        NoPartner(f"CosineNorm cannot wrap '{partner.layer.name}': {reason}") if reason else partner
    )


def _refusal(layer: Any) -> str | None:
    """Why a linear layer cannot be fitted as a CosineNorm."""
    if isinstance(layer, keras.layers.EinsumDense) and not has_rows(layer):
        return "its output units run along several axes"
    return refusal(layer)


def _follower(site: Site, forest: Forest) -> Partner | None:
    """The next linear layer, where it may take the cosine."""
    graph, tensor = site.graph, site.call.output
    while True:
        readers = graph.consumers(tensor)
        if len(readers) != 1 or graph.is_output(tensor):
            return None
        call = readers[0]
        layer: Any = call.operation
        if match.is_plain_linear(layer):
            break
        weightless = isinstance(layer, keras.layers.Layer) and not layer.weights
        if not weightless or match.is_batch_norm(layer) or len(call.inputs) != 1:
            return None
        tensor = call.output
    once = forest.calls[id(layer)] == 1 and layer.activity_regularizer is None
    if not once or _refusal(layer) or _is_claimed(call, graph):
        return None
    rank = len(call.output.shape)
    axis = kernels.channel_axis(layer, rank)
    return Partner(call, rank - 1 if axis is None else axis, forest.path(graph, layer))


def _is_claimed(call: Call, graph) -> bool:
    """Whether a BatchNorm behind a linear layer may take it."""
    tensor = call.output
    while True:
        readers = graph.consumers(tensor)
        if any(match.is_batch_norm(reader.operation) for reader in readers):
            return True
        if len(readers) != 1 or not crossing.is_crossable(readers[0]):
            return False
        tensor = readers[0].output


def _cosine(partner: Partner, name: str, found: Statistics | None, penalty=None) -> Replace:
    layer = partner.layer

    def make() -> keras.layers.Layer:
        inner = linear.with_bias(partner)
        inner.activity_regularizer = penalty
        return CosineNorm(inner, rescale=True, across_groups=True, name=name)

    def fill(new: CosineNorm) -> None:
        kernel = kernels.output_kernel(new.layer)
        weight = linear.float64(kernels.output_kernel(layer).variable)
        bias = 0.0 if layer.bias is None else linear.float64(layer.bias)
        if found is not None:
            a = np.broadcast_to(linear.per_unit_scale(partner, found), kernel.unit_shape)
            weight = weight * a.reshape(kernel.broadcast_shape)
            bias = linear.folded_bias(partner, found)
        _start(new, kernel, weight, bias)
        new.trainable = layer.trainable

    return Replace(make, fill)


def _depthwise_part(partner: Partner) -> Replace:
    layer: Any = partner.layer
    cls = _POINTWISE[type(layer)][0]

    def make() -> keras.layers.Layer:
        return cls(
            layer.kernel_size,
            strides=layer.strides,
            padding=layer.padding,
            depth_multiplier=layer.depth_multiplier,
            data_format=layer.data_format,
            dilation_rate=layer.dilation_rate,
            use_bias=False,
            depthwise_initializer=layer.depthwise_initializer,
            depthwise_regularizer=layer.depthwise_regularizer,
            depthwise_constraint=layer.depthwise_constraint,
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
            name=layer.name,
        )

    return Replace(make, lambda new: new.kernel.assign(layer.depthwise_kernel))


def _pointwise_part(site: Site, partner: Partner, name: str, found: Statistics) -> Replace:
    layer: Any = partner.layer
    cls = _POINTWISE[type(layer)][1]

    def make() -> keras.layers.Layer:
        inner = cls(
            layer.filters,
            1,
            data_format=layer.data_format,
            kernel_initializer=layer.pointwise_initializer,
            kernel_regularizer=layer.pointwise_regularizer,
            kernel_constraint=layer.pointwise_constraint,
            bias_regularizer=layer.bias_regularizer,
            bias_constraint=layer.bias_constraint,
            activity_regularizer=site.layer.activity_regularizer,
            trainable=layer.trainable,
            dtype=layer.dtype_policy,
            name=name,
        )
        return CosineNorm(inner, rescale=True, name=name)

    def fill(new: CosineNorm) -> None:
        kernel = kernels.output_kernel(new.layer)
        weight = linear.float64(layer.pointwise_kernel) * found.scale
        _start(new, kernel, weight, linear.folded_bias(partner, found))

    return Replace(make, fill)


def _start(new: CosineNorm, kernel: kernels.Kernel, weight: np.ndarray, bias) -> None:
    """Direction and bias of the map, and its length for inputs with entries around 1."""
    length = np.sqrt(np.square(weight).sum(kernel.contracted_axes))
    fan_in = np.prod([kernel.variable.shape[a] for a in kernel.contracted_axes])
    kernel.variable.assign(weight)
    new.g.assign((length * np.sqrt(fan_in)).reshape(new.g.shape))
    new.layer.bias.assign(np.broadcast_to(bias, new.layer.bias.shape))
