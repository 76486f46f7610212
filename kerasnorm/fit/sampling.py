"""Which rows of the data a layer is fitted on, and which choose among the fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from kerasnorm.fit.split import PERIOD, chooses, is_fitted

# What a layer is fitted on. Batch by batch, and as often as it is called, (x, t): what the swapped
# model feeds the layer, and the source's activation that it is to reproduce.
FitData = Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]

# Rows a regression sees: some for each unknown, within what is worth its time, which grows with
# rows times features.
_ROWS_PER_FEATURE, _LEAST_ROWS, _MOST_ROWS, _MOST_ENTRIES = 12, 16384, 32768, 2**24
# Where maps are large, a row comes from at least as many positions; the other batches are skipped.
_POSITIONS_PER_ROW, _LEAST_SAMPLES = 8, 32
_HELD_ROWS = 4096


@dataclass
class Sampling:
    """How many rows to take of each batch, and from which."""

    batches: int
    random: np.random.Generator

    def rows(self, size: int) -> int:
        """Rows of each batch for a regression with this many features."""
        total = int(np.clip(_ROWS_PER_FEATURE * size, _LEAST_ROWS, _MOST_ROWS))
        total = min(total, _MOST_ENTRIES // size)
        return -(-total // self.batches)

    def step(self, shape: tuple[int, ...], size: int) -> int:
        """Of how many batches, with outputs of this shape, one is enough to sample rows from.

        All are read where a batch may have no sample that chooses, and as many as it takes to
        see some dozens of samples.
        """
        positions, samples = int(np.prod(shape[:-1])), shape[0]
        if samples < PERIOD:
            return 1
        most = max(1, self.batches * samples // _LEAST_SAMPLES)
        return min(self.batches, most, max(1, positions // (_POSITIONS_PER_ROW * self.rows(size))))


def sampled_positions(
    shape: tuple[int, ...], count: int, random: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Places in an array of this shape, in order, without repetition."""
    total = int(np.prod(shape))
    chosen = np.arange(total) if total <= count else random.choice(total, count, replace=False)
    return np.unravel_index(np.sort(chosen), shape)


class HeldOutRows:
    """The rows that are held out from the sums."""

    def __init__(self) -> None:
        self._parts: dict[str, list[np.ndarray]] = {}
        self._count = 0

    def add(self, **rows: np.ndarray) -> None:
        self._count += next(iter(rows.values())).shape[-2]
        if self._count <= _HELD_ROWS or not self._parts:
            for name, part in rows.items():
                self._parts.setdefault(name, []).append(part)

    def __getitem__(self, name: str) -> np.ndarray:
        return np.concatenate(self._parts[name], axis=-2)


def parts_of(index: tuple[np.ndarray, ...], first: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of some sampled rows are fitted, and which choose: by sample, so that those are unseen.

    Args:
        index: The rows' places in a batch, whose first entries are the samples.
        first: The number of the batch's first sample.
    """
    number = first + index[0]
    return is_fitted(number), chooses(number)
