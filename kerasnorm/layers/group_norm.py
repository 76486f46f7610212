"""`GroupNorm`: each sample normalized over groups of its channels."""

from __future__ import annotations

import math
import warnings

import keras
from keras import ops

from kerasnorm.layers import masks
from kerasnorm.layers.sample_norm import SampleNorm, check_axes, wide
from kerasnorm.math import normalize


@keras.saving.register_keras_serializable(package="kerasnorm")
class GroupNorm(SampleNorm):
    """Normalizes each sample over groups of neighbouring channels.

    h = gamma · (x − μ) / sqrt(var + epsilon) + beta, with μ and var the mean and the variance of
    one sample's entries in a group of channels, over all other axes: the same in training and at
    inference, whatever else is in the batch. Gamma and beta have one entry per channel; gamma
    starts at 1, beta at 0. With one group it is a layer norm of the sample, with as many groups as
    channels an instance norm.

    Config and weights are those of `keras.layers.GroupNormalization`, whose statistics lose digits
    where a mean is far larger than the deviation, count masked entries, and always take in all
    axes but the batch. Here masked entries do not count in μ and var where the mask covers an axis
    that is normalized; the mask is passed on. With `per_position`, each position along the other
    axes (each step of a sequence, which then sees no other) is normalized by itself.

    Args:
        groups: Integer, how many groups the channels are cut into; −1 for one for each channel.
        axis: Integer, the axis of the channels.
        epsilon: Added to the variance.
        center: Whether to add beta.
        scale: Whether to multiply by gamma.
        beta_initializer, gamma_initializer: Initializers.
        beta_regularizer, gamma_regularizer: Optional regularizers.
        beta_constraint, gamma_constraint: Optional constraints.
        per_position: Whether μ and var are taken over the group's channels alone.
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).

    Input and output shape: any with a channel axis of known size, the same. Other sizes may be
    unknown. The output has the layer's compute dtype; statistics are computed in float32 or wider.

    Raises:
        TypeError: If `groups` or `axis` is not an integer.
        ValueError: If `groups` is neither positive nor −1; on build, if `axis` is out of range or
            that of the batch, its size is unknown, or `groups` does not divide it.

    Warns:
        UserWarning: If a group has one entry only: the output is then constant.

    Example:

    >>> import numpy as np
    >>> layer = GroupNorm(groups=4)
    >>> tuple(layer(np.ones((2, 8, 8, 16), "float32")).shape), tuple(layer.gamma.shape)
    ((2, 8, 8, 16), (16,))

    Reference: Wu & He, 2018, https://arxiv.org/abs/1803.08494
    """

    def __init__(
        self,
        groups=32,
        axis=-1,
        epsilon=1e-3,
        center=True,
        scale=True,
        beta_initializer="zeros",
        gamma_initializer="ones",
        beta_regularizer=None,
        gamma_regularizer=None,
        beta_constraint=None,
        gamma_constraint=None,
        per_position=False,
        **kwargs,
    ):
        super().__init__(
            epsilon,
            center,
            scale,
            beta_initializer,
            gamma_initializer,
            beta_regularizer,
            gamma_regularizer,
            beta_constraint,
            gamma_constraint,
            **kwargs,
        )
        for name, value in (("groups", groups), ("axis", axis)):
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"`{name}` must be an integer. Received: {name}={value!r}.")
        if groups < 1 and groups != -1:
            raise ValueError(
                "`groups` must be at least 1, or -1 for one for each channel. Received: "
                f"groups={groups}."
            )
        self.groups = groups
        self.axis = axis
        self.per_position = per_position

    def build(self, input_shape):
        rank = len(input_shape)
        [axis] = check_axes(self, (self.axis,), rank, input_shape)
        channels = input_shape[axis]
        if channels is None:
            raise ValueError(
                "GroupNorm has one gain and one bias per channel, whose number must be known. "
                f"Received: axis={self.axis}, input_shape={tuple(input_shape)}. Give the size in "
                "`Input`."
            )
        groups = channels if self.groups == -1 else self.groups
        if channels % groups:
            divisors = [n for n in range(1, channels + 1) if not channels % n]
            raise ValueError(
                f"`groups` must divide the number of channels. Received: groups={groups}, "
                f"input_shape={tuple(input_shape)} with {channels} channels. Use one of {divisors}."
            )
        self._axis, self._sizes = axis, (groups, channels // groups)
        # of what has an axis for the groups, and behind it one for the channels of each
        others = [a for a in range(1, rank + 1) if a not in (axis, axis + 1)]
        self._normalized_axes = (axis + 1,) if self.per_position else (*others, axis + 1)
        beside = [] if self.per_position else [input_shape[a] for a in range(1, rank) if a != axis]
        if None not in beside and math.prod(beside) * self._sizes[1] == 1:
            warnings.warn(
                f"GroupNorm '{self.name}' normalizes over a single entry, so its output does not "
                f"depend on its input. Received: groups={groups}, "
                f"input_shape={tuple(input_shape)}.",
                stacklevel=2,
            )
        self._add_gain_and_bias((channels,))

    def call(self, inputs, mask=None):
        x = wide(inputs)
        weights = None if mask is None else self._weights(mask, x)
        gain, bias = self._broadcast(self.gamma, x), self._broadcast(self.beta, x)
        y, _, _ = normalize.normalize(
            self._split(x), sorted(self._normalized_axes), self.epsilon, gain, bias, weights
        )
        return ops.cast(ops.reshape(y, ops.shape(x)), self.compute_dtype)

    def statistics(self, inputs):
        x = self._split(wide(inputs))
        found = ops.moments(x, sorted(self._normalized_axes), keepdims=True)
        return tuple(self._join(value) for value in found)

    def _split(self, x):
        """Groups and the channels of each on axes of their own."""
        shape = ops.shape(x)
        return ops.reshape(x, (*shape[: self._axis], *self._sizes, *shape[self._axis + 1 :]))

    def _join(self, value):
        """What is the same for the channels of a group, with one axis for all channels."""
        return ops.repeat(ops.squeeze(value, self._axis + 1), self._sizes[1], axis=self._axis)

    def _weights(self, mask, x):
        weights = masks.as_weights(mask, x, self._axis)
        if weights.shape[self._axis] == 1:
            weights = ops.expand_dims(weights, self._axis)
        else:
            weights = self._split(weights)
        if all(weights.shape[a] == 1 for a in self._normalized_axes):
            return None  # whole groups are masked, none of them in part
        return weights

    def _broadcast(self, variable, x):
        if variable is None:
            return None
        shape = [1] * (len(x.shape) + 1)
        shape[self._axis : self._axis + 2] = self._sizes
        return ops.cast(ops.reshape(variable, shape), x.dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "groups": self.groups,
            "axis": self.axis,
            "per_position": self.per_position,
        }
