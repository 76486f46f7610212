"""How far one array is from another, in its own terms."""

from __future__ import annotations

from typing import Any

import numpy as np

# Where a channel varies by less than this fraction of its size, its variation is mostly rounding.
_LEAST_SPREAD = 1e-4
# Where it varies by no more than so many rounding steps, it is constant; a difference is looked at
# beside this fraction of its size then.
_CONSTANT, _OF_CONSTANT = 8, 1e-2
_TEXT = "OSU"
# Sizes between which squares neither vanish nor overflow.
_SQUARED_IN_FLOAT32 = (1e-15, 1e15)


def channel_differences(expected: np.ndarray, received: np.ndarray, axis: int = -1) -> np.ndarray:
    """max|Δ| of each channel over its own spread in what was expected.

    The spread is the channel's standard deviation over samples and positions, but at least 1e-4 of
    its largest entry. Of a channel that does not vary it is 1e-2 of its size; of one that is zero
    all over, 1e-4 of the largest entry of the whole array.

    Args:
        expected: What one model has, of shape (samples, ...).
        received: What the other has.
        axis: The channel axis.

    Returns:
        One number for each channel. Infinite where one is finite and the other is not; where
        neither is, nothing is compared. NaN for a channel in which that is so all over, unless
        both have the same infinities there. A single infinity if the shapes differ.

    Example:

    >>> expected = np.array([[0.0, 10.0], [2.0, -10.0]])
    >>> channel_differences(expected, expected + [[0.5, 0.5]])
    array([0.5 , 0.05])
    """
    if expected.shape != received.shape:
        return np.array([np.inf])
    expected, received = as_rows(expected, axis), as_rows(received, axis)
    if not expected.size:
        return np.zeros(expected.shape[1])
    both_finite: Any = True
    unlike = uncompared = np.zeros(expected.shape[1], bool)
    if not (np.isfinite(expected).all() and np.isfinite(received).all()):
        both_finite = np.isfinite(expected)
        unlike = (both_finite != np.isfinite(received)).any(0)
        both_finite &= np.isfinite(received)
        uncompared = ~both_finite.any(0) & (expected != received).any(0)
        expected, received = (np.where(both_finite, rows, 0) for rows in (expected, received))
    found = np.abs(expected - received).max(0) / _spread(expected, both_finite)
    return np.where(unlike, np.inf, np.where(uncompared, np.nan, found))


def _spread(rows: np.ndarray, which: np.ndarray | bool) -> np.ndarray:
    """The spread of each column, over the entries of `which`; the others are 0."""
    largest = np.maximum(rows.max(0), -rows.min(0))
    smallest, greatest = largest[largest > 0].min(initial=1.0), largest.max()
    if smallest < _SQUARED_IN_FLOAT32[0] or greatest > _SQUARED_IN_FLOAT32[1]:
        rows = rows.astype(np.float64)
    count = len(rows) if which is True else np.maximum(np.sum(which, 0), 1)
    rows = rows - rows[0]  # a large offset would leave few digits of what is squared
    rows -= rows.sum(0, where=which) / count
    np.square(rows, out=rows)
    deviation = np.sqrt(rows.sum(0, where=which) / count)
    spread = np.maximum(deviation, _LEAST_SPREAD * largest)
    constant = deviation <= _CONSTANT * np.finfo(rows.dtype).eps * largest
    spread[constant] = _OF_CONSTANT * largest[constant]
    spread[spread == 0] = _LEAST_SPREAD * greatest or 1.0
    return spread


def as_numbers(expected: np.ndarray, received: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Text as numbers, the same for the same words; numbers as they are."""
    if expected.dtype.kind not in _TEXT:
        return expected, received
    both = np.concatenate([expected.reshape(-1), received.reshape(-1)]).astype(str)
    codes = np.unique(both, return_inverse=True)[1].astype(np.float32)
    return codes[: expected.size].reshape(expected.shape), codes[expected.size :].reshape(
        received.shape
    )


def as_rows(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """Samples and positions × channels, of float32 or wider."""
    if values.ndim > 1:
        values = np.moveaxis(values, axis, -1)
    rows = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
    return rows.astype(np.result_type(rows.dtype, np.float32), copy=False)


def relative_difference(reference: np.ndarray, answer: np.ndarray) -> tuple[float, float]:
    """(max|Δ| / max|reference|, max|reference|); the difference is infinite if shapes differ.

    Where the reference is zero all over, the difference itself. NaN or infinite if anything is not
    finite.

    Example:

    >>> relative_difference(np.array([1.0, -4.0]), np.array([1.0, -3.0]))
    (0.25, 4.0)
    """
    if reference.shape != answer.shape:
        return float("inf"), float("nan")
    if reference.size == 0:
        return 0.0, 0.0
    dtype = np.complex128 if np.iscomplexobj(reference) else np.float64
    reference, answer = reference.astype(dtype), answer.astype(dtype)
    scale = float(np.max(np.abs(reference)))
    with np.errstate(invalid="ignore"):
        largest = float(np.max(np.abs(reference - answer)))
    return largest / (scale or 1.0), scale
