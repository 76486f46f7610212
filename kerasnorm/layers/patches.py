"""The input vectors that a linear layer contracts, one for each position of its output.

A dense layer contracts one axis of its input, an einsum some of them, a convolution a patch at
every position. What CosineNorm asks of these vectors — length, mean, where they lie in the
output — is answered here. Patches are never extracted: a sum over a patch is a convolution with
a kernel of ones over as many channels as there are groups.
"""

from __future__ import annotations

import itertools
import math
import string

import keras
import numpy as np
from keras import layers, ops

from kerasnorm.errors import Refusal
from kerasnorm.layers import kernels, masks
from kerasnorm.layers import linear_ops as linear
from kerasnorm.math import normalize, norms
from kerasnorm.math.sums import total


def refusal(layer) -> Refusal | None:
    """Why the layer is not one contraction of input vectors with weight vectors, or None."""
    name = type(layer).__name__
    if kernels.kernel_class(layer) is None:
        return Refusal(f"it needs a linear layer, and {name} is none")
    if kernels.overridden(layer):
        return Refusal(
            f"{name} overrides `{kernels.overridden(layer)}`, which CosineNorm would not use; let "
            "another layer around the wrapped one do what it adds"
        )
    if isinstance(layer, kernels.Affine):
        return Refusal("each weight vector of Affine is a single number, whose cosine is its sign")
    if isinstance(layer, layers.EinsumDense):
        inputs, kernel, output = (
            set(s.replace("...", "")) for s in kernels.einsum_letters(layer.equation)
        )
        stray = (inputs ^ kernel) - output
        if stray or not (inputs & kernel) - output:
            return Refusal(
                f"equation '{layer.equation}' must contract the input with the kernel over "
                "shared letters, and sum over no others"
            )
    return None


