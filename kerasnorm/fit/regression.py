"""Least squares from streamed sums."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

# Of so many, sums of products are precise enough in float32.
_ROWS_AT_ONCE = 4096


class ChannelwiseRegression:
    """For each channel the line t ≈ gain · z + bias of least squares.

    Rows are added in parts of shape (rows, channels).
    """

    def __init__(self):
        self._sums: Any = 0.0

    def add(self, z: np.ndarray, t: np.ndarray) -> None:
        z, t = z.astype(np.float64), t.astype(np.float64)
        ones = np.ones_like(z)
        self._sums = self._sums + np.stack([a.sum(0) for a in (ones, z, t, z * z, z * t)])

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        """(gain, bias); where z does not vary, gain 0 and the mean of t."""
        n, z, t, zz, zt = self._sums
        variance = zz - z * z / n
        flat = variance <= 1e-12 * np.abs(zz)
        gain = np.where(flat, 0.0, (zt - z * t / n) / np.where(flat, 1.0, variance))
        return gain, (t - gain * z) / n


class RidgeRegression:
    """For each of several groups the linear map y ≈ x·u + b, drawn toward a given one.

        min_u Σ ‖y − x·u − b‖² + λ ‖u − u₀‖²

    Rows are added in parts of shape (groups, rows, size) and (groups, rows, units). While they are
    fewer than the features they are kept, since the problem is then as small as they are few;
    after that their sums are. The offset b is not drawn anywhere. λ is given as a share of the
    features' mean square, so that what is rank-deficient, dead or constant stays at u₀.

    Products of rows are taken in float32, which halves the time, of what the rows are beyond the
    mean of the first part and in units of its deviation; a few thousand rows at a time, whose sums
    are added up in float64. They are known to some 1e-6 of the features' mean square.
    """

    def __init__(self):
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._n = 0
        self._frames: Any = None  # of x and y
        self._sums: Any = None  # of x and y
        self._xx: Any = None
        self._xy: Any = 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        self._frames = self._frames or (_Frame.of(x), _Frame.of(y))
        x, y = (frame.inside(rows) for frame, rows in zip(self._frames, (x, y), strict=True))
        self._n += x.shape[1]
        added = [rows.sum(1, dtype=np.float64) for rows in (x, y)]
        before = self._sums or (0.0, 0.0)
        self._sums = tuple(a + b for a, b in zip(before, added, strict=True))
        self._parts.append((x, y))
        if self._xx is not None or self._n > x.shape[2]:
            self._sum_up()

    def solve(self, prior: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        """(u, b) for u₀ = `prior` and λ = `share` · mean square of the centred features · rows."""
        of_x, of_y = self._frames
        means = [sums / self._n for sums in self._sums]
        units = of_x.unit / of_y.unit
        solve = self._from_rows if self._xx is None else self._from_sums
        u = prior + solve(prior * units, share, *means) / units
        mean_x, mean_y = (f.outside(m) for f, m in zip(self._frames, means, strict=True))
        return u, mean_y - (mean_x[:, None, :] @ u)[:, 0]

    def _sum_up(self) -> None:
        for x, y in self._parts:
            for first in range(0, x.shape[1], _ROWS_AT_ONCE):
                rows = slice(first, first + _ROWS_AT_ONCE)
                transposed = x[:, rows].transpose(0, 2, 1)
                products = (transposed @ x[:, rows]).astype(np.float64)
                self._xx = products if self._xx is None else self._xx + products
                self._xy = self._xy + (transposed @ y[:, rows]).astype(np.float64)
        self._parts.clear()

    def _from_sums(self, prior, share: float, mean_x, mean_y) -> np.ndarray:
        """(XᵀX + λ)⁻¹ Xᵀ(Y − X·u₀)."""
        gram = self._xx - self._n * mean_x[:, :, None] * mean_x[:, None, :]
        cross = self._xy - self._n * mean_x[:, :, None] * mean_y[:, None, :] - gram @ prior
        diagonal = np.arange(gram.shape[-1])
        penalty = _penalty(share, gram, gram.shape[-1])
        gram[:, diagonal, diagonal] += penalty[:, None]
        return np.linalg.solve(gram, cross)

    def _from_rows(self, prior, share: float, mean_x, mean_y) -> np.ndarray:
        """The same as Xᵀ (XXᵀ + λ)⁻¹ (Y − X·u₀)."""
        parts = [
            np.concatenate(column, 1, dtype=np.float64) for column in zip(*self._parts, strict=True)
        ]
        x, y = (p - m[:, None, :] for p, m in zip(parts, (mean_x, mean_y), strict=True))
        inner = x @ x.transpose(0, 2, 1)
        diagonal = np.arange(inner.shape[-1])
        penalty = _penalty(share, inner, x.shape[-1])
        inner[:, diagonal, diagonal] += penalty[:, None]
        return x.transpose(0, 2, 1) @ np.linalg.solve(inner, y - x @ prior)


@dataclass(frozen=True)
class _Frame:
    """What numbers are counted from, and in which unit, so that float32 is precise for them.

    Attributes:
        origin: (groups, size).
        unit: (groups, 1, 1).
    """

    origin: np.ndarray
    unit: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray) -> _Frame:
        origin = rows.mean(1, dtype=np.float64)
        unit = (rows - origin[:, None]).std((1, 2), keepdims=True)
        return cls(origin, np.where(unit > 0, unit, 1.0))

    def inside(self, rows: np.ndarray) -> np.ndarray:
        return ((rows - self.origin[:, None]) / self.unit).astype(np.float32)

    def outside(self, mean: np.ndarray) -> np.ndarray:
        return self.origin + mean * self.unit[:, 0]


def _penalty(share: float, products: np.ndarray, size: int) -> np.ndarray:
    """λ of each group; any positive number where its features are all constant."""
    power = np.trace(products, axis1=1, axis2=2) / size
    return share * np.where(power > 0, power, 1.0)
