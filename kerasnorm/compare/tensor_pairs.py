"""Which tensors of a model and of its rewritten copy stand for the same."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from keras import tree

from kerasnorm.graph.graph import Call, Graph
from kerasnorm.graph.model_graphs import ModelGraphs
from kerasnorm.graph.sites import Site


@dataclass(frozen=True)
class TensorPair:
    """A tensor of the source, and what the copy has in its place.

    Attributes:
        name: What to call it in messages.
        graph: The source's graph that it is in.
        expected: The symbolic tensor in the source.
        received: The symbolic tensor in the copy.
        axis: The channel axis.
        exact: Whether both are to be the same but for rounding.
    """

    name: str
    graph: Graph
    expected: Any
    received: Any
    axis: int = -1
    exact: bool = True


@dataclass(frozen=True)
class ModelPair:
    """A model, its rewritten copy, and the tensors to compare.

    Attributes:
        source: The graphs of the source.
        copies: The copy's graph of the same owner, by the `id` of the owner in the source.
        counterpart: Gives what a copy has in the place of a tensor of a graph of the source.
        sites: BatchNorm calls and what stands in their places.
        outputs: The outputs of both models.
    """

    source: ModelGraphs
    copies: Mapping[int, Graph]
    counterpart: Callable[[Graph, Any], Any]
    sites: tuple[TensorPair, ...]
    outputs: tuple[TensorPair, ...]

    @property
    def pairs(self) -> tuple[TensorPair, ...]:
        """All that is compared."""
        return self.sites + self.outputs

    def pair(self, name: str, graph: Graph, tensor: Any) -> TensorPair:
        """A tensor of a graph of the source, and what the copy has in its place."""
        received = self.counterpart(graph, tensor)
        return TensorPair(name, graph, tensor, received, _channel_axis(graph, tensor))

    def of_source(self) -> ModelPair:
        """The source beside itself."""
        return ModelPair(
            self.source,
            {key: self.source.graphs[key] for key in self.copies},
            lambda graph, tensor: tensor,
            *(
                tuple(dataclasses.replace(pair, received=pair.expected) for pair in pairs)
                for pairs in (self.sites, self.outputs)
            ),
        )

    def opened_calls(self, graph: Graph) -> list[Call]:
        """The calls of nested models that something compared is in, to any depth."""
        return [call for call in graph.calls if id(call.operation) in self._opened]

    @cached_property
    def _opened(self) -> set[int]:
        found = {id(pair.graph.owner) for pair in self.pairs}
        for key, graph in self.source.graphs.items():  # inner ones first
            if any(id(call.operation) in found for call in graph.calls):
                found.add(key)
        return found


def pair_models(
    source: ModelGraphs,
    copies: Mapping[int, Graph],
    counterpart: Callable[[Graph, Any], Any],
    sites: Iterable[Site],
) -> ModelPair:
    """Compare each site's output with what stands in its place, then the outputs of both models.

    Args:
        source, copies, counterpart: See `ModelPair`.
        sites: BatchNorm calls of the source.
    """
    pairs = tuple(
        TensorPair(
            site.name,
            site.graph,
            site.call.output,
            counterpart(site.graph, site.call.output),
            site.axis,
        )
        for site in sites
    )
    root = source.root
    outputs = output_pairs(root, copies[id(root.owner)], known=pairs)
    return ModelPair(source, copies, counterpart, pairs, tuple(outputs))


def pair_outputs(source: ModelGraphs, copy: Graph) -> ModelPair:
    """Compare the outputs of two models alone."""
    root = source.root
    return ModelPair(
        source, {id(root.owner): copy}, _no_counterpart, (), tuple(output_pairs(root, copy))
    )


def _no_counterpart(graph: Graph, tensor: Any) -> Any:
    raise LookupError  # nothing but outputs is compared


def output_pairs(
    graph: Graph, copy: Graph, known: Iterable[TensorPair] = (), path: str = ""
) -> list[TensorPair]:
    """The outputs of a graph and of its copy, as "output 0", "output 1", ….

    The channels of an output are along the axis of a site whose output it is, of its layer's data
    format, or along the last.
    """
    axes = {id(pair.expected): pair.axis for pair in known}
    ends = zip(tree.flatten(graph.outputs), tree.flatten(copy.outputs), strict=True)
    return [
        TensorPair(
            f"{path}output {number}",
            graph,
            expected,
            received,
            axes.get(id(expected), _channel_axis(graph, expected)),
        )
        for number, (expected, received) in enumerate(ends)
    ]


def _channel_axis(graph: Graph, tensor: Any) -> int:
    layer = graph.producer(tensor).operation
    first = getattr(layer, "data_format", None) == "channels_first" and len(tensor.shape) > 2
    return 1 if first else -1