class Contraction:
    """Where the contracted vectors of a built layer lie, for inputs of one rank.

    Args:
        layer: The layer.
        rank: How many axes its inputs have.
        across_groups: Whether the vector of each unit is the patch of all channels, where the
            layer itself reads those of one group: its weights for the others are zeros.
    """

    def __init__(self, layer: keras.Layer, rank: int, across_groups: bool = False):
        self.layer = layer
        self.rank = rank
        groups = linear.groups(layer)
        self.groups = 1 if across_groups else groups
        self.sliding = linear.is_convolution(layer)
        kernel = kernels.output_kernel(layer)
        self.size = math.prod(kernel.variable.shape[a] for a in kernel.contracted_axes)
        self.size *= groups // self.groups
        if linear.is_separable(layer):
            # both kernels in one: (space, inputs, 1) of the depthwise one
            self.size = math.prod(layer.depthwise_kernel.shape[:-1])
        if isinstance(layer, layers.EinsumDense):
            self._inputs, self._kernel, self._output = _without_dots(layer.equation, rank)
            self.axes = tuple(a for a, x in enumerate(self._inputs) if x not in self._output)
        elif self.sliding:
            self.axes = tuple(range(1, rank))
        else:
            self.axes = (rank - 1,)

    def apply(self, weights, x):
        """The contraction of x with kernels, by the names of their gains."""
        return linear.linear_map(self.layer, weights, x)

    def to_output(self, t):
        """A tensor with one value per vector (`axes` kept as ones), laid out as the output."""
        if not isinstance(self.layer, layers.EinsumDense):
            return t
        kept = "".join(x for x in self._inputs if x in self._output)
        order = [kept.index(x) for x in self._output if x in kept]
        t = ops.transpose(ops.squeeze(t, self.axes), order)
        for position, letter in enumerate(self._output):
            if letter not in kept:
                t = ops.expand_dims(t, position)
        return t

    def units_to_output(self, t):
        """A tensor with one value per output unit, laid out to broadcast against the output."""
        if not isinstance(self.layer, layers.EinsumDense):
            shape = [1] * self.rank
            shape[self.channel_axis] = -1
            return ops.reshape(t, shape)
        letters = [x for x in self._kernel if x in self._output]
        order = sorted(range(len(letters)), key=lambda i: self._output.index(letters[i]))
        sizes = dict(zip(letters, t.shape, strict=True))
        return ops.reshape(ops.transpose(t, order), [sizes.get(x, 1) for x in self._output])

    def unit_axes_of_output(self) -> tuple[int, ...]:
        """The axes of the output that its units run along."""
        if not isinstance(self.layer, layers.EinsumDense):
            return (self.channel_axis,)
        return tuple(a for a, x in enumerate(self._output) if x in self._kernel)

    def weights_of_output(self, mask, t):
        """A mask of the input as weights of the output t, or None where it does not fit.

        It fits where every axis it covers stands at the same place in the output, index by index:
        not where it covers contracted axes, the time of a "valid" or strided convolution, or axes
        that an EinsumDense moves.
        """
        if mask is None:
            return None
        covered = len(mask.shape)
        channels = None
        if isinstance(self.layer, layers.EinsumDense):
            fits = self._inputs[:covered] == self._output[:covered]
        elif isinstance(self.layer, kernels.Affine):
            fits, channels = True, self.channel_axis
        else:
            last = self.channel_axis == self.rank - 1
            fits = covered <= 1 or covered == self.rank - 1 or (last and covered < self.rank)
            channels = self.channel_axis
            if self.sliding and covered > 1:
                kept = self.layer.padding != "valid" and set(self.layer.strides) == {1}
                fits = fits and kept
        return masks.as_weights(mask, t, channels) if fits else None

    def output_to_units(self, t):
        """The inverse of `units_to_output`: the shape that gains have."""
        kernel = kernels.output_kernel(self.layer)
        if isinstance(self.layer, layers.EinsumDense):
            letters = [x for x in self._kernel if x in self._output]
            present = sorted(letters, key=self._output.index)
            sizes = dict(zip(letters, kernel.unit_shape, strict=True))
            t = ops.reshape(t, [sizes[x] for x in present])
            t = ops.transpose(t, [present.index(x) for x in letters])
        return ops.reshape(t, kernel.unit_shape)

    def bias_to_units(self, bias):
        """The layer's bias with one value per output unit, or None if it has other axes."""
        if isinstance(self.layer, layers.EinsumDense):
            letters = {x for x in self._kernel if x in self._output}
            if set(self.layer.bias_axes) != letters:
                return None
        return self.output_to_units(bias)

    def units_to_bias(self, t):
        """The inverse of `bias_to_units`: one value per unit, in the shape of the bias."""
        if isinstance(self.layer, layers.EinsumDense):
            t = self.units_to_output(t)
        return ops.reshape(t, self.layer.bias.shape)

    def squared_lengths(self, x, scale=None):
        """‖x / scale‖² of every vector, laid out as the output; the scale has ones at `axes`."""
        if self.groups > 1:
            x = x if scale is None else x * (1 / scale)
            return self._per_filter(self._patch_sums(ops.square(x)))
        axes = [self.channel_axis] if self.sliding else self.axes
        squares = (
            total(ops.square(x), axes) if scale is None else norms.sum_of_squares(x, axes, scale)
        )
        return self._slid(squares) if self.sliding else self.to_output(squares)

    @property
    def filters_per_group(self) -> int:
        """How many output channels of a convolution share one vector; 1 where all do."""
        if self.groups == 1:
            return 1
        return math.prod(kernels.output_kernel(self.layer).unit_shape) // self.groups

    def centered(self, x):
        """(x̃, correction, ‖x − x̄‖²) of every vector, x̄ its own mean.

        For a kernel of mean 0, `apply(kernel, x̃) + correction(kernel)` is its contraction with
        the centred vectors. A shift common to all entries of a sample that one group reads drops
        out of both, and taking it off first keeps the digits that Σx² − (Σx)²/n would lose; where
        a patch reaches into the padding, whose zeros the shift would make −m, the correction puts
        it right.
        """
        if not self.sliding:
            x, _, _ = normalize.centered_moments(x, self.axes)
            return x, lambda weights: 0.0, self.squared_lengths(x)
        shift = ops.stop_gradient(self._group_means(x))
        ones = ops.ones_like(x[:1])
        outside = self.size - self._patch_sums(ones)
        x = x - ops.repeat(shift, x.shape[self.channel_axis] // self.groups, axis=self.channel_axis)
        sums = self._patch_sums(x) - outside * shift
        squares = self._patch_sums(ops.square(x)) + outside * ops.square(shift)
        variances = squares - ops.square(sums) / self.size
        # below this, only the rounding of the difference is left
        rounding = 8 * np.finfo(keras.backend.standardize_dtype(x.dtype)).eps
        variances = ops.where(variances > rounding * squares, variances, ops.zeros_like(variances))
        at_border = self._per_filter(outside) > 0

        def correction(weights):
            reach = self.apply(weights, ones)
            return self._per_filter(shift) * ops.where(at_border, reach, ops.zeros_like(reach))

        return x, correction, self._per_filter(variances)

    @property
    def channel_axis(self) -> int:
        """The axis of input and output that holds the channels."""
        axis = kernels.channel_axis(self.layer, self.rank)
        return self.rank - 1 if axis is None else axis

    def _group_means(self, x):
        """One value per group (and sample): the mean of all that it reads, space and channels."""
        groups, axis = self.groups, self.channel_axis
        space = tuple(a for a in range(1, self.rank) if a != axis)
        means = ops.mean(x, axis=space, keepdims=True)
        if groups == 1:
            return ops.mean(means, axis=axis, keepdims=True)
        shape = [-1] + [1] * (self.rank - 1)
        shape[axis : axis + 1] = [groups, x.shape[axis] // groups]
        return ops.mean(ops.reshape(means, shape), axis=axis + 1)

    def _patch_sums(self, x):
        """Sums over each group's patches."""
        groups, axis = self.groups, self.channel_axis
        if not linear.is_depthwise(self.layer) or groups == 1:
            shape = list(ops.shape(x))
            shape[axis : axis + 1] = [groups, x.shape[axis] // groups]
            x = ops.sum(ops.reshape(x, shape), axis=axis + 1)
        return self._slid(x)

    def _slid(self, x):
        """Sums over the windows of x, which has one channel for each group."""
        if linear.has_few_taps(self.layer, x.shape):
            return linear.window_sums(self.layer, x)
        depthwise = linear.is_depthwise(self.layer)
        channels = (self.groups, 1) if depthwise else (1, self.groups)
        ones = ops.ones((*self.layer.kernel_size, *channels), dtype=x.dtype)
        return linear.sliding(self.layer, ones, x)

    def _per_filter(self, t):
        """One value per group, repeated for each filter of the group."""
        often = self.filters_per_group
        return t if often == 1 else ops.repeat(t, often, axis=self.channel_axis)


def _without_dots(equation: str, rank: int) -> tuple[str, str, str]:
    """The equation's three parts with `...` spelled out for an input of `rank` axes."""
    inputs, kernel, output = kernels.einsum_letters(equation)
    unused = (x for x in string.ascii_letters if x not in equation)
    dots = "".join(itertools.islice(unused, rank - len(inputs.replace("...", ""))))
    return inputs.replace("...", dots), kernel, output.replace("...", dots)
