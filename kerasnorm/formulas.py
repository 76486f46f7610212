"""The mathematics of the four normalizations: pure functions on tensors.

All of them are instances of one formula,

    h = f( g · (x − μ) / σ + b )

and differ in the set over which μ and σ are taken. Nothing here holds state or knows about
layers; everything is written in `keras.ops` and compiled by XLA.
"""

from __future__ import annotations

from collections.abc import Sequence

from keras import ops

# A zero vector has no direction. Its norm is taken as this (any positive number would do), which
# makes v / ‖v‖ = 0 and keeps the gradient finite. `norm` scales first, so that the norm of every
# vector but the zero vector is at least 1 before it is compared with this.
_ZERO_NORM_SQUARED = 0.5


def norm(v, axes: Sequence[int]):
    """Euclidean norm ‖v‖ over `axes`, dimensions kept.

    Exact over the whole range of the dtype: v is scaled by its largest entry before squaring, so
    that entries of 1e-30 do not vanish and entries of 1e30 do not overflow. The norm of a zero
    vector is reported as a positive constant, so that v / norm(v) is 0 with finite gradient.
    """
    if not axes:  # each entry is a vector of its own
        magnitude = ops.abs(v)
        return ops.where(magnitude > 0, magnitude, ops.ones_like(v))
    largest = ops.stop_gradient(ops.max(ops.abs(v), axis=axes, keepdims=True))
    largest = ops.where(largest > 0, largest, ops.ones_like(largest))
    squares = ops.sum(ops.square(v / largest), axis=axes, keepdims=True)
    return largest * ops.sqrt(ops.maximum(squares, _ZERO_NORM_SQUARED))


def normalized_weight(v, g, axes: Sequence[int]):
    """w = g · v / ‖v‖, the norm over `axes`; g broadcasts against v.

    Scale-free in v: normalized_weight(λv, g) = normalized_weight(v, g) for λ > 0, and ‖w‖ = |g|.
    Salimans & Kingma 2016, https://arxiv.org/abs/1602.07868, equation 2.
    """
    return v * (g / norm(v, axes))


def affine(x, gain=None, bias=None):
    """gain · x + bias, both broadcast against x; either may be None."""
    if gain is not None:
        x = x * gain
    return x if bias is None else x + bias


def centered_moments(x, axes: Sequence[int]):
    """(c, v): x minus its mean over `axes`, and the variance (the mean of c²), dimensions kept.

    Where |mean| is far larger than the deviation, the mean itself is only known to the precision
    of x. A second mean over the centred values repairs that at almost no cost: with c₀ = x − μ,
    δ = mean c₀ and q = mean c₀², the true centred values are c₀ − δ and the variance is q − δ².
    """
    rough = x - ops.mean(x, axis=axes, keepdims=True)
    delta = ops.mean(rough, axis=axes, keepdims=True)
    squares = ops.mean(ops.square(rough), axis=axes, keepdims=True)
    # rounding may leave a constant vector a variance of −1e-15
    return rough - delta, ops.maximum(squares - ops.square(delta), 0.0)


def standardize(x, axes: Sequence[int], epsilon: float):
    """(x − μ) / sqrt(var + ε), mean and variance over `axes`.

    Ba et al. 2016, https://arxiv.org/abs/1607.06450, equation 3.
    """
    centered, variance = centered_moments(x, axes)
    return centered * ops.rsqrt(variance + epsilon)
