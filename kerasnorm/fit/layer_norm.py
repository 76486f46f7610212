"""Fit a LayerNorm and the linear layer in front of it.

With μ_n, σ_n the statistics of the map U·x + c as it is, d_n = sqrt(σ_n² + ε) and ḡ = mean d_n,

    t ≈ ḡ·(U·x + c − μ_n)/d_n + b

is linear in U and b: the regression of t + ḡ·(μ_n − c)/d_n on ḡ·x/d_n. Gain and bias follow by
least squares, with U and without.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from kerasnorm.fit.im2col import Im2Col, as_float64
from kerasnorm.fit.regression import ChannelwiseRegression, RidgeRegression
from kerasnorm.fit.sampling import FitData, HeldOutRows, Sampling, parts_of
from kerasnorm.graph.activation_store import as_array
from kerasnorm.layers import LayerNorm
from kerasnorm.math.r_squared import r_squared

# The share of the features' mean square that the kernel is drawn to where it came from.
_KERNEL_SHARE = 1e-2


def fit_layer_norm(plain: Any, norm: Any, data: FitData, sampling: Sampling) -> float:
    """Fit kernel, gain and bias; a step is kept where it fits held-out rows better.

    Args:
        plain: The linear layer, which takes no activation and whose kernel is set.
        norm: The LayerNorm that alone reads it; its gain and bias are set.
        data: See `FitData`.
        sampling: See `Sampling`.

    Returns:
        R² on held-out rows.
    """
    im2col = Im2Col(plain)
    start = (as_float64(norm.gamma), as_float64(norm.beta))
    before = _LayerNormPass(plain, norm, im2col, data, sampling, regress=True)
    kernel, bias = im2col.matrix(), as_float64(plain.bias)
    candidates = [
        (before.score(*start), start, kernel),
        (before.score(*before.line), before.line, kernel),
    ]
    refitted = before.refitted(kernel)
    if refitted is not None:
        im2col.assign(refitted)
        after = _LayerNormPass(plain, norm, im2col, data, sampling)
        candidates.append((after.score(*after.line), after.line, refitted))
    score, (gain, shift), matrix = max(candidates, key=lambda candidate: candidate[0])
    im2col.assign(matrix)
    plain.bias.assign(bias)
    norm.gamma.assign(gain.reshape(norm.gamma.shape))
    norm.beta.assign(shift.reshape(norm.beta.shape))
    return score


class _LayerNormPass:
    """One pass over the data: statistics of the map, line from z to t, sums for a new kernel."""

    def __init__(self, plain, norm, im2col: Im2Col, data, sampling: Sampling, regress=False):
        self._im2col = im2col
        self._line, self._ridge = ChannelwiseRegression(), RidgeRegression()
        self._held = HeldOutRows()
        divisors: list[np.ndarray] = []
        first = 0
        for number, (x, t) in enumerate(data()):
            step = sampling.step(im2col.output_shape(x), im2col.size)
            if number % step:
                first += len(x)
                continue
            y = plain(x)
            center, divisor = _center_and_divisor(norm, y)
            divisors.append(divisor.reshape(len(x), -1).mean(1, dtype=np.float64))
            y = as_array(y)
            index = im2col.sample(y.shape, step * sampling.rows(im2col.size), sampling.random)
            fitted, chooses = parts_of(index, first)
            first += len(x)
            value, target, center, divisor = (
                im2col.outputs(np.broadcast_to(v, y.shape), index).astype(np.float64)
                for v in (y, t, center, divisor)
            )
            safe = np.where(divisor > 0, divisor, 1.0)
            z = (value - center) / safe
            self._line.add(im2col.flat(z[:, fitted]), im2col.flat(target[:, fitted]))
            self._held.add(z=z[:, chooses], t=target[:, chooses])
            if regress:
                scaled = im2col.inputs(x, index) / safe[:, :, :1]
                known = (center - im2col.bias()[:, None]) / safe
                wanted = np.concatenate([target, known], axis=2)
                self._ridge.add(scaled[:, fitted], wanted[:, fitted])
        self.mean_divisor = float(np.concatenate(divisors).mean())
        self.line = self._line.solve()

    def score(self, gain: np.ndarray, bias: np.ndarray) -> float:
        z, t = self._im2col.flat(self._held["z"]), self._im2col.flat(self._held["t"])
        return r_squared(t, z * gain.reshape(-1) + bias.reshape(-1))

    def refitted(self, prior: np.ndarray) -> np.ndarray | None:
        """A new kernel, drawn toward the old one; None where the map does not vary."""
        scale = self.mean_divisor
        if not scale:
            return None
        # of (t + ḡ·m) on ḡ·x: t and m have the same features, so that their kernels add up
        both = np.concatenate([prior * scale, np.zeros_like(prior)], axis=2)
        to_target, to_mean = np.split(self._ridge.solve(both, _KERNEL_SHARE)[0], 2, axis=2)
        return to_target / scale + to_mean


def _center_and_divisor(norm: LayerNorm, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """What a LayerNorm subtracts, and what it divides by."""
    axes = tuple(range(1, len(y.shape))) if norm.axis == "sample" else norm.axis
    y = ops.cast(y, keras.backend.result_type(y.dtype, "float32"))
    center, variance = ops.moments(y, axes, keepdims=True)
    square = ops.convert_to_numpy(variance).astype(np.float64) + norm.epsilon
    return ops.convert_to_numpy(center), np.sqrt(square)
