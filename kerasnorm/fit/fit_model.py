"""Fit a swapped model to its source, layer after layer, on unlabeled data.

Each layer is fitted on what the swapped model, fitted so far, feeds it, against what the source
puts out: later layers repair what earlier ones lost.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.clone.rebuild import Rebuilt
from kerasnorm.fit.cosine_norm import fit_cosine_norm
from kerasnorm.fit.fit_task import FitTask
from kerasnorm.fit.layer_norm import fit_layer_norm, fit_layer_norm_alone
from kerasnorm.fit.linear import fit_linear
from kerasnorm.fit.sampling import ROUGH, FitData, Sampling
from kerasnorm.graph import sites
from kerasnorm.graph.activation_store import ActivationStore
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.steps import Key
from kerasnorm.graph.stream import ActivationStream
from kerasnorm.layers import CosineNorm
from kerasnorm.layers.linear_ops import has_rows
from kerasnorm.progress import progress

# R² on held-out rows, and which damping was taken, where one was.
Fit = Callable[[FitData, Sampling], tuple[float, int | None]]


@dataclass(frozen=True)
class FitResult:
    """What `fit_model` did.

    Attributes:
        scores: R² on held-out rows, by site.
        dampings: Which of a task's `damping` was taken, by site; not where none was.
        layers: The layers that were fitted.
    """

    scores: dict[str, float]
    dampings: dict[str, int]
    layers: list[keras.Layer]


def fit_model(
    model_graphs: ModelGraphs,
    rebuilt: Rebuilt,
    tasks: list[FitTask],
    batches: Iterable[list[np.ndarray]],
    *,
    seed: int,
    memory_budget: int,
    alone: bool = False,
) -> FitResult:
    """Fit the layers of a swapped model in graph order, linear layers in between included.

    Args:
        model_graphs: The source's graphs.
        rebuilt: The swapped model; its layers are set in place.
        tasks: What stands for the swapped sites.
        batches: The data: inputs of the model, flat, batch by batch.
        seed: Of the sampling.
        memory_budget: Bytes of activations to hold in memory.
        alone: Whether each layer is fitted on what the source feeds it, as if it were the only
            one that is swapped, and on fewer rows; those in between are left as they are then.
    """
    store = ActivationStore(memory_budget)
    copies = {id(graph.owner): graph for graph in rebuilt.graphs.values()}
    root: Any = rebuilt.graphs[id(model_graphs.root.owner)]
    source = ActivationStream(model_graphs.root, model_graphs.graphs, store, "source")
    swapped = ActivationStream(root, copies, store, "swapped")
    found = (_ScheduledFit.of(item, source, swapped) for item in tasks)
    scheduled = [item for item in found if item is not None]
    calls: list[tuple[int, int]] = []
    if alone:
        calls = [call for item in tasks for call in item.calls(rebuilt, source, swapped)]
    else:
        scheduled += _in_between(model_graphs, rebuilt, tasks, source, swapped)
    in_place = _InPlace(calls, source, swapped)
    for pending in scheduled:
        source.pin(pending.target)
    scores: dict[str, float] = {}
    taken: dict[str, int] = {}
    try:
        for arrays in batches:
            source.feed(arrays)
            swapped.feed(arrays)
        random = np.random.default_rng(seed)
        sampling = Sampling(source.batches, random, *([ROUGH] if alone else []))
        with progress("fitting", len(scheduled)) as advance:
            for fit in sorted(scheduled, key=lambda item: item.step):
                in_place.get_ready(fit.step)
                scores[fit.name], choice = fit.run(fit.data(source, swapped), sampling)
                if choice is not None:
                    taken[fit.name] = choice
                source.unpin(fit.target)
                in_place.release()
                advance()
    finally:
        store.close()
    by_site = {item.site: scores[item.site] for item in tasks if item.site in scores}
    return FitResult(by_site, taken, [layer for item in scheduled for layer in item.layers])


@dataclass(frozen=True)
class _ScheduledFit:
    """A fit, and how far both models have to have come for it.

    Attributes:
        name: The site, or the layer.
        step: The swapped model's step in front of which it is done.
        target: The key in the source's stream of what the layer is compared with.
        target_step: The source's step by which that is known.
        run: The fit.
        layers: The layers that it sets.
    """

    name: str
    step: int
    target: Key
    target_step: int
    run: Fit
    layers: tuple[Any, ...]

    @classmethod
    def of(
        cls, item: FitTask, source: ActivationStream, swapped: ActivationStream
    ) -> _ScheduledFit | None:
        """The fit of a site; None where one of the models does not call it."""
        with_plain = item.plain is not None and has_rows(item.plain)
        step = swapped.first_call_of(item.plain if with_plain else item.layer)
        at = source.first_step(item.target)
        if step is None or at is None:
            return None
        run = _fit_of(item)
        layers = (item.layer,) if item.plain is None else (item.layer, item.plain)
        if item.source is not None:
            return cls(item.site, step, source.input(at), at, run, layers)
        return cls(item.site, step, source.output(at), at + 1, run, layers)

    def data(self, source: ActivationStream, swapped: ActivationStream) -> FitData:
        given = swapped.input(self.step)
        return lambda: zip(
            swapped.activations(self.step, given),
            source.activations(self.target_step, self.target),
            strict=True,
        )


class _InPlace:
    """Has the swapped model go on, behind each call that is fitted, from what the source has there.

    Args:
        calls: The steps of each such call in the swapped model, and in the source.
        source: The source's stream.
        swapped: The swapped model's.
    """

    def __init__(
        self, calls: list[tuple[int, int]], source: ActivationStream, swapped: ActivationStream
    ):
        self._source, self._swapped, self._waiting = source, swapped, calls
        for own, at in calls:
            key = source.output(at)
            source.pin(key)
            swapped.put_in_place(swapped.output(own), functools.partial(source.stored, key))

    def get_ready(self, step: int) -> None:
        """Have the source make all that the swapped model needs to get to a step."""
        self._source.advance(max((at + 1 for own, at in self._waiting if own < step), default=0))

    def release(self) -> None:
        """Drop what the swapped model is past."""
        past = [call for call in self._waiting if self._swapped.has_made(call[0])]
        self._waiting = [call for call in self._waiting if call not in past]
        for _, at in past:
            self._source.unpin(self._source.output(at))


def _fit_of(item: FitTask) -> Fit:
    layer, damping = item.layer, item.damping
    if isinstance(layer, CosineNorm):
        return lambda data, sampling: fit_cosine_norm(layer, item.source, data, sampling, damping)
    if item.plain is None or not has_rows(item.plain):
        return lambda data, sampling: fit_layer_norm_alone(layer, data, sampling, damping)
    return lambda data, sampling: fit_layer_norm(item.plain, layer, data, sampling, damping)


def _fit_linear(copy: Any, original: Any, data: FitData, sampling: Sampling) -> tuple[float, None]:
    return fit_linear(copy, original, data, sampling), None


def _in_between(
    model_graphs: ModelGraphs,
    rebuilt: Rebuilt,
    tasks: list[FitTask],
    source: ActivationStream,
    swapped: ActivationStream,
) -> list[_ScheduledFit]:
    """The linear layers behind the first swapped site that stand for no site themselves."""
    fitted = {id(layer) for item in tasks for layer in (item.layer, item.plain)}
    steps = [swapped.first_call_of(item.plain or item.layer) for item in tasks]
    first = min((step for step in steps if step is not None), default=len(swapped.steps))
    found: list[_ScheduledFit] = []
    for at, linear_step in enumerate(source.steps):
        original: Any = linear_step.call.operation
        copy = rebuilt.copies.get(id(original))
        linear = sites.is_plain_linear(original) and model_graphs.calls[id(original)] == 1
        if copy is None or not linear or id(copy) in fitted or type(copy) is not type(original):
            continue
        where = swapped.first_call_of(copy)
        if has_rows(original) and where is not None and where > first:
            run = functools.partial(_fit_linear, copy, original)
            name = f"layer {original.name}"
            found.append(_ScheduledFit(name, where, source.input(at), at, run, (copy,)))
    return found
