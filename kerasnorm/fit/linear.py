"""Fit a linear layer: ridge regression of what it is to give on what it contracts.

    min_{u, b} Σ ‖t − x·u − b‖² + λ ‖u − u₀‖²

One sample in five is held out from the sums; of the kernel u₀ that the layer has and those of
several λ, the one stays that fits the held-out samples best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kerasnorm.fit.im2col import Index, Rows
from kerasnorm.fit.regression import Ridge
from kerasnorm.fit.sampling import HeldOutRows, Sampling, Stream, are_fitted
from kerasnorm.math.r_squared import r_squared

# From a batch of the source, and places in it, what is to be given there.
Targets = Callable[[np.ndarray, Index], np.ndarray]
# Shares of the features' mean square that kernels are drawn to where they came from.
SHARES = (1e-3, 1e-2, 1e-1)


def fit_linear(layer: Any, source: Any, stream: Stream, sampling: Sampling) -> float:
    """Refit a linear layer to the pre-activation of its source, drawn toward its own kernel.

    Args:
        layer: The layer; its kernel and bias are set.
        source: The source's layer, whose inputs the stream gives as t.
        stream: See `Stream`.
        sampling: See `Sampling`.

    Returns:
        R² on held-out rows.
    """
    rows, original = Rows(layer), Rows(source)
    ridge, held = ridge_sums(rows, pre_activation(original), stream, sampling)
    prior = rows.matrix()
    bias = rows.bias()
    found = [(prior, bias)]
    if layer.bias is not None:
        found += [ridge.solve(prior, share) for share in SHARES]
    matrix, offset, score = best_of(found, held)
    rows.assign(matrix)
    if layer.bias is not None:
        layer.bias.assign(offset.reshape(layer.bias.shape))
    return score


def ridge_sums(
    rows: Rows,
    targets: Targets,
    stream: Stream,
    sampling: Sampling,
    features: Targets | None = None,
) -> tuple[Ridge, HeldOutRows]:
    """The sums of a regression over some data, and what is held out from them, as x and y.

    Args:
        rows: Of the layer.
        targets: What is to be given, of the stream's t.
        stream: See `Stream`.
        sampling: See `Sampling`.
        features: What is contracted, of the stream's x; None for what the layer contracts itself.
    """
    ridge, held, first = Ridge(), HeldOutRows(), 0
    for x, t in stream():
        index = rows.sample(rows.output_shape(x), sampling.rows(rows.size), sampling.random)
        fitted = are_fitted(index, first)
        row = rows.inputs(x, index) if features is None else features(x, index)
        target = targets(t, index)
        ridge.add(row[:, fitted], target[:, fitted])
        held.add(x=row[:, ~fitted], y=target[:, ~fitted])
        first += len(x)
    return ridge, held


def pre_activation(source: Rows) -> Targets:
    """What a linear layer of the source makes of the stream's t."""
    matrix, bias = source.matrix(), source.bias()

    def targets(x: np.ndarray, index) -> np.ndarray:
        return source.inputs(x, index) @ matrix + bias[:, None]

    return targets


def best_of(
    found: list[tuple[np.ndarray, np.ndarray]], held: HeldOutRows
) -> tuple[np.ndarray, np.ndarray, float]:
    """The (matrix, offset) that fits the held-out rows best, and how well it does."""
    x, y = held["x"], held["y"]
    flat = y.transpose(1, 0, 2).reshape(y.shape[1], -1)
    scores = []
    for matrix, offset in found:
        answer = x @ matrix + offset[:, None]
        scores.append(r_squared(flat, answer.transpose(1, 0, 2).reshape(flat.shape)))
    best = int(np.argmax(scores))
    return (*found[best], scores[best])
