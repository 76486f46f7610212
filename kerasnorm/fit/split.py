"""Which samples models are fitted to, which choose among fits, and which are reported on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

# Of ten samples, by their numbers in the data, eight are fitted to and trained on. One chooses: the
# strength of a fit, the epoch to keep. One is for the report, and nothing is chosen by it.
PERIOD, _CHOOSES, _IS_REPORTED_ON = 10, 4, 9
# What is reported on, and what it takes to say anything.
_MOST, LEAST = 256, 10


def chooses(number: np.ndarray) -> np.ndarray:
    """Which samples choose among what was fitted to others."""
    return number % PERIOD == _CHOOSES


def is_reported_on(number: np.ndarray) -> np.ndarray:
    """Which samples nothing but the report sees."""
    return number % PERIOD == _IS_REPORTED_ON


def is_fitted(number: np.ndarray) -> np.ndarray:
    """Which samples models are fitted to and trained on: all others."""
    return ~chooses(number) & ~is_reported_on(number)


class HeldOutSamples:
    """Up to 256 of the samples of a part of the data, of one shape.

    Args:
        part: `is_reported_on` or `chooses`.
    """

    def __init__(self, part: Callable[[np.ndarray], np.ndarray] = is_reported_on) -> None:
        self._part = part
        self._parts: list[list[np.ndarray]] = []
        self._seen = self._count = 0

    def collect(self, batches: Iterable[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
        """Pass batches of flat inputs on, and keep what is held out."""
        for arrays in batches:
            unseen = np.flatnonzero(self._part(self._seen + np.arange(len(arrays[0]))))
            self._seen += len(arrays[0])
            part = [array[unseen[: _MOST - self._count]] for array in arrays]
            if len(part[0]) and (not self._parts or same_shapes(part, self._parts[0])):
                self._parts.append(part)
                self._count += len(part[0])
            yield arrays

    @property
    def arrays(self) -> list[np.ndarray] | None:
        """The samples, as flat inputs; None if they are too few to say anything."""
        return self.at_least(LEAST)

    def at_least(self, count: int) -> list[np.ndarray] | None:
        """The samples, as flat inputs; None if they are fewer."""
        if self._count < count:
            return None
        return [np.concatenate(column) for column in zip(*self._parts, strict=True)]


def same_shapes(arrays: list[np.ndarray], others: list[np.ndarray]) -> bool:
    """Whether the samples of two batches have the same shapes."""
    pairs = zip(arrays, others, strict=True)
    return all(array.shape[1:] == other.shape[1:] for array, other in pairs)
