"""Build a clone of a model with some of its calls replaced.

The source is only read: every layer of the clone is a new one, made from the source layer's
config or attributes and given its weights.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone.builder import Builder
from kerasnorm.clone.compile_state import carry_compile_state
from kerasnorm.clone.edits import Edits
from kerasnorm.clone.shared import check_nothing_shared
from kerasnorm.clone.skip_init import skipped_initializers
from kerasnorm.clone.strategy import scope_like
from kerasnorm.graph.graph import Graph
from kerasnorm.graph.model_graphs import ModelGraphs


@dataclass
class Rebuilt:
    """A rebuilt model and how it lies over its source.

    Attributes:
        model: The new model.
        layers: The name of each source layer in it.
        notes: What could not be kept.
        graphs: The graph of the copy of each graph's owner, by the owner's `id`.
        tensors: The new symbolic tensor of each of the source's, by the `id` of the graph's owner
            and of the tensor: graphs may have tensors in common.
        copies: The new layer of each source layer and of each `Replace`, by `id`.
    """

    model: keras.Model
    layers: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    graphs: dict[int, Graph] = field(default_factory=dict)
    tensors: dict[tuple[int, int], Any] = field(default_factory=dict)
    copies: dict[int, Any] = field(default_factory=dict)

    def counterpart(self, graph: Graph, tensor) -> Any:
        """What the copy of a graph has in the place of a tensor."""
        return self.tensors[id(graph.owner), id(tensor)]


def rebuild(model_graphs: ModelGraphs, edits: Edits, *, compiled: bool = True) -> Rebuilt:
    """Copy a model, with its weights, flags and compile state, and apply `edits` on the way.

    Args:
        model_graphs: The graphs of the source model.
        edits: What to do with single calls; all others are copied.
        compiled: Whether the copy gets the source's compile state.

    Returns:
        The copy, which shares no variable with the source, the map from old to new layer names
        (paths such as "backbone/conv" for nested models), and notes on what was not kept.

    Raises:
        SwapError: If a layer cannot be copied from its config.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(scope_like(model_graphs.root.owner))
        builder = Builder(model_graphs, edits, stack.enter_context(skipped_initializers()))
        stack.enter_context(keras_private.trusted_configs())
        stack.enter_context(keras.saving.custom_object_scope(builder.custom_objects()))
        model = builder.owner(model_graphs.root)
        builder.carry_state()
    check_nothing_shared(model_graphs.root.owner, model)
    notes = builder.notes
    if compiled:
        notes += carry_compile_state(model_graphs.root.owner, model)
    return Rebuilt(model, builder.names, notes, builder.graphs, builder.tensors, builder.copies)
