"""BatchNorm to a norm of each sample, layer or group norm: matched, or fitted to data.

BatchNorm's statistics say what a sample's own are on average, when its features are as unlike
each other as those of the data. With y = a·x + c, a = γ/s, c = β − m·a, s = sqrt(v + ε), and the
means below over the channels that are normalized together, all of them or those of a group:

1. Behind a linear layer x = W·u + b₀, the whole of BatchNorm is folded into that first: kernel
   U = a·W, offset c + a·b₀. Its output has mean β and variance γ²v/s² in each channel, so a
   sample's statistics over its features are on average

       μ̄ = mean_c β,   σ̄² = mean_c (β² + γ²v/s²) − μ̄²,

   and the norm that follows has gain σ̄ and bias μ̄ in each of these channels.

2. Elsewhere, an `Affine` takes BatchNorm's map, U = a, and the same norm follows: raw activations
   have channels of all sizes, and the largest would decide for all.

3. Where code of a layer's own calls the BatchNorm, and so takes one layer in its place, on the raw
   activation:

       μ̄ = mean_c m,   σ̄² = mean_c (v + m²) − μ̄²,   gain = a·σ̄,   bias = β + a·(μ̄ − m).

4. On an input of the model, whose features may be unlike (age beside income), or on a single
   channel, which the norm would erase: an `Affine`, y itself.

In cases 1 and 2 the channels get signs, which the gain undoes; see `channel_signs`.

Feature maps are normalized as a whole, whose mean and deviation vary least from sample to sample;
sequences at each step by itself, so that no step sees another.
"""

from __future__ import annotations

import dataclasses
import itertools
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from kerasnorm.clone.edits import Replace
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call
from kerasnorm.graph.linear_partner import Partner
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site
from kerasnorm.graph.stored_statistics import StoredStatistics
from kerasnorm.layers.sample_norm import SampleNorm
from kerasnorm.targets import fold_into
from kerasnorm.targets.channel_signs import channel_signs
from kerasnorm.targets.plan import FitRequest, Plan
from kerasnorm.targets.target import Damping, Edits, Target, harm_before_probabilities

# ε as a share of σ̄², so that it is as small beside large activations as beside small ones.
_LEAST_EPSILON = 1e-5
_VOLUMES = (keras.layers.Conv3D, keras.layers.Conv3DTranspose)
# Of two channels a norm leaves which one is larger, of three an angle.
_FEWEST = 4
# Where fewer than these decide, and than half of all, what it divides by varies too much.
_FEWEST_DECIDING = 6
_FOLDED, _AFFINE_FIRST, _RAW, _AFFINE_ONLY = 1, 2, 3, 4


class SampleNormTarget(Target):
    """BatchNorm to a norm of each sample.

    Attributes:
        layer: The layer that it becomes.
    """

    layer: type[SampleNorm]

    @abstractmethod
    def make(self, plan: Plan, **settings: Any) -> SampleNorm:
        """A new layer; `settings` are arguments that any `SampleNorm` takes."""

    def plan(
        self, site: Site, model_graphs: ModelGraphs, statistics: StoredStatistics
    ) -> Plan | Refusal:
        kind = self.layer.__name__

        def case(number, verdict, becomes, reason="", partner=None):
            return Plan(
                site, self.name, number, verdict, becomes, statistics, partner, reason=reason
            )

        unlike = _unlike(site, model_graphs)
        if unlike is not None:
            return case(_AFFINE_ONLY, "exact", "Affine", unlike.reason)
        partner = fold_into.partner_of(site, model_graphs, statistics)
        if isinstance(partner, Partner):
            return case(_FOLDED, "matched", kind, partner=partner)
        if site.graph.is_code:
            return case(_RAW, "matched", kind, partner.reason)
        return case(_AFFINE_FIRST, "matched", f"Affine, {kind}", partner.reason)

    def harm(self, plan: Plan, model_graphs: ModelGraphs) -> Refusal | None:
        if plan.verdict == "exact":
            return None
        return few_deciding(plan) or harm_before_probabilities(plan, model_graphs)

    def rewrite(self, plan: Plan, name: str, damping: Damping) -> Edits:
        site, partner = plan.site, plan.partner
        if plan.case == _AFFINE_ONLY:
            return {site.call: fold_into.as_affine(site, name, plan.statistics)}
        signs, found, center, spread = _before_norm(plan)
        epsilon = _epsilon(damping[-1], spread)
        typical = np.sqrt(np.square(spread) + epsilon)  # what the norm divides by
        if plan.case == _RAW:
            gain, bias = found.scale * typical, found.beta + found.scale * (center - found.mean)
        else:
            gain, bias = signs * typical, signs * center
        norm = self._norm(plan, name, epsilon, gain, bias)
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
        """Gain and bias, and the kernel in front if the norm alone reads it."""
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
            of_batch_norm=f"gamma and beta of the {self.layer.__name__} train",
        )

    def _norm(
        self, plan: Plan, name: str, epsilon: float, gain: np.ndarray, bias: np.ndarray
    ) -> Replace:
        source = plan.site.layer

        def make() -> keras.Layer:
            norm = self.make(
                plan,
                epsilon=epsilon,
                activity_regularizer=source.activity_regularizer,
                trainable=source.trainable,
                dtype=source.dtype_policy,
                name=name,
            )
            if plan.case == _RAW and source.gamma is not None:
                norm.gamma_regularizer = source.gamma_regularizer
                norm.gamma_constraint = source.gamma_constraint
                *_, spread = _before_norm(plan)
                fold_into.rescale_penalties(norm, "gamma", spread / plan.statistics.deviation)
            return norm

        def fill(new: Any) -> None:
            new.gamma.assign(gain.reshape(new.gamma.shape))
            new.beta.assign(bias.reshape(new.beta.shape))

        return Replace(make, fill)


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


