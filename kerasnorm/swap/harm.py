"""Find the sites where a norm does harm: where it moves the answers of the model too far.

Each layer is fitted on what the source feeds it, as if it were the only one that is swapped. Then
the source goes on from what that layer gives to its answers. How far these are from the source's
own is the loss of the site; that of all sites together is about the sum. (A layer that is called
several times is given in each call what the source has there.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from keras import ops

from kerasnorm.clone.rebuild import Rebuilt, rebuild
from kerasnorm.distillation.losses import disagreement
from kerasnorm.distillation.reconstruct import multiplications
from kerasnorm.fit.fit_model import fit_model
from kerasnorm.fit.fit_task import FitTask
from kerasnorm.fit.split import is_reported_on
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.output_heads import heads_of
from kerasnorm.graph.steps import Key, Steps
from kerasnorm.progress import progress
from kerasnorm.swap.decide import Decision
from kerasnorm.swap.fit_tasks import fit_tasks
from kerasnorm.swap.pilot import first_batches
from kerasnorm.targets.target import Damping

# What the losses of all sites may add up to: `Disagreement` of the answers in nats, or 1 − R².
ALLOWED = 0.02
# What keeps so much of its activation's variance is not judged.
_HARMLESS = 0.999
# Samples: to fit to at most, and to judge by. Of fewer, a few would decide.
_TO_FIT, _TO_JUDGE, _LEAST_TO_JUDGE = 256, 160, 32
_AT_ONCE = 32
# Multiplications of all runs: a minute or so of two processor cores.
_WORK = 2e11


def without_harm(
    decision: Decision,
    batches: Iterator[list[np.ndarray]],
    damping: Damping,
    *,
    seed: int,
    memory_budget: int,
    most: float = np.inf,
) -> tuple[Decision, Iterator[list[np.ndarray]]]:
    """A decision in which sites that data shows to do harm get weight norm, and the data again.

    Those with the largest losses do, until the losses of the rest add up to no more than is
    allowed; the one with the smallest stays in any case. Nothing is judged where sites were named,
    where there is one only, or of fewer than a hundred samples.

    Args:
        decision: What becomes of each site.
        batches: The data: flat inputs, batch by batch. The first few hundred samples are read.
        damping: See `Target.rewrite`.
        seed: Of the sampling.
        memory_budget: Bytes of activations to hold in memory.
        most: How many samples there is time for.
    """
    _, requests = decision.carry_out(damping)
    if decision.named or decision.model_graphs.root.has_fixed_batch or len(requests) < 2:
        return decision, batches
    first = list(first_batches(batches, min(most, _TO_FIT + _TO_JUDGE)))
    losses = harm(decision, first, damping, seed=seed, memory_budget=memory_budget)
    harmful = _worst(losses)
    reasons = {
        name: f"alone, it moves the answers too far (by {losses[name]:.2g} on held-out samples, "
        f"where all sites together may by {ALLOWED:.2g})"
        for name in harmful
    }
    return decision.instead(reasons), itertools.chain(first, batches)


def _worst(losses: Mapping[str, float]) -> list[str]:
    """The sites without which the losses of the others add up to no more than is allowed.

    That of one site may be larger: the least harmful one stays.
    """
    found = sorted(losses, key=losses.__getitem__)
    sums = np.cumsum([losses[name] for name in found])
    return found[max(1, int(np.searchsorted(sums, ALLOWED, side="right"))) :]


def harm(
    decision: Decision,
    batches: list[list[np.ndarray]],
    damping: Damping,
    *,
    seed: int,
    memory_budget: int,
) -> dict[str, float]:
    """By site, how far its norm alone moves the answers; not where that is certainly little.

    Of a large model, the sites that keep least of their activation are judged, as many as there is
    time for. Args as `without_harm` has them.

    Returns:
        The loss of each site, the largest `Disagreement` of an output.
    """
    count = sum(len(arrays[0]) for arrays in batches)
    to_judge = min(_TO_JUDGE, count // 3)
    if to_judge < _LEAST_TO_JUDGE:
        return {}
    source = decision.model_graphs
    edits, requests = decision.carry_out(damping)
    rebuilt = rebuild(source, edits, compiled=False)
    tasks = fit_tasks(requests, rebuilt)
    first, rest = _split(batches, count - to_judge)
    settings = {"seed": seed, "memory_budget": memory_budget}
    scores = fit_model(source, rebuilt, tasks, first, alone=True, **settings).scores
    tasks = [task for task in tasks if task.site in scores]
    doubtful = sorted((s for s in scores if scores[s] < _HARMLESS), key=scores.__getitem__)
    # the answers of each are half a run of the source
    runs = _WORK / max(1.0, multiplications(source, batches[0]) / 2)
    doubtful = doubtful[: int(runs // _LEAST_TO_JUDGE)]
    if not doubtful or not rest:
        return {}
    judged = min(to_judge, int(runs // len(doubtful)))
    unreported = _unreported(rest, sum(len(arrays[0]) for arrays in first))
    parts = list(_parts(unreported, judged, _AT_ONCE))
    return _Judge(source, rebuilt, tasks).losses(doubtful, parts)


class _Judge:
    """Runs the source, and what each site alone makes of its answers.

    Args:
        source: The source's graphs.
        rebuilt: The swapped model, each layer fitted on what the source feeds it.
        tasks: Its fits, all of them.
    """

    def __init__(self, source: ModelGraphs, rebuilt: Rebuilt, tasks: list[FitTask]):
        copies = {id(graph.owner): graph for graph in rebuilt.graphs.values()}
        self._source = Steps(source.root, source.graphs)
        self._swapped = Steps(rebuilt.graphs[id(source.root.owner)], copies)
        self._heads = heads_of(source)
        steps = self._source, self._swapped
        self._calls = {task.site: task.calls(rebuilt, *steps) for task in tasks}

    def losses(self, sites: list[str], parts: list[list[np.ndarray]]) -> dict[str, float]:
        """By site, the largest `Disagreement` of an output; infinite for NaN.

        Args:
            sites: The sites.
            parts: Samples, as flat inputs; a part is run at once.
        """
        expected: list[list[np.ndarray]] = []
        received: dict[str, list[list[np.ndarray]]] = {site: [] for site in sites}
        with progress("judging", len(parts)) as advance:
            for arrays in parts:
                values = self._source.run(arrays)
                expected.append(self._logits(values))
                own = self._swapped.run(arrays, read_as=self._in_place(values))
                for site, answers in received.items():
                    changed = {t: own[y] for y, t in self._keys(site)}
                    answers.append(self._logits(self._source.run_on(values, changed)))
                advance()
        wanted = _joined(expected)
        losses = [disagreement(h, t) for h, t in zip(self._heads, wanted, strict=True)]
        found = {}
        for site, answers in received.items():
            ends = zip(losses, wanted, _joined(answers), strict=True)
            worst = max(float(loss(t, y)) for loss, t, y in ends)
            found[site] = worst if np.isfinite(worst) else np.inf
        return found

    def _in_place(self, values: Mapping[Key, Any]) -> dict[Key, Any]:
        """What the source has, under the keys of what is fitted to it."""
        return {y: values[t] for site in self._calls for y, t in self._keys(site)}

    def _keys(self, site: str) -> list[tuple[Key, Key]]:
        """The keys of what a fitted layer gives in each of its calls, and of the source's."""
        calls = self._calls[site]
        return [(self._swapped.output(own), self._source.output(at)) for own, at in calls]

    def _logits(self, values: Mapping[Key, Any]) -> list[np.ndarray]:
        outputs = zip(self._heads, self._source.outputs, strict=True)
        return [ops.convert_to_numpy(head.logits(values[key])) for head, key in outputs]


def _joined(parts: list[list[np.ndarray]]) -> list[np.ndarray]:
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


def _split(
    batches: Iterable[list[np.ndarray]], count: int
) -> tuple[list[list[np.ndarray]], list[list[np.ndarray]]]:
    """The batches of the first samples, so many or a few more, and those of the rest."""
    first: list[list[np.ndarray]] = []
    rest: list[list[np.ndarray]] = []
    for arrays in batches:
        (first if count > 0 else rest).append(arrays)
        count -= len(arrays[0])
    return first, rest


def _unreported(batches: list[list[np.ndarray]], first: int) -> Iterator[list[np.ndarray]]:
    """The samples that the report says nothing of; `first` is the number of the first."""
    for arrays in batches:
        kept = ~is_reported_on(first + np.arange(len(arrays[0])))
        first += len(arrays[0])
        yield [array[kept] for array in arrays]


def _parts(
    batches: Iterable[list[np.ndarray]], count: int, at_once: int
) -> Iterator[list[np.ndarray]]:
    """So many samples, a few at a time."""
    for arrays in batches:
        for start in range(0, min(count, len(arrays[0])), at_once):
            stop = min(count, start + at_once)
            yield [array[start:stop] for array in arrays]
        count -= len(arrays[0])
