"""The mathematics of the four normalizations: pure functions on tensors.

All of them are instances of one formula,

    h = f( g · (x − μ) / σ + b )

and differ in the set over which μ and σ are taken. Here are those that take a mean off; what
divides by the length of a vector is in `norms.py`. Nothing holds state or knows about layers;
everything is written in `keras.ops` and compiled by XLA.
"""

from __future__ import annotations

from collections.abc import Sequence

from keras import ops

from kerasnorm.math.custom_gradient import with_gradient
from kerasnorm.math.sums import count, for_cpu, total

# What does not count may hold anything (the lowest number of its dtype, say). Beyond this its
# square, or its quotient by a small deviation, could overflow, and 0 · ∞ in a gradient is NaN.
_MASKED_LIMIT = 1e15


def affine(x, gain=None, bias=None):
    """gain · x + bias, both of as many axes as x and broadcast against it; either may be None.

    Along an axis where they have size 1, what flows back to them is summed.
    """

    def backward(values, dy):
        x, gain, bias = values
        dgain = None if gain is None else _summed_to(gain, dy * x)
        return _affine(dy, gain), dgain, None if bias is None else _summed_to(bias, dy)

    return with_gradient(_affine, backward)(x, gain, bias)


def _affine(x, gain=None, bias=None):
    if gain is not None:
        x = x * gain
    return x if bias is None else x + bias


def _summed_to(value, flow):
    """What flows back to a value that was broadcast to the shape of `flow`."""
    sizes = zip(value.shape, flow.shape, strict=True)
    return total(flow, [axis for axis, (of, along) in enumerate(sizes) if of == 1 and along != 1])


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
    x is (h − (Σh + x̂·Σ(h·x̂)) / n) / sqrt(v + ε), of which an entry with weight 0 has the first
    term only. On TensorFlow, x̂ is computed again from x and nothing but x is kept. No gradient
    flows through μ and v as they are returned.

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

    def standardized(x):
        centered, mean, variance = centered_moments(x, axes, weights, sum_replicas)
        scale = ops.rsqrt(variance + epsilon)
        return centered * scale, scale, mean, variance

    def forward(x, gain, bias):
        normalized, _, mean, variance = standardized(x)
        y = _affine(normalized, gain, bias)
        return y, ops.stop_gradient(mean), ops.stop_gradient(variance)

    def backward(values, dy, *_):
        x, gain, bias = values
        normalized, scale, _, _ = standardized(x)
        h = _affine(dy, gain)
        # along these axes gain and bias are the same: what is summed over them serves all sums
        present = [value for value in (gain, bias) if value is not None]
        shared = [a for a in axes if all(value.shape[a] == 1 for value in present)]
        dbias, dgain = total(dy, shared), total(dy * normalized, shared)
        weighted = [_affine(dbias, gain), _affine(dgain, gain)] if shared else [h, h * normalized]
        sums = [total(t, [a for a in axes if a not in shared]) for t in weighted]
        if weights is None:
            back = (sums[0] + normalized * sums[1]) / count(x, axes)
        else:
            counts = ops.broadcast_to(weights, ops.shape(x))
            counted = ops.maximum(total(counts, axes), 1.0)
            back = counts * (sums[0] + normalized * sums[1]) / counted
        dx = scale * (h - back)
        dgain = None if gain is None else _summed_to(gain, dgain)
        return dx, dgain, None if bias is None else _summed_to(bias, dbias)

    if sum_replicas is not None:
        # to compute it all again would take the sums over the replicas again as well
        return forward(x, gain, bias)
    return with_gradient(forward, backward)(x, gain, bias)


def _tamed(x, weights):
    """x with zeros where an entry that does not count could overflow."""
    if weights is None:
        return x
    counts = ops.broadcast_to(weights, ops.shape(x)) > 0
    return ops.where(ops.logical_or(counts, ops.abs(x) < _MASKED_LIMIT), x, ops.zeros_like(x))


def _means(tensors, axes, weights, sum_replicas):
    counted = None
    if weights is not None:
        weights = ops.broadcast_to(weights, ops.shape(tensors[0]))
        tensors = [ops.where(weights > 0, t, ops.zeros_like(t)) for t in tensors]
        counted = weights
    elif sum_replicas is not None:
        counted = ops.ones_like(tensors[0])
    sums = [total(t, axes) for t in tensors]
    if counted is None:
        return [t / count(tensors[0], axes) for t in sums]
    sums.append(total(counted, axes))
    *sums, counted = sums if sum_replicas is None else sum_replicas(sums)
    return [t / ops.maximum(counted, 1.0) for t in sums]


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
