"""Times of functions that run in one process, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

# How long one of them runs in one round, in seconds.
_ROUND = 0.05


def times(runs: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of one call of each, in each round."""
    often = {}
    for name, run in runs.items():
        run()  # the first call may compile
        often[name] = max(1, round(_ROUND / seconds(run, 3)))
    took: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds):
        # Nobody always runs behind the same neighbour.
        for name in np.random.default_rng(number).permutation(list(runs)):
            took[name].append(seconds(runs[name], often[name]))
    return took


def seconds(run: Callable[[], Any], often: int) -> float:
    """How long one call takes, on average over so many, after one that does not count."""
    run()
    start = time.perf_counter()
    for _ in range(often):
        run()
    return (time.perf_counter() - start) / often
