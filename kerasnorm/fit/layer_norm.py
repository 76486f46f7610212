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

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from kerasnorm.fit.damping import first_enough
from kerasnorm.fit.gain_and_bias import fit_gain_and_bias
from kerasnorm.fit.im2col import Im2Col, as_float64
from kerasnorm.fit.regression import ChannelwiseRegression, RidgeRegression
from kerasnorm.fit.sampling import FitData, Rows, Sampling, parts_of
from kerasnorm.graph.activation_store import as_array
from kerasnorm.layers.sample_norm import SampleNorm
from kerasnorm.math.r_squared import r_squared

# The share of the features' mean square that the kernel is drawn to where it came from.
_KERNEL_SHARE = 1e-2
# What a new kernel is fitted by.
_OF_REFIT = ("x", "t", "center", "variance")
# Gain and bias of each channel.
Line = tuple[np.ndarray, np.ndarray]


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
    rows = _rows(plain, norm, im2col, data, sampling, with_inputs=True)
    choice, every = 0, rows.thinning(im2col.size)
    tried: list[_Refit] = []
    if len(epsilons) > 1:

        def score_of(epsilon: float) -> float:
            tried.append(_Refit(im2col, rows, epsilon, start, kernel, every))
            return tried[-1].expected_score()

        choice = first_enough(map(score_of, epsilons))
    norm.epsilon = float(epsilons[choice])
    line = _line(im2col, rows, norm.epsilon)
    candidates = [
        (_score(im2col, rows, norm.epsilon, start), start, kernel),
        (_score(im2col, rows, norm.epsilon, line), line, kernel),
    ]
    of_all = every == 1 and tried
    refit = tried[choice] if of_all else _Refit(im2col, rows, norm.epsilon, start, kernel)
    refitted = refit.kernel()
    if refitted is not None:
        im2col.assign(refitted)
        rows = _rows(plain, norm, im2col, data, sampling)
        line = _line(im2col, rows, norm.epsilon)
        candidates.append((_score(im2col, rows, norm.epsilon, line), line, refitted))
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

    def score(epsilon: float) -> float:
        norm.epsilon = float(epsilon)
        norm.set_weights(start)
        scores.append(fit_gain_and_bias(norm, data, sampling))
        fitted.append(norm.get_weights())
        return scores[-1]

    choice = first_enough(map(score, epsilons))
    norm.epsilon = float(epsilons[choice])
    norm.set_weights(fitted[choice])
    return scores[choice], choice


def _rows(
    plain: Any,
    norm: SampleNorm,
    im2col: Im2Col,
    data: FitData,
    sampling: Sampling,
    with_inputs: bool = False,
) -> Rows:
    """Of the map as it is, at some positions: y − μ, μ, σ², t; and on request x."""
    rows, first = Rows(), 0
    count = sampling.rows(im2col.size, im2col.width)
    for number, (x, t) in enumerate(data()):
        step = sampling.step(im2col.output_shape(x), count)
        if number % step:
            first += len(x)
            continue
        y = plain(x)
        statistics = [as_array(value) for value in norm.statistics(y)]
        y = as_array(y)
        index = im2col.sample(y.shape, step * count, sampling.random)
        parts = parts_of(index, first)
        first += len(x)
        value, target = (im2col.outputs(v, index).astype(np.float64) for v in (y, t))
        center, variance = (_narrow(im2col, v, y.shape, index) for v in statistics)
        inputs = {"x": im2col.inputs(x, index)} if with_inputs else {}
        rows.add(parts, y=value - center, center=center, variance=variance, t=target, **inputs)
    return rows


def _narrow(im2col: Im2Col, value: np.ndarray, shape: tuple[int, ...], index: Any) -> np.ndarray:
    """Statistics at some positions, (groups, rows, units), or 1 where all units share them."""
    one = value.shape[1 if im2col.channels_first else -1] == 1
    found = im2col.outputs(np.broadcast_to(value, shape), index).astype(np.float64)
    return found[:, :, :1] if one else found


