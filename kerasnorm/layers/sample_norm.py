"""`SampleNorm`: what `LayerNorm` and `GroupNorm` have in common."""

from __future__ import annotations

from abc import abstractmethod

import keras
from keras import constraints, initializers, ops, regularizers


class SampleNorm(keras.layers.Layer):
    """A layer that normalizes each sample over entries of its own, with a gain and a bias.

    Args:
        epsilon: Added to the variance.
        center: Whether to add beta.
        scale: Whether to multiply by gamma.
        beta_initializer, gamma_initializer: Initializers.
        beta_regularizer, gamma_regularizer: Optional regularizers.
        beta_constraint, gamma_constraint: Optional constraints.
        **kwargs: Base layer keyword arguments.
    """

    def __init__(
        self,
        epsilon=1e-3,
        center=True,
        scale=True,
        beta_initializer="zeros",
        gamma_initializer="ones",
        beta_regularizer=None,
        gamma_regularizer=None,
        beta_constraint=None,
        gamma_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.epsilon = epsilon
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.beta_constraint = constraints.get(beta_constraint)
        self.gamma_constraint = constraints.get(gamma_constraint)
        self.supports_masking = True
        self.autocast = False  # the statistics want the inputs before any rounding

    @abstractmethod
    def statistics(self, inputs):
        """(μ, var) of inputs, with as many axes as these; of size 1 where they are the same.

        Masks do not count here.
        """

    def _add_gain_and_bias(self, shape: tuple[int, ...]) -> None:
        """Make gamma and beta, in this shape; None in the place of one that is not asked for."""
        self.gamma = self.beta = None
        if self.scale:
            self.gamma = self.add_weight(
                name="gamma",
                shape=shape,
                initializer=self.gamma_initializer,
                regularizer=self.gamma_regularizer,
                constraint=self.gamma_constraint,
                autocast=False,
            )
        if self.center:
            self.beta = self.add_weight(
                name="beta",
                shape=shape,
                initializer=self.beta_initializer,
                regularizer=self.beta_regularizer,
                constraint=self.beta_constraint,
                autocast=False,
            )

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "epsilon": self.epsilon,
            "center": self.center,
            "scale": self.scale,
            "beta_initializer": initializers.serialize(self.beta_initializer),
            "gamma_initializer": initializers.serialize(self.gamma_initializer),
            "beta_regularizer": regularizers.serialize(self.beta_regularizer),
            "gamma_regularizer": regularizers.serialize(self.gamma_regularizer),
            "beta_constraint": constraints.serialize(self.beta_constraint),
            "gamma_constraint": constraints.serialize(self.gamma_constraint),
        }


def wide(inputs):
    """Inputs as a tensor of float32 or wider, which statistics are taken in."""
    inputs = ops.convert_to_tensor(inputs)
    return ops.cast(inputs, keras.backend.result_type(inputs.dtype, "float32"))


def check_axes(
    layer: keras.Layer, axes, rank: int, input_shape, argument="axis"
) -> tuple[int, ...]:
    """Axes counted from the front, in order.

    Raises:
        ValueError: If one is out of range, repeated, or that of the batch.
    """
    if any(not -rank <= a < rank for a in axes) or len({a % rank for a in axes}) < len(axes):
        raise ValueError(
            f"`{argument}` must name distinct axes among the {rank} of the input. Received: axes "
            f"{tuple(axes)}, input_shape={tuple(input_shape)}."
        )
    if 0 in (a % rank for a in axes):
        raise ValueError(
            f"`{argument}` must not name axis 0, the batch: {type(layer).__name__} keeps samples "
            f"apart. Received: {argument} {tuple(axes)}, input_shape={tuple(input_shape)}. Use "
            "BatchNorm to normalize over the batch."
        )
    return tuple(sorted(a % rank for a in axes))
