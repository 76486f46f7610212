"""Fit a swapped model to its source, train it, and keep what answers most like the source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from kerasnorm.clone.rebuild import Rebuilt
from kerasnorm.distillation.answer_loss import AnswerLoss
from kerasnorm.distillation.reconstruct import Reconstruction
from kerasnorm.fit.fit_model import fit_model
from kerasnorm.fit.split import HeldOutSamples, chooses
from kerasnorm.fit.time_budget import TimeBudget
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.swap.fit_tasks import fit_tasks
from kerasnorm.swap.stage import Stage
from kerasnorm.targets.plan import FitRequest

# Of fewer samples, an answer or two would decide.
_LEAST_TO_CHOOSE = 4
# Answers that are no further off, in nats or as a share of what they say, are not trained on.
_NEAR_ENOUGH = 0.05


@dataclass(frozen=True)
class Calibration:
    """What came of the data.

    Attributes:
        scores: R² of each fitted site on held-out rows.
        dampings: Which of a request's `damping` was taken, by site; not where none was.
        fitted: Whether the fits stay; where they do not, what stored statistics gave does.
        trained: Whether what training made of either stays.
        remeasure: Whether the sites' R² have to be taken again.
        notes: What there is to say of it.
        doubts: That training was tried and brought nothing.
        held_out: The samples for the report.
    """

    scores: dict[str, float]
    dampings: dict[str, int]
    fitted: bool
    trained: bool
    remeasure: bool
    notes: list[str]
    doubts: list[str]
    held_out: HeldOutSamples


def calibrate(
    source: ModelGraphs,
    rebuilt: Rebuilt,
    requests: dict[str, FitRequest],
    batches: Iterable[list[np.ndarray]],
    budget: TimeBudget,
    *,
    starts_matched: bool,
    seed: int,
    memory_budget: int,
) -> Calibration:
    """Set the layers of a swapped model that targets ask to be fitted.

    Args:
        source: The source's graphs.
        rebuilt: The swapped model.
        requests: What is to be fitted, by site.
        batches: The data: flat inputs, batch by batch.
        budget: What is left of the time, for the training after the fits.
        starts_matched: Whether the model as it is was matched from stored statistics.
        seed: Of the sampling, and of the order in training.
        memory_budget: Bytes of activations to hold in memory.
    """
    held_out, choosing = HeldOutSamples(), HeldOutSamples(chooses)
    reconstruction = Reconstruction(source, memory_budget)
    collected = _collected(batches, held_out, choosing, reconstruction)
    tasks = fit_tasks(requests, rebuilt)
    norms = [task.layer for task in tasks]
    start = Stage(rebuilt.model, norms) if starts_matched else None
    fits = fit_model(source, rebuilt, tasks, collected, seed=seed, memory_budget=memory_budget)
    answer_loss = _answer_loss(source, choosing)
    root = rebuilt.graphs[id(source.root.owner)]
    notes, fitted = [], True
    least = answer_loss.of(root) if answer_loss else np.inf
    if answer_loss and start:
        stage = Stage(rebuilt.model, norms)
        start.restore()
        without = answer_loss.of(root)
        fitted = least <= without
        if fitted:
            stage.restore()
        else:
            notes.append(
                "the fits are left out: on the samples that choose, the answers from stored "
                f"statistics are nearer the source's (loss {without:.3g}, fitted {least:.3g})"
            )
            least = without
    share = answer_loss.share_of(root) if answer_loss else np.inf
    trained = False
    if share <= _NEAR_ENOUGH:
        notes.append(
            "not trained after the fits, which bring the answers near enough (loss "
            f"{share:.2g}, {_NEAR_ENOUGH:g} is enough): `kerasnorm.distill` may bring them nearer"
        )
    else:
        stage = Stage(rebuilt.model, norms)
        trained = reconstruction.run(rebuilt.model, fits.layers, seed, budget)
        notes += reconstruction.notes
    doubts = [
        f"'{task.site}' was not fitted: it is inside of a layer that is run as a whole"
        for task in tasks
        if task.site not in fits.scores
    ]
    doubts += reconstruction.doubts
    if trained and answer_loss and answer_loss.of(root) > least:
        doubts.append("the training is left out: the answers were nearer the source's before it")
        stage.restore()
        trained = False
    # the fits give R² of the samples that chose; the report is of others
    remeasure = trained or not fitted or reconstruction.epochs > 0
    dampings = fits.dampings if fitted else dict.fromkeys(fits.dampings, -1)
    return Calibration(fits.scores, dampings, fitted, trained, remeasure, notes, doubts, held_out)


def _collected(batches: Iterable[list[np.ndarray]], *collectors: Any) -> Iterator[list[np.ndarray]]:
    for collector in collectors:
        batches = collector.collect(batches)
    return iter(batches)


def _answer_loss(source: ModelGraphs, choosing: HeldOutSamples) -> AnswerLoss | None:
    arrays = choosing.at_least(_LEAST_TO_CHOOSE)
    return (
        None if arrays is None or source.root.batch_size is not None else AnswerLoss(source, arrays)
    )
