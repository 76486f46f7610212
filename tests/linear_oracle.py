"""Linear layers in NumPy float64, written from their definition: explicit positions and taps.

Each oracle is bilinear in (x, w) and knows nothing of Keras. Complex arrays pass through, so that
`helpers.gradient` can differentiate it.
"""

from __future__ import annotations

import itertools

import numpy as np


def conv_taps(size, kernel, stride, dilation, padding):
    """taps[o][t]: the input index that tap t of output o reads along one axis, None in padding."""
    reach = (kernel - 1) * dilation + 1
    if padding == "same":
        outputs = -(-size // stride)
        before = max((outputs - 1) * stride + reach - size, 0) // 2
    else:
        before = (kernel - 1) * dilation if padding == "causal" else 0
        outputs = (size + before - reach) // stride + 1
    return [
        [
            i if 0 <= i < size else None
            for i in (o * stride + t * dilation - before for t in range(kernel))
        ]
        for o in range(outputs)
    ]


def transposed_taps(size, kernel, stride, dilation, padding):
    """The same for a transposed convolution: output o is reached from input i by tap t where
    o = i·stride + t·dilation − before."""
    reach = (kernel - 1) * dilation + 1
    if padding == "same":
        outputs, before = size * stride, max(reach - stride, 0) // 2
    else:
        outputs, before = size * stride + max(reach - stride, 0), 0

    def source(o, t):
        i, rest = divmod(o + before - t * dilation, stride)
        return i if rest == 0 and 0 <= i < size else None

    return [[source(o, t) for t in range(kernel)] for o in range(outputs)]


def patches(x, kernel_size, strides, dilation, padding, taps=conv_taps):
    """(batch, *outputs, taps, channels) from channels-last x, zeros in the padding."""
    axes = [
        taps(size, *rest, padding)
        for size, *rest in zip(x.shape[1:-1], kernel_size, strides, dilation, strict=True)
    ]
    result = np.zeros(
        (x.shape[0], *(len(a) for a in axes), int(np.prod(kernel_size)), x.shape[-1]), x.dtype
    )
    for position in itertools.product(*(range(len(a)) for a in axes)):
        lines = (a[o] for a, o in zip(axes, position, strict=True))
        for t, source in enumerate(itertools.product(*lines)):
            if None not in source:
                result[(slice(None), *position, t)] = x[(slice(None), *source)]
    return result


def convolution(strides, dilation, padding="valid", groups=1):
    """w: (*kernel, inputs / groups, filters)."""

    def bilinear(x, w):
        p = patches(x, w.shape[:-2], strides, dilation, padding)
        w = w.reshape(-1, *w.shape[-2:])
        per_group = zip(np.split(p, groups, -1), np.split(w, groups, -1), strict=True)
        return np.concatenate([np.einsum("...tc,tcf->...f", a, b) for a, b in per_group], -1)

    return bilinear


def transposed(strides, dilation, padding="valid"):
    """w: (*kernel, filters, inputs)."""

    def bilinear(x, w):
        steps = dilation
        p = patches(x, w.shape[:-2], strides, steps, padding, transposed_taps)
        return np.einsum("...tc,tfc->...f", p, w.reshape(-1, *w.shape[-2:]))

    return bilinear


def depthwise(strides, dilation, padding="valid"):
    """w: (*kernel, inputs, multiplier); output channel = input · multiplier + j."""

    def bilinear(x, w):
        p = patches(x, w.shape[:-2], strides, dilation, padding)
        y = np.einsum("...tc,tcm->...cm", p, w.reshape(-1, *w.shape[-2:]))
        return y.reshape(*y.shape[:-2], -1)

    return bilinear


def einsum(equation):
    return lambda x, w: np.einsum(equation, x, w)


def channels_first(bilinear):
    """The same map with channels on axis 1."""
    return lambda x, w: np.moveaxis(bilinear(np.moveaxis(x, 1, -1), w), -1, 1)
