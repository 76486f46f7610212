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
# rows times features, and its memory.
_ROWS_PER_FEATURE, _LEAST_ROWS, _MOST_ROWS, _MOST_ENTRIES = 12, 16384, 32768, 2**24
# Where the rows of many groups lie side by side, fewer of them do.
_MOST_ENTRIES_SIDE_BY_SIDE = 2**21
# As many are enough for a rough fit.
ROUGH = 4096
# Where maps are large, a row comes from at least as many positions; the other batches are skipped.
_POSITIONS_PER_ROW, _LEAST_SAMPLES = 8, 32
_HELD_ROWS = 4096
_ROWS_AT_ONCE = 4096
_LEAST_TO_CHOOSE_BY = 4096


@dataclass
class Sampling:
    """How many rows to take of each batch, and from which.

    Attributes:
        batches: How many batches there are.
        random: Where the rows are drawn with.
        least: How many rows a regression has at least, if there are as many.
    """

    batches: int
    random: np.random.Generator
    least: int = _LEAST_ROWS

    def rows(self, size: int, width: int = 1) -> int:
        """Rows of each batch for a regression.

        Args:
            size: How many features it has.
            width: How many entries a row has in all, beside or instead of these.
        """
        enough = _ROWS_PER_FEATURE * size
        total = min(int(np.clip(enough, self.least, _MOST_ROWS)), _MOST_ENTRIES // size)
        total = min(total, max(enough, _MOST_ENTRIES_SIDE_BY_SIDE // width))
        return -(-total // self.batches)

    def step(self, shape: tuple[int, ...], rows: int) -> int:
        """Of how many batches, with outputs of this shape, one is enough to sample rows from.

        All are read where a batch may have no sample that chooses, and as many as it takes to
        see some dozens of samples.

        Args:
            shape: The shape of a batch's output.
            rows: How many rows to take of each batch.
        """
        positions, samples = int(np.prod(shape[:-1])), shape[0]
        if samples < PERIOD:
            return 1
        most = max(1, self.batches * samples // _LEAST_SAMPLES)
        return min(self.batches, most, max(1, positions // (_POSITIONS_PER_ROW * rows)))


def sampled_positions(
    shape: tuple[int, ...], count: int, random: np.random.Generator
) -> tuple[np.ndarray, ...]:
    """Places in an array of this shape, in order, without repetition."""
    total = int(np.prod(shape))
    chosen = np.arange(total) if total <= count else random.choice(total, count, replace=False)
    return np.unravel_index(np.sort(chosen), shape)


class HeldOutRows:
    """The rows that are held out from a fit, of one or several arrays by name."""

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


class Rows:
    """Rows of several arrays by name: those that are fitted, and those that are held out.

    Each array has shape (groups, rows, entries), and is kept as float32.
    """

    def __init__(self) -> None:
        self.held = HeldOutRows()
        self._parts: dict[str, list[np.ndarray]] = {}

    def add(self, parts: tuple[np.ndarray, np.ndarray], **rows: np.ndarray) -> None:
        """Add rows.

        Args:
            parts: Which of them are fitted, and which choose; see `parts_of`.
            **rows: The rows.
        """
        fitted, chooses = parts
        for name, array in rows.items():
            self._parts.setdefault(name, []).append(array[:, fitted].astype(np.float32))
        self.held.add(**{name: array[:, chooses] for name, array in rows.items()})

    def fitted(self, every: int = 1) -> Iterator[dict[str, np.ndarray]]:
        """Those that are fitted, some thousand at once.

        Args:
            every: Of how many rows one is enough.
        """
        together: dict[str, list[np.ndarray]] = {name: [] for name in self._parts}
        count = 0
        for parts in zip(*self._parts.values(), strict=True):
            for name, part in zip(together, parts, strict=True):
                together[name].append(part[:, ::every])
            count += parts[0][:, ::every].shape[1]
            if count >= _ROWS_AT_ONCE:
                yield {name: np.concatenate(found, 1) for name, found in together.items()}
                together, count = {name: [] for name in self._parts}, 0
        if count:
            yield {name: np.concatenate(found, 1) for name, found in together.items()}

    def thinning(self, size: int) -> int:
        """Of how many rows one is enough to choose by among regressions of so many features."""
        count = sum(part.shape[1] for part in next(iter(self._parts.values())))
        return max(1, count // max(_LEAST_TO_CHOOSE_BY, 2 * _ROWS_PER_FEATURE * size // 3))


def parts_of(index: tuple[np.ndarray, ...], first: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of some sampled rows are fitted, and which choose: by sample, so that those are unseen.

    Args:
        index: The rows' places in a batch, whose first entries are the samples.
        first: The number of the batch's first sample.
    """
    number = first + index[0]
    return is_fitted(number), chooses(number)
