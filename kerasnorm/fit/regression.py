"""Least squares from streamed sums, in float64."""

from __future__ import annotations

from typing import Any

import numpy as np


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
    """

    def __init__(self):
        self._parts: list[tuple[np.ndarray, np.ndarray]] = []
        self._n = 0
        self._x: Any = 0.0
        self._y: Any = 0.0
        self._xx: Any = None
        self._xy: Any = 0.0

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        x, y = x.astype(np.float64), y.astype(np.float64)
        self._n += x.shape[1]
        self._x = self._x + x.sum(1)
        self._y = self._y + y.sum(1)
        self._parts.append((x, y))
        if self._xx is not None or self._n > x.shape[2]:
            self._sum_up()

    def solve(self, prior: np.ndarray, share: float) -> tuple[np.ndarray, np.ndarray]:
        """(u, b) for u₀ = `prior` and λ = `share` · mean square of the centred features · rows."""
        mean_x, mean_y = self._x / self._n, self._y / self._n
        solve = self._from_rows if self._xx is None else self._from_sums
        u = prior + solve(prior, share, mean_x, mean_y)
        return u, mean_y - (mean_x[:, None, :] @ u)[:, 0]

    def _sum_up(self) -> None:
        for x, y in self._parts:
            transposed = x.transpose(0, 2, 1)
            self._xx = (0.0 if self._xx is None else self._xx) + transposed @ x
            self._xy = self._xy + transposed @ y
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
        x = np.concatenate([part for part, _ in self._parts], axis=1) - mean_x[:, None, :]
        y = np.concatenate([part for _, part in self._parts], axis=1) - mean_y[:, None, :]
        inner = x @ x.transpose(0, 2, 1)
        diagonal = np.arange(inner.shape[-1])
        penalty = _penalty(share, inner, x.shape[-1])
        inner[:, diagonal, diagonal] += penalty[:, None]
        return x.transpose(0, 2, 1) @ np.linalg.solve(inner, y - x @ prior)


def _penalty(share: float, products: np.ndarray, size: int) -> np.ndarray:
    """λ of each group; any positive number where its features are all constant."""
    power = np.trace(products, axis1=1, axis2=2) / size
    return share * np.where(power > 0, power, 1.0)
