"""Fit a LayerNorm and the linear layer in front of it.

With μ_n, σ_n the statistics of the map U·x + c as it is and ḡ = mean σ_n,

    t ≈ ḡ·(U·x + c − μ_n)/σ_n + b

is linear in U and b: the regression of t + ḡ·(μ_n − c)/σ_n on ḡ·x/σ_n. Gain and bias follow by
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
_LEAST_EPSILON = 1e-5


def fit_layer_norm(plain: Any, norm: Any, data: FitData, sampling: Sampling, share: float) -> float:
    """Fit kernel, gain and bias; a step is kept where it fits held-out rows better.

    Args:
        plain: The linear layer, which takes no activation and whose kernel is set.
        norm: The LayerNorm that alone reads it; its gain and bias are set.
        data: See `FitData`.
        sampling: See `Sampling`.
        share: Damping: ε as a share of the mean σ².

    Returns:
        R² on held-out rows.
    """
    im2col = Im2Col(plain)
    start = (as_float64(norm.gamma), as_float64(norm.beta))
    before = _LayerNormPass(plain, norm, im2col, data, sampling, regress=True)
    norm.epsilon = max(share, _LEAST_EPSILON) * before.mean_square or norm.epsilon
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
        deviations: list[np.ndarray] = []
        first = 0
        for number, (x, t) in enumerate(data()):
            step = sampling.step(im2col.output_shape(x), im2col.size)
            if number % step:
                first += len(x)
                continue
            y = plain(x)
            center, deviation = _moments(norm, y)
            deviations.append(deviation.reshape(len(x), -1).mean(1, dtype=np.float64))
            y = as_array(y)
            index = im2col.sample(y.shape, step * sampling.rows(im2col.size), sampling.random)
            fitted, chooses = parts_of(index, first)
            first += len(x)
            value, target, center, deviation = (
                im2col.outputs(np.broadcast_to(v, y.shape), index).astype(np.float64)
                for v in (y, t, center, deviation)
            )
            z = (value - center) / np.sqrt(np.square(deviation) + norm.epsilon)
            self._line.add(im2col.flat(z[:, fitted]), im2col.flat(target[:, fitted]))
            self._held.add(z=z[:, chooses], t=target[:, chooses])
            if regress:
                safe = np.where(deviation > 0, deviation, 1.0)
                scaled = im2col.inputs(x, index) / safe[:, :, :1]
                known = (center - im2col.bias()[:, None]) / safe
                wanted = np.concatenate([target, known], axis=2)
                self._ridge.add(scaled[:, fitted], wanted[:, fitted])
        every = np.concatenate(deviations)
        self.mean_deviation = float(every.mean())
        self.mean_square = float(np.square(every).mean())
        self.line = self._line.solve()

    def score(self, gain: np.ndarray, bias: np.ndarray) -> float:
        z, t = self._im2col.flat(self._held["z"]), self._im2col.flat(self._held["t"])
        return r_squared(t, z * gain.reshape(-1) + bias.reshape(-1))

    def refitted(self, prior: np.ndarray) -> np.ndarray | None:
        """A new kernel, drawn toward the old one; None where the map does not vary."""
        scale = self.mean_deviation
        if not scale:
            return None
        # of (t + ḡ·m) on ḡ·x: t and m have the same features, so that their kernels add up
        both = np.concatenate([prior * scale, np.zeros_like(prior)], axis=2)
        to_target, to_mean = np.split(self._ridge.solve(both, _KERNEL_SHARE)[0], 2, axis=2)
        return to_target / scale + to_mean


def _moments(norm: LayerNorm, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation over what a LayerNorm normalizes together."""
    axes = tuple(range(1, len(y.shape))) if norm.axis == "sample" else norm.axis
    y = ops.cast(y, keras.backend.result_type(y.dtype, "float32"))
    center, variance = ops.moments(y, axes, keepdims=True)
    return ops.convert_to_numpy(center), np.sqrt(ops.convert_to_numpy(variance))
