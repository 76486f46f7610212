"""How many samples of the data are used, and which."""

from __future__ import annotations

from typing import Any

import numpy as np

from kerasnorm.errors import check_whole_number
from kerasnorm.fit.split import PERIOD

LEAST_SAMPLES = 10
# What `swap_norms` uses of larger data.
MAX_SAMPLES = 2048


class SampleLimit:
    """At most so many samples of the data.

    Of arrays that hold more, a random subset is taken, in random order. The sample at position p of
    the subset has a number i in the data with i ≡ p (mod 10), so that the part of the data that it
    belongs to (`fit.split`) does not depend on the limit: what is reported on was not trained on,
    whatever was used of the data in either. Of a stream the first samples are taken.

    Args:
        most: How many at most; None for all of them.
        seed: Of the subset.

    Attributes:
        notes: What was used of what, where it was not all.

    Raises:
        DataError: If `most` is neither None nor a whole number from 10, or `seed` none from 0.

    Example:

    >>> limit = SampleLimit(20, seed=0)
    >>> numbers = limit.subset(5000)
    >>> len(numbers), bool((numbers % 10 == np.arange(20) % 10).all())
    (20, True)
    >>> limit.notes
    ['20 of 5,000 samples were used, drawn at random; `max_samples` sets how many']
    """

    def __init__(self, most: Any, seed: int) -> None:
        if most is not None:
            check_whole_number("max_samples", most, least=LEAST_SAMPLES)
        check_whole_number("seed", seed, least=0)
        self.most = most
        self.notes: list[str] = []
        self._seed = seed

    def take_whole(self, size: int) -> None:
        """Have no more used than fill batches of a size, of which there is one at least."""
        if self.most is not None:
            self.most = max(size, self.most - self.most % size)

    def subset(self, count: int) -> np.ndarray | None:
        """The numbers of the samples to take of so many; None for all, as they come."""
        if self.most is None or count <= self.most:
            return None
        size = self.most
        random = np.random.default_rng(self._seed)
        numbers = np.empty(size, "int64")
        for part in range(PERIOD):
            places = numbers[part::PERIOD]
            there = len(range(part, count, PERIOD))
            places[:] = part + PERIOD * random.choice(there, len(places), replace=False)
        self.notes = [
            f"{size:,} of {count:,} samples were used, drawn at random; `max_samples` sets how many"
        ]
        return numbers

    def room(self, count: int) -> float:
        """How many more samples of a stream may be used after so many."""
        return float("inf") if self.most is None else self.most - count

    def leave_out(self, count: int, size: int) -> None:
        """Say that so many samples were left out, which fill no batch of the model's size."""
        samples = "1 sample was" if count == 1 else f"{count:,} samples were"
        self.notes = [
            *self.notes,
            f"{samples} left out, which would not fill a batch: the model takes {size:,} at a time",
        ]

    def stop(self, count: int) -> None:
        """Say that no more than so many samples of a stream were read."""
        self.notes = [
            f"the first {count:,} samples of the stream were used; `max_samples` sets how many"
        ]
