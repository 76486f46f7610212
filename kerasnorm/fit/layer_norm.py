"""Fit a LayerNorm or GroupNorm and the linear layer in front of it.

With μ_n, σ_n the statistics of the map U·x + c as it is, d_n = sqrt(σ_n² + ε), ḡ = mean d_n and
s = ±1 the sign of the gain,

    s·t ≈ ḡ·(U·x + c − μ_n)/d_n + b

is linear in U and b: the regression of s·t + ḡ·(μ_n − c)/d_n on ḡ·x/d_n. Where the d_n of several
groups of channels differ, all are regressed on x/D_n, D_n their geometric mean, which the error of
each is weighed by: s·(t − β)·d_n/D_n takes the place of s·t, with the bias β as it was. Gain and
bias follow by least squares, with U and without. Of several ε, the first for which that keeps
enough is taken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kerasnorm.fit.damping import first_enough
from kerasnorm.fit.gain_and_bias import fit_gain_and_bias
from kerasnorm.fit.im2col import Im2Col, as_float64
from kerasnorm.fit.regression import ChannelwiseRegression, RidgeRegression
from kerasnorm.fit.sampling import FitData, HeldOutRows, Sampling, parts_of
from kerasnorm.graph.activation_store import as_array
from kerasnorm.layers.sample_norm import SampleNorm
from kerasnorm.math.r_squared import r_squared

# The share of the features' mean square that the kernel is drawn to where it came from.
_KERNEL_SHARE = 1e-2


def fit_layer_norm(
    plain: Any, norm: Any, data: FitData, sampling: Sampling, epsilons: Sequence[float]
) -> tuple[float, int]:
    """Fit kernel, gain and bias; a step is kept where it fits held-out rows better.

    Args:
        plain: The linear layer, which takes no activation and whose kernel is set.
        norm: The LayerNorm or GroupNorm that alone reads it; its gain, bias and ε are set.
        data: See `FitData`.
        sampling: See `Sampling`.
        epsilons: The ε to try.

    Returns:
        R² on held-out rows, and which ε was taken.
    """
    im2col = Im2Col(plain)
    start = (as_float64(norm.gamma), as_float64(norm.beta))
    kernel, bias = im2col.matrix(), as_float64(plain.bias)
    tried = _pass_over(plain, norm, im2col, data, sampling, epsilons, start)
    choice = first_enough([sums.expected_score(kernel) for sums in tried])
    norm.epsilon = float(epsilons[choice])
    before = tried[choice]
    candidates = [
        (before.score(*start), start, kernel),
        (before.score(*before.line), before.line, kernel),
    ]
    refitted = before.refitted(kernel)
    if refitted is not None:
        im2col.assign(refitted)
        [after] = _pass_over(plain, norm, im2col, data, sampling, [norm.epsilon])
        candidates.append((after.score(*after.line), after.line, refitted))
    score, (gain, shift), matrix = max(candidates, key=lambda candidate: candidate[0])
    im2col.assign(matrix)
    plain.bias.assign(bias)
    norm.gamma.assign(gain.reshape(norm.gamma.shape))
    norm.beta.assign(shift.reshape(norm.beta.shape))
    return score, choice


def fit_layer_norm_alone(
    norm: Any, data: FitData, sampling: Sampling, epsilons: Sequence[float]
) -> tuple[float, int]:
    """Fit gain and bias only, of a norm that no linear layer is fitted with.

    Args and returns as `fit_layer_norm` has them.
    """
    start = norm.get_weights()
    scores, fitted = [], []
    for epsilon in epsilons:
        norm.epsilon = float(epsilon)
        norm.set_weights(start)
        scores.append(fit_gain_and_bias(norm, data, sampling))
        fitted.append(norm.get_weights())
    choice = first_enough(scores)
    norm.epsilon = float(epsilons[choice])
    norm.set_weights(fitted[choice])
    return scores[choice], choice


def _pass_over(
    plain: Any,
    norm: SampleNorm,
    im2col: Im2Col,
    data: FitData,
    sampling: Sampling,
    epsilons: Sequence[float],
    start: tuple[np.ndarray, np.ndarray] | None = None,
) -> list[_Sums]:
    """One pass over the data, for several ε; with gain and bias as they are, for a new kernel."""
    found = [_Sums(im2col, epsilon) for epsilon in epsilons]
    of_start = None if start is None else _signs_and_shift(im2col, *start)
    first = 0
    for number, (x, t) in enumerate(data()):
        step = sampling.step(im2col.output_shape(x), im2col.size)
        if number % step:
            first += len(x)
            continue
        y = plain(x)
        center, variance = map(as_array, norm.statistics(y))
        y = as_array(y)
        index = im2col.sample(y.shape, step * sampling.rows(im2col.size), sampling.random)
        parts = parts_of(index, first)
        first += len(x)
        value, target, at_center, at_variance = (
            im2col.outputs(np.broadcast_to(v, y.shape), index).astype(np.float64)
            for v in (y, t, center, variance)
        )
        for sums in found:
            sums.add(value - at_center, at_variance, target, parts)
        if of_start is not None:
            (signs, shift), rows = of_start, im2col.inputs(x, index)
            known = at_center - im2col.bias()[:, None]
            for sums in found:
                sums.add_rows(rows, at_variance, target * signs, known, shift, parts)
    return found


def _signs_and_shift(
    im2col: Im2Col, gain: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """s and s·β, as (groups, 1, units)."""
    signs = np.where(gain < 0, -1.0, 1.0)
    grouped = [im2col.grouped(value.reshape(1, -1)) for value in (signs, signs * bias)]
    return grouped[0], grouped[1]


class _Sums:
    """For one ε: the mean divisors, the line from z to t, and the sums for a new kernel."""

    def __init__(self, im2col: Im2Col, epsilon: float):
        self._im2col, self._epsilon = im2col, epsilon
        self._line, self._ridge = ChannelwiseRegression(), RidgeRegression()
        self._held, self._held_rows = HeldOutRows(), HeldOutRows()
        self._divisors, self._count = np.zeros(()), 0

    def add(self, centered, variance, target, parts) -> None:
        fitted, chooses = parts
        divisor = np.sqrt(variance + self._epsilon)
        self._divisors = self._divisors + divisor.sum(1)
        self._count += divisor.shape[1]
        flat, z = self._im2col.flat, centered / _safe(divisor)
        self._line.add(flat(z[:, fitted]), flat(target[:, fitted]))
        self._held.add(z=z[:, chooses], t=target[:, chooses])

    def add_rows(self, rows, variance, target, known, shift, parts) -> None:
        fitted, chooses = parts
        divisor = _safe(np.sqrt(variance + self._epsilon))
        first = divisor[:, :, :1]
        common = first * np.exp(np.mean(np.log(divisor / first), 2, keepdims=True))
        scaled, known = rows / common, known / common
        target = (target - shift) * (divisor / common) + shift
        wanted = np.concatenate([target, known], axis=2)
        self._ridge.add(scaled[:, fitted], wanted[:, fitted])
        self._held_rows.add(x=scaled[:, chooses], t=target[:, chooses], m=known[:, chooses])

    @property
    def _mean_divisors(self) -> np.ndarray:
        """ḡ of each channel, as (groups, 1, units)."""
        return (self._divisors / max(self._count, 1))[:, None]

    @property
    def line(self) -> tuple[np.ndarray, np.ndarray]:
        return self._line.solve()

    def score(self, gain: np.ndarray, bias: np.ndarray) -> float:
        z, t = self._im2col.flat(self._held["z"]), self._im2col.flat(self._held["t"])
        return r_squared(t, z * gain.reshape(-1) + bias.reshape(-1))

    def refitted(self, prior: np.ndarray) -> np.ndarray | None:
        """A new kernel, drawn toward the old one; None where the map does not vary."""
        if not self._mean_divisors.all():
            return None
        (to_target, to_mean), _ = self._solved(prior)
        return to_target / self._mean_divisors + to_mean

    def expected_score(self, prior: np.ndarray) -> float:
        """R² on held-out rows with a new kernel, as long as d_n stays what it is."""
        if not self._mean_divisors.all():
            return -np.inf
        (to_target, to_mean), (of_target, of_mean) = self._solved(prior)
        scale, x, known = self._mean_divisors, self._held_rows["x"], self._held_rows["m"]
        answer = x @ (to_target + scale * to_mean) - scale * known
        answer += of_target[:, None] + scale * of_mean[:, None]
        flat = self._im2col.flat
        return r_squared(flat(self._held_rows["t"]), flat(answer))

    def _solved(self, prior: np.ndarray) -> tuple[Any, Any]:
        """Kernels and offsets that give s·t, and (μ_n − c)/d_n, of x/d_n."""
        # s·t and ḡ·(μ_n − c)/d_n have the same features, so that their kernels add up
        both = np.concatenate([prior * self._mean_divisors, np.zeros_like(prior)], axis=2)
        matrix, offset = self._ridge.solve(both, _KERNEL_SHARE)
        return np.split(matrix, 2, axis=2), np.split(offset, 2, axis=1)


def _safe(divisor: np.ndarray) -> np.ndarray:
    return np.where(divisor > 0, divisor, 1.0)
