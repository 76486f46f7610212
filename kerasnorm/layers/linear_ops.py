"""The linear map of a layer on its own: without its bias and its activation.

Bound to no particular kernel or number of channels, so that the same call contracts inputs with
weights, or sums squares with a kernel of ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from keras import layers, ops

from kerasnorm.layers import kernels
from kerasnorm.layers.affine import Affine

_CONVOLUTIONS = (layers.Conv1D, layers.Conv2D, layers.Conv3D)
_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
# Taps along one axis: more of them than this, and a convolution is no slower than shifted copies.
_FEW = 32


def linear_map(layer, weights: Mapping[str, Any], x):
    """The layer's contraction of x with `weights`, given by the name of their gain."""
    w = weights["g"]
    if isinstance(layer, Affine):
        return x * ops.reshape(w, _at(layer.axis, len(x.shape)))
    if isinstance(layer, layers.Dense):
        return ops.matmul(x, w)
    if isinstance(layer, layers.EinsumDense):
        return ops.einsum(layer.equation, x, w)
    if isinstance(layer, layers.Embedding):
        return ops.take(w, ops.cast(x, "int32"), axis=0)
    if isinstance(layer, _SEPARABLE):
        x, padding = pad_causal(layer, x)
        return ops.separable_conv(x, weights["g_depthwise"], w, **_geometry(layer, padding))
    return sliding(layer, w, x)


def sliding(layer, w, x):
    """A kernel moved over x as a convolution moves its own; a separable one as if it had one."""
    if is_transposed(layer):
        return ops.conv_transpose(
            x, w, output_padding=layer.output_padding, **_geometry(layer, layer.padding)
        )
    if isinstance(layer, _CONVOLUTIONS) and layer.padding != "causal":
        return layer.convolution_op(x, w)
    x, padding = pad_causal(layer, x)
    convolve = ops.depthwise_conv if isinstance(layer, _DEPTHWISE) else ops.conv
    return convolve(x, w, **_geometry(layer, padding))


def has_few_taps(layer, shape) -> bool:
    """Whether `window_sums` can take the place of a kernel of ones, and is worth it."""
    sizes = [shape[axis] for axis in _spatial_axes(layer)]
    # how far a strided "same" window reaches beyond the border depends on the size
    unknown = None in sizes and layer.padding == "same" and set(layer.strides) != {1}
    return not is_transposed(layer) and max(layer.kernel_size) <= _FEW and not unknown


def window_sums(layer, x):
    """Sums over the window of a convolution at each of its positions, channel by channel.

    What `sliding` makes of a kernel of ones, by adding up shifted copies axis by axis: XLA fuses
    that, where a convolution of one channel is a slow one.
    """
    x, padding = pad_causal(layer, x)
    geometry = (_spatial_axes(layer), layer.kernel_size, layer.strides, layer.dilation_rate)
    for axis, taps, stride, dilation in zip(*geometry, strict=True):
        reach = (taps - 1) * dilation
        if padding == "same":
            beyond = reach
            if stride > 1:
                positions = -(-x.shape[axis] // stride)
                beyond = max((positions - 1) * stride + reach + 1 - x.shape[axis], 0)
            widths = [(0, 0)] * len(x.shape)
            widths[axis] = (beyond // 2, beyond - beyond // 2)
            x = ops.pad(x, widths)
        copies = []
        for tap in range(taps):
            start, left = tap * dilation, reach - tap * dilation
            cut = [slice(None)] * len(x.shape)
            cut[axis] = slice(start, -left or None, stride)
            copies.append(x[tuple(cut)])
        x = sum(copies[1:], copies[0])
    return x


def _spatial_axes(layer) -> range:
    first = 2 if layer.data_format == "channels_first" else 1
    return range(first, first + len(layer.kernel_size))


def add_bias(layer, y, bias):
    """y + bias, the bias laid out as the layer lays out its own."""
    if bias is None:
        return y
    bias = ops.cast(bias, y.dtype)
    axis = kernels.channel_axis(layer, len(y.shape))
    return y + (bias if axis is None else ops.reshape(bias, _at(axis, len(y.shape))))


def is_convolution(layer) -> bool:
    """Whether the layer slides its kernel over patches of the input."""
    return isinstance(layer, _CONVOLUTIONS + _TRANSPOSED + _DEPTHWISE + _SEPARABLE)


def is_transposed(layer) -> bool:
    return isinstance(layer, _TRANSPOSED)


def is_depthwise(layer) -> bool:
    return isinstance(layer, _DEPTHWISE)


def groups(layer) -> int:
    """Into how many groups of channels a built layer divides its input, each with own outputs."""
    return layer.kernel.shape[-2] if is_depthwise(layer) else getattr(layer, "groups", 1)


def is_separable(layer) -> bool:
    return isinstance(layer, _SEPARABLE)


def _at(axis: int, rank: int) -> tuple[int, ...]:
    shape = [1] * rank
    shape[axis] = -1
    return tuple(shape)


def _geometry(layer, padding: str) -> dict[str, Any]:
    return {
        "strides": tuple(layer.strides),
        "padding": padding,
        "dilation_rate": tuple(layer.dilation_rate),
        "data_format": layer.data_format,
    }


def pad_causal(layer, x):
    """x with zeros before its first step where a causal layer has them, and the padding left."""
    if layer.padding != "causal":
        return x, layer.padding
    left = layer.dilation_rate[0] * (layer.kernel_size[0] - 1)
    time = 1 if layer.data_format == "channels_last" else 2
    widths = [(0, 0)] * len(x.shape)
    widths[time] = (left, 0)
    return ops.pad(x, widths), "valid"


def has_rows(layer: Any) -> bool:
    """Whether a layer can be seen as a matrix: no transposed convolution, no wide einsum."""
    if isinstance(layer, layers.EinsumDense):
        inputs, kernel, output = kernels.einsum_letters(layer.equation)
        plain = len(kernel) == 2 and inputs[-1] == kernel[0] and output[-1] == kernel[1]
        return plain and inputs[:-1] == output[:-1] and layer.bias_axes in (None, kernel[1])
    kinds = (layers.Dense, *_CONVOLUTIONS)
    return isinstance(layer, kinds) or is_depthwise(layer) or is_separable(layer)
