"""Fit a CosineNorm: with x̂ = x/‖x‖, y = u·x̂ + b is linear in u = g·w/‖w‖."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from kerasnorm.fit.damping import first_enough
from kerasnorm.fit.gain_and_bias import fit_gain_and_bias
from kerasnorm.fit.im2col import Im2Col, as_float64
from kerasnorm.fit.linear import SHARES, best_of, linear_rows, pre_activation
from kerasnorm.fit.regression import ChannelwiseRegression, RidgeRegression
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
    targets = im2col.outputs if source is None else pre_activation(Im2Col(source))

    def lengths(x: np.ndarray, index) -> dict[str, np.ndarray]:
        return {"length": np.sqrt(_squared_lengths(layer, im2col, x, index))}

    rows = linear_rows(im2col, targets, data, sampling, lengths)
    squares = [np.square(part["length"], dtype=np.float64).ravel() for part in rows.fitted()]
    mean_square = float(np.concatenate(squares).mean())
    direction = im2col.matrix() / _lengths(layer, im2col)

    def fitted(share: float, every: int) -> tuple[np.ndarray, np.ndarray, float]:
        ridge = RidgeRegression()
        for part in rows.fitted(every):
            ridge.add(_over_length(part, share * mean_square), part["y"])
        held = {name: rows.held[name] for name in ("x", "y", "length")}
        x, line = _over_length(held, share * mean_square), ChannelwiseRegression()
        line.add(im2col.flat(x @ direction), im2col.flat(held["y"]))
        gain, _ = line.solve()
        prior = direction * im2col.grouped(gain[None])
        return best_of([ridge.solve(prior, ridge_share) for ridge_share in SHARES], x, held["y"])

    every, tried = rows.thinning(im2col.size), []

    def score_of(share: float) -> float:
        tried.append(fitted(share, every))
        return tried[-1][-1]

    choice = first_enough(map(score_of, shares)) if len(shares) > 1 else 0
    found = tried[choice] if tried and every == 1 else fitted(shares[choice], every=1)
    matrix, offset, score = found
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


def _over_length(part: Mapping[str, np.ndarray], damping_square: float) -> np.ndarray:
    """x / sqrt(‖x‖² + damping²), and x where that is 0."""
    square = np.square(part["length"], dtype=np.float64) + damping_square
    return part["x"] / np.sqrt(np.where(square > 0, square, 1.0))
