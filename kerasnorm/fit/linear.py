"""Fit a linear layer: ridge regression of what it is to give on what it contracts.

    min_{u, b} Σ ‖t − x·u − b‖² + λ ‖u − u₀‖²

One sample in ten is held out from the sums; of the kernel u₀ that the layer has and those of
several λ, the one stays that fits the held-out samples best.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from kerasnorm.fit.im2col import Im2Col, Index
from kerasnorm.fit.regression import RidgeRegression
from kerasnorm.fit.sampling import FitData, HeldOutRows, Sampling, parts_of
from kerasnorm.math.r_squared import r_squared

# From a batch of the source, and places in it, what is to be given there.
Targets = Callable[[np.ndarray, Index], np.ndarray]
# Shares of the features' mean square that kernels are drawn to where they came from.
SHARES = (1e-3, 1e-2, 1e-1)


def fit_linear(layer: Any, source: Any, data: FitData, sampling: Sampling) -> float:
    """Refit a linear layer to the pre-activation of its source, drawn toward its own kernel.

    Args:
        layer: The layer; its kernel and bias are set.
        source: The source's layer, whose inputs the data gives as t.
        data: See `FitData`.
        sampling: See `Sampling`.

    Returns:
        R² on held-out rows.
    """
    im2col, original = Im2Col(layer), Im2Col(source)
    [(ridge, held)] = ridge_sums(im2col, pre_activation(original), data, sampling)
    prior = im2col.matrix()
    bias = im2col.bias()
    found = [(prior, bias)]
    if layer.bias is not None:
        found += [ridge.solve(prior, share) for share in SHARES]
    matrix, offset, score = best_of(found, held)
    im2col.assign(matrix)
    if layer.bias is not None:
        layer.bias.assign(offset.reshape(layer.bias.shape))
    return score


def ridge_sums(
    im2col: Im2Col,
    targets: Targets,
    data: FitData,
    sampling: Sampling,
    features: Callable[[np.ndarray, Index], list[np.ndarray]] | None = None,
) -> list[tuple[RidgeRegression, HeldOutRows]]:
    """The sums of regressions over some data, and what is held out from them, as x and y.

    Args:
        im2col: Of the layer.
        targets: What is to be given, of the data's t.
        data: See `FitData`.
        sampling: See `Sampling`.
        features: What is contracted in each, of the data's x; None for a single one, of what the
            layer contracts itself.
    """
    found: list[tuple[RidgeRegression, HeldOutRows]] = []
    first = 0
    for x, t in data():
        index = im2col.sample(im2col.output_shape(x), sampling.rows(im2col.size), sampling.random)
        fitted, chooses = parts_of(index, first)
        rows = [im2col.inputs(x, index)] if features is None else features(x, index)
        target = targets(t, index)
        found = found or [(RidgeRegression(), HeldOutRows()) for _ in rows]
        for row, (ridge, held) in zip(rows, found, strict=True):
            ridge.add(row[:, fitted], target[:, fitted])
            held.add(x=row[:, chooses], y=target[:, chooses])
        first += len(x)
    return found


def pre_activation(source: Im2Col) -> Targets:
    """What a linear layer of the source makes of the data's t."""
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
