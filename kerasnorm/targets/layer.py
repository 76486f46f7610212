"""BatchNorm to layer norm; see `targets.sample_norm` for its cases."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone.edits import Replace
from kerasnorm.clone.state import assign_copy
from kerasnorm.errors import Refusal
from kerasnorm.graph.graph import Call
from kerasnorm.layers import LayerNorm
from kerasnorm.targets.plan import Plan
from kerasnorm.targets.sample_norm import SampleNormTarget, is_whole


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


class LayerTarget(SampleNormTarget):
    """BatchNorm to layer norm."""

    name = "layer"
    layer = LayerNorm
    folds = MappingProxyType({LayerNorm: fold_layer_norm})

    def make(self, plan: Plan, **settings: Any) -> LayerNorm:
        channels = plan.site.axis - plan.site.rank
        if is_whole(plan):
            return LayerNorm(axis="sample", channel_axis=channels, **settings)
        return LayerNorm(axis=channels, **settings)
