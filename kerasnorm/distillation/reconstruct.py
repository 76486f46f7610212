"""A short training on the calibration data, after the closed-form fits have brought it near.

The fits go layer by layer, and each can only choose among linear maps. Trained together, the layers
of a block find ways to its end that none of them finds alone; a few hundred samples are enough for
that, since they are compared in every place of every block, not by their answers only.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import keras
import numpy as np
from keras import tree

from kerasnorm.distillation.trained_variables import trained_variables
from kerasnorm.distillation.training import train
from kerasnorm.fit.split import LEAST, PERIOD, same_shapes
from kerasnorm.fit.time_budget import TimeBudget
from kerasnorm.graph import sites
from kerasnorm.graph.graph import Call
from kerasnorm.graph.model_graphs import ModelGraphs, graphs_of
from kerasnorm.layers import kernels

_EPOCHS, _BATCH = 20, 32
# In fewer, the rate does not come down far enough for it to pay.
_LEAST_EPOCHS = 5
_MOST_SAMPLES = 4096
# Fewer leave too few that are held out.
_LEAST_SAMPLES = LEAST * PERIOD
# Multiplications of one run over all samples and epochs: a minute or so of two processor cores.
_WORK = 2e11


class Reconstruction:
    """Trains a swapped model to reproduce its source on some of the data that passes through.

    Args:
        source: The source's graphs.
        memory_budget: Bytes, a quarter of which may hold samples to train on.

    Attributes:
        notes: Why `run` did not train, or what training brought.
        doubts: That it brought nothing.
    """

    def __init__(self, source: ModelGraphs, memory_budget: int):
        self.notes: list[str] = []
        self.doubts: list[str] = []
        self._source = source
        self._room = memory_budget // 4
        self._kept: list[list[np.ndarray]] = []
        self._count = 0
        self._work = 0.0  # multiplications of one pass over what is kept
        self._full = False  # of work
        self._seen = 0

    def collect(self, batches: Iterable[list[np.ndarray]]) -> Iterator[list[np.ndarray]]:
        """Pass batches of flat inputs on, and keep what is to be trained on."""
        each = 0.0
        for arrays in batches:
            each = each or multiplications(self._source, arrays)
            work = self._work + each * len(arrays[0])
            self._seen += len(arrays[0])
            self._full |= work > _WORK
            fits = self._count + len(arrays[0]) <= _MOST_SAMPLES and work <= _WORK
            self._room -= sum(array.nbytes for array in arrays)
            if fits and self._room >= 0 and (not self._kept or same_shapes(arrays, self._kept[0])):
                self._kept.append(arrays)
                self._count += len(arrays[0])
                self._work = work
            yield arrays

    @property
    def epochs(self) -> int:
        """How many epochs are worth their time; 0 where there is an obstacle."""
        return 0 if self._obstacle() else self._affordable

    @property
    def _affordable(self) -> int:
        return int(min(_EPOCHS, _WORK // max(self._work, 1)))

    def _obstacle(self) -> str | None:
        """Why there is no training."""
        if keras.backend.backend() != "tensorflow":
            return (
                f"it needs Keras on the TensorFlow backend, and this is {keras.backend.backend()}"
            )
        if self._source.root.batch_size is not None:
            return "the model takes batches of one size only"
        if self._count >= _LEAST_SAMPLES and self._affordable >= min(_EPOCHS, _LEAST_EPOCHS):
            return None
        if self._full or self._count >= _LEAST_SAMPLES:
            return "the model is large, and it would take long; `kerasnorm.distill` does it"
        kept = "" if self._seen < _LEAST_SAMPLES else " of one shape and within the memory budget"
        return f"it needs at least {_LEAST_SAMPLES} samples{kept}, and there are {self._count}"

    def run(
        self,
        swapped: keras.Model,
        layers: list[keras.Layer],
        seed: int,
        budget: TimeBudget | None = None,
    ) -> bool:
        """Train some layers of the swapped model in place; whether it came nearer to its source.

        Args:
            swapped: The swapped model.
            layers: Those of its layers that were fitted.
            seed: Of the order of the samples.
            budget: What is left of the time.
        """
        budget = budget or TimeBudget()
        obstacle, graphs = self._obstacle(), graphs_of(swapped)
        trained = trained_variables(graphs, layers)
        if not obstacle and not trained:
            obstacle = "no layer that was fitted is trainable"
        if obstacle:
            self.notes.append(f"not trained after the fits: {obstacle}")
            return False
        root = self._source.root
        flat = [np.concatenate(column) for column in zip(*self._kept, strict=True)]
        self._kept.clear()
        data = flat if root.is_code else tree.pack_sequence_as(root.inputs, flat)
        history = train(
            graphs,
            self._source,
            trained,
            data,
            epochs=self.epochs,
            batch_size=_BATCH,
            seed=seed,
            budget=budget,
        )
        if not history.epoch:
            self.notes.append("not trained after the fits: there was no time left for an epoch")
            return False
        better = history.after != history.before
        before, after = history.before["loss"], history.after["loss"]
        count = len(history.epoch)
        epochs = "1 epoch" if count == 1 else f"{count} epochs"
        done = f"trained for {epochs} after the fits, which brought"
        if better:
            self.notes.append(
                f"{done} the loss on held-out samples from {before:.3g} to {after:.3g}"
            )
        else:
            self.doubts.append(f"{done} nothing (loss {before:.3g}): it is left out")
        return better


def multiplications(model_graphs: ModelGraphs, arrays: list[np.ndarray]) -> float:
    """How many multiplications a model takes for one sample of a batch, about.

    Its linear layers' own; what other layers hold is taken to be used at each of their places.
    Where the model leaves a size open, at any depth, the largest of the data's stands for it.
    """
    free = max((size for array in arrays for size in array.shape[1:]), default=1)
    total = 0.0
    for graph in model_graphs.graphs.values():
        for call in graph.calls:
            layer: Any = call.operation
            opened = id(layer) in model_graphs.graphs or not isinstance(layer, keras.Layer)
            if not opened and layer.built:
                total += _uses(call, free) * _weights(layer)
    return total


def _uses(call: Call, free: int) -> float:
    """At how many places of its output, or of its input, a call uses each of its weights."""
    linear = sites.is_plain_linear(call.operation)
    tensors = call.outputs if linear else [*call.outputs, *call.inputs]
    counts = []
    for tensor in tensors:
        sizes = [free if size is None else size for size in tensor.shape[1:]]
        axis = kernels.channel_axis(call.operation, len(sizes) + 1) if linear else None
        channels = sizes[(axis or len(sizes)) - 1] if sizes else 1
        counts.append(float(np.prod(sizes)) / max(1, channels))
    return max(counts, default=1.0)


def _weights(layer: keras.Layer) -> int:
    return sum(int(np.prod(v.shape)) for v in layer.variables if len(v.shape) > 1)
