"""How far the answers of a whole model agree with those of its source."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import keras
import numpy as np

from kerasnorm.compare.differences import unsaturated_batch
from kerasnorm.compare.measures import as_numbers, as_rows
from kerasnorm.compare.random_inputs import NotComparableError
from kerasnorm.compare.sample_sums import (
    SampleSums,
    by_sample,
    fit_interval,
    share_interval,
)
from kerasnorm.compare.side_by_side import SideBySide
from kerasnorm.compare.tensor_pairs import ModelPair
from kerasnorm.graph.execute import run, samples_at_once
from kerasnorm.graph.output_heads import heads_of
from kerasnorm.math.r_squared import RSquared

# How many times as much is held where all sites are compared.
_OF_ALL_SITES = 4
# Deviations from which a sample's answer counts as another one.
_CHANGED = 0.5


@dataclass(frozen=True)
class Agreement:
    """How far the whole model agrees with its source on some samples.

    Nothing was fitted to samples held out, or chosen by them. A sample's difference is the root
    mean square of that of its outputs, in deviations of the source's.

    Attributes:
        samples: How many these are.
        same_answers: The share of places where both say the same: the likeliest class of a
            softmax, yes or no of a sigmoid; None for models that end in neither.
        fit: R² of the outputs.
        interval: Where `same_answers` is with a probability of about 95 % on other samples of the
            same kind; `fit` where that is None.
        worst: The largest difference of a sample.
        changed: The share of samples whose difference is above 0.5.
    """

    samples: int
    same_answers: float | None
    fit: float
    interval: tuple[float, float]
    worst: float
    changed: float

    def on(self, what: str) -> str:
        """What there is to say, and of which samples."""
        same = "" if self.same_answers is None else f"{self.same_answers:.1%} same answers, "
        return f"on {self.samples} {what}: {same}R² of the outputs {self.fit:.4f}"

    def __str__(self) -> str:
        return self.on("samples held out")

    def of_others(self) -> str:
        """What is to be expected on other samples, and of the worst of these."""
        form = ".1%" if self.same_answers is not None else ".4f"
        what = "same answers" if self.same_answers is not None else "R²"
        low, high = (format(end, form) for end in self.interval)
        return (
            f"95% interval of the {what}: {low} to {high}; {self.changed:.1%} of these samples "
            f"change by more than half a deviation, the worst by {self.worst:.2g}"
        )


def fits(models: ModelPair, arrays: list[np.ndarray]) -> dict[str, float]:
    """R² of what the copy has against what the source has, by name; over all calls of a pair."""
    found = {pair.name: RSquared() for pair in models.pairs}
    at_once = models.source.root.batch_size or samples_at_once(arrays) // _OF_ALL_SITES
    for part in _parts(arrays, at_once):
        for values in SideBySide(models).run(part):
            rows = _finite_rows(values.expected, values.received, values.pair.axis)
            found[values.pair.name].add(*rows)
    return {name: fit.value for name, fit in found.items()}


def agreement(models: ModelPair, arrays: list[np.ndarray], at_once: int | None = None) -> Agreement:
    """How far the outputs of two models agree on some inputs.

    Args:
        models: The models.
        arrays: The inputs, flat.
        at_once: How many samples to run together; None for as many as are held easily.
    """
    root = models.source.root
    expected = [pair.expected for pair in models.outputs]
    received = [pair.received for pair in models.outputs]
    found, same = [SampleSums() for _ in models.outputs], []
    heads = heads_of(models.source)
    for part in _parts(arrays, root.batch_size or at_once or samples_at_once(arrays)):
        answers = run(root, part, expected), run(models.copies[id(root.owner)], part, received)
        shares, samples = [], len(part[0])
        for sums, pair, head, a, b in zip(found, models.outputs, heads, *answers, strict=True):
            sums.add(*as_numbers(a, b), pair.axis, samples)
            if head.kind != "linear":
                said, answered = (head.answers(head.logits(y)) for y in (a, b))
                equal = keras.ops.convert_to_numpy(said == answered)
                rows = equal.reshape(-1, 1).astype(np.float64)
                shares.append(by_sample(rows, samples).mean((1, 2)))
        same += [np.mean(shares, 0)] if shares else []
    differences = np.sqrt(np.mean([sums.differences for sums in found], 0))
    fit = float(np.mean([sums.r_squared for sums in found]))
    agreed = np.concatenate(same) if same else None
    return Agreement(
        samples=len(arrays[0]),
        same_answers=None if agreed is None else float(agreed.mean()),
        fit=fit,
        interval=share_interval(agreed) if agreed is not None else fit_interval(found),
        worst=float(differences.max(initial=0)),
        changed=float(np.mean(differences > _CHANGED)),
    )


def random_agreement(models: ModelPair) -> Agreement | None:
    """How far the outputs of two models agree on random inputs; None if they tell nothing.

    None can be taken for some models, and the outputs of others are not finite on any.
    """
    try:
        arrays = unsaturated_batch(models)
    except NotComparableError:
        return None
    found = agreement(models, arrays, at_once=len(arrays[0]))
    return None if math.isnan(found.fit) else found


def _finite_rows(expected: np.ndarray, received: np.ndarray, axis: int) -> list[np.ndarray]:
    """Positions × channels, without the positions where the source overflows."""
    rows, others = as_rows(expected, axis), as_rows(received, axis)
    finite = np.isfinite(rows).all(1)
    return [rows, others] if finite.all() else [rows[finite], others[finite]]


def _parts(arrays: list[np.ndarray], at_once: int) -> Iterator[list[np.ndarray]]:
    """A few samples at a time."""
    for first in range(0, len(arrays[0]), at_once):
        yield [array[first : first + at_once] for array in arrays]
