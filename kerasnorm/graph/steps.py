"""The calls of a model in the order that they are made, those in models nested in it included.

The calls in nested models, and in layers whose code was traced, are taken as if they stood in the
model itself.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Container, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
from keras import ops, tree

from kerasnorm.graph.execute import call_on
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.trace import fed_by

Key = Hashable
Values = dict[Key, Any]


@dataclass(frozen=True, eq=False)
class Step:
    """One call, with the keys of what it reads and gives."""

    call: Call
    keys: dict[int, Key]
    """By the `id` of each symbolic tensor among its arguments and outputs."""

    @property
    def reads(self) -> list[Key]:
        return [self.keys[id(t)] for t in self.call.inputs if id(t) in self.keys]

    @property
    def gives(self) -> list[Key]:
        return [self.keys[id(t)] for t in self.call.outputs]

    def run(self, values: Mapping[Key, Any]) -> list[Any]:
        """What it gives at inference, in the order of `gives`; the layers' state stays.

        Args:
            values: What it reads, by key.
        """
        known = {i: values[k] for i, k in self.keys.items() if k in values}
        with keras.StatelessScope(initialize_variables=False):
            return tree.flatten(call_on(self.call, known))


class Steps:
    """The steps of a model.

    Args:
        root: The model's graph.
        graphs: The graphs of everything whose calls are steps, by the `id` of its owner.

    Attributes:
        steps: In order.
        inputs: The keys of the model's inputs, flat.
        outputs: The keys of its outputs, flat.
    """

    def __init__(self, root: Graph, graphs: Mapping[int, Graph]):
        self._graphs = graphs
        self._keys: dict[tuple, Key] = {}
        self.steps = list(self._flattened(root, ()))
        self.inputs = [self._key((), tensor) for tensor in tree.flatten(root.inputs)]
        self.outputs = [self._key((), tensor) for tensor in tree.flatten(root.outputs)]

    def first_step(self, call: Call) -> int | None:
        """The number of the step that makes a call, the first where there are several."""
        return next((n for n, step in enumerate(self.steps) if step.call is call), None)

    def first_call_of(self, layer: keras.Layer) -> int | None:
        """The number of the step that calls a layer, the first where there are several."""
        return next((n for n, s in enumerate(self.steps) if s.call.operation is layer), None)

    def output(self, step: int) -> Key:
        """The key of what a step gives."""
        return self.steps[step].gives[0]

    def input(self, step: int) -> Key:
        """The key of what a step reads."""
        return self.steps[step].reads[0]

    def run(
        self,
        arrays: Iterable[Any],
        *,
        read_as: Mapping[Key, Any] | None = None,
        keep: Container[Key] | None = None,
        count: int | None = None,
    ) -> Values:
        """What the model has under each key, at inference.

        Args:
            arrays: Its inputs, flat.
            read_as: By key, what the steps that read it get in its place.
            keep: The keys whose values are given back; None for all of them.
            count: How many of the steps to make; None for all of them.
        """
        steps = self.steps[:count]
        values = dict(zip(self.inputs, map(ops.convert_to_tensor, arrays), strict=True))
        read = ChainMap(dict(read_as or {}), values)
        last = {key: number for number, step in enumerate(steps) for key in step.reads}
        for number, step in enumerate(steps):
            values.update(zip(step.gives, step.run(read), strict=True))
            if keep is not None:
                done = (key for key in (*step.reads, *step.gives) if last.get(key, -1) <= number)
                for key in done:
                    if key not in keep:
                        values.pop(key, None)
        return values

    def run_on(self, values: Values, changed: Values) -> Mapping[Key, Any]:
        """What the model has under each key if some of what it has is something else.

        Args:
            values: What it has, as `run` gives it.
            changed: By key, what it has in place of that.
        """
        changed = dict(changed)
        found = ChainMap(changed, values)
        for step in self.steps:
            if not changed.keys().isdisjoint(step.reads):
                given = zip(step.gives, step.run(found), strict=True)
                changed.update((key, value) for key, value in given if key not in changed)
        return found

    def _flattened(self, graph: Graph, scope: tuple) -> Iterator[Step]:
        for call in graph.calls:
            if call.is_input:
                continue
            inner = self._graphs.get(id(call.operation))
            ends = None if inner is None else self._ends(inner, call)
            if inner is None or ends is None:
                tensors = [*call.inputs, *call.outputs]
                yield Step(call, {id(t): self._key(scope, t) for t in tensors})
                continue
            within = (*scope, id(call))
            for outside, inside in zip(*ends, strict=True):
                self._keys[(within, id(inside))] = self._key(scope, outside)
            yield from self._flattened(inner, within)
            outputs = tree.flatten(inner.outputs)
            for outside, inside in zip(call.outputs, outputs, strict=True):
                self._keys[(scope, id(outside))] = self._key(within, inside)

    def _key(self, scope: tuple, tensor) -> Key:
        return self._keys.setdefault((scope, id(tensor)), (scope, id(tensor)))

    def _ends(self, inner: Graph, call: Call) -> tuple[list, list] | None:
        """What a nested graph is fed and its inputs; None for one that is run as a whole."""
        if isinstance(call.operation, keras.layers.TimeDistributed):
            return None
        fed, inputs = fed_by(inner, call), tree.flatten(inner.inputs)
        return (fed, inputs) if len(fed) == len(inputs) else None
