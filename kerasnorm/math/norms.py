"""Lengths and directions of vectors: pure functions on tensors.

What weight and cosine normalization divide by, kept away from overflow and from zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kerasnorm.math.custom_gradient import with_gradient
from kerasnorm.math.sums import total

# A zero vector has no direction. Its norm is taken as this (any positive number would do), which
# makes v / ‖v‖ = 0 and keeps the gradient finite. `norm` scales first, so that the norm of every
# vector but the zero vector is at least 1 before it is compared with this.
_ZERO_NORM_SQUARED = 0.5
# ‖x‖² of a patch is a sum of squares of entries scaled to at most 1. Below this, the derivative
# of 1 / ‖x‖, which goes like squares ** −1.5, would overflow in float32.
_VANISHING = 1e-24


def norm(v, axes: Sequence[int]):
    """Euclidean norm ‖v‖ over `axes`, dimensions kept.

    v is scaled by its largest entry before squaring, so that entries of 1e-30 do not vanish and
    entries of 1e30 do not overflow; in float32 the largest may be from 1.2e-38, below which all
    are zero, to 8e37, whose reciprocal is the smallest there is. The norm of a zero vector is
    reported as a positive constant, so that v / norm(v) is 0 with finite gradient.
    """
    if not axes:  # each entry is a vector of its own
        return ops.where(ops.abs(v) > 0, ops.abs(v), ops.ones_like(v))
    inverse, length = _scaled_length(v, axes)
    return length / inverse


def normalized_weight(v, g, axes: Sequence[int]):
    """w = g · v / ‖v‖, the norm over `axes`; g has the axes of v, with size 1 along these.

    Scale-free in v: normalized_weight(λv, g) = normalized_weight(v, g) for λ > 0, and ‖w‖ = |g|,
    within the range of `norm`. With u = v / ‖v‖, what flows back to g is s = Σ ẇ·u, and to v it is
    g · (ẇ − u·s) / ‖v‖.
    Salimans & Kingma 2016, https://arxiv.org/abs/1602.07868, equations 2 and 3.
    """
    if not axes:
        return ops.sign(v) * g

    def forward(v, g):
        inverse, length = _scaled_length(v, axes)
        return v * inverse * (g / length)

    def backward(values, dw):
        v, g = values
        inverse, length = _scaled_length(v, axes)
        u = v * inverse * (1 / length)
        s = total(dw * u, axes)
        return (dw - u * s) * (g / length) * inverse, s

    return with_gradient(forward, backward)(v, g)


def _scaled_length(v, axes: Sequence[int], beside=None):
    """(1 / m, ‖[v, b]‖ / m) over `axes`, with m the largest entry; a constant length for zeros.

    Where these are multiplied with v they are divided by first: a division takes an entry of v
    as long as ten products.
    """
    size = largest(v, axes)
    if beside is not None:
        size = ops.maximum(size, ops.abs(beside))
    inverse = ops.stop_gradient(1 / positive(size))
    squares = total(ops.square(v * inverse), axes)
    if beside is not None:
        squares = squares + ops.square(beside * inverse)
    return inverse, ops.sqrt(ops.maximum(squares, _ZERO_NORM_SQUARED))


def joint_direction(w, bias, axes: Sequence[int]):
    """([w, b] / ‖[w, b]‖) as the pair (w / N, b / N), with N = sqrt(‖w‖² + b²) over `axes` of w.

    `bias` has size 1 along `axes`; None stands for no bias. Where w and b are all zero, so is the
    result. With u = w / N and c = b / N, what flows back to w is (u̇ − u·s) / N, and to b it is
    (ċ − c·s) / N, where s = Σ u̇·u + ċ·c.
    """

    def units(w, *bias):
        inverse, length = _scaled_length(w, axes, *bias)
        return inverse, length, w * inverse * (1 / length), [b * inverse / length for b in bias]

    def forward(*values):
        _, _, u, c = units(*values)
        return u, *c

    def backward(values, du, *dc):
        inverse, length, u, c = units(*values)
        s = total(du * u, axes) + sum(db * b for db, b in zip(dc, c, strict=True))
        dbias = [(db - b * s) / length * inverse for db, b in zip(dc, c, strict=True)]
        return (du - u * s) * (1 / length) * inverse, *dbias

    values = [w] if bias is None else [w, bias]
    u, *c = with_gradient(forward, backward)(*values)
    return u, c[0] if c else None


def separable_direction(depthwise, pointwise, bias=None):
    """([w, b] / ‖[w, b]‖, ‖[w, b]‖) of a separable convolution, whose kernel w is made of two.

    w[k, c] = Σ_m d[k, c, m]·p[c, m] for tap k and input c, so that ‖w‖² = Σ_c pᵀ·(dᵀ·d)·p. Where
    w and b are all zero, so is the result, and the length is a positive constant.

    Args:
        depthwise: d, of shape (taps…, inputs, multiplier).
        pointwise: p, of shape (ones…, inputs · multiplier, units).
        bias: b, of shape (units,); None for no bias.

    Returns:
        (d / s, p·s / N, b / N, N) with N the lengths, of shape (units,), and s the largest entry
        of d, so that neither kernel leaves the range of 16 bits.
    """
    *_, inputs, multiplier = depthwise.shape
    d = ops.reshape(depthwise, (-1, inputs, multiplier))
    p = ops.reshape(pointwise, (inputs, multiplier, pointwise.shape[-1]))
    size = positive(ops.max(ops.abs(d)))
    width = ops.max(ops.abs(p), axis=(0, 1))
    if bias is not None:
        bias = bias / size
        width = ops.maximum(width, ops.abs(bias))
    width = positive(width)
    d, p, depthwise, pointwise = d / size, p / width, depthwise / size, pointwise / width
    products = ops.sum(ops.expand_dims(d, -1) * ops.expand_dims(d, -2), axis=0)
    squares = ops.sum(p * ops.matmul(products, p), axis=(0, 1))
    if bias is not None:
        bias = bias / width
        squares = squares + ops.square(bias)
    length = ops.sqrt(ops.where(squares > _VANISHING, squares, _ZERO_NORM_SQUARED))
    bias = bias if bias is None else bias / length
    return depthwise, pointwise / length, bias, length * width * size


def sum_of_squares(x, axes: Sequence[int], scale):
    """Σ (x / scale)² over `axes`, dimensions kept; the scale is of size 1 along them."""

    def forward(x, scale):
        return total(ops.square(x * (1 / scale)), axes)

    def backward(values, ds):
        x, scale = values
        # divided before it is spread out over x: XLA then does not compute it again for each entry
        return x * (1 / scale) * (2 * ds / scale), ops.zeros_like(scale)

    return with_gradient(forward, backward)(x, ops.stop_gradient(scale))


def inverse_length(squares):
    """1 / sqrt(squares), and 0 (with gradient 0) where `squares` vanishes.

    A patch of zeros has no direction: its cosine is 0 and it asks nothing of the layer before.
    """
    vanishing = squares < _VANISHING
    return ops.where(
        vanishing, ops.zeros_like(squares), ops.rsqrt(ops.where(vanishing, 1.0, squares))
    )


def largest(x, axes: Sequence[int]):
    """max |x| over `axes`, dimensions kept; 0 of nothing."""
    if not axes:
        return ops.abs(x)
    # two plain reductions cost less on a CPU than one of what has to be written out first
    high = ops.max(x, axis=axes, keepdims=True, initial=0.0)
    low = ops.min(x, axis=axes, keepdims=True, initial=0.0)
    return ops.maximum(high, -low)


def positive(scale):
    """A scale to divide by and multiply with again, which no gradient has to flow through.

    1 in place of zero, and of what is so small that its reciprocal overflows.
    """
    tiny = float(np.finfo(keras.backend.standardize_dtype(scale.dtype)).tiny)
    return ops.stop_gradient(ops.where(scale >= tiny, scale, ops.ones_like(scale)))
