"""`LayerNorm`: each sample normalized over its features."""

from __future__ import annotations

import math
import warnings

import keras
from keras import ops

from kerasnorm.layers import masks
from kerasnorm.layers.sample_norm import SampleNorm, check_axes, wide
from kerasnorm.math import normalize


@keras.saving.register_keras_serializable(package="kerasnorm")
class LayerNorm(SampleNorm):
    """Normalizes each sample over its own features.

    h = gamma · (x − μ) / sqrt(var + epsilon) + beta, with μ and var the mean and the variance of
    one sample's entries along `axis`: the same in training and at inference, whatever else is in
    the batch. `gamma` starts at 1 and `beta` at 0.

    What `axis` means:

    - An integer or a tuple of integers: these axes are normalized together, and gamma and beta
      have one entry for each index of them, as in `keras.layers.LayerNormalization`.
    - `"sample"`: every axis but the batch is normalized together. Gamma and beta have one entry
      per channel (`channel_axis`), so height, width and time may be of any or unknown size.

    A mask is passed on. Where the normalized axes include one that the mask covers (time, say),
    the masked entries do not count in μ and var. Statistics are computed in float32 or wider.

    Weights can be exchanged with `keras.layers.LayerNormalization` of the same arguments:
    `layer.set_weights(other.get_weights())`. A weights file cannot: it names its groups after the
    classes. For a file saved from a model with Keras's layers, load it into such a model and set
    the weights of this one from that, `model.set_weights(keras_model.get_weights())`.

    Args:
        axis: Integer, tuple of integers, or `"sample"`.
        epsilon: Added to the variance.
        center: Whether to add beta.
        scale: Whether to multiply by gamma.
        beta_initializer, gamma_initializer: Initializers.
        beta_regularizer, gamma_regularizer: Optional regularizers.
        beta_constraint, gamma_constraint: Optional constraints.
        scalar_affine: Whether gamma and beta are one number each for the whole layer.
        channel_axis: Integer, the axis of the channels; used with `axis="sample"` only.
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).

    Input and output shape: any, the same. The output has the layer's compute dtype; integer
    inputs are cast.

    Raises:
        TypeError: If `axis` is none of the above.
        ValueError: On build, if an axis is out of range, repeated or that of the batch, or if
            gamma or beta would run along an axis of unknown size.

    Warns:
        UserWarning: If there is only one feature to normalize over: the output is then constant.

    Example:

    >>> import numpy as np
    >>> layer = LayerNorm(axis="sample")
    >>> tuple(layer(np.ones((2, 8, 8, 3), "float32")).shape), tuple(layer.gamma.shape)
    ((2, 8, 8, 3), (3,))

    Reference: Ba, Kiros & Hinton, 2016, https://arxiv.org/abs/1607.06450
    """

    def __init__(
        self,
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
        scalar_affine=False,
        channel_axis=-1,
        **kwargs,
    ):
        if kwargs.pop("rms_scaling", False):
            raise ValueError(
                "LayerNorm subtracts the mean and divides by the standard deviation. Received: "
                "rms_scaling=True. Use keras.layers.RMSNormalization for that."
            )
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
        if axis != "sample" and not _are_integers(axis):
            raise TypeError(
                "`axis` must be an integer, a tuple of integers, or 'sample'. Received: "
                f"axis={axis!r}."
            )
        self.axis = axis
        self.scalar_affine = scalar_affine
        self.channel_axis = channel_axis

    def build(self, input_shape):
        rank = len(input_shape)
        if self.axis == "sample":
            self._normalized_axes = tuple(range(1, rank))
            affine_axes = check_axes(self, (self.channel_axis,), rank, input_shape, "channel_axis")
        else:
            axes = (self.axis,) if isinstance(self.axis, int) else tuple(self.axis)
            affine_axes = self._normalized_axes = check_axes(self, axes, rank, input_shape)
        self._affine_axes = () if self.scalar_affine else affine_axes
        shape = tuple(input_shape[a] for a in self._affine_axes)
        if None in shape and (self.scale or self.center):
            raise ValueError(
                "LayerNorm has one gain and one bias per index of `axis`, whose size must be "
                f"known. Received: axis={self.axis!r}, input_shape={tuple(input_shape)}. Give "
                "the size in `Input`, or use axis='sample' or scalar_affine=True."
            )
        sizes = [input_shape[a] for a in self._normalized_axes]
        if None not in sizes and math.prod(sizes) == 1:
            warnings.warn(
                f"LayerNorm '{self.name}' normalizes over a single feature, so its output does "
                f"not depend on its input. Received: axis={self.axis!r}, "
                f"input_shape={tuple(input_shape)}.",
                stacklevel=2,
            )
        self._add_gain_and_bias(shape)

    def call(self, inputs, mask=None):
        x = wide(inputs)
        weights = None
        if mask is not None:
            channels = self.channel_axis % len(x.shape) if self.axis == "sample" else None
            weights = masks.as_weights(mask, x, channels)
            if all(weights.shape[a] == 1 for a in self._normalized_axes):
                weights = None  # whole vectors are masked, none of them in part
        gain, bias = self._broadcast(self.gamma, x), self._broadcast(self.beta, x)
        axes = self._normalized_axes
        y, _, _ = normalize.normalize(x, axes, self.epsilon, gain, bias, weights)
        return ops.cast(y, self.compute_dtype)

    def statistics(self, inputs):
        return tuple(ops.moments(wide(inputs), self._normalized_axes, keepdims=True))

    def _broadcast(self, variable, x):
        if variable is None:
            return None
        shape = [1] * len(x.shape)
        for axis, size in zip(self._affine_axes, variable.shape, strict=True):
            shape[axis] = size
        return ops.cast(ops.reshape(variable, shape), x.dtype)

    @classmethod
    def from_config(cls, config):
        if "axis" not in config and "channel_axis" in config:
            # Keras's reader of .h5 files drops every axis but an integer, and says nothing
            raise ValueError(
                "The config of a LayerNorm must hold its `axis`. Received: a config without one, "
                "as Keras makes of axis='sample' and of tuples when it reads an .h5 file. Save "
                "the model as .keras; to read this file, make the model in code and use "
                "`load_weights`."
            )
        return super().from_config(config)

    def get_config(self):
        return {
            **super().get_config(),
            "axis": self.axis,
            "scalar_affine": self.scalar_affine,
            "channel_axis": self.channel_axis,
        }


def _are_integers(axis) -> bool:
    axes = axis if isinstance(axis, (list, tuple)) else (axis,)
    return all(isinstance(a, int) and not isinstance(a, bool) for a in axes) and bool(axes)
