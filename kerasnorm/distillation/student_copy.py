"""A copy of a student to train, while the student itself stays as it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import keras

from kerasnorm import keras_private
from kerasnorm.clone.rebuild import Rebuilt, rebuild
from kerasnorm.clone.state import assign_copy
from kerasnorm.distillation.strided_pointwise import stride_before_pointwise
from kerasnorm.graph.model_graphs import ModelGraphs, graphs_of


class StudentCopy:
    """A copy of a student of which only some variables are trainable.

    Args:
        student: The student's graphs.
        trained: Those of its variables that may change.

    Attributes:
        model: The copy.
        graphs: Its graphs.

    Raises:
        SwapError: If a layer cannot be copied.
    """

    def __init__(self, student: ModelGraphs, trained: Sequence[keras.Variable]):
        rebuilt = rebuild(student, {}, compiled=False)
        self.model: Any = rebuilt.model
        self.graphs = graphs_of(self.model)
        copies = _copied_variables(student, rebuilt)
        self._trained = [(variable, copies[id(variable)]) for variable in trained]
        kept = {id(copy) for _, copy in self._trained}
        for variable in self.model.variables:
            variable.trainable = id(variable) in kept
        stride_before_pointwise(keras_private.sublayers(self.model))

    def give_back(self) -> None:
        """Set the student's trained variables to the copy's."""
        for variable, copy in self._trained:
            assign_copy(variable, copy)


def _copied_variables(source: ModelGraphs, rebuilt: Rebuilt) -> dict[int, keras.Variable]:
    """The copy of each variable that a model computes with, by `id`."""
    found: dict[int, keras.Variable] = {}

    def pair(variables: Iterable[Any], copies: Iterable[Any]) -> None:
        found.update(zip(map(id, variables), copies, strict=True))

    for graph in source.graphs.values():
        copy = rebuilt.graphs[id(graph.owner)].owner
        if graph.is_code:
            pair(keras_private.own_variables(graph.owner), keras_private.own_variables(copy))
        for call in graph.calls:
            layer = call.operation
            if getattr(layer, "variables", None) and id(layer) not in source.graphs:
                pair(layer.variables, rebuilt.copies[id(layer)].variables)
    return found
