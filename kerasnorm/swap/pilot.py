"""Measure on a few samples what fits cost, and read no more data than there is time for."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator

import numpy as np

from kerasnorm.clone.rebuild import rebuild
from kerasnorm.fit.fit_model import fit_model
from kerasnorm.fit.parts import first_batches, first_samples
from kerasnorm.fit.time_budget import FITTING, SENSITIVITY, TimeBudget
from kerasnorm.swap.decide import Decision
from kerasnorm.swap.fit_tasks import fit_tasks
from kerasnorm.targets.target import Damping

_SAMPLES, _WARM_UP = 64, 16
# What a fit cannot do with less.
_LEAST = 32

Batches = Iterator[list[np.ndarray]]


class Pilot:
    """A first fit of a few samples in a model of its own, where time is limited.

    Args:
        budget: What is left of the time.

    Attributes:
        notes: That there was not time for all of the data.
    """

    def __init__(self, budget: TimeBudget):
        self.notes: list[str] = []
        self._budget = budget
        self._seconds = 0.0  # for each sample
        self._cuts = True

    def run(
        self,
        decision: Decision,
        batches: Batches,
        damping: Damping,
        *,
        seed: int,
        memory_budget: int,
    ) -> Batches:
        """Measure, and give the data again.

        Args:
            decision: What becomes of each site.
            batches: The data: flat inputs, batch by batch.
            damping: See `Target.rewrite`.
            seed: Of the sampling.
            memory_budget: Bytes of activations to hold in memory.
        """
        edits, requests = decision.carry_out(damping)
        if not self._budget.is_limited or not requests:
            return batches
        source = decision.model_graphs
        self._cuts = source.root.batch_size is None
        first = list(first_batches(batches, _SAMPLES))
        rebuilt = rebuild(source, edits, compiled=False)
        tasks = fit_tasks(requests, rebuilt)
        for count in (_WARM_UP, _SAMPLES):  # what is made once does not count
            some = list(first_samples(first, count)) if self._cuts else first
            start = time.monotonic()
            fit_model(source, rebuilt, tasks, some, seed=seed, memory_budget=memory_budget)
            seconds = time.monotonic() - start
            self._seconds = seconds / max(1, sum(len(arrays[0]) for arrays in some))
        return itertools.chain(first, batches)

    @property
    def to_run(self) -> float:
        """How many samples there is time to see the sites' sensitivity on."""
        return self._samples(SENSITIVITY)

    def within_time(self, batches: Batches) -> Batches:
        """As many samples as there is time to fit to, 32 at least."""
        most, count = max(_LEAST, self._samples(FITTING)), 0
        for arrays in batches:
            if count >= most:
                break
            size = int(min(len(arrays[0]), most - count)) if self._cuts else len(arrays[0])
            yield [array[:size] for array in arrays]
            count += size
            if size < len(arrays[0]):
                break
        else:
            return
        self.notes.append(
            f"{count:,} samples were used, for which there was time: `time_budget` is "
            f"{self._budget.seconds:g} seconds"
        )

    def _samples(self, share: float) -> float:
        return self._budget.affords(self._seconds, share) if self._seconds else math.inf
