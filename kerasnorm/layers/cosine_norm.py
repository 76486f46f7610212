"""`CosineNorm`: the cosine of the angle between weights and input."""

from __future__ import annotations

import math

import keras
import numpy as np
from keras import ops

from kerasnorm import keras_private
from kerasnorm.layers import kernels
from kerasnorm.layers import linear_ops as linear
from kerasnorm.layers.patches import Contraction, refusal
from kerasnorm.math import normalize, norms


@keras.saving.register_keras_serializable(package="kerasnorm")
class CosineNorm(keras.layers.Wrapper):
    """Replaces the dot product of a linear layer by a cosine.

    Plain, the bias joins both vectors:

        h = f( ([w, b] · [x, 1]) / (‖[w, b]‖ · ‖[x, 1]‖) ),   |·| ≤ 1

    (without a bias, w·x / (‖w‖·‖x‖)). With `rescale=True` the cosine gets a gain and the bias
    stays outside, so that the layer can stand where an ordinary one stood:

        h = f( g · (w · x) / (‖w‖ · sqrt(‖x‖² + damping²)) + b )

    - w, b and the activation f are the wrapped layer's own.
    - `g`, one value per output unit, starts at sqrt(fan-in): inputs with entries around 1 then
      give pre-activations around 1.
    - `damping` is in the units of ‖x‖. At 0 the output does not depend on the scale of x; as it
      grows, the layer tends to a linear one.
    - `centered=True` subtracts from w and from x their own means first (Pearson correlation).
      A patch of a convolution loses digits where it varies far less than the sample as a whole
      (about one at a tenth of the deviation of all that its group reads, two each after that),
      and counts as constant where none are left.
    - `across_groups=True` measures ‖x‖ over all channels where a unit reads those of one group: a
      grouped or depthwise convolution is one with a kernel of zeros between the groups, and this
      is its cosine. What one channel's patch alone cannot keep, its size beside the others', is
      kept.

    For a convolution, x is the patch at each position, padding included, of the channels of one
    group unless `across_groups`. A separable convolution has one kernel made of two, the product
    of its own, and x is the patch of all channels. For a transposed convolution x is the patch of
    the input spread out by the strides, the zeros in between included: with strides, only part of
    w meets entries of x, so that the cosine stays below 1. A vector x of zeros gives 0 before the
    outer bias.

    Lengths and quotients are computed in float32 or wider; x is scaled by its largest entry
    before squaring, so that outputs are right for entries of 1e-30 and 1e30. Gradients go like
    1/‖x‖, and so does on its way what flows back to w: where 1/‖x‖ of what comes from behind is
    below 1e-38 in float32, it is lost. Within one sample of a convolution the range is limited,
    since all its patches share that scale: a patch whose length is below 1e-12 of the sample's
    largest entry counts as zeros. The kernel's constraint, if any, applies to w as the optimizer
    leaves it, before normalization.

    Args:
        layer: The layer to wrap: Dense, EinsumDense that contracts only shared letters,
            Conv1D/2D/3D (groups included), DepthwiseConv1D/2D, SeparableConv1D/2D,
            Conv1D/2D/3DTranspose.
        rescale: Whether to multiply by a gain and add the bias outside.
        damping: Number ≥ 0, with `rescale=True` only.
        centered: Whether to subtract the means.
        across_groups: Whether ‖x‖ is that of all channels together; of no effect on layers without
            groups.
        **kwargs: Base layer keyword arguments (e.g. `name`). `dtype` defaults to the wrapped
            layer's own policy.

    Input and output shapes: those of the wrapped layer. The output has the layer's compute dtype;
    integer inputs are cast to it.

    Raises:
        ValueError: If the layer is of another kind, quantized or LoRA-enabled, if `damping` is
            negative or given without `rescale`, or `centered` with `across_groups` or around a
            separable convolution; on build, if the bias of an EinsumDense has other axes than its
            output units.

    Example:

    >>> import numpy as np
    >>> layer = CosineNorm(keras.layers.Conv2D(32, 3))
    >>> tuple(layer(np.ones((1, 8, 8, 3), "float32")).shape)
    (1, 6, 6, 32)

    Reference: Luo et al., 2017, https://arxiv.org/abs/1702.05870
    """

    def __init__(
        self, layer, rescale=False, damping=0.0, centered=False, across_groups=False, **kwargs
    ):
        if isinstance(layer, keras.Layer):
            kwargs.setdefault("dtype", layer.dtype_policy)
        super().__init__(layer, **kwargs)
        reason = refusal(layer)
        if reason:
            raise ValueError(
                f"CosineNorm cannot wrap layer '{layer.name}': {reason}. Received: {layer}."
            )
        kernels.require_plain_kernel("CosineNorm", layer)
        kernels.keep_in_float("CosineNorm", layer)
        if damping < 0 or (damping and not rescale):
            raise ValueError(
                "`damping` must be at least 0, and needs rescale=True (the plain form has the "
                f"1 in [x, 1]). Received: damping={damping}, rescale={rescale}."
            )
        if centered and (across_groups or linear.is_separable(layer)):
            raise ValueError(
                "`centered` needs the mean of what each unit reads, in a kernel of its own. "
                f"Received: centered=True, across_groups={across_groups}, for "
                f"{type(layer).__name__}. Leave `centered` out."
            )
        self.rescale = rescale
        self.damping = damping
        self.centered = centered
        self.across_groups = across_groups
        self.supports_masking = layer.supports_masking
        # the wrapped layer is not called, so that its penalty on outputs is taken here
        self.activity_regularizer = layer.activity_regularizer
        self.autocast = False  # a float32 input may hold what float16 cannot

    def build(self, input_shape):
        kernels.require_known_channels("CosineNorm", self.layer, input_shape)
        super().build(input_shape)
        contraction = self.contraction(len(input_shape))
        bias = self.layer.bias
        if not self.rescale and bias is not None and contraction.bias_to_units(bias) is None:
            raise ValueError(
                "CosineNorm joins the bias to the weights of each output unit, so the bias needs "
                f"the axes of the units. Received: equation='{self.layer.equation}', "
                f"bias_axes='{self.layer.bias_axes}'. Use rescale=True, or bias_axes=None."
            )
        if self.rescale:
            kernel = kernels.output_kernel(self.layer)
            self.g = self.add_weight(
                name="g",
                shape=kernel.unit_shape,
                initializer=keras.initializers.Constant(math.sqrt(contraction.size)),
                dtype=kernel.dtype,
                autocast=False,
            )

    def contraction(self, rank):
        """Where the vectors lie whose cosine is taken, for inputs of this rank."""
        return Contraction(self.layer, rank, self.across_groups)

    def call(self, inputs):
        kernels.require_plain_kernel("CosineNorm", self.layer)  # it may have lost it since
        y = ops.cast(self.pre_activation(inputs), self.compute_dtype)
        return y if self.layer.activation is None else self.layer.activation(y)

    def pre_activation(self, inputs):
        """What the activation is taken of, in float32 or wider."""
        inputs = ops.convert_to_tensor(inputs)
        x = ops.cast(inputs, keras.backend.result_type(self.compute_dtype, "float32"))
        contraction = self.contraction(len(x.shape))
        bias = self.layer.bias
        bias = None if bias is None else keras_private.stored_value(bias)
        inner = None if self.rescale or bias is None else contraction.bias_to_units(bias)
        # what stands beside x in its length: the 1 of [x, 1], or the damping
        beside = self.damping if self.rescale else float(inner is not None)
        w, inner = self._direction(inner)

        scale = ops.maximum(norms.largest(x, contraction.axes), beside)
        scale = norms.positive(scale)
        correction = None
        if self.centered:
            x, correction, squares = contraction.centered(x * (1 / scale))
            low = ops.cast(x, self.compute_dtype)
        elif self._contracts_unscaled:
            low, squares = x, contraction.squared_lengths(x, scale)
        else:
            low = ops.cast(x * (1 / scale), self.compute_dtype)
            # the length of what is contracted, rounding included
            squares = contraction.squared_lengths(ops.cast(low, x.dtype))
        scale = contraction.to_output(scale)
        low_w = {name: ops.cast(part, self.compute_dtype) for name, part in w.items()}
        dots = ops.cast(contraction.apply(low_w, low), x.dtype)
        if correction is not None:
            dots = dots + correction({name: ops.cast(part, x.dtype) for name, part in w.items()})
            dots = ops.where(squares > 0, dots, ops.zeros_like(dots))
        if inner is not None:
            inner = contraction.units_to_output(ops.cast(inner, x.dtype))
            dots = normalize.affine(dots, bias=inner if self._contracts_unscaled else inner / scale)
        squares = squares + ops.square(beside / scale)
        if self.centered:
            # where Σx² − (Σx)²/n has lost digits, Cauchy–Schwarz still holds
            squares = ops.maximum(squares, ops.square(dots))
        factor = norms.inverse_length(squares)
        if self._contracts_unscaled:
            # beyond this it belongs to dot products too small for the dtype
            factor = ops.minimum(factor / scale, float(np.finfo(self.compute_dtype).max) / 10)
        y = normalize.affine(dots, factor)
        if self.rescale:
            gain = contraction.units_to_output(ops.cast(self.g, x.dtype))
            y = linear.add_bias(self.layer, normalize.affine(y, gain), bias)
        return y

    @property
    def _contracts_unscaled(self) -> bool:
        """Whether dot products take x as it is, and not divided by its largest entry."""
        return not self.centered and self.compute_dtype in ("float32", "float64")

    def lengths(self):
        """‖w‖ of each output unit, in the shape of `g`; 1 or so where w is zero."""
        kernel = kernels.output_kernel(self.layer)
        w = kernel.wide_value
        if linear.is_separable(self.layer):
            depthwise = kernels.kernels_of(self.layer)["g_depthwise"].wide_value
            return norms.separable_direction(depthwise, w)[-1]
        return ops.reshape(norms.norm(w, kernel.contracted_axes), kernel.unit_shape)

    def _direction(self, bias):
        """[w, b] / ‖[w, b]‖ as kernels, by their names, and a bias with one value per unit."""
        kernel = kernels.output_kernel(self.layer)
        w = kernel.wide_value
        if linear.is_separable(self.layer):
            depthwise = kernels.kernels_of(self.layer)["g_depthwise"].wide_value
            bias = None if bias is None else ops.cast(bias, w.dtype)
            depthwise, w, bias, _ = norms.separable_direction(depthwise, w, bias)
            return {"g": w, "g_depthwise": depthwise}, bias
        if self.centered:
            w, _, _ = normalize.centered_moments(w, kernel.contracted_axes)
        if bias is not None:
            bias = ops.reshape(ops.cast(bias, w.dtype), kernel.broadcast_shape)
        w, bias = norms.joint_direction(w, bias, kernel.contracted_axes)
        return {"g": w}, bias if bias is None else ops.reshape(bias, kernel.unit_shape)

    def compute_output_shape(self, input_shape):
        return self.layer.compute_output_shape(input_shape)

    def compute_mask(self, inputs, mask=None):
        return self.layer.compute_mask(inputs, mask)

    def get_config(self):
        return {
            **super().get_config(),
            "rescale": self.rescale,
            "damping": self.damping,
            "centered": self.centered,
            "across_groups": self.across_groups,
        }
