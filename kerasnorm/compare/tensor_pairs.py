"""Which tensors of two models stand for the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from keras import tree

from kerasnorm.graph.graph import Graph
from kerasnorm.graph.model_graphs import ModelGraphs


@dataclass(frozen=True)
class TensorPair:
    """The output of one call of the source, and what stands in its place.

    Attributes:
        name: What to call it in messages.
        graph: The source's graph that the call is in.
        copy: The result's graph of the same owner.
        expected: The symbolic tensor in the source.
        received: The symbolic tensor in the result.
        axis: The channel axis.
    """

    name: str
    graph: Graph
    copy: Graph
    expected: Any
    received: Any
    axis: int = -1


def output_pairs(model_graphs: ModelGraphs, copy: Graph) -> list[TensorPair]:
    """The outputs of a model and of its copy, as "output 0", "output 1", …."""
    root = model_graphs.root
    ends = zip(tree.flatten(root.outputs), tree.flatten(copy.outputs), strict=True)
    return [TensorPair(f"output {number}", root, copy, *pair) for number, pair in enumerate(ends)]
