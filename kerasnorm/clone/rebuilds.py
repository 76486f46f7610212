"""`Rebuilds`: a model that is rebuilt in several steps."""

from __future__ import annotations

from typing import Any

import keras

from kerasnorm.clone.edits import Edits
from kerasnorm.clone.rebuild import Rebuilt, rebuild
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.model_graphs import Opens, graphs_of

# A tensor of a graph: the `id` of the graph's owner, and its own. Graphs may have some in common.
Key = tuple[int, int]


class Rebuilds:
    """A model that is rebuilt in several steps, and how the last copy lies over the source.

    Args:
        model: The source; it stays as it is.
        opens: Which layers with code of their own to look into; see `graphs_of`.

    Attributes:
        source: The graphs of the source.
        now: The graphs of the last copy; those of the source before there is one.
        layers: The name in the last copy of each layer of the source, both by path.
        notes: What the steps could not keep.
    """

    def __init__(self, model: keras.Model, opens: Opens):
        self.source = self.now = graphs_of(model, opens)
        self.layers: dict[str, str] = {}
        self.notes: list[str] = []
        self._graphs: dict[int, Graph] = dict(self.source.graphs)
        self._tensors: dict[int, dict[int, Any]] = {
            key: {id(tensor): tensor for call in graph.calls for tensor in call.outputs}
            for key, graph in self.source.graphs.items()
        }

    def apply(self, edits: Edits) -> Rebuilt:
        """Rebuild the last copy with some edits of its calls.

        Raises:
            SwapError: If a layer cannot be copied.
        """
        rebuilt = rebuild(self.now, edits)
        opened = {id(graph.owner) for graph in rebuilt.graphs.values()}
        now = graphs_of(rebuilt.model, lambda layer: id(layer) in opened)
        again = {}  # what is traced anew has other tensors, of the same calls
        for graph in rebuilt.graphs.values():
            key = id(graph.owner)
            for one, other in zip(graph.calls, now.graphs[key].calls, strict=True):
                pairs = zip(one.outputs, other.outputs, strict=True)
                again.update({(key, id(a)): b for a, b in pairs})
        for key, graph in self._graphs.items():
            copy = id(rebuilt.graphs[id(graph.owner)].owner)
            # masks that nothing reads are in no copy
            new = {
                own: again.get((copy, id(rebuilt.tensors.get((id(graph.owner), id(tensor))))))
                for own, tensor in self._tensors[key].items()
            }
            self._tensors[key] = {own: tensor for own, tensor in new.items() if tensor is not None}
            self._graphs[key] = now.graphs[copy]
        before = self.layers or {name: name for name in rebuilt.layers}
        self.layers = {old: rebuilt.layers.get(new, new) for old, new in before.items()}
        self.notes += [note for note in rebuilt.notes if note not in self.notes]
        self.now = now
        return rebuilt

    @property
    def copies(self) -> dict[int, Graph]:
        """The graph of the last copy of each graph's owner, by the `id` of the source's."""
        return dict(self._graphs)

    def counterpart(self, graph: Graph, tensor: Any) -> Any:
        """What the last copy has in the place of a tensor of a graph of the source."""
        return self._tensors[id(graph.owner)][id(tensor)]

    def sources_of(self, graph: Graph, tensor: Any) -> set[Key]:
        """The tensors of the source that a tensor of the last copy stands for."""
        (owner,) = (key for key, copy in self._graphs.items() if copy.owner is graph.owner)
        return {(owner, own) for own, now in self._tensors[owner].items() if now is tensor}