def _line(im2col: Im2Col, rows: Rows, epsilon: float) -> Line:
    """Gain and bias of least squares."""
    line = ChannelwiseRegression()
    for part in rows.fitted():
        z = part["y"] / _divisor(part["variance"], epsilon)
        line.add(im2col.flat(z), im2col.flat(part["t"]))
    return line.solve()


def _score(im2col: Im2Col, rows: Rows, epsilon: float, line: Line) -> float:
    """R² on held-out rows."""
    held = rows.held
    z = im2col.flat(held["y"] / _divisor(held["variance"], epsilon))
    gain, bias = (value.reshape(-1) for value in line)
    return r_squared(im2col.flat(held["t"]), z * gain + bias)


class _Refit:
    """The regression for a new kernel, for one ε.

    Args:
        im2col: Of the linear layer.
        rows: What `_rows` gives, with x.
        epsilon: ε.
        start: Gain and bias as they are.
        prior: The kernel, which a new one is drawn toward.
        every: Of how many rows one is used.
    """

    def __init__(
        self,
        im2col: Im2Col,
        rows: Rows,
        epsilon: float,
        start: Line,
        prior: np.ndarray,
        every: int = 1,
    ):
        self._im2col, self._held, self._epsilon, self._prior = im2col, rows.held, epsilon, prior
        gain, bias = (value.reshape(1, -1) for value in start)
        signs = np.where(gain < 0, -1.0, 1.0)
        self._signs, self._shift = im2col.grouped(signs), im2col.grouped(signs * bias)
        self._ridge = RidgeRegression()
        divisors, count = np.zeros(()), 0
        for part in rows.fitted(every):
            x, target, known, divisor = self._weighted(part)
            self._ridge.add(x, np.concatenate([target, known], axis=2))
            divisors = divisors + divisor.sum(1, dtype=np.float64, keepdims=True)
            count += divisor.shape[1]
        # ḡ of each channel, or of all
        self._mean_divisors = divisors / max(count, 1)

    def kernel(self) -> np.ndarray | None:
        """A new kernel, drawn toward the old one; None where the map does not vary."""
        if not self._mean_divisors.all():
            return None
        (to_target, to_mean), _ = self._solved
        return to_target / self._mean_divisors + to_mean

    def expected_score(self) -> float:
        """R² on held-out rows with a new kernel, as long as d_n stays what it is."""
        if not self._mean_divisors.all():
            return -np.inf
        (to_target, to_mean), (of_target, of_mean) = self._solved
        x, target, known, _ = self._weighted({n: self._held[n] for n in _OF_REFIT})
        scale = self._mean_divisors
        answer = x @ (to_target + scale * to_mean) - scale * known
        answer += of_target[:, None] + scale * of_mean[:, None]
        flat = self._im2col.flat
        return r_squared(flat(target), flat(answer))

    def _weighted(self, part: Mapping[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """x/D, s·(t − β)·d/D + s·β, (μ − c)/D, and d."""
        divisor = _divisor(part["variance"], self._epsilon)
        first = divisor[:, :, :1]
        common = first * np.exp(np.mean(np.log(divisor / first), 2, keepdims=True))
        target = (part["t"] * self._signs - self._shift) * (divisor / common) + self._shift
        known = (part["center"] - self._im2col.bias()[:, None]) / common
        return part["x"] / common, target, known, divisor

    @functools.cached_property
    def _solved(self) -> tuple[Any, Any]:
        """Kernels and offsets that give s·t, and (μ_n − c)/d_n, of x/d_n."""
        # s·t and ḡ·(μ_n − c)/d_n have the same features, so that their kernels add up
        prior = self._prior
        both = np.concatenate([prior * self._mean_divisors, np.zeros_like(prior)], axis=2)
        matrix, offset = self._ridge.solve(both, _KERNEL_SHARE)
        return np.split(matrix, 2, axis=2), np.split(offset, 2, axis=1)


def _divisor(variance: np.ndarray, epsilon: float) -> np.ndarray:
    """d, or 1 where that is 0."""
    divisor = np.sqrt(variance + epsilon)
    return np.where(divisor > 0, divisor, 1.0)
