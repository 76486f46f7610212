"""Differences of two models' outputs sample by sample, and intervals for what holds on others."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from kerasnorm.compare.measures import as_rows

# Of a normal distribution, for 95 %.
_DEVIATIONS = 1.96


class SampleSums:
    """What one output of a model has in each sample beside another model's, as sums in float64."""

    def __init__(self) -> None:
        self._parts: list[tuple[np.ndarray, ...]] = []
        self._origin: np.ndarray | None = None

    def add(self, expected: np.ndarray, received: np.ndarray, axis: int, samples: int) -> None:
        """Add samples; places where the source overflows do not count.

        Args:
            expected: The source's output.
            received: The other's.
            axis: The channel axis.
            samples: How many there are; each has as many rows.
        """
        t, other = (as_rows(y, axis).astype(np.float64) for y in (expected, received))
        finite = np.asarray(np.isfinite(t).all(1))
        if self._origin is None and finite.any():
            self._origin = t[finite][0]  # squares of a large offset would leave few digits
        origin = 0.0 if self._origin is None else self._origin
        weight = finite[:, None]
        residual = np.square(np.where(weight, t - other, 0.0))
        centered = np.where(weight, t - origin, 0.0)

        self._parts.append(
            (
                by_sample(residual, samples).sum(1).sum(1),
                by_sample(weight.astype(np.float64), samples).sum(1),
                by_sample(centered, samples).sum(1),
                by_sample(np.square(centered), samples).sum(1),
            )
        )

    def of_samples(self) -> tuple[np.ndarray, np.ndarray]:
        """Of each sample Σ (t − t̂)², and Σ (t − mean of its channel)²."""
        residual, count, sums, squares = map(np.concatenate, zip(*self._parts, strict=True))
        mean = sums.sum(0) / max(1.0, count.sum())
        return residual, (squares - 2 * mean * sums + count * mean**2).sum(1)

    @property
    def r_squared(self) -> float:
        """1 − Σ(t − t̂)² / Σ(t − mean)²; 1 where both are 0, NaN where nothing counts."""
        if not any(part[1].any() for part in self._parts):
            return math.nan
        residual, spread = (float(values.sum()) for values in self.of_samples())
        if spread <= 0:
            return 1.0 if residual == 0 else 0.0
        return 1.0 - residual / spread

    @property
    def differences(self) -> np.ndarray:
        """The mean square of each sample's difference over that of the source's deviation.

        Infinite where the other model's output is not finite.
        """
        residual, spread = self.of_samples()
        residual = np.where(np.isfinite(residual), residual, np.inf)
        scale = float(spread.mean())
        if scale <= 0:
            return np.where(residual == 0, 0.0, np.inf)
        return residual / scale


def by_sample(rows: np.ndarray, samples: int) -> np.ndarray:
    """Rows of an output as (samples, rows of each, channels).

    Where they cannot be told apart, each sample has their mean.
    """
    if len(rows) % samples:
        return np.repeat(rows.mean(0)[None, None], samples, axis=0)
    return rows.reshape(samples, -1, rows.shape[-1])


def share_interval(shares: np.ndarray) -> tuple[float, float]:
    """Where the mean of shares is with a probability of about 95 %, by Wilson's score.

    Args:
        shares: One for each sample: 0 or 1, or the share of its places.

    Reference: Wilson, 1927, Journal of the American Statistical Association 22, 209-212.
    """
    count, mean = len(shares), float(shares.mean())
    variance = float(shares.var())
    # as many samples of yes or no as tell as much
    number = max(count, count * mean * (1 - mean) / variance) if variance > 0 else count
    square = _DEVIATIONS**2 / number
    center = (mean + square / 2) / (1 + square)
    half = math.sqrt(mean * (1 - mean) * square + square**2 / 4) / (1 + square)
    return max(0.0, center - half), min(1.0, center + half)


def fit_interval(outputs: Sequence[SampleSums]) -> tuple[float, float]:
    """Where the mean R² of some outputs is with a probability of about 95 %, to first order."""
    shifts, fits = [], []
    for output in outputs:
        residual, spread = output.of_samples()
        total = float(spread.sum())
        fits.append(output.r_squared)
        if total > 0:
            shifts.append((residual - residual.sum() / total * spread) / total)
    fit = float(np.mean(fits))
    if not shifts:
        return fit, fit
    shift = np.sum(shifts, 0) / len(outputs)
    count = len(shift)
    half = _DEVIATIONS * math.sqrt(count / max(1, count - 1) * float(np.square(shift).sum()))
    return fit - half, min(1.0, fit + half)
