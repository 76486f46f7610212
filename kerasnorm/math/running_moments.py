"""Mean and variance of sets that arrive in parts."""

from __future__ import annotations

from typing import Any

import numpy as np


class RunningMoments:
    """Mean and variance per channel over everything that was added, merged in float64.

    Batches are merged by n = n₁ + n₂, μ = μ₁ + δ·n₂/n, M = M₁ + M₂ + δ²·n₁·n₂/n with
    δ = μ₂ − μ₁ and M the sum of squared deviations (Chan, Golub & LeVeque, 1979): however the
    data is cut into batches, the result is the same.
    """

    def __init__(self):
        self.count: Any = 0.0
        self.mean: Any = 0.0
        self.squares: Any = 0.0

    def add(self, count, mean, variance) -> None:
        """Add a set of `count` values with the given mean and variance (population, not sample).

        Channels with a count of 0 stay as they are.
        """
        total = self.count + count
        safe = np.where(total > 0, total, 1.0)
        with np.errstate(invalid="ignore"):  # infinities show in the variance
            delta = mean - self.mean
            self.mean = self.mean + delta * count / safe
            self.squares = self.squares + variance * count + delta**2 * self.count * count / safe
        self.count = total

    def add_rows(self, rows: np.ndarray) -> None:
        """Add rows of channels."""
        rows = rows.astype(np.float64)
        self.add(float(len(rows)), rows.mean(0), rows.var(0))

    @property
    def typical_variance(self) -> float:
        """The mean variance of a channel; 0 where that is rounding."""
        variance = float(np.mean(self.variance))
        square = variance + float(np.mean(np.square(self.mean)))
        return variance if variance > 1e-12 * square else 0.0

    @property
    def variance(self):
        return self.squares / np.where(self.count > 0, self.count, 1.0)
