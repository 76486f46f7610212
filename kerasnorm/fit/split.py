"""Which samples are held out: from the fits, from training, and to report on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

# One sample in five is held out from the closed-form fits, and one in ten from training: of those
# five, so that a model fitted on the same data does not know them.
FROM_FITS = 5
FROM_TRAINING = 2 * FROM_FITS
# What is reported on, and what it takes to say anything.
_MOST, LEAST = 64, 10


def from_fits(number: np.ndarray) -> np.ndarray:
    """Which samples, by their numbers in the data, the fits do not see."""
    return number % FROM_FITS == FROM_FITS - 1


def from_training(number: np.ndarray) -> np.ndarray:
    """Which samples, by their numbers in the data, training does not see."""
    return number % FROM_TRAINING == FROM_TRAINING - 1


class HeldOutSamples:
    """Up to 64 of the samples that neither fits nor training see, of one shape."""

    def __init__(self) -> None:
        self._parts: list[list[np.ndarray]] = []
        self._seen = self._count = 0

    def collect(self, batches: Iterable[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
        """Pass batches of flat inputs on, and keep what is held out."""
        for arrays in batches:
            unseen = np.flatnonzero(from_training(self._seen + np.arange(len(arrays[0]))))
            self._seen += len(arrays[0])
            part = [array[unseen[: _MOST - self._count]] for array in arrays]
            if len(part[0]) and (not self._parts or same_shapes(part, self._parts[0])):
                self._parts.append(part)
                self._count += len(part[0])
            yield arrays

    @property
    def arrays(self) -> list[np.ndarray] | None:
        """The samples, as flat inputs; None if they are too few to say anything."""
        if self._count < LEAST:
            return None
        return [np.concatenate(column) for column in zip(*self._parts, strict=True)]


def same_shapes(arrays: list[np.ndarray], others: list[np.ndarray]) -> bool:
    """Whether the samples of two batches have the same shapes."""
    pairs = zip(arrays, others, strict=True)
    return all(array.shape[1:] == other.shape[1:] for array, other in pairs)
