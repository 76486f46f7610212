"""Fit a CosineNorm: with x̂ = x/‖x‖, y = u·x̂ + b is linear in u = g·w/‖w‖."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from keras import ops

from kerasnorm.fit.damping import first_enough
from kerasnorm.fit.gain_and_bias import fit_gain_and_bias
from kerasnorm.fit.im2col import Im2Col, as_float64
from kerasnorm.fit.linear import SHARES, best_of, pre_activation, ridge_sums
from kerasnorm.fit.regression import ChannelwiseRegression
from kerasnorm.fit.sampling import FitData, Sampling
from kerasnorm.graph.activation_store import as_array
from kerasnorm.layers import CosineNorm
from kerasnorm.layers.linear_ops import has_rows


def fit_cosine_norm(
    layer: CosineNorm, source: Any, data: FitData, sampling: Sampling, shares: Sequence[float]
) -> tuple[float, int | None]:
    """Fit kernel, gain and bias; of those tried, the kernel stays that fits held-out rows best.

    Args:
        layer: The layer, its wrapped kernel pointing where it is thought to point.
        source: The source's linear layer whose inputs the data gives as t; None where it gives
            the activation itself.
        data: See `FitData`.
        sampling: See `Sampling`.
        shares: Damping to try, as shares of the mean ‖x‖², from the least on.

    Returns:
        R² on held-out rows, and which share was taken; None where the layer has no rows to measure
        the length of, and stays without damping.
    """
    inner = layer.layer
    if not has_rows(inner):
        return fit_gain_and_bias(layer, data, sampling, source), None
    im2col = Im2Col(inner)
    mean_square = _mean_square(layer, im2col, data, sampling) if any(shares) else 0.0
    targets = im2col.outputs if source is None else pre_activation(Im2Col(source))

    def normalized(x: np.ndarray, index) -> list[np.ndarray]:
        length, rows = _squared_lengths(layer, im2col, x, index), im2col.inputs(x, index)
        squares = [length + share * mean_square for share in shares]
        return [rows / np.sqrt(np.where(square > 0, square, 1.0)) for square in squares]

    direction = im2col.matrix() / _lengths(layer, im2col)
    found = []
    for ridge, held in ridge_sums(im2col, targets, data, sampling, normalized):
        line = ChannelwiseRegression()
        line.add(im2col.flat(held["x"] @ direction), im2col.flat(held["y"]))
        gain, _ = line.solve()
        prior = direction * im2col.grouped(gain[None])
        found.append(best_of([ridge.solve(prior, share) for share in SHARES], held))
    choice = first_enough([score for *_, score in found])
    matrix, offset, score = found[choice]
    layer.damping = float(np.sqrt(shares[choice] * mean_square))
    dead = ~matrix.any(axis=1, keepdims=True)
    im2col.assign(matrix)
    length = np.where(dead, 0.0, _lengths(layer, im2col))
    im2col.assign(np.where(dead, direction, matrix / np.where(dead, 1.0, length)))
    layer.g.assign(length.reshape(layer.g.shape))
    inner.bias.assign(offset.reshape(inner.bias.shape))
    return score, choice


def _lengths(layer: CosineNorm, im2col: Im2Col) -> np.ndarray:
    """‖w‖ as (groups, 1, units)."""
    return im2col.grouped(as_float64(layer.lengths()).reshape(1, -1))


def _squared_lengths(layer: CosineNorm, im2col: Im2Col, x: np.ndarray, index) -> np.ndarray:
    """‖x‖² of what the layer contracts there, as (groups or 1, rows, 1)."""
    x = x.astype(np.result_type(x.dtype, np.float32), copy=False)
    # squares of entries up to 1 neither vanish nor overflow
    largest = float(np.abs(x).max()) or 1.0
    squares = layer.contraction(x.ndim).squared_lengths(ops.convert_to_tensor(x / largest))
    found = im2col.at(as_array(squares), index).astype(np.float64) * largest**2
    return found[None] if found.shape[1] == 1 else im2col.grouped(found)[..., :1]


def _mean_square(layer: CosineNorm, im2col: Im2Col, data: FitData, sampling: Sampling) -> float:
    found = []
    for x, _ in data():
        index = im2col.sample(im2col.output_shape(x), sampling.rows(1), sampling.random)
        found.append(_squared_lengths(layer, im2col, x, index).mean())
    return float(np.mean(found))
