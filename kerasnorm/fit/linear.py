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
from kerasnorm.fit.sampling import FitData, Rows, Sampling, parts_of
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
    rows = linear_rows(im2col, pre_activation(original), data, sampling)
    ridge = RidgeRegression()
    for part in rows.fitted():
        ridge.add(part["x"], part["y"])
    prior = im2col.matrix()
    bias = im2col.bias()
    found = [(prior, bias)]
    if layer.bias is not None:
        found += [ridge.solve(prior, share) for share in SHARES]
    matrix, offset, score = best_of(found, rows.held["x"], rows.held["y"])
    im2col.assign(matrix)
    if layer.bias is not None:
        layer.bias.assign(offset.reshape(layer.bias.shape))
    return score


def linear_rows(
    im2col: Im2Col,
    targets: Targets,
    data: FitData,
    sampling: Sampling,
    beside: Callable[[np.ndarray, Index], dict[str, np.ndarray]] | None = None,
) -> Rows:
    """Rows of what a linear layer contracts, x, and of what it is to give, y.

    Args:
        im2col: Of the layer.
        targets: What is to be given, of the data's t.
        data: See `FitData`.
        sampling: See `Sampling`.
        beside: What else to keep, of the data's x.
    """
    rows, first = Rows(), 0
    count = sampling.rows(im2col.size, im2col.width)
    for x, t in data():
        index = im2col.sample(im2col.output_shape(x), count, sampling.random)
        more = beside(x, index) if beside else {}
        parts = parts_of(index, first)
        rows.add(parts, x=im2col.inputs(x, index), y=targets(t, index), **more)
        first += len(x)
    return rows


def pre_activation(source: Im2Col) -> Targets:
    """What a linear layer of the source makes of the data's t."""
    matrix, bias = source.matrix(), source.bias()

    def targets(x: np.ndarray, index) -> np.ndarray:
        return source.inputs(x, index) @ matrix + bias[:, None]

    return targets


def best_of(
    found: list[tuple[np.ndarray, np.ndarray]], x: np.ndarray, y: np.ndarray
) -> tuple[np.ndarray, np.ndarray, float]:
    """The (matrix, offset) that fits held-out rows best, and how well it does."""
    flat = y.transpose(1, 0, 2).reshape(y.shape[1], -1)
    scores = []
    for matrix, offset in found:
        answer = x @ matrix + offset[:, None]
        scores.append(r_squared(flat, answer.transpose(1, 0, 2).reshape(flat.shape)))
    best = int(np.argmax(scores))
    return (*found[best], scores[best])
