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

In cases 1 and 2 the channels get signs, which the gain undoes; see `channel_signs`.

Feature maps are normalized as a whole (`axis="sample"`), whose mean and deviation vary least from
sample to sample; sequences at each step by itself, so that no step sees another.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import keras
import numpy as np

from kerasnorm import keras_private
from kerasnorm.clone.edits import Replace
from kerasnorm.clone.state import assign_copy
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call
from kerasnorm.graph.linear_partner import Partner
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site
from kerasnorm.graph.stored_statistics import StoredStatistics
from kerasnorm.layers import LayerNorm
from kerasnorm.targets import fold_into
from kerasnorm.targets.channel_signs import channel_signs
from kerasnorm.targets.plan import FitRequest, Plan
from kerasnorm.targets.target import Damping, Edits, Target, harm_before_probabilities

# ε as a share of σ̄², so that it is as small beside large activations as beside small ones.
_LEAST_EPSILON = 1e-5
_VOLUMES = (keras.layers.Conv3D, keras.layers.Conv3DTranspose)
# Of two channels a layer norm leaves which one is larger, of three an angle.
_FEWEST = 4
# Where fewer than these decide, and than half of all, what it divides by varies too much.
_FEWEST_DECIDING = 6
_FOLDED, _AFFINE_FIRST, _RAW, _AFFINE_ONLY = 1, 2, 3, 4


def fold_layer_norm(layer: LayerNorm, calls: list[Call], name: str) -> Replace | Refusal:
    """A LayerNorm as LayerNormalization; of `axis="sample"`, as a GroupNormalization of one group.

    A single gain for all becomes as many equal ones.
    """
    rank = len(calls[0].output.shape)
    last_only = layer.axis in (-1, rank - 1, (-1,), [-1])
    if not last_only and any(
        keras_private.attached_mask(call.output) is not None for call in calls
    ):
        return Refusal("it leaves masked steps out of its mean")
    config = layer.get_config()
    axis, channel_axis = config.pop("axis"), config.pop("channel_axis")
    del config["scalar_affine"]
    config["name"] = name

    def make() -> keras.Layer:
        if axis == "sample":
            return keras.layers.GroupNormalization(1, axis=channel_axis, **config)
        return keras.layers.LayerNormalization(axis=axis, **config)

    def fill(plain: keras.Layer) -> None:
        for weight in ("gamma", "beta"):
            value = getattr(layer, weight)
            if value is not None:
                target = getattr(plain, weight)
                assign_copy(target, keras.ops.broadcast_to(value, target.shape))

    return Replace(make, fill)


class LayerTarget(Target):
    """BatchNorm to layer norm."""

    name = "layer"
    folds = MappingProxyType({LayerNorm: fold_layer_norm})

    def plan(
        self, site: Site, model_graphs: ModelGraphs, statistics: StoredStatistics
    ) -> Plan | Refusal:
        def case(number, verdict, becomes, reason="", partner=None):
            return Plan(
                site, self.name, number, verdict, becomes, statistics, partner, reason=reason
            )

        unlike = _unlike(site, model_graphs)
        if unlike is not None:
            return case(_AFFINE_ONLY, "exact", "Affine", unlike.reason)
        partner = fold_into.partner_of(site, model_graphs, statistics)
        if isinstance(partner, Partner):
            return case(_FOLDED, "matched", "LayerNorm", partner=partner)
        if site.graph.is_code:
            return case(_RAW, "matched", "LayerNorm", partner.reason)
        return case(_AFFINE_FIRST, "matched", "Affine, LayerNorm", partner.reason)

    def harm(self, plan: Plan, model_graphs: ModelGraphs) -> Refusal | None:
        channels = plan.site.call.output.shape[plan.site.axis]
        if plan.verdict != "exact" and not _is_whole(plan) and channels < _FEWEST:
            return Refusal(f"of {channels} channels, a layer norm leaves little")
        deciding = _deciding_channels(plan) if plan.verdict != "exact" else channels
        if deciding < min(_FEWEST_DECIDING, channels / 2):
            return Refusal(
                f"its channels are so unlike in size that {deciding:.1f} of {channels} decide what "
                "a sample is divided by"
            )
        return harm_before_probabilities(plan, model_graphs)

    def rewrite(self, plan: Plan, name: str, damping: Damping) -> Edits:
        site, partner = plan.site, plan.partner
        if plan.case == _AFFINE_ONLY:
            return {site.call: fold_into.as_affine(site, name, plan.statistics)}
        signs, found, center, spread = _before_norm(plan)
        epsilon = _epsilon(damping[-1], spread)
        typical = float(np.sqrt(spread**2 + epsilon))  # what the layer norm divides by
        if plan.case == _RAW:
            gain, bias = found.scale * typical, found.beta + found.scale * (center - found.mean)
        else:
            gain, bias = signs * typical, signs * center
        norm = _layer_norm(plan, name, epsilon, gain, bias)
        if partner is not None:
            folded = fold_into.with_map_folded_in(partner, found)
            return {partner.call: folded, site.call: norm}
        if plan.case == _RAW:
            return {site.call: norm}
        affine = _free(f"{name}_affine", site)
        first = fold_into.as_affine(site, affine, found, penalized=False)
        return {site.call: dataclasses.replace(norm, first=first)}

    def fit_request(
        self, plan: Plan, edits: Mapping[Call, Any], damping: Damping
    ) -> FitRequest | None:
        """Gain and bias, and the kernel in front if the layer norm alone reads it."""
        if plan.case == _AFFINE_ONLY:
            return None
        partner = plan.partner
        plain = None if partner is None or partner.commuted else edits[partner.call]
        *_, spread = _before_norm(plan)
        epsilons = tuple(_epsilon(share, spread) for share in damping)
        return FitRequest(edits[plan.site.call], plan.site.call, epsilons, plain=plain)

    def notes(self, plan: Plan, model_graphs: ModelGraphs) -> list[str]:
        site, partner = plan.site, plan.partner
        notes = fold_into.lost_penalties(
            site, ("gamma", "beta") if plan.case == _FOLDED else ("beta",)
        )
        if partner is None:
            return notes
        notes += fold_into.erased_penalties(partner, plan.statistics)
        if model_graphs.calls[id(site.layer)] > 1:
            notes.append(
                f"'{site.name}': it shared gamma and beta with its other calls; they are folded "
                f"into '{partner.layer.name}' here"
            )
        return notes + fold_into.frozen_apart(
            partner,
            site,
            of_partner="kernel and bias train, which gamma and beta are folded into",
            of_batch_norm="gamma and beta of the LayerNorm train",
        )


