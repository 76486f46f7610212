"""How sensitive the answers of a model are to the norm of each site alone.

Each layer is fitted on what the source feeds it, as if it were the only one that is swapped. Then
the source goes on from what that layer gives to its answers. How far these are from the source's
own is the loss of the site; that of all sites together is about the sum. (A layer that is called
several times is given in each call what the source has there. Masked steps of answers count.)
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from keras import ops

from kerasnorm.clone.rebuild import Rebuilt, rebuild
from kerasnorm.distillation.answer_loss import AnswerLoss
from kerasnorm.distillation.losses import Distance, joined
from kerasnorm.distillation.reconstruct import multiplications
from kerasnorm.fit.fit_model import fit_model
from kerasnorm.fit.fit_task import FitTask
from kerasnorm.fit.parts import (
    first_batches,
    first_samples,
    in_larger_parts,
    in_parts,
)
from kerasnorm.fit.split import is_reported_on, same_shapes
from kerasnorm.graph.execute import samples_at_once
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.output_heads import heads_of
from kerasnorm.graph.steps import Key, Steps
from kerasnorm.progress import progress
from kerasnorm.swap.decide import Decision
from kerasnorm.swap.fit_tasks import fit_tasks
from kerasnorm.targets.target import Damping

Batches = list[list[np.ndarray]]

# What the losses of all sites may add up to: nats, shares of what the answers say, or 1 − R².
ALLOWED = 0.02
# A site that keeps so much of its activation's variance is not run to the answers.
_INSENSITIVE = 0.999
# Samples: to fit to at most, and to run to the answers. Of fewer, a few would decide.
_TO_FIT, _TO_RUN, _LEAST_TO_RUN = 256, 160, 32
_BYTES = 4  # of an entry
# Multiplications of all runs: a minute or so of two processor cores.
_WORK = 2e11


def choose_by_answers(
    decisions: Sequence[Decision],
    batches: Iterator[list[np.ndarray]],
    damping: Damping,
    *,
    seed: int,
    memory_budget: int,
    most: float = np.inf,
) -> tuple[Decision, Iterator[list[np.ndarray]]]:
    """The decision that the source's answers ask for, and the data again.

    The most sensitive sites get weight norm, those with the largest loss first, until the losses of
    the others add up to no more than is allowed; if none would be left, the one with the smallest
    loss stays. They do not where sites were named, or where there is one only. Of several
    decisions, which differ in the groups of channels only, the first tells which sites these are.
    From the others comes one more, in which each site has the number of groups by which its loss is
    least, of those that were run to the answers; and of all of them that stays whose answers are
    nearest when all sites are fitted. Nothing changes for a model of a fixed batch size, or with
    fewer than 96 samples.

    Args:
        decisions: What may become of each site; the first where there is no telling.
        batches: The data: flat inputs, batch by batch. The first few hundred samples are read.
        damping: See `Target.rewrite`.
        seed: Of the sampling.
        memory_budget: Bytes of activations to hold in memory.
        most: How many samples there is time for.
    """
    decision = decisions[0]
    _, requests = decision.carry_out(damping)
    stay = decision.named or len(requests) < 2
    if decision.model_graphs.root.batch_size is not None or (stay and len(decisions) == 1):
        return decision, batches
    first = list(first_batches(batches, min(most, _TO_FIT + _TO_RUN)))
    some = list(first_samples(first, min(most, _TO_FIT + _TO_RUN)))
    found = [
        sensitivity(other, some, damping, seed=seed, memory_budget=memory_budget)
        for other in decisions
    ]
    best = {
        name: min(
            (number for number, losses in enumerate(found) if not number or name in losses),
            key=lambda number: found[number].get(name, 0.0),
        )
        for name in requests
    }
    losses = found[0]
    reasons = {
        name: f"by itself it moves the answers by {losses[name]:.2g}, and all sites together may "
        f"by no more than {ALLOWED:.2g}"
        if np.isfinite(losses[name])
        else "its layer cannot be fitted where it is, or the answers are not finite with it"
        for name in ([] if stay else _most_sensitive(losses, others=len(requests) > len(losses)))
    }
    to_compare = [other.instead(reasons) for other in decisions]
    if len(decisions) > 1:
        chosen = {name: decisions[n].groups[name] for name, n in best.items()}
        to_compare.append(decision.with_groups(chosen).instead(reasons))
        to_compare.sort(
            key=lambda other: fitted_loss(
                other, some, damping, seed=seed, memory_budget=memory_budget
            )
        )
    return to_compare[0], itertools.chain(first, batches)


def _most_sensitive(losses: Mapping[str, float], others: bool) -> list[str]:
    """The sites without which the losses of the rest add up to no more than is allowed.

    Args:
        losses: By site.
        others: Whether there are other sites; if there are none, one stays.
    """
    found = sorted(losses, key=losses.__getitem__)
    sums = np.cumsum([losses[name] for name in found])
    stay = int(np.searchsorted(sums, ALLOWED, side="right"))
    return found[stay if others else max(1, stay) :]


def sensitivity(
    decision: Decision,
    batches: Iterable[list[np.ndarray]],
    damping: Damping,
    *,
    seed: int,
    memory_budget: int,
) -> dict[str, float]:
    """By site, how far its norm alone moves the answers; not where it keeps all but nothing.

    Of a large model, only the sites that keep least of their activation are run to the answers, as
    many as there is time for. Args as `choose_by_answers` has them.

    Returns:
        The loss of each site: the largest `Distance` of an output, as a share of its
        `information`. It is infinite for a site that cannot be fitted.
    """
    to_fit, to_run = _to_fit_and_run(batches)
    if not to_run:
        return {}
    source = decision.model_graphs
    edits, requests = decision.carry_out(damping)
    rebuilt = rebuild(source, edits, compiled=False)
    tasks = fit_tasks(requests, rebuilt)
    found = fit_model(
        source, rebuilt, tasks, to_fit, seed=seed, memory_budget=memory_budget, alone=True
    )
    scores = {name: r2 if np.isfinite(r2) else -np.inf for name, r2 in found.scores.items()}
    unfitted = {task.site: np.inf for task in tasks if task.site not in scores}
    tasks = [task for task in tasks if task.site in scores]
    sites = sorted((s for s in scores if scores[s] < _INSENSITIVE), key=scores.__getitem__)
    # the answers of each are half a run of the source
    runs = _WORK / max(1.0, multiplications(source, to_run[0]) / 2)
    sites = sites[: int(runs // _LEAST_TO_RUN)]
    if not sites:
        return unfitted
    models = _SideBySide(source, rebuilt, tasks)
    at_once = models.samples_within(memory_budget, to_run[0])
    samples = list(in_parts(first_samples(to_run, int(runs // len(sites))), at_once))
    return unfitted | models.losses(sites, samples)


def fitted_loss(
    decision: Decision,
    batches: Iterable[list[np.ndarray]],
    damping: Damping,
    *,
    seed: int,
    memory_budget: int,
) -> float:
    """How far the answers are from the source's when all sites are fitted, one after the other.

    Args as `choose_by_answers` has them.
    """
    to_fit, to_run = _to_fit_and_run(batches)
    if not to_run:
        return 0.0
    source = decision.model_graphs
    edits, requests = decision.carry_out(damping)
    rebuilt = rebuild(source, edits, compiled=False)
    tasks = fit_tasks(requests, rebuilt)
    fit_model(source, rebuilt, tasks, to_fit, seed=seed, memory_budget=memory_budget)
    arrays = [np.concatenate(column) for column in zip(*to_run, strict=True)]
    loss = AnswerLoss(source, arrays).share_of(rebuilt.graphs[id(source.root.owner)])
    return loss if np.isfinite(loss) else np.inf


class _SideBySide:
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

    def samples_within(self, memory_budget: int, arrays: list[np.ndarray]) -> int:
        """How many samples may be run at once, whose activations are all held."""
        values = self._source.run([array[:1] for array in arrays])
        each = _BYTES * sum(int(np.prod(value.shape)) for value in values.values())
        return int(np.clip(memory_budget // (2 * each), 1, samples_at_once(arrays)))

    def losses(self, sites: list[str], parts: list[list[np.ndarray]]) -> dict[str, float]:
        """By site, the largest `Distance` of an output, as a share of its `information`.

        Args:
            sites: The sites.
            parts: Samples, as flat inputs; a part is run at once.
        """
        expected: list[list[np.ndarray]] = []
        received: dict[str, list[list[np.ndarray]]] = {site: [] for site in sites}
        wanted = {own for site in sites for own, _ in self._keys(site)}
        with progress("sensitivity", len(parts)) as advance:
            for arrays in parts:
                values = self._source.run(arrays)
                expected.append(self._logits(values))
                own = self._swapped.run(arrays, read_as=self._in_place(values), keep=wanted)
                for site, answers in received.items():
                    changed = {t: own[y] for y, t in self._keys(site)}
                    answers.append(self._logits(self._source.run_on(values, changed)))
                advance()
        distances = [Distance(h, t) for h, t in zip(self._heads, joined(expected), strict=True)]
        return {
            site: max(
                distance.of(logits) / distance.information
                for distance, logits in zip(distances, joined(answers), strict=True)
            )
            for site, answers in received.items()
        }

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


def _to_fit_and_run(batches: Iterable[list[np.ndarray]]) -> tuple[Batches, Batches]:
    """Samples to fit to, and a third of them to run to the answers, all of one shape.

    None of these is reported on. There are none if they would be few.
    """
    parts = list(in_larger_parts(iter(batches)))
    count = sum(len(arrays[0]) for arrays in parts)
    to_run = min(_TO_RUN, count // 3)
    if to_run < _LEAST_TO_RUN:
        return parts, []
    first, rest = _split(parts, count - to_run)
    unreported = list(_unreported(rest, count - to_run))
    return first, [arrays for arrays in unreported if same_shapes(arrays, rest[0])]


def _split(batches: Iterable[list[np.ndarray]], count: int) -> tuple[Batches, Batches]:
    """The first samples, so many, and the rest."""
    first: Batches = []
    rest: Batches = []
    for arrays in batches:
        size = min(max(0, count), len(arrays[0]))
        count -= size
        if size:
            first.append([array[:size] for array in arrays])
        if size < len(arrays[0]):
            rest.append([array[size:] for array in arrays])
    return first, rest


def _unreported(batches: list[list[np.ndarray]], first: int) -> Iterator[list[np.ndarray]]:
    """The samples that the report says nothing of; `first` is the number of the first."""
    for arrays in batches:
        kept = ~is_reported_on(first + np.arange(len(arrays[0])))
        first += len(arrays[0])
        if kept.any():
            yield [array[kept] for array in arrays]
