"""Check a swapped model that is not fitted yet, wherever it has to compute what its source does.

What a swap does not promise to keep, the output of a site that is matched or fitted, is not judged:
the copy goes on behind it from what the source has there. All else is the same in both models, what
such a site is called on and what is between the last site and the outputs included.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import keras

from kerasnorm.compare.differences import check_equal
from kerasnorm.compare.tensor_pairs import ModelPair, TensorPair
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.targets.plan import Plan


def check_copy(models: ModelPair, plans: Iterable[Plan]) -> tuple[dict[str, float], list[str]]:
    """Raise SwapError where a swapped model differs from its source and must not.

    Args:
        models: The models.
        plans: What was decided for each site that is swapped.

    Returns:
        As `check_equal`.
    """
    source = models.source
    inexact = [plan for plan in plans if plan.verdict != "exact"]
    others = _inexact_calls(source, inexact)
    tensors = [(source.path(g, call.operation), g, call.output) for g, call in others]
    for plan in inexact:
        graph, calls = plan.site.graph, plan.calls
        for call in calls if calls[0] is plan.site.call else calls[:1]:
            name = f"{source.path(graph, call.operation)} (its input)"
            tensors.append((name, graph, call.inputs[0]))
    pairs = {_key(pair.graph, pair.expected): pair for pair in models.sites}
    for name, graph, tensor in tensors:
        if not graph.producer(tensor).is_input and _key(graph, tensor) not in pairs:
            pairs[_key(graph, tensor)] = models.pair(name, graph, tensor)
    keys = {_key(graph, call.output) for graph, call in others}

    def marked(pair: TensorPair) -> TensorPair:
        return dataclasses.replace(pair, exact=_key(pair.graph, pair.expected) not in keys)

    return check_equal(
        dataclasses.replace(
            models,
            sites=tuple(map(marked, pairs.values())),
            outputs=tuple(map(marked, models.outputs)),
        )
    )


def _key(graph: Graph, tensor: Any) -> tuple[int, int]:
    return id(graph.owner), id(tensor)  # graphs may have tensors in common


def _inexact_calls(source: ModelGraphs, inexact: list[Plan]) -> list[tuple[Graph, Call]]:
    """The calls whose outputs the copy need not have, each with the graph it is in."""
    found = [(plan.site.graph, plan.calls[-1]) for plan in inexact]
    holders = {id(graph.owner) for graph, _ in found}
    for graph in source.graphs.values():  # inner ones first
        for call in graph.calls:
            if id(call.operation) in holders:
                holders.add(id(graph.owner))
                # which is looked into at one of its steps; behind any other nested model, the copy
                # goes on from what the source has
                if isinstance(call.operation, keras.layers.TimeDistributed):
                    found.append((graph, call))
    return found
