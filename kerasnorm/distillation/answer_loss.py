"""How far the answers of a copy are from its source's, on some samples."""

from __future__ import annotations

import numpy as np
from keras import ops, tree

from kerasnorm.distillation.losses import Distance, joined
from kerasnorm.graph.execute import run, samples_at_once
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.output_heads import heads_of


class AnswerLoss:
    """The sum over a model's outputs of the `Distance` from its source's.

    Args:
        source: The source's graphs.
        arrays: The samples, as flat inputs.
    """

    def __init__(self, source: ModelGraphs, arrays: list[np.ndarray]):
        self._arrays = arrays
        self._heads = heads_of(source)
        expected = self._logits(source.root)
        self._distances = [Distance(h, t) for h, t in zip(self._heads, expected, strict=True)]

    def of(self, copy: Graph) -> float:
        """That of a model with the same inputs and outputs."""
        received = self._logits(copy)
        return sum(d.of(logits) for d, logits in zip(self._distances, received, strict=True))

    def share_of(self, copy: Graph) -> float:
        """The largest `Distance` of an output, as a share of its `information`."""
        received = self._logits(copy)
        return max(
            distance.of(logits) / distance.information
            for distance, logits in zip(self._distances, received, strict=True)
        )

    def _logits(self, graph: Graph) -> list[np.ndarray]:
        parts = []
        at_once = samples_at_once(self._arrays)
        for first in range(0, len(self._arrays[0]), at_once):
            part = [array[first : first + at_once] for array in self._arrays]
            outputs = zip(self._heads, run(graph, part, tree.flatten(graph.outputs)), strict=True)
            parts.append([ops.convert_to_numpy(head.logits(y)) for head, y in outputs])
        return joined(parts)
