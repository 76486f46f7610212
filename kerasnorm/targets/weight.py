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

A call fixed to `training=True`, its own or that of a model around it, normalizes by its batch,
in `model(x)` at least, and is no affine map: refused.
The arithmetic is done in float64.
"""

from __future__ import annotations

import math
from types import MappingProxyType
from typing import Any

import keras
import numpy as np

from kerasnorm.clone.by_config import copy_layer
from kerasnorm.clone.edits import Replace, Skip
from kerasnorm.clone.state import assign_copy, copy_state
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call
from kerasnorm.graph.keras_add import adds_bias_along
from kerasnorm.graph.linear_partner import Partner, has_own_mask
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site
from kerasnorm.graph.stored_statistics import StoredStatistics
from kerasnorm.layers import Affine, WeightNorm, kernels
from kerasnorm.layers.patches import Contraction
from kerasnorm.targets import fold_into
from kerasnorm.targets.plain import drop_penalties
from kerasnorm.targets.plan import Plan, name_alone, name_of_partner, names_output
from kerasnorm.targets.target import Damping, Edits, Target


def fold_weight_norm(layer: WeightNorm, calls: list[Call], name: str) -> Replace | Refusal:
    both = layer.activity_regularizer is not None and layer.layer.activity_regularizer is not None
    if both and not layer.mean_only:
        return Refusal("it penalizes its output, and the layer in it does too")
    return fold_weight_norm_if_exact(layer, calls, name) or Refusal(
        "its mean has no place in a bias"
    )


def fold_weight_norm_if_exact(layer: WeightNorm, calls: list[Call], name: str) -> Replace | None:
    """The wrapped layer with kernel w and, for mean-only batch norm, bias b − moving mean.

    What penalizes or constrains v, or a bias that takes a mean in, is left out.
    None for `mean_only="layer"`, whose mean is another one for each sample, and where Keras would
    add the bias along another axis.
    """
    inner = layer.layer
    if layer.mean_only == "layer":
        return None
    changes: dict[str, Any] = {"name": name}
    if layer.activity_regularizer is not None:
        changes["activity_regularizer"] = layer.activity_regularizer
    if layer.mean_only and not _bias_lies_right(layer, calls):
        return None
    if layer.mean_only and inner.bias is None:
        if isinstance(inner, keras.layers.EinsumDense):
            letters = kernels.einsum_letters(inner.equation)
            changes["bias_axes"] = "".join(x for x in letters[2] if x in letters[1])
        else:
            changes["use_bias"] = True

    def make() -> keras.Layer:
        plain = copy_layer(inner, **changes)
        drop_penalties(plain, kept=("activity",) if layer.mean_only else ("activity", "bias"))
        return plain

    def fill(plain: keras.Layer) -> None:
        if "use_bias" not in changes and "bias_axes" not in changes:
            copy_state(inner, plain)
        weights, sources = layer.normalized_kernels(), kernels.kernels_of(inner)
        for gain, kernel in kernels.kernels_of(plain).items():
            kernel.variable.assign(weights[gain])
            trains = getattr(layer, gain).trainable or sources[gain].variable.trainable
            kernel.variable.trainable = plain.trainable and trains
        if layer.mean_only:
            bias = plain.bias if inner.bias is not None else keras.ops.zeros_like(plain.bias)
            rank = len(calls[0].inputs[0].shape)
            shift = Contraction(plain, rank).units_to_bias(layer.moving_mean)
            plain.bias.assign(bias - shift)

    return Replace(make, fill)


def _bias_lies_right(layer: WeightNorm, calls: list[Call]) -> bool:
    shapes = [call.output.shape for call in calls]
    axis = kernels.channel_axis(layer.layer, len(shapes[0]))
    if axis is None:  # EinsumDense: right where its bias runs along the last axes only
        _, kernel, output = kernels.einsum_letters(layer.layer.equation)
        return output[-1] in kernel and output[-1] in (layer.layer.bias_axes or output)
    size = math.prod(layer.moving_mean.shape)
    return all(adds_bias_along(axis, shape, size) for shape in shapes)


class WeightTarget(Target):
    """BatchNorm to weight norm."""

    name = "weight"
    folds = MappingProxyType({WeightNorm: fold_weight_norm})

    def plan(
        self, site: Site, model_graphs: ModelGraphs, statistics: StoredStatistics
    ) -> Plan | Refusal:
        partner = fold_into.partner_of(site, model_graphs, statistics)
        if isinstance(partner, Refusal):
            return Plan(
                site,
                self.name,
                2,
                "exact",
                "WeightNorm(Affine)",
                statistics,
                reason=partner.reason,
            )
        return Plan(
            site,
            self.name,
            1,
            "exact",
            f"WeightNorm({type(partner.layer).__name__})",
            statistics,
            partner,
            name_of_partner(site, partner, model_graphs),
            in_place=names_output(site, model_graphs) and bool(partner.commuted),
        )

    def rewrite(self, plan: Plan, name: str, damping: Damping) -> Edits:
        """The edits of a plan; weight norm has no scale to damp."""
        site, partner = plan.site, plan.partner
        if partner is None:
            return {site.call: _wrapped_affine(site, name, plan.statistics)}
        return {
            partner.call: _wrapped_partner(partner, plan.name, site, plan.statistics),
            site.call: name_alone(site) if plan.in_place else Skip(into=plan.name),
        }

    def notes(self, plan: Plan, model_graphs: ModelGraphs) -> list[str]:
        site, partner = plan.site, plan.partner
        layer = site.layer
        notes = fold_into.lost_penalties(site, ("gamma", "beta"))
        if partner is None:
            return notes
        notes += fold_into.penalties_of_direction(partner.layer, "WeightNorm")
        if model_graphs.calls[id(layer)] > 1:
            notes.append(
                f"'{site.name}': it shared gamma and beta with its other calls; "
                f"'{plan.name}' has a gain and bias of its own"
            )
        return notes + fold_into.frozen_apart(
            partner, site, of_partner="kernel, g and bias train", of_batch_norm="g trains"
        )


def _wrapped_partner(partner: Partner, name: str, site: Site, found: StoredStatistics) -> Replace:
    layer = partner.layer

    def make() -> keras.Layer:
        return WeightNorm(
            fold_into.with_bias(partner, found),
            name=name,
            activity_regularizer=site.layer.activity_regularizer,
        )

    def fill(new: WeightNorm) -> None:
        new.layer.bias.assign(fold_into.folded_bias(partner, found))
        a = fold_into.per_unit_scale(partner, found)
        sources = kernels.kernels_of(layer)
        for gain, kernel in kernels.kernels_of(new.layer).items():
            scale = a if gain == "g" else np.ones(1)
            _fill_weight(kernel, getattr(new, gain), sources[gain].variable, scale)
        _set_flags(new, layer, site.layer)

    return Replace(make, fill)


def _wrapped_affine(site: Site, name: str, found: StoredStatistics) -> Replace:
    source: Any = site.layer

    def make() -> keras.Layer:
        affine = Affine(axis=site.axis - site.rank, name=name, dtype=source.dtype_policy)
        return WeightNorm(affine, name=name, activity_regularizer=source.activity_regularizer)

    def fill(new: WeightNorm) -> None:
        new.layer.bias.assign(found.shift)
        (kernel,) = kernels.kernels_of(new.layer).values()
        _fill_weight(kernel, new.g, np.ones_like(found.scale), found.scale)
        new.trainable = source.trainable
        fold_into.freeze(new.g, source.gamma)
        fold_into.freeze(new.layer.bias, source.beta)

    mask = frozenset(["mask"]) if has_own_mask(site.call) else frozenset()
    return Replace(make, fill, keywords=frozenset(["inputs", *mask]))


def _fill_weight(
    kernel: kernels.Kernel, gain: keras.Variable, source: Any, scale: np.ndarray
) -> None:
    """v = W and g = a·‖W‖; a unit of zeros gets v = 1 and g = 0."""
    axes = kernel.contracted_axes
    weight = fold_into.float64(source)
    largest = np.maximum(
        weight.max(axis=axes, keepdims=True), -weight.min(axis=axes, keepdims=True)
    )
    zero = largest == 0
    assign_copy(kernel.variable, np.where(zero, 1.0, weight) if zero.any() else source)
    scaled = weight / np.where(zero, 1.0, largest)  # squares of 1e-200 would vanish
    length = largest * np.sqrt(np.square(scaled, out=scaled).sum(axis=axes, keepdims=True))
    gain.assign(np.broadcast_to(scale * length.reshape(kernel.unit_shape), kernel.unit_shape))


def _set_flags(new: WeightNorm, linear: keras.Layer, batch_norm: Any) -> None:
    """The kernel and bias train as the linear layer did, g also where only gamma did."""
    new.trainable = linear.trainable or batch_norm.trainable
    if new.layer.trainable != linear.trainable:
        new.layer.trainable = linear.trainable
    fold_into.freeze_alike(new.layer, linear)
    gamma = batch_norm.gamma
    if not batch_norm.trainable or (gamma is not None and not gamma.trainable):
        for gain, kernel in kernels.kernels_of(linear).items():
            fold_into.freeze(getattr(new, gain), kernel.variable)
