"""The mathematics of the four normalizations: pure functions on tensors.

All of them are instances of one formula,

    h = f( g · (x − μ) / σ + b )

and differ in the set over which μ and σ are taken. Nothing here holds state or knows about
layers; everything is written in `keras.ops` and compiled by XLA.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from kerasnorm.sums import count, total

# A zero vector has no direction. Its norm is taken as this (any positive number would do), which
# makes v / ‖v‖ = 0 and keeps the gradient finite. `norm` scales first, so that the norm of every
# vector but the zero vector is at least 1 before it is compared with this.
_ZERO_NORM_SQUARED = 0.5
# ‖x‖² of a patch is a sum of squares of entries scaled to at most 1. Below this, the derivative
# of 1 / ‖x‖, which goes like squares ** −1.5, would overflow in float32.
_VANISHING = 1e-24
# What does not count may hold anything (the lowest number of its dtype, say). Beyond this its
# square, or its quotient by a small deviation, could overflow, and 0 · ∞ in a gradient is NaN.
_MASKED_LIMIT = 1e15


def norm(v, axes: Sequence[int]):
    """Euclidean norm ‖v‖ over `axes`, dimensions kept.

    Exact wherever ‖v‖ itself is in the range of the dtype's normal numbers: v is scaled by its
    largest entry before squaring, so that entries of 1e-30 do not vanish and entries of 1e30 do
    not overflow. The norm of a zero
    vector is reported as a positive constant, so that v / norm(v) is 0 with finite gradient.
    """
    if not axes:  # each entry is a vector of its own
        magnitude = ops.abs(v)
        return ops.where(magnitude > 0, magnitude, ops.ones_like(v))
    largest = _positive(ops.max(ops.abs(v), axis=axes, keepdims=True))
    squares = ops.sum(ops.square(v / largest), axis=axes, keepdims=True)
    return largest * ops.sqrt(ops.maximum(squares, _ZERO_NORM_SQUARED))


def normalized_weight(v, g, axes: Sequence[int]):
    """w = g · v / ‖v‖, the norm over `axes`; g broadcasts against v.

    Scale-free in v: normalized_weight(λv, g) = normalized_weight(v, g) for λ > 0, and ‖w‖ = |g|.
    Salimans & Kingma 2016, https://arxiv.org/abs/1602.07868, equation 2.
    """
    return v / norm(v, axes) * g  # in this order: g / ‖v‖ may overflow


def affine(x, gain=None, bias=None):
    """gain · x + bias, both broadcast against x; either may be None."""
    if gain is not None:
        x = x * gain
    return x if bias is None else x + bias


def weighted_mean(x, axes: Sequence[int], weights=None, sum_replicas=None):
    """Mean of x over `axes`, dimensions kept.

    Args:
        x: Tensor.
        axes: The axes of the set that is averaged.
        weights: Optional, 1 or 0 for each entry of x (broadcast against x). Entries with weight 0
            do not count, whatever they are; the mean of nothing is 0.
        sum_replicas: Optional function that adds each tensor of a list up over all replicas, so
            that the mean is that of the whole batch.
    """
    if weights is None and sum_replicas is None:
        return ops.mean(x, axis=axes, keepdims=True)
    return _means([x], axes, weights, sum_replicas)[0]


def centered_moments(x, axes: Sequence[int], weights=None, sum_replicas=None):
    """(c, μ, v): x minus its mean over `axes`, that mean, and the variance (the mean of c²).

    Dimensions are kept; `weights` and `sum_replicas` are those of `weighted_mean`. Entries with
    weight 0 that are beyond 1e15, or not finite, are centred as if they were 0.

    Where |mean| is far larger than the deviation, the mean itself is only known to the precision
    of x. A second mean over the centred values repairs that at almost no cost: with c₀ = x − μ,
    δ = mean c₀ and q = mean c₀², the true centred values are c₀ − δ and the variance is q − δ².
    """
    x = _tamed(x, weights)
    # whatever is subtracted first drops out again with δ: nothing has to flow back through it
    mean = ops.stop_gradient(weighted_mean(x, axes, weights, sum_replicas))
    rough = x - mean
    # squares the other way round: what XLA finds needed for two sums, it writes out
    parts = [rough, ops.square(mean - x)]
    delta, squares = _means(parts, axes, weights, sum_replicas)
    # rounding may leave a constant vector a variance of −1e-15
    variance = ops.maximum(squares - ops.square(delta), 0.0)
    return rough - delta, mean + delta, variance


def normalize(x, axes, epsilon, gain=None, bias=None, weights=None, sum_replicas=None):
    """(y, μ, v) with y = gain · (x − μ) / sqrt(v + ε) + bias, mean and variance over `axes`.

    With x̂ = (x − μ) / sqrt(v + ε) over n entries, and h what flows back to x̂, what flows back to
    x is (h − (Σh + x̂·Σ(h·x̂)) / n) / sqrt(v + ε): x̂ is computed again from x, nothing but x is
    kept. No gradient flows through μ and v as they are returned.

    Args:
        x: Tensor of float32 or wider.
        axes: The axes of the set that mean and variance are taken over, from the front.
        epsilon: Added to the variance.
        gain, bias: Optional, of as many axes as x; of size 1 where they are the same for all.
        weights, sum_replicas: Those of `centered_moments`.

    Ba et al. 2016, https://arxiv.org/abs/1607.06450, equation 3, and Ioffe & Szegedy 2015,
    https://arxiv.org/abs/1502.03167, section 3.
    """
    x = _tamed(x, weights)
    given = {"gain": gain, "bias": bias}
    names = [name for name, value in given.items() if value is not None]

    def forward(x, *values):
        centered, mean, variance = centered_moments(x, axes, weights, sum_replicas)
        normalized = centered * ops.rsqrt(variance + epsilon)
        return affine(normalized, **dict(zip(names, values, strict=True))), mean, variance

    def backward(x, values, dy):
        centered, _, variance = centered_moments(x, axes, weights, sum_replicas)
        scale = ops.rsqrt(variance + epsilon)
        normalized = centered * scale
        gain = dict(zip(names, values, strict=True)).get("gain", ops.ones((1,) * len(x.shape)))
        # a gain that is the same for all of a sum stays outside: the sums are then its own too
        outside = all(gain.shape[axis] == 1 for axis in axes)
        h = dy if outside else dy * gain
        sums = _summed([h, h * normalized], axes, sum_replicas)
        share = 1.0 if weights is None else weights
        share = share / _counted(x, axes, weights, sum_replicas)
        dx = scale * (h - share * (sums[0] + normalized * sums[1]))
        dx = dx * gain if outside else dx
        flows = {"gain": dy * normalized, "bias": dy}
        return dx, *(
            total(flows[name], [a for a, size in enumerate(value.shape) if size == 1])
            for name, value in zip(names, values, strict=True)
        )

    values = [value for value in given.values() if value is not None]
    if keras.backend.backend() != "tensorflow":
        # JAX would take such a function's derivative no more in forward mode
        y, mean, variance = forward(x, *values)
        return y, ops.stop_gradient(mean), ops.stop_gradient(variance)

    @ops.custom_gradient
    def normalized(x, *values):
        return forward(x, *values), lambda dy, *_: backward(x, values, dy)

    return normalized(x, *values)


def _tamed(x, weights):
    """x with zeros where an entry that does not count could overflow."""
    if weights is None:
        return x
    counts = ops.broadcast_to(weights, ops.shape(x)) > 0
    return ops.where(ops.logical_or(counts, ops.abs(x) < _MASKED_LIMIT), x, ops.zeros_like(x))


def _means(tensors, axes, weights, sum_replicas):
    counted = _counted(tensors[0], axes, weights, sum_replicas)
    if weights is not None:
        weights = ops.broadcast_to(weights, ops.shape(tensors[0]))
        tensors = [ops.where(weights > 0, t, ops.zeros_like(t)) for t in tensors]
    return [t / counted for t in _summed(tensors, axes, sum_replicas)]


def _summed(tensors, axes, sum_replicas):
    sums = [total(t, axes) for t in tensors]
    return sums if sum_replicas is None else sum_replicas(sums)


def _counted(x, axes, weights, sum_replicas):
    """How many entries of x count in one mean; 1 where none does."""
    if weights is None and sum_replicas is None:
        return count(x, axes)
    weights = ops.ones_like(x) if weights is None else ops.broadcast_to(weights, ops.shape(x))
    [counted] = _summed([weights], axes, sum_replicas)
    return ops.where(counted > 0, counted, ops.ones_like(counted))


def rest_where_constant(x, axes: Sequence[int]):
    """x, with no gradient through vectors (along `axes`) whose entries are all the same.

    Standardized with a small ε, such a vector is 0, and the slope 1 / sqrt(ε) there; in a
    recurrence the slopes of many steps at rest multiply to infinity.
    """
    spread = ops.max(x, axis=axes, keepdims=True) > ops.min(x, axis=axes, keepdims=True)
    return ops.where(spread, x, ops.stop_gradient(x))


def moving_average(old, new, momentum: float):
    """momentum · old + (1 − momentum) · new."""
    return old * momentum + new * (1.0 - momentum)


def joint_direction(w, bias, axes: Sequence[int]):
    """([w, b] / ‖[w, b]‖) as the pair (w / N, b / N), with N = sqrt(‖w‖² + b²) over `axes` of w.

    `bias` has size 1 along `axes`; None stands for no bias. Where w and b are all zero, so is the
    result.
    """
    if bias is None:
        return w / norm(w, axes), None
    largest = ops.maximum(ops.max(ops.abs(w), axis=axes, keepdims=True), ops.abs(bias))
    largest = _positive(largest)
    w, bias = w / largest, bias / largest
    squares = ops.sum(ops.square(w), axis=axes, keepdims=True) + ops.square(bias)
    length = ops.sqrt(ops.maximum(squares, _ZERO_NORM_SQUARED))
    return w / length, bias / length


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
    size = _positive(ops.max(ops.abs(d)))
    largest = ops.max(ops.abs(p), axis=(0, 1))
    if bias is not None:
        bias = bias / size
        largest = ops.maximum(largest, ops.abs(bias))
    largest = _positive(largest)
    d, p, depthwise, pointwise = d / size, p / largest, depthwise / size, pointwise / largest
    products = ops.sum(ops.expand_dims(d, -1) * ops.expand_dims(d, -2), axis=0)
    squares = ops.sum(p * ops.matmul(products, p), axis=(0, 1))
    if bias is not None:
        bias = bias / largest
        squares = squares + ops.square(bias)
    length = ops.sqrt(ops.where(squares > _VANISHING, squares, _ZERO_NORM_SQUARED))
    bias = bias if bias is None else bias / length
    return depthwise, pointwise / length, bias, length * largest * size


def _positive(scale):
    """A scale to divide by and multiply with again, which no gradient has to flow through."""
    return ops.stop_gradient(ops.where(scale > 0, scale, ops.ones_like(scale)))


def inverse_length(squares):
    """1 / sqrt(squares), and 0 (with gradient 0) where `squares` vanishes.

    A patch of zeros has no direction: its cosine is 0 and it asks nothing of the layer before.
    """
    vanishing = squares < _VANISHING
    return ops.where(
        vanishing, ops.zeros_like(squares), ops.rsqrt(ops.where(vanishing, 1.0, squares))
    )
