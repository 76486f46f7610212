"""The share of a variance that is explained."""

from __future__ import annotations

import math

import numpy as np

from kerasnorm.math.running_moments import RunningMoments


class RSquared:
    """1 − Σ(t − t̂)² / Σ(t − mean of its channel)²; 1 where both are 0, NaN of no rows.

    Rows are added in parts of shape (rows, channels).
    """

    def __init__(self):
        self._residual = 0.0
        self._moments = RunningMoments()

    def add(self, expected: np.ndarray, received: np.ndarray) -> None:
        if not len(expected):
            return
        self._residual += float(np.square(expected.astype(np.float64) - received).sum())
        self._moments.add_rows(expected)

    @property
    def value(self) -> float:
        if not self._moments.count:
            return math.nan
        spread = float(np.sum(self._moments.squares))
        if spread == 0:
            return 1.0 if self._residual == 0 else 0.0
        return 1.0 - self._residual / spread


def r_squared(expected: np.ndarray, received: np.ndarray) -> float:
    """`RSquared` of rows × channels."""
    found = RSquared()
    found.add(expected, received)
    return found.value
