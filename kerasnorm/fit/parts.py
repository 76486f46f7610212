"""Batches of flat inputs cut short, or put together anew."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from kerasnorm.fit.split import same_shapes
from kerasnorm.graph.execute import samples_at_once

Batches = Iterable[list[np.ndarray]]


def in_larger_parts(batches: Iterator[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
    """The samples in as large parts as are to be run at once; larger batches stay whole."""
    first = next(batches, None)
    if first is None:
        return iter(())
    size = samples_at_once(first)
    again = itertools.chain([first], batches)
    return in_parts(again, size) if len(first[0]) < size else again


def first_batches(batches: Iterator[list[np.ndarray]], count: float) -> Iterator[list[np.ndarray]]:
    """As many batches as it takes for so many samples; the others are not read."""
    while count > 0 and (arrays := next(batches, None)) is not None:
        count -= len(arrays[0])
        yield arrays


def first_samples(batches: Batches, count: float) -> Iterator[list[np.ndarray]]:
    """The first samples, so many at most."""
    for arrays in batches:
        size = int(min(len(arrays[0]), count))
        if size <= 0:
            return
        yield [array[:size] for array in arrays]
        count -= size


def whole_parts(batches: Batches, size: int) -> Iterator[list[np.ndarray]]:
    """The samples in parts of one size; those that do not fill one are left out."""
    return (arrays for arrays in in_parts(batches, size) if len(arrays[0]) == size)


def whole_part(arrays: list[np.ndarray], size: int | None) -> list[np.ndarray]:
    """As many of the first samples as fill batches of a size; all of them where that is None."""
    count = len(arrays[0]) - len(arrays[0]) % (size or 1)
    return [array[:count] for array in arrays]


def in_parts(batches: Batches, size: int) -> Iterator[list[np.ndarray]]:
    """The samples in parts of one size; where their shapes change, a part may be smaller."""
    waiting: list[np.ndarray] = []
    for batch in batches:
        arrays = batch
        if waiting and same_shapes(waiting, arrays):
            arrays = [np.concatenate(pair) for pair in zip(waiting, arrays, strict=True)]
        elif waiting:
            yield waiting
        whole = len(arrays[0]) - len(arrays[0]) % size
        for start in range(0, whole, size):
            yield [array[start : start + size] for array in arrays]
        waiting = [array[whole:] for array in arrays] if whole < len(arrays[0]) else []
    if waiting:
        yield waiting
