"""The activations of a model on some data, call by call: all data at each call before the next.

The calls in models nested in it, and in layers whose code was traced, are taken as if they stood in
the model itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.graph.activation_store import ActivationStore, as_array
from kerasnorm.graph.execute import call_on
from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.trace import fed_by

Key = Hashable


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


class ActivationStream:
    """The steps of a model, and how far all data has come.

    `batches` counts what was fed.

    Args:
        root: The model's graph.
        graphs: The graphs of everything whose calls are steps, by the `id` of its owner.
        store: Where activations are kept; the inputs are put there by `feed`.
        name: What sets this model's keys in the store apart.
    """

    def __init__(self, root: Graph, graphs: Mapping[int, Graph], store: ActivationStore, name: str):
        self._graphs = graphs
        self.batches = 0
        self._store = store
        self._name = name
        self._keys: dict[tuple, Key] = {}
        self.steps = list(self._flattened(root, ()))
        self._inputs = [self._key((), tensor) for tensor in tree.flatten(root.inputs)]
        self._done = 0
        self._last_use = {
            key: number for number, step in enumerate(self.steps) for key in step.reads
        }
        self._kept: set[Key] = set()
        self._pinned: Counter[Key] = Counter()

    def feed(self, arrays: list[np.ndarray]) -> None:
        """Give the model's inputs, flat, for the next batch."""
        for key, array in zip(self._inputs, arrays, strict=True):
            self._store.put((self._name, key), self.batches, array)
            self._kept.add(key)
        self.batches += 1

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

    def pin(self, key: Key) -> None:
        """Keep what a key holds until it is unpinned."""
        self._pinned[key] += 1

    def unpin(self, key: Key) -> None:
        self._pinned[key] -= 1
        self._release()

    def activations(self, step: int, key: Key) -> Iterator[np.ndarray]:
        """What every batch holds under a key that is known before a step, once it got there."""
        if key in self._kept:
            for batch in range(self.batches):
                yield as_array(self._store.get((self._name, key), batch))
            return
        todo = self.steps[self._done : step]
        produced = {k for s in todo for k in s.gives}
        keep = {k for k in produced if self._last_use.get(k, -1) >= step or self._pinned[k]}
        needed = {k for s in todo for k in s.reads} - produced
        for batch in range(self.batches):
            values = {k: self._load(k, batch) for k in needed}
            self._run(todo, values, keep)
            for k in keep:
                self._store.put((self._name, k), batch, values[k])
            yield as_array(values[key])
        self._done = step
        self._kept |= keep
        self._release()

    def _release(self) -> None:
        """Drop what no later step reads."""
        for key in list(self._kept):
            if self._last_use.get(key, -1) < self._done and not self._pinned[key]:
                self._kept.discard(key)
                self._store.drop((self._name, key))

    def _load(self, key: Key, batch: int):
        return keras.ops.convert_to_tensor(self._store.get((self._name, key), batch))

    def _run(self, steps: list[Step], values: dict[Key, Any], keep: set[Key]) -> None:
        last = {k: n for n, s in enumerate(steps) for k in s.reads}
        for number, step in enumerate(steps):
            known = {i: values[k] for i, k in step.keys.items() if k in values}
            with keras.StatelessScope(initialize_variables=False):  # the layers' state stays
                outputs = tree.flatten(call_on(step.call, known))
            values.update(zip(step.gives, outputs, strict=True))
            for key in step.reads:
                if last[key] == number and key not in keep:
                    values.pop(key, None)

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
