"""`Affine`: one gain and one bias per channel."""

from __future__ import annotations

import keras
from keras import constraints, initializers, ops, regularizers

from kerasnorm.math import normalize


@keras.saving.register_keras_serializable(package="kerasnorm")
class Affine(keras.layers.Layer):
    """Scales and shifts each channel: a diagonal linear map.

    h = kernel · x + bias, with one kernel entry and one bias entry for each index of `axis`,
    broadcast over all other axes. `kernel` starts at 1 and `bias` at 0, so a new layer is the
    identity. It is what BatchNormalization computes at inference. Masks pass through.

    Inside `WeightNorm(Affine())`, where each channel's weight vector has a single entry, v is
    fixed at ±1 and the gain g alone trains.

    Args:
        axis: Integer, the axis of the channels. Its size must be known.
        use_bias: Whether to add a bias.
        kernel_initializer, bias_initializer: Initializers.
        kernel_regularizer, bias_regularizer: Optional regularizers.
        kernel_constraint, bias_constraint: Optional constraints.
        **kwargs: Base layer keyword arguments (e.g. `name` and `dtype`).

    Input and output shape: any, the same; floating dtype.

    Raises:
        ValueError: On build, if `axis` is out of range or its size is unknown.

    Example:

    >>> import numpy as np
    >>> layer = Affine()
    >>> tuple(layer(np.ones((2, 3), "float32")).shape)
    (2, 3)
    """

    def __init__(
        self,
        axis=-1,
        use_bias=True,
        kernel_initializer="ones",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.axis = axis
        self.use_bias = use_bias
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.kernel_constraint = constraints.get(kernel_constraint)
        self.bias_constraint = constraints.get(bias_constraint)
        self.supports_masking = True

    def build(self, input_shape):
        rank = len(input_shape)
        if not -rank <= self.axis < rank:
            raise ValueError(
                f"`axis` must name one of the {rank} axes of the input. Received: "
                f"axis={self.axis}, input_shape={tuple(input_shape)}."
            )
        size = input_shape[self.axis]
        if size is None:
            raise ValueError(
                f"Affine needs one weight per channel, so the size of axis {self.axis} must be "
                f"known. Received: input_shape={tuple(input_shape)}. Give the size in `Input`."
            )
        self.kernel = self.add_weight(
            name="kernel",
            shape=(size,),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
            constraint=self.kernel_constraint,
            autocast=False,
        )
        self.bias = None
        if self.use_bias:
            self.bias = self.add_weight(
                name="bias",
                shape=(size,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
                constraint=self.bias_constraint,
                autocast=False,
            )

    def call(self, inputs, mask=None):
        shape = [1] * len(inputs.shape)
        shape[self.axis] = -1
        # In float32 at least, as BatchNormalization does: gains of 1e5 on small channels are
        # common in trained models and overflow float16.
        dtype = keras.backend.result_type(self.compute_dtype, "float32")
        kernel = ops.reshape(ops.cast(self.kernel, dtype), shape)
        bias = None if self.bias is None else ops.reshape(ops.cast(self.bias, dtype), shape)
        x = ops.cast(inputs, dtype)
        return ops.cast(normalize.affine(x, kernel, bias), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "axis": self.axis,
            "use_bias": self.use_bias,
            "kernel_initializer": initializers.serialize(self.kernel_initializer),
            "bias_initializer": initializers.serialize(self.bias_initializer),
            "kernel_regularizer": regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": regularizers.serialize(self.bias_regularizer),
            "kernel_constraint": constraints.serialize(self.kernel_constraint),
            "bias_constraint": constraints.serialize(self.bias_constraint),
        }
