"""Whether inputs are of the kind that a model was trained on, by what its BatchNorm remember."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from kerasnorm import keras_private
from kerasnorm.errors import DataError, Refusal
from kerasnorm.fit.batch_statistics import moments_in_float64
from kerasnorm.fit.parts import first_samples, in_parts
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site
from kerasnorm.graph.steps import Steps
from kerasnorm.graph.stored_statistics import StoredStatistics, stored_statistics
from kerasnorm.layers import masks
from kerasnorm.math.running_moments import RunningMoments

# A site's inputs are unlike where their deviation is so many times the stored one or smaller, or
# their mean so many stored deviations away. Other images of the same kind stay below 3: another
# camera, poor light.
_UNLIKE = 5.0
# Pixels of 0 to 255 for those of 0 to 1, or of −1 to 1, are 255 and 127 times as large.
_FAR = 20.0
# Variances that are so nearly the same are the initial ones.
_SETTLED = 0.9
# What a variance is taken for that is 0.
_SMALLEST = 1e-24
# How many samples are looked at, and how many of them at once.
SAMPLES, _AT_ONCE = 64, 16


@dataclass(frozen=True)
class UnlikeData:
    """What the first BatchNorm meets beside what it met in training.

    Attributes:
        site: Its name.
        spread: The deviation of its inputs over the stored one.
        shift: How many stored deviations their mean is from the stored one.

    Both are of the middle channel, or of all channels together, whichever is nearer to what is
    stored: few samples may lack what most channels are for (words, rare features), and channels
    that are dead have no deviation; while one channel may outweigh all others together.
    """

    site: str
    spread: float
    shift: float

    @property
    def is_far(self) -> bool:
        """Whether nothing that is measured on such inputs says how the model does on its own."""
        return _is_beyond(_FAR, self.spread, self.shift)

    def __str__(self) -> str:
        unlike = "inputs unlike those that the model was trained on: at"
        if not np.isfinite([self.spread, self.shift]).all():
            return f"{unlike} '{self.site}' they are not finite (NaN, infinities or overflow)"
        return (
            f"{unlike} '{self.site}' their deviation is {self.spread:.2g} times the stored one, "
            f"and their mean {self.shift:.2g} stored deviations away"
        )


def check_like(unlike: UnlikeData | None, strict: bool, allowed: bool, model: str) -> None:
    """Refuse data that is far from that of the training, or under `strict`, any unlike it.

    Raises:
        DataError: If it is, and it is not allowed.
    """
    if unlike is None or not (strict or (unlike.is_far and not allowed)):
        return
    raise DataError(
        f"The data must be like that of the training. Received {unlike}.",
        model=model,
        hint="Scale it as for training, or where it is meant, pass allow_unlike_data=True "
        "(--allow-unlike-data), and not `strict`.",
    )


def unlike_data(
    model_graphs: ModelGraphs, sites: Iterable[Site], batches: list[list[np.ndarray]]
) -> UnlikeData | None:
    """What is unlike at the first BatchNorm that was trained; None if nothing is.

    Args:
        model_graphs: The source's graphs.
        sites: Its sites.
        batches: Some of its inputs, flat.
    """
    by_call = {id(site.call): site for site in sites}
    steps = Steps(model_graphs.root, model_graphs.graphs)
    for number, step in enumerate(steps.steps):
        site = by_call.get(id(step.call))
        known = None if site is None else _trained_statistics(site)
        if site is not None and known is not None:
            key = step.keys[id(site.call.inputs[0])]
            found = RunningMoments()
            for arrays in _parts(batches, model_graphs.root.batch_size):
                found.add(*_moments(steps.run(arrays, keep={key}, count=number)[key], site.axis))
            spread, shift = _beside(found, known)
            is_unlike = _is_beyond(_UNLIKE, spread, shift)
            return UnlikeData(site.name, spread, shift) if is_unlike else None
    return None


def _parts(batches: list[list[np.ndarray]], batch_size: int | None) -> Iterable[list[np.ndarray]]:
    """The samples to look at, in batches that the model takes."""
    return batches if batch_size else in_parts(first_samples(batches, SAMPLES), _AT_ONCE)


def _moments(x: Any, axis: int) -> tuple[Any, Any, Any]:
    """Count, mean and variance of each channel; masked entries do not count, as in training."""
    mask, channels = keras_private.attached_mask(x), axis % len(x.shape)
    weights = None if mask is None else masks.as_weights(mask, x, channels)
    others = tuple(other for other in range(len(x.shape)) if other != channels)
    return moments_in_float64(x, others, weights)


def _trained_statistics(site: Site) -> StoredStatistics | None:
    """What a BatchNorm remembers; None where that is little more than what it began with.

    In k steps of momentum m the initial variance, 1, becomes mᵏ, which hides what is far smaller:
    then the variances of all channels are nearly the same.
    """
    known = stored_statistics(site.call.operation)
    if isinstance(known, Refusal):
        return None
    largest, smallest = known.variance.max(), known.variance.min()
    started = (
        largest <= 1 and smallest >= _SETTLED * largest and (largest == 1 or known.mean.size > 1)
    )
    return None if started else known


def _beside(found: RunningMoments, known: StoredStatistics) -> tuple[float, float]:
    squares = np.stack([found.variance, np.square(found.mean - known.mean)])
    of_each = np.median(squares / (known.variance + _SMALLEST), axis=1)
    of_all = squares.sum(axis=1) / (known.variance.sum() + _SMALLEST)
    spreads, shifts = np.sqrt([of_each, of_all]).T
    nearer = np.argmin(np.abs(np.log(spreads + _SMALLEST)))
    return float(spreads[nearer]), float(shifts.min())


def _is_beyond(times: float, spread: float, shift: float) -> bool:
    return not (1 / times < spread < times and shift < times)
