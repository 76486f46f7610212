"""The activations of a model on some data, step by step: all data at each step before the next."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from kerasnorm.graph.activation_store import ActivationStore, as_array
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.steps import Key, Step, Steps


class ActivationStream(Steps):
    """The steps of a model, and how far all data has come.

    `batches` counts what was fed.

    Args:
        root: The model's graph.
        graphs: The graphs of everything whose calls are steps, by the `id` of its owner.
        store: Where activations are kept; the inputs are put there by `feed`.
        name: What sets this model's keys in the store apart.
    """

    def __init__(self, root: Graph, graphs: Mapping[int, Graph], store: ActivationStore, name: str):
        super().__init__(root, graphs)
        self.batches = 0
        self._store = store
        self._name = name
        self._done = 0
        self._last_use = {
            key: number for number, step in enumerate(self.steps) for key in step.reads
        }
        self._kept: set[Key] = set()
        self._pinned: Counter[Key] = Counter()
        self._in_place: dict[Key, Callable[[int], Any]] = {}

    def feed(self, arrays: list[np.ndarray]) -> None:
        """Give the model's inputs, flat, for the next batch."""
        for key, array in zip(self.inputs, arrays, strict=True):
            self._store.put((self._name, key), self.batches, array)
            self._kept.add(key)
        self.batches += 1

    def pin(self, key: Key) -> None:
        """Keep what a key holds until it is unpinned."""
        self._pinned[key] += 1

    def unpin(self, key: Key) -> None:
        self._pinned[key] -= 1
        self._release()

    def put_in_place(self, key: Key, values: Callable[[int], Any]) -> None:
        """Have what reads a key get something else.

        Args:
            key: What a step gives that was not run so far.
            values: Gives what to read, by the number of the batch.
        """
        self._in_place[key] = values

    def activations(self, step: int, key: Key) -> Iterator[np.ndarray]:
        """What every batch holds under a key that is known before a step, once it got there."""
        if key in self._kept:
            for batch in range(self.batches):
                yield as_array(self._store.get((self._name, key), batch))
            return
        for values in self._advanced(step):
            yield as_array(values[key])

    def advance(self, step: int) -> None:
        """Have all data get to a step, if it is not there."""
        if step > self._done:
            for _ in self._advanced(step):
                pass

    def has_made(self, step: int) -> bool:
        """Whether all data is past a step."""
        return step < self._done

    def _advanced(self, step: int) -> Iterator[dict[Key, Any]]:
        """Run the steps before a step, and give what each batch has then."""
        todo = self.steps[self._done : step]
        produced = {k for s in todo for k in s.gives}
        keep = {k for k in produced if self._last_use.get(k, -1) >= step or self._pinned[k]}
        needed = {k for s in todo for k in s.reads} - produced
        for batch in range(self.batches):
            values = {k: self.stored(k, batch) for k in needed}
            self._run(todo, values, keep, batch)
            for k in keep:
                self._store.put((self._name, k), batch, values[k])
            yield values
        self._done = step
        self._kept |= keep
        self._release()

    def _release(self) -> None:
        """Drop what no later step reads."""
        for key in list(self._kept):
            if self._last_use.get(key, -1) < self._done and not self._pinned[key]:
                self._kept.discard(key)
                self._store.drop((self._name, key))

    def stored(self, key: Key, batch: int) -> Any:
        """What a batch holds under a key that was run and is kept."""
        return keras.ops.convert_to_tensor(self._store.get((self._name, key), batch))

    def _run(self, steps: list[Step], values: dict[Key, Any], keep: set[Key], batch: int) -> None:
        last = {k: n for n, s in enumerate(steps) for k in s.reads}
        for number, step in enumerate(steps):
            values.update(zip(step.gives, step.run(values), strict=True))
            values.update((k, self._in_place[k](batch)) for k in step.gives if k in self._in_place)
            for key in step.reads:
                if last[key] == number and key not in keep:
                    values.pop(key, None)
