"""Run a model and its copy on the same inputs and look at pairs of their tensors.

What is inside a nested model is looked at in each of its calls, on what the source feeds it there.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from kerasnorm.compare.measures import as_numbers
from kerasnorm.compare.random_inputs import NotComparableError
from kerasnorm.compare.rounding import moved_weights
from kerasnorm.compare.tensor_pairs import ModelPair, TensorPair, output_pairs
from kerasnorm.graph.execute import run_tensors
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.trace import fed, fed_by, said


@dataclass(frozen=True)
class Values:
    """What both models have at a pair of tensors.

    Attributes:
        name: That of the pair; "backbone#2/bn" in the second call of a nested model.
        pair: The pair.
        expected: What the source has.
        received: What the copy has.
    """

    name: str
    pair: TensorPair
    expected: np.ndarray
    received: np.ndarray


def joined(parts: Sequence[Values]) -> Values:
    """What both models have at one pair in several batches, as if it was of one."""
    if len(parts) == 1:
        return parts[0]
    return dataclasses.replace(
        parts[0],
        expected=np.concatenate([np.atleast_1d(part.expected) for part in parts]),
        received=np.concatenate([np.atleast_1d(part.received) for part in parts]),
    )


@dataclass(frozen=True)
class SideBySide:
    """How two models are run side by side.

    Attributes:
        models: The models.
        stepwise: Whether the copy goes on, behind each tensor that is compared and each nested
            model that is looked into, from what the source has there, so that differences do not
            add up. The outputs of nested models are compared too then.
        moved: (seed, least step) to move the copy's weights by one rounding step (see
            `compare.rounding`).
    """

    models: ModelPair
    stepwise: bool = False
    moved: tuple[int, float] | None = None

    def run(self, arrays: list[Any]) -> Iterator[Values]:
        """What both models have at each pair, those of nested models first.

        Args:
            arrays: The inputs, flat.

        Raises:
            NotComparableError: If the source cannot be run on the inputs.
        """
        yield from self._in_graph(self.models.source.root, arrays, Counter())

    def _in_graph(self, graph: Graph, arrays: list[Any], calls: Counter[int]) -> Iterator[Values]:
        calls[id(graph.owner)] += 1
        number = calls[id(graph.owner)]
        nested = self.models.opened_calls(graph)
        inner = [self.models.source.graphs[id(call.operation)] for call in nested]
        entries = [fed_by(g, call) for g, call in zip(inner, nested, strict=True)]
        in_place = self._in_place_of_nested(graph, nested) if self.stepwise else {}
        pairs = [pair for pair in self._pairs(graph) if id(pair.received) not in in_place]
        asked = [pair.expected for pair in pairs]
        asked += itertools.chain(in_place.values(), *entries)
        values = dict(zip(map(id, asked), source_values(graph, arrays, asked), strict=True))
        for g, tensors in zip(inner, entries, strict=True):
            yield from self._in_graph(g, fed(g, [values[id(t)] for t in tensors]), calls)

        copy = self.models.copies[id(graph.owner)]
        expected = [keras.ops.convert_to_numpy(values[id(pair.expected)]) for pair in pairs]
        given = {key: values[id(tensor)] for key, tensor in in_place.items()}
        if self.stepwise:
            given |= {id(p.received): value for p, value in zip(pairs, expected, strict=True)}
        state = moved_weights(copy.owner.variables, *self.moved) if self.moved else ()
        wanted = [pair.received for pair in pairs]
        received = run_tensors(copy, arrays, wanted, state=state, given=given)
        path = self.models.source.paths[id(graph.owner)]
        path_of_call = path if number == 1 else f"{path[:-1]}#{number}/"
        for pair, value, other in zip(pairs, expected, received, strict=True):
            name = path_of_call + pair.name.removeprefix(path)
            yield Values(name, pair, *as_numbers(value, keras.ops.convert_to_numpy(other)))

    def _pairs(self, graph: Graph) -> list[TensorPair]:
        pairs = [pair for pair in self.models.pairs if pair.graph.owner is graph.owner]
        if not self.stepwise or graph is self.models.source.root:
            return pairs
        known = {id(pair.expected) for pair in pairs}
        path, copy = self.models.source.paths[id(graph.owner)], self.models.copies[id(graph.owner)]
        ends = output_pairs(graph, copy, known=pairs, path=path)
        return [*pairs, *(pair for pair in ends if id(pair.expected) not in known)]

    def _in_place_of_nested(self, graph: Graph, nested: list[Call]) -> dict[int, Any]:
        """The outputs of nested models, by the `id` of what the copy has in their place."""
        return {
            id(self.models.counterpart(graph, tensor)): tensor
            for call in nested
            # which is looked into at one of its steps
            if not isinstance(call.operation, keras.layers.TimeDistributed)
            for tensor in call.outputs
        }


def source_values(graph: Graph, arrays: list[Any], tensors: list[Any]) -> list[Any]:
    """What a source has at some of its tensors.

    Raises:
        NotComparableError: If it cannot be run on the inputs.
    """
    try:
        return run_tensors(graph, arrays, tensors)
    except Exception as error:
        # any model of any user, on inputs it was not made for
        raise NotComparableError(f"it fails ({said(error)[:100]})") from error