def _before_norm(plan: Plan) -> tuple[np.ndarray, StoredStatistics, np.ndarray, np.ndarray]:
    """The channels' signs, what is folded with these, and by channel (μ̄, σ̄) of its group."""
    found, partner, groups = plan.statistics, plan.partner, plan.groups or 1
    signs = np.ones_like(found.scale)
    if plan.case == _RAW:
        return signs, found, *_group_statistics(found.mean, found.variance, groups)
    if partner is None or not partner.commuted:  # a maximum in between is one of y, not of −y
        signs = channel_signs(found, partner, groups)
        found = dataclasses.replace(
            found,
            scale=signs * found.scale,
            shift=signs * found.shift,
            beta=signs * found.beta,
        )
    variances = np.square(found.scale) * found.variance
    return signs, found, *_group_statistics(found.beta, variances, groups)


def few_deciding(plan: Plan) -> Refusal | None:
    """That too few channels decide what is subtracted from a sample, and what divides it."""
    groups = plan.groups or 1
    channels = plan.statistics.scale.size // groups
    of = f"{channels} channels" + (" in a group" if groups > 1 else "")
    if not is_whole(plan) and channels < _FEWEST:
        return Refusal(f"of {of}, {plan.target} norm leaves little")
    deciding = _deciding_channels(plan)
    if deciding >= min(_FEWEST_DECIDING, channels / 2):
        return None
    return Refusal(
        f"its channels are so unlike in size that {deciding:.1f} of {of} decide what a sample is "
        "divided by"
    )


def _deciding_channels(plan: Plan) -> float:
    """As many channels of one size as would make a sample's variance vary as much.

    (Σ_c e_c)² / Σ_c v_c² with the variance v_c of a channel and its mean square e_c, both of what
    is normalized; the mean of a channel is the same in every sample. With the channels' signs, what
    is taken away of the mean square is little. Of several groups, those of the least.
    """
    found, raw, groups = plan.statistics, plan.case == _RAW, plan.groups or 1
    variances = found.variance if raw else np.square(found.scale) * found.variance
    variances = variances.reshape(groups, -1)
    means = (found.mean if raw else found.beta).reshape(groups, -1)
    if raw:
        means = means - means.mean(1, keepdims=True)
    varying = np.square(variances).sum(1)
    sizes = np.square((variances + np.square(means)).sum(1))
    return float(np.min(sizes[varying > 0] / varying[varying > 0], initial=np.inf))


def _epsilon(damping: float, spread: np.ndarray) -> float:
    """α·mean σ̄², and no less than a small share of the least σ̄² that is not 0."""
    squares = np.square(spread)
    least = float(np.min(squares[squares > 0], initial=np.inf))
    if not np.isfinite(least):
        return keras.config.epsilon()
    return max(damping * float(squares.mean()), _LEAST_EPSILON * least)


def _group_statistics(
    means: np.ndarray, variances: np.ndarray, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """(μ̄, σ̄) of a sample whose channels have these means and variances: its group's, by channel."""
    means, variances = means.reshape(groups, -1), variances.reshape(groups, -1)
    center = means.mean(1)
    squares = (variances + np.square(means)).mean(1) - np.square(center)
    each = means.shape[1]
    return np.repeat(center, each), np.repeat(np.sqrt(np.maximum(squares, 0.0)), each)


def is_whole(plan: Plan) -> bool:
    """Whether a sample is normalized as a whole, and not each of its steps."""
    site, partner = plan.site, plan.partner
    volume = partner is not None and isinstance(partner.layer, _VOLUMES)
    return site.rank == 4 or (site.rank == 5 and volume)
