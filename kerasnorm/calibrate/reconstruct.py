"""A short training on the calibration data, after the closed-form fits have brought it near.

The fits go layer by layer, and each can only choose among linear maps. Trained together, the layers
of a block find ways to its end that none of them finds alone; a few hundred samples are enough for
that, since they are compared in every place of every block, not by their answers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from keras import tree

from kerasnorm.calibrate.distill import distill, held_out
from kerasnorm.layers import kernel as kernels
from kerasnorm.rewrite import match
from kerasnorm.rewrite.forest import Forest

_EPOCHS, _BATCH = 20, 32
_MOST_SAMPLES, _MOST_JUDGES = 4096, 64
# Multiplications of one run over all samples and epochs: a minute or so of two processor cores.
_WORK = 2e11
# What an unknown size in space or time is taken for.
_FREE_SIZE = 64


class Reconstruction:
    """Trains a swapped model to reproduce its source on some of the data that passes through.

    Args:
        source: The source's graphs.

    Attributes:
        held_out: The inputs, flat, of up to 64 samples that nothing is fitted to.
    """

    def __init__(self, source: Forest):
        self._source = source
        self._each = multiplications(source)
        self._kept: list[list[np.ndarray]] = []
        self._unseen: list[list[np.ndarray]] = []
        self._count = self._seen = 0

    def watch(self, batches: Iterable[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
        """Pass batches of inputs on, and keep what is to be trained on or judged by."""
        for arrays in batches:
            unseen = np.flatnonzero(held_out(self._seen + np.arange(len(arrays[0]))))
            self._seen += len(arrays[0])
            if sum(len(part[0]) for part in self._unseen) < _MOST_JUDGES:
                self._unseen.append([a[unseen] for a in arrays])
            if self._count < _MOST_SAMPLES and self._each * (self._count + 1) <= _WORK:
                self._kept.append(arrays)
                self._count += len(arrays[0])
            yield arrays

    @property
    def held_out(self) -> list[np.ndarray]:
        return [np.concatenate(c)[:_MOST_JUDGES] for c in zip(*self._unseen, strict=True)]

    @property
    def epochs(self) -> int:
        """How many epochs are worth their time; 0 for large models, which `distill` is for."""
        work = self._each * max(self._count, 1)
        return int(min(_EPOCHS, _WORK // max(work, 1)))

    def run(self, swapped: Any, seed: int) -> bool:
        """Train the swapped model in place; whether that brought it nearer to its source."""
        if not self.epochs or not swapped.trainable_variables:
            return False
        root = self._source.root
        flat = [np.concatenate(column) for column in zip(*self._kept, strict=True)]
        data = flat if root.is_code else tree.pack_sequence_as(root.inputs, flat)
        history = distill(
            swapped, root.owner, data, epochs=self.epochs, batch_size=_BATCH, seed=seed
        )
        return history.after != history.before


def multiplications(forest: Forest) -> int:
    """How many multiplications a model takes for one sample, about."""
    total = 0
    for graph in forest.graphs.values():
        for call in graph.calls:
            layer: Any = call.operation
            if not match.is_plain_linear(layer) or not layer.built:
                continue
            places = [_FREE_SIZE if size is None else size for size in call.output.shape[1:]]
            for kernel in kernels.kernels_of(layer).values():
                channels = places[-1] if len(places) > 1 else int(np.prod(places))
                positions = max(1, int(np.prod(places)) // max(1, channels))
                total += positions * int(np.prod(kernel.variable.shape))
    return total