def _free(name: str, site: Site) -> str:
    """The name, or one like it that no layer beside the site has."""
    taken = {call.operation.name for call in site.graph.calls}
    return next(n for n in (name + "_" * k for k in itertools.count()) if n not in taken)


def _unlike(site: Site, model_graphs: ModelGraphs) -> Refusal | None:
    """Why the features of a site are none to be normalized together."""
    if site.call.output.shape[site.axis] == 1:
        return Refusal("it has a single channel, which a layer norm would erase")
    if site.producer.is_input and site.graph is model_graphs.root:
        return Refusal("it normalizes an input of the model, whose features may be unlike")
    return None


def _before_norm(plan: Plan) -> tuple[np.ndarray, StoredStatistics, float, float]:
    """The channels' signs, what is folded with these, and (μ̄, σ̄) of what is normalized."""
    found, partner = plan.statistics, plan.partner
    signs = np.ones_like(found.scale)
    if plan.case == _RAW:
        return signs, found, *_sample_statistics(found.mean, found.variance)
    if partner is None or not partner.commuted:  # a maximum in between is one of y, not of −y
        signs = channel_signs(found, partner)
        found = dataclasses.replace(
            found,
            scale=signs * found.scale,
            shift=signs * found.shift,
            beta=signs * found.beta,
        )
    variances = np.square(found.scale) * found.variance
    return signs, found, *_sample_statistics(found.beta, variances)


def _deciding_channels(plan: Plan) -> float:
    """As many channels of one size as would make a sample's variance vary as much.

    (Σ_c e_c)² / Σ_c v_c² with the variance v_c of a channel and its mean square e_c, both of what
    is normalized; the mean of a channel is the same in every sample. With the channels' signs, what
    is taken away of the mean square is little.
    """
    found, raw = plan.statistics, plan.case == _RAW
    variances = found.variance if raw else np.square(found.scale) * found.variance
    means = found.mean - found.mean.mean() if raw else found.beta
    varying = float(np.square(variances).sum())
    return float((variances + np.square(means)).sum()) ** 2 / varying if varying else np.inf


def _epsilon(damping: float, spread: float) -> float:
    return max(damping, _LEAST_EPSILON) * spread**2 or keras.config.epsilon()


def _sample_statistics(means: np.ndarray, variances: np.ndarray) -> tuple[float, float]:
    """(μ̄, σ̄) of a sample whose channels have these means and variances."""
    center = float(means.mean())
    return center, float(np.sqrt(max((variances + np.square(means)).mean() - center**2, 0.0)))


def _is_whole(plan: Plan) -> bool:
    """Whether a sample is normalized as a whole, and not each of its steps."""
    site, partner = plan.site, plan.partner
    volume = partner is not None and isinstance(partner.layer, _VOLUMES)
    return site.rank == 4 or (site.rank == 5 and volume)


def _layer_norm(
    plan: Plan, name: str, epsilon: float, gain: np.ndarray, bias: np.ndarray
) -> Replace:
    site, source = plan.site, plan.site.layer
    whole = _is_whole(plan)
    channels = site.axis - site.rank

    def make() -> keras.Layer:
        axes: dict[str, Any] = (
            {"axis": "sample", "channel_axis": channels} if whole else {"axis": channels}
        )
        norm = LayerNorm(
            **axes,
            epsilon=epsilon,
            activity_regularizer=source.activity_regularizer,
            trainable=source.trainable,
            dtype=source.dtype_policy,
            name=name,
        )
        if plan.case == _RAW and source.gamma is not None:
            norm.gamma_regularizer = source.gamma_regularizer
            norm.gamma_constraint = source.gamma_constraint
            _, spread = _sample_statistics(plan.statistics.mean, plan.statistics.variance)
            fold_into.rescale_penalties(norm, "gamma", spread / plan.statistics.deviation)
        return norm

    def fill(new: Any) -> None:
        new.gamma.assign(gain.reshape(new.gamma.shape))
        new.beta.assign(bias.reshape(new.beta.shape))

    return Replace(make, fill)
