"""`WeightNorm`: a layer's kernel as direction and length."""

from __future__ import annotations

import keras
from keras import ops

from kerasnorm import formulas
from kerasnorm.layers import kernel as kernels


@keras.saving.register_keras_serializable(package="kerasnorm")
class WeightNorm(keras.layers.Wrapper):
    """Reparametrizes the kernel of a linear layer as direction times length.

    w_i = g_i · v_i / ‖v_i‖ for each output unit i, so that ‖w_i‖ = |g_i|. Every other part of the
    wrapped layer (bias, activation, padding, …) stays its own.

    - `v` is the wrapped layer's own kernel variable: `wrapper.layer.kernel`.
    - `g`, one value per output unit, starts at ‖v_i‖: the wrapped layer computes what it computed
      before, whether freshly initialized or trained.

    The norm runs over all axes of the kernel but those of the output units: the last one for
    Dense and Conv, the one before it for the transposed convolutions, the last two for depthwise
    convolutions. Separable convolutions have two kernels and a second gain, `g_depthwise`.
    Gains and norms are kept and computed in the variables' dtype under a mixed precision policy.

    A unit whose kernel is all zeros has no direction; it starts with g = 0.

    Args:
        layer: The layer to wrap: Dense, EinsumDense, Conv1D/2D/3D, their transposes, depthwise
            and separable convolutions, or `Affine`. Built or not.
        **kwargs: Base layer keyword arguments (e.g. `name`). `dtype` defaults to the wrapped
            layer's own policy.

    Input and output shapes and dtypes: those of the wrapped layer.

    Raises:
        ValueError: If the layer is of another kind, or is quantized or LoRA-enabled.

    Example:

    >>> layer = WeightNorm(keras.layers.Dense(64))
    >>> layer.build((None, 10))
    >>> layer.g.shape, layer.layer.kernel.shape
    ((64,), (10, 64))

    Reference: Salimans & Kingma, 2016, https://arxiv.org/abs/1602.07868
    """

    def __init__(self, layer, **kwargs):
        if isinstance(layer, keras.Layer):
            kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        if kernels.kernel_class(layer) is None:
            raise ValueError(
                "WeightNorm needs a layer with a kernel to normalize, one of "
                f"{', '.join(kernels.supported_classes())}. Received: {layer} of type "
                f"{type(layer).__name__}."
            )
        kernels.require_plain_kernel("WeightNorm", layer)
        self.supports_masking = layer.supports_masking

    def build(self, input_shape):
        kernels.require_known_channels("WeightNorm", self.layer, input_shape)
        super().build(input_shape)
        for name, kernel in kernels.kernels_of(self.layer).items():
            gain = self.add_weight(
                name=name,
                shape=kernel.unit_shape,
                initializer=_length_of(kernel),
                dtype=kernel.variable.dtype,
                autocast=False,
            )
            setattr(self, name, gain)
            if not kernel.contracted_axes:
                kernel.variable.trainable = False  # each v_i is a number: only its sign counts

    def call(self, inputs, **kwargs):
        return kernels.call_with(self.layer, self._weights_by_variable(), inputs, **kwargs)

    def normalized_kernels(self):
        """The weights that the layer computes with, by the name of their gain.

        Returns:
            A dict of tensors in the variables' dtype: `{"g": w}`, and `"g_depthwise"` for
            separable convolutions.
        """
        return {
            name: _weight(kernel, getattr(self, name))
            for name, kernel in kernels.kernels_of(self.layer).items()
        }

    def _weights_by_variable(self):
        weights = self.normalized_kernels()
        return {
            id(kernel.variable): weights[name]
            for name, kernel in kernels.kernels_of(self.layer).items()
        }

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs, mask=None):
        return self.layer.compute_mask(inputs, mask)


def _weight(kernel: kernels.Kernel, gain):
    def weight(g):
        v = ops.convert_to_tensor(kernel.variable)
        if not kernel.contracted_axes:
            v = ops.stop_gradient(v)  # its length is g, so that v has nothing to learn
        g = ops.reshape(g, kernel.broadcast_shape)
        return formulas.normalized_weight(v, g, kernel.contracted_axes)

    return kernels.in_dtype(gain.dtype, weight, gain)


def _length_of(kernel: kernels.Kernel):
    """An initializer that gives ‖v_i‖, and 0 where v_i is zero."""

    def initializer(shape, dtype=None):
        v = ops.cast(ops.convert_to_tensor(kernel.variable), dtype)
        length = formulas.norm(v, kernel.contracted_axes)
        zero = ops.all(ops.equal(v, 0), axis=kernel.contracted_axes, keepdims=True)
        return ops.reshape(ops.where(zero, ops.zeros_like(length), length), shape)

    return initializer
