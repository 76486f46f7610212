"""BatchNorm to group norm; see `targets.sample_norm` for its cases."""

from __future__ import annotations

import dataclasses
import math
from types import MappingProxyType
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone.edits import Replace
from kerasnorm.clone.state import assign_copy
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call
from kerasnorm.layers import GroupNorm
from kerasnorm.targets.plan import Plan
from kerasnorm.targets.sample_norm import SampleNormTarget, few_deciding, is_whole

# Wu & He's two settings: so many groups, or so many channels in each.
_GROUPS, _CHANNELS = 32, 16
# What a group has at least: of one channel a norm of each step leaves nothing, and of few values
# the mean and deviation say too much of each.
_LEAST_CHANNELS, _LEAST_VALUES = 2, 16


def fold_group_norm(layer: GroupNorm, calls: list[Call], name: str) -> Replace | Refusal:
    """A GroupNorm as GroupNormalization; of each position, in a TimeDistributed for every axis.

    A single group of each position is a LayerNormalization.
    """
    rank = len(calls[0].output.shape)
    config = layer.get_config()
    groups, axis = layer.groups, layer.axis % rank
    of_positions = config.pop("per_position") and rank > 2
    masked = any(keras_private.attached_mask(call.output) is not None for call in calls)
    if masked and not of_positions:
        return Refusal("it leaves masked steps out of its mean")
    if of_positions and groups != 1 and axis != rank - 1:
        return Refusal("it normalizes groups of channels at each position, and these are not last")
    config["name"] = name

    def make() -> keras.Layer:
        if of_positions and groups == 1:
            return keras.layers.LayerNormalization(
                **{key: value for key, value in config.items() if key != "groups"}
            )
        if not of_positions:
            return keras.layers.GroupNormalization(**config)
        plain: keras.Layer = keras.layers.GroupNormalization(**config | {"axis": -1})
        for _ in range(rank - 2):
            plain = keras.layers.TimeDistributed(plain, name=name, dtype=layer.dtype_policy)
        return plain

    def fill(plain: keras.Layer) -> None:
        for target, weight in zip(plain.weights, layer.weights, strict=True):
            assign_copy(target, weight)

    return Replace(make, fill)


class GroupTarget(SampleNormTarget):
    """BatchNorm to group norm.

    How many groups a site has is what `with_groups` says; by default 32, or as many as leave 16
    channels in each.
    """

    name = "group"
    layer = GroupNorm
    folds = MappingProxyType({GroupNorm: fold_group_norm})

    def with_groups(self, plan: Plan, groups: int | None) -> Plan:
        """A plan with as many groups as are asked for, or with the most below that are possible.

        The groups divide the channels; where there are several, a group has two channels at least,
        and 16 values that are normalized together. Where no number is asked for, enough channels
        have to decide in each group too, if there is such a number.
        """
        if plan.verdict == "exact":
            return plan
        channels = plan.statistics.scale.size
        wanted = groups or max(1, min(_GROUPS, channels // _CHANNELS))
        possible = (n for n in range(min(wanted, channels), 0, -1) if _is_possible(plan, n))
        plans = [dataclasses.replace(plan, groups=n) for n in possible]
        if groups is None:
            return next((p for p in plans if few_deciding(p) is None), plans[0])
        if plans[0].groups != groups:
            less = f"{groups} groups are not possible for {channels} channels there"
            reason = "; ".join(filter(None, (plan.record.reason, less)))
            return dataclasses.replace(plans[0], reason=reason)
        return plans[0]

    def make(self, plan: Plan, **settings: Any) -> GroupNorm:
        channels = plan.site.axis - plan.site.rank
        per_position = not is_whole(plan) and plan.site.rank > 2
        return GroupNorm(plan.groups or 1, channels, per_position=per_position, **settings)


def _is_possible(plan: Plan, groups: int) -> bool:
    channels = plan.statistics.scale.size
    each = channels // groups
    if groups == 1 or channels % groups:
        return groups == 1
    if each < _LEAST_CHANNELS:
        return False
    sizes = plan.site.call.output.shape[1:] if is_whole(plan) else (channels,)
    return None in sizes or math.prod(sizes) // groups >= _LEAST_VALUES
