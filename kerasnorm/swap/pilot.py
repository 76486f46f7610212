"""Measure on a few samples what fits cost, and read no more data than there is time for."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator

import numpy as np

from kerasnorm.clone.rebuild import rebuild
from kerasnorm.fit.fit_model import fit_model
from kerasnorm.fit.time_budget import FITTING, JUDGING, TimeBudget
from kerasnorm.swap.decide import Decision
from kerasnorm.swap.fit_tasks import fit_tasks
from kerasnorm.targets.target import Damping

_SAMPLES = 64
# What a fit cannot do with less.
_LEAST = 32

Batches = Iterator[list[np.ndarray]]


class Pilot:
    """A first fit of a few samples in a model of its own, where time is limited.

    Attributes:
        batches: The data again, from its beginning.
    """

    def __init__(
        self,
        decision: Decision,
        batches: Batches,
        damping: Damping,
        budget: TimeBudget,
        *,
        seed: int,
        memory_budget: int,
    ):
        self._budget = budget
        self._seconds = 0.0  # for each sample
        self.notes: list[str] = []
        self.batches = batches
        if not budget.is_limited:
            return
        first = list(first_batches(batches, _SAMPLES))
        edits, requests = decision.carry_out(damping)
        if first and requests:
            start = time.monotonic()
            rebuilt = rebuild(decision.model_graphs, edits, compiled=False)
            tasks, source = fit_tasks(requests, rebuilt), decision.model_graphs
            fit_model(source, rebuilt, tasks, first, seed=seed, memory_budget=memory_budget)
            count = sum(len(arrays[0]) for arrays in first)
            self._seconds = (time.monotonic() - start) / count
        self.batches = itertools.chain(first, batches)

    @property
    def to_judge(self) -> float:
        """How many samples there is time to judge sites by."""
        return self._budget.affords(self._seconds, JUDGING) if self._seconds else math.inf

    def within_time(self, batches: Batches) -> Batches:
        """As many batches as there is time to fit to; the first in any case."""
        most = self._budget.affords(self._seconds, FITTING) if self._seconds else math.inf
        found = first_batches(batches, max(_LEAST, most))
        count = 0
        for arrays in found:
            count += len(arrays[0])
            yield arrays
        if next(batches, None) is not None:
            self.notes.append(
                f"only {count:,} samples were used, for which there was time: `time_budget` is "
                f"{self._budget.seconds:g} seconds"
            )


def first_batches(batches: Batches, count: float) -> Batches:
    """As many batches as it takes for so many samples."""
    while count > 0 and (arrays := next(batches, None)) is not None:
        count -= len(arrays[0])
        yield arrays
