"""The mathematics of the four normalizations: pure functions on tensors.

All of them are instances of one formula,

    h = f( g · (x − μ) / σ + b )

and differ in the set over which μ and σ are taken. Nothing here holds state or knows about
layers; everything is written in `keras.ops` and compiled by XLA.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kerasnorm.sums import count, for_cpu, total

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

    v is scaled by its largest entry before squaring, so that entries of 1e-30 do not vanish and
    entries of 1e30 do not overflow. The norm of a zero vector is reported as a positive constant,
    so that v / norm(v) is 0 with finite gradient.
    """
    inverse, length = _scaled_length(v, axes)
    return length / inverse


def normalized_weight(v, g, axes: Sequence[int]):
    """w = g · v / ‖v‖, the norm over `axes`; g broadcasts against v.

    Scale-free in v: normalized_weight(λv, g) = normalized_weight(v, g) for λ > 0, and ‖w‖ = |g|.
    With u = v / ‖v‖, what flows back to g is s = Σ ẇ·u, and to v it is g · (ẇ − u·s) / ‖v‖.
    Salimans & Kingma 2016, https://arxiv.org/abs/1602.07868, equations 2 and 3.
    """

    def forward(v, g):
        inverse, length = _scaled_length(v, axes)
        return v * inverse * (g / length)

    def backward(values, dw):
        v, g = values
        inverse, length = _scaled_length(v, axes)
        u = v * inverse * (1 / length)
        s = total(dw * u, axes)
        return (dw - u * s) * (g / length) * inverse, s

    return _with_gradient(forward, backward)(v, g)


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


def affine(x, gain=None, bias=None):
    """gain · x + bias, both of as many axes as x and broadcast against it; either may be None.

    Along an axis where they have size 1, what flows back to them is summed.
    """
    present = {"gain": gain, "bias": bias}
    names = [name for name, value in present.items() if value is not None]

    def forward(x, *values):
        return _affine(x, **dict(zip(names, values, strict=True)))

    def backward(values, dy):
        x, *values = values
        named = dict(zip(names, values, strict=True))
        flows = {"gain": dy * x, "bias": dy}
        back = [_summed_to(named[name], flows[name]) for name in names]
        return dy * named["gain"] if "gain" in named else dy, *back

    return _with_gradient(forward, backward)(x, *(present[name] for name in names))


def _affine(x, gain=None, bias=None):
    if gain is not None:
        x = x * gain
    return x if bias is None else x + bias


def _summed_to(value, flow):
    """What flows back to a value that was broadcast to the shape of `flow`."""
    sizes = zip(value.shape, flow.shape, strict=True)
    return total(flow, [axis for axis, (of, along) in enumerate(sizes) if of == 1 and along != 1])


def sum_of_squares(x, axes: Sequence[int], scale):
    """Σ (x / scale)² over `axes`, dimensions kept; the scale is of size 1 along them."""

    def forward(x, scale):
        return total(ops.square(x * (1 / scale)), axes)

    def backward(values, ds):
        x, scale = values
        # divided before it is spread out over x: XLA then does not compute it again for each entry
        return x * (1 / scale) * (2 * ds / scale), ops.zeros_like(scale)

    return _with_gradient(forward, backward)(x, ops.stop_gradient(scale))


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
    mean = weighted_mean(x, axes, weights, sum_replicas)
    rough = x - mean
    # what XLA for CPUs finds needed for two sums, it writes out; accelerators make one pass of it
    again = mean - x if for_cpu() else rough
    delta, squares = _means([rough, ops.square(again)], axes, weights, sum_replicas)
    # but for rounding it is zero, whatever x is
    delta = ops.stop_gradient(delta)
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
    present = {"gain": gain, "bias": bias}
    names = [name for name, value in present.items() if value is not None]

    def standardized(x):
        centered, mean, variance = centered_moments(x, axes, weights, sum_replicas)
        scale = ops.rsqrt(variance + epsilon)
        return centered * scale, scale, mean, variance

    def forward(x, *values):
        normalized, _, mean, variance = standardized(x)
        y = _affine(normalized, **dict(zip(names, values, strict=True)))
        return y, ops.stop_gradient(mean), ops.stop_gradient(variance)

    def backward(values, dy, *_):
        x, *values = values
        named = dict(zip(names, values, strict=True))
        normalized, scale, _, _ = standardized(x)
        h = _affine(dy, named.get("gain"))
        # along these axes gain and bias are the same: what is summed over them serves all sums
        shared = [a for a in axes if all(value.shape[a] == 1 for value in values)]
        flows = {"bias": total(dy, shared), "gain": total(dy * normalized, shared)}
        weighted = [h, h * normalized]
        if shared:
            weighted = [_affine(flow, named.get("gain")) for flow in flows.values()]
        sums = _summed(weighted, [a for a in axes if a not in shared], sum_replicas)
        share = 1.0 if weights is None else weights
        share = share / _counted(x, axes, weights, sum_replicas)
        dx = scale * (h - share * (sums[0] + normalized * sums[1]))
        return dx, *(_summed_to(named[name], flows[name]) for name in names)

    return _with_gradient(forward, backward)(x, *(present[name] for name in names))


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
    result. With u = w / N and c = b / N, what flows back to w is (u̇ − u·s) / N, and to b it is
    (ċ − c·s) / N, where s = Σ u̇·u + ċ·c.
    """
    if bias is None:
        return normalized_weight(w, ops.ones_like(w[..., :1]), axes), None

    def units(w, bias):
        inverse, length = _scaled_length(w, axes, bias)
        return w * inverse * (1 / length), bias * inverse / length, inverse, length

    def forward(w, bias):
        return units(w, bias)[:2]

    def backward(values, du, dc):
        u, c, inverse, length = units(*values)
        s = total(du * u, axes) + dc * c
        return (du - u * s) * (1 / length) * inverse, (dc - c * s) / length * inverse

    return _with_gradient(forward, backward)(w, bias)


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

    1 in place of what has no reciprocal within the dtype.
    """
    tiny = float(np.finfo(keras.backend.standardize_dtype(scale.dtype)).tiny)
    return ops.stop_gradient(ops.where(scale >= tiny, scale, ops.ones_like(scale)))


def _with_gradient(forward, backward):
    """forward(*values), whose gradient is backward(values, *upstream).

    On TensorFlow only, which takes that in every mode of differentiation and without XLA. JAX
    would refuse to differentiate the function in forward mode; it differentiates `forward`.
    """
    if keras.backend.backend() != "tensorflow":
        return forward

    @ops.custom_gradient
    def function(*values):
        return forward(*values), lambda *upstream: backward(values, *upstream)

    return function


def inverse_length(squares):
    """1 / sqrt(squares), and 0 (with gradient 0) where `squares` vanishes.

    A patch of zeros has no direction: its cosine is 0 and it asks nothing of the layer before.
    """
    vanishing = squares < _VANISHING
    return ops.where(
        vanishing, ops.zeros_like(squares), ops.rsqrt(ops.where(vanishing, 1.0, squares))
    )
